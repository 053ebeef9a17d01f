"""Sliders for notebooks: an interactive picture, with a static one above it.

    explore_frames(video, "A red circle moves right.")     # as the last statement of a cell

GitHub shows no widgets, and stored notebooks contain none. So each function first shows a static picture with
`show_rows` or `show_figure`, then the widget, which is displayed only as a widget view, without plain text: programs
without widgets show nothing, nbval compares nothing, and the notebook builder removes the view. So the same cells run
for the learner, the builder and the tests. What moves is shown moving, as a GIF. `explore.py` has sliders for whatever
a notebook computes.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course import output, show
from minicogvx.course import widget_parts as parts
from minicogvx.course.clips import show_rows
from minicogvx.diffusion.samplers import draw_noise
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.media import enlarge_frames
from minicogvx.transformer.positions import rope_3d

SIDE = 256  # pixels, at least, of the shorter side of a single frame
STOPS = 10  # of the slider over timesteps, plus timestep 0


def explore_frames(video: Float[Tensor, "t h w 3"], alt: str, fps: int | float = 8) -> None:
    """A slider through the frames of `video` (0..1), under a row of them. `alt` says what the video shows.

    Frames are counted from 0. Raises ValueError for a bad shape or no `alt`.
    """
    show_rows({"the clip": video}, alt)
    last = len(video) - 1

    def draw(frame: int) -> tuple[bytes, str]:
        words = f"{parts.without_stop(alt)}: frame {frame} of 0 to {last}, after {frame / fps:.2f} s."
        return _frame(video[frame]), words

    parts.display_made(lambda: parts.explorer([parts.int_slider("frame", 0, last)], draw))


def explore_wipe(clips: Mapping[str, Float[Tensor, "_ _ _ 3"]], alt: str) -> None:
    """Two clips (t h w 3 in 0..1) in one picture, with a line to wipe from one to the other and a slider over frames.

    Left of the line is the first clip. Raises ValueError unless there are two clips of one shape, or without `alt`.
    """
    if len(clips) != 2:
        raise ValueError(f"there are {len(clips)} clips; explore_wipe takes two, each with its name")
    (left_name, left), (right_name, right) = clips.items()
    if left.shape != right.shape:
        raise ValueError(f"the clips have shapes {tuple(left.shape)} and {tuple(right.shape)}; they must be the same")
    show_rows(dict(clips), alt)

    def draw(percent: int, frame: int) -> tuple[bytes, str]:
        pair = torch.stack([left[frame], right[frame]]).detach().float().cpu()
        apart = (pair[0] - pair[1]).abs().mean().item()
        words = (f"{parts.without_stop(alt)}: frame {frame}, {left_name} in the left {percent} %, {right_name} in the "
                 f"rest. The two frames differ by {apart:.3f} on average (black and white: 1).")
        return _wiped(pair, percent), words

    parts.display_made(lambda: parts.explorer(
        [parts.int_slider("line", 0, 100, 50, 5), parts.int_slider("frame", 0, len(left) - 1)], draw))


def explore_sweep(clips: Mapping[int | float | str, Float[Tensor, "_ _ _ 3"]], name: str, alt: str,
                  fps: int | float = 8, num_frames: int = 6) -> None:
    """A slider over the values of one setting, with the clip (t h w 3 in 0..1) made with each; `name` is the setting's.

    For example `explore_sweep({1: clip, 3: clip, 6: clip}, "guidance scale", "The caption: ...")`. The clips are made
    beforehand, and play. num_frames: of each in the static picture. Raises ValueError for a bad shape, no `alt`, or no
    clips.
    """
    show_rows({f"{name} {parts.value_text(value)}": clip for value, clip in clips.items()}, alt, num_frames)
    values = list(clips)

    def draw(place: int) -> tuple[bytes, str]:
        clip, value = clips[values[place]], parts.value_text(values[place])
        return output.gif_of_clip(clip, fps), f"{parts.without_stop(alt)}: {name} {value}, {len(clip)} frames."

    labels = list(map(parts.value_text, values))
    parts.display_made(lambda: parts.explorer([parts.choice_slider(name, labels)], draw))


def explore_noise(latents: Float[Tensor, "b c t h w"], schedule: NoiseSchedule,
                  decode: Callable[[Tensor], Tensor], alt: str, seed: int = 0, fps: int | float = 8) -> None:
    """A slider over timesteps: one clip's `latents` with the noise of each, decoded; `alt` names the clip.

    decode: b c t h w -> b t h w 3 in 0..1, such as `pipe.decode`. The noise is the same at every timestep. Timesteps
    that are not in the static picture are decoded when the slider gets there. Raises ValueError for more than one clip.
    """
    if len(latents) != 1:
        raise ValueError(f"the latents have shape {tuple(latents.shape)}; give those of one clip, 1 c t h w")
    noise = draw_noise(tuple(latents.shape), torch.Generator().manual_seed(seed), device=latents.device)
    count = schedule.num_train_timesteps
    timesteps = [min(count * i // STOPS, count - 1) for i in range(STOPS + 1)]

    @cache
    @torch.no_grad()
    def decoded_at(t: int) -> Tensor:
        return decode(schedule.add_noise(latents, noise, t))[0].detach().float().cpu()

    def draw(place: int) -> tuple[bytes, str]:
        t = timesteps[place]
        signal, spoilt = schedule.alpha_bar(t) ** 0.5, (1 - schedule.alpha_bar(t)) ** 0.5
        words = (f"{parts.without_stop(alt)}: its latents at timestep {t}, {signal:.2f} times the signal plus "
                 f"{spoilt:.2f} times the noise, decoded.")
        return output.gif_of_clip(decoded_at(t), fps), words

    show_rows({f"t = {t}": decoded_at(t) for t in (timesteps[i] for i in (0, 3, 5, 10))}, alt, num_frames=3)
    labels = list(map(str, timesteps))
    parts.display_made(lambda: parts.explorer([parts.choice_slider("timestep", labels, wait=True)], draw))


def explore_rope(head_dim: int = 64, frames: int = 13, theta: float = 10000.0) -> None:
    """Two sliders, a query's frame and a key's: how 3D RoPE turns both along time, and the score between them.

    Query and key are the same vector, so the score is 1 if they are in the same frame. The angles are those of
    `rope_3d`. Raises ValueError for fewer than 4 frames or a head dimension that is not a multiple of 16.
    """
    if frames < 4 or head_dim < 16 or head_dim % 16:
        raise ValueError(f"head_dim is {head_dim} and frames {frames}; head_dim must be a multiple of 16, and frames "
                         f"at least 4")
    table = rope_3d((frames, 1, 1), head_dim, theta=theta)
    turned = torch.view_as_real(table[:, :head_dim // 8])  # t pairs 2: the quarter that rotates with time

    def draw(query: int, key: int) -> tuple[bytes, str, int]:
        score = (turned[query] * turned[key]).sum(dim=-1).mean().item()
        words = (f"Query in frame {query}, key in frame {key}, {abs(query - key)} apart: the score is {score:.3f}. "
                 f"Each circle shows one pair of channels. Move both by the same number of frames: the arrows turn, "
                 f"the score stays.")
        figure = _rope_figure(turned, [(query, key)])
        return output.png_of_figure(figure), words, output.width_on_screen(figure)

    far = frames - 1
    show.show_figure(_rope_figure(turned, [(0, 3), (far - 3, far)]),
                     f"Two rows: query and key in frames 0 and 3, and in frames {far - 3} and {far}. Three circles, "
                     f"for a fast, a middle and a slow pair of channels: the arrows differ, the angle between them "
                     f"does not. Right, the score over the key's frame: the marked value is the same in both rows.")
    parts.display_made(lambda: parts.explorer(
        [parts.int_slider("query", 0, far), parts.int_slider("key", 0, far, 3)], draw))


# ---- pictures


def _frame(picture: Float[Tensor, "h w 3"]) -> bytes:
    return output.png_of_picture(enlarge_frames(picture[None].detach().float().cpu(), SIDE)[0])


def _wiped(pair: Float[Tensor, "2 h w 3"], percent: int) -> bytes:
    left, right = enlarge_frames(pair, SIDE)
    cut = round(left.shape[1] * percent / 100)
    picture = torch.cat([left[:, :cut], right[:, cut:]], dim=1)
    picture[:, max(cut - 2, 0):cut], picture[:, cut:cut + 2] = 0.0, 1.0  # visible on dark and bright pictures
    return output.png_of_picture(picture)


def _rope_figure(turned: Float[Tensor, "t pairs 2"], rows: list[tuple[int, int]]):
    """One row per (query, key): three circles with both arrows, and the score over the key's frame."""
    pairs = (0, turned.shape[1] // 4, turned.shape[1] // 2)
    figure, axes = show.new_figure(len(rows), 4, 8.5, 2.3 * len(rows))
    circle = torch.linspace(0, 2 * torch.pi, 100)
    for row, (query, key) in zip(axes, rows):
        for axis, pair, speed in zip(row, pairs, ("fast", "middle", "slow")):
            axis.plot(circle.cos(), circle.sin(), color="#bbbbbb", linewidth=1)
            for place, colour, length in ((query, show.PALETTE[0], 1.0), (key, show.PALETTE[3], 0.8)):
                x, y = (length * turned[place, pair]).tolist()
                axis.plot([0, x], [0, y], color=colour, marker="o", markevery=[1], markersize=5)
            axis.set(aspect="equal", xticks=[], yticks=[], title=f"{speed} pair")
            axis.grid(False)
            axis.spines[:].set_visible(False)
        scores = (turned[query] * turned).sum(dim=-1).mean(dim=-1)  # t
        row[3].plot(range(len(scores)), scores, color="#777777", linewidth=1.5)
        row[3].axvline(query, color=show.PALETTE[0], linewidth=1.5, label=f"query, {query}")
        row[3].plot(key, scores[key], "o", color=show.PALETTE[3], label=f"key, {key}: {scores[key]:.3f}")
        row[3].set(xlabel="frame of the key", ylabel="score", ylim=(min(0.0, float(scores.min())) - 0.05, 1.1))
        row[3].legend(fontsize=7)
    return figure
