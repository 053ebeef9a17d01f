"""minicogvx: CogVideoX, a text-to-video diffusion model, small enough to train and to read on a laptop.

    import minicogvx
    pipe = minicogvx.load("toy")
    video = pipe("a red circle moves right")  # t h w 3, in 0..1
"""

from minicogvx.compat import fix_torchvision_on_import

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

fix_torchvision_on_import()


def __getattr__(name: str):
    # `load` imports torch, which takes seconds, so it is imported on first use.
    if name == "load":
        from minicogvx.pipeline import Pipeline

        return Pipeline.load
    raise AttributeError(f"module 'minicogvx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "load"])
