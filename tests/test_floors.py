"""The model half is a house: a floor imports only from those below it, also inside functions."""

import ast
from pathlib import Path

import pytest

import minicogvx

ROOT = Path(minicogvx.__file__).parent
FLOORS = (("suggest", "visible"), ("ranges", "files", "compat"), ("presets",), ("room",),
          ("vae", "transformer", "diffusion", "text"), ("interop",), ("pixels",), ("request",), ("pipeline",))
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imported(file: Path) -> set[str]:
    """Modules and folders of the package that a file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = ([f"minicogvx.{alias.name}" for alias in node.names] if node.module == "minicogvx"
                     else [node.module or ""])
        found |= {name.split(".")[1] for name in names if name.startswith("minicogvx.")}
    return found


@pytest.mark.parametrize("name", FLOOR)
def test_imports_go_downwards(name):
    files = sorted((ROOT / name).rglob("*.py")) or [ROOT / f"{name}.py"]
    for file in files:
        for other in imported(file) - {name}:
            assert FLOOR.get(other, len(FLOORS)) < FLOOR[name], f"{file.relative_to(ROOT)} imports {other}"
