"""Every number of a recipe can be changed by its path, and nothing else."""

from dataclasses import fields as dataclass_fields

import pytest

from minicogvx import cli
from minicogvx.engine.config import fields, override
from minicogvx.training.finetune import FineTuning
from minicogvx.training.recipes import RECIPES

TOY = RECIPES["toy"]


@pytest.mark.parametrize(("assignment", "read", "value"), [
    ("transformer.stages.1.steps=200", lambda r: r.transformer.stages[1].steps, 200),
    ("transformer.ema_decay=0.99", lambda r: r.transformer.ema_decay, 0.99),
    ("transformer.muon_lr=1", lambda r: r.transformer.muon_lr, 1.0),
    ("transformer.caption_style=dense", lambda r: r.transformer.caption_style, "dense"),
    ("transformer.optimizer=adamw", lambda r: r.transformer.optimizer, "adamw"),
    ("transformer.compile=True", lambda r: r.transformer.compile, True),
    ("transformer.alignment_kinds=('colour',)", lambda r: r.transformer.alignment_kinds, ("colour",)),
    ("vae.0.loss.lpips_net=vgg", lambda r: r.vae[0].loss.lpips_net, "vgg"),
    ("vae.2.chunk_frames=None", lambda r: r.vae[2].chunk_frames, None),
    ("clips=7", lambda r: r.clips, 7),
])
def test_one_field_changes_and_all_others_stay(assignment, read, value):
    changed = override(TOY, assignment)
    assert read(changed) == value and type(read(changed)) is type(value)
    before, after = fields(TOY), fields(changed)
    assert before.keys() == after.keys()
    assert [path for path in before if before[path] != after[path]] in ([assignment.partition("=")[0]], [])


def test_several_change_together_in_any_order():
    assignments = ["vae.0.batch_size=2", "vae.0.accumulate=2", "vae.1.steps=3", "clips=5"]
    start = override(TOY, "vae.0.batch_size=1")
    with pytest.raises(ValueError, match="accumulate is 2; it must be from 1 to batch_size=1"):
        override(start, assignments[1])
    one, other = override(start, *assignments), override(start, *reversed(assignments))
    assert one == other and (one.vae[0].accumulate, one.vae[0].batch_size, one.vae[1].steps, one.clips) == (2, 2, 3, 5)
    assert override(TOY, "clips=5", "clips=6").clips == 6 and override(TOY) == TOY
    assert override(TOY, "transformer.alignment_kinds.0=colour").transformer.alignment_kinds == ("colour", "motion")


def test_every_field_is_named_and_its_own_value_fits():
    paths = fields(TOY)
    assert len(paths) > 60 and paths["vae.0.loss.l2_weight"] == 10.0
    for path, value in paths.items():
        assert override(TOY, f"{path}={value!r}") == TOY
    assert {f.name for f in dataclass_fields(TOY)} == {path.split(".")[0] for path in paths}


@pytest.mark.parametrize(("assignment", "message"), [
    ("clips", "'clips' sets nothing; write it as PATH=VALUE"),
    ("clip=3", "clip leads nowhere: 'clip' must be one of preset, vae, clips"),
    ("vae.3.steps=1", "vae.3.steps leads nowhere: '3' must be from 0 to 2"),
    ("clips.steps=1", "clips.steps leads nowhere: there is nothing below int 12000"),
    ("clips=many", "clips is 'many'; it must be a whole number"),
    ("clips=1.5", "clips is 1.5; it must be a whole number"),
    ("transformer.compile=1", "transformer.compile is 1; it must be True or False"),
    ("transformer.optimizer=sgd", "transformer.optimizer is 'sgd'; it must be one of 'muon', 'adamw'"),
    ("vae.0.chunk_frames=eight", "vae.0.chunk_frames is 'eight'; it must be a whole number or None"),
    ("transformer.accumulate=0", "accumulate is 0; it must be 1 or more"),
    ("transformer.alignment_kinds=('taste',)", "there is no feature 'taste' to align with"),
    ("transformer.alignment_kinds=colour", "transformer.alignment_kinds is 'colour'; it must be a tuple"),
])
def test_a_wrong_path_or_value_is_one_sentence(assignment, message):
    with pytest.raises(ValueError) as error:
        override(TOY, assignment)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_gpu_that_is_not_there_is_refused_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["train", "micro", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "device is 'cuda', and PyTorch finds no such device here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_shows_what_it_would_train(capsys):
    assert cli.main(["train", "micro", "--set", "transformer.stages.0.steps=3", "--show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "transformer.stages.0.steps=3" in lines and "preset='micro'" in lines


@pytest.mark.parametrize(("assignment", "value"), [("lora_alpha=16", 16.0), ("learning_rate=0", 0.0), ("clip=2", 2.0)])
def test_a_whole_number_does_where_any_is_wanted(assignment, value):
    changed = getattr(override(FineTuning(), assignment), assignment.partition("=")[0])
    assert changed == value and type(changed) is float


@pytest.mark.parametrize("text", ["9" * 400, "-" + "9" * 5000, "{[1]}", "(" * 500 + ")" * 500, "[" * 90 + "]" * 90],
                         ids=["400 digits", "5000 digits", "unhashable", "nested", "nested lists"])
@pytest.mark.parametrize("name", ["clips", "transformer.muon_lr", "transformer.compile", "transformer.optimizer"])
def test_what_is_no_value_is_one_short_sentence(name, text):
    with pytest.raises(ValueError, match=name.rpartition(".")[2] + " is ") as error:
        override(TOY, f"{name}={text}")
    assert "it must be " in str(error.value) and len(str(error.value)) < 200 and "\n" not in str(error.value)
