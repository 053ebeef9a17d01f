"""Differences between machines: a torchvision whose operators do not load, the device, the dtype."""

import importlib.abc
import os
import platform
import sys
from contextlib import nullcontext
from importlib.machinery import PathFinder
from pathlib import Path

from minicogvx.suggest import did_you_mean

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = None  # the schemas exist as long as this object
_state = None  # the result of fix_torchvision, which runs once


def fix_torchvision() -> str:
    """Make `import torchvision` work even if its compiled operators cannot be loaded.

    PyPI has only torchvision's CUDA build. With a CPU torch its operators do not load, and torchvision, lpips,
    diffusers and half of transformers fail with "operator torchvision::nms does not exist". For our purposes none of
    them calls these operators: it is enough to define their schemas.

    Returns "absent" (no torchvision), "whole" (its operators load; nothing done) or "fixed".
    """
    global _library, _state
    if _state is None:
        spec = PathFinder.find_spec("torchvision")  # not importlib.util's, which would call our own finder below
        if spec is None or spec.origin is None:
            return "absent"
        import torch

        # Load first: if the operators do load, our schemas would clash with theirs.
        if "torchvision" not in sys.modules:
            _load_operators(torch, Path(spec.origin).parent)
        missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
        if missing:
            _library = torch.library.Library("torchvision", "FRAGMENT")
            for name in missing:
                _library.define(_SCHEMAS[name])
        _state = "fixed" if missing else "whole"
    return _state


def _load_operators(torch, folder: Path) -> None:
    for file in sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")]):
        try:
            torch.ops.load_library(str(file))
        except (OSError, RuntimeError):
            pass  # the wrong build: the case to fix


class _TorchvisionWatch(importlib.abc.MetaPathFinder):
    """Calls fix_torchvision just before torchvision is imported; finds no module itself."""

    def find_spec(self, fullname, path=None, target=None):
        """Always None, so that the other finders are used."""
        if fullname == "torchvision":
            fix_torchvision()
        return None


def fix_torchvision_on_import() -> None:
    """Arrange for `fix_torchvision` to run when torchvision is first imported: `import minicogvx` stays instant."""
    if not any(type(finder).__name__ == "_TorchvisionWatch" for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionWatch())


def choose_device(asked: str | None = None) -> str:
    """The device to compute on: the one `asked` for, else MINICOGVX_DEVICE, else the fastest here (cuda, mps, cpu).

    Raises ValueError, in one sentence, for a device that PyTorch does not know or does not find here.
    """
    import torch

    name, source = _asked(asked, "device", "MINICOGVX_DEVICE")
    there = [kind for kind in ("cuda", "mps") if _is_available(torch, kind)] + ["cpu"]
    if name is None:
        return there[0]
    valid = " or ".join(map(repr, there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{source} is {name!r}, which is not a device that PyTorch knows; it must be {valid}"
                         f"{did_you_mean(name, there)}") from None
    if device.type == "meta" or not _is_available(torch, device.type):
        raise ValueError(f"{source} is {name!r}, and PyTorch finds no such device here; it must be {valid}")
    count = 1 if device.type in ("cpu", "mps") else torch.get_device_module(device.type).device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"{source} is {name!r}, and the last device here is '{device.type}:{count - 1}'")
    return name


def _is_available(torch, kind: str) -> bool:
    if kind == "cpu":
        return True
    if kind == "mps":
        return torch.backends.mps.is_available()
    module = getattr(torch, kind, None)
    return module is not None and getattr(module, "is_available", lambda: False)()


def _asked(asked: str | None, name: str, variable: str) -> tuple[str | None, str]:
    """The requested value (None: none) and its source, an argument or an environment variable."""
    if asked is not None:
        return str(asked), name
    return os.environ.get(variable) or None, variable


def choose_dtype(device=None, asked=None, training: bool = False):
    """The torch dtype to compute in on `device` (None: the one that `choose_device` names). See `explain_dtype`."""
    return explain_dtype(device, asked, training)[0]


def explain_dtype(device=None, asked=None, training: bool = False):
    """(dtype, reason): the dtype `asked` for, else MINICOGVX_DTYPE, else the fastest of the device.

    The fastest is bfloat16 if the device multiplies matrices in it, otherwise float32: a CPU without avx512_bf16 or AMX
    emulates bfloat16, fifty times slower than float32. `device`: a name or a torch.device; `asked`: a name or a
    torch.dtype. Raises ValueError, in one sentence, for a dtype that is unknown or in which the device cannot compute,
    and with `training` for float16, whose gradients underflow.
    """
    import torch

    kind = torch.device(choose_device() if device is None else device).type
    fastest, reason = fastest_dtype(kind)
    name, source = _asked(None if asked is None else str(asked).removeprefix("torch."), "dtype", "MINICOGVX_DTYPE")
    if name is None:
        return fastest, reason
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    valid = [each for each in formats if _computes_in(torch, kind, each) and not (training and each == "float16")]
    if name not in valid:
        why = ("is unknown" if name not in formats else "is too narrow for gradients" if training and name == "float16"
               else f"{_place(kind)} cannot compute in")
        raise ValueError(f"{source} is {name!r}, which {why}; it must be {' or '.join(valid)}")
    if kind == "cpu" and name == "bfloat16" and fastest != torch.bfloat16:
        return formats[name], "asked for; this CPU emulates it, about fifty times slower than float32"
    return formats[name], "asked for"


def _place(kind: str) -> str:
    return {"cpu": "a processor", "cuda": "this GPU", "mps": "this GPU"}.get(kind, kind)


def _computes_in(torch, kind: str, name: str) -> bool:
    if name == "float16":
        return kind != "cpu"
    return name != "bfloat16" or kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def fastest_dtype(kind: str):
    """(dtype, reason): the dtype in which devices of this kind, such as "cpu", multiply matrices fastest."""
    import torch

    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes in bfloat16"
        return torch.float32, "this GPU has no bfloat16 (it came with compute capability 8.0)"
    if kind == "mps":
        return torch.bfloat16, "Apple GPUs compute in bfloat16 and it halves the memory"
    if kind != "cpu":
        return torch.float32, f"float32 is the safe choice on {kind}"
    found = sorted(cpu_features() & {"avx512_bf16", "amx_bf16", "amx_tile"})
    if found:
        return torch.bfloat16, f"this CPU has {', '.join(found)}"
    return torch.float32, "this CPU has neither avx512_bf16 nor amx, and would emulate bfloat16 slowly"


def products_in(dtype, device):
    """While open, matrix products on `device` are in this torch dtype if it has 16 bits, also with float32 weights.

    For other dtypes it changes nothing, so that an outer autocast stays in force.
    """
    import torch

    if dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype)


def cpu_features() -> set[str]:
    """Names of the CPU's instruction sets that PyTorch may use, as in /proc/cpuinfo; empty if unknown.

    ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY disable newer ones, to simulate an older machine.
    """
    if _limited_to_older_processors():
        return set()
    if platform.system() == "Linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    import torch

    probes = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_tile": "_is_amx_tile_supported"}
    return {name for name, probe in probes.items() if getattr(torch.cpu, probe, lambda: False)()}


def _limited_to_older_processors() -> bool:
    """Whether environment variables restrict PyTorch to instruction sets without 16-bit arithmetic."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    older = limit.startswith(("SSE", "AVX2")) or limit in ("AVX", "AVX512_CORE", "AVX512_CORE_VNNI")
    return older or os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2")
