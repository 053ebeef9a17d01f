"""`minicogvx memory`: what training, LoRA and generating a video need on each GPU, and how long the last two take."""

from importlib.util import find_spec
from pathlib import Path

from minicogvx.parsing import Parser, one_of, whole
from minicogvx.presets import PRESETS, preset
from minicogvx.ranges import RANGES

_SIDE, _GPUS = whole(*RANGES["sample_height"]), whole(1, 1_000_000)


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; with --check compares the estimate with a real step."""
    arguments = _parser().parse_args(argv)
    import torch

    from minicogvx.training.memory import inputs_for

    sizes = preset(arguments.preset)
    inputs = inputs_for(sizes, arguments.height, arguments.width, arguments.frames, arguments.batch)
    if not 1 <= arguments.lora <= sizes.transformer.width:
        raise ValueError(f"lora is {arguments.lora}; it must be from 1 to {sizes.transformer.width}, the model's width")
    dtype = getattr(torch, arguments.dtype or ("float32" if arguments.check else "bfloat16"))
    if arguments.check:
        return _check(sizes, inputs, _place(arguments.device, dtype), dtype)
    if arguments.device:
        raise ValueError(f"device is {arguments.device!r}; it goes with --check, as the tables are for any GPU")
    _print_training(sizes, inputs, arguments.gpus, arguments.parts, dtype)
    _print_lora(sizes, inputs, arguments.lora, dtype)
    _print_generating(sizes, inputs, dtype)
    _print_devices(sizes, inputs, arguments)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx memory",
                    description="GiB on each GPU for training a transformer, training adapters and generating a video, "
                                "and how long the last two take on common GPUs: computed from shapes, in seconds, on "
                                "any machine.")
    parser.add_argument("preset", type=one_of(PRESETS, "preset", "presets"), metavar="PRESET",
                        help=f"which size: {', '.join(PRESETS)}")
    parser.add_argument("--height", type=_SIDE, metavar="PIXELS", help="default: the preset's own")
    parser.add_argument("--width", type=_SIDE, metavar="PIXELS", help="default: the preset's own")
    parser.add_argument("--frames", type=whole(*RANGES["sample_frames"]), metavar="N",
                        help="4k + 1 (default: the preset's own)")
    parser.add_argument("--batch", type=whole(1, 65_536), default=1, metavar="N", help="clips on each GPU (default: 1)")
    parser.add_argument("--gpus", type=_GPUS, nargs="+", default=[1, 2, 4, 8, 16, 64], metavar="N",
                        help="numbers of GPUs, one column each (default: 1 2 4 8 16 64)")
    parser.add_argument("--parts", type=_GPUS, default=8, metavar="N",
                        help="number of GPUs for the breakdown (default: 8)")
    parser.add_argument("--lora", type=whole(), default=64, metavar="RANK", help="of the adapters (default: 64)")
    parser.add_argument("--steps", type=whole(1, 1000), default=50, metavar="N", help="of the video (default: 50)")
    parser.add_argument("--unguided", action="store_true", help="the video without guidance, which takes half the time")
    parser.add_argument("--dtype", type=one_of(("float32", "bfloat16")), metavar="float32|bfloat16",
                        help="what networks compute in (default: bfloat16; with --check float32)")
    parser.add_argument("--check", action="store_true", help="no tables: compare the estimate with one real step")
    parser.add_argument("--device", metavar="cpu|cuda", help="with --check: where (default: cpu)")
    return parser


def _print_training(sizes, inputs, gpus, parts, dtype) -> None:
    from minicogvx.training.memory import SHARDINGS, memory

    config = sizes.transformer
    table = {(how, n): memory(config, inputs, n, how, dtype) for how in SHARDINGS for n in {*gpus, parts}}
    tokens = config.num_patches((inputs.frames, inputs.height, inputs.width)) + inputs.text
    print(f"{sizes.name}: on each GPU {inputs.batch} x latents {config.in_channels}x{inputs.frames}x{inputs.height}x"
          f"{inputs.width}, {tokens:,} tokens; weights and AdamW float32, computing in {_name(dtype)}\n")
    print(f"{'GiB on each GPU':25}" + "".join(f"{n:>9}" for n in gpus) + "   GPUs")
    for sharding in SHARDINGS:
        print(f"{sharding:25}" + "".join(f"{_gib(table[sharding, n].total):>9}" for n in gpus))
    print(f"\n{f'of which on {parts} GPUs':25}" + "".join(f"{name:>12}" for name in _PARTS))
    for sharding in SHARDINGS:
        print(f"{sharding:25}" + "".join(f"{_gib(getattr(table[sharding, parts], name)):>12}" for name in _PARTS))


_PARTS = ("parameters", "gradients", "optimizer", "gathered", "activations", "host")


def _print_lora(sizes, inputs, rank: int, dtype) -> None:
    """The rows of LoRA, and whether `minicogvx finetune` recomputes activations by default."""
    from minicogvx.training.memory import memory_of_lora, parameter_count
    from minicogvx.training.transformer import LARGE

    of_lora = ("parameters", "gradients", "optimizer", "activations")
    print(f"\n{f'LoRA, rank {rank}':25}{'GiB on each GPU':>17}" + "".join(f"{name:>12}" for name in of_lora))
    if find_spec("peft") is None:
        print("not counted: it needs the peft package (pip install peft)")
        return
    for name, checkpointing in (("lora", False), ("lora+checkpoint", True)):
        need = memory_of_lora(sizes.transformer, inputs, rank, checkpointing, dtype)
        print(f"{name:25}{_gib(need.total):>17}" + "".join(f"{_gib(getattr(need, part)):>12}" for part in of_lora))
    large = parameter_count(sizes.transformer) >= LARGE
    print(f"finetune recomputes activations of this model (+checkpoint) {'unless' if large else 'only with'} "
          f"--set gradient_checkpointing={not large}")


def _print_generating(sizes, inputs, dtype) -> None:
    from minicogvx.training.memory_generating import generating

    need = generating(sizes, inputs, dtype)
    print(f"\n{'making a video, GiB':25}{'weights':>12}{'at work':>12}")
    for name, part in (("text encoder", need.text), ("transformer", need.transformer), ("VAE", need.vae),
                       ("VAE, --tile", need.tiled)):
        print(f"{name:25}{_gib(part.weights):>12}{_gib(part.work):>12}")
    print(f"{'at the highest point':25}{'whole':>12}{'--tile':>12}")
    for name, offload in (("all on the GPU", False), ("--offload", True)):
        print(f"{name:25}" + "".join(f"{_gib(need.peak(tile, offload)):>12}" for tile in (False, True)))


def _print_devices(sizes, inputs, arguments) -> None:
    """Of common GPUs, not of this machine: which way of making a video fits, and how long it takes."""
    from minicogvx.training.devices import DEVICES, say_seconds
    from minicogvx.training.memory import parameter_count
    from minicogvx.training.plan import SHARE_OF_PASS, lora_step, plan
    from minicogvx.training.transformer import LARGE

    if parameter_count(sizes.transformer) < LARGE:
        print("\nno times: so small a model waits for kernels to start, and for the rest see minicogvx doctor")
        return
    print(f"\n{'one GPU, in bfloat16':25}{'a video':>12}{'with':>19}{'a step of LoRA':>18}")
    for device in DEVICES.values():
        video = plan(sizes, inputs, device, arguments.steps, not arguments.unguided)
        told = say_seconds(video.seconds), video.way or "does not fit"
        step = "needs peft"
        if find_spec("peft") is not None:
            seconds, _, fits = lora_step(sizes, inputs, device, arguments.lora)
            step = say_seconds(seconds) if fits else "does not fit"
        print(f"{f'{device.name}, {device.memory // 2**30} GB':25}{told[0]:>12}{told[1]:>19}{step:>18}")
    print(f"not measured: worked out for {SHARE_OF_PASS:.0%} of each GPU's peak, which is what the paper's tables show "
          f"of the H800;\nother GPUs may reach twice that share (the authors' README implies 59% for an A100)")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}" if count >= 2**30 or not count else f"{count / 2**30:.3f}"


def _name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the check


def _place(asked: str | None, dtype) -> str:
    """The device of the check. Raises ValueError for one whose memory cannot be compared."""
    from minicogvx.compat import choose_device, choose_dtype

    device = choose_device(asked or "cpu")
    choose_dtype(device, dtype)
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; with --check it must be 'cpu' or 'cuda', whose memory can be read")
    if device == "cpu" and _name(dtype) != "float32":
        raise ValueError(f"dtype is {_name(dtype)!r}; with --check on the processor it must be float32, as its kernels "
                         f"keep other things in 16 bits than those of a GPU")
    return device


def _check(sizes, inputs, device: str, dtype) -> int:
    from minicogvx.training.memory import activations_of, parameter_count

    count = parameter_count(sizes.transformer) * dtype.itemsize
    kept = activations_of(sizes.transformer, inputs, dtype=dtype).kept
    real = real_step(sizes.transformer, inputs, device, dtype)
    wrong = False
    for name, worked_out in (("parameters", count), ("gradients", count), ("optimizer", 2 * count),
                             ("activations kept", kept)):
        tolerance = 0.05 if name == "activations kept" else 0.0
        off = real[name] / worked_out - 1
        wrong |= abs(off) > tolerance
        print(f"{name:17} worked out {worked_out:>15,} bytes, in a real step {real[name]:>15,} ({off:+.1%}, "
              f"at most {tolerance:.0%})")
    return int(wrong)


def real_step(config, inputs, device: str = "cpu", dtype=None) -> dict[str, int]:
    """Bytes of one step with all weights in `dtype` (None: float32): tensors by size, activations by memory growth.

    On the CPU that is the memory of the process, on Linux only; on CUDA, PyTorch's allocations.
    """
    import gc

    import torch

    from minicogvx.training.memory import Inputs
    from minicogvx.transformer.model import ExpertTransformer

    used = _meter(device)
    model = ExpertTransformer(config).to(device, dtype or torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())

    def loss(inputs: Inputs) -> torch.Tensor:
        like = model.proj_out.weight
        latents = like.new_empty(inputs.batch, config.in_channels, inputs.frames, inputs.height, inputs.width).normal_()
        ofs = like.new_ones(inputs.batch) if config.ofs_embed_dim else None
        text = like.new_empty(inputs.batch, inputs.text, config.text_embed_dim).normal_()
        return model(latents, torch.arange(inputs.batch, device=device), text, ofs).square().mean()

    loss(inputs).backward()  # loads kernels and allocates tables and gradients, which the next pass reuses
    optimizer.step()
    gc.collect()
    before = used()
    value = loss(inputs)
    kept = used() - before
    value.backward()
    state = [v for held in optimizer.state.values() for name, v in held.items() if name != "step"]
    grads = [p.grad for p in model.parameters()]
    sizes = (sum(tensor.nbytes for tensor in tensors) for tensors in (list(model.parameters()), grads, state))
    return dict(zip(("parameters", "gradients", "optimizer"), sizes)) | {"activations kept": kept}


def _meter(device: str):
    """A function that returns the bytes in use on `device`."""
    if device != "cpu":
        import torch

        return lambda: torch.cuda.memory_allocated(device)
    if not Path("/proc/self/status").exists():
        raise ValueError("--check reads /proc/self/status; it must run on Linux, or with --device cuda")
    import ctypes

    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: freed blocks are returned at once: growth is use
    return _resident


def _resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
