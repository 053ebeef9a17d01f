"""README and pages: commands are valid and their files exist or are made by an earlier line; links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path

from minicogvx import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted(path for pattern in ("*.md", "*/README.md", "*/*/README.md", "docs/*.md", "notebooks/*.md")
               for path in ROOT.glob(pattern) if path.relative_to(ROOT).parts[0] in (
                   path.name, "benchmarks", "data", "docs", "notebooks"))
# What a command reads (names of its arguments), and the files that it makes.
READS = ("image", "video", "lora", "list", "model", "before", "captioner", "summary", "aesthetic", "folder")
MADE = {"train": ["pipeline"], "finetune": ["pipeline"], "data curate": ["kept.jsonl", "best.jsonl", "report.html"]}
NAMES = ("toy", "shapes", "random", "world")  # instead of a folder
YOURS = "outputs/videos"  # stands for the reader's own films; README and "Your own films" say where they come from


def blocks(text: str) -> list[str]:
    """The lines of all code blocks for a shell, continued ones joined."""
    pieces = re.split(r"^```(.*)\n", text, flags=re.MULTILINE)  # prose, language, code, "", prose, language, ...
    inside = "".join(code for language, code in zip(pieces[1::4], pieces[2::4]) if language in ("", "bash", "sh"))
    return inside.replace("\\\n", " ").splitlines()


def words_of(line: str) -> list[str] | None:
    """What follows `minicogvx` in a line of a shell; None where that is not called."""
    if "minicogvx " not in line:
        return None
    words = shlex.split(line, comments=True)
    while words and (words[0] in ("PYTHONPATH=.", "torchrun") or words[0].startswith("-") or words[0].isdigit()):
        words = words[1:]  # torchrun's own options, up to `-m minicogvx`
    words = words[:words.index(">")] if ">" in words else words
    return words[1:] if words[:1] in (["minicogvx"], [".venv/bin/minicogvx"]) else None


def parse(words: list[str]):
    """(name of the command, its arguments), by the command's own parser."""
    module = importlib.import_module(cli.COMMANDS[words[0]][0])
    if words[0] == "data":
        return " ".join(words[:2]), module._parser(words[1]).parse_args(words[2:])
    if not hasattr(module, "_parser"):
        assert not words[1:]
        return words[0], None
    return words[0], module._parser().parse_args(words[1:])


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.+?)\s*$", without_code(text), flags=re.MULTILINE)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def links(text: str) -> list[str]:
    """Targets of the links and pictures in a page's prose."""
    prose = re.sub(r"`[^`\n]*`", "", without_code(text))
    return re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)


def run_as_written(page: Path) -> list[str]:
    """The commands of a page, each of which reads what is shipped or what an earlier one made."""
    made, seen = set() if page.name in ("README.md", "own_films.md") else {YOURS}, []
    for line in blocks(page.read_text()):
        if not words_of(line) or re.search(r"\b[A-Z]{4,}\b", line):
            continue  # no command, or one with a word to fill in
        if not words_of(line)[1:]:
            seen.append(words_of(line)[0])
            continue
        command, arguments = parse(words_of(line))
        seen.append(command)
        given = {} if arguments is None else vars(arguments)
        writes = "folder" if command in ("data shapes", "export") else "out"
        reads = {*READS, "data"} if command in ("train", "finetune") else set(READS)
        for name in reads - {writes}:
            value = given.get(name)
            if isinstance(value, str) and value not in NAMES:  # --lora is also a rank
                shipped = (ROOT / value).exists() and Path(value).parts[0] not in ("outputs", "runs")
                assert value in made or shipped, f"{page.name}: {line}\n{value} is nowhere"
        out = given.get(writes) or (f"runs/{given['recipe']}" if command == "train" else None)
        if out:
            made |= {out, *(f"{out}/{name}" for name in MADE.get(command, []))}
        if command == "generate" and out:
            made |= {str(Path(out).with_suffix(ending)) for ending in (".gif", ".png")}
    return seen


def test_the_pages_commands_run_as_written(subtests):
    seen = {}
    for page in (README, *sorted(ROOT.glob("docs/*.md"))):
        with subtests.test(page=page.name):
            seen[page.name] = run_as_written(page)
    every = [command for commands in seen.values() for command in commands]
    assert len(seen["README.md"]) == 6 and len(every) > 40
    assert set(every) >= set(cli.COMMANDS) - {"data"}  # whose commands have two words


def test_the_readme_has_500_to_700_words():
    """As `wc -w` counts, without the course table and what is in code blocks."""
    text = re.sub(r"<!-- notebooks -->.*<!-- /notebooks -->", "", README.read_text(), flags=re.DOTALL)
    assert 500 <= len(without_code(text).split()) <= 700


def test_links_lead_to_a_file_and_a_heading(subtests):
    for page in PAGES:
        for link in links(page.read_text()):
            if re.match(r"[a-z]+:", link):
                continue  # elsewhere
            with subtests.test(link, page=page.name):
                place, _, anchor = link.partition("#")
                path = page if not place else page.parent / place
                assert path.exists(), f"{page.name} links to {place}, which is not there"
                if anchor:
                    assert anchor in anchors(path.read_text()), f"{page.name}: {place} has no heading #{anchor}"


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop().resolve()
        if page not in reached and page.suffix == ".md" and page.exists():
            reached.add(page)
            waiting += [page.parent / link.partition("#")[0] for link in links(page.read_text())
                        if not re.match(r"[a-z]+:|#", link)]
    left_out = {path.name for path in ROOT.glob("docs/*.md")} - {path.name for path in reached} - {"index.md"}
    assert left_out == set()


def test_files_targets_and_modules_named_on_a_page_exist(subtests):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        inline = re.findall(r"`([^`\n]+)`", without_code(text))
        for piece in (*inline, *blocks(text)):
            with subtests.test(piece, page=page.name):
                for target in re.findall(r"^(?:.* )?make ([a-z][a-z-]*)\b(?!/)", piece.partition("#")[0]):
                    assert target in targets or "$" in piece, piece
                for module in re.findall(r"python -m (minicogvx[\w.]*|benchmarks[\w.]*)", piece):
                    assert importlib.util.find_spec(module), piece
        for path in inline:
            if re.fullmatch(r"(minicogvx|tests|data|benchmarks|notebooks|docs)/[\w./-]+\.(py|json|toml|md|mp4)", path) \
                    and not re.search("NN|NAME", path):
                with subtests.test(path, page=page.name):
                    assert (ROOT / path).exists() or (page.parent / path).exists()


def test_every_command_on_a_page_is_one_that_the_program_takes(subtests):
    for page in PAGES:
        text = page.read_text()
        inline = [" ".join(piece.split()) for piece in re.findall(r"`((?:minicogvx|torchrun) [^`]+)`", text)]
        for line in (*blocks(text), *inline):
            words = None if "..." in line or re.search(r"\b[A-Z]{4,}\b", line) else words_of(line)
            if not words or words[0] in ("version", "--version", "help"):
                continue  # part of a command, or one with a word to fill in
            with subtests.test(line, page=page.name):
                assert words[0] in cli.COMMANDS
                try:
                    parse(words) if words[1:] else None
                except ValueError as error:  # in a sentence, a command may lack what goes without saying
                    assert line in inline and re.search("are required|expected one argument", str(error)), error


def test_every_training_on_a_page_passes_the_checks_before_work(subtests, tmp_path, monkeypatch):
    """Of one process, from random weights, on the shapes world: the recipe with its changes, at its sizes."""
    monkeypatch.chdir(tmp_path)
    begun = []
    monkeypatch.setattr("minicogvx.training.train.train", lambda job, ranks: begun.append(job.recipe))
    for page in PAGES:
        for line in blocks(page.read_text()):
            words = None if re.search(r"\b[A-Z]{4,}\b|torchrun", line) else words_of(line)
            if words and words[0] == "train" and not {"--from", "--data", "--show"} & {*words} and "." not in words[1]:
                with subtests.test(line, page=page.name):
                    assert cli.main(words) == 0
    assert len(begun) > 3
