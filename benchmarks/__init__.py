"""minicogvx against diffusers: the same weights, on this machine, in one run. `python -m benchmarks`, see README.md."""

from minicogvx.compat import fix_torchvision_on_import

fix_torchvision_on_import()  # before any benchmark imports diffusers
