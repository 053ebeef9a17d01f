# %% [markdown]
# # Image and video to video
#
# **The first nine frames are given. The model only has to go on. How hard can that be?**
#
# Left, a clip that a program drew. Right, its first nine frames, and eight more by the toy.

# %% tags=["nbval-ignore-output"]
import math
import random

import torch
import torch.nn.functional as F
from einops import rearrange

import minicogvx
from minicogvx.course import (
    check, compare_clips, explore_figure, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_clip, show_figure, show_rows, show_source, solution,
)
from minicogvx.data.world import captions, oracle
from minicogvx.data.world.drawing import render, render_batch
from minicogvx.data.world.scenes import DIRECTIONS, Scene, ShapeObject, sample_scenes
from minicogvx.diffusion import draw_noise
from minicogvx.diffusion.conditioning import FirstFramesPutBack, ImageChannels, NoisedVideo
from minicogvx.diffusion.samplers import DDIMSampler
from minicogvx.diffusion.timesteps import start_index
from minicogvx.evaluation.intervals import paired_difference, wilson
from minicogvx.evaluation.reconstruction import psnr
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.training.image_condition import image_channels, noised_picture, widen_for_image
from minicogvx.training.prefix_model import FILE, load_prefix_model
from minicogvx.transformer.model import ExpertTransformer

torch.set_grad_enabled(False)  # nothing is trained in this notebook
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device)


def encoded(video):
    """Scaled latents, b c t h w, of videos b t h w 3 in 0..1: the means."""
    pixels = rearrange(video * 2 - 1, "b t h w c -> b c t h w").to(device, pipe.dtype)
    return (pipe.vae.encode(pixels).mode() * pipe.vae.config.scaling_factor).to(pipe.dtype)


COUNT, SEED = 12, 13
scenes = [scene for scene in sample_scenes(60, SEED, two_objects=0.0) if scene.objects[0].motion in DIRECTIONS][:COUNT]
true = render_batch(scenes, 17, 64, 64)  # films t h w 3
SHOWN = 0
opening = pipe("a", prefix=true[SHOWN, :9], num_inference_steps=10, guidance_scale=0.0, seed=SEED)
compare_clips({"the true clip": true[SHOWN], "nine true frames, then the toy": opening},
              "Left, a drawn clip of a shape that moves. Right, its first nine frames, after which the toy goes on: the "
              "object changes.", pipe.fps, num_frames=9)
