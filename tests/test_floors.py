"""A floor of the package imports only from the floors below it, also inside functions; nothing imports in circles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import minicogvx

ROOT = Path(minicogvx.__file__).parent
FLOORS = (
    ("suggest", "visible", "advice"), ("ranges", "files", "compat"),
    ("presets", "media", "parsing", "terminal"), ("room",),
    ("vae", "transformer", "diffusion", "text"), ("interop",), ("pixels", "options"), ("request",), ("pipeline",),
    ("engine",), ("data.world",), ("data.films",), ("data.clips",), ("data.command",), ("training",),
    ("evaluation",), ("course",), ("ablation", "estimates", "speedrun"), ("doctor", "tour"),
    ("cli", "export_command", "generate_command", "tour_command", "words_command"), ("__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# What the engine may use: it trains any model, and knows no video.
ENGINE_USES = {"suggest", "visible", "ranges", "files", "compat", "engine", "interop.safetensors_files"}


def modules() -> dict[str, Path]:
    """Every file of the package by its name inside it: `data.clips.order`, or `vae` for vae/__init__.py."""
    named = {path.relative_to(ROOT).with_suffix("").parts: path for path in ROOT.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in named.items()}


def room(module: str) -> str:
    """The folder or top-level module that a module belongs to; those in data/ are folders of their own."""
    parts = module.split(".")
    return ".".join(parts[:2 if parts[0] == "data" else 1])


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file names in its imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("minicogvx.") for name in names if name.startswith("minicogvx.")}
    return {name if name in known else name.rpartition(".")[0] for name in inside} - {""}


def test_imports_go_downwards_and_not_in_circles(subtests):
    known = modules()
    uses = {name: imported(path, known) for name, path in known.items()}
    assert {room(name) for name in known} - {"", "data"} == set(FLOOR)  # every folder and module has its floor
    for name in known.keys() - {"", "data"}:
        with subtests.test(name):
            own, others = room(name), {other for other in uses[name] if room(other) != room(name)}
            assert [other for other in others if FLOOR[room(other)] >= FLOOR[own]] == []
            if own == "engine":
                assert [other for other in others if not {other, room(other)} & ENGINE_USES] == []
    assert list(TopologicalSorter(uses).static_order())
