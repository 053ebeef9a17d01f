"""The expert transformer (paper 2.2): `model.py` is the assembly, the other files are its parts."""
