"""Each quick operation of the VAE against its plain formula, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from minicogvx.vae import norm_kernels
from minicogvx.vae.causal_conv import CausalConv3d, ConvCache
from minicogvx.vae.norm_kernels import group_statistics, silu_of_norm
from minicogvx.vae.ops import (
    FRONT_ROOM, as_frames, channels_last, conv3d, downsample_conv, from_frames, norm_silu, pad_first, pad_front,
    repeat_time, upsample_conv, upsample_weight,
)

EPS = 1e-6


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norm_inputs(conditioned: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x (2 clips, 4 channels, 2 frames of 4x6), gain, bias and, `conditioned`, scale and shift of 2x3 cells."""
    shapes = [(2, 4, 2, 4, 6), (4,), (4,)] + [(2, 4, 2, 2, 3)] * 2 * conditioned
    return [normal(*shape, seed=i, dtype=dtype) + 0.5 for i, shape in enumerate(shapes)]


def ours(x, gain, bias, *conditions):
    return norm_silu(x, 2, EPS, gain, bias, *conditions)


def plain(x, gain, bias, *conditions):
    return silu_of_norm(x, 2, EPS, gain, bias, *conditions)


@pytest.fixture(params=[True, False], ids=["sums by hand", "PyTorch's kernel"])
def both_ways(request, monkeypatch):
    """Statistics as on a CPU in float32, and as on GPUs and in 16 bits."""
    monkeypatch.setattr(norm_kernels, "_needs_exact_sums", lambda x: request.param)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(1, 8, 9, 240, 360), (2, 8, 1, 333, 101), (3, 8, 5, 64, 64)])
def test_group_statistics_are_exact_at_any_size_and_number_of_threads(size, threads):
    x, before = channels_last(normal(*size, dtype=torch.float32) + 1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mean, variance = group_statistics(x, 2)
    finally:
        torch.set_num_threads(before)
    true = x.double().unflatten(1, (2, 4)).flatten(2)
    assert (mean - true.mean(2)).abs().max() < 3e-7  # the kernel's: 2e-4 at the first size
    assert (variance - true.var(2, correction=0)).abs().max() < 1e-6


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("conditioned", [False, True])
def test_norm_silu_is_its_formula_without_gradients(conditioned):
    inputs = norm_inputs(conditioned)
    torch.testing.assert_close(ours(*inputs), plain(*inputs))  # nothing requires a gradient
    with torch.no_grad():
        torch.testing.assert_close(ours(*(v.requires_grad_() for v in inputs)), plain(*inputs))


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("conditioned", [False, True])
def test_norm_silu_and_its_backward_are_those_of_the_formula(conditioned):
    inputs = [v.requires_grad_() for v in norm_inputs(conditioned)]
    weight = normal(2, 4, 2, 4, 6, seed=9)
    mine, theirs = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(mine, theirs)
    # the sums of the backward run in float32 whatever goes in
    for got, true in zip(torch.autograd.grad((mine * weight).sum(), inputs),
                         torch.autograd.grad((theirs * weight).sum(), inputs)):
        assert (got - true).norm() <= 1e-6 * true.norm()


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("conditioned", [False, True])
def test_norm_silu_passes_gradcheck(conditioned):
    inputs = [v.requires_grad_() for v in norm_inputs(conditioned)]
    assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)


def test_norm_silu_of_one_cell_is_an_ordinary_scale_and_shift():
    x, gain, bias, _, _ = norm_inputs(True)
    scale, shift = normal(2, 4, 2, 1, 1, seed=7), normal(2, 4, 2, 1, 1, seed=8)
    want = F.silu(F.group_norm(x, 2, gain, bias, EPS) * scale + shift)
    torch.testing.assert_close(ours(x, gain, bias, scale, shift), want)


@pytest.mark.parametrize("grad", [False, True])
def test_norm_silu_in_bfloat16_with_float32_parameters_is_near_the_formula(grad):
    x, gain, bias, scale, shift = norm_inputs(True, torch.float32)
    half = [v.bfloat16() for v in (x, scale, shift)]
    with torch.set_grad_enabled(grad):
        y = norm_silu(half[0], 2, EPS, gain.requires_grad_(), bias.requires_grad_(), *half[1:])
    assert y.dtype == torch.bfloat16
    assert (y.float() - plain(x, gain, bias, scale, shift)).abs().max() < 0.1
    if grad:
        y.float().sum().backward()
        assert gain.grad.dtype == torch.float32 and gain.grad.isfinite().all()


def test_norm_silu_leaves_its_input_alone():
    x, gain, bias = norm_inputs(False)
    before = x.clone()
    ours(x, gain, bias)
    assert torch.equal(x, before)


def test_pad_front_with_room_moves_nothing():
    x, gain, bias = norm_inputs(False)
    y = ours(x, gain, bias)
    past, want = normal(2, 4, 2, 4, 6, seed=5), y.clone()
    assert y.front_room == FRONT_ROOM == 2
    padded = pad_front(y, past)
    assert padded.data_ptr() == y.data_ptr() - 2 * y.stride(2) * y.element_size()
    assert torch.equal(padded, torch.cat([past, want], dim=2))


@pytest.mark.parametrize("frames", [1, 3])
def test_pad_front_without_enough_room_is_cat(frames):
    x, past = normal(2, 4, 2, 4, 6), normal(2, 4, frames, 4, 6, seed=1)
    assert torch.equal(pad_front(x, past), torch.cat([past, x], dim=2))
    roomy = ours(*norm_inputs(False))
    assert torch.equal(pad_front(roomy, past), torch.cat([past, roomy], dim=2))


def test_pad_front_hands_gradients_to_both():
    x, past = normal(1, 2, 2, 2, 2).requires_grad_(), normal(1, 2, 2, 2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(pad_front, [x, past])


@pytest.mark.parametrize("frames", [1, 3])
def test_pad_first_is_pad_front_with_copies_and_hands_their_gradients_back(frames):
    x = normal(2, 2, frames, 2, 3).requires_grad_()
    want = torch.cat([x[:, :, :1]] * 2 + [x], dim=2)
    assert torch.equal(pad_first(x, 2), want) and torch.equal(pad_first(x.detach(), 2), want)
    assert torch.autograd.gradcheck(lambda x: pad_first(x, 2), [x])


def test_upsample_conv_is_nearest_then_a_convolution():
    x, weight, bias = normal(2, 3, 2, 3, 4), normal(5, 3, 3, 3, seed=1), normal(5, seed=2)
    doubled = F.interpolate(as_frames(x), scale_factor=2.0, mode="nearest")
    want = from_frames(F.conv2d(doubled, weight, bias, padding=1), 2)
    torch.testing.assert_close(upsample_conv(x, weight, bias), want)
    assert upsample_weight(weight).shape == (3, 5, 4, 4)
    assert torch.autograd.gradcheck(upsample_conv, [v.requires_grad_() for v in (x, weight, bias)], fast_mode=True)


def test_downsample_conv_is_a_right_and_bottom_padded_strided_convolution():
    x, weight, bias = normal(2, 3, 2, 4, 6), normal(5, 3, 3, 3, seed=1), normal(5, seed=2)
    want = from_frames(F.conv2d(F.pad(as_frames(x), (0, 1, 0, 1)), weight, bias, stride=2), 2)
    torch.testing.assert_close(downsample_conv(x, weight, bias), want)
    assert torch.autograd.gradcheck(downsample_conv, [v.requires_grad_() for v in (x, weight, bias)], fast_mode=True)


@pytest.mark.parametrize(("latents", "frames", "first_alone", "index"), [
    (1, 1, True, [0]), (1, 1, False, [0]), (2, 2, False, [0, 1]), (3, 3, True, [0, 1, 2]),
    (1, 4, False, [0, 0, 0, 0]), (1, 2, False, [0, 0]), (2, 8, False, [0, 0, 0, 0, 1, 1, 1, 1]),
    (2, 3, True, [0, 1, 1]), (2, 5, True, [0, 1, 1, 1, 1]), (3, 5, True, [0, 1, 1, 2, 2]),
    (3, 9, True, [0, 1, 1, 1, 1, 2, 2, 2, 2]), (3, 6, False, [0, 0, 1, 1, 2, 2]),
    (2, 9, True, [0, 1, 1, 1, 1, 1, 1, 1, 1]),
])
def test_repeat_time_is_nearest_up_sampling(latents, frames, first_alone, index):
    x = normal(2, 4, latents, 3, 3).requires_grad_()
    y, expected = repeat_time(x, frames, first_alone), x[:, :, index]
    assert torch.equal(y, expected)
    cotangent = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(v, x, cotangent)[0] for v in (y, expected)))


def test_frames_fold_and_unfold_without_a_copy():
    x = channels_last(normal(2, 3, 4, 5, 6))
    folded = as_frames(x)
    assert folded.shape == (8, 3, 5, 6) and folded.data_ptr() == x.data_ptr()
    assert torch.equal(folded[5], x[1, :, 1]) and torch.equal(from_frames(folded, 2), x)


@pytest.mark.parametrize("time_padding", ["first", "zeros"])
def test_causal_convolution_is_a_padded_convolution_and_sees_no_future(time_padding):
    conv = CausalConv3d(2, 3, time_padding=time_padding).double()
    x = normal(1, 2, 5, 4, 4)
    front = x[:, :, :1].expand(-1, -1, 2, -1, -1) * (time_padding == "first")
    want = F.conv3d(torch.cat([front, x], dim=2), conv.conv.weight, conv.conv.bias, padding=(0, 1, 1))
    torch.testing.assert_close(conv(x), want)
    changed = x.clone()
    changed[:, :, 3] += 1.0
    torch.testing.assert_close(conv(changed)[:, :, :3], want[:, :, :3])
    assert (conv(changed)[:, :, 3] - want[:, :, 3]).abs().max() > 1e-3


def test_causal_convolution_in_pieces_of_any_length_is_the_whole():
    conv, x, cache = CausalConv3d(2, 3).double(), normal(1, 2, 6, 4, 4), ConvCache()
    pieces = [conv(piece, cache) for piece in x.split([1, 3, 1, 1], dim=2)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), conv(x))
    assert [tuple(past.shape) for past in cache.past.values()] == [(1, 2, 2, 4, 4)]


def test_a_kernel_without_extent_in_time_keeps_no_cache():
    conv, cache = CausalConv3d(2, 3, kernel=1).double(), ConvCache()
    x = normal(1, 2, 3, 4, 4)
    torch.testing.assert_close(conv(x, cache), F.conv3d(x, conv.conv.weight, conv.conv.bias))
    assert not cache.past


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize("shape", [(1, 4, 6, 6), (2, 4, 6, 6)])
def test_conv3d_in_halves_is_conv3d(frames, shape):
    torch.manual_seed(0)
    b, c, h, w = shape
    inputs = [torch.randn(b, c, frames + 2, h, w), torch.randn(3, c, 3, 3, 3), torch.randn(3)]
    ours, theirs = ([v.clone().requires_grad_(True) for v in inputs] for _ in range(2))
    y, expected = conv3d(*ours, padding=1), torch.nn.functional.conv3d(*theirs, padding=(0, 1, 1))
    assert torch.allclose(y, expected, atol=1e-5)
    cotangent = torch.randn_like(y)
    y.backward(cotangent), expected.backward(cotangent)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a.grad, b.grad, atol=1e-4)


def test_room_in_front_is_given_away_once():
    x, gain, bias = norm_inputs(False)
    y = ours(x, gain, bias)
    first = pad_front(y, normal(2, 4, 2, 4, 6, seed=5))
    before = first.clone()
    second = pad_first(y, 2)
    assert torch.equal(first, before) and torch.equal(second[:, :, :2], y[:, :, :1].expand(-1, -1, 2, -1, -1))


def test_room_in_front_serves_no_tensor_whose_gradient_is_asked_for():
    x, gain, bias = norm_inputs(False)
    y = ours(x, gain, bias).requires_grad_()  # a leaf: nothing may be written around it
    weight = normal(2, 4, 4, 4, 6, seed=5)
    (pad_front(y, torch.zeros_like(x[:, :, :2])) * weight).sum().backward()
    assert torch.equal(y.grad, weight[:, :, 2:])


def operations():
    """Each operation with the inputs that it is differentiated by, in float64."""
    x, gain, bias, scale, shift = (v.requires_grad_() for v in norm_inputs(True))
    short = normal(2, 4, 1, 4, 6, seed=6).requires_grad_()
    kernel, flat = (normal(*shape, seed=7).requires_grad_() for shape in ((3, 4, 3, 3, 3), (3, 4, 3, 3)))
    out = normal(3, seed=8).requires_grad_()
    return {
        "norm_silu": (lambda *v: norm_silu(v[0], 2, EPS, *v[1:]), (x, gain, bias)),
        "norm_silu, modulated": (lambda *v: norm_silu(v[0], 2, EPS, *v[1:]), (x, gain, bias, scale, shift)),
        "norm_silu, weights frozen": (lambda *v: norm_silu(v[0], 2, EPS, gain.detach(), bias.detach(), *v[1:]),
                                      (x, scale, shift)),
        "pad_first": (lambda v: pad_first(v, 2), (x,)),
        "pad_first of one frame": (lambda v: pad_first(v, 3), (short,)),
        "pad_front": (pad_front, (x, short)),
        "repeat_time": (lambda v: repeat_time(v, 3, True), (x,)),
        "conv3d": (lambda *v: conv3d(pad_first(v[0], 2), *v[1:], padding=1), (x, kernel, out)),
        "upsample_conv": (upsample_conv, (x, flat, out)),
        "downsample_conv": (downsample_conv, (x, flat, out)),
    }


@pytest.mark.parametrize("name", operations())
def test_a_backward_leaves_the_gradient_that_it_is_given_alone(name):
    run, inputs = operations()[name]
    y = run(*inputs)
    given = torch.randn_like(y)
    before = given.clone()
    first, again = (torch.autograd.grad(y, inputs, given, retain_graph=True) for _ in range(2))
    assert torch.equal(given, before) and all(map(torch.equal, first, again))
    run(*inputs).sum().backward()  # the gradient of a sum is one number, expanded


def test_pad_first_for_one_consumer_has_the_same_gradients_of_both_orders():
    x, weight = normal(2, 2, 3, 2, 3).requires_grad_(), normal(2, 2, 5, 2, 3, seed=1)
    gradients = [torch.autograd.grad(pad_first(x, 2, unseen).pow(3).sum(), x)[0] for unseen in (False, True)]
    assert torch.equal(*gradients)
    once, = torch.autograd.grad(pad_first(x, 2, unseen=True), x, weight.clone(), create_graph=True)
    assert torch.equal(once, torch.autograd.grad(pad_first(x, 2), x, weight)[0])
    assert torch.autograd.gradgradcheck(lambda v: pad_first(v, 2, unseen=True).pow(3), [x])


@pytest.mark.parametrize("name", operations())
def test_gradients_can_be_differentiated_again(name):
    run, inputs = operations()[name]
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    y = run(*inputs)
    once, kept = (torch.autograd.grad(y.square().sum(), inputs, retain_graph=True, create_graph=create_graph)
                  for create_graph in (False, True))
    for a, b in zip(once, kept):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-6)


def test_a_gradient_penalty_through_a_causal_convolution_and_its_norm():
    """The usual use of a second derivative: the gradient's own size is made small."""
    torch.manual_seed(0)
    conv, (x, gain, bias) = CausalConv3d(4, 3).double(), [v.requires_grad_() for v in norm_inputs(False)]

    def penalty(gain):
        gradient, = torch.autograd.grad(conv(ours(x, gain, bias)).square().sum(), x, create_graph=True)
        return gradient.square().sum()

    found, = torch.autograd.grad(penalty(gain), gain)
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    expected = torch.stack([(penalty(gain + h) - penalty(gain - h)) / 2e-5 for h in step]).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
