# %% [markdown]
# # The oracle as a teacher
#
# **A program marks every clip, exactly and at no cost. Can a model learn from marks alone? And what else does it
# learn?**

# %% tags=["nbval-ignore-output"]
import copy
import math
import random
import time

import torch

import minicogvx
from minicogvx.ablation.taught import clips_of, shares, taught_pipe, taught_record
from minicogvx.course import (
    check, compare_clips, explore_figure, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution,
)
from minicogvx.course.exercises.teacher_17 import drawn_policy
from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.drawing import render
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.scenes import COLOURS, Scene, ShapeObject, sample_scenes
from minicogvx.diffusion import DDIMSampler, draw_noise
from minicogvx.evaluation.intervals import mean_interval, paired_difference, wilson
from minicogvx.presets import preset
from minicogvx.training.distillation import distil, distillation_loss, target_x0, teacher_ways
from minicogvx.training.policy import (
    PolicyTraining, clipped_objective, latent_shape, learn_from_reward, learner, step_gaussian, walk,
)
from minicogvx.training.reward import (
    PROPERTIES, all_right, colour_seen, group_advantages, layout_spread, rewards_of, share_right,
)
from minicogvx.transformer.model import flops

torch.set_grad_enabled(False)  # the package switches it on where something is trained
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
toy = minicogvx.load("toy", device, torch.float32)
student, rewarded = (taught_pipe(toy, name) for name in ("student", "rewarded"))
record = taught_record()
