"""`minicogvx memory`: what a training step needs on each GPU, by number of GPUs and sharding."""

import argparse
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Prints the table, or with --check holds the arithmetic to a real step on this CPU."""
    parser = argparse.ArgumentParser(prog="minicogvx memory",
                                     description="GiB on each GPU that training a transformer takes: worked out from "
                                                 "shapes, in seconds, on any machine.")
    parser.add_argument("preset", help="which size, such as 5b")
    parser.add_argument("--height", type=int, metavar="PIXELS")
    parser.add_argument("--width", type=int, metavar="PIXELS")
    parser.add_argument("--frames", type=int, metavar="N", help="4k + 1 (default: the preset's own)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="clips on each GPU (default: 1)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64], metavar="N")
    parser.add_argument("--parts", type=int, default=8, metavar="N", help="GPUs to show the parts for (default: 8)")
    parser.add_argument("--check", action="store_true", help="no table, but one real float32 step on this CPU")
    arguments = parser.parse_args(argv)
    from minicogvx.presets import preset
    from minicogvx.training.memory import inputs_for

    sizes = preset(arguments.preset)
    inputs = inputs_for(sizes, arguments.height, arguments.width, arguments.frames, arguments.batch)
    for gpus in (*arguments.gpus, arguments.parts):
        if gpus < 1:
            raise ValueError(f"the number of GPUs is {gpus}; it must be 1 or more")
    if arguments.check:
        return _check(sizes, inputs)
    _print_table(sizes, inputs, arguments.gpus, arguments.parts)
    return 0


def _print_table(sizes, inputs, gpus, parts) -> None:
    from minicogvx.training.memory import SHARDINGS, memory

    config = sizes.transformer
    table = {(sharding, n): memory(config, inputs, n, sharding) for sharding in SHARDINGS for n in {*gpus, parts}}
    patch = config.patch_size**2 * (config.patch_size_t or 1)
    tokens = inputs.frames * inputs.height * inputs.width // patch + inputs.text
    print(f"{sizes.name}: on each GPU {inputs.batch} x latents {config.in_channels}x{inputs.frames}x{inputs.height}x"
          f"{inputs.width}, {tokens:,} tokens; weights and AdamW float32, computing in bfloat16\n")
    print(f"{'GiB on each GPU':25}" + "".join(f"{n:>9}" for n in gpus) + "   GPUs")
    for sharding in SHARDINGS:
        print(f"{sharding:25}" + "".join(f"{_gib(table[sharding, n].total):>9}" for n in gpus))
    print(f"\n{f'of which on {parts} GPUs':25}" + "".join(f"{name:>12}" for name in _PARTS))
    for sharding in SHARDINGS:
        print(f"{sharding:25}" + "".join(f"{_gib(getattr(table[sharding, parts], name)):>12}" for name in _PARTS))


_PARTS = ("parameters", "gradients", "optimizer", "gathered", "activations", "host")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"


# ---- the check


def _check(sizes, inputs) -> int:
    from minicogvx.training.memory import activations_of, memory

    import torch

    expected = memory(sizes.transformer, inputs, 1, "replicate", torch.float32)
    kept = activations_of(sizes.transformer, inputs, dtype=torch.float32).kept
    real = real_step(sizes.transformer, inputs)
    wrong = False
    for name, worked_out in (("parameters", expected.parameters), ("gradients", expected.gradients),
                             ("optimizer", expected.optimizer), ("activations kept", kept)):
        tolerance = 0.05 if name == "activations kept" else 0.0
        off = real[name] / worked_out - 1
        wrong |= abs(off) > tolerance
        print(f"{name:17} worked out {worked_out:>15,} bytes, in a real step {real[name]:>15,} ({off:+.1%}, "
              f"at most {tolerance:.0%})")
    return int(wrong)


def real_step(config, inputs) -> dict[str, int]:
    """Bytes of one step in float32 on the CPU: tensors by size, activations by what the process grows. Linux only."""
    import ctypes
    import gc

    import torch

    from minicogvx.training.memory import Inputs
    from minicogvx.transformer.model import ExpertTransformer

    if not Path("/proc/self/status").exists():
        raise ValueError("--check reads /proc/self/status; it must run on Linux")
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: freed blocks go back at once, so growth is what is held
    model = ExpertTransformer(config)
    optimizer = torch.optim.AdamW(model.parameters())

    def loss(inputs: Inputs) -> torch.Tensor:
        latents = torch.randn(inputs.batch, config.in_channels, inputs.frames, inputs.height, inputs.width)
        ofs = torch.ones(inputs.batch) if config.ofs_embed_dim else None
        text = torch.randn(inputs.batch, inputs.text, config.text_embed_dim)
        return model(latents, torch.arange(inputs.batch), text, ofs).square().mean()

    loss(inputs).backward()  # loads kernels, makes tables, and gradients, which the next pass keeps
    optimizer.step()
    gc.collect()
    before = _resident()
    value = loss(inputs)
    kept = _resident() - before
    value.backward()
    state = [v for held in optimizer.state.values() for name, v in held.items() if name != "step"]
    grads = [p.grad for p in model.parameters()]
    sizes = (sum(tensor.nbytes for tensor in tensors) for tensors in (list(model.parameters()), grads, state))
    return dict(zip(("parameters", "gradients", "optimizer"), sizes)) | {"activations kept": kept}


def _resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
