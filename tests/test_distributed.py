"""Two gloo processes, started by torchrun, train like one process with the joint batch."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from minicogvx.diffusion.timesteps import rank_interval
from minicogvx.engine.optim import MuonAdamW
from minicogvx.engine.ranks import Ranks, leave, ranks
from minicogvx.engine.sharded_checkpoints import (
    load_sharded,
    optimizer_tensors,
    read_slices,
    save_sharded,
    whole_weights,
)
from minicogvx.engine.sharding import average_gradients, mean_over_ranks, wrap
from minicogvx.interop.safetensors_files import read_tensors, write_tensors
from minicogvx.presets import TransformerConfig
from minicogvx.training.memory import Inputs, memory
from minicogvx.training.rank_draws import draw_timesteps, rank_generator
from minicogvx.transformer.model import ExpertTransformer

# The learned table has one row along its first axis: FSDP2 leaves the second rank an empty shard. 11 is cut 6, 5.
CONFIG = TransformerConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=4,
                           text_embed_dim=8, max_text_seq_length=4, time_embed_dim=11, sample_height=4, sample_width=4,
                           sample_frames=9, position="learned")
ALONE = Ranks()
CLIP = 0.05  # far below the gradient's norm: clipping acts


def model(seed: int = 0, device: str = "cpu") -> ExpertTransformer:
    """Every weight random, so that each has a gradient (the usual start has gates of zero)."""
    with torch.device(device):
        net = ExpertTransformer(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters() if device == "cpu" else ():
        torch.nn.init.normal_(p, std=0.1, generator=generator)
    return net


START = {name: p.detach() for name, p in model().named_parameters()}


def loss_of(net: torch.nn.Module, step: int, me: Ranks) -> torch.Tensor:
    """The loss of this rank's half of the four clips of `step`."""
    generator = torch.Generator().manual_seed(step)
    latents, target = (torch.randn(4, 4, 3, 4, 4, generator=generator) for _ in range(2))
    text, time = torch.randn(4, 4, 8, generator=generator), torch.tensor([5, 400, 600, 990])
    own = slice(4 * me.rank // me.world_size, 4 * (me.rank + 1) // me.world_size)
    dtype = next(net.parameters()).dtype
    return (net(latents[own].to(dtype), time[own], text[own].to(dtype)).float() - target[own]).square().mean()


def random_gradients() -> list[torch.Tensor]:
    """Of full rank: the batch's own have almost vanishing directions, which Muon's iteration in bfloat16 amplifies."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(p.shape, generator=generator) for p in START.values()]


def adamw(net: torch.nn.Module) -> torch.optim.AdamW:
    """With an epsilon above the gradients: so the step shows their size, and none is a matter of a near-zero's sign."""
    return torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=1e-4)


def clip(net, most: float) -> torch.Tensor:
    """Clips as `MuonAdamW` does; the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def take_step(net, optimizer, step: int, me: Ranks) -> dict[str, float]:
    optimizer.zero_grad()
    loss = loss_of(net, step, me)
    loss.backward()
    norm = clip(net, CLIP)
    optimizer.step()
    return mean_over_ranks({"loss": loss.item(), "norm": norm.item()}, me)


def state(net, optimizer) -> dict[str, torch.Tensor]:
    return dict(net.named_parameters()) | optimizer_tensors(optimizer, net.named_parameters())


# ---- what each of the two processes does


def keep(folder: Path, name: str, net, me: Ranks) -> None:
    weights = whole_weights(net, me)
    if me.first:
        write_tensors(folder / f"{name}.safetensors", weights)


def replicated(folder: Path, me: Ranks) -> dict:
    net = wrap(model(seed=me.rank), me)  # rank 1 starts elsewhere: the weights of rank 0 count
    told = take_step(net, adamw(net), 1, me)
    keep(folder, "replicate", net, me)
    net = wrap(model(seed=me.rank), me)
    muon = MuonAdamW(net.module.named_parameters(), muon_lr=0.02, adamw_lr=1e-2, muon_on=lambda name, p: p.ndim == 2)
    loss_of(net, 1, me).backward()
    muon.step(1.0)
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(both, weights)
    told["muon alike"] = torch.equal(*both)
    low = wrap(model().bfloat16(), me)
    loss_of(low, 1, me).backward()
    told["low_norm"] = clip(low, 1e9).item()
    return told


def sharded(folder: Path, me: Ranks) -> dict:
    net = wrap(model(seed=me.rank), me, "fsdp")
    net.gradient_checkpointing = True
    optimizer = adamw(net)
    average = [p.detach().clone() for p in net.parameters()]
    told = take_step(net, optimizer, 1, me)
    torch._foreach_lerp_(average, list(net.parameters()), 0.25)
    told["average"] = torch.cat([p.full_tensor().flatten() for p in average]).double().square().sum().item()
    keep(folder, "fsdp", net, me)
    told["local"] = {"parameters": sum(p.to_local().nbytes for p in net.parameters()),
                     "optimizer": sum(t.to_local().nbytes for t in optimizer_tensors(
                         optimizer, net.named_parameters()).values() if isinstance(t, DTensor))}
    save_sharded(folder / "two", state(net, optimizer), me, {"step": 1})
    take_step(net, optimizer, 2, me)
    keep(folder, "fsdp_2", net, me)
    for origin in ("two", "one"):
        net = wrap(model(seed=7), me, "fsdp")
        optimizer = adamw(net)
        told[f"notes of {origin}"] = load_sharded(folder / origin, state(net, optimizer), me)
        take_step(net, optimizer, 2, me)
        keep(folder, f"resumed_from_{origin}", net, me)
    return told


def sharded_otherwise(folder: Path, me: Ranks) -> dict:
    """bfloat16, offloading, a start on the meta device, Muon, and gradients of a module that is not wrapped."""
    told = {}
    low = wrap(model(), me, "fsdp", dtype=torch.bfloat16)
    told["low"] = take_step(low, adamw(low), 1, me)
    told["low gradient"] = str(next(low.parameters()).grad.dtype)
    away = wrap(model(), me, "fsdp", offload=True)
    told["offload"] = take_step(away, adamw(away), 1, me)
    net = wrap(model(device="meta"), me, "fsdp")
    read_slices(folder / "plain", dict(net.named_parameters()), me)
    told["meta"] = take_step(net, adamw(net), 1, me)
    net = wrap(model(), me, "fsdp")
    muon = MuonAdamW(net.named_parameters(), muon_lr=0.02, adamw_lr=1e-2, muon_on=lambda name, p: p.ndim == 2)
    for p, grad in zip(net.parameters(), random_gradients()):
        p.grad = distribute_tensor(grad, p.device_mesh, p.placements)
    muon.step(1.0)
    keep(folder, "muon_fsdp", net, me)
    head = torch.nn.Linear(3, 1, bias=False)
    (10 * me.rank * head.weight.sum()).backward()
    average_gradients(head.parameters(), me)
    told["head"] = head.weight.grad.flatten().tolist()
    return told


def mishaps(folder: Path, me: Ranks) -> dict:
    """Errors on one rank are raised on both, and existing files are kept."""
    told = {}

    def tell(name, run):
        try:
            run()
            told[name] = "nothing"
        except (ValueError, OSError) as error:
            told[name] = f"{type(error).__name__}: {error}"

    tensors = {"a": torch.ones(5000), "b": torch.ones(5000)}
    save_sharded(folder / "small", tensors, me, {"step": 3})
    bad = tensors | ({"b": torch.full((5000,), float("nan"))} if me.rank else {})
    tell("nan", lambda: save_sharded(folder / "small", bad, me))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if me.rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    tell("full disk", lambda: save_sharded(folder / "small", tensors, me))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tell("no folder", lambda: save_sharded(folder / "plain" / "model.safetensors" / "x", tensors, me))
    tell("whole", lambda: load_sharded(folder / "small", tensors, me))
    tell("damaged", lambda: load_sharded(folder / "damaged", {"a": torch.ones(4)}, me))
    parts = [None] * me.world_size
    dist.all_gather_object(parts, told)
    return {name: [part[name] for part in parts] for name in told}


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    me = ranks("cpu")
    told = {"ranks": [me.rank, me.world_size], "replicate": replicated(folder, me), "fsdp": sharded(folder, me),
            "otherwise": sharded_otherwise(folder, me), "mishaps": mishaps(folder, me)}
    if me.first:
        (folder / "told.json").write_text(json.dumps(told))
    leave()


# ---- what one process alone does, and the comparison


@pytest.fixture(scope="module")
def alone():
    """One process: the state after the first step, and the weights after the second."""
    net = model()
    optimizer = adamw(net)
    told = take_step(net, optimizer, 1, ALONE)
    first = {name: tensor.detach().clone() for name, tensor in state(net, optimizer).items()}
    take_step(net, optimizer, 2, ALONE)
    return told, first, {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


@pytest.fixture(scope="module")
def together(tmp_path_factory, alone):
    folder = tmp_path_factory.mktemp("two_ranks")
    save_sharded(folder / "one", alone[1], ALONE, {"step": 1})
    (folder / "plain").mkdir()
    write_tensors(folder / "plain" / "model.safetensors", model().state_dict())
    save_sharded(folder / "damaged", {"a": torch.ones(4)}, ALONE)
    file = next((folder / "damaged").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")  # one byte of the last number
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           __file__, str(folder)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "told.json").read_text())


def same(folder: Path, name: str, expected: dict[str, torch.Tensor], start: dict[str, torch.Tensor],
         allowed: float = 1e-4) -> None:
    """Every tensor moved from `start` as in `expected`, up to a relative error of the move."""
    found = read_tensors(folder / f"{name}.safetensors")
    for key, first in start.items():
        move = expected[key] - first
        assert move.norm() > 0 and (found[key] - expected[key]).norm() <= allowed * move.norm(), key


@pytest.mark.parametrize("how", ["replicate", "fsdp"])
def test_two_ranks_take_the_step_of_one(together, alone, how):
    folder, told = together
    same(folder, how, alone[1], START)
    assert told[how]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
    assert told[how]["norm"] == pytest.approx(alone[0]["norm"], rel=1e-5) and alone[0]["norm"] > 2 * CLIP


def test_muon_takes_the_same_step_on_whole_and_on_cut_matrices(together):
    assert together[1]["replicate"]["muon alike"] is True
    net = model()
    muon = MuonAdamW(net.named_parameters(), muon_lr=0.02, adamw_lr=1e-2, muon_on=lambda name, p: p.ndim == 2)
    for p, grad in zip(net.parameters(), random_gradients()):
        p.grad = grad
    muon.step(1.0)
    # Muon iterates in bfloat16, where another order of additions shows: 0.033 was seen
    same(together[0], "muon_fsdp", {key: p.detach() for key, p in net.named_parameters()}, START, allowed=0.1)


def test_a_run_resumes_from_the_checkpoint_of_as_many_ranks_bit_for_bit(together):
    folder, told = together
    assert told["fsdp"]["notes of two"] == told["fsdp"]["notes of one"] == {"step": 1}
    through, resumed = (read_tensors(folder / f"{name}.safetensors") for name in ("fsdp_2", "resumed_from_two"))
    assert through.keys() == resumed.keys() and all(torch.equal(through[key], resumed[key]) for key in through)


def test_a_run_resumes_from_one_rank_to_two_and_from_two_to_one(together, alone):
    folder, _ = together
    same(folder, "resumed_from_one", alone[2], {name: alone[1][name] for name in START})
    net = model(seed=7)
    optimizer = adamw(net)
    assert load_sharded(folder / "two", state(net, optimizer), ALONE) == {"step": 1}
    take_step(net, optimizer, 2, ALONE)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), alone[2][name], rtol=0, atol=1e-7)


def test_the_shards_have_the_size_that_the_memory_table_says(together):
    local = together[1]["fsdp"]["local"]
    worked_out = memory(CONFIG, Inputs(1, 3, 4, 4, 4), 2, "fsdp")
    assert (local["parameters"], local["optimizer"]) == (worked_out.parameters, worked_out.optimizer)


def test_bfloat16_offloading_and_a_start_on_the_meta_device(together, alone):
    told = together[1]["otherwise"]
    for name in ("offload", "meta"):
        assert told[name] == pytest.approx(alone[0], rel=1e-5)
    assert told["low"] == pytest.approx(alone[0], rel=0.02) and told["low"] != pytest.approx(alone[0], rel=1e-6)
    assert told["low gradient"] == "torch.float32"
    assert together[1]["replicate"]["low_norm"] == pytest.approx(alone[0]["norm"], rel=0.02)


def test_the_moving_average_of_shards(together, alone):
    average = torch.cat([START[name].lerp(alone[1][name], 0.25).flatten() for name in START])
    assert together[1]["fsdp"]["average"] == pytest.approx(average.double().square().sum().item(), rel=1e-5)


def test_gradients_of_a_small_module_are_averaged(together):
    assert together[1]["otherwise"]["head"] == [5.0] * 3  # (0 + 10) / 2


def test_mishaps_are_reported_on_every_rank(together):
    folder, told = together[0], together[1]["mishaps"]
    for name, kind, words in (("nan", "ValueError", "b holds NaN or infinity"),
                              ("full disk", "OSError", "could not be written"),
                              ("no folder", "OSError", "Not a directory"), ("whole", "nothing", ""),
                              ("damaged", "Damaged", "is damaged")):
        assert all(text.startswith(kind) and words in text for text in told[name]), (name, told[name])
    assert not list(folder.glob(".*"))  # no incomplete file remains


# ---- one process is enough


def test_each_rank_draws_from_its_interval():
    for how in ("rank", "stratified"):
        for rank in range(4):
            low, high = rank_interval(1000, rank, 4)
            t = draw_timesteps(500, 1000, Ranks(rank, 4), rank_generator(3, Ranks(rank, 4)), how)
            assert t.min() < low + 10 and t.max() >= high - 10 and low <= t.min() and t.max() < high
    t = draw_timesteps(5, 1000, Ranks(1, 2), rank_generator(3, Ranks(1, 2)), "stratified")
    assert sorted(((t - 500) // 100).tolist()) == [0, 1, 2, 3, 4]
    assert draw_timesteps(500, 1000, Ranks(1, 2), rank_generator(3, ALONE), "uniform").min() < 100
    with pytest.raises(ValueError, match="how is 'even'"):
        draw_timesteps(1, 1000, ALONE, how="even")


def test_ranks_have_random_numbers_of_their_own():
    draws = {tuple(torch.rand(3, generator=rank_generator(step, Ranks(rank, 2))).tolist())
             for step in (0, 1) for rank in (0, 1)}
    assert len(draws) == 4
    assert torch.equal(torch.rand(3, generator=rank_generator(9, ALONE)),
                       torch.rand(3, generator=torch.Generator().manual_seed(9)))


def test_alone_nothing_is_wrapped_or_sent(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    me, net = ranks("cpu"), model()
    assert me == ALONE and me.first and wrap(net, me) is net and not dist.is_initialized()
    assert mean_over_ranks({"loss": 2.0}, me) == {"loss": 2.0}
    net.proj_out.bias.grad = torch.ones_like(net.proj_out.bias)
    average_gradients(net.parameters(), me)
    assert torch.equal(net.proj_out.bias.grad, torch.ones_like(net.proj_out.bias))
    leave()


def test_where_a_process_computes(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("MINICOGVX_DEVICE", "mps")
    assert ranks().device == torch.device("mps") and ranks("cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="sharding is 'fsdp'; it goes with the device 'cpu' or 'cuda', not 'mps'"):
        wrap(model(), ranks(), "fsdp")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="device is 'mps'; under torchrun it must be 'cpu' or 'cuda'"):
        ranks()
    with pytest.raises(ValueError, match="device is 'tpu', which is not a device that PyTorch knows"):
        ranks("tpu")
    assert not dist.is_initialized()


def test_options_that_do_not_go_together(monkeypatch):
    for options, message in (({"sharding": "zero"}, "sharding is 'zero'"), ({"offload": True}, "belong to"),
                             ({"dtype": torch.bfloat16}, "leave them out with 'replicate'")):
        with pytest.raises(ValueError, match=message):
            wrap(model(), ALONE, **options)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE is 'two'; torchrun sets it"):
        ranks("cpu")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
