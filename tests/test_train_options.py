"""Options of training besides its sizes, and what is rejected before any work."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx import cli
from minicogvx.engine.config import override
from minicogvx.engine.optim import warmup_cosine
from minicogvx.interop.safetensors_files import read_json, read_tensors
from minicogvx.presets import preset
from minicogvx.training import recipes as recipes
from minicogvx.training import vae as vae_training
from minicogvx.training.critic import Critic
from minicogvx.training.loop import Keep
from minicogvx.training.recipes import RECIPES, train_recipe
from minicogvx.training.recompute import recomputed_blocks
from minicogvx.training.transformer import TransformerStage, TransformerTraining, train_transformer
from minicogvx.training.vae import train_vae, world_batch
from minicogvx.vae import CausalVAE
from minicogvx.vae.losses import VAELoss
from tests.test_resume import write_down
from tests.test_training import GAN, QUIET, STAGE, TINY, equal, world

# ---- the VAE


@pytest.mark.parametrize("chunk_frames", [None, 4])
def test_recomputed_blocks_give_the_same_bits_and_keep_less(chunk_frames):
    torch.manual_seed(0)
    vae, loss, video = CausalVAE(TINY.vae), VAELoss(STAGE.loss), world_batch(2, 1, 9, 32, 32)
    gradients, kept = [], []
    for wanted in (False, True):
        vae.zero_grad()
        size = []
        with recomputed_blocks(vae, wanted), torch.autograd.graph.saved_tensors_hooks(
                lambda x: size.append(x.numel()) or x, lambda x: x):
            vae_training.backward(vae, loss, video, 0, 0, torch.float32, chunk_frames)
        gradients.append([p.grad.clone() for p in vae.parameters() if p.grad is not None])
        kept.append(sum(size))
    assert len(gradients[0]) > 50 and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.6 * kept[0]
    assert all("forward" not in vars(module) for module in vae.modules())


def test_a_stage_may_end_with_the_average_of_its_weights(tmp_path):
    stage = replace(STAGE, steps=6)
    last = train_vae(TINY.vae, (stage,), keep=QUIET)
    keep = Keep(tmp_path, checkpoint_every=2, progress=False)
    averaged = train_vae(TINY.vae, (replace(stage, ema_decay=0.9),), keep=keep)
    assert not equal(last, averaged)
    state = read_tensors(tmp_path / "checkpoints" / "vae_0_00000006.safetensors")
    torch.manual_seed(0)
    start = CausalVAE(TINY.vae)
    vae_training.initialise(start)
    name = "decoder.conv_in.conv.bias"  # normalise_latents leaves it alone
    way = (last.get_parameter(name) - start.get_parameter(name)).norm()
    assert torch.equal(averaged.get_parameter(name), state[f"ema/{name}"])
    assert torch.equal(last.get_parameter(name), state[f"vae/{name}"])
    assert 0 < (averaged.get_parameter(name) - start.get_parameter(name)).norm() < way
    (tmp_path / "checkpoints" / "vae_0_00000006.safetensors").unlink()  # as if interrupted after four steps
    assert equal(averaged, train_vae(TINY.vae, (replace(stage, ema_decay=0.9),), keep=keep))


def test_a_gan_continues_from_stage_to_stage(tmp_path):
    loss = replace(GAN, gan_start=3)
    keep = Keep(tmp_path, log_every=1, progress=False)
    train_vae(TINY.vae, (replace(STAGE, steps=2, loss=loss), replace(STAGE, steps=3, num_frames=9, loss=loss)),
              keep=keep)
    rows = [json.loads(line) for i in (0, 1) for line in (tmp_path / f"vae_{i}.jsonl").open()]
    assert [row["gan_weight"] > 0 for row in rows] == [False, False, False, True, True]
    torch.manual_seed(1)
    first = Critic(loss, STAGE.discriminator, 9)
    same, longer = Critic(loss, STAGE.discriminator, 9, earlier=first), Critic(loss, STAGE.discriminator, 17,
                                                                              earlier=first)
    assert equal(first.network, same.network) and equal(first.network, longer.network)
    images = Critic(loss, STAGE.discriminator, 1, earlier=first)  # no stage halves time: other kernels, from scratch
    assert not _alike(first, images) and all(torch.isfinite(p).all() for p in images.network.parameters())
    assert Critic(replace(loss, gan_weight=0.0), STAGE.discriminator, 9, earlier=first).network is None


def _alike(one: Critic, other: Critic) -> bool:
    return [p.shape for p in one.network.parameters()] == [p.shape for p in other.network.parameters()]


@pytest.mark.parametrize("stage, message", [
    (replace(STAGE, loss=replace(GAN, gan_start=24)), "gan_start is 24, and the last stage with a GAN ends after 24 "),
    (replace(STAGE, loss=replace(STAGE.loss, lpips_weight=1.0)), "LPIPS is not on this machine"),
])
def test_what_would_end_a_vae_late_is_refused_first(monkeypatch, tmp_path, stage, message):
    monkeypatch.setattr("minicogvx.interop.lpips_weights.lpips_source", lambda net: None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_vae(TINY.vae, (STAGE, stage), keep=Keep(tmp_path, progress=False))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field, value, message", [
    ("ema_decay", 1.0, "ema_decay is 1.0; it must be from 0 to below 1"),
    ("steps", 0, "steps is 0; it must be 1 or more"),
])
def test_fields_of_a_stage(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(STAGE, **{field: value})


# ---- the transformer


def compare_compiled() -> None:
    """Trains the same twice, plainly and compiled."""
    real = torch.compile
    torch.compile = lambda model: real(model, backend="eager")  # without a C++ compiler
    training = TransformerTraining((TransformerStage(3, 4), TransformerStage(2, 4, latent_frames=1)), warmup=1)
    latents = world(8)
    plain, words = train_transformer(TINY, latents, training, dtype=torch.float32, keep=QUIET)
    compiled, again = train_transformer(TINY, latents, replace(training, compile=True), dtype=torch.float32, keep=QUIET)
    for one, other in ((plain, compiled), (words.encoder, again.encoder)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_compiled_transformer_takes_the_same_steps():
    """In a process of its own: the shape checks of this one cannot be compiled."""
    done = subprocess.run([sys.executable, "-m", "tests.test_train_options"], capture_output=True, text=True,
                          timeout=300, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]


def test_timesteps_may_be_drawn_plainly():
    training = TransformerTraining((TransformerStage(3, 4),), warmup=1)
    one, _ = train_transformer(TINY, world(8), training, keep=QUIET)
    other, _ = train_transformer(TINY, world(8), replace(training, timesteps="uniform"), keep=QUIET)
    assert not equal(one, other)
    with pytest.raises(ValueError, match="timesteps is 'even'; it must be one of 'stratified', 'uniform'"):
        override(training, "timesteps=even")


def test_a_warm_up_is_at_most_half_of_the_run():
    assert [warmup_cosine(step, 10, 100) for step in (0, 4, 5, 9)] == pytest.approx([0.2, 1.0, 1.0, 0.02])
    assert warmup_cosine(0, 1, 100) == 1.0


# ---- a whole recipe


@pytest.mark.parametrize("assignment, message", [
    ("vae.1.num_frames=16", "vae.1 cannot be trained: the video has 16 frames; it must have 4k \\+ 1"),
    ("vae.1.height=50", "vae.1 cannot be trained: the video is 50x32"),
    ("transformer.stages.0.side=36", "transformer.stages.0 cannot be trained"),
    ("transformer.stages.1.num_frames=16", "transformer.stages.1 cannot be trained: the video has 16 frames"),
    ("sizes.vae.latent_channels=5", "transformer.stages.0 cannot be trained"),
    ("transformer.stages.0.batch_size=0", "batch_size is 0"),
])
def test_sizes_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, assignment, message):
    recipe = replace(RECIPES["micro"], sizes=preset("micro"))
    with pytest.raises(ValueError, match=message):
        train_recipe(override(recipe, assignment), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_size_can_be_changed_on_the_command_line(tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(recipes, "train_recipe", lambda recipe, *rest: seen.append(recipe))
    assert cli.main(["train", "micro", "--out", str(tmp_path), "--set", "sizes.transformer.num_layers=2"]) == 0
    assert seen[0].sizes == replace(preset("micro"), transformer=replace(preset("micro").transformer, num_layers=2))
    assert cli.main(["train", "micro", "--out", str(tmp_path), "--set", "clips=9"]) == 0
    assert seen[1].sizes is None  # the preset's own, so that earlier runs can be resumed
    assert cli.main(["train", "micro", "--show"]) == 0
    assert "sizes.transformer.num_layers=6" in capsys.readouterr().out.splitlines()


def test_a_run_begun_before_a_field_was_there_had_its_default(tmp_path):
    path = tmp_path / "recipe.json"
    write_down(path, RECIPES["micro"], 0)
    older = {name: value for name, value in read_json(path).items()
             if not name.endswith("context_ranks") and name != "vae.1.ema_decay"}
    path.write_text(json.dumps(older))
    with pytest.raises(ValueError, match="was begun with vae.1.ema_decay=0.0, not 0.5"):
        write_down(path, override(RECIPES["micro"], "vae.1.ema_decay=0.5"), 0)
    assert read_json(path) == older
    write_down(path, RECIPES["micro"], 0)
    assert read_json(path)["vae.0.context_ranks"] == 1
    write_down(tmp_path / "other.json", RECIPES["micro"], 0, {"weights": "a"})
    with pytest.raises(ValueError, match="was begun with weights='a', not 'b'"):
        write_down(tmp_path / "other.json", RECIPES["micro"], 0, {"weights": "b"})


if __name__ == "__main__":
    compare_compiled()
