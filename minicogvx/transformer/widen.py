"""A text-to-video transformer gets the image channels of the image-to-video models (paper, appendix D)."""

from dataclasses import replace

import torch

from minicogvx.transformer.model import ExpertTransformer


@torch.no_grad()
def widen_for_image(model: ExpertTransformer) -> ExpertTransformer:
    """A copy of a text-to-video model whose patches have twice the channels; the new weights are zero.

    So at first it computes what the old model did, whatever the image.
    Raises ValueError for a model that has image channels already.
    """
    config = model.config
    if config.image_to_video:
        raise ValueError(f"in_channels is {config.in_channels} for {config.out_channels} out_channels: this model "
                         f"takes an image already")
    wide = ExpertTransformer(replace(config, in_channels=2 * config.in_channels))
    wide.to(model.proj_out.weight.device, model.proj_out.weight.dtype)
    tensors, name = model.state_dict(), "patch_embed.proj.weight"
    # The channel is the slowest index of a patch, in the Linear of the 1.5 models as well.
    tensors[name] = torch.cat([tensors[name], torch.zeros_like(tensors[name])], dim=1)
    wide.load_state_dict(tensors)
    return wide
