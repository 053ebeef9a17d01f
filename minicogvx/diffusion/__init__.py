"""Diffusion (paper 2.2, 3): noise schedule, timesteps, objective, guidance and samplers. Plain functions on tensors."""

from minicogvx.diffusion.guidance import dynamic_guidance_scale, guidance_scales, guide
from minicogvx.diffusion.objective import diffusion_loss, diffusion_target, weighted_x0_loss
from minicogvx.diffusion.samplers import DDIMSampler, DPMSampler, draw_noise
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.diffusion.timesteps import (
    inference_timesteps,
    rank_interval,
    rank_timesteps,
    start_index,
    stratified_timesteps,
    uniform_timesteps,
)

__all__ = [
    "DDIMSampler", "DPMSampler", "NoiseSchedule", "diffusion_loss", "diffusion_target", "draw_noise",
    "dynamic_guidance_scale", "guidance_scales", "guide", "inference_timesteps", "rank_interval", "rank_timesteps",
    "start_index", "stratified_timesteps", "uniform_timesteps", "weighted_x0_loss",
]
