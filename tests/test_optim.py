"""Muon and AdamW, and the curve of the learning rate."""

import pytest
import torch
from torch import nn

from minicogvx.engine.muon import StackedMuon
from minicogvx.engine.optim import MuonAdamW, warmup_cosine, warmup_stable_decay


def test_the_learning_rate_warms_up_for_at_most_half_of_the_run_and_falls_to_its_floor():
    factors = [warmup_cosine(step, 100, 10, floor=0.02) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0) == factors[10]
    assert factors[99] == pytest.approx(0.02) and all(a >= b for a, b in zip(factors[10:], factors[11:]))
    assert [warmup_cosine(step, 10, 100) for step in (0, 4, 5, 9)] == pytest.approx([0.2, 1.0, 1.0, 0.02])
    assert warmup_cosine(0, 1, 100) == 1.0


def test_warmup_stable_decay_stays_at_the_top_until_its_last_fifth_and_then_falls_steeply_at_first():
    factors = [warmup_stable_decay(step, 100, 10, 0.2, floor=0.02) for step in range(100)]
    assert factors[:10] == [warmup_cosine(step, 100, 10) for step in range(10)]
    assert factors[10:80] == [1.0] * 70 and factors[84] == pytest.approx(0.02 + 0.98 * (1 - 0.5))  # a quarter is done
    assert factors[80] < 1.0 and factors[99] == pytest.approx(0.02)
    drops = [a - b for a, b in zip(factors[79:], factors[80:])]
    assert all(a > b for a, b in zip(drops, drops[1:]))
    assert [warmup_stable_decay(step, 10, 100, 1.0) for step in (4, 5, 9)] == pytest.approx([1.0, 0.02 + 0.98 * (
        1 - 0.2**0.5), 0.02])
    assert {warmup_stable_decay(step, 10, 0, 0.0) for step in range(10)} == {1.0}


def test_muon_takes_kernels_and_adamw_the_rest_and_neither_a_nan():
    net = nn.Sequential(nn.Conv3d(2, 4, 3), nn.GroupNorm(2, 4))
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = MuonAdamW(net.named_parameters(), muon_lr=0.02)
    assert {name: tuple(p.shape) for name, p in optimizer.flat.items()} == {"0.weight": (4, 54)}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[0].bias.grad[0] = float("nan")
    assert optimizer.step(1.0).isnan()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    net(torch.randn(1, 2, 5, 5, 5)).square().sum().backward()
    optimizer.step(1.0)
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters()))
    values = torch.linalg.svdvals((net[0].weight.detach() - before[0]).flatten(1))
    assert values.max() / values.min() < 2.0, "Muon makes all singular values alike"
    assert all(p.grad is None for p in net.parameters())


def test_muon_on_stacks_is_torchs_muon(subtests):
    for nesterov in (True, False):
        with subtests.test(nesterov=nesterov):
            torch.manual_seed(0)
            shapes = [(8, 24), (24, 8), (8, 24), (16, 16), (24, 8), (3, 5), (1100, 1000)]  # the last is not stacked
            start = [torch.randn(shape) for shape in shapes]
            numbers = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
            optimizers = [kind([nn.Parameter(p.clone()) for p in start], **numbers)
                          for kind in (torch.optim.Muon, StackedMuon)]
            for step in range(3):
                gradients = [torch.randn(shape) for shape in shapes]
                for optimizer in optimizers:
                    for p, gradient in zip(optimizer.param_groups[0]["params"], gradients):
                        p.grad = gradient.clone() if step or p.shape != (3, 5) else None  # one joins later
                    optimizer.step()
            theirs, ours = (optimizer.param_groups[0]["params"] for optimizer in optimizers)
            for one, other, before in zip(theirs, ours, start):
                assert (one - other).norm() <= 0.02 * (one - before).norm()
            assert all(p.shape == optimizers[1].state[p]["momentum_buffer"].shape for p in ours)


def test_on_a_cpu_adamw_computes_bit_by_bit_what_torch_computes_weight_by_weight():
    torch.manual_seed(0)
    ours, theirs = ({f"{i}": nn.Parameter(torch.ones(i + 1, 3)) for i in range(40)} for _ in range(2))
    optimizer = MuonAdamW(ours.items(), adamw_lr=0.01, muon_on=lambda name, p: False, weight_decay=0.1, clip=0.5)
    plain = torch.optim.AdamW(theirs.values(), 0.01, (0.9, 0.95), 1e-8, 0.1, foreach=False)
    for _ in range(5):
        for p, q in zip(ours.values(), theirs.values()):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        norm = optimizer.step(1.0)
        assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.values(), 0.5, foreach=False))
        plain.step()
        assert all(torch.equal(p, q) for p, q in zip(ours.values(), theirs.values()))
