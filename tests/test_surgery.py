"""Operations on the modulations of a transformer reach all of them, change what they say, and are undone."""

import pytest
import torch
from torch import nn

from minicogvx.course.surgery import changed_modulations, exchanged, expert_norms, towards_video
from minicogvx.transformer.model import ExpertTransformer
from tests.tiny import TINY


@pytest.fixture
def net() -> ExpertTransformer:
    """A tiny transformer in which every modulation does something."""
    torch.manual_seed(0)
    net = ExpertTransformer(TINY.transformer).eval().requires_grad_(False)
    for norm in expert_norms(net):
        nn.init.normal_(norm.linear.bias)
    return net


def answer(net: ExpertTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return net(torch.randn(1, 4, 3, 8, 8, generator=generator), torch.tensor([500]),
               torch.randn(1, 5, 16, generator=generator))


def test_a_change_reaches_every_norm_and_is_undone(net):
    before, seen = answer(net), []
    with pytest.raises(KeyboardInterrupt), changed_modulations(net, lambda linear, m: seen.append(linear) or m):
        torch.testing.assert_close(answer(net), before)
        raise KeyboardInterrupt
    assert seen == [norm.linear for norm in expert_norms(net)] and len(seen) == 4
    with changed_modulations(net, exchanged):
        assert (answer(net) - before).abs().max() > 1e-3
    assert torch.equal(answer(net), before) and len(seen) == 4


def test_what_the_operations_do_to_a_modulation():
    m, linear = torch.arange(12.0)[None], nn.Linear(1, 12)  # d is 2
    assert exchanged(linear, m)[0].tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]
    for dose, text in ((0.0, [6, 7, 8, 9, 10, 11]), (0.5, [3, 4, 5, 6, 7, 8]), (1.0, [0, 1, 2, 3, 4, 5])):
        assert towards_video(dose)(linear, m)[0].tolist() == [0, 1, 2, 3, 4, 5, *text]
