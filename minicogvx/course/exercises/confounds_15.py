"""Checks of notebook 15: what else differs between two variants, and a width that makes two networks equally large."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from minicogvx.course.exercises.exercise import Wrong
from minicogvx.course.exercises.seeds_15 import as_number
from minicogvx.presets import TransformerConfig
from minicogvx.transformer.model import ExpertTransformer

TOLERANCE = 0.03  # parameters may differ by so much
Runs = Sequence[dict[str, Any]]

# ---- 15.5 confounds


def differing_fields(runs: Runs, asked: str) -> set[str]:
    """The fields of `runs`, besides "variant" and `asked`, whose values are not the same for all variants.

    Values are compared as a set over the runs of a variant, so that order does not matter. Of "parameters" the largest
    may be 3 % above the smallest.
    """
    found, variants = set(), {run["variant"] for run in runs}
    for field in runs[0].keys() - {"variant", asked}:
        values = [{run[field] for run in runs if run["variant"] == variant} for variant in variants]
        if field == "parameters":
            every = set.union(*values)
            if max(every) > (1 + TOLERANCE) * min(every):
                found.add(field)
        elif any(each != values[0] for each in values):
            found.add(field)
    return found


_PLAIN = {"steps": 100, "clips": 1024, "batch_size": 32, "parameters": 10_000}


def _runs(*variants: tuple[str, str, dict[str, Any], tuple[int, ...]]) -> list[dict[str, Any]]:
    return [{"variant": name, "position": position, **_PLAIN, **changed, "seed": seed}
            for name, position, changed, seeds in variants for seed in seeds]


_TABLES = (  # runs, why
    (_runs(("a", "rope", {}, (0, 1, 2)), ("b", "none", {}, (0, 1, 2))),
     "the variants differ in position alone, which was asked"),
    (_runs(("a", "rope", {}, (0, 1, 2)), ("b", "none", {}, (2, 0, 1))),
     "both have the seeds 0, 1 and 2; in which order they were run does not matter"),
    (_runs(("a", "rope", {}, (0, 1, 2)), ("b", "none", {}, (3, 4, 5))), "each variant has seeds of its own"),
    (_runs(("a", "rope", {}, (0, 1, 2)), ("b", "none", {}, (0, 1))), "seed 2 has run for one variant only"),
    (_runs(("a", "rope", {}, (0, 1)), ("b", "none", {"parameters": 10_200}, (0, 1))),
     "2 % more parameters are within the tolerance of 3 %"),
    (_runs(("a", "rope", {}, (0, 1)), ("b", "none", {"parameters": 10_400}, (0, 1))),
     "4 % more parameters are more than the tolerance of 3 %"),
    (_runs(("a", "rope", {"parameters": 10_400}, (0, 1)), ("b", "none", {}, (0, 1))),
     "4 % more parameters are more than the tolerance of 3 %, whichever variant has them"),
    (_runs(("a", "rope", {}, (0, 1)), ("b", "none", {}, (0, 1)), ("c", "none", {"steps": 200}, (0, 1))),
     "the third variant trains longer"),
    (_runs(("a", "rope", {}, (0, 1)), ("b", "none", {"clips": 512, "batch_size": 16, "steps": 50}, (0, 1))),
     "b differs in three things that nobody asked about"),
)


def check_confounds(confounds) -> None:
    """Tables of runs with known confounds; the order of runs does not matter; "parameters" has a tolerance."""
    for table, why in _TABLES:
        for runs in (table, table[::-1]):
            names = ", ".join(dict.fromkeys(run["variant"] for run in runs))
            what, wanted = f"confounds of {len(runs)} runs of {names}", differing_fields(runs, "position")
            got = confounds([dict(run) for run in runs], "position")
            if got is None:
                raise Wrong(f"{what} is None; does your function end in return?")
            if not isinstance(got, (set, frozenset, list, tuple)) or not all(isinstance(each, str) for each in got):
                raise Wrong(f"{what} is {got!r}; it must be a set of names of fields.")
            if set(got) != wanted:
                raise Wrong(f"{what} is {_listed(got)}; it must be {_listed(wanted)}: {why}.")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "empty"


# ---- 15.6 fair_width


def count_parameters(config: TransformerConfig) -> int:
    """Of the whole transformer, without allocating it."""
    with torch.device("meta"):
        return sum(p.numel() for p in ExpertTransformer(config).parameters())


def paying_width(config: TransformerConfig, parameters: int) -> int:
    """The `time_embed_dim` with which `config` has the number of parameters that is nearest to `parameters`."""
    low, high = 1, 2
    while count_parameters(replace(config, time_embed_dim=high)) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        below = count_parameters(replace(config, time_embed_dim=middle)) < parameters
        low, high = (middle, high) if below else (low, middle)
    return min((low, high), key=lambda t: abs(count_parameters(replace(config, time_embed_dim=t)) - parameters))


_SMALL = TransformerConfig(num_attention_heads=2, attention_head_dim=32, num_layers=1, in_channels=16, out_channels=8,
                           patch_size=1, text_embed_dim=16, max_text_seq_length=1, time_embed_dim=16, sample_height=4,
                           sample_width=4, sample_frames=5)
_PAIRS = (  # what pays, for what, in words
    (_SMALL, replace(_SMALL, attention="factorised"), "full attention for factorised"),
    (replace(_SMALL, num_layers=3, modulation="shared"), replace(_SMALL, num_layers=3), "shared for expert modulation"),
    (replace(_SMALL, attention="factorised", time_embed_dim=96), replace(_SMALL, time_embed_dim=96),
     "factorised attention, which has too many, for full"),
    (replace(_SMALL, text_embed_dim=512), replace(_SMALL, text_embed_dim=512, time_embed_dim=33),
     "a network with a large text projection"),
)


def check_fair_width(fair_width) -> None:
    """Sizes that a whole number of channels of the time embedding can reach within 1 %, upwards and downwards."""
    for config, other, said in _PAIRS:
        wanted = count_parameters(other)
        what = f"fair_width for {said} ({count_parameters(config):,} parameters to make {wanted:,})"
        answer = fair_width(config, wanted)
        if isinstance(answer, TransformerConfig):
            raise Wrong(f"{what} is a config; return its time_embed_dim alone.")
        got = as_number(what, answer)
        if got != int(got) or got < 1:
            raise Wrong(f"{what} is {got:.6g}; it must be a whole number of channels, 1 or more.")
        if got > 16 * count_parameters(config) ** 0.5:
            raise Wrong(f"{what} is {int(got):,}; that is no width: a time embedding so wide would have "
                        f"{int(got) ** 2:,} weights in one of its layers alone.")
        made = count_parameters(replace(config, time_embed_dim=int(got)))
        if abs(made - wanted) > 0.01 * wanted:
            raise Wrong(f"{what} is {int(got)}, which makes {made:,} parameters, {made / wanted - 1:+.1%}; it must be "
                        f"within 1 %. Count those of the whole transformer, and try widths in both directions.")
