"""Attention and LayerNorm as the CPU computes them: the formula, its gradients, and its precision in 16 bits."""

from itertools import product

import torch

from minicogvx.transformer import cpu_attention
from minicogvx.transformer.attention import attention
from minicogvx.transformer.expert_norm import LayerNorm
from minicogvx.transformer.variants import spatial_attention, temporal_attention


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_factorised_attention_against_a_mask():
    torch.manual_seed(0)
    num_text, frames, s = 3, 4, 5
    q, k, v = torch.randn(3, 2, 2, num_text + frames * s, 16).unbind()
    frame = torch.cat([torch.full((num_text,), -1), torch.arange(frames).repeat_interleave(s)])
    sees = (frame[:, None] == frame[None]) | (frame == -1)[None] | (frame == -1)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees)
    assert torch.allclose(spatial_attention(q, k, v, num_text, frames), expected, atol=1e-5)
    q, k, v = (x[:, :, num_text:] for x in (q, k, v))
    place = torch.arange(s).repeat(frames)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=place[:, None] == place[None])
    assert torch.allclose(temporal_attention(q, k, v, frames), expected, atol=1e-5)


def test_all_ways_to_attend_are_one_function(monkeypatch, subtests):
    for (q_len, k_len), block in product(((40, 40), (7, 40)), (1, 100, 500, 10_000)):
        with subtests.test(q_len=q_len, k_len=k_len, block=block):
            monkeypatch.setattr(cpu_attention, "BLOCK_SCORES", block)
            torch.manual_seed(0)
            q, k, v = (torch.randn(2, 3, n, 16, requires_grad=True) for n in (q_len, k_len, k_len))
            probe = torch.randn(2, 3, q_len, 16)
            expected = torch.softmax(q @ k.transpose(2, 3) / 4, dim=-1) @ v
            expected_gradients = torch.autograd.grad(expected, (q, k, v), probe)
            for form in (cpu_attention.math_attention, cpu_attention.BlockedAttention.apply):
                out = form(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).view_as(q)
                assert torch.allclose(out, expected, atol=1e-5)
                for ours, gradient in zip(torch.autograd.grad(out, (q, k, v), probe), expected_gradients):
                    assert torch.allclose(ours, gradient, atol=1e-5)
            for dtype, kept in ((torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 10_000)):
                monkeypatch.setattr(cpu_attention, "KEPT_SCORES", kept)
                inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
                out = attention(*inputs)
                gradients = torch.autograd.grad(out, inputs, probe.to(dtype))
                with torch.no_grad():
                    assert distance(attention(*inputs).float(), out.float()) < 0.01
                assert distance(out.float(), expected) < 0.02
                assert all(distance(a.float(), e) < 0.03 for a, e in zip(gradients, expected_gradients))


def test_attention_in_blocks_can_be_differentiated_again(monkeypatch):
    monkeypatch.setattr(cpu_attention, "BLOCK_SCORES", 50)
    torch.manual_seed(0)
    inputs, found = [torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (6, 9, 9)], []
    for form in (cpu_attention.math_attention, cpu_attention.BlockedAttention.apply):
        gradients = torch.autograd.grad(form(*inputs).square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs))
    for ours, expected in zip(*found):
        assert distance(ours, expected) < 1e-5  # keys and values sum their gradients in float32


def test_norm_gradients_are_summed_in_float32():
    torch.manual_seed(0)
    norm, x, probe = LayerNorm(16), torch.randn(7000, 16).bfloat16(), (torch.randn(7000, 16) + 0.3).bfloat16()
    exact = torch.autograd.grad(norm(x.float()), list(norm.parameters()), probe.float())
    for copy in (norm, LayerNorm(16).bfloat16()):
        out = copy(x)
        assert out.dtype == torch.bfloat16
        for ours, gradient in zip(torch.autograd.grad(out, list(copy.parameters()), probe), exact):
            assert distance(ours.float(), gradient) < 0.02
