"""The device of a notebook: one choice for all of them."""

import os

from minicogvx.compat import choose_device


def notebook_device() -> str:
    """The device that MINICOGVX_DEVICE names, else "cpu": the numbers in a notebook's text are those of a CPU.

    Raises ValueError, in one sentence, for a device that PyTorch does not know or does not find here.
    """
    return choose_device() if os.environ.get("MINICOGVX_DEVICE") else "cpu"
