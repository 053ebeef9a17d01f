"""Runs every stage once on the meta device, which works out shapes and computes nothing.

So a size that does not fit is rejected at once, not after the stages before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from minicogvx.data.clips.plan import CacheSettings
from minicogvx.data.world.captions import fewest_tokens, most_tokens, vocabulary
from minicogvx.engine.ranks import Ranks
from minicogvx.engine.sharding import check_sharding
from minicogvx.interop import find_folder
from minicogvx.interop.folder_configs import FolderConfigs, read_configs
from minicogvx.interop.lpips_weights import check_lpips
from minicogvx.pipeline import Pipeline
from minicogvx.presets import Preset, TransformerConfig, VAEConfig, video_size
from minicogvx.text import TextEncoder
from minicogvx.training.alignment import aligned_blocks
from minicogvx.training.recipes import Recipe
from minicogvx.training.routing import skipped_blocks
from minicogvx.training.settings import WORLD_FPS, TransformerTraining, VAEStage, VAETraining
from minicogvx.training.stages import Stage
from minicogvx.training.start import check_start
from minicogvx.training.videos import stage_size
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import check_packable
from minicogvx.transformer.sequence_parallel import check_split
from minicogvx.vae import CausalVAE, context_parallel


def check_job(job, ranks: Ranks = Ranks()) -> None:
    """Raises ValueError, before any work, for a `train.Job` that would fail late; see also the functions below."""
    recipe, training = job.recipe, job.recipe.transformer
    check_sharding(training.sharding, ranks.device)
    if job.model is None and recipe.vae is None:
        raise ValueError("this recipe trains no VAE; name the model that has VAE and text encoder, with --encoders, or "
                         "with --from, to train its transformer further")
    if job.start == "random" and (training.lora_rank or training.lora_from):
        raise ValueError(f"lora_rank is {training.lora_rank}; adapters are for a trained model: name it with --from")
    if job.model is None and job.data is not None and job.data.encoded:
        raise ValueError(f"{job.data.folder} holds clips that are encoded already, and this run trains its own VAE; "
                         f"name films, or with --encoders or --from the model that they were encoded with")
    if job.data is None:
        _check_world(recipe, training, job.configs.transformer, ranks)
    elif training.alignment_weight:
        raise ValueError(f"alignment_weight is {training.alignment_weight}; what covers a cell is known of the shapes "
                         f"world only, so for films it must be 0")
    given = job.data is not None or job.model is not None
    for i, stage in enumerate(training.stages if given else ()):
        if stage.text_slots:
            raise ValueError(f"transformer.stages.{i}.text_slots is {stage.text_slots}; with films, or a text encoder "
                             f"that is given, it must be None: only captions of the shapes world can be phrased anew")
    if job.model is not None and training.text_bias_slope is not None:
        raise ValueError(f"text_bias_slope is {training.text_bias_slope}; with a text encoder that is given, which has "
                         f"learned its biases already, it must be None")
    if job.model is None:
        sizes = recipe.model_sizes
        check_vae(sizes.vae, recipe.vae, ranks)
        check_transformer(sizes, training, ranks)
        return
    given = read_configs(find_folder(job.model))
    transformer = recipe.model_sizes.transformer
    if job.start != "random":
        transformer = read_configs(find_folder(job.start)).transformer
        check_start(transformer, training)
    _check_encoders(given, transformer, job)
    _check_given(given.vae, transformer, training, ranks, bucketed=job.data is not None)


def _check_encoders(given: FolderConfigs, transformer: TransformerConfig, job) -> None:
    """Raises ValueError for a transformer that takes other latents or texts than the given encoders make."""
    latents, text = given.vae.latent_channels, given.transformer
    whose = "sizes.transformer." if job.start == "random" else f"in {job.start}, transformer."
    for field, valid in (("in_channels", (latents, 2 * latents)), ("out_channels", (latents,)),
                         ("temporal_compression_ratio", (given.vae.temporal_compression_ratio,)),
                         ("text_embed_dim", (text.text_embed_dim,)),
                         ("max_text_seq_length", (text.max_text_seq_length,))):
        if getattr(transformer, field) not in valid:
            raise ValueError(f"{whose}{field} is {getattr(transformer, field)}; with VAE and text encoder of "
                             f"{job.model} it must be {valid[0]}")


def _check_world(recipe: Recipe, training: TransformerTraining, config: TransformerConfig, ranks: Ranks) -> None:
    """Raises ValueError for fewer clips than ranks, and if a caption could be longer than the transformer takes."""
    if recipe.clips < ranks.world_size:
        raise ValueError(f"clips is {recipe.clips}; it must be at least {ranks.world_size}, the number of ranks")
    for i, stage in enumerate(training.stages):
        if (stage.height or 0) != (stage.width or 0):
            raise ValueError(f"transformer.stages.{i} is {stage.height}x{stage.width}; clips of the shapes world are "
                             f"square")
        least, most = fewest_tokens(training.caption_style), config.max_text_seq_length
        if stage.text_slots and not least <= stage.text_slots <= most:
            raise ValueError(f"transformer.stages.{i}.text_slots is {stage.text_slots}; with caption_style="
                             f"{training.caption_style!r} it must be from {least} to {most}")
    for i, stage in enumerate(recipe.vae.stages if recipe.vae else ()):
        if any(rate % WORLD_FPS for rate in stage.frame_rates):
            raise ValueError(f"vae.stages.{i}.frame_rates is {stage.frame_rates}; of the shapes world they must be "
                             f"multiples of {WORLD_FPS}")
    scenes = recipe.scenes(recipe.clips, 1)
    most, room = most_tokens(scenes, training.caption_style), config.max_text_seq_length
    if most > room:
        raise ValueError(f"max_text_seq_length is {room}; these captions have up to {most} tokens: take a larger one, "
                         f"caption_style='short', or clips of one object")


def _check_given(vae: VAEConfig, transformer: TransformerConfig, training: TransformerTraining, ranks: Ranks,
                 bucketed: bool) -> None:
    """Raises ValueError, with the stage's number, for sizes and batches that do not fit a given model.

    `bucketed`: clips have about the size that a stage asks for, as films do.
    """
    own = video_size(vae, transformer)
    for i, stage in enumerate(training.stages):
        asked = stage.size(own)
        with _named(f"transformer.stages.{i}"):
            _check_team(stage, training, transformer, ranks)
            CacheSettings(*asked, fps=WORLD_FPS, bucketed=bucketed).check(vae)
            check_pack(stage, training, transformer, vae.latent_size(*asked))
            if "learned" in transformer.position and asked != tuple(own):
                raise ValueError(f"it asks for {asked[0]} frames of {asked[1]}x{asked[2]}, and the learned position "
                                 f"table of this model fits only {own[0]} frames of {own[1]}x{own[2]}")
            if training.image_to_video and asked[0] == 1:
                raise ValueError("num_frames is 1; to learn videos from an image, clips must be longer")


@torch.no_grad()
def check_vae(config: VAEConfig, training: VAETraining, ranks: Ranks = Ranks()) -> None:
    """Raises, before any work, what would end `train_vae` late.

    ValueError, with the stage's number, for a size, batch or clip that the VAE or the ranks cannot divide, for frames
    too small for a loss, and for a GAN that would never begin; FileNotFoundError or ImportError where LPIPS is asked
    for and not there.
    """
    with torch.device("meta"):
        vae = CausalVAE(config)
    for i, stage in enumerate(training.stages):
        size = stage_size(stage, config)
        with _named(f"vae.stages.{i}"):
            _check_ranks(stage, training, size, config, ranks)
            _check_sides(stage, training, size)
            cells = min(config.latent_size(*size)[1:])
            if stage.loss.correlation_weight and cells < 2:
                raise ValueError(f"correlation_weight is {stage.loss.correlation_weight}; local correlation needs "
                                 f"latents of 2x2 cells or more, so height and width of at least "
                                 f"{2 * config.spatial_compression_ratio}")
            vae(torch.empty(1, config.in_channels, *size, device="meta"), None, training.chunk_frames)
        if stage.loss.lpips_weight:
            check_lpips(stage.loss.lpips_net)
    last = max((i for i, stage in enumerate(training.stages) if stage.loss.gan_weight), default=-1)
    steps = sum(stage.steps for stage in training.stages[:last + 1])
    if last >= 0 and training.stages[last].loss.gan_start >= steps:
        raise ValueError(f"gan_start is {training.stages[last].loss.gan_start}, and the last stage with a GAN ends "
                         f"after {steps} steps in all; set it lower, or gan_weight to 0")


def _check_ranks(stage: VAEStage, training: VAETraining, size: tuple[int, int, int], config: VAEConfig,
                 ranks: Ranks) -> None:
    ranks, ratio = replace(ranks, context=stage.context_ranks), config.temporal_compression_ratio
    own = len(range(stage.batch_size)[ranks.part(stage.batch_size)])
    if training.accumulate > own:
        raise ValueError(f"accumulate is {training.accumulate}; it must be from 1 to {own}, the clips of each rank")
    if ranks.context > 1:
        if (size[0] - 1) % ratio or config.first_frame != "start":
            raise ValueError(f"num_frames is {size[0]} and first_frame {config.first_frame!r}; ranks that share a clip "
                             f"need {ratio}k + 1 frames and 'start'")
        context_parallel.latent_shares(config.latent_size(*size)[0], ranks.context)


def _check_sides(stage: VAEStage, training: VAETraining, size: tuple[int, int, int]) -> None:
    """Raises ValueError for frames that are too small for LPIPS or for the discriminator, where the loss has them."""
    for network, side in training.least_sides(stage).items():
        for name, value in zip(("height", "width"), size[1:]):
            if value < side:
                raise ValueError(f"{name} is {value}; it must be at least {side}, which is what {network} needs")


@torch.no_grad()
def check_transformer(sizes: Preset, training: TransformerTraining, ranks: Ranks = Ranks()) -> None:
    """Raises ValueError, with the stage's number, for stages that cannot be trained from random weights."""
    with torch.device("meta"), _named("transformer"):
        vae, model = CausalVAE(sizes.vae), ExpertTransformer(sizes.transformer)
        encoder = TextEncoder.from_config(sizes.text, vocabulary(), sizes.transformer.max_text_seq_length)
        text = encoder.encode([""])
    with _named("transformer"):
        Pipeline(vae, model, sizes.schedule, encoder)  # checks that sampling can use the schedule
    for i, stage in enumerate(training.stages):
        with _named(f"transformer.stages.{i}"):
            _check_team(stage, training, sizes.transformer, ranks)
            size = stage.size(sizes.video_size)
            latents = vae.encode(torch.empty(1, sizes.vae.in_channels, *size, device="meta")).mean
            latents = latents[:, :, :1] if stage.images == 1 else latents
            model(latents.to(text.dtype), torch.zeros(1, dtype=torch.long, device="meta"), text)
            check_pack(stage, training, sizes.transformer, tuple(latents.shape[2:]))


def _check_team(stage: Stage, training: TransformerTraining, config: TransformerConfig, ranks: Ranks) -> None:
    """Raises ValueError for a batch that ranks or passes do not divide, for ranks that cannot share a clip, for
    alignment where a patch has more than one latent frame, and for blocks to align or to skip that the model lacks."""
    own = len(range(stage.batch_size)[replace(ranks, context=training.context_ranks).part(stage.batch_size)])
    if not stage.pack and training.accumulate > own:
        raise ValueError(f"accumulate is {training.accumulate}; it must be from 1 to {own}, the clips of each rank")
    if training.context_ranks > 1:
        check_split(config, training.context_ranks)
    if training.alignment_weight and (config.patch_size_t or 1) > 1:
        raise ValueError(f"patch_size_t is {config.patch_size_t} and alignment_weight {training.alignment_weight}; "
                         f"alignment predicts every latent frame, so it must be 0")
    if training.alignment_weight:
        aligned_blocks(training.alignment_blocks, config.num_layers)
    if training.routes:
        skipped_blocks(training, config)


def check_pack(stage: Stage, training: TransformerTraining, config: TransformerConfig,
               latent_size: tuple[int, int, int]) -> None:
    """Raises ValueError for packs that the longest clip does not fit into, and for what does not go with packs."""
    if not stage.pack:
        return
    tokens = config.max_text_seq_length + config.num_patches(latent_size)
    if stage.pack < tokens:
        raise ValueError(f"pack is {stage.pack}; it must be at least {tokens}, the tokens of the longest clip with its "
                         f"caption")
    if training.alignment_weight:
        raise ValueError(f"pack is {stage.pack} and alignment_weight {training.alignment_weight}; alignment needs "
                         f"clips of one size, so one of them must be 0")
    check_packable(config)


@contextmanager
def _named(stage: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, ArithmeticError, TypeError) as error:
        raise ValueError(f"{stage} cannot be trained: {error}") from error
