"""The checks of `python -m benchmarks.check_gpu`, with random weights at the published sizes."""
