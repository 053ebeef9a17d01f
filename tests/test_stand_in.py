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


@pytest.mark.parametrize("asked, device", [(None, "cpu"), ("", "cpu"), ("cpu", "cpu")])
def test_notebooks_compute_on_the_processor_by_default(monkeypatch, asked, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    if asked is None:
        monkeypatch.delenv("MINICOGVX_DEVICE", raising=False)
    else:
        monkeypatch.setenv("MINICOGVX_DEVICE", asked)
    assert notebook_device() == device


def test_a_device_that_is_not_there_is_reported_in_one_sentence(monkeypatch):
    monkeypatch.setenv("MINICOGVX_DEVICE", "typewriter")
    with pytest.raises(ValueError, match="^MINICOGVX_DEVICE is 'typewriter', which is not a device"):
        notebook_device()
