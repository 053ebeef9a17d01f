"""Exercises 11.5 and 11.6 of notebook 11: how a step's clips are weighed, and whose the gradient is."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape

# ---- 11.5 pack_loss

SHAPES = (((2, 1, 2, 2), (2, 5, 4, 2)), ((2, 3, 2, 2), (2, 1, 2, 2), (2, 1, 4, 2)))  # c t h w of each clip, by pack


def loss_of_packs(packs: Sequence[Sequence[Float[Tensor, "c _t _h _w"]]], usual: int | float) -> Float[Tensor, ""]:
    """The loss of a step from its squared errors: each clip's mean, summed, over the usual number of clips."""
    return torch.stack([errors.mean() for pack in packs for errors in pack]).sum() / usual


def check_pack_loss(pack_loss) -> None:
    """One number; each clip weighs 1 / usual, whatever its size, its pack and its step."""
    usual = 4
    errors = [[torch.rand(shape) for shape in pack] for pack in SHAPES]
    what = f"pack_loss(packs, usual={usual}) of 2 packs with 2 and 3 clips"
    got = pack_loss(errors, usual)
    if isinstance(got, (int, float)) and not isinstance(got, bool):
        raise Wrong(f"{what} is a Python number; it must be a tensor, or there is nothing to take a gradient of.")
    expect_shape(what, got, ())
    weights = [pack_loss(_only(i), usual).item() for i in range(5)]
    if all(abs(weight * usual - 1) < 1e-4 for weight in weights):
        expect_close(what, got, loss_of_packs(errors, usual))
        return
    raise Wrong(f"{what}: {_diagnosis(weights, usual)}")


def _only(chosen: int) -> list[list[Tensor]]:
    """Errors that are 1 in one clip, and 0 in the others."""
    places = iter(range(5))
    return [[torch.full(shape, float(next(places) == chosen)) for shape in pack] for pack in SHAPES]


def _diagnosis(weights: list[float], usual: int) -> str:
    sizes = [torch.Size(shape).numel() for pack in SHAPES for shape in pack]
    in_pack = [len(pack) for pack in SHAPES for _ in pack]

    def alike(wanted: Sequence[int | float]) -> bool:
        total, of_all = sum(weights), sum(wanted)
        return total > 0 and all(abs(a / total - b / of_all) < 1e-4 for a, b in zip(weights, wanted))

    if alike(sizes):
        return (f"the first clip, an image of {sizes[0]} numbers, weighs {weights[0]:.3g}, the second, a video of "
                f"{sizes[1]}, {weights[1]:.3g}. A mean over all numbers lets large clips decide; take each clip's own "
                f"mean first.")
    if alike([1 / count for count in in_pack]):
        return (f"a clip in a pack of two weighs {weights[0]:.3g}, one in a pack of three {weights[2]:.3g}. With a "
                f"mean of each pack, what a clip counts depends on the clips that are packed with it.")
    if alike([1] * 5) and abs(weights[0] - 1 / 5) < 1e-4:
        return ("each clip weighs 1/5, as there are 5 in this step. In a step of few long clips each would weigh more. "
                "Divide by `usual`, the same in every step.")
    if alike([1] * 5):
        return f"each clip weighs {weights[0]:.3g}; it must be 1 / usual = {1 / usual:.3g}."
    return (f"where the errors of a single clip are 1 and the others 0, the loss is {weights[0]:.3g}, "
            f"{weights[1]:.3g}, .. for clip 0, 1, ..; it must be 1 / usual = {1 / usual:.3g} for each.")


# ---- 11.6 gradient_share


def share_of_gradient(losses: Float[Tensor, " clips"], parameters: Sequence[Tensor],
                      chosen: Bool[Tensor, " clips"]) -> float:
    """How much of the gradient of losses.sum() is that of the chosen clips: its part along the whole, 1 for all."""
    whole, part = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters), retain_graph=True)])
                   for loss in (losses.sum(), losses[chosen].sum()))
    return float(part @ whole / (whole @ whole))


@torch.enable_grad()
def check_gradient_share(gradient_share) -> None:
    """Shares add up to 1; scale does not matter; all parameters count; a clip may also pull back."""
    gradients = torch.randn(5, 7) + 0.4  # of each clip; the parameters have 4 and 3 numbers
    gradients[:, 4:] *= 3
    for chosen in (torch.tensor([True, False, True, False, False]), torch.tensor([False, True, False, False, False])):
        what = f"gradient_share of {int(chosen.sum())} of 5 clips"
        got = _number(what, gradient_share(*_clips(gradients), chosen))
        rest = _number(what, gradient_share(*_clips(gradients), ~chosen))
        wanted = _share(gradients, chosen)
        _diagnose(what, got, gradients, chosen)
        if abs(got + rest - 1) > 1e-3:
            raise Wrong(f"{what} is {got:.3f} and of the others {rest:.3f}; the two must add up to 1.")
        if abs(got - wanted) > 1e-3:
            raise Wrong(f"{what} is {got:.3f}; it must be {wanted:.3f}: project the gradient of the chosen clips on "
                        f"the whole one.")
        large = _number(what, gradient_share(*_clips(10 * gradients), chosen))
        if abs(large - got) > 1e-3:
            raise Wrong(f"{what} is {got:.3f}, and {large:.3f} where every loss is ten times as large; a share does "
                        f"not change with the scale. Divide by the squared length of the whole gradient.")
    against = torch.tensor([[1.0] * 7, [1.0] * 7, [-0.5] * 7, [1.0] * 7, [1.0] * 7])
    got = _number("gradient_share", gradient_share(*_clips(against), torch.tensor([False, False, True, False, False])))
    if not got < 0:
        raise Wrong(f"A clip whose gradient points against that of all clips has the share {got:.3f}; it must be "
                    f"below 0. Keep the sign.")


def _clips(gradients: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Losses with these gradients, none of them 0, and the two parameters."""
    first, second = torch.ones(2, 2, requires_grad=True), torch.ones(3, requires_grad=True)
    return gradients[:, :4] @ first.flatten() + gradients[:, 4:] @ second + 2, [first, second]


def _share(gradients: Tensor, chosen: Tensor) -> float:
    whole = gradients.sum(dim=0)
    return float(gradients[chosen].sum(dim=0) @ whole / (whole @ whole))


def _number(what: str, got) -> float:
    if got is None:
        raise Wrong(f"{what} is None; does your function end in return?")
    try:
        return float(got)
    except (TypeError, ValueError):
        raise Wrong(f"{what} is a {type(got).__name__}; it must be one number.") from None


def _diagnose(what: str, got: float, gradients: Tensor, chosen: Tensor) -> None:
    part, rest, whole = gradients[chosen].sum(dim=0), gradients[~chosen].sum(dim=0), gradients.sum(dim=0)
    losses = _clips(gradients)[0].detach()
    for value, told in (
            (losses[chosen].sum() / losses.sum(), "is the share of the loss. A large loss may have a small gradient"),
            (part.norm() / (part.norm() + rest.norm()), "compares two lengths. Two gradients may point different "
             "ways; only what lies along the whole one counts"),
            (part.norm() / whole.norm(), "compares two lengths. Two gradients may point different ways; only what lies "
             "along the whole one counts"),
            (_share(gradients[:, :4], chosen), "looks at the first parameter alone. Flatten and join the gradients of "
             "all of them"),
            (part @ whole / (part.norm() * whole.norm()), "is a cosine, which knows directions, not amounts. Divide by "
             "the squared length of the whole gradient"),
            (chosen.float().mean(), "is the share of the clips, not of their gradient")):
        if abs(got - float(value)) < 1e-4:
            raise Wrong(f"{what} is {got:.3f}, which {told}.")
