"""Models in and out: safetensors, diffusers pipeline folders, and the models that this repository ships."""

from pathlib import Path

import torch

from minicogvx.presets import PRESETS

DATA = Path(__file__).resolve().parents[2] / "data"  # of the repository; absent where only the package was installed


def load(name_or_folder: str | Path, device: torch.device | str | None = None,
         dtype: torch.dtype | None = None) -> "minicogvx.pipeline.Pipeline":  # noqa: F821
    """Open a shipped model by name, such as "toy", or any diffusers CogVideoX folder.

    `device` None: the fastest here. `dtype` None: the number format that this device computes in fastest.
    Raises ValueError for a name that is neither, FileNotFoundError or ValueError for a folder that does not fit.
    """
    folder = find_folder(name_or_folder)
    from minicogvx.compat import choose_device, choose_dtype
    from minicogvx.interop.diffusers import load_pipeline

    device = torch.device(device or choose_device())
    return load_pipeline(folder, device, dtype or choose_dtype(device.type))


def find_folder(name_or_folder: str | Path) -> Path:
    """The folder of a shipped model, or the folder itself. Raises ValueError, with the names there are, for neither."""
    name = str(name_or_folder)
    if name in shipped():
        return DATA / name
    folder = Path(name_or_folder).expanduser()
    if name and folder.is_dir():
        return folder
    if name in PRESETS:
        published = PRESETS[name].transformer.text_embed_dim == 4096
        way = "download them as diffusers has them" if published else "train the model first"
        raise ValueError(f"the weights of {name!r} are not shipped; {way}, then give their folder")
    known = " or ".join([*map(repr, shipped()), "an existing folder"])
    raise ValueError(f"there is no model {name!r}; it must be {known} (the presets are {', '.join(PRESETS)})")


def shipped() -> list[str]:
    """Names of the models whose weights are in this repository."""
    return sorted(index.parent.name for index in DATA.glob("*/model_index.json"))
