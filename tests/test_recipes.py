"""Recipes: read from TOML files, changed on the command line, printed, checked before work."""

import tomllib
from dataclasses import replace

import pytest

from minicogvx import cli
from minicogvx.engine.config import from_table, override, to_toml
from minicogvx.presets import preset
from minicogvx.training.checks import check_transformer, check_vae
from minicogvx.training.recipes import Recipe, load_recipe, recipe_names
from minicogvx.training.settings import TransformerTraining, VAEStage, VAETraining
from minicogvx.training.stages import Stage
from minicogvx.vae.losses import VAELossConfig


def test_those_that_are_shipped_can_be_printed_and_read_again(tmp_path, capsys):
    assert {"micro", "toy", "small", "published", "finetune"} == set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert cli.main(["train", name, "--show"]) == 0
        (tmp_path / f"{name}.toml").write_text(capsys.readouterr().out)
        assert load_recipe(str(tmp_path / f"{name}.toml")) == recipe
    assert cli.main(["train", "micro", "--show", "--set", "preset=toy", "--set", "sizes.transformer.num_layers=3"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert shown["sizes"]["vae"]["latent_channels"] == 16 and shown["sizes"]["transformer"]["num_layers"] == 3
    whole = override(replace(load_recipe("micro"), sizes=None), "transformer.stages.1.steps=7", "vae.chunk_frames=None",
                     "transformer.alignment_kinds=('shape',)")
    assert from_table(Recipe, tomllib.loads(to_toml(whole))) == whole


def test_those_from_random_weights_can_be_trained():
    for name in ("micro", "toy", "small"):
        recipe = load_recipe(name)
        sizes = recipe.model_sizes
        check_vae(sizes.vae, replace(recipe.vae, stages=tuple(
            replace(stage, loss=replace(stage.loss, lpips_weight=0.0)) for stage in recipe.vae.stages)))
        check_transformer(sizes, recipe.transformer)


def test_the_published_stages_are_those_of_table_5():
    stages = load_recipe("published").transformer.stages
    assert [(s.height, s.width, (s.num_frames - 1) // 8, s.batch_size, s.steps) for s in stages] == [
        (256, 384, 6, 2000, 400_000), (480, 720, 6, 1000, 220_000), (768, 1360, 10, 250, 120_000),
        (768, 1360, 10, 100, 10_000)]
    assert [s.best for s in stages] == [1, 1, 1, 0.2]
    sizes = preset("5b")
    tokens = [sizes.transformer.max_text_seq_length + sizes.transformer.num_patches(
        sizes.vae.latent_size(s.num_frames, s.height, s.width)) for s in stages]
    assert tokens == [5_218, 17_776, 85_906, 85_906]
    assert all(count < length for count, length in zip(tokens, (25_000, 75_000, 700_000, 700_000)))


def test_finetune_takes_its_numbers_from_a_published_stage_and_options_change_them(capsys, monkeypatch):
    def shown(*words: str) -> dict:
        assert cli.main(["finetune", "films", "--show", *words]) == 0
        training = tomllib.loads(capsys.readouterr().out)["transformer"]
        return training | training["stages"][0]

    plain = shown()
    assert (plain["steps"], plain["batch_size"], plain["accumulate"]) == (1000, 2, 1) and plain["height"] == "none"
    two = {"height": 480, "width": 720, "num_frames": 49, "steps": 220_000, "batch_size": 1000, "accumulate": 1000}
    assert two.items() <= shown("--model", "5b", "--stage", "2").items()
    assert shown("--model", "5b", "--stage", "1", "--batch-size", "3")["accumulate"] == 3
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert shown("--model", "5b", "--stage", "4")["batch_size"] == 100  # without a rank it is not torchrun's
    monkeypatch.setenv("RANK", "0")
    four = {"height": 64, "width": 1360, "num_frames": 41, "steps": 7, "batch_size": 112, "accumulate": 2, "best": 0.2}
    assert four.items() <= shown("--model", "5b", "--stage", "4", "--steps", "7", "--height", "64", "--fps", "4",
                                 "--set", "accumulate=2").items()
    for words, told in ((["--stage", "5"], "stage is 5"), (["--stage", "0"], "stage is 0")):
        assert cli.main(["finetune", "nowhere", *words]) == 2 and told in capsys.readouterr().err


def test_the_defaults_are_the_published_training():
    training = TransformerTraining()
    assert (training.optimizer, training.text_dropout, training.timesteps, training.posterior) == (
        "adamw", 0.1, "rank", "sample")
    assert not (training.alignment_weight or training.open_gates or training.ema_decay or training.lora_rank)
    assert not training.routes and training.stages[0].text_slots is None and training.schedule == "cosine"
    assert training.image.log_sigma_mean == -3 and training.image.log_sigma_std == 0.5
    assert training.rate() == 2e-5 and replace(training, lora_rank=8).rate() == 1e-3
    assert replace(training, learning_rate=0.0).rate() == 0.0 and replace(training, lora_rank=8).alpha == 4.0
    assert replace(training, lora_rank=8, lora_alpha=0.0).alpha == 0.0


def test_a_wrong_file_is_one_sentence(tmp_path, subtests):
    path = tmp_path / "mine.toml"
    good = 'preset = "micro"\n[transformer]\n[[transformer.stages]]\nsteps = 5\n'
    for wrong, told in {
        "steps": "mine.toml: .*",
        good.replace("micro", "mikro"): "there is no preset 'mikro'; .* did you mean micro",
        good.replace("steps = 5", "step = 5"): r"transformer.stages.0.step leads nowhere: 'step' must be one of steps",
        good.replace("steps = 5", 'steps = "5"'): "transformer.stages.0.steps is '5'; it must be a whole number",
        good.replace("steps = 5", "steps = 0"): "transformer.stages.0: steps is 0; it must be 1 or more",
        good.replace("steps = 5", "batch_size = 5"): "transformer.stages.0.steps is missing",
        good.replace("[transformer]", '[transformer]\noptimizer = "sgd"'): "transformer.optimizer is 'sgd'",
        good + "[sizes.transformer]\nnum_layer = 3\n": "sizes.transformer.num_layer leads nowhere",
        'preset = "micro"\n': "transformer is missing",
    }.items():
        with subtests.test(wrong=wrong), pytest.raises(ValueError, match=told) as error:
            path.write_text(wrong)
            load_recipe(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="there is no recipe 'toi'; the recipes are .* did you mean toy"):
        load_recipe("toi")
    with pytest.raises(FileNotFoundError, match="nowhere.toml"):
        load_recipe(str(tmp_path / "nowhere.toml"))


def test_settings_that_exclude_each_other_or_are_out_of_range(subtests):
    stage, vae_stage = Stage(1), VAEStage(1)
    for make, told in {
        (lambda: Stage(1, routed=1.0)): "routed is 1.0", (lambda: Stage(1, text_slots=0)): "text_slots is 0",
        (lambda: Stage(1, pack=300, routed=0.5)): "pack is 300, text_slots None and routed 0.5",
        (lambda: VAEStage(1, text_slots=16)): "text_slots is 16", (lambda: VAEStage(1, routed=0.5)): "and routed 0.5",
        (lambda: TransformerTraining((stage, Stage(1, text_slots=16)))): "stages.1.text_slots is 16; in the last",
        (lambda: TransformerTraining((Stage(1, routed=0.5),), context_ranks=2)): "context_ranks is 2; .*routed",
        (lambda: TransformerTraining((stage,), cooldown=2.0)): "cooldown is 2.0",
        (lambda: TransformerTraining((stage,), alignment_end=-0.5)): "alignment_end is -0.5",
        (lambda: Stage(1, best=0.0)): "best is 0.0", (lambda: Stage(1, images=1.5)): "images is 1.5",
        (lambda: TransformerTraining(())): "stages is ",
        (lambda: TransformerTraining((stage,), accumulate=0)): "accumulate is 0",
        (lambda: TransformerTraining((stage,), text_dropout=1.0)): "text_dropout is 1.0",
        (lambda: TransformerTraining((stage,), lora_from="a")): "lora_from is 'a' and lora_rank 0",
        (lambda: TransformerTraining((stage,), offload=True)): "offload is True",
        (lambda: TransformerTraining((stage, Stage(1, images=0.5)), image_to_video=True)): "stages.1.images is 0.5",
        (lambda: TransformerTraining((stage,), offload=True, sharding="fsdp", sample_every=5)): "sample_every is 5",
        (lambda: TransformerTraining((stage,), sharding="fsdp", optimizer="muon")): "optimizer is 'muon'",
        (lambda: TransformerTraining((stage,), learning_rate=float("nan"))): "learning_rate is nan",
        (lambda: VAEStage(1, loss=VAELossConfig(correlation_weight=0.1), decoder_only=True)): "correlation_weight is 0",
        (lambda: VAEStage(1, loss=VAELossConfig(correlation_weight=0.2), context_ranks=2)): "correlation_weight is 0.2",
        (lambda: VAEStage(1, pack=100)): "pack is 100", (lambda: VAEStage(1, frame_rates=())): "frame_rates is",
        (lambda: VAETraining(())): "stages is ",
        (lambda: VAETraining((vae_stage,), chunk_frames=0)): "chunk_frames is 0",
        (lambda: VAETraining((VAEStage(1, context_ranks=2),))): "context_ranks is 2",
        (lambda: Recipe("micro", TransformerTraining(), clips=0)): "clips is 0",
        (lambda: Recipe("micro", TransformerTraining(), held_back=1.0)): "held_back is 1.0",
    }.items():
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            make()


def test_sizes_that_do_not_fit_are_refused_with_the_number_of_the_stage(subtests):
    sizes, loss = preset("micro"), VAELossConfig(lpips_weight=0.0, gan_weight=0.0)
    for stages, told in {
        (VAEStage(1, loss=loss), VAEStage(1, num_frames=8, loss=loss)): "vae.stages.1 cannot be trained: .*8 frames",
        (VAEStage(1, height=30, loss=loss),): "vae.stages.0 .*30x32",
        (VAEStage(1, loss=replace(loss, gan_weight=1.0)),): "gan_start is 5000, .* after 1 steps",
        (VAEStage(1, height=4, width=4, loss=replace(loss, gan_weight=1.0, gan_start=0)),): "height is 4; .* discrim",
        (VAEStage(1, height=16, loss=replace(loss, lpips_weight=1.0, lpips_net="alex")),): "height is 16; .* LPIPS",
        (VAEStage(1, height=4, loss=replace(loss, correlation_weight=0.1)),): "correlation_weight is 0.1; .* least 8",
        (VAEStage(1, 4, loss=loss),): "accumulate is 5; it must be from 1 to 4",
    }.items():
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            check_vae(sizes.vae, VAETraining(stages, accumulate=5 if "accumulate" in told else 1))
    for stage, changed, told in [
        (Stage(1, num_frames=8), {}, "transformer.stages.0 .*8 frames"), (Stage(1, height=36), {}, "stages.0 .*"),
        (Stage(1, pack=30), {}, "pack is 30; it must be at least 68"),
        (Stage(1, pack=300), {"alignment_weight": 1.0}, "pack is 300 and alignment_weight 1.0"),
        (Stage(1, batch_size=3), {"context_ranks": 2}, "context_ranks is 2; it must divide 1"),
        (Stage(1), {"alignment_weight": 1.0, "alignment_blocks": (6,)}, r"alignment_blocks is \(6,\); .* from 0 to 5"),
        (Stage(1), {"alignment_weight": 1.0, "alignment_blocks": (1, 1)}, r"alignment_blocks is \(1, 1\)"),
        (Stage(1, routed=0.5), {"routed_blocks": (3, 5)}, r"routed_blocks is \(3, 5\); .* from 1 .* to 4"),
        (Stage(1, routed=0.5), {"routed_blocks": (3,)}, r"routed_blocks is \(3,\)"),
        (Stage(1, routed=0.5), {"routed_blocks": (3, 4), "alignment_weight": 1.0, "alignment_blocks": (1, 3)},
         r"routed_blocks is \(3, 4\); .* from 4"),
    ]:
        with subtests.test(told=told), pytest.raises(ValueError, match=told):
            check_transformer(sizes, TransformerTraining((stage,), **changed))
    long = replace(sizes, transformer=replace(sizes.transformer, patch_size_t=2))
    whole = replace(sizes, transformer=replace(sizes.transformer, attention="factorised"))
    with pytest.raises(ValueError, match="attention is 'factorised' and modulation 'expert'; tokens are routed only"):
        check_transformer(whole, TransformerTraining((Stage(1, routed=0.5),)))
    with pytest.raises(ValueError, match="patch_size_t is 2 and alignment_weight 1.0"):
        check_transformer(long, TransformerTraining((Stage(1),), alignment_weight=1.0))
