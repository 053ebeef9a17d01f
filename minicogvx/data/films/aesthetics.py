"""How much people like a picture, from 1 to 10, as predicted by a model in a transformers folder.

The published system dropped clips that scored below 4.5 (Table 6); the model was not published. We chose LAION's
predictors: a small head on CLIP's embedding of a picture. Their weights are not part of this
repository. Folders in the format of the `simple-aesthetics-predictor` package, such as
shunk031/aesthetics-predictor-v1-vit-large-patch14, can be used directly if they hold safetensors.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from minicogvx.compat import choose_device, choose_dtype
from minicogvx.data.films.caption_models import open_model

_KINDS = ("AestheticsPredictorV1", "AestheticsPredictorV2Linear", "AestheticsPredictorV2ReLU")


class ClipWithHead(CLIPVisionModelWithProjection):
    """CLIP's picture tower and the head that `config.architectures` names: one layer (V1), or five (V2)."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        kind, *_ = config.architectures or [""]
        if kind not in _KINDS:
            raise ValueError(f"architectures is {kind!r}; it must be one of {', '.join(_KINDS)}")
        if kind == "AestheticsPredictorV1":
            self.predictor = nn.Linear(config.projection_dim, 1)
        else:
            between = [nn.ReLU()] if kind.endswith("ReLU") else []
            # Dropout does nothing here, but it shifts the numbers in the names of the layers after it.
            self.layers = nn.Sequential(nn.Linear(config.projection_dim, 1024), *between, nn.Dropout(0.2),
                                        nn.Linear(1024, 128), *between, nn.Dropout(0.2),
                                        nn.Linear(128, 64), *between, nn.Dropout(0.1),
                                        nn.Linear(64, 16), *between, nn.Linear(16, 1))
        self.post_init()

    def score(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The score of each picture, which has CLIP's size and normalisation."""
        embedding = F.normalize(self(pixel_values=pixels).image_embeds.float(), dim=-1)
        head = self.predictor if hasattr(self, "predictor") else self.layers
        return head(embedding.to(next(head.parameters()).dtype))[:, 0]


class AestheticScorer:
    """A picture in 0..1 -> its score by the model in `folder`.

    `device`: None is the choice of `compat.choose_device`. `dtype`: float32, so that the selection of clips does not
    depend on the machine. Raises FileNotFoundError for a missing folder, ValueError for one that does not open or lacks
    weights, for a missing device and for a dtype in which it cannot compute.
    """

    def __init__(self, folder: str | Path, device: str | None = None, dtype: torch.dtype = torch.float32):
        device = choose_device(device)
        dtype = choose_dtype(device, dtype)
        self.model, loaded = open_model(ClipWithHead, folder, use_safetensors=True, output_loading_info=True)
        if loaded["missing_keys"]:
            raise ValueError(f"{folder} lacks weights: {', '.join(sorted(loaded['missing_keys'])[:3])}")
        side = self.model.config.image_size
        self.processor = (open_model(CLIPImageProcessor, folder) if (Path(folder) / "preprocessor_config.json").exists()
                          else CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side))
        self.model.to(device, dtype).eval()

    @torch.no_grad()
    def __call__(self, picture: Float[Tensor, "h w 3"]) -> float:
        """The score of a picture in 0..1."""
        image = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
        return self.model.score(pixels.to(self.model.device, self.model.dtype)).item()
