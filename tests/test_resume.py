"""What may and what may not change when a run of `train` or `finetune` is resumed."""

import json

import pytest
import torch

from minicogvx.engine.config import ADAPTERS, JOINT, compare, override, surroundings
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.run_folder import forget_failed_start
from minicogvx.interop.safetensors_files import read_json
from minicogvx.training.finetune import FineTuning
from minicogvx.training.recipes import RECIPES

TUNING, MICRO = FineTuning(batch_size=4), RECIPES["micro"]


def write_down(*given):
    """As a run that is accepted."""
    compare(*given)()


@pytest.mark.parametrize(("config", "assignment"), [
    (TUNING, "accumulate=2"), (TUNING, "gradient_checkpointing=True"), (TUNING, "compile=True"),
    (TUNING, "sharding=fsdp"), (TUNING, "steps=1500"), (TUNING, "steps=900"),
    (MICRO, "transformer.accumulate=2"), (MICRO, "transformer.compile=True"), (MICRO, "transformer.sample_every=100"),
    (MICRO, "transformer.gradient_checkpointing=True"), (MICRO, "vae.1.gradient_checkpointing=True"),
    (MICRO, "vae.0.accumulate=2"), (MICRO, "transformer.stages.1.steps=2000"), (MICRO, "guidance_scale=2.0"),
])
def test_how_a_step_is_computed_may_change_and_is_reported_in_one_line(tmp_path, capsys, config, assignment):
    write_down(tmp_path / "run.json", config, 0)
    assert capsys.readouterr().out == ""
    write_down(tmp_path / "run.json", override(config, assignment), 0)
    name, _, value = assignment.partition("=")
    told, shown = capsys.readouterr().out, repr(value) if value == "fsdp" else value
    assert told.startswith(f"resuming with {name}={shown} (was ")
    assert told.count("\n") == 1 and str(read_json(tmp_path / "run.json")[name]) == value
    write_down(tmp_path / "run.json", override(config, assignment), 0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("config", "assignment"), [
    (TUNING, "batch_size=3"), (TUNING, "warmup=7"), (TUNING, "learning_rate=0.0"), (TUNING, "lora_rank=2"),
    (TUNING, "text_dropout=0.2"), (TUNING, "image.dropout=0.0"), (TUNING, "ema_decay=0.5"), (TUNING, "optimizer=muon"),
    (MICRO, "clips=9"), (MICRO, "vae.0.steps=2000"), (MICRO, "vae.1.batch_size=8"), (MICRO, "vae.0.chunk_frames=4"),
    (MICRO, "transformer.stages.0.steps=600"), (MICRO, "transformer.stages.1.batch_size=16"),
    (MICRO, "transformer.stages.1.latent_frames=2"), (MICRO, "two_objects=0.5"),
])
def test_what_is_learnt_may_not(tmp_path, config, assignment):
    write_down(tmp_path / "run.json", config, 0)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(ValueError, match="was begun with " + assignment.partition("=")[0].replace(".", r"\.") + "="):
        write_down(tmp_path / "run.json", override(config, assignment), 0)
    with pytest.raises(ValueError, match="was begun with seed=0, not 1"):
        write_down(tmp_path / "run.json", config, 1)
    assert (tmp_path / "run.json").read_text() == before


@pytest.mark.parametrize(("batch_size", "world", "told"), [
    (2, 4, "batch_size=2 (was 4), ranks=4 (was 2)"), (8, 1, "batch_size=8 (was 4), ranks=1 (was 2)"),
    (4, 1, f"{JOINT}=4 (was 8), ranks=1 (was 2)"), (3, 2, None), (3, 4, None), (8, 2, None),
])
def test_other_ranks_share_the_batch_or_say_that_it_is_another(tmp_path, capsys, batch_size, world, told):
    def write(batch_size, world):
        write_down(tmp_path / "run.json", FineTuning(batch_size=batch_size), 0,
                   surroundings(Ranks(0, world), torch.float32) | {JOINT: batch_size * world})

    write(4, 2)
    if told is None:
        with pytest.raises(ValueError, match="was begun with batch_size=4"):
            write(batch_size, world)
        return
    write(batch_size, world)
    parts = capsys.readouterr().out.removeprefix("resuming with ").strip().split(", ")
    assert sorted(parts) == sorted(told.split(", "))


def test_the_joint_batch_of_a_recipe_stays_whatever_the_ranks(tmp_path, capsys):
    write_down(tmp_path / "run.json", MICRO, 0, surroundings(Ranks(), torch.bfloat16))
    found = read_json(tmp_path / "run.json")
    assert (found["dtype"], found["device"], found["ranks"]) == ("bfloat16", "cpu", 1)
    assert found["torch"] == torch.__version__ and found["minicogvx"]
    write_down(tmp_path / "run.json", MICRO, 0, surroundings(Ranks(0, 2), torch.float32))
    assert capsys.readouterr().out == "resuming with dtype='float32' (was 'bfloat16'), ranks=2 (was 1)\n"
    with pytest.raises(ValueError, match="was begun with vae.0.batch_size=4"):
        write_down(tmp_path / "run.json", override(MICRO, "vae.0.batch_size=8"), 0,
                   surroundings(Ranks(0, 4), torch.float32))


def test_a_run_of_before_these_were_recorded_is_resumed_in_silence(tmp_path, capsys):
    write_down(tmp_path / "run.json", TUNING, 0)
    write_down(tmp_path / "run.json", TUNING, 0, surroundings(Ranks(), torch.float32) | {JOINT: 4})
    assert capsys.readouterr().out == "" and read_json(tmp_path / "run.json")["dtype"] == "float32"


@pytest.mark.parametrize("left", [None, "checkpoints/finetune_00000002.safetensors", "vae.safetensors",
                                  "pytorch_lora_weights.safetensors", "pipeline/model_index.json"])
def test_a_start_that_came_to_nothing_is_forgotten_and_another_is_not(tmp_path, left):
    (tmp_path / "run.json").write_text(json.dumps({"steps": 1, "seed": 0, "device": "cpu", "torch": "2"}))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "clips-00000.safetensors").touch()
    if left:
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).touch()
    forget_failed_start(tmp_path / "run.json")
    assert (tmp_path / "run.json").exists() == bool(left)


def test_nothing_is_written_or_told_until_a_run_is_accepted(tmp_path, capsys):
    path = tmp_path / "run.json"
    first = compare(path, TUNING, 0)
    assert not path.exists()
    first()
    before = path.read_text()
    longer = compare(path, override(TUNING, "steps=1200"), 0)
    assert path.read_text() == before and capsys.readouterr().out == ""
    longer()
    longer()
    assert read_json(path)["steps"] == 1200
    assert capsys.readouterr().out == "resuming with steps=1200 (was 1000)\n"


def test_other_adapters_are_named_by_their_files_and_not_by_hashes(tmp_path):
    path, tuning = tmp_path / "run.json", FineTuning(lora_rank=2, lora_from="cats.safetensors")
    write_down(path, tuning, 0, {ADAPTERS: "0a1b"})
    with pytest.raises(ValueError, match="was begun with other adapters: lora_from was 'cats.safetensors' and is now "
                                         "'dogs.safetensors'; name another folder") as error:
        compare(path, override(tuning, "lora_from=dogs.safetensors"), 0, {ADAPTERS: "2c3d"})
    assert "0a1b" not in str(error.value)


@pytest.mark.parametrize("made", ["pipeline/transformer/config.json", "cats.safetensors"])
def test_results_that_no_run_wrote_down_are_not_written_over(tmp_path, made):
    (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / made).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {made.split('/')[0]}, which this run did not make"):
        forget_failed_start(tmp_path / "run.json")
    assert (tmp_path / made).read_text() == "mine"
