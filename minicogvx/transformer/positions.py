"""Where a token is: 3D rotary and 3D sine-cosine tables (paper 2.2). Pure functions, no parameters."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def rope_3d(grid: tuple[int, int, int], head_dim: int, base_grid: tuple[int, int] | None = None,
            theta: float = 10000.0) -> Complex[Tensor, "n half"]:
    """The rotary table of t x h x w tokens (time first, then rows, then columns): e^(i angle) for each pair.

    A quarter of the head's pairs turns with time, three eighths with the row, three eighths with the column.
    Without `base_grid` the coordinates are integers: another size *extrapolates*. With it, rows and columns are
    squeezed into the base grid of (height, width): *interpolation*.
    """
    t, h, w = grid
    if base_grid is None:
        rows, columns = torch.arange(h).float(), torch.arange(w).float()
    else:
        rows, columns = interpolated_coordinates(h, w, base_grid)
    of_time = _rotary_angles(torch.arange(t).float(), head_dim // 4, theta)   # t half/4
    of_row = _rotary_angles(rows, head_dim // 8 * 3, theta)                   # h half*3/8
    of_column = _rotary_angles(columns, head_dim // 8 * 3, theta)             # w half*3/8
    angles = torch.cat([
        of_time[:, None, None].expand(t, h, w, -1),
        of_row[None, :, None].expand(t, h, w, -1),
        of_column[None, None, :].expand(t, h, w, -1),
    ], dim=-1).flatten(0, 2)
    return torch.complex(angles.cos(), angles.sin())


def with_text(table: Complex[Tensor, "n_video half"], num_text: int) -> Complex[Tensor, "n half"]:
    """A table for text and video: rows of 1 in front, so that the text is not turned."""
    return torch.cat([table.new_ones(num_text, table.shape[1]), table])


def rotate(x: Float[Tensor, "b heads n head_dim"],
           table: Complex[Tensor, "n half"]) -> Float[Tensor, "b heads n head_dim"]:
    """Turn each adjacent pair (x0, x1) of a query or key by its angle, in float32: (x0 + i x1) e^(i angle)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def interpolated_coordinates(h: int, w: int, base_grid: tuple[int, int]) -> tuple[
        Float[Tensor, " h"], Float[Tensor, " w"]]:
    """Row and column coordinates that fit an h x w grid, aspect ratio kept, into the middle of the base grid."""
    base_h, base_w = base_grid
    if h / w > base_h / base_w:
        fit_h, fit_w = base_h, round(base_h / h * w)
    else:
        fit_h, fit_w = round(base_w / w * h), base_w
    top, left = round((base_h - fit_h) / 2), round((base_w - fit_w) / 2)
    # The published end point is stop * (n - 1) / n, not start + (stop - start) * (n - 1) / n.
    rows = torch.linspace(top, (top + fit_h) * (h - 1) / h, h)
    columns = torch.linspace(left, (left + fit_w) * (w - 1) / w, w)
    return rows, columns


def _rotary_angles(coordinates: Float[Tensor, " m"], dim: int, theta: float) -> Float[Tensor, "m half_dim"]:
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    return torch.outer(coordinates, frequencies)


def sincos_3d(grid: tuple[int, int, int], width: int, spatial_scale: float = 1.875,
              temporal_scale: float = 1.0) -> Float[Tensor, "n width"]:
    """The 2B's fixed table for t x h x w tokens: a quarter of the width for time, then column, then row.

    Coordinates are integers divided by a scale; 1.875 = 480 / 256 is left from progressive training.
    """
    t, h, w = grid
    time = _sine_cosine(torch.arange(t) / temporal_scale, width // 4)
    column = _sine_cosine(torch.arange(w) / spatial_scale, width // 8 * 3)
    row = _sine_cosine(torch.arange(h) / spatial_scale, width // 8 * 3)
    return torch.cat([
        time[:, None, None].expand(t, h, w, -1),
        column[None, None, :].expand(t, h, w, -1),
        row[None, :, None].expand(t, h, w, -1),
    ], dim=-1).flatten(0, 2)


def _sine_cosine(coordinates: Float[Tensor, " m"], dim: int) -> Float[Tensor, "m dim"]:
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = torch.outer(coordinates.double(), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
