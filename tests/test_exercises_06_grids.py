"""Exercises of notebook 06 about grids distinguish right from wrong, and name the mistake."""

import math

import torch

from minicogvx.course.exercises import find
from minicogvx.transformer.positions import interpolated_coordinates, rope_3d
from tests.guards import guard

# ---- 6.4 grid_angles


def grid_table(grid, head_dim, num_text, shares=(2, 3, 3), order="ij", over=None, theta=10000.0, first=0):
    axes = torch.meshgrid(*(torch.arange(size) + first for size in grid), indexing="ij")
    if order == "columns first":
        axes = [axis.permute(0, 2, 1) for axis in axes]
    columns = []
    for axis, share in zip(axes, shares):
        dim = head_dim * share // 8
        columns.append(axis.reshape(-1, 1) * theta ** (-torch.arange(0, dim, 2) / (over or dim)))
    video = torch.cat(columns, dim=1).float()
    return torch.cat([torch.zeros(num_text, head_dim // 2), video])


def time_last(grid, head_dim, num_text):
    return grid_table(grid, head_dim, num_text, shares=(3, 3, 2))


def columns_first(grid, head_dim, num_text):
    return grid_table(grid, head_dim, num_text, order="columns first")


def over_the_whole_head(grid, head_dim, num_text):
    return grid_table(grid, head_dim, num_text, over=head_dim)


def without_theta(grid, head_dim, num_text):
    return grid_table(grid, head_dim, num_text, theta=100.0)


def from_one(grid, head_dim, num_text):
    return grid_table(grid, head_dim, num_text, first=1)


def text_behind(grid, head_dim, num_text):
    return grid_table(grid, head_dim, num_text).roll(-num_text, dims=0)


def text_has_places(grid, head_dim, num_text):
    table = grid_table(grid, head_dim, num_text)
    table[:num_text] = torch.arange(num_text)[:, None]
    return table


def without_text(grid, head_dim, num_text):
    return grid_table(grid, head_dim, 0)


def one_long_line(grid, head_dim, num_text):
    t, h, w = grid
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    return torch.cat([torch.zeros(num_text, head_dim // 2), torch.outer(torch.arange(t * h * w).float(), frequencies)])


def one_for_each_channel(grid, head_dim, num_text):
    return grid_table(grid, head_dim, num_text).repeat_interleave(2, dim=1)


def test_grid_angles():
    guard("6.4", grid_table, [
        ("one step in time changes 12 columns, 0 to 11; it must change 8, 0 to 7", time_last),
        ("one step in the row changes 24 columns, 8 to 31; it must change 12, 8 to 19", columns_first),
        ("turns pair 1 of that axis by 0.75; it must be 0.316 = 10000^(-2*1/16)", over_the_whole_head),
        ("turns pair 1 of that axis by 0.562; it must be 0.316", without_theta),
        ("the first video token has angles up to 1; it stands at (0, 0, 0)", from_one),
        ("a text row holds", text_behind),
        ("a text row holds 1; text comes first and is not turned", text_has_places),
        ("has shape (60, 32); it must be (62, 32)", without_text),
        ("one step in time changes 32 columns", one_long_line),
        ("has shape (62, 64); it must be (62, 32)", one_for_each_channel),
    ])


# ---- 6.5 copy_at


def right_copy_at(stretch, patch_pixels):
    return patch_pixels * int(2 * math.pi / stretch + 0.5)


def not_rounded(stretch, patch_pixels):
    return 2 * math.pi / stretch * patch_pixels


def rounded_to_pixels(stretch, patch_pixels):
    return round(2 * math.pi / stretch * patch_pixels)


def the_other_direction(stretch, patch_pixels):
    return round(2 * math.pi * stretch) * patch_pixels


def rounded_down(stretch, patch_pixels):
    return int(2 * math.pi / stretch) * patch_pixels


def rounded_up(stretch, patch_pixels):
    return math.ceil(2 * math.pi / stretch) * patch_pixels


def half_a_turn(stretch, patch_pixels):
    return round(math.pi / stretch) * patch_pixels


def in_tokens(stretch, patch_pixels):
    return round(2 * math.pi / stretch)


def always_sixteen(stretch, patch_pixels):
    return 16 * round(2 * math.pi / stretch)


def as_measured(stretch, patch_pixels):
    return 96


def text(stretch, patch_pixels):
    return f"{right_copy_at(stretch, patch_pixels)} pixels"


def test_copy_at():
    guard("6.5", right_copy_at, [
        ("that is 6.28 tokens, but the frame is painted token by token", not_rounded),
        ("the copy stands whole tokens away", rounded_to_pixels),
        ("it has gone round sooner, not later", the_other_direction),
        ("a turn takes 6.98 tokens; the nearest whole number is 7", rounded_down),
        ("a turn takes 6.28 tokens; the nearest whole number is 6", rounded_up),
        ("that is half a turn", half_a_turn),
        ("that is in tokens; a token is 16 pixels wide", in_tokens),
        ("a token is patch_pixels = 32 pixels wide here", always_sixteen),
        ("copy_at(1.25, 16) is 96; a turn takes 5.03 tokens", as_measured),
        ("is a str; it must be a number of pixels", text),
    ])


# ---- 6.6 fit_coordinates


def right_coordinates(h, w, base):
    step = base[0] / h if h / w > base[0] / base[1] else base[1] / w
    return tuple(step * torch.arange(count) + (size - step * count) / 2 for count, size in zip((h, w), base))


def each_axis_alone(h, w, base):
    return torch.arange(h) * (base[0] / h), torch.arange(w) * (base[1] / w)


def integers(h, w, base):
    return torch.arange(h).float(), torch.arange(w).float()


def from_the_corner(h, w, base):
    step = min(base[0] / h, base[1] / w)
    return step * torch.arange(h), step * torch.arange(w)


def larger_than_the_frame(h, w, base):
    step = max(base[0] / h, base[1] / w)
    return tuple(step * torch.arange(count) + (size - step * count) / 2 for count, size in zip((h, w), base))


def never_stretched(h, w, base):
    step = min(base[0] / h, base[1] / w, 1.0)
    return tuple(step * torch.arange(count) + (size - step * count) / 2 for count, size in zip((h, w), base))


def to_the_last_one(h, w, base):
    return torch.linspace(0, base[0] - 1, h), torch.linspace(0, base[1] - 1, w)


def the_published_one(h, w, base):
    return interpolated_coordinates(h, w, base)


def rows_only(h, w, base):
    return right_coordinates(h, w, base)[0]


def test_fit_coordinates():
    guard("6.6", right_coordinates, [
        ("(60, 45, (30, 45)): rows go in steps of 0.5, columns in steps of 1; both must have the same step",
         each_axis_alone),
        ("(60, 90, (30, 45)): the step is 1; it must be 0.5", integers),
        ("the same on both sides", from_the_corner),
        ("(60, 45, (30, 45)): the step is 1; it must be 0.5", larger_than_the_frame),
        ("(15, 15, (30, 45)): the step is 1; it must be 2", never_stretched),
        ("rows go in steps of 0.4", to_the_last_one),
        ("both must have the same step", the_published_one),
        ("is one Tensor; it must be two tensors", rows_only),
    ])


def test_the_references_are_what_the_package_computes():
    angles = find("6.4").reference((3, 4, 5), 64, 0)
    table = rope_3d((3, 4, 5), 64)
    torch.testing.assert_close(torch.polar(torch.ones_like(angles), angles), table, atol=1e-5, rtol=1e-5)
    for h, w in ((30, 45), (60, 90)):  # where the grid fills its base, the published slip does not show
        for mine, published in zip(find("6.6").reference(h, w, (30, 45)), interpolated_coordinates(h, w, (30, 45))):
            torch.testing.assert_close(mine, published, atol=1e-4, rtol=1e-4)
