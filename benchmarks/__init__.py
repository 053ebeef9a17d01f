"""minicogvx against diffusers: the same weights, on this machine, in one run. `python -m benchmarks`, see README.md."""
