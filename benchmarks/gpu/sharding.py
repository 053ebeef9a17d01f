"""FSDP2 with one rank (nccl on CUDA), with the calls of a run on many GPUs, against the plain model."""

import contextlib
import os
import socket
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks.gpu.machine import Machine, in_each_format
from benchmarks.gpu.rows import TOLERANCE, Row, judged
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.twins import Inputs, apart, inputs, joined, loss_and_gradients, mse, random_model, sampled
from minicogvx.engine.ranks import Ranks, leave, ranks
from minicogvx.engine.sharding import wrap
from minicogvx.transformer.model import ExpertTransformer


def fsdp(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """A training step with float32 weights that computes in each format: loss and gradients, seconds and memory."""
    yield from in_each_format("fsdp", machine, lambda numbers: _fsdp(machine, sizes, numbers))


def _fsdp(machine: Machine, sizes: Sizes, numbers: str) -> Iterator[Row]:
    dtype, device = machine.format(numbers), machine.device
    x = inputs(sizes.cut, sizes.layers_frames, dtype, device)
    expected = _of_plain_model(machine, sizes, x, dtype)
    with one_rank(device) as rank:
        model = random_model(ExpertTransformer, sizes.cut, torch.float32, device)
        model.gradient_checkpointing = True
        network = wrap(model, rank, "fsdp", None if dtype == torch.float32 else dtype, blocks=model.transformer_blocks)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

        def backward() -> Tensor:
            optimizer.zero_grad()
            loss = mse(network(x.latents, x.timestep, x.text), x.target)
            loss.backward()
            return loss.detach()

        def step() -> None:
            backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

        error = apart([backward(), joined(_whole_gradients(model))], expected)
        step()  # creates the optimizer's state
        _, seconds, memory = machine.timed(step)
    yield judged(error, TOLERANCE[numbers], check="fsdp", part=f"training step, one rank, {sizes.cut_label}",
                 numbers=numbers, beside="plain model", seconds=seconds, memory=memory)


def _of_plain_model(machine: Machine, sizes: Sizes, x: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """Loss and samples of the gradients without sharding; the model is freed on return."""
    model = random_model(ExpertTransformer, sizes.cut, dtype, machine.device)
    model.gradient_checkpointing = True
    loss, gradients = loss_and_gradients(model, lambda: mse(model(x.latents, x.timestep, x.text), x.target))
    return [loss, joined(gradients)]


def _whole_gradients(model: ExpertTransformer) -> dict[str, Tensor]:
    """Samples of the gradients; each must be a DTensor, or FSDP2 was not active."""
    found = {}
    for name, parameter in model.named_parameters():
        if not isinstance(parameter.grad, DTensor):
            raise TypeError(f"the gradient of {name} is a {type(parameter.grad).__name__}; under FSDP2 it is a DTensor")
        found[name] = sampled(parameter.grad.full_tensor())
    return found


@contextlib.contextmanager
def one_rank(device: torch.device) -> Iterator[Ranks]:
    """Makes this process the only rank of torchrun, and undoes it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": device.index or 0, "LOCAL_WORLD_SIZE": 1,
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: str(value) for name, value in wanted.items()})
    try:
        yield ranks(device.type, timeout=60.0)
    finally:
        leave()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
