"""Exercises of notebook 02, the causal VAE: padding, an encoder, up-sampling, streaming, counting frames, leaks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minicogvx.course.exercises.assembled_encoder import check_my_encoder
from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_close, expect_shape
from minicogvx.course.exercises.leaks import check_first_affected, first_different_frame, first_frame_touched
from minicogvx.vae.autoencoder import Encoder
from minicogvx.vae.causal_conv import CausalConv3d

# ---- 2.1 pad_past


def pad_with_first_frame(x: Float[Tensor, "b c t h w"], kernel_size: int) -> Float[Tensor, "b c p h w"]:
    """`x` with its first frame repeated in front, so that a convolution in time sees only the past (paper 2.1)."""
    return torch.cat([x[:, :, :1].expand(-1, -1, kernel_size - 1, -1, -1), x], dim=2)


def check_pad_past(pad_past) -> None:
    """Length, causality, constancy, the frames themselves; for several kernels."""
    x = torch.randn(2, 3, 5, 2, 4)
    for kernel_size in (3, 4, 1):
        _check_padding(pad_past, x, kernel_size)


def _check_padding(pad_past, x: Tensor, kernel_size: int) -> None:
    plain = _mean_seen(pad_past, x, kernel_size)
    for future in range(1, x.shape[2]):
        changed = x.clone()
        changed[:, :, future] += 1
        leak = first_different_frame(_mean_seen(pad_past, changed, kernel_size), plain)
        if leak is not None and leak < future:
            raise Wrong(f"The future leaks into the past: frame {future} was changed (counted from 0), and the mean "
                        f"over the kernel at frame {leak} changed with it (kernel_size={kernel_size}). All padding "
                        f"belongs in front.")
    ones = torch.ones_like(x)
    still = _mean_seen(pad_past, ones, kernel_size)
    frame = first_different_frame(still, ones)
    if frame is not None:
        raise Wrong(f"A clip of ones does not stay constant: the mean over the kernel at frame {frame} is "
                    f"{still[:, :, frame].mean().item():.2g} (kernel_size={kernel_size}). Pad with the first frame.")
    padded, past = _padded(pad_past, x, kernel_size), kernel_size - 1
    expect_close(f"pad_past(x, {kernel_size}), after the padding,", padded[:, :, past:], x)
    first = x[:, :, :1].expand(-1, -1, past, -1, -1)
    expect_close(f"The padding of pad_past(x, {kernel_size})", padded[:, :, :past], first)


def _padded(pad_past, clip: Tensor, kernel_size: int) -> Tensor:
    given = clip.clone()
    padded = pad_past(given, kernel_size)
    if not torch.equal(given, clip):
        raise Wrong("pad_past changes its input x; make a new tensor instead.")
    b, c, t, h, w = clip.shape
    expect_shape(f"pad_past(x, {kernel_size}) of {t} frames", padded, (b, c, t + kernel_size - 1, h, w))
    return padded


def _mean_seen(pad_past, clip: Tensor, kernel_size: int) -> Tensor:
    # the simplest convolution in time: the mean of the frames that its kernel covers
    padded = _padded(pad_past, clip, kernel_size)
    return sum(padded[:, :, i:i + clip.shape[2]] for i in range(kernel_size)) / kernel_size


# ---- 2.3 stretch


def repeat_all_but_first(z: Float[Tensor, "b c n h w"], frames: int) -> Float[Tensor, "b c t h w"]:
    """Nearest up-sampling in time to `frames`, 1 + k (n - 1): the first frame once, every other k times."""
    times = (frames - 1) // max(z.shape[2] - 1, 1)
    return torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(times, dim=2)], dim=2)


def check_stretch(stretch) -> None:
    """Which frame stands where, for several lengths; the frames themselves; the input is left alone."""
    for count, frames in ((5, 17), (5, 9), (3, 9), (2, 5), (5, 5), (1, 1)):
        z = torch.randn(2, 3, count, 2, 4)
        z[:, 0] = torch.arange(float(count)).reshape(count, 1, 1)  # channel 0 holds the number of the frame
        given, wanted = z.clone(), repeat_all_but_first(z, frames)
        got = stretch(given, frames)
        what = f"stretch(z, {frames}) of {count} frames"
        expect_shape(what, got, tuple(wanted.shape))
        if not torch.equal(given, z):
            raise Wrong("stretch changes its input z; make a new tensor instead.")
        order, right = got[0, 0, :, 0, 0], wanted[0, 0, :, 0, 0]
        if not torch.isfinite(order).all() or (order - order.round()).abs().max() > 1e-4:
            raise Wrong(f"{what} mixes neighbouring frames; every frame of the result must be a copy of one of z.")
        if not torch.equal(order.round(), right):
            raise Wrong(f"{what} gives the frames {_numbers(order)}; it must be {_numbers(right)}. The first frame "
                        f"appears once, all the others equally often.")
        expect_close(what, got, wanted)


def _numbers(order: Tensor) -> str:
    return " ".join(f"{number:.0f}" for number in order.tolist())


# ---- 2.4 stream


def convolve_in_pieces(conv: nn.Module, x: Float[Tensor, "b c t h w"], chunk: int) -> Float[Tensor, "b o t h w"]:
    """What CausalConv3d does with its cache: `chunk` frames at a time, each piece behind the last frames before it.

    `conv` is an `nn.Conv3d` of stride 1 without padding in time.
    """
    past_frames = conv.kernel_size[0] - 1
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
    lengths, kernel = [], conv.kernel_size[0]
    what = f"stream(conv, x, chunk={chunk}) with a kernel of {kernel} frames"

    def look(module, inputs):
        lengths.append(inputs[0].shape[2])
        if lengths[-1] < kernel:
            raise Wrong(f"{what} gives the convolution {lengths[-1]} frames at once, fewer than its kernel. The past "
                        f"has {kernel - 1} frames, even where a piece has fewer.")

    conv.register_forward_pre_hook(look)
    out = stream(conv, x, chunk)
    expect_shape(f"{what}, of {x.shape[2]} frames,", out, tuple(whole.shape))
    frame = first_different_frame(out, whole)
    if frame is not None:
        place = "the start of the clip" if frame == 0 else f"frame {frame % chunk} of piece {frame // chunk}"
        apart = (out - whole)[:, :, frame].abs().max().item()
        raise Wrong(f"{what} first differs from the whole clip at frame {frame}, {place} (counted from 0), by up to "
                    f"{apart:.2g}. What must the convolution see there?")
    most = chunk + kernel - 1
    if max(lengths, default=0) > most:
        raise Wrong(f"{what} gives the convolution {max(lengths)} frames at once; "
                    f"with its past, a piece has at most {most}.")


# ---- 2.5 comes_back


def returns_whole(num_frames: int, halvings: int = 2) -> bool:
    """Whether the published rule (`VAEConfig.first_frame="parity"`) returns as many frames of a piece as it was given.

    With two halvings: 8k + 1, whose first frame stays alone at every step, and 8k, which is paired at every step.
    """
    return num_frames % 2 ** (halvings + 1) in (0, 1)


def count_frames_returned(num_frames: int, halvings: int = 2) -> list[int]:
    """Every count on the way there and back: an odd one keeps its first frame and pairs, or doubles, the others."""
    counts = [num_frames]
    for _ in range(halvings):
        counts.append((counts[-1] + 1) // 2)  # odd: 1 + (count - 1) / 2; even: count / 2
    for _ in range(halvings):
        counts.append(2 * counts[-1] - counts[-1] % 2)
    return counts


def check_comes_back(comes_back) -> None:
    """The claim for every length up to 64, and for other numbers of halvings."""
    for halvings in (2, 1, 3, 0):
        for num_frames in range(1, 65):
            got = comes_back(num_frames) if halvings == 2 else comes_back(num_frames, halvings=halvings)
            counts = count_frames_returned(num_frames, halvings)
            call = f"comes_back({num_frames}{'' if halvings == 2 else f', halvings={halvings}'})"
            if got is None:
                raise Wrong(f"{call} is None; does your function end in return?")
            if not isinstance(got, bool):
                raise Wrong(f"{call} is {got!r}, of type {type(got).__name__}; it must be True or False.")
            if got != (counts[0] == counts[-1]):
                raise Wrong(f"{call} is {got}, but the counts go {' -> '.join(map(str, counts))}. Each step looks at "
                            f"its own count, and the decoder does not know how many frames there were.")


EXERCISES = (
    Exercise(
        "2.1", "pad_past", difficulty=1, minutes=10, reference=pad_with_first_frame, check=check_pad_past,
        hints=(
            "A kernel of 3 frames covers its own frame and 2 others. Which 2 may it see, and how many of them are "
            "missing at frame 0?",
            "kernel_size - 1 frames are missing, all of them in front. x[:, :, :1] is the first frame, and it keeps "
            "its five axes.",
            "Repeat the first frame with .expand(-1, -1, kernel_size - 1, -1, -1), and join the copies and x with "
            "torch.cat along dim=2.",
        ),
    ),
    Exercise(
        "2.2", "MyEncoder", difficulty=3, minutes=30, reference=Encoder, check=check_my_encoder,
        hints=(
            "The names are the plan: conv_in, down_blocks.0.resnets.0 and so on are attributes, and a number is a "
            "place in an nn.ModuleList. An empty nn.Module() may serve as a stage, with `resnets` and `downsamplers` "
            "set on it.",
            "Stage i has config.layers_per_block blocks of config.block_out_channels[i] channels; the first of them "
            "takes the width of the stage before. All stages but the last end in Shrink; time is halved in the first "
            "log2(config.temporal_compression_ratio) of them.",
            "After the stages come two blocks of the last width (mid_block.resnets), nn.GroupNorm(groups, width, "
            "eps=1e-6) as norm_out, SiLU, and conv_out to 2 * config.latent_channels. In forward, go through the parts "
            "in that order.",
        ),
    ),
    Exercise(
        "2.3", "stretch", difficulty=1, minutes=10, reference=repeat_all_but_first, check=check_stretch,
        hints=(
            "17 frames from 5: the first appears once. How many are left for each of the other 4?",
            "(frames - 1) // (n - 1) of them, where n is z.shape[2]. One frame alone has no others, and nothing to "
            "divide by.",
            "torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(times, dim=2)], dim=2)",
        ),
    ),
    Exercise(
        "2.4", "stream", difficulty=2, minutes=20, reference=convolve_in_pieces, check=check_stream,
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
        "2.5", "comes_back", difficulty=2, minutes=15, reference=returns_whole, check=check_comes_back,
        hints=(
            "Let the VAE tell you: for n in range(1, 26): print(n, lengths(n)). Which lengths come back? (Even ones "
            "count, too: they are pieces from the middle of a clip.)",
            "1, 8, 9, 16, 17, 24 and 25 come back. What remainder do they leave when divided by 8?",
            "With two halvings the pattern repeats every 8 frames, with three every 16. Write that period with "
            "halvings, and compare the remainder with 0 and 1.",
        ),
    ),
    Exercise(
        "2.6", "first_affected", difficulty=2, minutes=15, reference=first_frame_touched, check=check_first_affected,
        hints=(
            "Run the network twice: on clip, and on a copy (clip.clone()) in which one frame is another. Where do the "
            "two outputs differ?",
            "Add noise to the frame, torch.randn_like(clip[:, :, frame]). A layer may subtract whatever is the "
            "same everywhere, and a factor does nothing to zeros.",
            "(after - before).abs().amax(dim=(0, 1, 3, 4)) has one number for each output frame. Take the first above "
            "1e-4, as an int; where there is none, return None.",
        ),
    ),
)
