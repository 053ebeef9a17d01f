"""Models in and out: safetensors, diffusers pipeline folders, and the models that this repository ships."""

import os
from pathlib import Path

from minicogvx.presets import PRESETS
from minicogvx.suggest import did_you_mean


def _data_folder() -> Path:
    """Where models, stored results and clips lie: inside an installed package, or beside it in its repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent / "data"


DATA = _data_folder()


def find_folder(name_or_folder: str | Path) -> Path:
    """The folder of a shipped model, or the folder itself. Raises ValueError, with the names there are, for neither."""
    name = str(name_or_folder)
    if name in shipped():
        return DATA / name
    folder = Path(os.path.expanduser(name_or_folder))  # which leaves the name of a user that there is not
    if name and folder.is_dir():
        return folder
    if name in PRESETS:
        published = PRESETS[name].transformer.text_embed_dim == 4096
        way = "download them as diffusers has them" if published else "train the model first"
        raise ValueError(f"the weights of {name!r} are not shipped; {way}, then give their folder")
    known = " or ".join([*map(repr, shipped()), "an existing folder"])
    raise ValueError(f"there is no model {name!r}; it must be {known} (the presets are {', '.join(PRESETS)})"
                     f"{did_you_mean(name, PRESETS)}")


def shipped() -> list[str]:
    """Names of the models whose weights are in this repository."""
    return sorted(file.parent.name for name in ("model_index", "difference") for file in DATA.glob(f"*/{name}.json"))
