"""The scale of a VAE's latents, changed between stages or after them: folded into the weights, as diffusers' layout
has one factor for all channels and no shift. The encoder's last layer changes them, the layers that read them undo it.
"""

from collections.abc import Iterable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.vae import CausalVAE


@torch.no_grad()
def normalise_latents(vae: CausalVAE, videos: Iterable[Float[Tensor, "_ c t h w"]]) -> Float[Tensor, " latent"]:
    """Folds a scale for each latent channel into the weights, so that on `videos` every channel has unit variance.

    The file format holds one scaling factor for all channels; the diffusion model learns faster if they are alike.
    The encoder's last layer divides by the deviation, the layers that read the latent multiply: same reconstruction.
    Returns the deviations.
    """
    c, device = vae.config.latent_channels, next(vae.parameters()).device
    means = [vae.encode(video.to(device)).mean.transpose(0, 1).flatten(1) for video in videos]
    deviation = torch.cat(means, dim=1).std(1)
    out = vae.encoder.conv_out.conv
    out.weight[:c] /= deviation[:, None, None, None, None]
    out.bias[:c] /= deviation
    out.bias[c:] -= 2 * deviation.log()
    for conv in _readers(vae):
        conv.weight *= deviation[None, :, None, None, None]
    return deviation


@torch.no_grad()
def whiten_latents(vae: CausalVAE, videos: Iterable[Float[Tensor, "_ c t h w"]], floor: float = 0.05
                   ) -> tuple[Float[Tensor, "latent latent"], Float[Tensor, " latent"]]:
    """Shifts and mixes the latent channels: on `videos` they then have mean 0, variance 1 and hardly any correlation.

    A weak KL term leaves means several deviations away from 0, which the diffusion model would have to learn at every
    noise level. And it sees noise of one strength in every direction: where channels repeat each other, the directions
    of their small differences drown in it first. The mix is the symmetric one (ZCA), which stays closest to the
    channels as they were: (C + floor I)^-1/2 of their correlations C, so that a direction without signal is not blown
    up, then a scale for each.

    Reconstructions change at the border only, where the decoder's first convolution sees zeros, now the mean: train on.
    The posterior's width cannot follow exactly, as mixed noise is correlated: its variance in each channel does, to
    first order around its mean. Returns the matrix, and the means before.
    """
    c, device = vae.config.latent_channels, next(vae.parameters()).device
    posteriors = [vae.encode(video.to(device)) for video in videos]
    mean, logvar = (torch.cat([getattr(one, name).transpose(0, 1).flatten(1) for one in posteriors], dim=1).double()
                    for name in ("mean", "logvar"))
    covariance = torch.cov(mean)
    deviation = covariance.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(covariance / deviation[:, None] / deviation)
    mix = vectors @ ((values + floor).rsqrt()[:, None] * vectors.T) / deviation
    mix = mix / (mix @ covariance @ mix.T).diagonal().sqrt()[:, None]
    inverse, centre = torch.linalg.inv(mix), mean.mean(1)
    out = vae.encoder.conv_out.conv
    shares = 2 * mix.abs().log() + logvar.mean(1)  # of the variance of each mixed channel, from each old one
    slopes = shares.softmax(1)
    offset = shares.logsumexp(1) - slopes @ logvar.mean(1)
    for parameter in (out.weight, out.bias):
        parameter[:c] = einsum(mix, parameter[:c].double(), "new old, old ... -> new ...").to(parameter)
        parameter[c:] = einsum(slopes, parameter[c:].double(), "new old, old ... -> new ...").to(parameter)
    out.bias[:c] -= (mix @ centre).to(out.bias)
    out.bias[c:] += offset.to(out.bias)
    for conv in _readers(vae):
        conv.bias += einsum(conv.weight.double(), centre, "out old t h w, old -> out").to(conv.bias)
        conv.weight.copy_(einsum(conv.weight.double(), inverse, "out old t h w, old new -> out new t h w"))
    return mix.float(), centre.float()


def _readers(vae: CausalVAE) -> list[nn.Conv3d]:
    """The convolutions of the decoder that read the latent."""
    return [module for name, module in vae.decoder.named_modules()
            if name == "conv_in.conv" or name.endswith(("conv_y.conv", "conv_b.conv"))]
