import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minicogvx
from minicogvx import compat

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str) -> str:
    """Run `code` in a new interpreter, because imports happen once in a process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_instant_and_torchvision_imports_after_it():
    answer = run_python(
        "import sys, minicogvx\n"
        "heavy = [name for name in ('torch', 'transformers', 'torchvision', 'av') if name in sys.modules]\n"
        "from transformers import T5EncoderModel\n"
        "import torchvision, lpips, gc\n"
        "gc.collect()\n"
        "import torch\n"
        "state = minicogvx.compat.fix_torchvision()\n"
        "print(heavy, hasattr(torch.ops.torchvision, 'nms'), state in ('fixed', 'whole'))")
    assert answer == "[] True True"


def test_fixing_is_repeatable_and_keeps_its_library():
    first = compat.fix_torchvision()
    assert compat.fix_torchvision() == first
    assert (first == "fixed") == (compat._library is not None)
    compat.fix_torchvision_on_import()
    watchers = [finder for finder in sys.meta_path if type(finder).__name__ == "_TorchvisionWatch"]
    assert len(watchers) == 1


def test_nothing_is_defined_where_torchvision_is_absent_or_its_operators_load(monkeypatch):
    class Whole:
        nms = qnms = object()

    monkeypatch.setattr(torch.library, "Library", lambda *_: pytest.fail("must not define anything"))
    monkeypatch.setattr(compat, "_state", None)
    monkeypatch.setattr(compat.PathFinder, "find_spec", lambda name: None)
    assert compat.fix_torchvision() == "absent"
    monkeypatch.setattr(compat, "_state", None)
    monkeypatch.setattr(torch.ops, "torchvision", Whole, raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", object())
    monkeypatch.setattr(compat.PathFinder, "find_spec", lambda name: SimpleNamespace(origin="/nowhere/__init__.py"))
    assert compat.fix_torchvision() == "whole"


def test_dtype_of_a_processor_and_of_a_gpu(monkeypatch, subtests):
    for flags, dtype in (({"avx2", "avx512f"}, torch.float32), (set(), torch.float32),
                         ({"avx2", "avx512_bf16"}, torch.bfloat16), ({"amx_tile"}, torch.bfloat16)):
        with subtests.test(flags=flags):
            monkeypatch.setattr(compat, "cpu_features", lambda: flags)
            assert compat.choose_dtype("cpu") == dtype
            assert all(flag in compat.explain_dtype("cpu")[1] for flag in flags & {"avx512_bf16", "amx_tile"})
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
        assert compat.choose_dtype("cuda") == dtype


def test_a_device_is_chosen_in_order_and_one_that_is_not_here_is_refused(monkeypatch, subtests):
    for cuda, mps, device in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        assert compat.choose_device() == device
    cases = {"gpu": "'gpu', which is not a device that PyTorch knows; it must be 'cpu'",
             "cuda": "'cuda', and PyTorch finds no such device here; it must be 'cpu'",
             "meta": "'meta', and PyTorch finds no such device here", "cpu:3": ".*the last device here is 'cpu:0'"}
    for asked, told in cases.items():
        with subtests.test(asked):
            monkeypatch.setenv("MINICOGVX_DEVICE", asked)
            assert compat.choose_device("cpu") == "cpu"  # an argument goes before the variable
            with pytest.raises(ValueError, match=f"^MINICOGVX_DEVICE is {told}"):
                compat.choose_device()
            with pytest.raises(ValueError, match=f"^device is {told}"):
                compat.choose_device(asked)


def test_a_number_format_that_will_not_do_is_refused_wherever_it_was_named(monkeypatch, subtests):
    for asked, training, told in (("int8", False, "is 'int8', which is unknown"),
                                  ("float16", False, "is 'float16', which a processor cannot compute in"),
                                  ("float16", True, "is 'float16', which is too narrow for gradients")):
        with subtests.test(asked, training=training):
            monkeypatch.setenv("MINICOGVX_DTYPE", asked)
            assert compat.choose_dtype("cpu", torch.float32) == torch.float32
            with pytest.raises(ValueError, match=f"^MINICOGVX_DTYPE {told}; it must be float32 or bfloat16"):
                compat.choose_dtype("cpu", training=training)
            with pytest.raises(ValueError, match=f"^dtype {told}; it must be float32 or bfloat16"):
                compat.choose_dtype("cpu", asked, training)


def test_a_processor_may_stand_for_an_older_one(monkeypatch, subtests):
    older, newer = ("AVX2", "avx512_core"), ("AVX512_CORE_BF16",)
    for variable, values in {"ONEDNN_MAX_CPU_ISA": (*older, *newer), "ATEN_CPU_CAPABILITY": ("avx2", "avx512")}.items():
        for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
            monkeypatch.delenv(name, raising=False)
        for value in values:
            with subtests.test(variable, value=value):
                monkeypatch.setenv(variable, value)
                assert compat._limited_to_older_processors() == (value not in (*newer, "avx512"))


def test_version_and_unknown_names():
    assert re.fullmatch(r"\d+\.\d+\.\d+", minicogvx.__version__)
    assert "load" in dir(minicogvx)
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        minicogvx.loda


def test_every_core_dependency_has_one_exact_version():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)  # no "+cpu": not on the index
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert len(pinned) == len(lines)
    wanted = re.findall(r'^ *"?([a-z0-9-]+)>=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(wanted) <= pinned and len(wanted) > 15
    torch_pin = next(line for line in lines if line.startswith("torch=="))
    assert torch_pin in (ROOT / "Makefile").read_text() and torch_pin in (ROOT / "environment.yml").read_text()
