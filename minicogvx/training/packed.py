"""The loss of a packed sequence (paper 3.1): clips of different length and size, one number for each."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import forward_clips


def packed_diffusion_loss(model: ExpertTransformer, schedule: NoiseSchedule,
                          latents: Sequence[Float[Tensor, "c _t _h _w"]],
                          texts: Sequence[Float[Tensor, "_n_text d_text"]], timesteps: Int[Tensor, " clips"],
                          noises: Sequence[Float[Tensor, "c _t _h _w"]]) -> Float[Tensor, " clips"]:
    """What `diffusion_loss` gives for each clip alone, v-prediction by default, from one pass over all of them.

    Args:
        latents: clean, scaled latents of each clip; an image is a video of one frame.
        texts: text features of each clip, in the number format that the model computes in.
        timesteps: 0..999, one a clip.
        noises: standard normal, each of its clip's shape.

    Returns:
        The mean squared error of each clip, in at least float32. `mean_loss` makes one number of it.

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
    noisy = [schedule.add_noise(clip[None], noise[None], t)[0].to(text.dtype)
             for clip, noise, t, text in zip(latents, noises, each, texts)]
    predictions = forward_clips(model, noisy, timesteps, texts)
    return torch.cat([diffusion_loss(prediction[None], clip[None], noise[None], t, schedule)
                      for prediction, clip, noise, t in zip(predictions, latents, noises, each)])


def mean_loss(losses: Float[Tensor, " clips"], latents: Sequence[Float[Tensor, "c _t _h _w"]],
              weighting: Literal["clip", "latents"] = "clip", total: float | None = None) -> Float[Tensor, ""]:
    """The weighted mean of a pack's losses, to call `backward` on.

    The published loss is a mean over a batch of means over a clip's numbers; how a pack is weighed was not published.
    "clip": each clip counts once. So the data, not the packing, decides what the model learns most, as in a batch of
    clips of one size; a pack and the same clips one by one give the same gradient.
    "latents": each clip counts by its latent numbers, as if the pack were one large video. Then an 81-frame clip counts
    as much as 21 images of its size, and images, where objects and words are learnt first, hardly count.

    The mean is over this pack, so in a pack with many clips each counts less than in one with few. `total` divides by a
    fixed number instead, such as the mean number of clips (or of latent numbers) in a pack: then all clips of all
    packs, and of all ranks, count alike.

    Raises ValueError for another weighting, a total that is not above 0, or if there is not one loss for each clip.
    """
    if weighting not in ("clip", "latents"):
        raise ValueError(f"weighting is {weighting!r}; it must be 'clip' or 'latents'")
    if len(losses) != len(latents):
        raise ValueError(f"there are {len(losses)} losses for {len(latents)} clips; give one for each")
    if total is not None and total <= 0:
        raise ValueError(f"total is {total}; it must be above 0")
    weights = [1.0 if weighting == "clip" else float(clip.numel()) for clip in latents]
    return (losses * losses.new_tensor(weights)).sum() / (sum(weights) if total is None else total)
