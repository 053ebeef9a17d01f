"""The check of exercise 2.2: an encoder that a learner has assembled, held to the package's on small configs."""

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.presets import VAEConfig
from minicogvx.vae.autoencoder import Encoder
from minicogvx.vae.layers import DownConv2d, NormSiLU

_SMALL = VAEConfig(latent_channels=2, block_out_channels=(2, 4, 4), layers_per_block=1, norm_num_groups=2,
                   temporal_compression_ratio=4, first_frame="start")
CONFIGS = {
    "three stages, time halved twice": _SMALL,
    "four stages, two blocks in each, time halved once": VAEConfig(
        latent_channels=3, block_out_channels=(2, 2, 4, 6), layers_per_block=2, norm_num_groups=1,
        temporal_compression_ratio=2, first_frame="start"),
}


def check_my_encoder(my_encoder) -> None:
    """Names and shapes of the weights, then the numbers: part by part, so that the first that differs is named."""
    for said, config in CONFIGS.items():
        mine, theirs = my_encoder(config), Encoder(config)
        if not isinstance(mine, nn.Module):
            raise Wrong(f"MyEncoder(config) is a {type(mine).__name__}; it must be an nn.Module.")
        with torch.no_grad():
            for weight in theirs.parameters():  # norms start with 1 and 0, which would hide some mistakes
                weight.copy_(0.3 * torch.randn_like(weight) + (weight.ndim == 1))
            _check_weights(mine, theirs, said)
            mine.load_state_dict(theirs.state_dict())
            side = 2 * config.spatial_compression_ratio
            _check_numbers(mine, theirs, torch.randn(2, 3, 9, side, side), said)


def _check_weights(mine: nn.Module, theirs: nn.Module, said: str) -> None:
    wanted, got = theirs.state_dict(), mine.state_dict()
    missing = [name for name in wanted if name not in got]
    extra = [name for name in got if name not in wanted]
    if missing:
        near = get_close_matches(missing[0], extra, 1, 0.5) or extra[:1]
        instead = f" It has {near[0]}, which no checkpoint has." if near else ""
        raise Wrong(f"With {said}, MyEncoder(config) lacks {len(missing)} of {len(wanted)} weights, first "
                    f"{missing[0]}.{instead}")
    if extra:
        raise Wrong(f"With {said}, MyEncoder(config) has {len(extra)} weights too many, first {extra[0]}; a checkpoint "
                    f"with that config does not hold it.")
    for name, weight in wanted.items():
        if got[name].shape != weight.shape:
            raise Wrong(f"With {said}, {name} has shape {tuple(got[name].shape)}; in a checkpoint it has "
                        f"{tuple(weight.shape)}.")


def _check_numbers(mine: nn.Module, theirs: nn.Module, video: Tensor, said: str) -> None:
    wanted, theirs_by_part = _answers(theirs, video)
    got, mine_by_part = _answers(mine, video)
    what = f"With {said}, MyEncoder(config)(video) of shape {tuple(video.shape)}"
    for name, answer in theirs_by_part.items():
        own = mine_by_part.get(name)
        if own is None and not any(part.startswith(f"{name}.") for part in mine_by_part):
            raise Wrong(f"{what} never uses {name}.")
        if own is not None and own.shape != answer.shape:
            raise Wrong(f"{what}: {name} gives shape {tuple(own.shape)}; it must be {tuple(answer.shape)}. "
                        f"(Time is halved in the first stages, space in all but the last.)")
        if own is not None and not torch.allclose(own, answer, rtol=1e-3, atol=1e-3):
            raise Wrong(f"{what}: with the checkpoint's weights the first part whose output differs is {name}, by up "
                        f"to {(own - answer).abs().max().item():.2g}. What does it get, and what does it do?")
    if got is None:
        raise Wrong(f"{what} is None; does forward end in return?")
    if not isinstance(got, Tensor) or got.shape != wanted.shape or not torch.allclose(got, wanted, atol=1e-3):
        raise Wrong(f"{what}: every part is right, but what is returned is not the output of conv_out.")


def _answers(encoder: nn.Module, video: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """What the encoder answers, and what each of its parts does, by name, in the order of their answers.

    Left out are norms, as the package's hold the SiLU as well, the convolutions of down-samplings, which may see frames
    as a batch, and containers, which need not be called.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, given, answer: seen.setdefault(name, answer.clone())

    hooks = [part.register_forward_hook(keep(name)) for name, part in encoder.named_modules()
             if name and not isinstance(part, (NormSiLU, nn.GroupNorm, DownConv2d)) and not name.endswith("_block")
             and not name.rpartition(".")[0].endswith("_blocks")]
    try:
        return encoder(video), seen
    finally:
        for hook in hooks:
            hook.remove()
