"""A study of one's own: what is refused, what is trained, and what an interrupted one keeps."""

import json
from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.ablation import Study, command, comparing, own_study, read_study, results_figure, run_study, twins
from minicogvx.ablation.results import read_results
from minicogvx.ablation.tables import results_table
from minicogvx.ablation.transformers import Curve
from minicogvx.data.clips.world import WorldClips
from minicogvx.data.world.features import FEATURES
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.training.transformer import TransformerTask

TWO = {"two heads": {}, "one head": {"num_attention_heads": 1, "attention_head_dim": 64}}
FILE = '''"""Heads."""
from minicogvx.ablation import Study

study = Study(
    question="Two heads, or one of twice the width?",
    variants={
        "two heads": {},
        "one head": {"num_attention_heads": 1, "attention_head_dim": 64},
    },
    base={"num_layers": 1}, steps=2,
)
'''


@pytest.fixture(autouse=True)
def few_clips(monkeypatch):
    monkeypatch.setattr(twins, "_MEASURED", 4)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_study.py"
    path.write_text(FILE)
    return path


# ---- what is refused


@pytest.mark.parametrize("options, told", [
    ({"question": " "}, "question is empty"),
    ({"world": "moon"}, "world is 'moon'; it must be 'twins' or 'shapes'"),
    ({"steps": 0}, "steps is 0; it must be a whole number, 1 or more"),
    ({"steps": 2.5}, "steps is 2.5"), ({"batch_size": True}, "batch_size is True"), ({"clips": 64}, "clips is 64"),
    ({"variants": {"one": {}}}, "variants must map at least two names"),
    ({"variants": ["a", "b"]}, "variants must map at least two names"),
    ({"variants": {"a": {}, "b": "none"}}, "'b' is 'none'; it must map fields to values"),
    ({"variants": {"a": {}, "long": {"steps": 200}}}, "'long' changes steps, which all variants must share"),
    ({"variants": {"a": {}, "b": {"seed": 1}}}, "'b' changes seed, which all variants must share"),
    ({"variants": {"a": {}, "b": {"moved": 0}}}, "'b' changes moved, which all variants must share"),
    ({"variants": {"a": {}, "b": {"batch_size": 8}}}, "'b' changes batch_size, which all"),
    ({"variants": {"a": {}, "b": {"sample_frames": 9}}}, "'b' changes sample_frames, which the clips decide"),
    ({"variants": {"a": {}, "b": {"learning_rate": 0.1}}}, "the twins have a training of their own"),
    ({"variants": {"a": {}, "b": {"positions": "none"}}}, "no such field; did you mean position?"),
    ({"variants": {"a": {}, "b": {"num_layers": 0}}}, "'b': num_layers is 0"),
    ({"variants": {"a": {}, "b": {"position": "rope"}}}, "'a' and 'b' do not differ"),
    ({"variants": {"a": {}, "deep": {"num_layers": 3}}}, "parameters and 'a' 132,776, 48 % apart, where"),
    ({"variants": {"a": {}, "b": {"attention": "factorised"}}}, "'b' has 173,096 parameters and 'a' 132,776"),
])
def test_a_confounded_study_is_refused_in_one_sentence(options, told):
    with pytest.raises(ValueError) as error:
        Study(**{"question": "?", "variants": TWO, "steps": 2} | options)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_parameters_may_differ_by_a_stated_tolerance_and_a_width_pays_for_them():
    factorised = {"full": {"time_embed_dim": 42}, "factorised": {"attention": "factorised", "num_layers": 1}}
    with pytest.raises(ValueError, match="the tolerance is 3 %"):
        Study("?", factorised, 2, base={"num_layers": 1, "time_embed_dim": 16})
    paid = {"full": {"time_embed_dim": 36}, "factorised": {"attention": "factorised"}}
    study = Study("?", paid, 2, base={"num_layers": 1})
    assert max(study.parameters.values()) < 1.03 * min(study.parameters.values())
    assert Study("?", {"a": {}, "deep": {"num_layers": 3}}, 2, tolerance=0.5).parameters["deep"] > 190_000


def test_what_differs_in_training_is_a_variant_of_the_shapes_world():
    study = Study("?", {"spread": {}, "free": {"timesteps": "uniform"}}, 2, world="shapes", captions=3)
    named = study.named("mine")
    assert named.training == {"spread": {}, "free": {"timesteps": "uniform"}} and named.captions == 3
    assert named.variants["spread"] == named.variants["free"] and named.name == "mine"


# ---- a file


def test_a_file_s_own_mistakes_are_told_with_their_line(tmp_path):
    path = tmp_path / "mine.py"
    for text, told in (("x = 1\n", "has no study; it must define one"), ("study = 3\n", "has no study"),
                       ("x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
                       ("x = (\n", "line 1: SyntaxError"),
                       (FILE.replace('"two heads": {}', '"two heads": {"steps": 9}'),
                        "line 4: 'two heads' changes steps")):
        path.write_text(text)
        with pytest.raises(ValueError, match="mine.py") as error:
            read_study(path)
        assert told in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is no file .*nowhere.py; write your study into it"):
        read_study(tmp_path / "nowhere.py")


def test_the_command_trains_a_file_resumes_it_and_refuses_an_edited_one(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["ablate", "my_study.py", "--seeds", "2"]
    assert cli.main([*run, "--plot", "mine.png"]) == 0
    told = capsys.readouterr().out
    assert "one head, 16 moved, seed 1, " in told and "less two heads, 16 moved" in told
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "runs" / "ablate" / "my_study.json"
    made = read_results(out)
    assert made.name == "my_study" and made.command.startswith("minicogvx ablate my_study.py --seeds 2 --steps 2 ")
    assert [(curve.seed, curve.name) for curve in made.curves] == [
        (seed, f"{name}, 16 moved") for seed in (0, 1) for name in TWO]
    made.curves.pop(1)  # as if it had been killed there
    content = json.loads(out.read_text())
    content["curves"].pop(1)
    out.write_text(json.dumps(content))
    trained, real = [], command.comparison

    def watched(*where):
        compare = real(*where)
        return lambda steps, seed, on_step, names: (trained.append((seed, *names)),
                                                    compare(steps, seed, on_step, names))[1]

    monkeypatch.setattr(command, "comparison", watched)
    assert cli.main([*run, "--resume"]) == 0 and trained == [(0, "one head")]
    assert [curve.name for curve in read_results(out).curves] == [f"{name}, 16 moved" for name in TWO] * 2
    file.write_text(FILE.replace("steps=2", "steps=2, batch_size=8"))
    capsys.readouterr()
    assert cli.main([*run, "--resume"]) == 2
    assert "was made by a study with other variants" in capsys.readouterr().err and trained == [(0, "one head")]
    assert cli.main(["ablate", "elsewhere.py"]) == 2
    assert "there is no file elsewhere.py" in capsys.readouterr().err


def test_a_confounded_file_is_refused_before_anything_is_trained(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file.write_text(FILE.replace('"one head": {', '"one head": {"steps": 99, '))
    assert cli.main(["ablate", "my_study.py"]) == 2
    said = capsys.readouterr().err
    assert "changes steps, which all variants must share" in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# ---- from a notebook


def test_the_same_from_python_keeps_what_is_done(tmp_path, monkeypatch):
    study, out, trained = Study("?", TWO, 2, base={"num_layers": 1}), tmp_path / "own.json", []
    real = own_study.comparison

    def watched(*where):
        compare = real(*where)
        return lambda steps, seed, on_step, names: (trained.append((seed, *names)),
                                                    compare(steps, seed, on_step, names))[1]

    monkeypatch.setattr(own_study, "comparison", watched)
    first = run_study(study, 1, out)
    more = run_study(study, 2, out)
    assert trained == [(seed, name) for seed in (0, 1) for name in TWO]
    assert [curve.loss[-1] for curve in more.curves[:2]] == pytest.approx([c.loss[-1] for c in first.curves], rel=1e-5)
    assert run_study(study, 2, out).curves == read_results(out).curves and len(trained) == 4
    assert len(run_study(study, 1).curves) == 2  # without a file
    with pytest.raises(ValueError, match="seeds is 0"):
        run_study(study, 0)
    with pytest.raises(ValueError, match="was made by a study with other"):
        run_study(replace(study, moved=8), 2, out)


def test_variants_of_one_seed_differ_in_nothing_else(monkeypatch):
    """The same vectors and labels, in the same order, for every variant."""
    seen, draw = [], twins.twin_clips

    def watched(count, moved, generator):
        clips, labels = draw(count, moved, generator)
        seen.append((clips.sum().item(), labels.sum().item()))
        return clips, labels

    monkeypatch.setattr(twins, "twin_clips", watched)
    run_study(Study("?", TWO, 3, base={"num_layers": 1}), 1)
    assert len(seen) == 8 and seen[:4] == seen[4:] and len(set(seen[:4])) == 4


def test_a_study_in_the_shapes_world_changes_the_training_of_its_variant(monkeypatch):
    mean = torch.randn(72, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    clips = WorldClips(sample_scenes(72, 0), mean.half(), torch.full_like(mean, 0.1).half(), 1.0,
                       torch.zeros(72, 5, 8, 8, FEATURES), 64)
    monkeypatch.setattr(comparing, "study_latents", lambda *_: clips)
    seen, losses = {}, TransformerTask.losses

    def watched(self, batch, *weight):
        if len(batch.examples) == 8:
            seen.setdefault(self.training.timesteps, []).append([
                (one.timestep, one.noise.sum().item(), one.caption) for one in batch.examples])
        return losses(self, batch, *weight)

    monkeypatch.setattr(TransformerTask, "losses", watched)
    base = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16}
    study = Study("?", {"spread": {}, "free": {"timesteps": "uniform"}}, 2, world="shapes", clips=72, base=base,
                  batch_size=8)
    curves = run_study(study, 1).curves
    assert [curve.name for curve in curves] == ["spread", "free"] and curves[0].loss[-1] != curves[1].loss[-1]
    spread, free = seen["stratified"][0], seen["uniform"][0]
    assert [one[1:] for one in spread] == [one[1:] for one in free]  # noise and captions
    assert sorted(t * 8 // 1000 for t, *_ in spread) == list(range(8))
    assert [t for t, *_ in spread] != [t for t, *_ in free]


# ---- table and figure


def some_curves(seeds: int) -> list[Curve]:
    return [Curve(name, seed, size, [0, 5, 10], [2.0, 1.0, loss + 0.01 * seed], 1.0)
            for seed in range(seeds) for name, size, loss in (("old", 1000, 0.5), ("new", 1010, 0.4))]


def test_the_table_has_a_line_for_each_variant():
    head, old, new = results_table(some_curves(3), "old")
    assert head.split()[:3] == ["variant", "parameters", "seeds"] and head.endswith("less old")
    assert "1,000      3" in old and "0.5100 (0.4852 to 0.5348)" in old
    assert new.endswith("-0.1000 (95 % interval -0.1000 to -0.1000, 3 seeds): lower")
    assert results_table(some_curves(1), "old")[2].endswith("-0.1000 (one seed, no interval): cannot be told")
    with pytest.raises(ValueError, match="there is no variant 'older'"):
        results_table(some_curves(3), "older")


def test_the_figure_is_drawn_for_one_seed_and_for_several():
    for seeds in (1, 3):
        curves, differences = results_figure(some_curves(seeds), "old").axes
        assert [line.get_label() for line in curves.lines] == ["old", "new"]
        assert list(differences.lines[0].get_xdata()) == pytest.approx([-0.1] * seeds)
        assert [label.get_text() for label in differences.get_yticklabels()] == ["new"]
    with pytest.raises(ValueError, match="there is no variant 'older'"):
        results_figure(some_curves(1), "older")
