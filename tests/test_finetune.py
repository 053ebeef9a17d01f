"""A model trained further on videos: all its weights, and image to video. LoRA is in test_lora.py."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from minicogvx.engine.master_weights import MasterWeights
from minicogvx.engine.sharded_checkpoints import whole_weights
from minicogvx.training.draws import Draw, PackedDraw, whole_patches
from minicogvx.training.finetune import FineTuning, finetune
from PIL import Image
from torch.distributed.tensor import DTensor

from minicogvx.data.clips.cache import CachedClips
from minicogvx.data.clips.encode import encode_clips
from minicogvx.data.clips.plan import CacheSettings
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.world.captions import vocabulary
from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.engine.ranks import Ranks, leave
from minicogvx.engine.sharding import whole_weights
from minicogvx.media import write_mp4
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.training.image_condition import ImageCondition, image_latents, widen_for_image
from minicogvx.training.loop import Keep, Run
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

MICRO = preset("micro")
TINY = replace(MICRO, vae=replace(MICRO.vae, block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4),
               transformer=replace(MICRO.transformer, num_attention_heads=2, attention_head_dim=16, num_layers=2,
                                   in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=32),
               text=replace(MICRO.text, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
QUIET = Keep(progress=False)
CAPTIONS = ("a red circle moves right", "a blue star grows", "a green bar stays still")


def tiny_pipe(seed=0) -> Pipeline:
    """A whole model with random weights; its gates are open, so that every weight matters."""
    torch.manual_seed(seed)
    model = ExpertTransformer(TINY.transformer)
    for name, p in model.named_parameters():
        if "norm1.linear" in name or "norm2.linear" in name:
            torch.nn.init.normal_(p, std=0.2)
    text = TextEncoder.from_config(TINY.text, vocabulary(), TINY.transformer.max_text_seq_length)
    text.encoder.eval()
    return Pipeline(CausalVAE(TINY.vae).eval(), model.eval(), TINY.schedule, text)


def write_films(folder):
    """Three videos of 9 frames and their captions, in `folder`, which it returns."""
    for i, clip in enumerate(render_batch(sample_scenes(3, 0, "train", 0.0), 9, 32, 32)):
        write_mp4(folder / f"{i}.mp4", clip, 8)
        (folder / f"{i}.txt").write_text(CAPTIONS[i])
    return folder


def films_and_model(home):
    """`home` with a folder of videos and a model to train further in it."""
    (home / "films").mkdir()
    write_films(home / "films")
    tiny_pipe().save(home / "model")
    return home


def encode_films(folder, out):
    """The videos of `folder`, encoded by the tiny model into `out`."""
    pipe = tiny_pipe()
    settings = CacheSettings(num_frames=9, height=32, width=32, fps=8, first_frame=True)
    return encode_clips(scan_folder(folder).clips, out, pipe.vae, pipe.text, settings, torch.float32, progress=False)[0]


def outputs(model, channels=4):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, channels, 3, 8, 8, generator=generator)
    text = torch.randn(2, 5, 32, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([10, 700]), text)


def test_all_weights_learn_and_the_loss_falls(clips, tmp_path):
    pipe = tiny_pipe()
    before = [p.clone() for p in pipe.transformer.parameters()]
    tuning = FineTuning(steps=60, batch_size=3, learning_rate=3e-3, warmup=2)
    model = finetune(pipe, clips, tuning, keep=Keep(tmp_path, log_every=1, progress=False))
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "finetune.jsonl").open()]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("tuning", [
    FineTuning(steps=6, warmup=1, learning_rate=1e-3, ema_decay=0.9, accumulate=2),
    FineTuning(steps=6, warmup=1, lora_rank=2, optimizer="muon", gradient_checkpointing=True),
    FineTuning(steps=6, warmup=1, image_to_video=True),
    FineTuning(steps=6, warmup=1, sequence_length=150, batch_size=1, learning_rate=1e-3),
], ids=["all", "lora", "image", "packed"])
def test_an_interrupted_run_ends_in_the_same_bits(clips, tmp_path, monkeypatch, tuning):
    def weights(keep):
        return finetune(tiny_pipe(), clips, tuning, seed=3, keep=keep).state_dict()

    whole, keep, real = weights(QUIET), Keep(tmp_path, checkpoint_every=2, progress=False), Run.record

    def cut(self, norm, **values):
        real(self, norm, **values)
        if self.done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", cut)
        with pytest.raises(KeyboardInterrupt):
            weights(keep)
    resumed = weights(keep)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("fields", [{"accumulate": 5}, {"accumulate": 4, "batch_size": 3}])
def test_a_batch_is_not_cut_into_more_passes_than_it_has_clips(fields):
    with pytest.raises(ValueError, match=f"accumulate is {fields['accumulate']}; it must be from 1 to batch_size="):
        FineTuning(**fields)


def test_accumulated_passes_take_the_same_step(clips):
    one, two = (finetune(tiny_pipe(), clips, FineTuning(steps=1, batch_size=4, warmup=0, learning_rate=1e-3,
                                                        accumulate=n), keep=QUIET) for n in (1, 2))
    for a, b in zip(one.parameters(), two.parameters()):
        assert torch.allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("offload", [False, True])
def test_one_process_alone_shards_too_and_learns_the_same(clips, tmp_path, offload):
    """FSDP2 with one shard: useful with offload, which needs no second GPU."""
    tuning = FineTuning(steps=3, warmup=0, learning_rate=1e-3, gradient_checkpointing=True)
    whole = finetune(tiny_pipe(), clips, tuning, keep=QUIET).state_dict()
    cut = replace(tuning, sharding="fsdp", offload=offload)
    try:
        model = finetune(tiny_pipe(), clips, cut, keep=Keep(tmp_path, checkpoint_every=2, progress=False))
        assert all(isinstance(p, DTensor) for p in model.parameters())
        weights = whole_weights(model, Ranks())
        again = whole_weights(finetune(tiny_pipe(1), clips, cut, keep=Keep(tmp_path, progress=False)), Ranks())
    finally:
        leave()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["finetune_00000002",
                                                                                  "finetune_00000003"]
    assert all(torch.allclose(whole[name], weights[name], atol=1e-6) for name in whole)
    assert all(torch.equal(again[name], weights[name]) for name in whole)


def test_large_models_are_recomputed_by_default():
    with torch.device("meta"):
        small, large = ExpertTransformer(TINY.transformer), ExpertTransformer(preset("2b").transformer)
    assert not FineTuning().recomputes(small) and FineTuning().recomputes(large)
    for asked in (True, False):
        assert FineTuning(gradient_checkpointing=asked).recomputes(small) is asked
        assert FineTuning(gradient_checkpointing=asked).recomputes(large) is asked


def test_sixteen_bit_models_learn_in_float32():
    model = torch.nn.Linear(2, 2).bfloat16()
    torch.nn.init.ones_(model.weight)
    masters = MasterWeights(model)
    for _ in range(100):
        for _, p in masters.named_weights():
            p.data += 1e-4
        masters.write_back()
    assert masters.tensors()["weight"].dtype == torch.float32
    assert model.weight.dtype == torch.bfloat16 and (model.weight > 1).all()  # bfloat16 alone would have stayed at 1


def test_packs_deal_every_clip_once_an_epoch_to_all_ranks_and_its_loss_is_that_of_the_clip_alone(clips):
    pipe, tuning = tiny_pipe(), FineTuning(sequence_length=2 * (20 + 48), batch_size=1, text_dropout=0.0)
    ranks = [PackedDraw(pipe, pipe.transformer, clips, tuning, Ranks(rank, 2), seed=0) for rank in (0, 1)]
    assert ranks[0].tokens == [20 + 48] * 3 and ranks[0].clips_a_step == 1.5  # packs of two clips and of one
    packs = [rank.batches(step)[0] for step in range(3) for rank in ranks]
    assert sorted(len(pack.x0) for pack in packs) == [1, 1, 1, 2, 2, 2]
    pack = max(packs, key=lambda pack: len(pack.x0))
    loss = ranks[0].backward(pipe.transformer, pack)
    alone = [ranks[0].backward(pipe.transformer, replace_clips(pack, i)) for i in range(2)]
    assert loss == pytest.approx(sum(alone), rel=1e-5)
    with pytest.raises(ValueError, match="sequence_length is 9; packing does not go with"):
        FineTuning(sequence_length=9, image_to_video=True)
    with pytest.raises(ValueError, match="68"):
        PackedDraw(pipe, pipe.transformer, clips, replace(tuning, sequence_length=60), Ranks(), seed=0)


def test_which_size_and_which_of_its_clips_do_not_hang_together():
    """Two sizes with two clips each: all four must come up about equally often."""
    class Clips(CachedClips):
        def __init__(self):
            """No files."""

        def buckets(self):
            return {"small": torch.tensor([0, 1]), "large": torch.tensor([2, 3])}

        def draw(self, index, generator):
            drawn.append(int(index[0]))
            return torch.zeros(1, 4, 3, 8, 8)

        def text(self, index):
            return torch.zeros(1, 5, 32)

        def empty_text(self):
            return torch.zeros(1, 5, 32)

    drawn, pipe = [], tiny_pipe()
    draw = Draw(pipe, pipe.transformer, Clips(), FineTuning(batch_size=1), Ranks(), seed=0)
    for step in range(400):
        draw.batches(step)
    assert all(70 <= drawn.count(i) <= 130 for i in range(4))


def replace_clips(pack, i):
    return replace(pack, x0=pack.x0[i:i + 1], texts=pack.texts[i:i + 1], noises=pack.noises[i:i + 1], t=pack.t[i:i + 1])


# ---- image to video


def test_a_widened_model_computes_the_same_whatever_the_picture():
    model = tiny_pipe().transformer
    wide = widen_for_image(model)
    latents, text, t = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 5, 32), torch.tensor([10, 700])
    with torch.no_grad():
        for picture in (torch.zeros_like(latents), torch.randn_like(latents)):
            assert torch.allclose(wide(torch.cat([latents, picture], 1), t, text), model(latents, t, text), atol=1e-5)
    with pytest.raises(ValueError, match="in_channels is 8 for 4 out_channels: this model takes an image already"):
        widen_for_image(wide)


def test_temporal_patches_widen_alike():
    torch.manual_seed(0)
    model = ExpertTransformer(replace(TINY.transformer, patch_size_t=2))
    wide = widen_for_image(model)
    latents, text, t = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 5, 32), torch.tensor([10])
    with torch.no_grad():
        both = wide(torch.cat([latents, torch.randn_like(latents)], 1), t, text)
        assert torch.allclose(both, model(latents, t, text), atol=1e-5)
    assert whole_patches(latents[:, :, :3], 2).shape[2] == 4 and whole_patches(latents, None).shape[2] == 4
    assert torch.equal(whole_patches(latents[:, :, :3], 2)[:, :, 0], latents[:, :, 0])


def test_the_image_stands_in_the_first_frame_and_is_left_out_now_and_then():
    torch.manual_seed(0)
    vae, pictures = CausalVAE(TINY.vae).eval(), torch.rand(2, 3, 1, 32, 32) * 2 - 1
    shown = [image_latents(vae, pictures, 3, ImageCondition(dropout=0.3), torch.Generator().manual_seed(i))
             for i in range(60)]
    assert all(beside.shape == (2, 4, 3, 8, 8) and not beside[:, :, 1:].any() for beside in shown)
    left_out = sum(not beside.any() for beside in shown)
    assert 8 <= left_out <= 30  # 18 expected; never only one clip of a batch
    assert all(beside[0].any() == beside[1].any() for beside in shown)
    inverted = CausalVAE(replace(TINY.vae, invert_scale_latents=True, scaling_factor=0.5)).eval()
    inverted.load_state_dict(vae.state_dict())
    twice = image_latents(inverted, pictures, 3, ImageCondition(dropout=0.0), torch.Generator().manual_seed(0))
    once = image_latents(vae, pictures, 3, ImageCondition(dropout=0.0), torch.Generator().manual_seed(0))
    assert torch.allclose(twice, once * 2, atol=1e-5)


def test_the_noise_on_the_picture_is_as_published():
    """sigma = exp(N(-3, 0.5^2)): median 0.0498; two thirds between 0.030 and 0.082."""
    seen = []

    class Recorder(CausalVAE):
        def encode(self, video, chunk_frames=8):
            seen.append(video)
            return super().encode(video, chunk_frames)

    black = torch.zeros(400, 3, 1, 16, 16)
    image_latents(Recorder(TINY.vae), black, 1, ImageCondition(), torch.Generator().manual_seed(0))
    sigma = seen[0].flatten(1).std(1)
    assert sigma.median().item() == pytest.approx(0.0498, rel=0.1)
    assert ((sigma > 0.0302) & (sigma < 0.0821)).float().mean().item() == pytest.approx(0.683, abs=0.07)


def test_image_to_video_learns_to_look_at_the_picture(clips):
    pipe = tiny_pipe()
    model = finetune(pipe, clips, FineTuning(steps=30, batch_size=3, learning_rate=3e-3, warmup=2, image_to_video=True),
                     keep=QUIET)
    assert model.config.in_channels == 8 and model.patch_embed.proj.weight[:, 4:].abs().max() > 1e-3
    ready = Pipeline(pipe.vae, model, pipe.schedule_config, pipe.text)
    video = ready("a red circle moves right", image=torch.rand(32, 32, 3), num_inference_steps=2)
    assert video.shape == (9, 32, 32, 3)


@pytest.mark.parametrize(("tuning", "message"), [
    (FineTuning(image_to_video=True, lora_rank=2), "this model takes no image yet; train all its weights"),
])
def test_what_does_not_go_together_is_refused(clips, tuning, message):
    with pytest.raises(ValueError, match=message):
        finetune(tiny_pipe(), clips, tuning, keep=QUIET)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_run_moves_between_whole_weights_and_parts_and_back(clips, tmp_path, lora_rank):
    def run(steps, folder=None, **fields):
        tuning = FineTuning(**{"steps": steps, "lora_rank": lora_rank, "learning_rate": 1e-3, "warmup": 0} | fields)
        model = finetune(tiny_pipe(), clips, tuning, keep=Keep(folder, checkpoint_every=1, progress=False))
        weights = whole_weights(model, Ranks())
        leave()
        return weights

    monkey = pytest.MonkeyPatch()
    monkey.setattr("minicogvx.training.finetune.warmup_cosine", lambda *_: 1.0)  # whatever the number of steps
    try:
        whole, parts = run(3), {"sharding": "fsdp", "offload": True}
        run(1, tmp_path)
        run(2, tmp_path, **parts)
        moved = run(3, tmp_path)
    finally:
        monkey.undo()
    rows = [json.loads(line)["step"] for line in (tmp_path / "finetune.jsonl").open()]
    assert rows == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "finetune_00000002", "finetune_00000003.safetensors"]
    start = tiny_pipe().transformer.state_dict()
    assert all(torch.allclose(whole[name], moved[name], atol=1e-5) for name in whole)
    assert any(name not in start or not torch.allclose(start[name], moved[name], atol=1e-5) for name in moved)


def test_a_checkpoint_in_parts_holds_what_learns_alone(clips, tmp_path):
    tuning = FineTuning(steps=1, lora_rank=2, sharding="fsdp", offload=True)
    finetune(tiny_pipe(), clips, tuning, keep=Keep(tmp_path, progress=False))
    leave()
    names = json.loads((tmp_path / "checkpoints" / "finetune_00000001" / "checkpoint.json").read_text())["tensors"]
    assert names and all("lora_" in name for name in names if name.startswith("weights/"))
    assert not [name for name in names if not name.startswith(("weights/", "optimizer/"))]


def test_a_checkpoint_in_parts_of_another_model_is_refused_and_stays(clips, tmp_path):
    parts = {"steps": 1, "sharding": "fsdp", "offload": True}
    finetune(tiny_pipe(), clips, FineTuning(lora_rank=2, **parts), keep=Keep(tmp_path, progress=False))
    for fields in (parts, {"steps": 1}):
        with pytest.raises(ValueError, match="this run needs"):
            finetune(tiny_pipe(), clips, FineTuning(lora_rank=4, **fields), keep=Keep(tmp_path, progress=False))
    leave()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["finetune_00000001"]


def test_fewer_steps_than_are_done_are_refused(clips, tmp_path):
    finetune(tiny_pipe(), clips, FineTuning(steps=2), keep=Keep(tmp_path, progress=False))
    with pytest.raises(ValueError, match="holds finetune after 2 steps; ask for at least as many, not 1"):
        finetune(tiny_pipe(), clips, FineTuning(steps=1), keep=Keep(tmp_path, progress=False))


@pytest.mark.parametrize(("field", "value"), [
    ("learning_rate", -1e-3), ("learning_rate", float("nan")), ("lora_alpha", -1.0), ("ema_decay", 2.0),
    ("ema_decay", 1.0), ("clip", 0.0), ("weight_decay", float("inf")), ("text_dropout", 1.0), ("batch_size", 0),
    ("lora_from", "a.safetensors"),
])
def test_fields_that_cannot_be_meant_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is "):
        FineTuning(**{field: value})


def test_zero_is_not_none(clips):
    assert FineTuning(learning_rate=0.0).rate == FineTuning(learning_rate=0.0, lora_rank=4).rate == 0
    assert FineTuning(lora_rank=4, lora_alpha=0.0).alpha == 0 and FineTuning(lora_rank=4).alpha == 2
    with pytest.raises(ValueError, match="the alpha of LoRA is 0.0; it must be above 0"):
        finetune(tiny_pipe(), clips, FineTuning(lora_rank=4, lora_alpha=0.0))


def test_a_picture_is_not_its_own_answer(films, tmp_path):
    """In image to video, clips of one frame are never drawn; where there are no others, that is said."""
    shutil.copytree(films, tmp_path / "films")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "films" / "a.png")
    (tmp_path / "films" / "a.txt").write_text(CAPTIONS[0])
    pipe, settings = tiny_pipe(), CacheSettings(num_frames=9, height=32, width=32, fps=8, first_frame=True)
    found = scan_folder(tmp_path / "films").clips
    clips, _ = encode_clips(found, tmp_path / "all", pipe.vae, pipe.text, settings, torch.float32, progress=False)
    assert len(clips) == 4 and len(clips.buckets()) == 2
    draw = Draw(pipe, pipe.transformer, clips, FineTuning(image_to_video=True), Ranks(), seed=0)
    assert [len(bucket) for bucket in draw.buckets] == [3]
    assert sum(map(len, Draw(pipe, pipe.transformer, clips, FineTuning(), Ranks(), seed=0).buckets)) == 4
    pictures = [clip for clip in found if clip.is_image]
    alone, _ = encode_clips(pictures, tmp_path / "one", pipe.vae, pipe.text, settings, torch.float32, progress=False)
    with pytest.raises(ValueError, match="has only clips of 1 frame"):
        finetune(tiny_pipe(), alone, FineTuning(image_to_video=True), keep=QUIET)


def test_clips_that_a_learned_table_does_not_fit_are_refused_before_the_first_step(clips):
    pipe = tiny_pipe()
    for change, right in (({}, True), ({"sample_height": 4}, False), ({"sample_frames": 5}, False)):
        pipe.transformer = ExpertTransformer(replace(TINY.transformer, position="learned", **change))
        if right:
            finetune(pipe, clips, FineTuning(steps=1), keep=QUIET)
        else:
            with pytest.raises(ValueError, match="the learned position table of this model fits only"):
                finetune(pipe, clips, FineTuning(steps=1), keep=QUIET)


def test_a_dropped_caption_is_what_guidance_compares_with(clips):
    pipe, tuning = tiny_pipe(), FineTuning(text_dropout=0.999, batch_size=3)
    assert clips.empty_text().abs().max() > 0
    for unconditional, expected in (("empty", clips.empty_text()), ("zeros", torch.zeros(1))):
        pipe.unconditional = unconditional
        batch, = Draw(pipe, pipe.transformer, clips, tuning, Ranks(), seed=0).batches(0)
        assert torch.equal(batch.text, expected.expand_as(batch.text))


def test_a_cache_of_another_model_is_refused(clips):
    pipe = tiny_pipe()
    other = replace(TINY.transformer, text_embed_dim=16)
    pipe.transformer = ExpertTransformer(other)
    with pytest.raises(ValueError, match="has text features 32 wide; the model takes 16"):
        finetune(pipe, clips, FineTuning(), keep=QUIET)
