"""How much moves in a clip, and how much stays the same: VBench's dynamic degree and its consistency.

VBench (arXiv 2311.17982; github.com/Vchitect/VBench, vbench/dynamic_degree.py and vbench/subject_consistency.py) is
where the scores of the paper's Table 3 come from. Its rules are here, but not its networks: optical flow is that of
`data/films/flow.py` instead of RAFT's, and features are whatever the caller has, instead of DINO's and CLIP's. So
scores can be compared with each other, not with published ones.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minicogvx.data.films.flow import optical_flow

_FASTEST = 0.05  # share of the pixels whose flow counts
_FPS = 8  # of the frames that are looked at
_SIDE, _WINDOW, _ITERATIONS = 32, 9, 3  # pixels of the copies in which flow is measured, and of the flow's windows
_GREY = (0.299, 0.587, 0.114)  # Rec. 601


def flow_peaks(video: Float[Tensor, "t h w 3"]) -> Float[Tensor, " t-1"]:
    """For each pair of neighbouring frames (0..1), how far the fastest 5 % of the pixels move on average, in pixels.

    Measured on copies of 32 pixels a side, as flow is expensive. Around a moving shape this flow runs ahead: of 14
    drawn clips it gave 1.3 times the true speed (median; 0.9 to 1.8, and 0.3 where shape and ground were equally
    bright).
    """
    grey = video.float() @ torch.tensor(_GREY, device=video.device)  # t h w
    shrink = max(1.0, min(grey.shape[1:]) / _SIDE)
    small = F.interpolate(grey[:, None], size=[round(side / shrink) for side in grey.shape[1:]], mode="area")[:, 0]
    flow = optical_flow(small[:-1], small[1:], window=_WINDOW, iterations=_ITERATIONS)
    lengths = shrink * flow.norm(dim=1).flatten(1)
    return lengths.topk(int(lengths.shape[1] * _FASTEST), dim=1).values.mean(dim=1)


def is_dynamic(video: Float[Tensor, "t h w 3"], fps: int | float = _FPS) -> bool:
    """Whether VBench's rule calls a clip (0..1) dynamic.

    It looks at about 8 frames a second. In at least a quarter of as many pairs as there are frames, the fastest 5 % of
    the pixels must move by more than 6 pixels for every 256 of the frame's shorter side; by more in proportion where
    the clip has less than 8 frames a second. Raises ValueError for fewer than 3 frames, of which the rule asks nothing.
    """
    video = video[::max(1, round(fps / _FPS))]
    if len(video) < 3:
        raise ValueError(f"there are {len(video)} frames at about {_FPS} a second; dynamic degree takes at least 3")
    least = max(1.0, _FPS / fps) * 6 * min(video.shape[1:3]) / 256
    return int((flow_peaks(video) > least).sum()) >= round(4 * len(video) / 16)


def dynamic_degree(videos: Sequence[Float[Tensor, "t h w 3"]], fps: int | float = _FPS) -> float:
    """The share of clips, 0..1, that the rule calls dynamic. Raises ValueError for none."""
    if not len(videos):
        raise ValueError("videos is empty; it must have one clip at least")
    return sum(is_dynamic(video, fps) for video in videos) / len(videos)


def consistency(features: Float[Tensor, "t d"]) -> float:
    """How alike the frames of one clip are, from a feature of each: 1 where all point the same way.

    For every frame but the first, the mean of two cosine similarities, with the frame before and with the first one,
    each at least 0. VBench's subject consistency does so with DINO's features, its background consistency with CLIP's.
    Raises ValueError for a single frame.
    """
    if len(features) < 2:
        raise ValueError(f"there are features of {len(features)} frames; consistency takes at least 2")
    features = features.float()
    before = F.cosine_similarity(features[1:], features[:-1], dim=1).clamp(min=0)
    first = F.cosine_similarity(features[1:], features[:1], dim=1).clamp(min=0)
    return ((before + first) / 2).mean().item()
