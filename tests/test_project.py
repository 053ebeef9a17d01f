"""Version, changelog, citation, licences and templates agree with each other and with the code."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

import minicogvx
from minicogvx.diffusion.samplers import SAMPLERS
from minicogvx.options import add_sampling_options
from minicogvx.parsing import Parser
from tests.conftest import LEVELS

yaml = pytest.importorskip("yaml")  # comes with transformers
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Of the schema of cff-version 1.2.0: what must be there, and all that may be.
NEEDED = {"authors", "cff-version", "message", "title"}
ALLOWED = NEEDED | {"abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license",
                    "license-url", "preferred-citation", "references", "repository", "repository-artifact",
                    "repository-code", "type", "url", "version"}
PERSON = {"address", "affiliation", "alias", "city", "country", "email", "family-names", "fax", "given-names",
          "name-particle", "name-suffix", "orcid", "post-code", "region", "tel", "website"}
ENTITY = (PERSON - {"affiliation", "family-names", "given-names", "name-particle", "name-suffix"}) | {
    "date-end", "date-start", "location", "name"}


def read(path: str):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def versions() -> list[tuple[str, str]]:
    """(version, date) of each release in the changelog, newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)


def test_the_version_is_the_newest_of_the_changelog_and_the_citations():
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT  # packages take it from the code
    newest, day = versions()[0]
    cited = read("CITATION.cff")
    assert minicogvx.__version__ == newest == str(cited["version"]) and cited["date-released"] == day


def test_the_changelog_keeps_its_format():
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]" and len(headings) == 1 + len(versions())
    numbers = [tuple(map(int, version.split("."))) for version, _ in versions()]
    days = [date.fromisoformat(day) for _, day in versions()]
    assert numbers == sorted(set(numbers), reverse=True) and days == sorted(days, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_is_valid():
    cited = read("CITATION.cff")
    assert NEEDED <= set(cited) <= ALLOWED and cited["cff-version"] == "1.2.0"
    assert cited["type"] in ("software", "dataset") and cited["license"] in PROJECT["license"]
    assert isinstance(cited["version"], str) and date.fromisoformat(cited["date-released"])
    assert len(set(cited["keywords"])) == len(cited["keywords"])
    for work in (cited, *cited["references"]):
        assert work["title"] and work["authors"]
        for author in work["authors"]:
            assert set(author) <= (ENTITY if "name" in author else PERSON)
    assert all({"authors", "title", "type"} <= set(work) for work in cited["references"])


def test_each_licence_is_named_in_the_project_and_its_file_is_there():
    texts = {"Apache-2.0": ("LICENSE", "Apache License"), "CC-BY-4.0": ("LICENSE-docs", "by/4.0/legalcode"),
             "CC-BY-3.0": ("data/clips/README.md", "by/3.0/")}
    assert set(PROJECT["license"].split(" AND ")) == set(texts)
    assert {path for path, _ in texts.values()} == set(PROJECT["license-files"])
    for path, words in texts.values():
        assert words in (ROOT / path).read_text(encoding="utf-8")


def test_templates_are_forms_with_questions_of_their_own(subtests):
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")) + [
        ROOT / ".github" / "ISSUE_TEMPLATE" / "course_text.yml"]
    assert len(forms) == 3
    for form in forms:
        with subtests.test(form.name):
            content = read(form)
            assert set(content) <= {"name", "description", "title", "labels", "assignees", "projects", "type", "body"}
            assert content["name"] and content["description"] and content["body"]
            names = [question["id"] for question in content["body"]]
            assert len(set(names)) == len(names)
            for question in content["body"]:
                assert question["type"] in ("textarea", "input", "dropdown") and question["attributes"]["label"]
                options = question["attributes"].get("options", ["one"])
                assert len(set(options)) == len(options)
    assert "`minicogvx doctor`" in (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()


def test_contributing_knows_every_level_of_tests_and_every_path_that_it_names():
    for level in ("quick", *LEVELS):
        assert f"make test-{level}" in CONTRIBUTING
    for path in re.findall(r"`((?:minicogvx|tests|docs|data|notebooks)/[\w./-]+)`", CONTRIBUTING):
        assert (ROOT / path.replace("NN_topic", "00_first_video").replace("NN", "00")).exists(), path
    for module in re.findall(r"-m (minicogvx[\w.]+)", CONTRIBUTING):
        assert (ROOT / Path(*module.split(".")).with_suffix(".py")).is_file(), module
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r"(?:^|`)make ([a-z-]+)", CONTRIBUTING, re.MULTILINE)
    assert len(called) > 8 and set(called) <= set(targets)


def test_links_between_the_pages_lead_somewhere():
    for page in ("CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith("http"):
                path, _, anchor = link.partition("#")
                target = (ROOT / page).parent / path
                assert target.exists(), f"{page}: {link}"
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
                assert not anchor or anchor in [each.lower().replace(" ", "-") for each in headings]


def test_what_is_said_in_two_places_is_the_same():
    said = {path: set(re.findall(r"torch==([\d.]+\d)", (ROOT / path).read_text(encoding="utf-8")))
            for path in ("Makefile", "environment.yml", "minicogvx/doctor.py")}
    assert len(set.union(*said.values())) == 1 and all(said.values()), said
    parser = Parser()
    add_sampling_options(parser)  # its names stand there again because nothing heavy is imported for --help
    (option,) = [action for action in parser._actions if "--sampler" in action.option_strings]
    assert option.metavar.split("|") == list(SAMPLERS) and [option.type(name) for name in SAMPLERS] == list(SAMPLERS)
