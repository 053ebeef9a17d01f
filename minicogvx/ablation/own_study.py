"""A study of one's own: a question, variants as changed fields, steps. In a file:

    from minicogvx.ablation import Study

    study = Study(
        question="Two heads, or one of twice the width?",
        variants={
            "two heads": {},
            "one head": {"num_attention_heads": 1, "attention_head_dim": 64},
        },
        steps=100,
    )

`minicogvx ablate my_study.py --seeds 3` trains it. A study whose variants differ in more than what is asked, in data,
seeds, steps or size, answers another question; it is refused before anything is trained.
"""

import json
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from minicogvx.ablation.comparing import comparison
from minicogvx.ablation.results import Results
from minicogvx.ablation.rows import begin, missing, train_missing
from minicogvx.ablation.studies import TRANSFORMER, TransformerStudy
from minicogvx.ablation.twins_study import TWIN_TRANSFORMER, TwinStudy
from minicogvx.compat import choose_dtype
from minicogvx.presets import TransformerConfig
from minicogvx.suggest import did_you_mean
from minicogvx.transformer.model import ExpertTransformer

# What all variants share: the runs of a seed differ in nothing but the variant.
_SHARED = ("steps", "batch_size", "every", "world", "moved", "clips", "captions", "seed", "seeds", "clips_seed",
           "caption_style", "stages")
_BY_DATA = ("in_channels", "out_channels", "text_embed_dim", "max_text_seq_length", "sample_height", "sample_width",
            "sample_frames", "temporal_compression_ratio")  # decided by the clips
_TRAINING = ("learning_rate", "optimizer", "muon_factor", "schedule", "cooldown", "warmup", "weight_decay", "clip",
             "ema_decay", "text_dropout", "timesteps", "posterior", "open_gates",
             "text_bias_slope")  # of TransformerTraining, in "shapes"
_CONFIG = tuple(each.name for each in fields(TransformerConfig) if each.name not in _BY_DATA)


@dataclass(frozen=True)
class Study:
    """Variants of a small transformer that differ in what is asked, and in nothing else.

    world: "twins", two frames of 4 x 4 tokens of which `moved` have moved, seconds a run (see twins.py); or "shapes",
    latents of the shapes world, minutes a run (see transformers.py), in which variants may also differ in their
    training. Raises ValueError, in one sentence, for variants that cannot be compared.
    """

    question: str
    variants: Mapping[str, Mapping[str, Any]] | Any  # name -> fields that differ from the world's own transformer
    steps: int | float  # of each run; a whole number
    world: str = "twins"
    base: Mapping[str, Any] = field(default_factory=dict)  # fields that differ from it in all variants
    moved: int = 16  # twins: of 16 tokens, how many have moved
    clips: int = 1024  # shapes: of which the last 64 are for validation
    captions: int = 0  # shapes: how many each model is asked to obey at the end
    batch_size: int = 32
    every: int = 10  # steps between measurements
    tolerance: float = 0.03  # by which share the largest variant may have more parameters than the smallest

    def __post_init__(self):
        if not isinstance(self.question, str) or not self.question.strip():
            raise ValueError("question is empty; a study begins with one sentence that ends with a question mark")
        if self.world not in ("twins", "shapes"):
            raise ValueError(f"world is {self.world!r}; it must be 'twins' or 'shapes'")
        for name, least in (("steps", 1), ("batch_size", 1), ("every", 1), ("clips", 65), ("captions", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, {least} or more")
        if not isinstance(self.variants, Mapping) or len(self.variants) < 2:
            raise ValueError("variants must map at least two names to what changes, such as "
                             "{'rope': {}, 'none': {'position': 'none'}}")
        for name, changed in {"base": self.base, **self.variants}.items():
            self._check_fields(name, changed)
        self._check_differences()
        self._check_parameters()

    def _check_fields(self, name: str, changed: Any) -> None:
        if not isinstance(changed, Mapping):
            raise ValueError(f"{name!r} is {changed!r}; it must map fields to values, such as {{'num_layers': 1}}")
        known = _CONFIG + (_TRAINING if self.world == "shapes" else ())
        for key in changed:
            if key in _SHARED:
                raise ValueError(f"{name!r} changes {key}, which all variants must share, or nobody knows which of the "
                                 f"two made the difference; give it to Study, for all of them")
            if key in _BY_DATA:
                raise ValueError(f"{name!r} changes {key}, which the clips decide; all variants must see the same")
            if key in _TRAINING and self.world == "twins":
                raise ValueError(f"{name!r} changes {key}, and the twins have a training of their own; that goes with "
                                 f"world='shapes'")
            if key not in known:
                raise ValueError(f"{name!r} changes {key}, and there is no such field{did_you_mean(key, known)}")

    def _check_differences(self) -> None:
        made = [(self.configs[name], self.training.get(name, {})) for name in self.variants]
        for i, (name, one) in enumerate(zip(self.variants, made)):
            if one in made[:i]:
                other = list(self.variants)[made.index(one)]
                raise ValueError(f"{other!r} and {name!r} do not differ, so with the same seed both give the same "
                                 f"curve; change a field of one")

    def _check_parameters(self) -> None:
        small, large = min(self.parameters, key=self.parameters.get), max(self.parameters, key=self.parameters.get)
        least, most = self.parameters[small], self.parameters[large]
        if most > (1 + self.tolerance) * least:
            apart = 100 * (most / least - 1)
            raise ValueError(f"{large!r} has {most:,} parameters and {small!r} {least:,}, {apart:.0f} % apart, where "
                             f"the tolerance is {100 * self.tolerance:g} %; size alone may decide, so change a width, "
                             f"such as time_embed_dim, until they are equal, or say tolerance=...")

    @cached_property
    def configs(self) -> dict[str, TransformerConfig]:
        """The transformer of each variant."""
        plain, made = TWIN_TRANSFORMER if self.world == "twins" else TRANSFORMER, {}
        for name, changed in self.variants.items():
            try:
                made[name] = replace(plain, **{key: value for key, value in {**self.base, **changed}.items()
                                               if key in _CONFIG})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name!r}: {error}") from error
        return made

    @cached_property
    def training(self) -> dict[str, dict[str, Any]]:
        """What differs in the training of each variant."""
        return {name: {key: value for key, value in {**self.base, **changed}.items() if key in _TRAINING}
                for name, changed in self.variants.items()}

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Of each variant's transformer."""
        with torch.device("meta"):
            return {name: sum(p.numel() for p in ExpertTransformer(config).parameters())
                    for name, config in self.configs.items()}

    @property
    def settings(self) -> str:
        """All that decides the curves, to tell whether a file of results is of this study."""
        deciding = [each.name for each in fields(self) if each.name not in ("question", "tolerance")]
        return json.dumps({name: getattr(self, name) for name in deciding}, sort_keys=True, default=str)

    def named(self, name: str) -> TwinStudy | TransformerStudy:
        """The same as one of the package's studies, called `name`."""
        if self.world == "twins":
            return TwinStudy(name, self.question, self.configs, (self.moved,), self.steps, self.batch_size, self.every,
                             self.settings)
        return TransformerStudy(name, self.question, self.configs, self.steps, self.batch_size, self.every,
                                self.captions, self.training, self.clips, self.settings)


def read_study(path: str | Path) -> Study:
    """The study that a file of one's own defines. Runs the file.

    Raises FileNotFoundError if there is none, and ValueError, in one sentence, for a file that stops or has no study.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; write your study into it, study = Study(...)")
    try:
        found = runpy.run_path(str(path))
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_of(error, path)
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{path}{f', line {line}' if line else ''}: {kind}{error}") from error
    study = found.get("study")
    if not isinstance(study, Study):
        raise ValueError(f"{path} has no study; it must define one, study = Study(...), with Study from "
                         f"minicogvx.ablation")
    return study


def run_study(study: Study, seeds: int, out: str | Path | None = None, device: str = "cpu",
              dtype: torch.dtype | None = None, name: str = "my_study") -> Results:
    """Trains what `out`, a JSON file, lacks of the first `seeds` seeds, and returns all of it.

    out: left out, nothing is kept on disk. `dtype`: of all passes; None: float32 for twins, else the fastest. Raises
    ValueError for fewer than one seed, or a file made with other settings.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; it must be 1 or more")
    named, out = study.named(name), None if out is None else Path(out)
    dtype = choose_dtype(device, dtype or getattr(named, "dtype", None), training=True)
    results = begin(named, seeds, study.steps, str(device), dtype, out, f"{name}.py")
    left = missing(named, results, seeds)
    if left:
        train_missing(named, results, left, comparison(named, device, dtype), out)
    return results


def _line_of(error: Exception, path: Path) -> int | None:
    """The last line of the file itself that an exception came through."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1] if lines else None
