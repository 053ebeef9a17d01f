"""A world in which everything has moved, or nothing: when does full attention pay (paper 2.2, figure 8b)?

A clip has two frames of 4 x 4 tokens. In the first frame every token carries a vector and a label. The second frame
holds the same vectors without labels, and so many of them at another place. The network must give each token of the
second frame the label of its twin. Full attention can ask the whole first frame in one step. Factorised attention sees
only the own frame and the own place: where nothing has moved that is just what is needed, where everything has moved
the answer is elsewhere. There is no text, which could carry messages between frames, and no noise.
"""

import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minicogvx.ablation.compare import OnStep, check_run
from minicogvx.ablation.transformers import Curve
from minicogvx.compat import products_in
from minicogvx.presets import TransformerConfig
from minicogvx.training.transformer import open_gates
from minicogvx.transformer.model import ExpertTransformer

SIDE = 4  # tokens along height and width
CHANNELS = 8  # of a vector, and of a label
LEARNING_RATE, WARMUP = 3e-3, 20  # of AdamW; steps
_MEASURED, _MEASURED_SEED = 256, 7_000_003  # clips, the same for every variant and seed


def twin_clips(count: int, moved: int, generator: torch.Generator) -> tuple[
        Float[Tensor, "b c 2 h w"], Float[Tensor, "b c_label h w"]]:
    """Random clips, and the labels that belong into their second frames; both have variance 1.

    The tokens that move are drawn for each clip, and pass their places on in a random cycle.
    """
    places = SIDE**2
    vectors = CHANNELS**0.5 * F.normalize(torch.randn(count, places, CHANNELS, generator=generator), dim=-1)
    labels = torch.randn(count, places, CHANNELS, generator=generator)
    chosen = torch.rand(count, places, generator=generator).argsort(dim=1)[:, :moved]     # b moved
    was = torch.arange(places).repeat(count, 1)                                           # b n: where each twin stood
    was = was.scatter(1, chosen, chosen.roll(1, dims=1)) if moved else was

    def moved_on(x: Tensor) -> Tensor:
        return x.gather(1, was[..., None].expand_as(x))

    first = torch.cat([vectors, labels], dim=-1)                                          # b n c
    second = torch.cat([moved_on(vectors), torch.zeros_like(labels)], dim=-1)             # b n c
    clips = rearrange(torch.stack([first, second]), "t b (h w) c -> b c t h w", h=SIDE)
    return clips, rearrange(moved_on(labels), "b (h w) c -> b c h w", h=SIDE)


def twin_loss(model: ExpertTransformer, clips: Float[Tensor, "b c 2 h w"],
              labels: Float[Tensor, "b c_label h w"]) -> Float[Tensor, ""]:
    """Mean squared error of the labels in the second frame: 1 for a model that knows nothing, 0 for one that is right.
    """
    none = clips.new_zeros(len(clips), 0, model.config.text_embed_dim)
    answers = model(clips, clips.new_zeros(len(clips)), none)                             # b c_label 2 h w
    return (answers[:, :, 1].float() - labels).square().mean()


def compare_twins(variants: Mapping[str, TransformerConfig], worlds: Sequence[int], steps: int, seed: int = 0,
                  batch_size: int = 32, every: int = 10, dtype: torch.dtype | None = None,
                  device: torch.device | str = "cpu", on_step: OnStep | None = None) -> dict[str, Curve]:
    """Trains each variant from scratch in each world; measures its loss on other clips than those it trains on.

    worlds: how many of the 16 tokens have moved in each; the curves are called "full, 16 moved". All see the same
    vectors and labels. `dtype`: of all passes; None is float32. As in `compare_transformers`, a seed fixes the curve,
    gates start open, and the global random state and the gradient mode are restored.

    Raises ValueError for no variants, a count below 1, or a number of tokens that cannot have moved.
    """
    check_run(variants, steps, batch_size, every)
    for moved in worlds:
        if not 0 <= moved <= SIDE**2 or moved == 1:
            raise ValueError(f"worlds has {moved}; of {SIDE**2} tokens none can have moved, or 2 to {SIDE**2}: one "
                             f"alone cannot change places")
    curves, device, dtype = {}, torch.device(device), dtype or torch.float32
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for kind, config in variants.items():
            for moved in worlds:
                torch.manual_seed(seed)
                model = ExpertTransformer(config)
                open_gates(model)
                name = f"{kind}, {moved} moved"
                curves[name] = _train(Curve(name, seed, sum(p.numel() for p in model.parameters()), [], [], 0.0),
                                      model.to(device), moved, (steps, batch_size, every), dtype, on_step)
    return curves


def _train(curve: Curve, model: ExpertTransformer, moved: int, counts: tuple[int, int, int], dtype: torch.dtype,
           on_step: OnStep | None) -> Curve:
    start, (steps, batch_size, every) = time.perf_counter(), counts
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    drawn = torch.Generator().manual_seed(curve.seed)
    measured = twin_clips(_MEASURED, moved, torch.Generator().manual_seed(_MEASURED_SEED))
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                curve.steps.append(step)
                curve.loss.append(_loss(model, measured, dtype).item())
        if step < steps:
            _loss(model, twin_clips(batch_size, moved, drawn), dtype).backward()
            optimizer.step()
            optimizer.zero_grad()
            warm.step()
            if on_step:
                on_step(curve.name, step + 1)
    curve.model, curve.seconds = model.eval(), time.perf_counter() - start
    return curve


def _loss(model: ExpertTransformer, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    device = next(model.parameters()).device
    with products_in(dtype, device):
        return twin_loss(model, *(x.to(device) for x in batch))
