"""Library and commands work on another device than the CPU: runs tests/stand_in_cases.py in its own process.

The notebooks have test_solved_notebooks.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minicogvx.course import notebook_device

ROOT = Path(__file__).resolve().parents[1]


def test_everything_works_on_the_stand_in_device():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.stand_in", "-p", "no:cacheprovider",
               "tests/stand_in_cases.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env=os.environ | {"MINICOGVX_DEVICE": "stand_in"})
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_notebooks_compute_on_the_processor_unless_another_device_that_is_here_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("MINICOGVX_DEVICE", raising=False)
    assert notebook_device() == "cpu"
    for asked in ("", "cpu"):
        monkeypatch.setenv("MINICOGVX_DEVICE", asked)
        assert notebook_device() == "cpu"
    monkeypatch.setenv("MINICOGVX_DEVICE", "typewriter")
    with pytest.raises(ValueError, match="^MINICOGVX_DEVICE is 'typewriter', which is not a device"):
        notebook_device()
