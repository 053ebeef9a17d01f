"""Exercises of notebook 06 distinguish right from wrong, and name the mistake."""

import torch
from einops import rearrange

from minicogvx.course.exercises import find
from tests.guards import guard

# ---- 6.1 from_patches


def right_from_patches(tokens, grid, patch_t, patch):
    t, h, w = grid
    boxes = tokens.unflatten(-1, (-1, patch_t, patch, patch)).unflatten(1, grid)  # b t h w c r p q
    moved = boxes.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return moved.reshape(len(tokens), -1, t * patch_t, h * patch, w * patch)


def put_together(pattern):
    def from_patches(tokens, grid, patch_t, patch):
        t, h, w = grid
        return rearrange(tokens, pattern, t=t, h=h, w=w, r=patch_t, p=patch, q=patch)

    return from_patches


def only_viewed(tokens, grid, patch_t, patch):
    t, h, w = grid
    return tokens.reshape(len(tokens), -1, t * patch_t, h * patch, w * patch)


def one_frame_a_patch(tokens, grid, patch_t, patch):
    t, h, w = grid
    return rearrange(tokens, "b (t h w) (c p q) -> b c t (h p) (w q)", t=t, h=h, w=w, p=patch, q=patch)


def test_from_patches():
    guard("6.1", right_from_patches, [
        ("channel 0, frame 0, row 0, column 1 holds the number that belongs to channel 0, frame 0, row 1, column 0",
         put_together("b (t h w) (c q r p) -> b c (t r) (h p) (w q)")),
        ("row 0, column 1 holds the number that belongs to channel 0, frame 0, row 1, column 1",
         put_together("b (t h w) (r p q c) -> b c (t r) (h p) (w q)")),
        ("frame 0, row 0, column 2 holds the number that belongs to channel 0, frame 0, row 0, column 4",
         put_together("b (t w h) (c r p q) -> b c (t r) (h p) (w q)")),
        ("frame 1, row 0, column 0 holds the number that belongs to channel 0, frame 2, row 0, column 0",
         put_together("b (t h w) (c r p q) -> b c (r t) (h p) (w q)")),
        ("row 0, column 1 holds the number that belongs to channel 0, frame 0, row 0, column 2",
         put_together("b (t h w) (c r p q) -> b c (t r) (p h) (q w)")),
        ("channel 0, frame 0, row 0, column 2 holds", only_viewed),
        ("has shape (1, 4, 2, 4, 6); it must be (1, 2, 4, 4, 6)", one_frame_a_patch),
    ])


# ---- 6.2 turn_pairs


def mixed(first, second, cos, sin):
    return first * cos - second * sin, first * sin + second * cos


def right_turn_pairs(x, angles):
    pairs = mixed(*x.float().unflatten(-1, (-1, 2)).unbind(-1), angles.cos(), angles.sin())
    return torch.stack(pairs, dim=-1).flatten(-2).to(x.dtype)


def halves(x, angles):
    return torch.cat(mixed(*x.float().chunk(2, dim=-1), angles.cos(), angles.sin()), dim=-1).to(x.dtype)


def the_other_way(x, angles):
    return right_turn_pairs(x, -angles)


def side_by_side(x, angles):
    return torch.cat(mixed(x[..., ::2], x[..., 1::2], angles.cos(), angles.sin()), dim=-1)


def mirrored(x, angles):
    first, second = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([first * cos - second * sin, second * cos - first * sin], dim=-1).flatten(-2)


def only_scaled(x, angles):
    return x * angles.cos().repeat_interleave(2, dim=-1)


def angles_of_the_head(x, angles):
    return right_turn_pairs(x.transpose(1, 2), angles).transpose(1, 2) if x.shape[1] == x.shape[2] \
        else right_turn_pairs(x, angles)


def in_sixteen_bits(x, angles):
    low = angles.to(x.dtype)
    return torch.stack(mixed(x[..., ::2], x[..., 1::2], low.cos(), low.sin()), dim=-1).flatten(-2)


def in_float32_for_good(x, angles):
    return right_turn_pairs(x.float(), angles)


def in_place(x, angles):
    x.copy_(right_turn_pairs(x, angles))
    return x


def test_turn_pairs():
    guard("6.2", right_turn_pairs, [
        ("became 1 in channel 4; it must become 1 in channel 1", halves),
        ("became -1 in channel 1; it must become 1 in channel 1", the_other_way),
        ("With all angles 0, turn_pairs changes x", side_by_side),
        ("became -1 in channel 1; it must become 1 in channel 1", mirrored),
        ("became nothing anywhere; it must become 1 in channel 1", only_scaled),
        ("is not turned by its own angles", angles_of_the_head),
        ("x in bfloat16 is off by", in_sixteen_bits),
        ("x in bfloat16 comes back as torch.float32", in_float32_for_good),
        ("has shape (1, 2, 3, 4); it must be (1, 2, 3, 8)", lambda x, angles: x[..., ::2] * angles.cos()),
        ("changes its input x", in_place),
    ])


# ---- 6.3 order_for_pairs


def right_order(sizes):
    order, start = [], 0
    for size in sizes:
        for i in range(size // 2):
            order += [start + i, start + i + size // 2]
        start += size
    return torch.tensor(order)


def untouched(sizes):
    return torch.arange(sum(sizes))


def the_way_back(sizes):
    return right_order(sizes).argsort()


def over_the_whole(sizes):
    return right_order((sum(sizes),))


def the_second_first(sizes):
    return right_order(sizes).view(-1, 2).flip(1).flatten()


def always_from_zero(sizes):
    return torch.cat([right_order((size,)) for size in sizes])


def as_floats(sizes):
    return right_order(sizes).float()


def test_order_for_pairs():
    guard("6.3", right_order, [
        ("the pair at places 0 and 1 is channels 0 and 1; it must be 0 and 4", untouched),
        ("the pair at places 0 and 1 is channels 0 and 2; it must be 0 and 4", the_way_back),
        ("places 0 to 15 hold channels from 0 to 39; each axis must keep its own channels", over_the_whole),
        ("is channels 4 and 0; it must be 0 and 4", the_second_first),
        ("has channel 0 3 times; each of 0 to 63 must come once", always_from_zero),
        ("has dtype torch.float32; indices must be torch.int64", as_floats),
    ])


def test_pairs_in_order_have_the_scores_of_halves():
    q, k = torch.randn(2, 1, 1, 5, 8).unbind()
    angles, order = torch.randn(5, 4), find("6.3").reference((8,))
    pairs = right_turn_pairs(q[..., order], angles) @ right_turn_pairs(k[..., order], angles).mT
    torch.testing.assert_close(halves(q, angles) @ halves(k, angles).mT, pairs, atol=1e-5, rtol=1e-5)
