"""torch.compile of the transformer and of the VAE: does it work, how long does it take, how much faster is it?

On a GPU with inductor, PyTorch's compiler. On a CPU with "aot_eager", which traces but generates no code, to test the
check itself.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import TOLERANCE, Row, attempt, judged
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.twins import apart, inputs, joined, loss_and_gradients, mse, random_model, vae_inputs
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

Answer = Callable[[], list[Tensor]]  # runs the model once


def transformer(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """The whole model, compiled as by `finetune`: a forward pass, and a training step."""
    def rows() -> Iterator[Row]:
        model = random_model(ExpertTransformer, sizes.cut, machine.dtype, machine.device)
        x = inputs(sizes.cut, sizes.layers_frames, machine.dtype, machine.device)

        def predict() -> Tensor:
            return model(x.latents, x.timestep, x.text)

        questions = {f"forward, {sizes.cut_label}": _without_gradients(predict),
                     f"training step, {sizes.cut_label}": _with_gradients(model, lambda: mse(predict(), x.target))}
        yield from _compared("compile transformer", machine, [model], questions)

    yield from attempt("compile transformer", machine.numbers, rows)


def vae(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """Encoder and decoder, each compiled as a whole: a decode, and a training step without losses of other networks."""
    def rows() -> Iterator[Row]:
        config = sizes.vae_to_compile
        model = random_model(CausalVAE, config, machine.dtype, machine.device)
        video, latents = vae_inputs(config, sizes.vae_training, machine.dtype, machine.device)

        def loss() -> Tensor:
            return (model.decode(model.encode(video).mean.to(video.dtype)).float() - video.float()).abs().mean()

        frames, height, width = sizes.vae_training
        size = f"{height}x{width}x{frames}, {config.layers_per_block} of {sizes.vae.layers_per_block} blocks a stage"
        questions = {f"decode, {size}": _without_gradients(lambda: model.decode(latents)),
                     f"training step, {size}": _with_gradients(model, loss)}
        yield from _compared("compile vae", machine, [model.encoder, model.decoder], questions)

    yield from attempt("compile vae", machine.numbers, rows)


def _without_gradients(run: Callable[[], Tensor]) -> Answer:
    def answer() -> list[Tensor]:
        with torch.no_grad():
            return [run()]
    return answer


def _with_gradients(model: nn.Module, loss: Callable[[], Tensor]) -> Answer:
    def answer() -> list[Tensor]:
        value, gradients = loss_and_gradients(model, loss)
        return [value, joined(gradients)]
    return answer


def _compared(check: str, machine: Machine, modules: list[nn.Module], questions: dict[str, Answer]) -> Iterator[Row]:
    """Each question before and after compiling `modules` in place; failures are reported in the row."""
    backend = "aot_eager" if machine.device.type == "cpu" else "inductor"
    plain = {part: (machine.timed(answer)[0], machine.timed(answer)[1]) for part, answer in questions.items()}

    def rows(part: str) -> Iterator[Row]:
        result, first, _ = machine.timed(questions[part])  # includes compilation
        _, seconds, memory = machine.timed(questions[part])
        expected, plain_seconds = plain[part]
        yield judged(apart(result, expected), TOLERANCE[machine.numbers], check=check, part=part,
                     numbers=machine.numbers, beside="not compiled", seconds=seconds, other_seconds=plain_seconds,
                     memory=memory, compile_seconds=first - seconds, reason=f"by {backend}")

    try:
        for module in modules:
            module.compile(backend=backend)
        for part in questions:
            yield from attempt(check, machine.numbers, lambda: rows(part), part)
    finally:
        torch.compiler.reset()  # the next check would otherwise count as a recompilation of this one
