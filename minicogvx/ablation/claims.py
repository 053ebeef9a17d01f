"""The comparisons of the paper that this repository repeats in small, and choices that the paper does not test.

The paper's plots of FVD and of losses have no numbers in the text; a claim here is the direction that it states.
"""

from minicogvx.ablation.results import default_file, read_results
from minicogvx.ablation.verdicts import Claim, Judged, judge_claim

_WITH, _FOUR, _SIXTEEN, _THIRTY_TWO = "8x8x1, 4 channels", "8x8x4, 8 channels", "8x8x4, 16 channels", (
    "8x8x4, 32 channels")
_LONGER, _LARGEST = "8x8x8, 32 channels", "16x16x8, 128 channels"

PAPER = (
    Claim("RoPE learns faster than a table of sines and cosines", "4.1, Figure 10a", "position", "rope", "sincos",
          "loss", "lower"),
    Claim("the expert norm beats one modulation for text and video", "4.1, Figures 8a, 10c", "modulation", "expert",
          "shared", "loss", "lower"),
    Claim("the expert norm beats separate weights (MMDiT) of the same size", "4.1, Figures 8a, 10c", "modulation",
          "expert", "separate", "loss", "lower"),
    Claim("full attention beats space, then time", "4.1, Figures 8b, 10b", "attention", "full", "factorised", "loss",
          "lower"),
    Claim("full attention finds what has moved far (twins)", "2.2", "twins", "full, 16 moved",
          "factorised, 16 moved", "loss", "lower"),
    Claim("timesteps spread on purpose lower the loss", "3.3, Figure 10d, Table 9", "uniform-sampling", "stratified",
          "uniform", "loss", "lower"),
    Claim("16 channels keep more than 8", "Table 1", "vae-compression", _SIXTEEN, _FOUR, "psnr", "higher"),
    Claim("32 channels keep more than 16", "Table 1", "vae-compression", _THIRTY_TWO, _SIXTEEN, "psnr", "higher"),
    Claim("16 channels with 4x in time keep more than 4 without", "Table 1", "vae-compression", _SIXTEEN, _WITH,
          "psnr", "higher"),
    Claim("8 channels with 4x in time keep less than 4 without", "Table 1", "vae-compression", _FOUR, _WITH, "psnr",
          "lower"),
    Claim("the 3D VAE flickers less than one without compression in time", "Table 1", "vae-compression", _SIXTEEN,
          _WITH, "flicker", "lower"),
    Claim("8x in time keeps less than 4x", "Table 1", "vae-compression", _LONGER, _THIRTY_TWO, "psnr", "lower"),
    Claim("16x16x8 keeps less than 8x8x8", "2.1, Table 1", "vae-compression", _LARGEST, _LONGER, "psnr", "lower"),
    Claim("short clips, then long ones, beat short ones alone on long clips", "2.1", "vae-stages", "short, then long",
          "short", "psnr", "higher"),
)

# Directions that one would guess from how the paper words its choices; it shows no comparison of them.
UNTESTED = (
    Claim("LPIPS in the loss lowers LPIPS", "2.1", "vae-losses", "+LPIPS", "+L2", "lpips", "lower"),
    Claim("a GAN makes clips sharper", "2.1", "vae-losses", "+GAN", "+KL weak", "sharpness", "higher"),
    Claim("a strong pull to a normal costs PSNR", "2.1", "vae-losses", "+KL strong", "+KL weak", "psnr", "lower"),
    Claim("a weak pull (0.1) costs PSNR", "2.1", "vae-kl", "0.1", "0", "psnr", "lower"),
    Claim("a pull of 10 costs PSNR", "2.1", "vae-kl", "10", "0", "psnr", "lower"),
    Claim("half the work on thumbnails first beats full size throughout (nano world)", "3.2, Table 5", "schedules",
          "half thumbnails", "clips only", "loss", "lower"),
    Claim("thumbnails, then pictures, then clips beat full size throughout (nano world)", "3.2, Table 5", "schedules",
          "thumbnails, pictures, clips", "clips only", "loss", "lower"),
    Claim("growing clips beat the full size in equal time", "3.2, Table 5", "stages", "progressive", "full size",
          "loss", "lower"),
)


def judge_claims(claims: tuple[Claim, ...] = PAPER) -> list[tuple[Judged, str]]:
    """Each claim, judged by the committed results, and the command that makes them again.

    Raises FileNotFoundError or ValueError for results that are missing or damaged.
    """
    results = {name: read_results(default_file(name)) for name in dict.fromkeys(claim.study for claim in claims)}
    return [(judge_claim(claim, results[claim.study].curves), results[claim.study].command) for claim in claims]
