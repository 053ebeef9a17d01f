"""The transformer at the start of a training: random weights, or a model's own, with new channels or adapters."""

import copy

import torch

from minicogvx.pipeline import Pipeline
from minicogvx.presets import TransformerConfig
from minicogvx.training.image_condition import widen_for_image
from minicogvx.training.lora import add_lora, check_lora, continue_lora
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.transformer import open_gates
from minicogvx.transformer.model import ExpertTransformer


def check_start(config: TransformerConfig, training: TransformerTraining) -> None:
    """Raises ValueError for a model that cannot be trained with these options.

    Such as an image-to-video model without images, LoRA on a model whose image channels are new (they would stay zero),
    and `lora_from` with the adapters of another model.
    """
    if config.image_to_video and not training.image_to_video:
        raise ValueError("this model makes videos from an image; train it with image_to_video=True")
    if training.lora_rank and training.image_to_video and not config.image_to_video:
        raise ValueError(f"lora_rank is {training.lora_rank}, and this model takes no image yet; train all its "
                         f"weights with image_to_video=True first")
    if training.lora_rank:
        check_lora(config, training.lora_rank, training.alpha)
    if training.lora_from is not None:
        with torch.device("meta"):
            continue_lora(ExpertTransformer(config), training.lora_from, training.lora_rank, training.lora_alpha)


def random_transformer(config: TransformerConfig, training: TransformerTraining) -> ExpertTransformer:
    """A transformer with random weights; for image to video with image channels."""
    model = ExpertTransformer(config)
    if training.open_gates:
        open_gates(model)
    if training.image_to_video and not config.image_to_video:
        model = widen_for_image(model)
    return model


def prepared_transformer(model: ExpertTransformer, training: TransformerTraining) -> ExpertTransformer:
    """A model's own transformer: with image channels or adapters, if the options say so.

    Raises what `check_start` and `continue_lora` raise.
    """
    check_start(model.config, training)
    if training.image_to_video and not model.config.image_to_video:
        model = widen_for_image(model)
    model.requires_grad_(True)
    if training.lora_from is not None:
        continue_lora(model, training.lora_from, training.lora_rank, training.lora_alpha)
    elif training.lora_rank:
        add_lora(model, training.lora_rank, training.alpha)
    return model


def with_transformer(pipe: Pipeline, model: ExpertTransformer) -> Pipeline:
    """The same pipeline with another transformer."""
    other = copy.copy(pipe)
    other.transformer = model
    return other
