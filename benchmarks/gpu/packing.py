"""Packed attention, whose kernel on a GPU is PyTorch's flex_attention, against the dense model, clip by clip."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu.machine import Machine, in_each_format
from benchmarks.gpu.rows import TOLERANCE, Row, judged
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.twins import apart, joined, loss_and_gradients, random_model
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import forward_clips

Clips = tuple[list[Tensor], Tensor, list[Tensor]]  # latents c t h w each, timesteps, text features n d each


def packed(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """Outputs, loss and gradients of a pack of clips of many sizes, in both dtypes, and the time of a pack."""
    yield from in_each_format("packed", machine, lambda numbers: _packed(machine, sizes, numbers))


def _packed(machine: Machine, sizes: Sizes, numbers: str) -> Iterator[Row]:
    dtype = machine.format(numbers)
    model = random_model(ExpertTransformer, sizes.cut, dtype, machine.device)
    model.gradient_checkpointing = True
    clips = _clips(sizes, dtype, machine.device)
    fields = {"check": "packed", "numbers": numbers, "beside": "dense, clip by clip", "allowed": TOLERANCE[numbers]}
    with torch.no_grad():
        runs = [lambda: forward_clips(model, *clips, kernel="flex"), lambda: _dense(model, clips)]
        (ours, _, _), (dense, _, _) = (machine.timed(run) for run in runs)
        seconds, dense_seconds = (machine.timed(run)[1] for run in runs)  # kernels are compiled by now
    yield judged(apart(ours, dense), part=f"forward, flex, {sizes.cut_label}", seconds=seconds,
                 other_seconds=dense_seconds, **fields)
    # PyTorch has no backward pass of flex_attention on a CPU.
    kernel = "batches" if machine.device.type == "cpu" else "flex"
    yield judged(_training_error(model, clips, kernel), part=f"training step, {kernel}, {sizes.cut_label}", **fields)


def _training_error(model: nn.Module, clips: Clips, kernel: str) -> float:
    """The relative error of loss and gradients."""
    def loss(outputs: list[Tensor]) -> Tensor:
        return torch.stack([output.float().square().mean() for output in outputs]).sum()

    ours, gradients = loss_and_gradients(model, lambda: loss(forward_clips(model, *clips, kernel=kernel)))
    dense, expected = loss_and_gradients(model, lambda: loss(_dense(model, clips)))
    return apart([ours, joined(gradients)], [dense, joined(expected)])


def _dense(model: nn.Module, clips: Clips) -> list[Tensor]:
    return [model(latents[None], time[None], text[None])[0] for latents, time, text in zip(*clips)]


def _clips(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Clips:
    generator, config = torch.Generator().manual_seed(2), sizes.cut

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    latents = [noise(config.in_channels, *size) for *size, _ in sizes.pack]
    times = torch.arange(1, len(latents) + 1, device=device) * 150
    return latents, times, [noise(tokens, config.text_embed_dim) for *_, tokens in sizes.pack]
