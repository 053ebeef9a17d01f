"""`minicogvx train`: everything is checked before training; runs are resumed, made longer and stopped."""

import signal
import threading
from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.files import locked
from minicogvx.interop.safetensors_files import read_json, read_sharded, write_json
from minicogvx.training import recipes as recipes
from minicogvx.training.loop import Keep, Run
from minicogvx.training.recipes import Recipe, train_recipe
from minicogvx.training.transformer import TransformerStage, TransformerTraining
from minicogvx.training.vae import check_stages
from minicogvx.vae.discriminator import DiscriminatorConfig
from tests.test_training import GAN, STAGE, TINY

RECIPE = Recipe("micro", vae=(replace(STAGE, steps=2),), clips=4, two_objects=0.0,
                transformer=TransformerTraining((TransformerStage(1, 2, latent_frames=1), TransformerStage(2, 2))))
QUIET = Keep(progress=False)


@pytest.mark.parametrize("assignment", [
    "sizes.vae.norm_num_groups=0", "sizes.transformer.patch_size=0", "sizes.text.num_heads=0", "sizes.text.d_kv=0",
    "sizes.transformer.num_layers=0", "sizes.schedule.beta_end=-1.0", "sizes.schedule.num_train_timesteps=0",
    "sizes.text.d_model=64", "sizes.transformer.max_text_seq_length=3", "sizes.transformer.time_embed_dim=0",
    "transformer.stages=()", "vae=()", "transformer.ema_decay=2.0", "transformer.ema_decay=1.0", "vae.0.ema_decay=-0.1",
    "transformer.text_dropout=1.5", "transformer.clip=0.0", "transformer.muon_lr=-0.1", "transformer.warmup=-1",
    "transformer.stages.0.num_frames=0", "transformer.stages.0.side=0", "transformer.stages.1.latent_frames=0",
    "vae.0.chunk_frames=0", "vae.0.context_ranks=0", "vae.0.warmup=-1", "vae.0.adamw_lr=-1.0", "clips=0",
    "two_objects=1.5", "two_objects=-0.1", "transformer.alignment_weight=-1.0", "vae.0.frame_rates=(0,)",
    "transformer.caption_style=rhymed", "transformer.alignment_kinds=()", "vae.1.height=24", "vae.1.width=30",
    "guidance_scale=-1", "guidance_scale=nan", "vae.0.width=8208", "vae.0.height=1" + 20 * "0", "clips=20000000",
    "vae.0.steps=200000000", "vae.1.batch_size=65540", "vae.0.num_frames=10001", "transformer.stages.0.side=8200",
    "transformer.stages.1.num_frames=1" + 300 * "0", "transformer.accumulate=65", "vae.0.accumulate=5",
])
def test_what_cannot_be_trained_is_refused_before_anything_is(tmp_path, capsys, monkeypatch, assignment):
    monkeypatch.setattr(recipes, "train_vae", lambda *_, **__: pytest.fail("the VAE was trained"))
    assert cli.main(["train", "micro", "--out", str(tmp_path / "run"), "--set", assignment]) == 2
    told = capsys.readouterr().err
    assert told.startswith("minicogvx: ") and told.count("\n") == 1 and not (tmp_path / "run").exists()
    name = assignment.partition("=")[0].rpartition(".")[2]
    assert name in told or name == "d_model" and "text features are 64 wide" in told


@pytest.mark.parametrize("change, message", [
    ({"width": 14, "loss": replace(STAGE.loss, lpips_weight=0.5, lpips_net="vgg")},
     "vae.1.width is 14; it must be at least 16"),
    ({"height": 15, "loss": replace(STAGE.loss, lpips_weight=0.5, lpips_net="alex", lpips_upscale=2)}, "at least 16"),
    ({"height": 16, "loss": replace(STAGE.loss, lpips_weight=0.5, lpips_net="alex", lpips_upscale=2)}, None),
    ({"height": 24, "discriminator": DiscriminatorConfig(stages=5), "loss": GAN},
     "vae.1.height is 24; it must be at least 32"),
    ({"height": 24, "discriminator": DiscriminatorConfig(stages=5)}, None),
    ({"discriminator": DiscriminatorConfig(stages=10**6), "loss": GAN}, "which is what the discriminator needs"),
])
def test_frames_too_small_for_a_loss(monkeypatch, change, message):
    monkeypatch.setattr("minicogvx.training.vae.check_lpips", lambda net: None)
    stages = STAGE, replace(STAGE, **change)
    if message is None:
        check_stages(TINY.vae, stages)
        return
    with pytest.raises(ValueError, match=message):
        check_stages(TINY.vae, stages)


@pytest.mark.parametrize("command", [["train", "micro"], ["finetune", "films"]], ids=" ".join)
def test_a_seed_of_training_has_32_bits(tmp_path, capsys, command):
    assert cli.main([*command, "--out", str(tmp_path / "run"), "--seed", str(2**32)]) == 2
    told = capsys.readouterr().err
    assert "--seed is 4294967296; it must be from 0 to 4294967295" in told and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written_and_a_folder_in_use(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["train", "micro", "--out", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'} cannot be written" in capsys.readouterr().err
    with locked(tmp_path / "run"):
        assert cli.main(["train", "micro", "--out", str(tmp_path / "run")]) == 2
    assert "is in use by another run" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.fixture
def tiny(monkeypatch):
    """`train micro` trains next to nothing."""
    monkeypatch.setattr(recipes, "preset", lambda name: TINY)


def weights(folder):
    return read_sharded(folder / "pipeline" / "transformer")


def test_the_last_stage_is_made_longer_in_another_format_and_an_earlier_one_is_not(tiny, tmp_path, capsys):
    train_recipe(RECIPE, tmp_path, dtype=torch.float32, keep=QUIET)
    first, stages = weights(tmp_path), RECIPE.transformer.stages
    longer = replace(RECIPE, transformer=replace(RECIPE.transformer, accumulate=2,
                                                 stages=(stages[0], replace(stages[1], steps=4))))
    capsys.readouterr()
    train_recipe(longer, tmp_path, dtype=torch.bfloat16, keep=QUIET)
    line, = capsys.readouterr().out.splitlines()
    for change in ("transformer.stages.1.steps=4 (was 2)", "dtype='bfloat16' (was 'float32')",
                   "transformer.accumulate=2 (was 1)"):
        assert change in line
    assert any(not torch.equal(first[name], value) for name, value in weights(tmp_path).items())
    shifted = replace(RECIPE, transformer=replace(RECIPE.transformer, stages=(replace(stages[0], steps=2), stages[1])))
    with pytest.raises(ValueError, match=r"was begun with transformer.stages.0.steps=1, not 2"):
        train_recipe(shifted, tmp_path, keep=QUIET)
    written = (tmp_path / "recipe.json").read_text()
    capsys.readouterr()
    with pytest.raises(ValueError, match="holds transformer after 5 steps; ask for at least as many, not 3"):
        train_recipe(RECIPE, tmp_path, keep=QUIET)
    assert (tmp_path / "recipe.json").read_text() == written and capsys.readouterr().out == ""


def test_a_start_that_failed_does_not_block_the_next(tiny, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "train_vae", fails)
        with pytest.raises(torch.OutOfMemoryError):
            train_recipe(RECIPE, tmp_path, keep=QUIET)
    train_recipe(replace(RECIPE, clips=5), tmp_path, keep=QUIET)
    with pytest.raises(ValueError, match="was begun with clips=5, not 4"):
        train_recipe(RECIPE, tmp_path, keep=QUIET)


@pytest.mark.parametrize(("name", "step"), [("vae_0", 0), ("vae_0", 1), ("transformer", 1)])
def test_ctrl_c_in_any_part_ends_it_at_a_step_and_loses_none(tiny, tmp_path, monkeypatch, name, step):
    before, real = signal.signal(signal.SIGINT, signal.default_int_handler), Run.record

    def interrupted(self, *arguments, **values):
        if (self.name, self.done) == (name, step):
            signal.raise_signal(signal.SIGINT)
        real(self, *arguments, **values)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "record", interrupted)
            with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step + 1}; run the same command again"):
                train_recipe(RECIPE, tmp_path / "cut", dtype=torch.float32, keep=QUIET)
        assert (tmp_path / "cut" / "checkpoints" / f"{name}_{step + 1:08d}.safetensors").exists()
    finally:
        signal.signal(signal.SIGINT, before)
    train_recipe(RECIPE, tmp_path / "cut", dtype=torch.float32, keep=QUIET)
    train_recipe(RECIPE, tmp_path / "whole", dtype=torch.float32, keep=QUIET)
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_run_in_a_thread_or_without_a_folder_leaves_ctrl_c_alone(tiny, tmp_path):
    seen = []

    def watch(folder):
        run = Run("none", 2, replace(QUIET, folder=folder))
        run.resume({}, {})
        seen.extend(signal.getsignal(signal.SIGINT) for _ in run)

    before = signal.getsignal(signal.SIGINT)
    watch(None)
    thread = threading.Thread(target=watch, args=(tmp_path,))
    thread.start()
    thread.join()
    assert seen == [before] * 4


def test_a_size_that_changed_is_named_with_its_value(tiny, tmp_path):
    train_recipe(RECIPE, tmp_path, keep=QUIET)
    deeper = replace(RECIPE, sizes=replace(TINY, transformer=replace(TINY.transformer, num_layers=3)))
    path, numbers = tmp_path / "recipe.json", read_json(tmp_path / "recipe.json")
    assert numbers["sizes.transformer.num_layers"] == 1
    older = {name: value for name, value in numbers.items() if not name.startswith("sizes.")} | {"sizes": None}
    for record in (numbers, older):
        write_json(path, record)
        with pytest.raises(ValueError, match=r"was begun with sizes\.transformer\.num_layers=1, not 3"):
            train_recipe(deeper, tmp_path, keep=QUIET)
        train_recipe(RECIPE, tmp_path, keep=QUIET)


@pytest.mark.parametrize("made", ["pipeline/model_index.json", "cats.safetensors", "vae_0.jsonl", "vae_11.jsonl",
                                  "transformer.jsonl", "minutes.json", "samples/cat.png", "recipe.json"])
def test_a_folder_with_foreign_results_is_left_alone(tiny, tmp_path, made):
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).write_text("mine")
    with pytest.raises(ValueError, match="which this run did not make and would write over; name another folder"):
        train_recipe(RECIPE, tmp_path, keep=QUIET)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / made]
    assert (tmp_path / made).read_text() == "mine"


def test_a_run_that_fails_leaves_its_group_too(tmp_path, monkeypatch, capsys):
    left = []
    monkeypatch.setattr("minicogvx.engine.ranks.leave", lambda: left.append(True))
    monkeypatch.setattr(recipes, "train_recipe", lambda *_: (_ for _ in ()).throw(ValueError("no")))
    assert cli.main(["train", "micro", "--out", str(tmp_path / "run")]) == 2 and left == [True]
    assert cli.main(["finetune", str(tmp_path), "--out", str(tmp_path / "run")]) == 2 and left == [True] * 2
    assert "holds no clip that can be used" in capsys.readouterr().err
