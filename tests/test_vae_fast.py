"""Each quick version of a leaf of the VAE against the leaf's own formula, forward and backward."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch.func import functional_call

from minicogvx.vae import CausalVAE, fast, fast_norm
from minicogvx.vae.causal_conv import CausalConv3d, ConvCache
from minicogvx.vae.fast import channels_last, conv3d, downsample_conv, norm_silu, pad_time, upsample_conv
from minicogvx.vae.fast_norm import group_statistics
from minicogvx.vae.layers import Conv3d, DownConv2d, NormSiLU, UpConv2d, stretch_time
from tests.tiny import TINY

CONFIG = replace(TINY.vae, first_frame="parity")
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
    """The formula of the leaf."""
    with fast.off():
        return functional_call(NormSiLU(4, CONFIG), {"weight": gain, "bias": bias}, (x, *conditions))


def test_group_statistics_are_exact_at_any_size_and_number_of_threads(subtests):
    sizes = [(1, 8, 9, 240, 360), (2, 8, 1, 333, 101), (3, 8, 5, 64, 64)]
    for threads, size in product((1, 2), sizes):
        with subtests.test(threads=threads, size=size):
            x, before = channels_last(normal(*size, dtype=torch.float32) + 1), torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                mean, variance = group_statistics(x, 2)
            finally:
                torch.set_num_threads(before)
            true = x.double().unflatten(1, (2, 4)).flatten(2)
            assert (mean - true.mean(2)).abs().max() < 3e-7  # the kernel's: 2e-4 at the first size
            assert (variance - true.var(2, correction=0)).abs().max() < 1e-6


def test_norm_silu_and_its_backward_are_those_of_the_formula(subtests, monkeypatch):
    """With sums by hand, as on a CPU in float32, and by PyTorch's kernel, as on GPUs and in 16 bits."""
    for by_hand, conditioned in product((True, False), (False, True)):
        with subtests.test(by_hand=by_hand, conditioned=conditioned):
            monkeypatch.setattr(fast_norm, "_needs_exact_sums", lambda x: by_hand)
            inputs = norm_inputs(conditioned)
            torch.testing.assert_close(ours(*inputs), plain(*inputs))  # nothing requires a gradient
            inputs, weight = [v.requires_grad_() for v in inputs], normal(2, 4, 2, 4, 6, seed=9)
            with torch.no_grad():
                torch.testing.assert_close(ours(*inputs), plain(*inputs))
            mine, theirs = ours(*inputs), plain(*inputs)
            torch.testing.assert_close(mine, theirs)
            # the sums of the backward run in float32 whatever goes in
            for got, true in zip(torch.autograd.grad((mine * weight).sum(), inputs),
                                 torch.autograd.grad((theirs * weight).sum(), inputs)):
                assert (got - true).norm() <= 1e-6 * true.norm()
            assert torch.autograd.gradcheck(ours, inputs, fast_mode=True)


def test_norm_silu_of_one_cell_is_an_ordinary_scale_and_shift_and_leaves_its_input_alone():
    x, gain, bias, _, _ = norm_inputs(True)
    scale, shift = normal(2, 4, 2, 1, 1, seed=7), normal(2, 4, 2, 1, 1, seed=8)
    want = F.silu(F.group_norm(x, 2, gain, bias, EPS) * scale + shift)
    before = x.clone()
    torch.testing.assert_close(ours(x, gain, bias, scale, shift), want)
    assert torch.equal(x, before)


def test_norm_silu_in_bfloat16_with_float32_parameters_is_near_the_formula(subtests):
    for grad in (False, True):
        with subtests.test(grad=grad):
            x, gain, bias, scale, shift = norm_inputs(True, torch.float32)
            half = [v.bfloat16() for v in (x, scale, shift)]
            with torch.set_grad_enabled(grad):
                y = norm_silu(half[0], 2, EPS, gain.requires_grad_(), bias.requires_grad_(), *half[1:])
            assert y.dtype == torch.bfloat16
            assert (y.float() - plain(x, gain, bias, scale, shift)).abs().max() < 0.1
            if grad:
                y.float().sum().backward()
                assert gain.grad.dtype == torch.float32 and gain.grad.isfinite().all()


def test_pad_time_is_cat_and_repeats_a_first_frame_and_hands_gradients_to_all(subtests):
    for frames in (1, 3):
        with subtests.test(frames=frames):
            x, past = normal(2, 4, 2, 4, 6).requires_grad_(), normal(2, 4, frames, 4, 6, seed=1).requires_grad_()
            assert torch.equal(pad_time(x, frames, past), torch.cat([past, x], dim=2))
            assert torch.autograd.gradcheck(lambda x, past: pad_time(x, frames, past), [x, past], fast_mode=True)
            x = normal(2, 2, frames, 2, 3).requires_grad_()
            want = torch.cat([x[:, :, :1]] * 2 + [x], dim=2)
            assert torch.equal(pad_time(x, 2), want) and torch.equal(pad_time(x.detach(), 2), want)
            assert torch.autograd.gradcheck(lambda x: pad_time(x, 2), [x])


def test_the_free_frames_of_a_norm_are_filled_once_and_where_no_gradient_is_asked_for():
    y = ours(*norm_inputs(False))
    kept, (one, two) = y.clone(), (normal(2, 4, 2, 4, 6, seed=seed) for seed in (5, 6))
    first = pad_time(y, 2, one)
    assert first.data_ptr() < y.data_ptr() and torch.equal(first, torch.cat([one, kept], dim=2))
    assert torch.equal(pad_time(y, 2, two), torch.cat([two, kept], dim=2))
    assert torch.equal(first[:, :, :2], one) and torch.equal(y, kept)
    x, gain, bias = norm_inputs(False)
    y = ours(x, gain, bias).requires_grad_()  # a leaf
    past, weight = torch.zeros_like(x).requires_grad_(), normal(2, 4, 4, 4, 6, seed=5)
    (pad_time(y, 2, past) * weight).sum().backward()
    assert torch.equal(y.grad, weight[:, :, 2:]) and torch.equal(past.grad, weight[:, :, :2])
    past.grad = None  # of a piece before that had a gradient
    (pad_time(ours(x, gain, bias), 2, past) * weight).sum().backward()
    assert torch.equal(past.grad, weight[:, :, :2])


def test_a_norm_that_is_padded_hands_on_the_gradients_of_both_of_all_orders():
    """Its copies of the first frame are made with it; whoever also sees the norm alone, or changes it, is served."""
    for modulated in (False, True):
        inputs = [v.requires_grad_() for v in norm_inputs(modulated)]
        assert torch.equal(pad_time(ours(*inputs), 2), pad_time(ours(*inputs).clone(), 2))
        assert torch.autograd.gradcheck(lambda *v: pad_time(ours(*v), 2), inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda *v: pad_time(ours(*v), 2), inputs, fast_mode=True)
        assert torch.autograd.gradcheck(lambda *v: (lambda y: pad_time(y, 2).sum(2) * y[:, :, 0])(ours(*v)), inputs,
                                        fast_mode=True)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = ours(*inputs)
            y.mul_(2)  # as a hook may do
            assert torch.equal(pad_time(y, 2)[:, :, :1], y[:, :, :1])


LEAVES = {
    "norm": (lambda: NormSiLU(4, CONFIG), (2, 4, 3, 4, 6)),
    "norm over the frame": (lambda: NormSiLU(4, replace(CONFIG, norm_over="frame")), (2, 4, 3, 4, 6)),
    "convolution": (lambda: Conv3d(4, 3, 3, padding=(0, 1, 1)), (2, 4, 4, 4, 6)),
    "convolution of one small clip": (lambda: Conv3d(4, 3, 3, padding=(0, 1, 1)), (1, 4, 6, 4, 6)),
    "down": (lambda: DownConv2d(4, 3, 3, stride=2), (2, 4, 3, 4, 6)),
    "up": (lambda: UpConv2d(4, 3, 3, padding=1), (2, 4, 3, 4, 6)),
    "causal convolution": (lambda: CausalConv3d(4, 3), (2, 4, 3, 4, 6)),
    "causal convolution, zeros": (lambda: CausalConv3d(4, 3, time_padding="zeros"), (2, 4, 3, 4, 6)),
}


def test_a_leaf_is_its_formula(subtests):
    for dtype, name in product((torch.float32, torch.float64), LEAVES):
        with subtests.test(name, dtype=dtype):
            torch.manual_seed(0)
            make, shape = LEAVES[name]
            leaf, x = make().to(dtype), normal(*shape, dtype=dtype).requires_grad_()
            found, inputs = [], [x, *leaf.parameters()]
            for switch in (nullcontext, fast.off):
                with switch():
                    y = leaf(x)
                    with torch.no_grad():
                        torch.testing.assert_close(leaf(x), y, rtol=1e-5, atol=1e-5)
                found.append([y, *torch.autograd.grad((y * normal(*y.shape, seed=1, dtype=dtype)).sum(), inputs)])
            for quick, formula in zip(*found, strict=True):
                torch.testing.assert_close(quick, formula, rtol=1e-4, atol=1e-4)


def test_the_whole_vae_is_what_its_formulas_say(subtests):
    for changed in [{}, {"first_frame": "start"}, {"norm_over": "frame", "time_padding": "zeros"}]:
        with subtests.test(changed=changed):
            torch.manual_seed(0)
            vae = CausalVAE(replace(CONFIG, **changed)).requires_grad_(False)
            video, z = (normal(*shape, dtype=torch.float32) for shape in ((2, 3, 9, 8, 8), (1, 4, 3, 2, 2)))
            video = video.clamp(-1, 1)
            quick = [vae.encode(video, chunk_frames=4).mean, vae.decode(z, chunk_latents=1)]
            with fast.off():
                formulas = [vae.encode(video, chunk_frames=4).mean, vae.decode(z, chunk_latents=1)]
            for a, b in zip(quick, formulas):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_convolutions_that_resample_pass_gradcheck():
    inputs = [v.requires_grad_() for v in (normal(2, 3, 2, 4, 6), normal(5, 3, 3, 3, seed=1), normal(5, seed=2))]
    for resample in (upsample_conv, downsample_conv):
        assert torch.autograd.gradcheck(resample, inputs, fast_mode=True)


def test_time_is_stretched_by_nearest_up_sampling(subtests):
    stretched = [
        (1, 1, [0]), (2, 2, [0, 1]), (3, 3, [0, 1, 2]), (1, 4, [0, 0, 0, 0]), (1, 2, [0, 0]),
        (2, 8, [0, 0, 0, 0, 1, 1, 1, 1]), (2, 3, [0, 1, 1]), (2, 5, [0, 1, 1, 1, 1]), (3, 5, [0, 1, 1, 2, 2]),
        (3, 9, [0, 1, 1, 1, 1, 2, 2, 2, 2]), (3, 6, [0, 0, 1, 1, 2, 2]), (2, 9, [0, 1, 1, 1, 1, 1, 1, 1, 1]),
    ]
    for switch, (latents, frames, index) in product((nullcontext, fast.off), stretched):
        with subtests.test(latents=latents, frames=frames, index=index):
            x = normal(2, 4, latents, 3, 3).requires_grad_()
            with switch():
                y, expected = stretch_time(x, frames), x[:, :, index]
            assert torch.equal(y, expected)
            cotangent = torch.randn_like(y)
            torch.testing.assert_close(*(torch.autograd.grad(v, x, cotangent)[0] for v in (y, expected)))


def test_causal_convolution_is_a_padded_convolution_and_sees_no_future(subtests):
    for time_padding in ("first", "zeros"):
        with subtests.test(time_padding=time_padding):
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
    conv, cache = CausalConv3d(2, 3, kernel=1).double(), ConvCache()  # without extent in time it keeps no cache
    torch.testing.assert_close(conv(x, cache), F.conv3d(x, conv.conv.weight, conv.conv.bias))
    assert not cache.past


def test_conv3d_in_halves_is_conv3d(subtests):
    for frames, shape in product((1, 2, 5, 8), ((1, 4, 6, 6), (2, 4, 6, 6))):
        with subtests.test(frames=frames, shape=shape):
            torch.manual_seed(0)
            b, c, h, w = shape
            inputs = [torch.randn(b, c, frames + 2, h, w), torch.randn(3, c, 3, 3, 3), torch.randn(3)]
            ours, theirs = ([v.clone().requires_grad_(True) for v in inputs] for _ in range(2))
            y, expected = conv3d(*ours, padding=(0, 1, 1)), torch.nn.functional.conv3d(*theirs, padding=(0, 1, 1))
            assert torch.allclose(y, expected, atol=1e-5)
            cotangent = torch.randn_like(y)
            y.backward(cotangent), expected.backward(cotangent)
            for a, b in zip(ours, theirs):
                assert torch.allclose(a.grad, b.grad, atol=1e-4)


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
        "pad_time": (lambda v: pad_time(v, 2), (x,)),
        "pad_time of one frame": (lambda v: pad_time(v, 3), (short,)),
        "pad_time behind a past": (lambda x, past: pad_time(x, 1, past), (x, short)),
        "stretch_time": (lambda v: stretch_time(v, 3), (x,)),
        "conv3d": (lambda *v: conv3d(pad_time(v[0], 2), *v[1:], padding=(0, 1, 1)), (x, kernel, out)),
        "upsample_conv": (upsample_conv, (x, flat, out)),
        "downsample_conv": (downsample_conv, (x, flat, out)),
    }


def test_a_backward_leaves_the_gradient_that_it_is_given_alone(subtests):
    for name in operations():
        with subtests.test(name):
            run, inputs = operations()[name]
            y = run(*inputs)
            given = torch.randn_like(y)
            before = given.clone()
            first, again = (torch.autograd.grad(y, inputs, given, retain_graph=True) for _ in range(2))
            assert torch.equal(given, before) and all(map(torch.equal, first, again))
            run(*inputs).sum().backward()  # the gradient of a sum is one number, expanded


def test_gradients_can_be_differentiated_again(subtests):
    for name in operations():
        with subtests.test(name):
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
