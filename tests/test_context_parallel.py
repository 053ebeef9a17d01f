"""Context parallelism of the VAE: three gloo processes with a part of the clip each, against one with all of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minicogvx.engine.ranks import leave, ranks
from minicogvx.engine.sharding import average_gradients
from minicogvx.presets import VAEConfig
from minicogvx.vae import CausalVAE, context_parallel
from minicogvx.vae.context_parallel import join_time, latent_shares, own_frames, own_latents, pool

TINY = VAEConfig(latent_channels=4, block_out_channels=(4, 4, 8), layers_per_block=1, norm_num_groups=2,
                 sample_height=8, sample_width=8, first_frame="start")

# name: frames, ranks, dtype, fields of the config, options, allowed relative error of outputs and gradients
# (float64 agrees to 1e-6 because the one process sums norm gradients, and keeps posteriors, in float32 even then)
CASES = {
    "two latents each": (21, 3, "float64", {}, {}, 1e-6),
    "one latent each: frames are handed through": (9, 3, "float64", {}, {}, 1e-6),
    "uneven, two ranks": (17, 2, "float64", {}, {}, 1e-6),
    "rank 0 has the first frame alone": (5, 2, "float64", {}, {}, 1e-6),
    "zeros before the first frame": (13, 3, "float64", {"time_padding": "zeros"}, {}, 1e-6),
    "norms over the frame": (13, 2, "float64", {"norm_over": "frame"}, {"gather_norm": False}, 1e-6),
    "residual re-sampling": (13, 3, "float64", {"resampling": "residual"}, {}, 1e-6),
    "float32": (21, 3, "float32", {}, {}, 1e-5),
    "published: gradients dropped": (21, 3, "float64", {}, {"borrowed_gradient": "dropped"}, None),
    "norms over each rank's frames": (21, 3, "float64", {}, {"gather_norm": False}, None),
}


def tiny(dtype: torch.dtype, **changed) -> CausalVAE:
    torch.manual_seed(0)
    return CausalVAE(replace(TINY, **changed)).to(dtype)


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def off(part: torch.Tensor, whole: torch.Tensor) -> float:
    return ((part - whole).norm() / whole.norm()).item()


def gradients(loss: torch.Tensor, vae: CausalVAE, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """All weights' gradients as one vector, summed over `group`; that of the input stays in its `.grad`."""
    vae.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None])
    if group is not None:
        dist.all_reduce(gradient, group=group)
    return gradient


def compare(frames: int, group: dist.ProcessGroup, dtype: torch.dtype, config: dict,
            options: dict) -> dict[str, float]:
    """Relative errors of this rank's outputs and gradients against one process with the whole clip."""
    vae, errors = tiny(dtype, **config), {}
    video = normal(1, 3, frames, 8, 8, dtype=dtype)
    latents = normal(1, 4, (frames + 3) // 4, 2, 2, dtype=dtype)
    for what, x, own_in, own_out, run_whole, run_part in (
            ("encode", video, own_frames, own_latents,
             lambda v: vae.encode(v, chunk_frames=None).mean,
             lambda v: context_parallel.encode(vae, v, group, **options).mean),
            ("decode", latents, own_latents, own_frames,
             lambda v: vae.decode(v, chunk_latents=None),
             lambda v: context_parallel.decode(vae, v, group, **options))):
        x.requires_grad_()
        whole = run_whole(x)
        weight = normal(*whole.shape, dtype=whole.dtype, seed=1)
        expected = gradients((whole * weight).sum(), vae)
        part = own_in(x.detach(), group=group).clone().requires_grad_()
        y = run_part(part)
        found = gradients((y * own_out(weight, group=group)).sum(), vae, group)
        with torch.no_grad():
            whole, y, again = whole.detach(), y.detach(), run_part(part)
        own = own_out(whole, group=group)
        errors |= {what: off(y, own), f"{what} without gradients": off(again, own),
                   f"{what} joined": off(join_time(y, group), whole),
                   f"{what}: weights' gradient": off(found, expected),
                   f"{what}: input's gradient": off(part.grad, own_in(x.grad, group=group))}
    return errors


def never_called(group: dist.ProcessGroup) -> list[str]:
    """Modules with weights on which no hook fires where ranks share a clip."""
    vae, called = tiny(torch.float32), set()
    for module in vae.modules():
        module.register_forward_hook(lambda module, *_: called.add(module))
    frames = own_frames(normal(1, 3, 9, 8, 8, dtype=torch.float32), group=group)
    context_parallel.decode(vae, context_parallel.encode(vae, frames, group).mean, group)
    return [name for name, module in vae.named_modules()
            if list(module.parameters(recurse=False)) and module not in called]


def gathered_gradient(group: dist.ProcessGroup) -> str:
    """The result of a second derivative of gathered statistics; "written into" if the first changed its argument."""
    x = torch.ones(3, 1, 2, requires_grad=True)
    y = context_parallel._Gather.apply(x, group)
    given = torch.ones_like(y)
    y.backward(given)
    gradient, = torch.autograd.grad(context_parallel._Gather.apply(x, group).square().sum(), x, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        return str(error) if torch.equal(given, torch.ones_like(y)) else "written into"
    return "differentiated twice"


def refusals(group: dist.ProcessGroup, rank: int) -> dict[str, str]:
    """The message of each mistake; all are found before any communication."""
    vae, told = tiny(torch.float32), {}

    def tell(name, run):
        try:
            run()
            told[name] = "accepted"
        except ValueError as error:
            told[name] = str(error)

    frames = torch.zeros(1, 3, 3, 8, 8)
    tell("frames", lambda: context_parallel.encode(vae, frames, group))
    tell("parity", lambda: context_parallel.encode(tiny(torch.float32, first_frame="parity"),
                                                   torch.zeros(1, 3, 4 + (rank == 0), 8, 8), group))
    tell("gradient", lambda: context_parallel.decode(vae, torch.zeros(1, 4, 2, 2, 2), group, borrowed_gradient="lost"))
    tell("not 4k+1", lambda: own_frames(torch.zeros(1, 3, 8, 8, 8), group=group))
    tell("too short", lambda: own_frames(torch.zeros(1, 3, 5, 8, 8), group=group))
    return told


def work(out: Path) -> None:
    """What each process does; rank 0 writes the largest errors of all ranks."""
    torch.set_num_threads(1)
    me = ranks("cpu")
    groups = {3: dist.group.WORLD, 2: dist.new_group([0, 1])}
    result = {}
    for name, (frames, count, dtype, config, options, _) in CASES.items():
        errors = compare(frames, groups[count], getattr(torch, dtype), config, options) if me.rank < count else {}
        parts = [None] * me.world_size
        dist.all_gather_object(parts, errors)
        result[name] = {key: max(part[key] for part in parts if part) for key in parts[0]}
    summed = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    summed.grad = torch.full((2,), 1.0 + me.rank, dtype=torch.float64)
    average_gradients([summed], replace(me, context=me.world_size))
    told, missed = refusals(dist.group.WORLD, me.rank), never_called(dist.group.WORLD)
    gathered = gathered_gradient(dist.group.WORLD)
    if me.first:
        out.write_text(json.dumps({"errors": result, "told": told, "sum": summed.grad.tolist(), "missed": missed,
                                   "gathered": gathered}))
    leave()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("context") / "result.json"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
                           __file__, str(out)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[-1]])
def test_outputs_and_gradients_are_those_of_one_rank(result, name):
    errors = result["errors"][name]
    assert len(errors) == 10 and max(errors.values()) <= CASES[name][-1], errors


def test_dropping_the_borrowed_gradient_changes_the_gradients_alone(result):
    errors = result["errors"]["published: gradients dropped"]
    for name, error in errors.items():
        assert error > 1e-3 if ":" in name else error <= 1e-6, (name, error)


def test_norms_that_are_not_gathered_see_each_rank_alone(result):
    errors = result["errors"]["norms over each rank's frames"]
    assert errors["encode"] > 1e-3 and errors["decode"] > 1e-3


def test_hooks_fire_where_ranks_share_a_clip(result):
    assert result["missed"] == []


def test_gathering_leaves_the_gradient_that_it_is_given_alone_and_refuses_second_derivatives(result):
    assert "differentiate twice" in result["gathered"]


def test_gradients_of_parts_are_summed(result):
    assert result["sum"] == [6.0, 6.0]


def test_mistakes_are_reported_before_anything_is_sent(result):
    told = result["told"]
    assert told["frames"] == "rank 0 has 3 frames; it must have 4k + 1"
    assert told["parity"] == "first_frame is 'parity'; context parallelism needs 'start'"
    assert told["gradient"].startswith("borrowed_gradient is 'lost'") and "4k + 1" in told["not 4k+1"]
    assert told["too short"] == "the clip has 2 latent frames; to split it over 3 ranks it must have at least 3"


@pytest.mark.parametrize("latents, count, shares", [
    (6, 3, [2, 2, 2]), (13, 4, [4, 3, 3, 3]), (41, 8, [6, 5, 5, 5, 5, 5, 5, 5]), (3, 3, [1, 1, 1]), (5, 1, [5]),
    (4, 3, [2, 1, 1]), (5, 3, [2, 1, 2]),
])
def test_shares_are_whole_and_even(latents, count, shares):
    assert latent_shares(latents, count) == shares


def test_pooled_statistics_are_those_of_the_whole():
    x = normal(2, 3, 40, dtype=torch.float64) * 3 + 100
    parts = [torch.stack([torch.full((2, 3), float(part.shape[2])).double(), part.mean(2), part.var(2, correction=0)])
             for part in x.split([7, 1, 32], dim=2)]
    mean, variance = pool(torch.stack(parts))
    torch.testing.assert_close(mean, x.mean(2))
    torch.testing.assert_close(variance, x.var(2, correction=0))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
