"""Exercises of notebook 06 about grids: angles in 3D, where a copy stands, and other sizes. See notebook_06.py."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_shape
from minicogvx.transformer.positions import rope_3d

AXES = ("time", "the row", "the column")

# ---- 6.4 grid_angles


def angles_of_grid(grid: tuple[int, int, int], head_dim: int, num_text: int) -> Float[Tensor, "n half_d"]:
    """One angle a pair: text rows of 0, then t x h x w tokens; 2:3:3 of the pairs for time, row and column."""
    columns = []
    for axis, share in zip(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), (2, 3, 3)):
        dim = head_dim // 8 * share
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
        columns.append(torch.outer(axis.flatten().float(), frequencies))
    video = torch.cat(columns, dim=1)
    return torch.cat([video.new_zeros(num_text, video.shape[1]), video])


def check_grid_angles(grid_angles) -> None:
    """Text rows, the order of tokens, the shares of the axes, the frequencies; at last the package's own table."""
    for grid, head_dim, num_text in (((3, 4, 5), 64, 2), ((2, 3, 2), 32, 0)):
        what, half = f"grid_angles({grid}, {head_dim}, {num_text})", head_dim // 2
        got = grid_angles(grid, head_dim, num_text)
        t, h, w = grid
        expect_shape(what, got, (num_text + t * h * w, half))
        got = got.float()
        if got[:num_text].abs().sum() > 0:
            raise Wrong(f"{what}: a text row holds {got[:num_text].abs().max().item():.3g}; text comes first and is "
                        f"not turned, so rows 0 to {num_text - 1} must be 0.")
        video = got[num_text:].view(t, h, w, half)
        if video[0, 0, 0].abs().sum() > 0:
            raise Wrong(f"{what}: the first video token has angles up to {video[0, 0, 0].abs().max().item():.3g}; it "
                        f"stands at (0, 0, 0), so they must be 0.")
        _check_shares(what, video, head_dim)
        _check_against_package(what, video, grid, head_dim)


def _check_shares(what: str, video: Tensor, head_dim: int) -> None:
    start = 0
    for name, step, share in zip(AXES, (video[1, 0, 0], video[0, 1, 0], video[0, 0, 1]), (1, 1.5, 1.5)):
        end = start + int(head_dim // 8 * share)
        moved, wanted = step.nonzero().flatten().tolist(), list(range(start, end))
        if moved != wanted:
            said = f"{len(moved)} columns, {moved[0]} to {moved[-1]}" if moved else "no column"
            raise Wrong(f"{what}: one step in {name} changes {said}; it must change {len(wanted)}, {start} to "
                        f"{end - 1}. Tokens are in order of frame, row and column, and so are the shares 2:3:3.")
        frequencies = 10000.0 ** (-torch.arange(0, 2 * len(wanted), 2) / (2 * len(wanted)))
        apart = (step[start:end] / frequencies - 1).abs()
        if apart.max() > 1e-3:
            i = int((apart > 1e-3).nonzero()[0])
            raise Wrong(f"{what}: one step in {name} turns pair {i} of that axis by {step[start + i].item():.3g}; it "
                        f"must be {frequencies[i].item():.3g} = 10000^(-2*{i}/{2 * len(wanted)}). {2 * len(wanted)} is "
                        f"the number of channels of this axis.")
        start = end


def _check_against_package(what: str, video: Tensor, grid: tuple[int, int, int], head_dim: int) -> None:
    table = rope_3d(grid, head_dim).view(*grid, -1)
    apart = ((video.cos() - table.real).abs() + (video.sin() - table.imag).abs()).amax(dim=-1)
    if apart.max() > 1e-3:
        place = tuple((apart > 1e-3).nonzero()[0].tolist())
        raise Wrong(f"{what}: the token at frame {place[0]}, row {place[1]}, column {place[2]} has wrong angles. An "
                    f"angle is coordinate times frequency, for each axis alone.")


# ---- 6.5 copy_at


def distance_of_copy(stretch: float, patch_pixels: int) -> int:
    """Pixels to the nearest whole token that the fastest pair of a coordinate cannot tell from the original.

    One token turns that pair by `stretch` radians, so after 2 pi / stretch tokens it has gone round.
    """
    return round(2 * math.pi / stretch) * patch_pixels


def check_copy_at(copy_at) -> None:
    """The claim must fit the measured copy, whole tokens, every stretch, and tokens of another size."""
    for stretch, pixels in ((1.0, 16), (1.25, 16), (0.9, 16), (0.8, 16), (1.1, 16), (0.5, 16), (1.0, 32)):
        what, wanted = f"copy_at({stretch:g}, {pixels})", distance_of_copy(stretch, pixels)
        got = copy_at(stretch, pixels)
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            raise Wrong(f"{what} is a {type(got).__name__}; it must be a number of pixels.")
        if abs(got - wanted) > 1e-6:
            raise Wrong(f"{what} is {got:.5g}; {_why_not(got, stretch, pixels)}.")


def _why_not(got: int | float, stretch: int | float, pixels: int) -> str:
    turn = 2 * math.pi / stretch  # in tokens
    if abs(got - turn * pixels) < 0.5:
        return f"that is {turn:.2f} tokens, but the frame is painted token by token: the copy stands whole tokens away"
    if abs(got - round(turn)) < 1e-6:
        return f"that is in tokens; a token is {pixels} pixels wide"
    if abs(got - round(turn) * 16) < 1e-6:
        return f"a token is patch_pixels = {pixels} pixels wide here"
    if abs(got - math.floor(turn) * pixels) < 1e-6 or abs(got - math.ceil(turn) * pixels) < 1e-6:
        return f"a turn takes {turn:.2f} tokens; the nearest whole number is {round(turn)}"
    if abs(got - round(2 * math.pi * stretch) * pixels) < 1e-6:
        return "a stretch above 1 turns the arrow further with each token, so it has gone round sooner, not later"
    if abs(got - math.pi / stretch * pixels) < 0.6 * pixels:
        return "that is half a turn, where the arrow points the other way; a copy needs a whole turn"
    return (f"at a stretch of 1 and 16 pixels a token the copy was measured about 6 tokens away; one token turns the "
            f"fastest pair by {stretch:g} radians here")


# ---- 6.6 fit_coordinates


def fitted_coordinates(h: int, w: int, base: tuple[int, int]) -> tuple[Float[Tensor, " h"], Float[Tensor, " w"]]:
    """Row and column coordinates of an h x w grid, one step for both, as large as fits and centred in the base grid."""
    step = min(base[0] / h, base[1] / w)
    top, left = (base[0] - step * h) / 2, (base[1] - step * w) / 2
    return top + step * torch.arange(h), left + step * torch.arange(w)


def check_fit_coordinates(fit_coordinates) -> None:
    """The base grid itself; a grid of its aspect; wider, taller and smaller ones."""
    for h, w in ((30, 45), (60, 90), (60, 45), (16, 90), (15, 15)):
        base = (30, 45)
        what = f"fit_coordinates({h}, {w}, {base})"
        got = fit_coordinates(h, w, base)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong(f"{what} is one {type(got).__name__}; it must be two tensors, of rows and of columns.")
        for name, mine, count in zip(("rows", "columns"), got, (h, w)):
            expect_shape(f"{name} of {what}", mine, (count,))
        wanted = fitted_coordinates(h, w, base)
        steps = [float(mine[1] - mine[0]) for mine in got]
        if abs(steps[0] - steps[1]) > 1e-3:
            raise Wrong(f"{what}: rows go in steps of {steps[0]:.3g}, columns in steps of {steps[1]:.3g}; both must "
                        f"have the same step, or a circle becomes an ellipse.")
        step = float(wanted[0][1] - wanted[0][0])
        if abs(steps[0] - step) > 1e-3:
            raise Wrong(f"{what}: the step is {steps[0]:.4g}; it must be {step:.4g}. A token keeps its share of the "
                        f"frame: {h} rows must fit into {base[0]}, and {w} columns into {base[1]}.")
        for name, mine, right in zip(("rows", "columns"), got, wanted):
            if not torch.allclose(mine.float(), right.float(), atol=1e-3):
                i = int((mine - right).abs().argmax())
                raise Wrong(f"{name} of {what}: number {i} is {mine[i].item():.4g}; it must be {right[i].item():.4g}. "
                            f"What the grid leaves free must be the same on both sides.")
