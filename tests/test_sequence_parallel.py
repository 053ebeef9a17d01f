"""Sequence parallelism of the transformer: two and four gloo ranks with a slice of the tokens, against one with all."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from minicogvx.engine.ranks import Ranks, leave, ranks
from minicogvx.engine.sharding import average_gradients, form_team, sum_within_teams
from minicogvx.presets import TransformerConfig
from minicogvx.transformer import attention
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import forward_clips
from minicogvx.transformer.sequence_parallel import check_split, forward_split
from tests.ranks import start_ranks

CONFIG = TransformerConfig(num_attention_heads=4, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=4,
                           text_embed_dim=12, max_text_seq_length=6, time_embed_dim=16, sample_height=4, sample_width=6,
                           sample_frames=9)
CLIP = (3, 4, 6)  # 5 text tokens and 18 of video: neither 2 nor 4 divides 23
PACK = [(3, 4, 6, 5), (1, 4, 4, 5), (3, 4, 6, 2), (1, 4, 4, 5), (2, 6, 4, 6)]  # t h w, text tokens: 71 in all

# name: fields of the config; latents of a batch or of a pack's clips; gradient checkpointing; dtype; relative error
# (1e-15 was measured in float64, but its rotation is in float32: a value that rounds the other way may differ by 1e-7)
CASES = {
    "rope": ({}, CLIP, False, "float64", 1e-6),
    "rope, recomputed": ({}, CLIP, True, "float64", 1e-6),
    "rope, other size": ({}, (2, 6, 8), False, "float64", 1e-6),
    "sincos, shared": ({"position": "sincos", "modulation": "shared"}, CLIP, False, "float64", 1e-6),
    "learned": ({"position": "learned"}, CLIP, False, "float64", 1e-6),
    "rope and learned": ({"position": "rope+learned"}, CLIP, True, "float64", 1e-6),
    "image to video": ({"in_channels": 8, "patch_size_t": 2, "ofs_embed_dim": 16}, (4, 4, 6), False, "float64", 1e-6),
    "ranks without video": ({}, (1, 2, 2), False, "float64", 1e-6),
    "value residual": ({"value_residual": True, "num_layers": 3}, CLIP, True, "float64", 1e-6),
    "float32": ({}, CLIP, False, "float32", 1e-5),
    "bfloat16": ({}, CLIP, False, "bfloat16", 0.05),
    "pack": ({}, PACK, False, "float64", 1e-6),
    "pack, recomputed, shared, sincos": ({"position": "sincos", "modulation": "shared"}, PACK, True, "float64", 1e-6),
    "pack, value residual": ({"value_residual": True, "num_layers": 3}, PACK, False, "float64", 1e-6),
    "pack, image to video": ({"in_channels": 8, "ofs_embed_dim": 16}, PACK, False, "float64", 1e-6),
}
TEAM = 2


def model(config: TransformerConfig = CONFIG, dtype: torch.dtype = torch.float32) -> ExpertTransformer:
    """Every weight random, so that each has a gradient (the usual start has gates of zero)."""
    net, generator = ExpertTransformer(config), torch.Generator().manual_seed(0)
    for tensor in (*net.parameters(), *net.buffers()):
        torch.nn.init.normal_(tensor, std=0.2, generator=generator)
    return net.to(dtype)


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(config: TransformerConfig, size: tuple | list, dtype: torch.dtype) -> tuple:
    """Latents, timesteps, text and ofs: of two clips of one size, or of a pack's clips, as lists."""
    c, d, pack = config.in_channels, config.text_embed_dim, isinstance(size, list)
    latents = ([normal(c, *clip[:3], dtype=dtype, seed=i) for i, clip in enumerate(size)] if pack else
               normal(2, c, *size, dtype=dtype, seed=0))
    text = ([normal(clip[3], d, dtype=dtype, seed=50 + i) for i, clip in enumerate(size)] if pack else
            normal(2, 3 if size == (1, 2, 2) else 5, d, dtype=dtype, seed=50))
    times = torch.tensor([20, 700, 400, 999, 3][:len(latents)])
    return latents, times, text, times / 500 + 1 if config.ofs_embed_dim else None


def compute(net: ExpertTransformer, given: tuple, group: dist.ProcessGroup | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The output as one vector, and the gradients of weights and inputs, summed over the group."""
    latents, times, text, ofs = given
    pack, leaves = isinstance(latents, list), {}
    for name, tensors in (("latents", latents), ("text", text)):
        for i, tensor in enumerate(tensors if pack else [tensors]):
            leaves[f"{name} {i}"] = tensor.requires_grad_()
            tensor.grad = None
    net.zero_grad()
    out = forward_clips(net, latents, times, text, ofs, group=group) if pack else [
        forward_split(net, latents, times, text, ofs, group)]
    flat = torch.cat([one.flatten() for one in out])
    (flat * normal(len(flat), dtype=flat.dtype, seed=99)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in (*net.named_parameters(), *leaves.items())}
    for gradient in gradients.values() if group is not None else ():
        dist.all_reduce(gradient, group=group)
    return flat.detach(), gradients


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of any tensor. One that is zero but for rounding (a bias of all keys has no effect
    without rotation) is measured against the others."""
    assert found.keys() == expected.keys()
    little = 1e-3 * sum(tensor.double().square().sum() for tensor in expected.values()).sqrt()
    return max(((found[name].double() - tensor.double()).norm() / torch.maximum(tensor.double().norm(), little)).item()
               for name, tensor in expected.items())


def compare(case: tuple, group: dist.ProcessGroup) -> dict[str, float]:
    """Relative errors of output and gradients against this process with all tokens, and without a backward pass."""
    fields, size, checkpointing, dtype, _ = case
    config, dtype = replace(CONFIG, **fields), getattr(torch, dtype)
    net, given = model(config, dtype), inputs(config, size, dtype)
    whole, expected = compute(net, given, None)
    net.gradient_checkpointing = checkpointing
    split, found = compute(net, given, group)
    latents, times, text, ofs = given
    with torch.no_grad():
        again = (forward_clips(net, latents, times, text, ofs, group=group) if isinstance(latents, list) else
                 [forward_split(net, latents, times, text, ofs, group)])
    again = torch.cat([one.flatten() for one in again])
    return {"output": apart({"": split}, {"": whole}), "gradients": apart(found, expected),
            "without gradients": apart({"": again}, {"": whole})}


def shapes(group: dist.ProcessGroup) -> dict[str, list[int]]:
    """Of each rank: how many tokens its feed-forward sees; how many heads its attention has, and over how many keys."""
    net, given, seen = model(), inputs(CONFIG, CLIP, torch.float32), {}
    net.transformer_blocks[0].ff.register_forward_hook(lambda module, x, y: seen.update(tokens=y.shape[1]))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.update(heads=q.shape[1], keys=k.shape[2])
        return F.scaled_dot_product_attention(q, k, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "attention", attend)
        forward_split(net, *given, group)
    every = [None] * group.size()
    dist.all_gather_object(every, seen, group=group)
    return {name: [one[name] for one in every] for name in seen}


# ---- teams of ranks, each with clips of its own


def loss(net: ExpertTransformer, clips: slice, group: dist.ProcessGroup | None) -> Tensor:
    """Of some of four clips: the mean over them."""
    latents, target = (normal(4, 4, *CLIP, dtype=torch.float32, seed=seed) for seed in (1, 2))
    text, times = normal(4, 5, 12, dtype=torch.float32, seed=3), torch.tensor([5, 300, 600, 990])
    return (forward_split(net, latents[clips], times[clips], text[clips], None, group) - target[clips]).square().mean()


def gradients(net: ExpertTransformer) -> dict[str, Tensor]:
    return {name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for name, p in net.named_parameters()}


def teams(me: Ranks) -> dict[str, float]:
    """Errors of the gradients of teams of two, replicated and sharded over all ranks, against the joint batch."""
    me, alone, errors = form_team(replace(me, context=TEAM)), model(), {}
    loss(alone, slice(4), None).backward()
    for sharding in ("replicate", "fsdp"):
        for checkpointing in (False, True):
            net = model()
            net.gradient_checkpointing = checkpointing
            for part in (*net.transformer_blocks, net) if sharding == "fsdp" else ():
                fully_shard(part)
            sum_within_teams(net, me)
            loss(net, me.part(4), me.group).backward()
            if sharding == "replicate":
                average_gradients(net.parameters(), me)
            errors[f"{sharding}, {checkpointing}"] = apart(gradients(net), gradients(alone))
    return errors


# ---- what each rank does, and what is asked of the results


def work(folder: Path) -> None:
    """Rank 0 writes the largest errors of all ranks."""
    torch.set_num_threads(1)
    me = ranks("cpu")
    errors = {name: compare(case, dist.group.WORLD) for name, case in CASES.items()}
    errors["teams"] = teams(me)
    every = [None] * me.world_size
    dist.all_gather_object(every, errors)
    seen = shapes(dist.group.WORLD)
    if me.first:
        worst = {name: {key: max(one[name][key] for one in every) for key in errors[name]} for name in errors}
        (folder / "result.json").write_text(json.dumps({"errors": worst, "shapes": seen}))
    leave()


@pytest.fixture(scope="module", params=[2, 4])
def result(request, tmp_path_factory) -> dict:
    """What so many ranks found, and how many there were."""
    folder = tmp_path_factory.mktemp("sequence")
    start_ranks("tests.test_sequence_parallel", folder, request.param)
    return json.loads((folder / "result.json").read_text()) | {"ranks": request.param}


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    leave()


def test_outputs_and_gradients_are_those_of_one_rank(result, subtests):
    for name, case in CASES.items():
        with subtests.test(msg=name):
            assert max(result["errors"][name].values()) <= case[-1], result["errors"][name]


def test_teams_with_clips_of_their_own_leave_the_gradients_of_the_joint_batch(result):
    errors = result["errors"]["teams"]
    assert len(errors) == 4 and max(errors.values()) <= 1e-5, errors


def test_each_rank_holds_its_share_of_the_tokens_and_attends_to_all_with_its_share_of_the_heads(result):
    tokens, count = 23, result["ranks"]
    assert sum(result["shapes"]["tokens"]) == tokens
    assert max(result["shapes"]["tokens"]) - min(result["shapes"]["tokens"]) <= 1
    assert result["shapes"]["heads"] == [4 // count] * count and result["shapes"]["keys"] == [tokens] * count


@pytest.mark.parametrize("name", ["image to video", "pack"])
def test_a_group_of_one_computes_what_the_model_does(group, name):
    assert max(compare(CASES[name], group).values()) <= 1e-6


def test_what_ranks_cannot_share_is_refused():
    for fields, count, named in (({"num_attention_heads": 6}, 4, "num_attention_heads is 6.* multiple of 4"),
                                 ({"attention": "factorised"}, 2, "attention is 'factorised'"),
                                 ({"modulation": "separate"}, 2, "modulation is 'separate'")):
        with pytest.raises(ValueError, match=named):
            check_split(replace(CONFIG, **fields), count)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
