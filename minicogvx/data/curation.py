"""Curation: from a folder of films to the shots that are worth training on, with a page that says what went and why.

The published system kept about 35 million shots, and 2 billion pictures chosen by aesthetics (paper, section 3.4); its
last stage fine-tunes on the best 20 % of the data, which removes subtitles and watermarks and improves the look a
little at a slight loss of meaning (section 3.2 and Table 5). See data/shots.py for what is measured and what is not.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from minicogvx.data.kept_lists import lines_before, write_over
from minicogvx.data.listing import Problem, is_finite, writable_list
from minicogvx.data.shots import CurationThresholds, Scorer, Shot, find_shots
from minicogvx.data.video_folder import VideoClip, clip_line, failed, scan_folder
from minicogvx.files import check_writable

__all__ = ["Curation", "CurationThresholds", "best_fraction", "curate", "read_kept"]

KEPT, BEST, REPORT = "kept.jsonl", "best.jsonl", "report.html"


@dataclass(frozen=True)
class Curation:
    """Every shot of a folder, kept or dropped, and the files that could not be used."""

    folder: Path
    thresholds: CurationThresholds
    shots: list[Shot]
    problems: list[Problem]
    passed_over: str = ""  # the other files, counted by ending, in a sentence

    @property
    def kept(self) -> list[Shot]:
        """Shots without a reason against them."""
        return [shot for shot in self.shots if not shot.reasons]

    @property
    def dropped(self) -> list[Shot]:
        """Shots with at least one reason against them."""
        return [shot for shot in self.shots if shot.reasons]


def curate(folder: str | Path, out: str | Path, thresholds: CurationThresholds = CurationThresholds(),
           scorer: Scorer | None = None, listing: str | Path | None = None, progress: bool = True) -> Curation:
    """Cut the films of `folder` into shots, judge them, and write `out/kept.jsonl` and `out/report.html`.

    A line of kept.jsonl has file_name, start, end, text and scores, and what else a list said of the film;
    `scan_folder(folder, listing=...)` takes it. Films need no captions yet. `scorer` gives a picture its aesthetic
    score; without one that score is "not measured". Captions that the lists in `out` have got stay: see `write_over`.
    Raises ValueError where nothing in the folder can be used, or where such captions would be lost.
    """
    from minicogvx.data.curation_report import write_report  # it needs Curation

    check_place(out)
    found = scan_folder(folder, thresholds.min_seconds, listing, need_captions=False, progress=progress)
    shots, problems = [], list(found.problems)
    for clip in tqdm(found.clips, desc="curating", disable=not progress):
        try:
            shots += find_shots(clip, thresholds, scorer)
        except (ValueError, OSError, RuntimeError) as error:
            problems.append(failed(clip, error))
    if not shots:
        first = f"; {problems[0]}" if problems else ""
        raise ValueError(f"{folder} holds no film or picture that can be used{first}")
    result = Curation(Path(folder), thresholds, shots, problems, found.passed_over_sentence())
    own = listing is None or not _same_file(listing, Path(out) / KEPT)
    write_over(Path(out) / KEPT, [_line(shot) for shot in result.kept], result.shots if own else ())
    write_report(Path(out) / REPORT, result)
    return result


def check_place(out: str | Path, best: bool = False) -> None:
    """Raises ValueError or OSError where the files of a curation cannot be written to `out`. For its start.

    A list that is there already must be one that can be read, as its captions are taken over.
    """
    for name in (KEPT, BEST) if best else (KEPT,):
        lines_before(writable_list(Path(out) / name))
    check_writable(Path(out) / REPORT)


def _same_file(path: str | Path, other: Path) -> bool:
    return other.exists() and os.path.samefile(path, other)


def best_fraction(kept: Sequence[Shot], share: float = 0.2) -> list[Shot]:
    """The best `share` of the shots, in their old order: what the last published stage trains on.

    How the authors ranked was not published. Here: by aesthetic score where every shot has one, otherwise by the mean
    of the ranks in sharpness and in motion; pictures, which have no motion, by sharpness alone. At least one is kept.
    Raises ValueError for a share outside 0..1, 0 excluded.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share is {share}; it must be above 0 and at most 1")
    if all(shot.scores.get("aesthetic") is not None for shot in kept):
        value = {i: shot.scores["aesthetic"] for i, shot in enumerate(kept)}
    else:
        ranks = [_ranks(kept, name) for name in ("sharpness", "motion")]
        value = {i: sum(rank[i] for rank in ranks if i in rank) / max(1, sum(i in rank for rank in ranks))
                 for i in range(len(kept))}
    chosen = sorted(value, key=lambda i: -value[i])[:max(1, round(share * len(kept)))]
    return [kept[i] for i in sorted(chosen)]


def _ranks(shots: Sequence[Shot], name: str) -> dict[int, float]:
    """For each shot that has the score its rank from 0 (least) to 1."""
    scored = sorted((shot.scores[name], i) for i, shot in enumerate(shots) if shot.scores.get(name) is not None)
    return {i: rank / max(1, len(scored) - 1) for rank, (_, i) in enumerate(scored)}


def read_kept(folder: str | Path, listing: str | Path) -> list[Shot]:
    """The shots that `listing`, a kept.jsonl of `curate`, lists. Raises ValueError for a line that cannot be used."""
    found = scan_folder(folder, 0.0, listing, need_captions=False)
    if found.problems:
        raise ValueError(f"{listing} cannot be used: {found.problems[0]}")
    return [Shot(clip, _scores(clip)) for clip in found.clips]


def _scores(clip: VideoClip) -> dict[str, float | None]:
    scores = clip.line.fields.get("scores")
    if scores is None:
        return {}
    if not isinstance(scores, dict):
        raise ValueError(f"line {clip.line.number}, on {clip.name}, has scores={scores!r:.80}; it must hold a "
                         f"number for each name")
    for name, value in scores.items():
        if value is not None and not is_finite(value):
            raise ValueError(f"line {clip.line.number}, on {clip.name}, has {name}={value!r}; it must be a number")
    return scores


def write_best(out: str | Path, kept: Sequence[Shot], share: float) -> Path:
    """Write the best `share` of the shots as `out`, lines as in kept.jsonl. Raises what `write_over` raises."""
    return write_over(Path(out), [_line(shot) for shot in best_fraction(kept, share)], kept)


def _line(shot: Shot) -> dict:
    clip = shot.clip
    piece = {} if clip.is_image else {"start": round(clip.start, 3), "end": round(clip.end, 3)}
    return clip_line(clip) | piece | {"scores": shot.scores}
