"""minicogvx installed from a wheel, without its repository, and used from a folder of the user.

The new environment borrows the dependencies of the running one through a .pth file. Such a line adds a folder to the
path but does not read the .pth files in it, so an editable minicogvx of the running environment stays out of sight.
"""

import ast
import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("minicogvx", "data", "pyproject.toml", "setup.py", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"


def run(command: list, folder: Path, **environment: str) -> str:
    """What `command` prints, run in `folder` without the repository on the path; it must end well."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAKEFLAGS")}
    clean |= {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"} | environment
    done = subprocess.run([str(part) for part in command], cwd=folder, env=clean, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def build(kind: str, folder: Path, out: Path) -> Path:
    """The archive that setuptools builds from `folder`: "wheel" or "sdist". pip calls the same function."""
    out.mkdir()
    return out / run([sys.executable, "-c", BUILD, kind, out], folder).split()[-1]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file under `folder`."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what is built, so that building leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.new"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    """The wheel, built straight from the sources."""
    return build("wheel", sources, tmp_path_factory.mktemp("built") / "wheel")


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    there = Path(run([scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                     folder).strip())
    (there / "borrowed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    run([sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps", "--no-index", "--quiet",
         "--disable-pip-version-check", wheel], folder)
    assert (there / "minicogvx").is_dir()
    return scripts / "python"


@pytest.fixture
def installed(python, tmp_path) -> Path:
    """The installed package; the test must leave it as it is."""
    code = "import minicogvx; print(minicogvx.__file__)"
    package = Path(run([python, "-c", code], tmp_path).strip()).parent
    assert package.is_relative_to(python.parents[1]) and not package.is_relative_to(ROOT)
    before = contents(package)
    yield package
    assert contents(package) == before


def test_the_wheel_has_the_package_its_data_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert all(name.startswith("minicogvx/") for name in names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "minicogvx").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    shipped = {name.removeprefix("minicogvx/shipped/") for name in names if name.startswith("minicogvx/shipped/")}
    kept = {str(path.relative_to(ROOT / "data")) for path in (ROOT / "data").rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and not path.parts[-2].endswith(".new")}
    assert shipped == kept and "toy/vae/diffusion_pytorch_model.safetensors" in shipped


def test_the_description_is_complete(wheel):
    archive = zipfile.ZipFile(wheel)
    names = [name for name in archive.namelist() if ".dist-info/" in name]
    about = email.message_from_bytes(archive.read(next(name for name in names if name.endswith("/METADATA"))))
    assert about["Requires-Python"] == ">=3.11" and "Apache-2.0" in about["License-Expression"]
    assert about["Summary"] and about["Author"] and about["Keywords"] and about["Project-URL"]
    assert about["Description-Content-Type"] == "text/markdown" and about.get_payload().lstrip().startswith("# mini")
    versions = [value.rpartition(" ")[2] for value in about.get_all("Classifier") if "Python :: 3." in value]
    assert versions == ["3.11", "3.12", "3.13"]
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/data/clips/README.md") for name in names)  # whose video it is
    needed = {value.split(">=")[0] for value in about.get_all("Requires-Dist") if "extra ==" not in value}
    assert needed >= {"torch", "transformers", "sentencepiece", "protobuf"}


def test_by_way_of_the_source_archive_the_wheel_is_the_same(sources, wheel, tmp_path):
    archive = build("sdist", sources, tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    again = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel")
    files = [{entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist()
              if not entry.filename.endswith("/RECORD")} for path in (wheel, again)]
    assert files[0] == files[1]


def test_a_clip_is_generated_in_an_empty_folder(python, installed, tmp_path):
    command = python.with_name("minicogvx")
    told = run([command, "generate", "a red circle moves right", "--steps", "2", "--out", "mine/clip.mp4"], tmp_path)
    assert "mine/clip.mp4" in told.replace("\\", "/")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["clip.gif", "clip.mp4", "clip.png"]
    assert all(path.stat().st_size > 1000 for path in (tmp_path / "mine").iterdir())


def test_the_doctor_finds_the_model_in_the_package(python, installed, tmp_path):
    code = "from minicogvx import doctor; doctor._jobs = lambda: (); raise SystemExit(doctor.doctor())"  # no timing
    told = run([python, "-c", code], tmp_path)
    assert str(installed / "shipped" / "toy") in told and told.rstrip().endswith("everything required works")


def test_results_clips_and_all_that_notebooks_import_are_there(python, installed, tmp_path):
    """From a folder of the user's own, with nothing of the repository in it."""
    imports = {ast.unparse(node) for source in sorted((ROOT / "notebooks" / "source").glob("*.py"))
               for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert any("load_results" in line for line in imports) and any("DATA" in line for line in imports)
    lines = [*sorted(imports), "from minicogvx.course.exercises import solution",
             "print([curve.name for curve in load_results('position')])",
             "print((DATA / 'clips' / 'big_buck_bunny.mp4').is_file())", "solution('2.1')"]
    told = run([python, "-c", "\n".join(lines)], tmp_path, MPLBACKEND="agg").splitlines()
    assert "sincos" in told[0] and told[1] == "True"
    assert told[2].startswith("# Exercise 2.1, ") and len(told) > 5  # the package's own version, for lack of sources
