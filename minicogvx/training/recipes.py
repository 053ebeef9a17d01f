"""Recipes: every number of a training in one TOML file, such as those in data/recipes."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from minicogvx.data.world.scenes import sample_scenes
from minicogvx.data.world.vocabulary import Scene
from minicogvx.engine.config import from_table
from minicogvx.engine.limits import check_limits
from minicogvx.interop import DATA
from minicogvx.presets import Preset, preset
from minicogvx.ranges import check_number
from minicogvx.suggest import did_you_mean
from minicogvx.training.settings import TransformerTraining, VAETraining

FOLDER = DATA / "recipes"


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: its VAE, if it begins with random weights, then its transformer."""

    preset: str  # sizes, where training begins with random weights
    transformer: TransformerTraining
    vae: VAETraining | None = None  # None: training begins with a given model
    clips: int = 8192  # of the shapes world, encoded once for the transformer
    two_objects: float = 0.0  # share of them with two objects
    circling: float | None = None  # share of those with one object in which it moves in a circle; None: as any motion
    held_back: float = 0.02  # share of the clips, 64 at most, on which the loss is measured
    guidance_scale: float = 3.0  # what the model samples with by default
    sizes: Preset | None = None  # None: those of the preset

    def __post_init__(self):
        check_limits(self, {"clips": "1 or more", "two_objects circling": "from 0 to 1",
                            "held_back": "from 0 to below 1"})
        check_number("guidance_scale", self.guidance_scale, whole=False)

    @property
    def model_sizes(self) -> Preset:
        """The sizes of the model."""
        return self.sizes or preset(self.preset)

    def scenes(self, count: int, seed: int) -> list[Scene]:
        """So many scenes of the shapes world, of the training split, in the mixture that this recipe names."""
        return sample_scenes(count, seed, "train", self.two_objects, circling=self.circling)


def recipe_names() -> tuple[str, ...]:
    """The recipes in data/recipes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_recipe(name: str) -> Recipe:
    """The recipe of this name, or in the TOML file of this path.

    Raises ValueError for an unknown name, and for a file with a wrong field or value, which the sentence names;
    FileNotFoundError.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if path.parent == FOLDER and not path.exists():
        raise ValueError(f"there is no recipe {name!r}; the recipes are {', '.join(recipe_names())}, or name a file "
                         f"that ends in .toml{did_you_mean(name, recipe_names())}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        own = preset(table.get("preset", ""))
        sizes = from_table(Preset, table.pop("sizes"), own, "sizes") if "sizes" in table else None
        return replace(from_table(Recipe, table), sizes=None if sizes == own else sizes)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def without_world(recipe: Recipe, films: bool, given: bool) -> tuple[Recipe, list[str]]:
    """The recipe without what only the shapes world can give, and a line for each thing left out.

    `films`: it learns from films, of which nobody knows what covers a cell. `given`: VAE and text encoder are those of
    a model. With either, captions cannot be phrased anew until they fit into fewer slots of text.
    """
    training, told = recipe.transformer, []
    if films and training.alignment_weight:
        told.append(f"without alignment_weight={training.alignment_weight}: what covers a cell is known of the shapes "
                    f"world only")
        training = replace(training, alignment_weight=0.0, foreground_weight=0.0)
    if (films or given) and any(stage.text_slots for stage in training.stages):
        told.append("without text_slots: only captions of the shapes world, for a text encoder that learns, can be "
                    "phrased anew until they fit")
        training = replace(training, stages=tuple(replace(stage, text_slots=None) for stage in training.stages))
    if given and training.text_bias_slope is not None:
        told.append("without text_bias_slope: the text encoder that is given has learned its biases already")
        training = replace(training, text_bias_slope=None)
    return replace(recipe, transformer=training), told
