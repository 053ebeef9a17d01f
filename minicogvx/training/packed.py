"""The loss of a packed sequence (paper 3.1): clips of different length and size, one number for each."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import forward_clips


def packed_diffusion_loss(model: ExpertTransformer, schedule: NoiseSchedule,
                          latents: Sequence[Float[Tensor, "c _t _h _w"]],
                          texts: Sequence[Float[Tensor, "_n_text d_text"]], timesteps: Int[Tensor, " clips"],
                          noises: Sequence[Float[Tensor, "c _t _h _w"]],
                          beside: Sequence[Float[Tensor, "c2 _t _h _w"]] | None = None,
                          ofs: Float[Tensor, " clips"] | None = None,
                          group: dist.ProcessGroup | None = None) -> Float[Tensor, " clips"]:
    """What `diffusion_loss` gives for each clip alone, v-prediction by default, from one pass over all of them.

    How a pack's losses are weighed was not published. Here each clip counts once, whatever else is in its pack, so the
    data decides what is learnt, not the packing: a pack and the same clips one by one give the same gradient.

    Args:
        latents: clean, scaled latents of each clip; an image is a video of one frame.
        texts: text features of each clip, in the number format that the model computes in.
        timesteps: 0..999, one a clip.
        noises: standard normal, each of its clip's shape.
        beside: for image to video, the image channels of each clip.
        ofs: as in the model, one a clip.
        group: the ranks that share the tokens of the pack.

    Returns:
        The mean squared error of each clip, in at least float32.

    Raises:
        ValueError: if the lists differ in length, if a noise is not of its clip's shape, and as `forward_clips` does.
    """
    if [clip.shape for clip in latents] != [noise.shape for noise in noises]:
        raise ValueError(f"noises has shapes {[tuple(noise.shape) for noise in noises]}; they must be those of the "
                         f"clips, {[tuple(clip.shape) for clip in latents]}")
    if not len(latents) == len(texts) == len(timesteps):
        raise ValueError(f"there are {len(latents)} clips, {len(texts)} texts and {len(timesteps)} timesteps; "
                         f"each clip needs one of both")
    each = timesteps.split(1)  # one-clip batches: the schedule and the loss stay those of any other training
    noisy = [schedule.add_noise(clip[None], noise[None], t)[0] for clip, noise, t in zip(latents, noises, each)]
    if beside is not None:
        noisy = [torch.cat([clip, channels.to(clip)]) for clip, channels in zip(noisy, beside)]
    noisy = [clip.to(text.dtype) for clip, text in zip(noisy, texts)]
    predictions = forward_clips(model, noisy, timesteps, texts, ofs, group=group)
    return torch.cat([diffusion_loss(prediction[None], clip[None], noise[None], t, schedule)
                      for prediction, clip, noise, t in zip(predictions, latents, noises, each)])
