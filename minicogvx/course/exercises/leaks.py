"""The check of exercise 2.6: an instrument that finds which frames of an output a frame of the clip reaches."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.vae.causal_conv import CausalConv3d
from minicogvx.vae.layers import halve_time


def first_different_frame(a: Float[Tensor, "b c t h w"], b: Float[Tensor, "b c t h w"]) -> int | None:
    """The first frame at which two clips differ by more than rounding, or None."""
    different = ~torch.isclose(a, b, rtol=1e-4, atol=1e-4)
    frames = different.any(dim=4).any(dim=3).any(dim=1).any(dim=0).nonzero()
    return int(frames[0]) if len(frames) else None


def first_frame_touched(network: Callable, clip: Float[Tensor, "b c t h w"], frame: int) -> int | None:
    """The first output frame of `network` that changes when frame `frame` of `clip` becomes another, or None.

    Noise, because a norm does not see a constant that is added, and a clip of zeros not a factor.
    """
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    return first_different_frame(network(changed), network(clip))


def check_first_affected(first_affected) -> None:
    """What looks back, ahead, everywhere or nowhere; one sample, channel or corner; contrast; zeros; rounding."""
    clip = torch.randn(2, 2, 9, 4, 4)
    causal, around = CausalConv3d(2, 3, 3), nn.Conv3d(2, 3, 3, padding=1)
    for what, network, frame, wanted, why in (
        ("the identity", lambda x: x, 5, 5, "It returns what it is given."),
        ("a causal convolution", causal, 8, 8, "Nothing before the changed frame may change."),
        ("a convolution with padding on both sides", around, 5, 4, "It looks one frame ahead."),
        ("one in which every frame depends on all", _minus_mean, 8, 0, "Even frame 0 changes with the last one."),
        ("means of pairs", halve_time, 5, 3, "Count in the output's own frames."),
        ("one that drops all but 3 frames", lambda x: x[:, :, :3], 5, None, "No frame of the output changes."),
        ("one that reads channel 1 only", lambda x: x[:, 1:], 5, 5, "Change every channel."),
        ("one that reads sample 1 only", lambda x: x[1:], 5, 5, "Change every sample of the batch."),
        ("one that reads a corner only", lambda x: x[..., -1:, -1:], 5, 5, "Change every place."),
        ("one whose channel 0 is always 0", lambda x: torch.cat([0 * x[:, :1], x], 1), 5, 5, "Compare all channels."),
        ("one whose sample 0 is always 0", lambda x: torch.cat([0 * x[:1], x[1:]]), 5, 5, "Compare all samples."),
        ("one blind to a frame's brightness and contrast", _alike, 5, 5, "It undoes a constant, or a factor."),
        ("an output with rounding errors", _rounded, 5, 5, "Differences of 1e-6 are rounding."),
    ):
        _check_instrument(first_affected, what, network, clip, frame, wanted, why)
    _check_instrument(first_affected, "the identity, on a clip of zeros", lambda x: x, torch.zeros_like(clip), 5, 5,
                      "A factor changes no zero; add something.")


def _check_instrument(first_affected, what: str, network: Callable, clip: Tensor, frame: int, wanted: int | None,
                      why: str) -> None:
    given = clip.clone()
    with torch.no_grad():
        got = first_affected(network, given, frame)
    if not torch.equal(given, clip):
        raise Wrong("first_affected changes its input clip; change a copy instead: clip.clone().")
    if isinstance(got, Tensor):
        raise Wrong(f"first_affected gives a tensor for {what}; it must give a plain number: int(...).")
    if got is None and wanted is not None:
        raise Wrong(f"first_affected(network, clip, {frame}) is None for {what}; it must be {wanted}. {why} "
                    f"(And does your function end in return?)")
    if got != wanted or isinstance(got, bool):
        raise Wrong(f"first_affected(network, clip, {frame}) is {got!r} for {what}; it must be {wanted}. {why}")


def _minus_mean(x: Tensor) -> Tensor:
    return x - x.mean(dim=(1, 2, 3, 4), keepdim=True)


def _alike(x: Tensor) -> Tensor:
    mean = x.mean(dim=(1, 3, 4), keepdim=True)
    return (x - mean) / (x - mean).square().mean(dim=(1, 3, 4), keepdim=True).sqrt()


def _rounded(x: Tensor) -> Tensor:
    return x + 1e-6 * torch.randn_like(x)
