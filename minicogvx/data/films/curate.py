"""Curation: selects from a folder of videos the shots worth training on, and writes a report of what was dropped.

The published system kept about 35 million shots, and 2 billion pictures chosen by aesthetics (paper, section 3.4); its
last stage fine-tunes on the best 20 % of the data, which removes subtitles and watermarks and improves the visual
quality at a slight loss of semantics (section 3.2 and Table 5). shots.py lists what is measured and what is not.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from minicogvx.data.films.folder import VideoClip, clip_line, failed, scan_folder
from minicogvx.data.films.kept_lists import lines_before, write_over
from minicogvx.data.films.listing import writable_list
from minicogvx.data.films.report import Curation, check_report, write_report
from minicogvx.data.films.shots import CurationThresholds, Scorer, Shot, find_shots

KEPT, BEST, REPORT = "kept.jsonl", "best.jsonl", "report.html"


def curate(folder: str | Path, out: str | Path, thresholds: CurationThresholds = CurationThresholds(),
           scorer: Scorer | None = None, listing: str | Path | None = None, progress: bool = True) -> Curation:
    """Cut the videos of `folder` into shots, judge them, and write `out/kept.jsonl` and `out/report.html`.

    A line of kept.jsonl has file_name, start, end, text and scores, and any other fields that a list had on the video;
    `scan_folder(folder, listing=...)` reads it. Videos need no captions yet. `scorer` computes the aesthetic score of a
    picture; without it that score is "not measured". Captions in existing lists in `out` are kept: see `write_over`.
    Raises ValueError if nothing in the folder can be used, or if such captions would be lost.
    """
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
        raise ValueError(f"{folder} holds no video or picture that can be used{first}")
    result = Curation(Path(folder), thresholds, shots, problems, found.passed_over_sentence())
    own = listing is None or not _same_file(listing, Path(out) / KEPT)
    write_over(Path(out) / KEPT, [_line(shot) for shot in result.kept], result.shots if own else ())
    write_report(Path(out) / REPORT, result, progress)
    return result


def check_place(out: str | Path, best: bool = False) -> None:
    """Raises ValueError or OSError if the files of a curation cannot be written to `out`. To be called first.

    An existing list must be readable, because its captions are kept, and an existing report must be one.
    """
    for name in (KEPT, BEST) if best else (KEPT,):
        lines_before(writable_list(Path(out) / name))
    check_report(Path(out) / REPORT)


def _same_file(path: str | Path, other: Path) -> bool:
    return other.exists() and os.path.samefile(path, other)


def best_fraction(kept: Sequence[Shot], share: float = 0.2) -> list[Shot]:
    """The best `share` of the shots, in their original order: what the last published stage trains on.

    See `best_of`. Raises ValueError for a share that is not above 0 and at most 1.
    """
    return [kept[i] for i in best_of([shot.scores for shot in kept], share)]


def best_share(clips: Sequence[VideoClip], share: float) -> list[VideoClip]:
    """The same of clips that a list names which `minicogvx data curate` wrote, with the scores in it.

    Raises ValueError for a clip without scores, if not all are wanted.
    """
    if share == 1:
        return list(clips)
    scores = [clip.line and clip.line.fields.get("scores") for clip in clips]
    lacking = next((clip for clip, own in zip(clips, scores) if not isinstance(own, dict)), None)
    if lacking:
        raise ValueError(f"{lacking.name} has no scores, and the best {share:g} of the clips are asked for; name the "
                         f"list that `minicogvx data curate` wrote, with --list")
    return [clips[i] for i in best_of(scores, share)]


def best_of(scores: Sequence[Mapping[str, float | None]], share: float) -> list[int]:
    """The numbers of the best `share`, ascending; at least one.

    The authors' ranking was not published. Here: by aesthetic score if all have one, otherwise by the mean of the ranks
    in sharpness and in motion; pictures, which have no motion, by sharpness.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share is {share}; it must be above 0 and at most 1")
    if all(own.get("aesthetic") is not None for own in scores):
        value = {i: own["aesthetic"] for i, own in enumerate(scores)}
    else:
        ranks = [_ranks(scores, name) for name in ("sharpness", "motion")]
        value = {i: sum(rank[i] for rank in ranks if i in rank) / max(1, sum(i in rank for rank in ranks))
                 for i in range(len(scores))}
    return sorted(sorted(value, key=lambda i: -value[i])[:max(1, round(share * len(scores)))])


def _ranks(scores: Sequence[Mapping[str, float | None]], name: str) -> dict[int, float]:
    """The rank, from 0 (lowest) to 1, of each that has the score."""
    scored = sorted((own[name], i) for i, own in enumerate(scores) if own.get(name) is not None)
    return {i: rank / max(1, len(scored) - 1) for rank, (_, i) in enumerate(scored)}


def write_best(out: str | Path, kept: Sequence[Shot], share: float) -> Path:
    """Write the best `share` of the shots as `out`, in the format of kept.jsonl. Raises what `write_over` raises."""
    return write_over(Path(out), [_line(shot) for shot in best_fraction(kept, share)], kept)


def _line(shot: Shot) -> dict:
    clip = shot.clip
    piece = {} if clip.is_image else {"start": round(clip.start, 3), "end": round(clip.end, 3)}
    return clip_line(clip) | piece | {"scores": shot.scores}
