"""Features of 600 drawn clips of the shapes world, kept in `data/results`, to compare a few clips with many.

    python -m minicogvx.evaluation.world_features     # computes them anew, in some minutes: when the toy has changed

The file keeps the 64 directions in which the features vary most, in 16 bits.
"""

import base64
import json
import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import Scene, sample_scenes
from minicogvx.evaluation.features import clip_features
from minicogvx.files import written_whole
from minicogvx.interop import DATA
from minicogvx.pipeline import Pipeline

FILE = "world-features.json"
COUNT, SEED, KEPT = 600, 11, 64  # clips, their seed, and the directions that are kept
_AT_ONCE = 32


@dataclass(frozen=True)
class WorldFeatures:
    """The scenes (training split, one object each) and their features, along the directions that vary most."""

    scenes: list[Scene]
    features: Float[Tensor, "n k"]
    centre: Float[Tensor, " d"]
    directions: Float[Tensor, "k d"]

    def along(self, features: Float[Tensor, "m d"]) -> Float[Tensor, "m k"]:
        """Features of other clips (`clip_features` of the toy) along the same directions."""
        return (features - self.centre) @ self.directions.mT


def load_world_features() -> WorldFeatures:
    """What is stored. Raises FileNotFoundError where it is missing."""
    kept = json.loads((DATA / "results" / FILE).read_text(encoding="utf-8"))
    numbers = {name: torch.frombuffer(bytearray(base64.b64decode(code)), dtype=torch.float16).float()
               for name, code in kept["numbers"].items()}
    return WorldFeatures(world_scenes(), numbers["features"].view(COUNT, KEPT), numbers["centre"],
                         numbers["directions"].view(KEPT, -1))


def world_scenes() -> list[Scene]:
    """The scenes whose features are stored."""
    return sample_scenes(COUNT, SEED, two_objects=0.0)


def write_world_features(pipe: Pipeline) -> None:
    """Computes and writes them."""
    scenes, frames = world_scenes(), pipe.video_size
    batches = tqdm(range(0, COUNT, _AT_ONCE), desc="features")
    found = torch.cat([clip_features(pipe, render_batch(scenes[i:i + _AT_ONCE], *frames)) for i in batches])
    centre = found.mean(dim=0)
    directions = torch.linalg.svd(found - centre, full_matrices=False).Vh[:KEPT]
    numbers = {"features": (found - centre) @ directions.mT, "centre": centre, "directions": directions}
    coded = {name: base64.b64encode(each.half().contiguous().numpy().tobytes()).decode()
             for name, each in numbers.items()}
    content = {"what": __doc__.split("\n")[0], "clips": COUNT, "seed": SEED, "numbers": coded}
    with written_whole(DATA / "results" / FILE) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Writes the file, in float32."""
    write_world_features(Pipeline.load("toy", dtype="float32"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
