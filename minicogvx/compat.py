"""What differs between machines: a torchvision that cannot load its operators, the device, the number format."""

import importlib.abc
import platform
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = None  # torch forgets the schemas when this object dies
_state = None  # what mend_torchvision found, so that it looks once


def mend_torchvision() -> str:
    """Let `import torchvision` succeed where its compiled operators cannot load.

    The package index has only torchvision's CUDA build. Beside a CPU torch its operators do not load, and then
    torchvision, lpips, diffusers and half of transformers fail with "operator torchvision::nms does not exist".
    None of them calls those operators for our purposes: it is enough that their schemas exist.

    Returns "absent" (no torchvision), "whole" (its operators load; nothing done) or "mended".
    """
    global _library, _state
    if _state is None:
        spec = PathFinder.find_spec("torchvision")  # not importlib.util's, which would ask our own watch below
        if spec is None or spec.origin is None:
            return "absent"
        import torch

        # Load first, define second: where the operators do load, schemas of ours would clash with theirs.
        if "torchvision" not in sys.modules:
            _load_operators(torch, Path(spec.origin).parent)
        missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
        if missing:
            _library = torch.library.Library("torchvision", "FRAGMENT")
            for name in missing:
                _library.define(_SCHEMAS[name])
        _state = "mended" if missing else "whole"
    return _state


def _load_operators(torch, folder: Path) -> None:
    for file in sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dylib")]):
        try:
            torch.ops.load_library(str(file))
        except (OSError, RuntimeError):
            pass  # the wrong build: this is the case to mend


class _TorchvisionWatch(importlib.abc.MetaPathFinder):
    """Calls mend_torchvision just before somebody imports torchvision; finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        """Always None, so that the ordinary finders go on."""
        if fullname == "torchvision":
            mend_torchvision()
        return None


def mend_torchvision_on_import() -> None:
    """Arrange for `mend_torchvision` to run when torchvision is first imported: `import minicogvx` stays instant."""
    if not any(type(finder).__name__ == "_TorchvisionWatch" for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionWatch())


def choose_device() -> str:
    """The fastest device here: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_dtype(device: str | None = None):
    """The torch dtype to compute in on `device` (None: the one that `choose_device` names). See `explain_dtype`."""
    return explain_dtype(device)[0]


def explain_dtype(device: str | None = None):
    """(dtype, reason): bfloat16 where `device` multiplies matrices faster in it, float32 elsewhere."""
    import torch

    kind = torch.device(device or choose_device()).type
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


def cpu_features() -> set[str]:
    """Names of the CPU's instruction sets, spelled as in /proc/cpuinfo; empty where they cannot be read."""
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
