"""The expert transformer (paper 2.2): `model.py` is the assembly, `block.py` one block, the other files are the parts.

Apart from these stand the departures for ablations (`variants.py`), clips of many sizes in one sequence (`packed.py`),
one sequence on several GPUs (`sequence_parallel.py`) and kernels for speed (`cpu_attention.py`).
"""
