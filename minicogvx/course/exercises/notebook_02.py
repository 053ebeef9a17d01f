"""Exercises of notebook 02, the causal VAE: what a causal convolution sees, counting frames, streaming, leaks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.course.exercises.exercise import (
    Exercise,
    Wrong,
    expect_close,
    expect_equal,
    expect_raises,
    expect_shape,
)
from minicogvx.vae.causal_conv import CausalConv3d
from minicogvx.vae.layers import halve_time

# ---- 2.1 pad_past


def pad_with_first_frame(x: Float[Tensor, "b c t h w"], kernel_size: int,
                         dilation: int = 1) -> Float[Tensor, "b c p h w"]:
    """`x` with its first frame repeated in front, so that a convolution in time sees only the past (paper 2.1)."""
    past_frames = (kernel_size - 1) * dilation
    return torch.cat([x[:, :, :1].expand(-1, -1, past_frames, -1, -1), x], dim=2)


def check_pad_past(pad_past) -> None:
    """Length, causality, constancy, the frames themselves; with and without dilation."""
    x = torch.randn(2, 3, 5, 2, 4)
    for kernel_size, dilation in ((3, 1), (4, 1), (3, 2), (1, 1)):
        _check_padding(pad_past, x, kernel_size, dilation)


def _check_padding(pad_past, x: Tensor, kernel_size: int, dilation: int) -> None:
    settings = f"kernel_size={kernel_size}" + (f", dilation={dilation}" if dilation > 1 else "")
    plain = _mean_seen(pad_past, x, kernel_size, dilation)
    for future in range(1, x.shape[2]):
        changed = x.clone()
        changed[:, :, future] += 1
        leak = first_different_frame(_mean_seen(pad_past, changed, kernel_size, dilation), plain)
        if leak is not None and leak < future:
            raise Wrong(f"The future leaks into the past: frame {future} was changed (counted from 0), and the mean "
                        f"over the kernel at frame {leak} changed with it ({settings}). All padding belongs in front.")
    ones = torch.ones_like(x)
    still = _mean_seen(pad_past, ones, kernel_size, dilation)
    frame = first_different_frame(still, ones)
    if frame is not None:
        raise Wrong(f"A clip that stays 1 does not stay constant: the mean over the kernel at frame {frame} is "
                    f"{still[:, :, frame].mean().item():.2g} ({settings}). Pad with the first frame.")
    padded, past = _padded(pad_past, x, kernel_size, dilation), (kernel_size - 1) * dilation
    expect_close(f"pad_past(x, {settings}), after the padding,", padded[:, :, past:], x)
    first = x[:, :, :1].expand(-1, -1, past, -1, -1)
    expect_close(f"The padding of pad_past(x, {settings})", padded[:, :, :past], first)


def _padded(pad_past, clip: Tensor, kernel_size: int, dilation: int) -> Tensor:
    # without dilation as people call it, so that its default is tested, too
    given = clip.clone()
    padded = pad_past(given, kernel_size) if dilation == 1 else pad_past(given, kernel_size, dilation=dilation)
    if not torch.equal(given, clip):
        raise Wrong("pad_past changes its input x; make a new tensor instead.")
    b, c, t, h, w = clip.shape
    what = f"pad_past(x, {kernel_size}, dilation={dilation}) of {t} frames"
    expect_shape(what, padded, (b, c, t + (kernel_size - 1) * dilation, h, w))
    return padded


def _mean_seen(pad_past, clip: Tensor, kernel_size: int, dilation: int) -> Tensor:
    # the simplest convolution in time: the mean of the frames that its kernel covers
    padded = _padded(pad_past, clip, kernel_size, dilation)
    return sum(padded[:, :, i * dilation:i * dilation + clip.shape[2]] for i in range(kernel_size)) / kernel_size


# ---- 2.2 latent_frames


def count_latent_frames(num_frames: int, ratio: int = 4) -> int:
    """How many latent frames a causal VAE makes of `num_frames`: the first alone, the others in groups of `ratio`.

    Raises ValueError where the groups do not come out even.
    """
    if num_frames < 1 or (num_frames - 1) % ratio:
        raise ValueError(f"num_frames is {num_frames}; it must be {ratio}k + 1, such as {ratio + 1} or {2 * ratio + 1}")
    return (num_frames - 1) // ratio + 1


def check_latent_frames(latent_frames) -> None:
    """Counts at the sizes of the paper, one picture, other ratios, and what must be refused."""
    for num_frames, wanted in ((17, 5), (49, 13), (1, 1)):
        expect_equal(f"latent_frames({num_frames})", latent_frames(num_frames), wanted)
    for num_frames, ratio, wanted in ((17, 8, 3), (9, 2, 5), (7, 1, 7)):
        expect_equal(f"latent_frames({num_frames}, ratio={ratio})", latent_frames(num_frames, ratio=ratio), wanted)
    for num_frames in (16, 4, 0, -3):
        expect_raises(f"latent_frames({num_frames})", ValueError, lambda: latent_frames(num_frames))
    expect_raises("latent_frames(5, ratio=8)", ValueError, lambda: latent_frames(5, ratio=8))


# ---- 2.3 stream


def convolve_in_pieces(conv: nn.Module, x: Float[Tensor, "b c t h w"], chunk: int) -> Float[Tensor, "b o t h w"]:
    """What CausalConv3d does with its cache: `chunk` frames at a time, each piece behind the last frames before it.

    `conv` is an `nn.Conv3d` of stride 1 without padding in time.
    """
    past_frames = (conv.kernel_size[0] - 1) * conv.dilation[0]
    past, pieces = x[:, :, :1].expand(-1, -1, past_frames, -1, -1), []
    for piece in x.split(chunk, dim=2):
        seen = torch.cat([past, piece], dim=2)
        pieces.append(conv(seen))
        past = seen[:, :, seen.shape[2] - past_frames:]  # of what was seen: a piece may be shorter than the past
    return torch.cat(pieces, dim=2)


def check_stream(stream) -> None:
    """Length, equality with the whole clip through the package's convolution, and that pieces really are pieces."""
    x = torch.randn(1, 2, 9, 4, 4)
    # 1 frame at a time is less than the kernel's past, 4 leave a rest, 20 are more than the clip has.
    for kernel_size, chunk in ((3, 4), (3, 1), (5, 2), (3, 20), (3, 4)):
        causal = CausalConv3d(2, 3, kernel_size)
        conv = nn.Conv3d(2, 3, kernel_size, padding=(0, kernel_size // 2, kernel_size // 2))
        conv.load_state_dict(causal.conv.state_dict())
        with torch.no_grad():
            _check_streaming(stream, conv, x, chunk, causal(x))


def _check_streaming(stream, conv: nn.Conv3d, x: Tensor, chunk: int, whole: Tensor) -> None:
    lengths = []
    conv.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[2]))
    what = f"stream(conv, x, chunk={chunk}) with a kernel of {conv.kernel_size[0]} frames"
    out = stream(conv, x, chunk)
    expect_shape(f"{what}, of {x.shape[2]} frames,", out, tuple(whole.shape))
    frame = first_different_frame(out, whole)
    if frame is not None:
        place = "the start of the clip" if frame == 0 else f"frame {frame % chunk} of piece {frame // chunk}"
        apart = (out - whole)[:, :, frame].abs().max().item()
        raise Wrong(f"{what} first differs from the whole clip at frame {frame}, {place} (counted from 0), by up to "
                    f"{apart:.2g}. What must the convolution see there?")
    most = chunk + conv.kernel_size[0] - 1
    if max(lengths, default=0) > most:
        raise Wrong(f"{what} gives the convolution {max(lengths)} frames at once; "
                    f"with its past, a piece has at most {most}.")


def first_different_frame(a: Float[Tensor, "b c t h w"], b: Float[Tensor, "b c t h w"]) -> int | None:
    """The first frame at which two clips differ by more than rounding, or None."""
    different = ~torch.isclose(a, b, rtol=1e-4, atol=1e-4)
    frames = different.any(dim=4).any(dim=3).any(dim=1).any(dim=0).nonzero()
    return int(frames[0]) if len(frames) else None


# ---- 2.4 frames_back


def count_frames_returned(num_frames: int, halvings: int = 2) -> int:
    """How many frames come back under the published rule (`VAEConfig.first_frame="parity"`) from one piece.

    An odd count keeps its first frame and pairs, or doubles, the others; an even count is paired, or doubled.
    """
    count = num_frames
    for _ in range(halvings):
        count = (count + 1) // 2  # odd: 1 + (count - 1) / 2; even: count / 2
    for _ in range(halvings):
        count = 2 * count - count % 2
    return count


def check_frames_back(frames_back) -> None:
    """Counts that return, counts that do not, and other numbers of halvings."""
    for num_frames, wanted in ((17, 17), (49, 49), (1, 1), (5, 8), (13, 16), (9, 9), (21, 24), (4, 1), (6, 8)):
        expect_equal(f"frames_back({num_frames})", frames_back(num_frames), wanted)
    for num_frames, halvings, wanted in ((5, 1, 5), (3, 1, 4), (7, 0, 7), (9, 3, 16), (17, 3, 17)):
        expect_equal(f"frames_back({num_frames}, halvings={halvings})",
                     frames_back(num_frames, halvings=halvings), wanted)


# ---- 2.5 first_affected


def first_frame_touched(network: Callable, clip: Float[Tensor, "b c t h w"], frame: int) -> int | None:
    """The first output frame of `network` that changes when frame `frame` of `clip` becomes another, or None.

    Noise, because a norm does not see a constant that is added, and a clip of zeros not a factor.
    """
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    return first_different_frame(network(changed), network(clip))


def check_first_affected(first_affected) -> None:
    """What looks back, ahead, everywhere or nowhere; one channel or corner; norms; zeros; rounding."""
    clip = torch.randn(1, 2, 9, 4, 4)
    causal, around = CausalConv3d(2, 3, 3), nn.Conv3d(2, 3, 3, padding=1)
    for what, network, frame, wanted, why in (
        ("the identity", lambda x: x, 5, 5, "It returns what it is given."),
        ("a causal convolution", causal, 8, 8, "Nothing before the changed frame may change."),
        ("a convolution with padding on both sides", around, 5, 4, "It looks one frame ahead."),
        ("a group norm over all frames", lambda x: F.group_norm(x, 1), 8, 0, "Its statistics run over all frames."),
        ("means of pairs", halve_time, 5, 3, "Count in the output's own frames."),
        ("one that drops all but 3 frames", lambda x: x[:, :, :3], 5, None, "No frame of the output changes."),
        ("one that reads channel 1 only", lambda x: x[:, 1:], 5, 5, "Change every channel."),
        ("one that reads a corner only", lambda x: x[..., -1:, -1:], 5, 5, "Change every place."),
        ("a norm over each frame", _norm_each_frame, 5, 5, "It takes a constant, or a factor, away again."),
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


def _norm_each_frame(x: Tensor) -> Tensor:
    mean = x.mean(dim=(1, 3, 4), keepdim=True)
    return (x - mean) / (x - mean).square().mean(dim=(1, 3, 4), keepdim=True).sqrt()


def _rounded(x: Tensor) -> Tensor:
    return x + 1e-6 * torch.randn_like(x)


EXERCISES = (
    Exercise(
        "2.1", "pad_past", difficulty=1, minutes=10, reference=pad_with_first_frame, check=check_pad_past,
        hints=(
            "A kernel of 3 frames covers its own frame and 2 others. Which 2 may it see, and how many of them are "
            "missing at frame 0?",
            "(kernel_size - 1) * dilation frames are missing, all of them in front. x[:, :, :1] is the first frame, "
            "and it keeps its five axes.",
            "Repeat the first frame with .expand(-1, -1, missing, -1, -1), and join the copies and x with torch.cat "
            "along dim=2.",
        ),
    ),
    Exercise(
        "2.2", "latent_frames", difficulty=1, minutes=5, reference=count_latent_frames, check=check_latent_frames,
        hints=(
            "The first frame becomes a latent frame alone. How many frames are left for groups of four?",
            "1 + (num_frames - 1) // ratio, with // so that it stays an integer. But 16 frames leave a group that is "
            "not full.",
            "Raise ValueError where (num_frames - 1) % ratio is not 0, and where num_frames is below 1: -3 would slip "
            "through, because -4 divides by 4.",
        ),
    ),
    Exercise(
        "2.3", "stream", difficulty=2, minutes=20, reference=convolve_in_pieces, check=check_stream,
        hints=(
            "At the start of the second piece the convolution must see the last frames of the first piece, not copies "
            "of the second piece's own first frame.",
            "Keep a variable `past` of kernel_size - 1 frames. Before the first piece it holds copies of frame 0. For "
            "every piece, convolve torch.cat([past, piece], dim=2).",
            "Take the new past from the end of what the convolution has just seen, not from the end of the piece: a "
            "piece of 1 frame is shorter than a past of 2. x.split(chunk, dim=2) makes the pieces.",
        ),
    ),
    Exercise(
        "2.4", "frames_back", difficulty=2, minutes=15, reference=count_frames_returned, check=check_frames_back,
        hints=(
            "Do it on paper for 5 frames: 5 is odd, so 1 frame stays and 4 are paired. What is left, and is that odd "
            "or even?",
            "In the encoder: an odd count becomes 1 + (count - 1) // 2, an even one count // 2. Repeat it `halvings` "
            "times, and look at the count anew each time.",
            "In the decoder: an odd count becomes 1 + 2 * (count - 1), an even one 2 * count. It starts from the "
            "number of latents, and knows nothing of num_frames.",
        ),
    ),
    Exercise(
        "2.5", "first_affected", difficulty=2, minutes=15, reference=first_frame_touched, check=check_first_affected,
        hints=(
            "Run the network twice: on clip, and on a copy (clip.clone()) in which one frame is another. Where do the "
            "two outputs differ?",
            "Add noise to the frame, torch.randn_like(clip[:, :, frame]). A number that is the same everywhere would "
            "be taken away by a norm, and a factor does nothing to zeros.",
            "(after - before).abs().amax(dim=(0, 1, 3, 4)) has one number for each output frame. Take the first above "
            "1e-4, as an int; where there is none, return None.",
        ),
    ),
)
