"""Whole runs against diffusers: shrunken copies of the five published variants go out, are sampled there, come back."""

from dataclasses import replace

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

from minicogvx.interop.diffusers_folder import read_folder
from minicogvx.pipeline import Pipeline
from minicogvx.presets import TextConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE

VARIANTS = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")
SCHEDULERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
HEIGHT, WIDTH, FRAMES, TEXT, STEPS = 32, 48, 9, 8, 3
PROMPT, NEGATIVE = "a red ring moves right", "blue bar"


def load_pipeline(folder, **options) -> Pipeline:
    """The pipeline in a folder, in the number format of its files."""
    return Pipeline(*read_folder(folder, **options))


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


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).norm() / reference.norm()).item()


def weights(pipe: Pipeline) -> dict[str, torch.Tensor]:
    parts = {"vae": pipe.vae, "transformer": pipe.transformer, "text": pipe.text.encoder}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def same(ours: Pipeline, other: Pipeline) -> bool:
    a, b = weights(ours), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def their_run(reference: DiffusionPipeline, image, latents, output_type: str) -> torch.Tensor:
    extra = {} if image is None else {"image": image.permute(0, 3, 1, 2)}
    return reference(
        prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_frames=FRAMES, guidance_scale=4.0,
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5), latents=latents.transpose(1, 2).clone(),
        max_sequence_length=TEXT, output_type=output_type, **extra).frames


@pytest.mark.parametrize("name", VARIANTS)
def test_whole_runs_agree_and_folders_go_both_ways(name, tmp_path):
    pipe = shrunken(name)
    image = None
    if name.endswith("i2v"):
        image = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))
    frames = 4 if name.startswith("1.5") else 3
    latents = torch.randn(1, 4, frames, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(2))
    pipe.save(tmp_path / "ours", max_shard_bytes=20_000)
    kind = CogVideoXPipeline if image is None else CogVideoXImageToVideoPipeline
    reference = kind.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert type(reference.scheduler) is SCHEDULERS[pipe.schedule_config.sampler]
    reference.set_progress_bar_config(disable=True)

    for sampler, scheduler in SCHEDULERS.items():
        reference.scheduler = scheduler.from_config(reference.scheduler.config)
        ours = Pipeline(pipe.vae, pipe.transformer, replace(pipe.schedule_config, sampler=sampler), pipe.text, pipe.fps)
        sample = ours.sample([PROMPT], image=image, negative_prompt=NEGATIVE, num_inference_steps=STEPS,
                             guidance_scale=4.0, seed=5, latents=latents)
        expected = their_run(reference, image, latents, "latent")
        front = frames - 3  # the 1.5 models denoise one frame more; diffusers drops it only when it decodes
        assert relative(sample, expected.transpose(1, 2)[:, :, front:]) < 1e-5, sampler
        assert relative(sample, latents[:, :, front:]) > 0.5  # the run did something
    video = their_run(reference, image, latents, "pt")
    assert video.std() > 0.01 and relative(ours.decode(sample).permute(0, 1, 4, 2, 3), video) < 1e-5

    reference.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    for folder in ("ours", "theirs"):
        back = load_pipeline(tmp_path / folder)
        assert same(back, pipe) and back.fps == pipe.fps
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
def opened(tmp_path_factory):
    """`opened(variant, kind)` is (our pipeline, diffusers'), both from one exported folder, without further options."""
    folders = {}

    def both(name: str, kind=CogVideoXPipeline):
        if name not in folders:
            folders[name] = shrunken(name).save(tmp_path_factory.mktemp("opened") / name, dtype=torch.float16)
        reference = kind.from_pretrained(folders[name])
        reference.set_progress_bar_config(disable=True)
        return load_pipeline(folders[name], dtype=torch.float32), reference

    return both


@pytest.mark.parametrize(("name", "frames", "height", "width"), [
    ("2b", 5, 48, 32), ("2b", 13, 64, 80), ("2b", 21, 16, 96), ("5b", 5, 96, 64), ("5b", 13, 32, 32),
    ("5b", 21, 48, 80), ("5b", 85, 16, 32), ("1.5-5b", 5, 32, 48), ("1.5-5b", 13, 16, 32), ("1.5-5b", 21, 32, 16),
])
@pytest.mark.parametrize("task", ["text", "video"])
def test_every_size_and_frame_count_that_diffusers_takes_gives_its_video(opened, name, frames, height, width, task):
    """Also those whose first latent frame comes back as four frames and not as one: 8 for 5."""
    size = {"height": height, "width": width}
    call = {"negative_prompt": NEGATIVE, "num_inference_steps": 2, "guidance_scale": 4.0, **size}
    theirs, ours = {"generator": torch.Generator().manual_seed(5), "max_sequence_length": TEXT}, {}
    if task == "video":
        film = torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(1))
        pipe, reference = opened(name, CogVideoXVideoToVideoPipeline)
        theirs |= {"video": film.permute(0, 3, 1, 2), "strength": 0.6}
        ours = {"video": film, "strength": 0.6}
    else:
        pipe, reference = opened(name)
        theirs["num_frames"] = frames
    expected = reference(prompt=PROMPT, output_type="pt", **call, **theirs).frames[0].permute(0, 2, 3, 1)
    found = pipe(PROMPT, num_frames=frames, seed=5, **ours, **call)
    assert len(expected) > frames and relative(found, expected) < 2e-5


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("name", ["2b", "5b"])
def test_schedulers_of_every_spacing_open_and_visit_the_same_steps(name, spacing, tmp_path):
    pipe = shrunken(name)
    pipe.schedule_config = replace(pipe.schedule_config, timestep_spacing=spacing)
    pipe.save(tmp_path / "ours")
    assert load_pipeline(tmp_path / "ours").schedule_config == pipe.schedule_config
    reference, pipe = CogVideoXPipeline.from_pretrained(tmp_path / "ours"), load_pipeline(tmp_path / "ours")
    reference.set_progress_bar_config(disable=True)
    for steps in (1, 3, 7):
        call = {"negative_prompt": NEGATIVE, "num_inference_steps": steps, "guidance_scale": 4.0, "num_frames": 5}
        generator = torch.Generator().manual_seed(5)
        expected = reference(prompt=PROMPT, **call, generator=generator, max_sequence_length=TEXT,
                             output_type="latent").frames.transpose(1, 2)
        assert relative(pipe.sample([PROMPT], seed=5, **call), expected) < 1e-5, steps
