"""Whole runs against diffusers: shrunken copies of the five published variants go out, are sampled there, come back."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXVideoToVideoPipeline,
    DiffusionPipeline,
)

from minicogvx.pipeline import Pipeline
from minicogvx.presets import TextConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE
from tests.tiny import load_pipeline, same, weights

VARIANTS = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")
SCHEDULERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
KINDS = {"text": CogVideoXPipeline, "image": CogVideoXImageToVideoPipeline, "video": CogVideoXVideoToVideoPipeline}
HEIGHT, WIDTH, FRAMES, TEXT, STEPS = 32, 48, 9, 8, 3
PROMPT, NEGATIVE, PAIR = "a red ring moves right", "blue bar", ["a red ring moves right", "blue ring"]


def shrunken(name: str) -> Pipeline:
    """A published variant with everything made small that can be; options and oddities stay. Weights from a seed."""
    torch.manual_seed(0)
    published = preset(name)
    vae = replace(published.vae, latent_channels=4, block_out_channels=(4, 8, 8, 8), norm_num_groups=2,
                  layers_per_block=1, sample_height=HEIGHT, sample_width=WIDTH)
    transformer = replace(
        published.transformer, num_attention_heads=2, attention_head_dim=16, num_layers=2, text_embed_dim=16,
        in_channels=8 if published.transformer.image_to_video else 4, out_channels=4, max_text_seq_length=TEXT,
        time_embed_dim=12, ofs_embed_dim=12 if published.transformer.ofs_embed_dim else None, sample_height=HEIGHT // 8,
        sample_width=WIDTH // 8, sample_frames=FRAMES)
    text = TextConfig(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=16)
    pipe = Pipeline(CausalVAE(vae).eval(), ExpertTransformer(transformer).eval(), published.schedule,
                    TextEncoder.from_config(text, tuple(f"{PROMPT} {NEGATIVE}".split()), TEXT), published.fps)
    pipe.text.encoder.eval()
    with torch.no_grad():
        for tensor in pipe.transformer.state_dict().values():  # so that no norm, gate or position is without effect
            tensor += 0.1 * torch.randn(tensor.shape)
    return pipe


def pixels(*size: int) -> torch.Tensor:
    """... t h w 3 in 0..1; height and width are the usual ones where they are not given."""
    size = size if len(size) == 3 else (*size, HEIGHT, WIDTH)
    return torch.rand(*size, 3, generator=torch.Generator().manual_seed(1))


def seeded(seed):
    return [seeded(one) for one in seed] if isinstance(seed, list) else torch.Generator().manual_seed(seed)


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).norm() / reference.norm()).item()


def their_run(reference: DiffusionPipeline, image, latents, output_type: str) -> torch.Tensor:
    extra = {} if image is None else {"image": image.permute(0, 3, 1, 2)}
    return reference(
        prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES, guidance_scale=4.0,
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5), latents=latents.transpose(1, 2).clone(),
        max_sequence_length=TEXT, output_type=output_type, **extra).frames


def test_whole_runs_agree_and_folders_go_both_ways(tmp_path, subtests):
    for name in VARIANTS:
        with subtests.test(name):
            pipe, home = shrunken(name), tmp_path / name
            image = pixels(1) if name.endswith("i2v") else None
            frames = 4 if name.startswith("1.5") else 3
            latents = torch.randn(1, 4, frames, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(2))
            pipe.save(home / "ours", max_shard_bytes=20_000)
            kind = CogVideoXPipeline if image is None else CogVideoXImageToVideoPipeline
            reference = kind.from_pretrained(home / "ours", local_files_only=True)
            assert type(reference.scheduler) is SCHEDULERS[pipe.schedule_config.sampler]
            reference.set_progress_bar_config(disable=True)

            for sampler, scheduler in SCHEDULERS.items():
                reference.scheduler = scheduler.from_config(reference.scheduler.config)
                sample = pipe.sample([PROMPT], image=image, negative_prompt=NEGATIVE, num_inference_steps=STEPS,
                                     guidance_scale=4.0, seed=5, latents=latents, sampler=sampler)
                expected = their_run(reference, image, latents, "latent")
                front = frames - 3  # the 1.5 models denoise one frame more; diffusers drops it only when it decodes
                assert relative(sample, expected.transpose(1, 2)[:, :, front:]) < 1e-5, sampler
                assert relative(sample, latents[:, :, front:]) > 0.5  # the run did something
            video = their_run(reference, image, latents, "pt")
            assert video.std() > 0.01 and relative(pipe.decode(sample).permute(0, 1, 4, 2, 3), video) < 1e-5

            reference.save_pretrained(home / "theirs", max_shard_size="20KB")
            for folder in ("ours", "theirs"):
                # diffusers saves the table of learned positions, and so all of that network opens, in float64
                back = load_pipeline(home / folder, dtype=torch.float32)
                assert same(weights(back), weights(pipe)) and back.fps == pipe.fps
                assert (back.vae.config, back.transformer.config) == (pipe.vae.config, pipe.transformer.config)
                assert replace(back.schedule_config, sampler="ddim") == replace(pipe.schedule_config, sampler="ddim")
            assert back.schedule_config.sampler == "dpm"  # the last that they were given


def test_departures_are_refused_by_diffusers_aloud(tmp_path):
    pipe = shrunken("5b")
    pipe.transformer = ExpertTransformer(replace(pipe.transformer.config, modulation="shared"))
    pipe.save(tmp_path / "ours", allow_departures=True)
    with pytest.raises((AttributeError, ValueError, ImportError)):
        CogVideoXPipeline.from_pretrained(tmp_path / "ours", local_files_only=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """`pairs(variant, task)` is (our pipeline, that of diffusers), both from one exported folder."""
    folders = {}

    def pair(name: str, task: str):
        if name not in folders:
            folders[name] = shrunken(name).save(tmp_path_factory.mktemp("pairs") / name)
        theirs = KINDS[task].from_pretrained(folders[name], local_files_only=True)
        theirs.set_progress_bar_config(disable=True)
        return load_pipeline(folders[name]), theirs

    return pair


def test_every_size_and_frame_count_that_diffusers_takes_gives_its_video(pairs, subtests):
    """Also those whose first latent frame comes back as four frames and not as one: 8 for 5."""
    sizes = [
        ("2b", 5, 48, 32), ("2b", 13, 64, 80), ("2b", 21, 16, 96), ("5b", 5, 96, 64), ("5b", 13, 32, 32),
        ("5b", 21, 48, 80), ("5b", 85, 16, 32), ("1.5-5b", 5, 32, 48), ("1.5-5b", 13, 16, 32), ("1.5-5b", 21, 32, 16),
    ]
    for (name, frames, height, width), task in product(sizes, ("text", "video")):
        with subtests.test(name, size=(frames, height, width), task=task):
            pipe, reference = pairs(name, task)
            call = {"negative_prompt": NEGATIVE, "num_inference_steps": 2, "guidance_scale": 4.0, "height": height,
                    "width": width}
            theirs, ours = {"num_frames": frames}, {}
            if task == "video":
                film = pixels(frames, height, width)
                theirs, ours = {"video": film.permute(0, 3, 1, 2), "strength": 0.6}, {"video": film, "strength": 0.6}
            expected = reference(prompt=PROMPT, output_type="pt", generator=seeded(5), max_sequence_length=TEXT, **call,
                                 **theirs).frames[0].permute(0, 2, 3, 1)
            found = pipe(PROMPT, num_frames=frames, seed=5, **ours, **call)
            assert len(expected) > frames and relative(found, expected) < 2e-5


def test_schedulers_of_every_spacing_open_and_visit_the_same_steps(tmp_path, subtests):
    for spacing, name in product(("trailing", "leading", "linspace"), ("2b", "5b")):
        with subtests.test(spacing, name=name):
            pipe, folder = shrunken(name), tmp_path / f"{spacing} {name}"
            pipe.schedule_config = replace(pipe.schedule_config, timestep_spacing=spacing)
            pipe.save(folder)
            reference, opened = CogVideoXPipeline.from_pretrained(folder), load_pipeline(folder)
            assert opened.schedule_config == pipe.schedule_config
            reference.set_progress_bar_config(disable=True)
            for steps in (1, 3, 7):
                call = {"negative_prompt": NEGATIVE, "num_inference_steps": steps, "guidance_scale": 4.0,
                        "num_frames": 5}
                expected = reference(prompt=PROMPT, **call, generator=seeded(5), max_sequence_length=TEXT,
                                     output_type="latent").frames.transpose(1, 2)
                assert relative(opened.sample([PROMPT], seed=5, **call), expected) < 1e-5, steps


# ---- where options of sampling meet


def difference(pair, prompts=PROMPT, sampler="ddim", steps=5, seed=5, guidance=4.0, dynamic=None, image=None,
               video=None, strength=0.8) -> float:
    """Of the latents of one run, relative to theirs."""
    ours, theirs = pair
    theirs.scheduler = SCHEDULERS[sampler].from_config(theirs.scheduler.config)
    given = {} if image is None else {"image": image.permute(0, 3, 1, 2)}
    if video is not None:
        films = [film.permute(0, 3, 1, 2) for film in video]
        given = {"video": films[0] if len(films) == 1 else films, "strength": strength}
    else:
        given["num_frames"] = FRAMES
    several = isinstance(prompts, list)
    expected = theirs(
        prompt=prompts, negative_prompt=[NEGATIVE] * len(prompts) if several else NEGATIVE, height=HEIGHT, width=WIDTH,
        guidance_scale=guidance, use_dynamic_cfg=dynamic is not None, num_inference_steps=steps,
        generator=seeded(seed), max_sequence_length=TEXT, output_type="latent", **given).frames.transpose(1, 2)
    found = ours.sample(prompts if several else [prompts], image=image, video=video, strength=strength, seed=seed,
                        negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=guidance,
                        dynamic_guidance=dynamic, sampler=sampler)
    return relative(found, expected)


def test_dynamic_guidance_counts_the_steps_that_are_left_of_a_video(pairs, subtests):
    runs = [("2b", 0.6, 10), ("2b", 0.3, 7), ("5b", 0.8, 6), ("5b", 1.0, 4)]
    for sampler, (name, strength, steps), dynamic in product(SCHEDULERS, runs, (None, "published")):
        with subtests.test(name, sampler=sampler, strength=strength, steps=steps, dynamic=dynamic):
            assert difference(pairs(name, "video"), sampler=sampler, steps=steps, video=pixels(1, FRAMES),
                              strength=strength, dynamic=dynamic) < 1e-5


def test_guidance_of_one_is_none_and_dynamic_guidance_up_to_one(pairs, subtests):
    for guidance, dynamic in ((1.0, None), (1.5, None), (0.0, "published"), (0.5, "published"), (1.0, "published"),
                              (1.5, "published")):
        with subtests.test(guidance=guidance, dynamic=dynamic):
            how = {"guidance": guidance, "dynamic": dynamic}
            assert difference(pairs("2b", "text"), **how) < 1e-5
            assert difference(pairs("5b", "video"), sampler="dpm", video=pixels(1, FRAMES), **how) < 1e-5
            assert difference(pairs("5b-i2v", "image"), image=pixels(1), **how) < 1e-5


def test_batches_of_every_task(pairs, subtests):
    """From one generator for all, and from one for each video."""
    for sampler, seed in product(SCHEDULERS, (5, [5, 9])):
        with subtests.test(sampler, seed=seed):
            how = {"prompts": PAIR, "sampler": sampler, "seed": seed}
            assert difference(pairs("5b", "text"), **how) < 1e-5
            assert difference(pairs("5b", "video"), video=pixels(2, FRAMES), **how) < 1e-5
            assert difference(pairs("5b-i2v", "image"), image=pixels(2), **how) < 1e-5
    for strength in (0.8, 0.4):  # one video serves all prompts
        with subtests.test(strength=strength):
            assert difference(pairs("2b", "video"), PAIR, video=pixels(1, FRAMES), strength=strength) < 1e-5
