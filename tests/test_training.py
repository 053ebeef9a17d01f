"""Small trainings: the learning-rate schedule, falling losses, determinism, and a whole recipe from scratch."""

import json
import random
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import minicogvx
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world.captions import caption, most_tokens
from minicogvx.data.world.features import FEATURES, scene_features
from minicogvx.data.world.scenes import COLOURS, MOTIONS, SHAPES, UNIT_AREA, Scene, ShapeObject, sample_scenes
from minicogvx.engine.checkpoints import Checkpoints
from minicogvx.engine.muon import StackedMuon
from minicogvx.engine.optim import MuonAdamW, warmup_cosine
from minicogvx.engine.ranks import Ranks
from minicogvx.evaluation.adherence import measure_adherence
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.presets import preset
from minicogvx.training import recipes as recipes
from minicogvx.training import transformer as transformer_training
from minicogvx.training import vae as vae_training
from minicogvx.training.alignment import Alignment
from minicogvx.training.loop import Keep
from minicogvx.training.samples import Samples
from minicogvx.training.transformer import TransformerStage, TransformerTraining, train_transformer
from minicogvx.training.vae import VAEStage, initialise, normalise_latents, train_stage, train_vae, world_batch
from minicogvx.transformer.layout import DenseLayout
from minicogvx.vae import CausalVAE
from minicogvx.vae.discriminator import DiscriminatorConfig
from minicogvx.vae.losses import VAELoss, VAELossConfig

L1_KL = VAELossConfig(lpips_weight=0.0, kl_weight=0.06, gan_weight=0.0)
MICRO = preset("micro")
TINY = replace(MICRO, vae=replace(MICRO.vae, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4),
               transformer=replace(MICRO.transformer, num_attention_heads=2, attention_head_dim=16, num_layers=1,
                                   in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=32,
                                   max_text_seq_length=32),
               text=replace(MICRO.text, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
QUIET = Keep(progress=False)
STAGE = VAEStage(steps=12, batch_size=2, num_frames=5, height=32, width=32, loss=L1_KL, warmup=2)


def test_learning_rate_curve():
    factors = [warmup_cosine(step, 100, 10, floor=0.02) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0) == factors[10]
    assert factors[99] == pytest.approx(0.02) and all(a >= b for a, b in zip(factors[10:], factors[11:]))


def test_muon_takes_kernels_and_adamw_the_rest():
    net = nn.Sequential(nn.Conv3d(2, 4, 3), nn.GroupNorm(2, 4))
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = MuonAdamW(net.named_parameters(), muon_lr=0.02)
    assert [tuple(p.shape) for p in optimizer.flat] == [(4, 54)]
    net(torch.randn(1, 2, 5, 5, 5)).square().sum().backward()
    optimizer.step(1.0)
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters()))
    update = (net[0].weight.detach() - before[0]).flatten(1)  # Muon: all singular values alike
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 2.0
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_on_stacks_is_torchs_muon(nesterov):
    torch.manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16), (24, 8), (3, 5), (1100, 1000)]  # the last is too large to be stacked
    start = [torch.randn(shape) for shape in shapes]
    numbers = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    optimizers = [kind([nn.Parameter(p.clone()) for p in start], **numbers) for kind in (torch.optim.Muon, StackedMuon)]
    for step in range(3):
        gradients = [torch.randn(shape) for shape in shapes]
        for optimizer in optimizers:
            for p, gradient in zip(optimizer.param_groups[0]["params"], gradients):
                p.grad = gradient.clone() if step or p.shape != (3, 5) else None  # one joins later
            optimizer.step()
    theirs, ours = (optimizer.param_groups[0]["params"] for optimizer in optimizers)
    for one, other, before in zip(theirs, ours, start):
        assert (one - other).norm() <= 0.02 * (one - before).norm()
    assert all(ours[i].shape == optimizers[1].state[ours[i]]["momentum_buffer"].shape for i in range(len(shapes)))


def test_a_nan_gradient_leaves_the_weights():
    net = nn.Linear(3, 3)
    before = net.weight.detach().clone()
    optimizer = MuonAdamW(net.named_parameters())
    net.weight.grad, net.bias.grad = torch.full((3, 3), float("nan")), torch.ones(3)
    optimizer.step(1.0)
    assert torch.equal(net.weight, before)


def test_vae_learns_and_a_seed_fixes_it(tmp_path):
    log = tmp_path / "vae_0.jsonl"
    first = train_vae(TINY.vae, (STAGE,), seed=5, keep=Keep(tmp_path, log_every=1, progress=False))
    second = train_vae(TINY.vae, (STAGE,), seed=5, keep=QUIET)
    other = train_vae(TINY.vae, (STAGE,), seed=6, keep=QUIET)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert not torch.equal(first.encoder.conv_in.conv.weight, other.encoder.conv_in.conv.weight)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows[-1]["l1"] < 0.8 * rows[0]["l1"]
    assert {"psnr", "kl", "total", "grad_norm", "seconds"} <= rows[0].keys()


def test_decoder_only_leaves_the_encoder():
    torch.manual_seed(0)
    vae = CausalVAE(TINY.vae)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    train_stage(vae, replace(STAGE, steps=1, decoder_only=True), first_seed=0, keep=QUIET)
    changed = {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder") for name in changed)
    assert all(p.requires_grad for p in vae.parameters())


def test_normalised_latents_have_unit_variance_and_decode_to_the_same_video():
    torch.manual_seed(0)
    vae = CausalVAE(TINY.vae)
    initialise(vae)
    video = world_batch(4, 1, 9, 32, 32)
    with torch.no_grad():
        before = vae.decode(vae.encode(video).mean)
        logvar = vae.encode(video).logvar
        normalise_latents(vae, seed=0, clips=32)
        after = vae.encode(world_batch(32, 9, 9, 32, 32))
        assert torch.allclose(vae.decode(vae.encode(video).mean), before, atol=1e-4)
    deviation = after.mean.transpose(0, 1).flatten(1).std(1)
    assert (0.6 < deviation).all() and (deviation < 1.6).all()
    assert not torch.allclose(vae.encode(video).logvar, logvar)  # the posterior's width is scaled with its mean


def test_transformer_learns_and_a_seed_fixes_it(tmp_path):
    torch.manual_seed(0)
    latents = encode_world(CausalVAE(TINY.vae), 8, seed=0, num_frames=9, progress=False)
    training = TransformerTraining((TransformerStage(steps=60, batch_size=8),), adamw_lr=1e-2, warmup=2, ema_decay=0.5)
    log = tmp_path / "transformer.jsonl"
    first, text = train_transformer(TINY, latents, training, keep=Keep(tmp_path, log_every=1, progress=False))
    second, _ = train_transformer(TINY, latents, training, keep=QUIET)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert next(first.parameters()).dtype == torch.float32
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] and "swap_gain" in rows[0]


class CutOff(Exception):
    pass


def cut_off_after(monkeypatch, calls):
    """Lets checkpoints be written `calls` times and then stops the run, as a power cut would."""
    real, count = Checkpoints.save, []

    def save(*arguments):
        real(*arguments)
        count.append(1)
        if len(count) == calls:
            raise CutOff

    monkeypatch.setattr(Checkpoints, "save", save)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def world(clips=8, **fields):
    torch.manual_seed(0)
    return encode_world(CausalVAE(TINY.vae), clips, seed=0, num_frames=9, progress=False, **fields)


def test_a_transformer_run_resumes(tmp_path, monkeypatch):
    latents = world()
    training = TransformerTraining((TransformerStage(3, 4, latent_frames=1), TransformerStage(5, 2)), warmup=2)
    whole, text = train_transformer(TINY, latents, training, keep=QUIET)
    keep = Keep(tmp_path, checkpoint_every=2, progress=False)
    with monkeypatch.context() as patch:
        cut_off_after(patch, calls=3)
        with pytest.raises(CutOff):
            train_transformer(TINY, latents, training, keep=keep)
    (tmp_path / "transformer.jsonl").unlink()
    resumed, text_again = train_transformer(TINY, latents, training, keep=keep)
    assert equal(whole, resumed) and equal(text.encoder, text_again.encoder)
    rows = [json.loads(line) for line in (tmp_path / "transformer.jsonl").open()]
    assert [row["step"] for row in rows] == [7]  # steps 0 to 5 were not done again


GAN = replace(STAGE.loss, gan_weight=0.5, gan_start=2)


@pytest.mark.parametrize("change", [
    {}, {"loss": GAN}, {"loss": GAN, "discriminator": DiscriminatorConfig(width=16, spectral_norm=True)},
], ids=["no GAN", "GAN", "GAN with spectral norm"])
def test_a_vae_run_resumes(tmp_path, monkeypatch, change):
    stages = (replace(STAGE, steps=3), replace(STAGE, steps=5, batch_size=1, **change))
    whole = train_vae(TINY.vae, stages, keep=QUIET)
    keep = Keep(tmp_path, checkpoint_every=2, progress=False)
    with monkeypatch.context() as patch:
        cut_off_after(patch, calls=4)  # in the second stage, after its GAN has begun
        with pytest.raises(CutOff):
            train_vae(TINY.vae, stages, keep=keep)
    assert (tmp_path / "checkpoints" / "vae_1_00000004.safetensors").exists()
    assert equal(whole, train_vae(TINY.vae, stages, keep=keep))


def test_a_gan_begins_at_its_step_and_teaches_both_sides(tmp_path):
    keep = Keep(tmp_path, log_every=1, progress=False)
    train_vae(TINY.vae, (replace(STAGE, steps=4, loss=GAN),), keep=keep)
    rows = [json.loads(line) for line in (tmp_path / "vae_0.jsonl").open()]
    assert ["gan_discriminator" in row for row in rows] == [False, False, True, True]
    assert [row["gan_weight"] > 0 for row in rows] == [False, False, True, True]
    assert rows[2]["gan_discriminator"] != rows[3]["gan_discriminator"]
    tensors = read_tensors(tmp_path / "checkpoints" / "vae_0_00000004.safetensors")
    assert any(name.startswith("discriminator/") for name in tensors)
    assert any(name.startswith("discriminator_optimizer/adamw") for name in tensors)


def poison(vae, name, at, value=float("nan")):
    """Makes one number of a weight useless during the passes in `at`, and copies the weights before each pass."""
    weight, before, sound, half = vae.get_parameter(name), [], [], vae.get_submodule(name.partition(".")[0])

    def spoil(module, inputs):
        before.append([p.detach().clone() for p in vae.parameters()])
        sound.append(weight.data[0].item())
        if len(before) - 1 in at:
            weight.data[0] = value

    def mend(module, inputs, output):
        weight.data[0] = sound[-1]

    half.register_forward_pre_hook(spoil)
    half.register_forward_hook(mend)
    return before


@pytest.mark.parametrize("name", ["encoder.conv_in.conv.bias", "encoder.conv_out.conv.bias",
                                  "decoder.conv_out.conv.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", [STAGE.loss, replace(GAN, gan_start=1)], ids=["no GAN", "GAN"])
def test_a_step_whose_reconstruction_is_not_finite_is_left_out(tmp_path, capsys, name, value, loss):
    torch.manual_seed(0)
    vae = CausalVAE(TINY.vae)
    before = poison(vae, name, at={2}, value=value)
    train_stage(vae, replace(STAGE, steps=5, loss=loss), 0, keep=Keep(tmp_path, log_every=1, progress=False))
    changed = [any(not torch.equal(a, b) for a, b in zip(*pair)) for pair in zip(before, before[1:])]
    assert changed == [True, True, False, True]
    rows = [json.loads(line) for line in (tmp_path / "vae.jsonl").open()]
    assert [isinstance(row["grad_norm"], str) for row in rows] == [False, False, True, False, False]
    assert all(isinstance(value, (int, float)) for row in rows[3:] for value in row.values())
    assert "the gradient of step 2 is not finite; the weights stay as they were" in capsys.readouterr().err


def test_a_vae_that_stays_broken_ends_the_run():
    vae = CausalVAE(TINY.vae)
    poison(vae, "decoder.conv_out.conv.bias", at=range(100))
    with pytest.raises(FloatingPointError, match="the gradients of the 20 steps up to 19 are not finite"):
        train_stage(vae, replace(STAGE, steps=40, batch_size=1), 0, keep=QUIET)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    keep = Keep(tmp_path, progress=False)
    train_vae(TINY.vae, (replace(STAGE, steps=1),), keep=keep)
    wider = replace(TINY.vae, block_out_channels=(8, 8, 16))
    with pytest.raises(ValueError, match="move the file away to start again"):
        train_vae(wider, (replace(STAGE, steps=1),), keep=keep)


def test_accumulated_passes_give_the_gradients_of_one(monkeypatch):
    latents, gradients, real = world(), [], MuonAdamW.step

    def keep_gradients(self, factor):
        gradients.append([p.grad.clone() for p in self.others if p.grad is not None])
        return real(self, factor)

    monkeypatch.setattr(MuonAdamW, "step", keep_gradients)
    for accumulate in (1, 4):
        training = TransformerTraining((TransformerStage(1, 6),), optimizer="adamw", accumulate=accumulate)
        train_transformer(TINY, latents, training, dtype=torch.float32, keep=QUIET)
    one, four = gradients
    assert len(one) == len(four) > 20 and any(gradient.abs().max() > 0 for gradient in one)
    for a, b in zip(one, four):
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-8


def test_a_vaes_accumulated_passes_give_the_gradients_of_one():
    torch.manual_seed(0)
    vae, loss, gradients = CausalVAE(TINY.vae), VAELoss(STAGE.loss), []
    with torch.no_grad():  # no noise in the latent: the passes draw theirs apart
        vae.encoder.conv_out.conv.weight[4:] = 0.0
        vae.encoder.conv_out.conv.bias[4:] = -30.0
    video = world_batch(4, 1, 5, 32, 32)
    for accumulate in (1, 3):
        vae.zero_grad()
        losses, back = vae_training.backward(vae, loss, video, 0, 0, torch.float32, accumulate=accumulate)
        gradients.append([p.grad.clone() for p in vae.parameters() if p.grad is not None] + [losses["total"], back])
    assert gradients[0][-1].shape == video.shape and len(gradients[0]) == len(gradients[1]) > 50
    for a, b in zip(*gradients):
        assert (a - b).norm() <= 1e-3 * a.norm() + 1e-7


@pytest.mark.parametrize("change", [{"optimizer": "adamw", "weight_decay": 0.1}, {"gradient_checkpointing": True}])
def test_options_train(change):
    training = TransformerTraining((TransformerStage(12, 8),), adamw_lr=1e-2, warmup=2, ema_decay=0.0, **change)
    plain = replace(training, optimizer="muon", weight_decay=0.0, gradient_checkpointing=False)
    one, _ = train_transformer(TINY, world(), training, dtype=torch.float32, keep=QUIET)
    other, _ = train_transformer(TINY, world(), plain, dtype=torch.float32, keep=QUIET)
    if "gradient_checkpointing" in change:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), other.parameters()))
    else:
        assert not equal(one, other)
        assert all(torch.isfinite(p).all() for p in one.parameters())


def test_captions_that_may_not_fit_are_refused_before_the_first_step():
    short = replace(TINY, transformer=replace(TINY.transformer, max_text_seq_length=20))
    stages = (TransformerStage(1, 2),)
    train_transformer(short, world(4, two_objects=0.0), TransformerTraining(stages, caption_style="short"), keep=QUIET)
    for style, two, most in (("short", 1.0, 31), (None, 0.0, 31), ("dense", 1.0, 31)):
        with pytest.raises(ValueError, match=f"max_text_seq_length is 20; these captions have up to {most} tokens"):
            training = TransformerTraining(stages, caption_style=style)
            train_transformer(short, world(4, two_objects=two), training, keep=QUIET)
    words = random.Random(0)
    for two, style in ((0.0, "short"), (1.0, "short"), (0.0, None), (1.0, "dense")):
        scenes = sample_scenes(3000, 0, "train", two)
        longest = max(len(caption(scene, words, style).split()) for scene in scenes)
        assert longest + 1 <= most_tokens(scenes, style)
        assert most_tokens(scenes, style) <= longest + 6  # the bound is not far off


def test_compile_is_asked_for_only_on_request(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    for wanted in (False, True):
        train_transformer(TINY, world(4), TransformerTraining((TransformerStage(1, 2),), compile=wanted), keep=QUIET)
        assert len(compiled) == wanted


def test_stages_of_different_size_draw_from_their_own_clips(tmp_path):
    small, large = world(side=16), world(side=32)
    assert small.mean.shape[-1] * 2 == large.mean.shape[-1] and small.scenes == large.scenes
    stages = (TransformerStage(2, 2, side=16), TransformerStage(2, 2))
    model, _ = train_transformer(TINY, [small, large], TransformerTraining(stages), keep=QUIET)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    with pytest.raises(ValueError, match="there are 1 sets of latents for 2 stages"):
        train_transformer(TINY, [small], TransformerTraining(stages), keep=QUIET)


def test_twice_the_frame_rate_shows_the_first_half_of_the_motion():
    slow, fast = world_batch(3, 7, 9, 32, 32), world_batch(3, 7, 5, 32, 32, frame_rate=16)
    assert fast.shape == (3, 3, 5, 32, 32)
    assert torch.allclose(fast, slow[:, :, :5], atol=1e-6)  # 9 frames at 8 a second hold 5 of the same instants at 8
    with pytest.raises(ValueError, match="frame_rates is .12,.; it must hold multiples of 8"):
        replace(STAGE, frame_rates=(12,))


def test_samples_are_drawn_and_judged_while_it_learns(tmp_path):
    vae = CausalVAE(TINY.vae)
    samples = Samples(vae, TINY, 3.0, tmp_path, clips=3, shown=2)
    training = TransformerTraining((TransformerStage(2, 2),), sample_every=2)
    training = replace(training, stages=(TransformerStage(4, 2),))
    keep = Keep(tmp_path, log_every=3, progress=False)
    train_transformer(TINY, world(), training, keep=keep, on_sample=samples)
    rows = {row["step"]: row for row in map(json.loads, (tmp_path / "transformer.jsonl").open())}
    assert list(rows) == [0, 1, 3]  # step 1 is not due, but it has a score
    assert "obeyed" not in rows[0] and 0 <= rows[1]["obeyed"] <= 1 and 0 <= rows[3]["obeyed"] <= 1
    with Image.open(tmp_path / "step_00000002.png") as picture:
        assert picture.height > 2 * 32


def test_a_new_transformer_is_the_identity_whose_blocks_learn_at_once():
    torch.manual_seed(0)
    model = transformer_training.ExpertTransformer(TINY.transformer)
    transformer_training.initialise(model)
    latents = torch.randn(2, 4, 3, 8, 8)
    prediction = model(latents, torch.tensor([1, 500]), torch.randn(2, 5, 32))
    assert prediction.abs().max() == 0
    torch.nn.init.normal_(model.proj_out.weight)
    model(latents, torch.tensor([1, 500]), torch.randn(2, 5, 32)).square().sum().backward()
    block = model.transformer_blocks[0]
    assert block.attn1.to_out[0].weight.grad.abs().max() > 0 and block.ff.net[2].weight.grad.abs().max() > 0


@pytest.mark.parametrize("departure", [{"modulation": "shared"}, {"modulation": "separate"},
                                       {"attention": "factorised"}])
def test_blocks_of_every_kind_begin_as_the_identity_and_all_their_branches_learn(departure):
    torch.manual_seed(0)
    model = transformer_training.ExpertTransformer(replace(TINY.transformer, num_layers=2, **departure))
    transformer_training.initialise(model)
    block, x, time = model.transformer_blocks[0], torch.randn(2, 5 + 48, 32), torch.randn(2, 16)
    y = block(x, time, DenseLayout(5, (3, 4, 4)))
    assert torch.equal(y, x)
    y.square().sum().backward()
    last = [part for name, part in block.named_modules() if name.endswith(("to_out.0", "net.2"))]
    assert len(last) == (2 if departure == {"modulation": "shared"} else 4 if "modulation" in departure else 3)
    assert all(part.weight.grad.abs().max() > 0 for part in last)


def test_scene_features_say_which_shape_motion_and_colour_cover_a_cell():
    ring = ShapeObject("ring", "red", "moves right", x=0.3, y=0.5, radius=0.2, speed=0.4)
    bar = ShapeObject("bar", "blue", "stays still", x=0.5, y=0.9, radius=0.08)
    alone, both = scene_features([Scene((ring,), "navy"), Scene((ring, bar), "navy")], num_frames=9, cells=8)
    assert alone.shape == (3, 8, 8, 6 + 13 + 8)
    shape, motion = alone[..., SHAPES.index("ring")], alone[..., 6 + MOTIONS.index("moves right")]
    colour = alone[..., 19 + list(COLOURS).index("red")]
    assert torch.equal(shape, motion) and torch.equal(shape, colour)
    assert alone.sum() == pytest.approx(3 * shape.sum().item(), rel=1e-6)
    area = UNIT_AREA["ring"] * 0.2**2 * 8 * 8  # in cells
    assert shape.sum((1, 2)).tolist() == pytest.approx([area] * 3, rel=0.1)
    centre = (shape.sum(1) * (torch.arange(8) + 0.5)).sum(1) / shape.sum((1, 2)) / 8  # in widths
    # frames 0, 1 to 4, 5 to 8 of nine: clip times 0, 0.3125, 0.8125
    assert centre.tolist() == pytest.approx([0.3, 0.3 + 0.4 * 0.3125, 0.3 + 0.4 * 0.8125], abs=0.01)
    assert torch.allclose(both[..., SHAPES.index("ring")], shape) and both[..., SHAPES.index("bar")].sum() > 0


def test_alignment_teaches_the_first_half_of_the_blocks():
    torch.manual_seed(0)
    model = transformer_training.ExpertTransformer(replace(TINY.transformer, num_layers=4))
    transformer_training.initialise(model)
    alignment = Alignment(model)
    model(torch.randn(2, 4, 3, 8, 8), torch.tensor([1, 500]), torch.randn(2, 5, 32))
    features = torch.rand(2, 3, 8, 8, FEATURES)
    loss = alignment(features)
    assert 0.9 < loss.item() < 10  # a blind guess of the mean would be 1
    loss.backward()
    learns = [block.ff.net[2].weight.grad is not None for block in model.transformer_blocks]
    assert learns == [True, True, False, False]


def test_alignment_asks_for_the_kinds_named_and_no_others():
    torch.manual_seed(0)
    model = transformer_training.ExpertTransformer(TINY.transformer)
    alignment = Alignment(model, ("motion", "colour"))
    features, other = torch.rand(2, 2, 3, 8, 8, FEATURES)
    losses = []
    for changed in (features, torch.cat([other[..., :6], features[..., 6:]], -1), other):
        model(torch.ones(2, 4, 3, 8, 8), torch.tensor([1, 500]), torch.ones(2, 5, 32))
        losses.append(alignment(changed).item())
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(ValueError, match="no feature 'taste' to align with; the features are shape, motion, colour"):
        Alignment(model, ("taste",))


def test_a_recipe_makes_a_folder_that_opens_and_resumes(tmp_path, monkeypatch):
    recipe = recipes.Recipe("micro", vae=(replace(STAGE, steps=1),), clips=4, two_objects=0.0,
                            transformer=TransformerTraining((TransformerStage(steps=1, batch_size=2),)))
    monkeypatch.setattr(recipes, "preset", lambda name: TINY)
    recipes.train_recipe(recipe, tmp_path, keep=QUIET)
    pipe = minicogvx.load(tmp_path / "pipeline")
    result = measure_adherence(pipe, sample_scenes(2, 0, "held_out", 0.0), num_inference_steps=1, progress=False)
    assert result.clips == 2 and 0 <= result.share["all"] <= 1 and "of 2 clips" in str(result)
    assert {"vae", "encoding", "transformer"} == json.loads((tmp_path / "minutes.json").read_text()).keys()
    monkeypatch.setattr(recipes, "train_vae", lambda *_, **__: pytest.fail("the VAE is finished"))
    recipes.train_recipe(recipe, tmp_path, keep=QUIET)
    with pytest.raises(ValueError, match="was begun with clips=4, not 5; name another folder"):
        recipes.train_recipe(replace(recipe, clips=5), tmp_path, keep=QUIET)


def test_a_recipe_that_cannot_be_trained_is_refused_before_the_vae(tmp_path, monkeypatch):
    recipe = recipes.Recipe("micro", (STAGE,), 1, 0.0, TransformerTraining((TransformerStage(1, 2),)))
    short = replace(TINY, transformer=replace(TINY.transformer, max_text_seq_length=20))
    monkeypatch.setattr(recipes, "preset", lambda name: short)
    monkeypatch.setattr(recipes, "train_vae", lambda *_, **__: pytest.fail("the VAE was trained"))
    with pytest.raises(ValueError, match="max_text_seq_length is 20; these captions have up to 31 tokens"):
        recipes.train_recipe(recipe, tmp_path, keep=QUIET)
    with pytest.raises(ValueError, match="clips is 1; it must be at least 2, the number of ranks"):
        recipes.train_recipe(recipe, tmp_path, keep=QUIET, here=Ranks(1, 2))
    with pytest.raises(ValueError, match="no feature 'taste' to align with; the features are shape, motion, colour"):
        replace(recipe.transformer, alignment_kinds=("taste",))
    assert not list(tmp_path.iterdir())


def test_latents_are_sampled_as_published_or_taken_at_their_mean():
    torch.manual_seed(0)
    latents = encode_world(CausalVAE(TINY.vae), 4, seed=0, num_frames=9, progress=False)
    index = torch.tensor([2, 0])
    drawn = latents.draw(index, torch.Generator().manual_seed(1))
    assert not torch.equal(drawn, latents.draw(index, torch.Generator().manual_seed(2)))
    mean = replace(latents, sample=False).draw(index, torch.Generator())
    assert torch.equal(mean, latents.mean[index].float() * latents.scaling_factor)
    spread = latents.std[index].float().square().mean().sqrt().item()
    assert (drawn - mean).square().mean().sqrt() == pytest.approx(spread, rel=0.2)
