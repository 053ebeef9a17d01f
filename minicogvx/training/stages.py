"""The four training stages of the paper, as settings to start from (paper 3.2, Table 5)."""

from dataclasses import dataclass

from minicogvx.data.clips.plan import frame_step, size_step
from minicogvx.presets import TransformerConfig, VAEConfig


@dataclass(frozen=True)
class PublishedStage:
    """A row of Table 5. Learning rates were not published.

    `sequence_length` is larger than any clip of its stage, so it is presumably that of packed sequences (paper 3.1,
    frame pack), on one rank or a group of ranks; the paper does not say. It is not used here: to pack, pass it as
    `sequence_length` of `FineTuning`, with `--batch-size` in packs and `--set accumulate=1`.
    """

    name: str
    short_side: int  # pixels to which videos are resized (paper 3.2, in the text)
    max_height: int  # pixels; Table 5 caps height and width, in stage 2 below the text's short side
    max_width: int
    seconds: int  # at most
    batch_size: int  # clips per step, over all ranks
    sequence_length: int  # tokens; see above
    steps: int
    best_share: float = 1.0  # of the data


PUBLISHED_STAGES = (
    PublishedStage("stage 1", 256, 256, 384, 6, 2000, 25_000, 400_000),
    PublishedStage("stage 2", 512, 480, 720, 6, 1000, 75_000, 220_000),
    PublishedStage("stage 3", 768, 768, 1360, 10, 250, 700_000, 120_000),
    PublishedStage("stage 4", 768, 768, 1360, 10, 100, 700_000, 10_000, best_share=0.2),  # fine-tuning
)


@dataclass(frozen=True)
class StageSize:
    """The largest clips of a stage, for a given model."""

    num_frames: int
    height: int  # pixels
    width: int
    fps: int | float


def published_stage(number: int) -> PublishedStage:
    """Stage 1, 2, 3 or 4. Raises ValueError for another number."""
    if not 1 <= number <= len(PUBLISHED_STAGES):
        raise ValueError(f"stage is {number}; it must be from 1 to {len(PUBLISHED_STAGES)}, as in the paper's Table 5")
    return PUBLISHED_STAGES[number - 1]


def stage_size(stage: PublishedStage, vae: VAEConfig, fps: int | float) -> StageSize:
    """The stage's largest clips at `fps`, for a model with this VAE.

    The length is the largest 4k + 1 (8k + 1 if the VAE has the published first-frame rule) up to seconds * fps + 1. At
    the published 8 and 16 fps it is always 8k + 1, which the released fine-tuning code requires: 49, 97, 81 and 161.
    Sides are rounded down to multiples of the patch; those of Table 5 already are. Raises ValueError for an fps that is
    not above 0.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}; it must be above 0")
    step, pixels = frame_step(vae), size_step(vae)
    frames = int(stage.seconds * fps) // step * step + 1
    return StageSize(frames, stage.max_height // pixels * pixels, stage.max_width // pixels * pixels, fps)


def clip_tokens(size: StageSize, vae: VAEConfig, transformer: TransformerConfig) -> int:
    """Tokens of one clip of this size, its text included.

    For 5b: 5,218 in stage 1, 17,776 in stage 2, 85,906 in stages 3 and 4. The same for 1.5-5b, whose videos have twice
    the frame rate and whose patches span twice as many frames. So Table 5's sequences hold 4.8, 4.2 and 8.1 of a
    stage's longest clips.
    """
    latents = vae.latent_size(size.num_frames, size.height, size.width)
    return transformer.max_text_seq_length + transformer.num_patches(latents)


def rank_batch(stage: PublishedStage, world_size: int) -> int:
    """Clips per step on each of `world_size` ranks, rounded up: together at least the stage's batch.

    Raises ValueError for fewer than one rank.
    """
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; it must be 1 or more")
    return -(-stage.batch_size // world_size)
