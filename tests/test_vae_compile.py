"""`torch.compile` of the VAE: the same numbers and gradients, and encoder and decoder in one graph each.

In a process of its own: the compiler does not trace through checks of shapes. "aot_eager" traces and makes no code.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from minicogvx.presets import VAEConfig
from minicogvx.vae import CausalVAE

TINY = dict(latent_channels=2, block_out_channels=(2, 4), layers_per_block=1, norm_num_groups=2,
            temporal_compression_ratio=2, sample_height=4, sample_width=4)
VARIANTS = {"start": dict(first_frame="start"), "parity": dict(first_frame="parity"),
            "frame": dict(first_frame="start", norm_over="frame", time_padding="zeros")}

CASES = [("start", "encoder", torch.float32, False), ("start", "decoder", torch.float32, False),
         ("frame", "encoder", torch.float32, True), ("parity", "decoder", torch.float32, True),
         ("start", "decoder", torch.bfloat16, True)]


def answers(run, vae: CausalVAE, x: torch.Tensor, grad: bool) -> list[torch.Tensor]:
    """The output and, with `grad`, the gradients of input and weights."""
    with torch.set_grad_enabled(grad):
        x = x.clone().requires_grad_(grad)
        y = run(x)
        if not grad:
            return [y]
        wanted = [x, *(p for p in vae.parameters())]
        found = torch.autograd.grad(y.float().square().sum(), wanted, allow_unused=True)
    gradients = torch.cat([g.flatten() for g in found if g is not None])  # some are 0 up to rounding: compared as one
    return [y.detach(), gradients]


def apart(found: list[torch.Tensor], true: list[torch.Tensor]) -> float:
    """The largest relative difference."""
    assert len(found) == len(true)
    return max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(found, true))


def work() -> dict[str, float | str]:
    """The error of each compiled module relative to the same uncompiled one."""
    torch.manual_seed(0)
    video, latents, result = torch.rand(1, 3, 5, 4, 4) * 2 - 1, torch.randn(1, 2, 3, 2, 2), {}
    for name, part, dtype, grad in CASES:
        vae = CausalVAE(VAEConfig(**TINY, **VARIANTS[name]))
        network, x = getattr(vae, part), (video if part == "encoder" else latents).to(dtype)
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        result[f"{name}, {part}, {dtype}, {grad}"] = apart(answers(compiled, vae, x, grad),
                                                           answers(network, vae, x, grad))
        torch.compiler.reset()
    vae, found = CausalVAE(VAEConfig(**TINY, **VARIANTS["start"])), []
    whole = torch.compile(vae, backend="aot_eager")
    for run in (whole, vae):
        torch.manual_seed(1)
        found.append(answers(lambda x: run(x, chunk_frames=2)[0], vae, video, True))
    result["whole"] = apart(*found)
    try:
        whole(video * torch.nan, chunk_frames=2)
        result["refused"] = "nothing"
    except ValueError as error:
        result["refused"] = str(error)
    return result


def test_compiled_numbers_and_gradients_are_those_of_the_modules_and_nan_is_still_refused():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    errors = {name: error for name, error in result.items() if name != "refused"}
    assert len(errors) == len(CASES) + 1
    for name, error in errors.items():
        assert error <= (0.03 if "bfloat16" in name else 1e-5), errors
    assert result["refused"].startswith("the video holds NaN")


if __name__ == "__main__":
    print(json.dumps(work()))
