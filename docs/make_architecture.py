"""Draws docs/architecture.svg and fills the list of floors in docs/architecture.md, both from the code's own imports.

    python docs/make_architecture.py          # writes both; tests/test_architecture.py compares them with the code

An arrow leads from what uses to what is used. Of several ways down only the longest is drawn: if A uses B and B uses C,
an arrow from A to C would say nothing new.
"""

import re
import sys
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from minicogvx.cli import COMMANDS  # noqa: E402
from tests.test_floors import FLOORS, imported, modules, room  # noqa: E402

PICTURE, PAGE = DOCS / "architecture.svg", DOCS / "architecture.md"
# box -> (column, row, rooms, what it does); a room that is not listed here is part of the ground
BOXES = {
    "the command": (1, 0, ("cli", "__main__", "generate_command", "export_command", "words_command", "tour_command",
                           "doctor", "data.command"), "reads options, shows results"),
    "tour": (0, 1, ("tour",), "two minutes in a terminal"),
    "ablation": (0, 2, ("ablation",), "variants, seeds, verdicts"),
    "estimates": (3, 2, ("estimates",), "how long jobs take here"),
    "speedrun": (2, 2, ("speedrun",), "minutes until it obeys"),
    "course": (0, 3, ("course",), "what notebooks need"),
    "evaluation": (1, 4, ("evaluation",), "how good is a model?"),
    "training": (2, 5, ("training",), "the loop, stages, LoRA"),
    "data/clips": (0, 6, ("data.clips",), "encoded clips, packs"),
    "data/films": (0, 7, ("data.films",), "real films, curation"),
    "data/world": (0, 8, ("data.world",), "drawn clips, the oracle"),
    "engine": (1, 7, ("engine",), "ranks, checkpoints, optim"),
    "pipeline": (2, 6, ("pipeline",), "caption in, video out"),
    "request": (3, 7, ("request",), "every input checked"),
    "pixels": (3, 8, ("pixels",), "videos to latents, back"),
    "interop": (1, 9, ("interop",), "diffusers folders, LoRA files"),
    "text": (1, 10, ("text",), "T5 encoder, tokenizer"),
    "transformer": (0, 10, ("transformer",), "the expert transformer"),
    "vae": (2, 10, ("vae",), "the 3D causal VAE"),
    "diffusion": (3, 10, ("diffusion",), "schedule, samplers, loss"),
}
GROUND = "the ground, which all others use"
WIDE, HIGH, LEFT, TOP, ACROSS, DOWN, ASIDE = 190, 46, 24, 24, 226, 82, 80


def box_of() -> dict[str, str]:
    """The box of each room."""
    return {name: box for box, (_, _, names, _) in BOXES.items() for name in names}


def uses() -> dict[str, set[str]]:
    """For each box, the boxes that its files import from; the ground is left out."""
    known, boxes = modules(), box_of()
    found: dict[str, set[str]] = {box: set() for box in BOXES}
    for name, path in known.items():
        own = boxes.get(room(name))
        if own:
            found[own] |= {boxes[room(other)] for other in imported(path, known) if room(other) in boxes} - {own}
    by_name = {boxes[room(module.removeprefix("minicogvx."))] for module, _ in COMMANDS.values()}  # as cli imports them
    found["the command"] |= by_name - {"the command"}
    return found


def arrows() -> list[tuple[str, str]]:
    """Pairs of boxes, user and used, without those that a longer way implies."""
    direct = uses()

    def below(box: str) -> set[str]:
        return {lower for one in direct[box] for lower in {one} | below(one)}

    return sorted((box, one) for box in direct for one in direct[box]
                  if not any(one in below(other) for other in direct[box] - {one}))


def ground() -> list[str]:
    """Modules that no box holds."""
    return [name for names in reversed(FLOORS) for name in names if name not in box_of()]


# ---- the picture


def picture() -> str:
    """The whole SVG."""
    rows = max(row for _, row, _, _ in BOXES.values())
    bottom = TOP + (rows + 1) * DOWN
    width, height = 2 * LEFT + 3 * ACROSS + WIDE, bottom + HIGH + TOP
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" role="img" aria-label="Which part of minicogvx uses which" '
             f'font-family="Helvetica, Arial, sans-serif">',
             '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
             'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="#56606b"/></marker></defs>',
             f'<rect width="{width}" height="{height}" rx="12" fill="#ffffff"/>']
    parts += [_arrow(*pair) for pair in arrows()]
    parts += [_box(name, *BOXES[name]) for name in BOXES]
    parts += _ground(bottom, width)
    return "\n".join([*parts, "</svg>", ""])


def _place(name: str) -> tuple[int, int]:
    column, row = BOXES[name][:2]
    return LEFT + column * ACROSS, TOP + row * DOWN


def _box(name: str, column: int, row: int, rooms: tuple[str, ...], words: str) -> str:
    x, y = _place(name)
    colour = "#fdf1d8" if row < 5 else "#e3eef8" if row < 9 else "#e2f3ea"
    return (f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="8" fill="{colour}" stroke="#56606b"/>'
            f'<text x="{x + WIDE // 2}" y="{y + 19}" text-anchor="middle" font-size="14" font-weight="bold" '
            f'fill="#15202b">{escape(name)}</text>'
            f'<text x="{x + WIDE // 2}" y="{y + 36}" text-anchor="middle" font-size="12" fill="#33404d">'
            f'{escape(words)}</text>')


def _arrow(user: str, used: str) -> str:
    (x, y), (to_x, to_y) = _place(user), _place(used)
    shift = (to_x > x) - (to_x < x)
    start, end = x + WIDE // 2 + ASIDE * shift, to_x + WIDE // 2 - ASIDE * shift
    y, to_y = y + HIGH, to_y - 2
    middle = (y + to_y) // 2
    return (f'<path d="M{start} {y} C{start} {middle} {end} {middle} {end} {to_y}" fill="none" stroke="#56606b" '
            f'stroke-width="1.4" marker-end="url(#tip)"/>')


def _ground(y: int, width: int) -> list[str]:
    names = ", ".join(ground())
    return [f'<rect x="{LEFT}" y="{y}" width="{width - 2 * LEFT}" height="{HIGH}" rx="8" fill="#eeeeee" '
            f'stroke="#56606b"/>',
            f'<text x="{width // 2}" y="{y + 19}" text-anchor="middle" font-size="14" font-weight="bold" '
            f'fill="#15202b">{GROUND}</text>',
            f'<text x="{width // 2}" y="{y + 36}" text-anchor="middle" font-size="12" fill="#33404d">'
            f'{escape(names)}</text>']


# ---- the page


def floors() -> str:
    """The floors as a numbered list, the highest first."""
    lines = []
    for number, names in reversed(list(enumerate(FLOORS))):
        lines.append(f"| {number} | {', '.join(f'`{_path(name)}`' for name in names)} |")
    return "\n".join(["| floor | what lies on it |", "|---|---|", *lines, ""])


def _path(name: str) -> str:
    base = DOCS.parent / "minicogvx" / Path(*name.split("."))
    return base.relative_to(DOCS.parent).as_posix() + ("/" if base.is_dir() else ".py")


def filled(text: str) -> str:
    """The page with its generated part as it should be now."""
    return re.sub(r"(<!-- floors -->\n).*?(<!-- end -->)", lambda found: found[1] + floors() + found[2], text,
                  flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PICTURE.relative_to(DOCS.parent)} and {PAGE.relative_to(DOCS.parent)} are up to date.")
