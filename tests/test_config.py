"""Configs: every number can be changed by its path, and a run knows what of it may change when it is resumed."""

import json
from dataclasses import fields as dataclass_fields
from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.engine.config import ADAPTERS, compare, fields, override, surroundings
from minicogvx.engine.ranks import Ranks
from minicogvx.interop.safetensors_files import read_json, write_json
from minicogvx.training.recipes import load_recipe

TOY = load_recipe("toy")
FINETUNE = load_recipe("finetune")


def test_every_field_has_a_path_and_changes_alone(subtests):
    for assignment, read, value in (
            ("transformer.stages.1.steps=200", lambda r: r.transformer.stages[1].steps, 200),
            ("transformer.ema_decay=0.99", lambda r: r.transformer.ema_decay, 0.99),
            ("transformer.muon_factor=1", lambda r: r.transformer.muon_factor, 1.0),
            ("transformer.learning_rate=0", lambda r: r.transformer.learning_rate, 0.0),
            ("transformer.lora_alpha=16", lambda r: r.transformer.lora_alpha, 16.0),
            ("transformer.caption_style=dense", lambda r: r.transformer.caption_style, "dense"),
            ("transformer.compile=True", lambda r: r.transformer.compile, True),
            ("transformer.alignment_kinds=('colour',)", lambda r: r.transformer.alignment_kinds, ("colour",)),
            ("vae.stages.0.loss.lpips_net=vgg", lambda r: r.vae.stages[0].loss.lpips_net, "vgg"),
            ("vae.chunk_frames=None", lambda r: r.vae.chunk_frames, None), ("clips=7", lambda r: r.clips, 7)):
        with subtests.test(assignment):
            changed = override(TOY, assignment)
            assert read(changed) == value and type(read(changed)) is type(value)
            before, after = fields(TOY), fields(changed)
            assert before.keys() == after.keys()
            assert [path for path in before if before[path] != after[path]] in ([assignment.partition("=")[0]], [])
    paths = fields(TOY)
    assert len(paths) > 60 and {f.name for f in dataclass_fields(TOY)} == {path.split(".")[0] for path in paths}
    for path, value in paths.items():
        assert override(TOY, f"{path}={value!r}") == TOY


def test_several_change_together_in_any_order():
    together = ["transformer.sharding=fsdp", "transformer.offload=True", "transformer.optimizer=adamw", "clips=5"]
    with pytest.raises(ValueError, match="offload is True"):
        override(TOY, together[1])
    one, other = override(TOY, *together), override(TOY, *reversed(together))
    assert one == other and one.transformer.offload and one.clips == 5
    assert override(TOY, "clips=5", "clips=6").clips == 6 and override(TOY) == TOY
    assert override(TOY, "transformer.alignment_kinds.0=colour").transformer.alignment_kinds[0] == "colour"


def test_a_wrong_path_or_value_is_one_short_sentence_that_names_it(subtests):
    wrong = {"clips": "'clips' sets nothing", "clip=3": "clip leads nowhere: 'clip' must be one of preset",
             "vae.stages.9.steps=1": "vae.stages.9.steps leads nowhere: '9' must be from 0 to ",
             "clips.steps=1": "clips.steps leads nowhere", "clips=many": "clips is 'many'; it must be a whole number",
             "clips=1.5": "clips is 1.5", "transformer.compile=1": "transformer.compile is 1; it must be True or False",
             "transformer.optimizer=sgd": "transformer.optimizer is 'sgd'; it must be one of 'adamw', 'muon'",
             "vae.chunk_frames=eight": "vae.chunk_frames is 'eight'; it must be a whole number or None",
             "transformer.accumulate=0": "accumulate is 0; it must be 1 or more",
             "transformer.alignment_kinds=('taste',)": "no feature 'taste'",
             "transformer.alignment_kinds=colour": "transformer.alignment_kinds is 'colour'; it must be a tuple"}
    for name in ("clips", "transformer.muon_factor", "transformer.compile", "transformer.optimizer"):
        for text in ("9" * 400, "-" + "9" * 5000, "{[1]}", "(" * 500 + ")" * 500, "[" * 90 + "]" * 90):
            wrong[f"{name}={text}"] = f"{name.rpartition('.')[2]} is "
    for assignment, told in wrong.items():
        with subtests.test(assignment[:60]), pytest.raises(ValueError) as error:
            override(TOY, assignment)
        assert told in str(error.value) and len(str(error.value)) < 900 and "\n" not in str(error.value)


def test_the_command_shows_what_it_would_train(capsys):
    for words, lines in ((["train", "micro", "--set", "transformer.stages.0.steps=3"], ["steps = 3"]),
                         (["train", "micro", "--set", "sizes.transformer.num_layers=2"], ["num_layers = 2"]),
                         (["finetune", "films", "--set", "warmup=7", "--lora", "4"], ["warmup = 7", "lora_rank = 4"])):
        assert cli.main([*words, "--show"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert set(lines) < set(shown)


# ---- resuming


@pytest.fixture
def record(tmp_path):
    """Begins or resumes a run, which is accepted; `record.path` is where it is written down."""
    def write(config, seed=0, also={}):
        compare(write.path, config, seed, also)()

    write.path = tmp_path / "recipe.json"
    return write


def test_how_a_step_is_computed_may_change_and_is_told_in_one_line(record, capsys, subtests):
    config = override(TOY, "transformer.alignment_weight=0.0")
    last = f"transformer.stages.{len(TOY.transformer.stages) - 1}.steps"
    for assignment in ("transformer.accumulate=2", "transformer.compile=True", "transformer.sample_every=100",
                       "transformer.gradient_checkpointing=True", "vae.gradient_checkpointing=True", "vae.accumulate=2",
                       "transformer.workers=1", "transformer.context_ranks=2", f"{last}=9000", "guidance_scale=2.0"):
        with subtests.test(assignment):
            record.path.unlink(missing_ok=True)
            record(config, also=surroundings(Ranks(), torch.bfloat16))
            assert capsys.readouterr().out == ""
            changed = override(config, assignment)
            record(changed, also=surroundings(Ranks(0, 2), torch.float32))
            told = capsys.readouterr().out
            path, _, value = assignment.partition("=")
            assert told.startswith("resuming with ") and told.count("\n") == 1
            for part in (f"{path}={value} (was ", "dtype='float32' (was 'bfloat16')", "ranks=2 (was 1)"):
                assert part in told
            found = read_json(record.path)
            assert str(found[path]) == value and (found["dtype"], found["ranks"]) == ("float32", 2)
            assert found["torch"] == torch.__version__ and found["device"] == "cpu" and found["minicogvx"]
            record(changed, also=surroundings(Ranks(0, 2), torch.float32))
            assert capsys.readouterr().out == ""


def test_what_is_learnt_may_not_change(record, subtests):
    """Nor may the joint batch, whatever the number of ranks."""
    for config, assignments in (
            (TOY, ("clips=9", "vae.stages.0.steps=2000", "vae.stages.1.batch_size=8", "vae.chunk_frames=4",
                   "transformer.stages.0.steps=7", "transformer.stages.0.batch_size=16", "two_objects=0.5",
                   "transformer.stages.0.images=0.5", "transformer.stages.0.pack=4096")),
            (FINETUNE, ("transformer.stages.0.batch_size=3", "transformer.warmup=7", "transformer.learning_rate=0.0",
                        "transformer.lora_rank=2", "transformer.text_dropout=0.2", "transformer.image.dropout=0.0",
                        "transformer.ema_decay=0.5", "transformer.optimizer=muon"))):
        record.path.unlink(missing_ok=True)
        record(config)
        before = record.path.read_text()
        for assignment in assignments:
            with subtests.test(assignment):
                path = assignment.partition("=")[0].replace(".", r"\.")
                with pytest.raises(ValueError, match=f"was begun with {path}="):
                    record(override(config, assignment), also=surroundings(Ranks(0, 4), torch.float32))
        with pytest.raises(ValueError, match="was begun with seed=0, not 1"):
            record(config, 1)
        assert record.path.read_text() == before
    config = override(FINETUNE, "transformer.lora_rank=2", "transformer.lora_from=cats.safetensors")
    record.path.unlink()
    record(config, also={ADAPTERS: "0a1b"})
    with pytest.raises(ValueError, match="was begun with other adapters: .*'cats.safetensors'.*'dogs.saf") as error:
        record(override(config, "transformer.lora_from=dogs.safetensors"), also={ADAPTERS: "2c3d"})
    assert "0a1b" not in str(error.value), "files are named, not hashes"


def test_nothing_is_written_or_told_until_a_run_is_accepted(record, capsys):
    first = compare(record.path, FINETUNE, 0)
    assert not record.path.exists()
    first()
    before = record.path.read_text()
    longer = compare(record.path, override(FINETUNE, "transformer.stages.0.steps=1200"), 0)
    assert record.path.read_text() == before and capsys.readouterr().out == ""
    longer()
    longer()
    assert read_json(record.path)["transformer.stages.0.steps"] == 1200
    assert capsys.readouterr().out == "resuming with transformer.stages.0.steps=1200 (was 1000)\n"


def test_a_field_that_was_not_there_when_a_run_was_begun_had_its_default(record, capsys):
    record(TOY, also={"weights": "a"})
    older = {name: value for name, value in read_json(record.path).items()
             if not name.endswith("context_ranks") and name != "transformer.lora_rank"}
    write_json(record.path, older)
    with pytest.raises(ValueError, match="was begun with transformer.lora_rank=0, not 2"):
        record(replace(TOY, transformer=replace(TOY.transformer, lora_rank=2)), also={"weights": "a"})
    assert json.loads(record.path.read_text()) == older
    record(TOY, also={"weights": "a"} | surroundings(Ranks(), torch.float32))
    assert read_json(record.path)["transformer.context_ranks"] == 1 and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="was begun with weights='a', not 'b'"):
        record(TOY, also={"weights": "b"})
