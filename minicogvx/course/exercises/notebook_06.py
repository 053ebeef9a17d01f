"""Exercises of notebook 06, patches and positions: back from patches, turning pairs, 3D angles, other sizes."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.course.exercises.exercise import Exercise, Wrong, expect_shape
from minicogvx.course.exercises.grids_06 import (
    angles_of_grid,
    check_copy_at,
    check_fit_coordinates,
    check_grid_angles,
    distance_of_copy,
    fitted_coordinates,
)
from minicogvx.transformer.patchify import patchify, unpatchify
from minicogvx.transformer.positions import rotate

# ---- 6.1 from_patches


def check_from_patches(from_patches) -> None:
    """Every number of a latent is told from every other, so a misplaced one says where it came from."""
    for size, patch_t, patch in (((2, 3, 2, 4, 6), 1, 2), ((1, 2, 4, 4, 6), 2, 2)):
        latents = torch.arange(torch.tensor(size).prod().item()).float().view(size)  # b c t h w
        b, c, t, h, w = size
        grid = (t // patch_t, h // patch, w // patch)
        what = f"from_patches(tokens, {grid}, {patch_t}, {patch})"
        got = from_patches(patchify(latents, patch_t, patch), grid, patch_t, patch)
        expect_shape(what, got, size)
        if not torch.equal(got, latents):
            place = tuple((got != latents).nonzero()[0].tolist())
            source = tuple(int(i) for i in torch.unravel_index(got[place].long(), size))
            raise Wrong(f"{what}: {_named(place)} holds the number that belongs to {_named(source)}.")


def _named(place: tuple[int, ...]) -> str:
    _, c, t, h, w = place
    return f"channel {c}, frame {t}, row {h}, column {w}"


# ---- 6.2 turn_pairs


def turned_by_angles(x: Float[Tensor, "b heads n d"],
                     angles: Float[Tensor, "n half_d"]) -> Float[Tensor, "b heads n d"]:
    """Adjacent pairs of x, each turned by its angle, in float32."""
    return rotate(x, torch.polar(torch.ones_like(angles), angles))


def check_turn_pairs(turn_pairs) -> None:
    """Which channels make a pair, which way it turns, whose angle; and in which precision."""
    still = torch.randn(1, 2, 3, 8)
    got = _turned(turn_pairs, still, torch.zeros(3, 4))
    if not torch.allclose(got, still, atol=1e-6):
        raise Wrong("With all angles 0, turn_pairs changes x; a turn by 0 must leave it as it is.")
    quarter = torch.tensor([torch.pi / 2, 0, 0, 0]).expand(3, 4)
    _check_quarter(_turned(turn_pairs, _one_hot(0), quarter), 0)
    _check_quarter(_turned(turn_pairs, _one_hot(1), quarter), 1)
    x, angles = torch.randn(2, 3, 3, 8), torch.randn(3, 4)  # as many heads as tokens: a wrong axis fits there
    got = _turned(turn_pairs, x, angles)
    lengths, before = (y.unflatten(-1, (-1, 2)).norm(dim=-1) for y in (got, x))
    if not torch.allclose(lengths, before, atol=1e-4):
        place = int((lengths - before).abs().flatten(0, 2).amax(dim=0).argmax())
        raise Wrong(f"A turn keeps lengths, but channels {2 * place} and {2 * place + 1} together have another length "
                    f"afterwards. Both new numbers come from both old ones.")
    apart = (got - turned_by_angles(x, angles)).abs().amax(dim=(0, 3))  # heads n
    if apart.max() > 1e-4:
        head, token = divmod(int(apart.argmax()), apart.shape[1])
        raise Wrong(f"In head {head}, token {token} is not turned by its own angles, angles[{token}]; every head has "
                    f"the same. angles has shape (n, d/2), and x is b heads n d.")
    _check_precision(turn_pairs)


def _one_hot(channel: int) -> Tensor:
    x = torch.zeros(1, 1, 3, 8)
    x[..., channel] = 1
    return x


def _check_quarter(got: Tensor, channel: int) -> None:
    wanted = torch.zeros(8)
    wanted[1 - channel] = 1 if channel == 0 else -1
    first = got[0, 0, 0].float()
    if torch.allclose(first, wanted, atol=1e-5):
        return
    found = {place: round(value, 2) for place, value in enumerate(first.tolist()) if abs(value) > 1e-5}
    said = " and ".join(f"{value:g} in channel {place}" for place, value in found.items()) or "nothing anywhere"
    raise Wrong(f"A 1 in channel {channel}, with the first pair turned by a quarter, became {said}; it must become "
                f"{int(wanted.sum())} in channel {1 - channel}. The pairs are channels 0 and 1, 2 and 3, and so on; "
                f"(1, 0) turns to (0, 1).")


def _check_precision(turn_pairs) -> None:
    x, angles = torch.randn(1, 1, 3, 8), torch.tensor([1.0, 44.3, 250.7])[:, None].repeat(1, 4)
    low = x.bfloat16()
    got = turn_pairs(low, angles)
    if got.dtype != torch.bfloat16:
        raise Wrong(f"x in bfloat16 comes back as {got.dtype}; attention wants queries in the dtype they came in.")
    error = (got.float() - turned_by_angles(low.float(), angles)).abs().max().item()
    if error > 0.02:
        raise Wrong(f"x in bfloat16 is off by {error:.2g} at angles up to 250. In 16 bits an angle of 250 is a "
                    f"multiple of 1; keep the angles in float32, turn in float32, and cast the result.")


def _turned(turn_pairs, x: Tensor, angles: Tensor) -> Tensor:
    given, got = x.clone(), turn_pairs(x, angles)
    expect_shape(f"turn_pairs(x, angles) with x of shape {tuple(x.shape)}", got, tuple(x.shape))
    if not torch.equal(given, x):
        raise Wrong("turn_pairs changes its input x; make a new tensor instead.")
    return got


# ---- 6.3 order_for_pairs


def interleaved_order(sizes: tuple[int, ...]) -> Int[Tensor, " d"]:
    """Indices that bring channel i and i + half of each axis side by side."""
    parts = torch.arange(sum(sizes)).split(list(sizes))
    return torch.cat([rearrange(part, "(two half) -> (half two)", two=2) for part in parts])


def check_order_for_pairs(order_for_pairs) -> None:
    """A permutation, within each axis, that puts channel i beside channel i + half."""
    for sizes in ((8,), (16, 24, 24)):
        what, d, order = f"order_for_pairs({sizes})", sum(sizes), order_for_pairs(sizes)
        expect_shape(what, order, (d,))
        if order.dtype != torch.long:
            raise Wrong(f"{what} has dtype {order.dtype}; indices must be torch.int64.")
        if order.sort().values.tolist() != list(range(d)):
            counts = torch.bincount(order.clamp(0, d - 1), minlength=d)
            lost = int((counts != 1).nonzero()[0])
            raise Wrong(f"{what} has channel {lost} {int(counts[lost])} times; each of 0 to {d - 1} must come once.")
        start = 0
        for size in sizes:
            _check_axis(what, order[start:start + size].tolist(), start, size)
            start += size


def _check_axis(what: str, order: list[int], start: int, size: int) -> None:
    if sorted(order) != list(range(start, start + size)):
        raise Wrong(f"{what}: places {start} to {start + size - 1} hold channels from {min(order)} to {max(order)}; "
                    f"each axis must keep its own channels, {start} to {start + size - 1}.")
    for i in range(size // 2):
        got, wanted = (order[2 * i], order[2 * i + 1]), (start + i, start + i + size // 2)
        if got != wanted:
            raise Wrong(f"{what}: the pair at places {start + 2 * i} and {start + 2 * i + 1} is channels {got[0]} and "
                        f"{got[1]}; it must be {wanted[0]} and {wanted[1]}, which the other program turns together.")


EXERCISES = (
    Exercise(
        "6.1", "from_patches", difficulty=1, minutes=10, reference=unpatchify, check=check_from_patches,
        hints=(
            "Split both axes of tokens into what they are made of: n is t h w of the grid, and patch_values is "
            "channel, frame, row, column inside the patch.",
            "In einops: a name for every part, such as (t h w) and (c r p q). A frame of the video is then (t r), a "
            "row (h p), a column (w q).",
            "rearrange(tokens, \"b (t h w) (c r p q) -> b c (t r) (h p) (w q)\", ...) needs to be told t, h, w, r, p "
            "and q; c is what is left.",
        ),
    ),
    Exercise(
        "6.2", "turn_pairs", difficulty=1, minutes=10, reference=turned_by_angles, check=check_turn_pairs,
        hints=(
            "x[..., 0::2] are the first numbers of all pairs, x[..., 1::2] the second. What does a turn by an angle do "
            "to (first, second)?",
            "first * cos - second * sin, and first * sin + second * cos. angles, n d/2, broadcasts to "
            "b heads n d/2 by itself.",
            "torch.stack([new_first, new_second], dim=-1).flatten(-2) puts pairs side by side again. Begin with "
            "x.float(), end with .to(x.dtype).",
        ),
    ),
    Exercise(
        "6.3", "order_for_pairs", difficulty=2, minutes=15, reference=interleaved_order, check=check_order_for_pairs,
        hints=(
            "Write it down for sizes (8,). The other program turns channels 0 and 4 together, 1 and 5, ... Ours turns "
            "places 0 and 1 together. Which channels must be there?",
            "For one axis that begins at channel start: start, start + half, start + 1, start + 1 + half, and so on.",
            "torch.arange(size).view(2, size // 2).T.flatten() + start for each axis, then torch.cat. Without the .T "
            "it is the old order.",
        ),
    ),
    Exercise(
        "6.4", "grid_angles", difficulty=2, minutes=15, reference=angles_of_grid, check=check_grid_angles,
        hints=(
            "Each axis is 1-D RoPE with its own number of channels: 2/8, 3/8 and 3/8 of head_dim. The three tables of "
            "angles stand side by side.",
            "With dim channels an axis has dim / 2 frequencies, 10000 ** (-torch.arange(0, dim, 2) / dim). "
            "torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing=\"ij\") has the coordinates.",
            "torch.outer(coordinates.flatten(), frequencies) for each axis, torch.cat along dim=1, and "
            "torch.zeros(num_text, head_dim // 2) in front along dim=0.",
        ),
    ),
    Exercise(
        "6.5", "copy_at", difficulty=2, minutes=10, reference=distance_of_copy, check=check_copy_at,
        hints=(
            "The fastest pair turns by 1 radian a token; stretched, by `stretch` radians. When does its arrow point "
            "where it pointed before?",
            "After 2 pi / stretch tokens. That is no whole number. Which tokens are there?",
            "The nearest whole number of tokens, round(2 * math.pi / stretch), times the pixels of a token.",
        ),
    ),
    Exercise(
        "6.6", "fit_coordinates", difficulty=2, minutes=15, reference=fitted_coordinates, check=check_fit_coordinates,
        hints=(
            "Two grids of 60 x 90 and 30 x 45 show the same frame. How far apart are neighbours of the finer one, "
            "measured in tokens of the other?",
            "The step is base_h / h if the height decides, base_w / w if the width does. Only the smaller of the two "
            "lets both fit.",
            "The grid then covers step * h rows of base_h. Begin at half of what is left: (base_h - step * h) / 2; and "
            "likewise for the columns.",
        ),
    ),
)
