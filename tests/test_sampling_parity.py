"""Sampling against diffusers where its options meet: tasks, samplers, strengths, guidance, batches, seeds."""

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXVideoToVideoPipeline

from tests.test_pipeline_parity import FRAMES, HEIGHT, NEGATIVE, PROMPT, SCHEDULERS, TEXT, WIDTH, relative, shrunken

KINDS = {"text": CogVideoXPipeline, "image": CogVideoXImageToVideoPipeline, "video": CogVideoXVideoToVideoPipeline}
PAIR = [PROMPT, "blue ring"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """`pairs(variant, task)` is (our pipeline, that of diffusers with the same weights)."""
    made = {}

    def pair(name: str, task: str):
        if name not in made:
            made[name] = shrunken(name), tmp_path_factory.mktemp(name) / "ours"
            made[name][0].save(made[name][1])
        theirs = KINDS[task].from_pretrained(made[name][1], local_files_only=True)
        theirs.set_progress_bar_config(disable=True)
        return made[name][0], theirs

    return pair


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))


def seeded(seed):
    return [seeded(one) for one in seed] if isinstance(seed, list) else torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("name, strength, steps", [("2b", 0.6, 10), ("2b", 0.3, 7), ("5b", 0.8, 6), ("5b", 1.0, 4)])
def test_dynamic_guidance_counts_the_steps_that_are_left_of_a_video(pairs, name, strength, steps, sampler):
    pair, film = pairs(name, "video"), pixels(1, FRAMES)
    for dynamic in (None, "published"):
        assert difference(pair, sampler=sampler, steps=steps, video=film, strength=strength, dynamic=dynamic) < 1e-5


@pytest.mark.parametrize("guidance, dynamic", [(1.0, None), (1.5, None), (0.0, "published"), (0.5, "published"),
                                               (1.0, "published"), (1.5, "published")])
def test_guidance_of_one_is_none_and_dynamic_guidance_up_to_one(pairs, guidance, dynamic):
    assert difference(pairs("2b", "text"), guidance=guidance, dynamic=dynamic) < 1e-5
    assert difference(pairs("5b", "video"), guidance=guidance, dynamic=dynamic, sampler="dpm",
                      video=pixels(1, FRAMES)) < 1e-5
    assert difference(pairs("5b-i2v", "image"), guidance=guidance, dynamic=dynamic, image=pixels(1)) < 1e-5


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("seed", [5, [5, 9]])
def test_batches_of_every_task(pairs, sampler, seed):
    """From one generator for all, and from one for each video."""
    how = {"prompts": PAIR, "sampler": sampler, "seed": seed}
    assert difference(pairs("5b", "text"), **how) < 1e-5
    assert difference(pairs("5b", "video"), video=pixels(2, FRAMES), **how) < 1e-5
    assert difference(pairs("5b-i2v", "image"), image=pixels(2), **how) < 1e-5


def test_one_video_serves_all_prompts(pairs):
    for strength in (0.8, 0.4):
        assert difference(pairs("2b", "video"), PAIR, video=pixels(1, FRAMES), strength=strength) < 1e-5
