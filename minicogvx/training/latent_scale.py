"""The scale of a VAE's latents, changed after training without changing what it reconstructs.

The encoder's last layer is multiplied by a matrix, and the layers that read the latent by its inverse. The latents are
not shifted, so that zero, which the decoder's convolutions see beyond the border, keeps its meaning.
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
    for parameter in _readers(vae):
        parameter *= deviation[None, :, None, None, None]
    return deviation


@torch.no_grad()
def whiten_latents(vae: CausalVAE, videos: Iterable[Float[Tensor, "_ c t h w"]],
                   floor: float = 0.05) -> Float[Tensor, "latent latent"]:
    """Mixes the latent channels so that on `videos` they are nearly uncorrelated, each of unit variance.

    A diffusion model sees noise of one strength in every direction; where channels repeat each other, the directions of
    their small differences drown in it first. The mix is the symmetric one (ZCA), which stays closest to the channels
    as they were: (C + floor I)^-1/2 of their correlations C, so that a direction without signal is not blown up, then
    a scale for each. The posterior's width cannot follow exactly, as mixed noise is correlated: its variance in each
    channel does, to first order around its mean. Returns the matrix.
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
    out = vae.encoder.conv_out.conv
    shares = 2 * mix.abs().log() + logvar.mean(1)  # of the variance of each mixed channel, from each old one
    slopes = shares.softmax(1)
    offset = shares.logsumexp(1) - slopes @ logvar.mean(1)
    for parameter in (out.weight, out.bias):
        parameter[:c] = einsum(mix, parameter[:c].double(), "new old, old ... -> new ...").to(parameter)
        parameter[c:] = einsum(slopes, parameter[c:].double(), "new old, old ... -> new ...").to(parameter)
    out.bias[c:] += offset.to(out.bias)
    inverse = torch.linalg.inv(mix)
    for parameter in _readers(vae):
        parameter.copy_(einsum(parameter.double(), inverse, "out old t h w, old new -> out new t h w"))
    return mix.float()


def _readers(vae: CausalVAE) -> list[nn.Parameter]:
    """The weights of the decoder that read the latent."""
    return [parameter for name, parameter in vae.decoder.named_parameters()
            if name == "conv_in.conv.weight" or name.endswith(("conv_y.conv.weight", "conv_b.conv.weight"))]
