"""The report of a curation: one self-contained HTML file with thumbnails, counts and distributions."""

import base64
import io
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from minicogvx.data.films.listing import Problem
from minicogvx.data.films.pictures import UnusableFile
from minicogvx.data.films.shots import CurationThresholds, Shot, middle_frame
from minicogvx.files import check_writable, written_whole

MOST_PICTURES = 200  # of kept, and of dropped shots; a page of thousands opens slowly
_PICTURE_SIDE = 96  # pixels of the shorter side
_BARS = 24
_KEPT, _DROPPED = "#0072b2", "#d55e00"  # of Okabe and Ito's palette, which colour-blind readers can distinguish

_REASONS = {
    "short": ("too short", "lasts less than {min_seconds:g} s"),
    "black": ("black", "more than {max_black:.0%} of its frames are black"),
    "static": ("static", "moves less than {min_motion:g} shorter sides a second"),
    "blurred": ("blurred", "sharpness below {min_sharpness:g}"),
    "plain": ("low aesthetic score", "score below {min_aesthetic:g}"),
}
_SCORES = {"motion": ("Motion", "shorter sides of the frame a second", "min_motion"),
           "sharpness": ("Sharpness", "Laplacian over contrast", "min_sharpness"),
           "black": ("Blackness", "share of black frames", "max_black"),
           "aesthetic": ("Aesthetic score", "of the middle frame", "min_aesthetic")}

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:70rem;margin:2rem auto;
padding:0 1rem}h1,h2{line-height:1.2}table{border-collapse:collapse}
th,td{text-align:left;padding:.25rem .75rem .25rem 0;vertical-align:top}
tr{border-bottom:1px solid #ccc}ul.shots{display:flex;flex-wrap:wrap;gap:1rem;padding:0;list-style:none}
ul.shots li{width:11rem;font-size:.8rem;overflow-wrap:anywhere}ul.shots img{max-width:100%;height:auto;display:block}
.why{color:#8a3a00;font-weight:600}svg{max-width:100%;height:auto}"""

_START = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Curation of '  # of every report


@dataclass(frozen=True)
class Curation:
    """Every shot of a folder, kept or dropped, and the files that could not be used."""

    folder: Path
    thresholds: CurationThresholds
    shots: list[Shot]
    problems: list[Problem]
    passed_over: str = ""  # a sentence that counts other files by ending

    @property
    def kept(self) -> list[Shot]:
        """Shots without a reason to drop them."""
        return [shot for shot in self.shots if not shot.reasons]

    @property
    def dropped(self) -> list[Shot]:
        """Shots with at least one reason to drop them."""
        return [shot for shot in self.shots if shot.reasons]


def write_report(path: str | Path, curation: Curation, progress: bool = False) -> Path:
    """Write the report of `curation` to `path`, by way of a temporary file."""
    with written_whole(path) as part:
        # Names can hold bytes that are not text; these are shown as numbers.
        part.write_text(_page(curation, progress), encoding="utf-8", errors="backslashreplace")
    return Path(path)


def check_report(path: str | Path) -> None:
    """Raises ValueError if there is another file at `path` than a report, OSError if `path` cannot be written."""
    path = Path(path)
    check_writable(path)
    if path.exists() and not path.read_bytes().startswith(_START.encode()):
        raise ValueError(f"{path} is not the report of a curation, and would be written over; name another folder, or "
                         f"move that file away")


def _page(curation: Curation, progress: bool) -> str:
    title = escape(curation.folder.name or str(curation.folder))
    parts = [f"<h1>Curation of {title}</h1>", _summary(curation), _counts(curation), _distributions(curation),
             _gallery("Dropped", curation.dropped, progress), _gallery("Kept", curation.kept, progress),
             _problems(curation)]
    return (f'{_START}{title}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>'
            + "\n".join(parts) + "\n</body></html>\n")


def _summary(curation: Curation) -> str:
    files = len({shot.clip.name for shot in curation.shots})
    kept, dropped, bad = len(curation.kept), len(curation.dropped), len(curation.problems)
    seconds = sum(shot.clip.seconds for shot in curation.kept)
    return (f"<p>{files} files hold {kept + dropped} shots: <strong>{kept} kept</strong> ({seconds:.1f} s), "
            f"<strong>{dropped} dropped</strong>. {bad} files or lines could not be used. Lectures, text, screenshots "
            f"and slow transitions are not recognised.</p>")


def _counts(curation: Curation) -> str:
    counts = Counter(reason for shot in curation.dropped for reason in shot.reasons)
    values = vars(curation.thresholds)
    if not _measured(curation, "aesthetic"):
        counts["plain"] = "not measured"
    rows = "".join(f"<tr><td>{label}</td><td>{rule.format(**values)}</td><td>{counts[name]}</td></tr>"
                   for name, (label, rule) in _REASONS.items())
    return ("<h2>Why shots were dropped</h2><table><thead><tr><th>reason</th><th>rule</th><th>shots</th></tr></thead>"
            f"<tbody>{rows}</tbody></table><p>A shot can have several reasons.</p>")


def _measured(curation: Curation, score: str) -> bool:
    return any(shot.scores.get(score) is not None for shot in curation.shots)


# ---- distributions


def _distributions(curation: Curation) -> str:
    charts = [f"<h3>{label}</h3>" + (_chart(curation, score, label, unit, getattr(curation.thresholds, limit))
                                     if _measured(curation, score) else "<p>Not measured.</p>")
              for score, (label, unit, limit) in _SCORES.items()]
    return (f'<h2>Distribution of the scores</h2><p><span style="color:{_KEPT}">&#9632;</span> kept, '
            f'<span style="color:{_DROPPED}">&#9632;</span> dropped (above the kept), dashed: the threshold.</p>'
            + "".join(charts))


def _chart(curation: Curation, score: str, label: str, unit: str, limit: float) -> str:
    values = [(shot.scores[score], bool(shot.reasons)) for shot in curation.shots if shot.scores.get(score) is not None]
    low, high = min(0.0, *(v for v, _ in values)), max(limit, *(v for v, _ in values)) * 1.02 or 1.0
    bins = [[0, 0] for _ in range(_BARS)]
    for value, dropped in values:
        bins[min(_BARS - 1, int((value - low) / (high - low) * _BARS))][dropped] += 1
    tallest = max(sum(pair) for pair in bins)
    bars = ""
    for i, (kept, dropped) in enumerate(bins):
        for below, amount, colour in ((0, kept, _KEPT), (kept, dropped, _DROPPED)):
            height = 120 * amount / tallest
            bars += (f'<rect x="{40 + 20 * i}" y="{130 - 120 * below / tallest - height:.1f}" width="18" '
                     f'height="{height:.1f}" fill="{colour}"/>') if amount else ""
    x = 40 + 20 * _BARS * (limit - low) / (high - low)
    told = (f"{label}: {len(values)} shots from {min(v for v, _ in values):.3g} to {max(v for v, _ in values):.3g}, "
            f"threshold {limit:g}")
    return (f'<svg role="img" aria-label="{escape(told, True)}" viewBox="0 0 540 165" width="540">'
            f'<title>{escape(told)}</title>{bars}<line x1="40" x2="520" y1="130" y2="130" stroke="#555"/>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="5" y2="130" stroke="#000" stroke-dasharray="4 3"/>'
            f'<g font-size="12" fill="#1a1a1a"><text x="40" y="146">{low:.3g}</text>'
            f'<text x="520" y="146" text-anchor="end">{high:.3g}</text>'
            f'<text x="280" y="161" text-anchor="middle">{escape(unit)}</text>'
            f'<text x="34" y="16" text-anchor="end">{tallest}</text></g></svg>')


# ---- shots and files


def _gallery(title: str, shots: list[Shot], progress: bool) -> str:
    shown = tqdm(shots[:MOST_PICTURES], desc=f"pictures of what was {title.lower()}", disable=not (progress and shots))
    items = "".join(_item(shot) for shot in shown)
    left_out = f"<p>The first {MOST_PICTURES} of {len(shots)}.</p>" if len(shots) > MOST_PICTURES else ""
    return f"<h2>{title}</h2>{left_out}" + (f'<ul class="shots">{items}</ul>' if shots else "<p>None.</p>")


def _item(shot: Shot) -> str:
    clip = shot.clip
    when = "picture" if clip.is_image else f"{clip.start:.2f} to {clip.end:.2f} s"
    caption = clip.caption[:120] or "no caption"
    alt = escape(f"middle frame of {clip.name}, {when}: {caption}", True)
    why = "; ".join(f"{_REASONS[reason][0]}" for reason in shot.reasons)
    scores = ", ".join(f"{name} " + ("not measured" if value is None else f"{value:.3g}")
                       for name, value in shot.scores.items())
    return (f"<li>{_picture(shot, alt)}{escape(clip.name)}, {when}<br>"
            + (f'<span class="why">{escape(why)}</span><br>' if why else "") + f"{escape(scores)}</li>")


def _picture(shot: Shot, alt: str) -> str:
    buffer = io.BytesIO()
    try:
        frame = middle_frame(shot.clip, _PICTURE_SIDE)
    except (UnusableFile, OSError) as error:  # it may have been moved or changed since it was measured
        return f"<p>no picture: {escape(str(error))}</p>"
    Image.fromarray(frame.numpy()).save(buffer, format="JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="{alt}">'


def _problems(curation: Curation) -> str:
    rows = "".join(f"<tr><td>{escape(problem.name)}</td><td>{escape(problem.reason)}</td></tr>"
                   for problem in curation.problems)
    table = f"<table><thead><tr><th>file</th><th>why</th></tr></thead><tbody>{rows}</tbody></table>"
    others = f"<p>{escape(curation.passed_over)}</p>" if curation.passed_over else ""
    return "<h2>Files that could not be used</h2>" + (table if rows else "<p>None.</p>") + others
