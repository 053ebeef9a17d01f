"""Two and four gloo processes, started by torchrun, train like one process with the joint batch, and resume alike."""

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from minicogvx.engine import sharding
from minicogvx.engine.checkpoints import Checkpoints
from minicogvx.engine.optim import MuonAdamW
from minicogvx.engine.ranks import Ranks, leave, ranks
from minicogvx.engine.sharding import average_gradients, mean_over_ranks, whole_weights, without_sync, wrap
from minicogvx.engine.weights import update_average
from minicogvx.interop.safetensors_files import read_tensors, write_tensors
from minicogvx.presets import TransformerConfig
from minicogvx.training.memory import Inputs, memory
from minicogvx.transformer.model import ExpertTransformer
from tests.ranks import exact_muon, start_ranks

# The learned table has one row along its first axis: FSDP2 leaves all ranks but the first an empty shard. 11 is cut
# 6, 5 and 3, 3, 3, 2.
CONFIG = TransformerConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=4,
                           text_embed_dim=8, max_text_seq_length=4, time_embed_dim=11, sample_height=4, sample_width=4,
                           sample_frames=9, position="learned")
ALONE = Ranks()
CLIP = 0.05  # far below the gradient's norm: clipping acts


def model(seed: int = 0) -> ExpertTransformer:
    """Every weight random, so that each has a gradient (the usual start has gates of zero)."""
    net, generator = ExpertTransformer(CONFIG), torch.Generator().manual_seed(seed)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=generator)
    return net


START = {name: p.detach() for name, p in model().named_parameters()}


def adamw(net: torch.nn.Module) -> MuonAdamW:
    """With an epsilon above the gradients: so the step shows their size, and none is a matter of a near-zero's sign."""
    optimizer = MuonAdamW(net.named_parameters(), adamw_lr=1e-2, muon_on=lambda name, p: False, weight_decay=1e-4,
                          clip=CLIP)
    for group in optimizer.halves[0][0].param_groups:
        group["eps"] = 1e-3
    return optimizer


def muon(net: torch.nn.Module) -> MuonAdamW:
    return MuonAdamW(net.named_parameters(), muon_lr=0.02, adamw_lr=1e-2, muon_on=lambda name, p: p.ndim == 2)


def random_gradients() -> list[torch.Tensor]:
    """Of full rank: the batch's own have almost vanishing directions, which Muon's iteration amplifies."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(p.shape, generator=generator) for p in START.values()]


def loss_of(net: torch.nn.Module, step: int, me: Ranks) -> torch.Tensor:
    """The loss of this rank's share of the four clips of `step`."""
    generator = torch.Generator().manual_seed(step)
    latents, target = (torch.randn(4, 4, 3, 4, 4, generator=generator) for _ in range(2))
    text, time = torch.randn(4, 4, 8, generator=generator), torch.tensor([5, 400, 600, 990])
    own = me.part(4)
    return (net(latents[own], time[own], text[own]).float() - target[own]).square().mean()


def take_step(net: torch.nn.Module, optimizer: MuonAdamW, step: int, me: Ranks) -> dict[str, float]:
    loss = loss_of(net, step, me)
    loss.backward()
    average_gradients([p for p in net.parameters() if not isinstance(p, DTensor)], me)
    norm = optimizer.step(1.0)
    return mean_over_ranks({"loss": loss.item(), "norm": norm.item()}, me)


def state(net: torch.nn.Module, optimizer: MuonAdamW) -> dict[str, torch.Tensor]:
    return dict(net.named_parameters()) | {f"optimizer/{name}": t for name, t in optimizer.state().items()}


def sharded(me: Ranks, seed: int = 0, how: str = "fsdp", **options) -> torch.nn.Module:
    net = model(seed)
    return wrap(net, me, how, blocks=net.transformer_blocks, **options)


def write(folder: Path, name: str, net: torch.nn.Module, me: Ranks) -> None:
    weights = whole_weights(net, me)
    if me.first:
        write_tensors(folder / f"{name}.safetensors", weights)


# ---- what each of two processes does


def replicated(folder: Path, me: Ranks) -> dict:
    """A step in small messages; resuming where each rank has a disk of its own, the second with a newer checkpoint."""
    whole_message, sharding.MESSAGE = sharding.MESSAGE, 100
    net = wrap(model(seed=me.rank), me)  # rank 1 starts elsewhere: the weights of rank 0 count
    optimizer = adamw(net)
    told = take_step(net, optimizer, 1, me)
    sharding.MESSAGE = whole_message
    write(folder, "replicate", net, me)
    disk, own_disk = Checkpoints(folder / f"disk{me.rank}", "run", me), Checkpoints(folder / "disk1", "run")
    disk.save(1, state(net, optimizer), {"clips": 4})
    disk.settle()
    if me.rank == 1:
        own_disk.save(9, state(net, optimizer))
        own_disk.settle()
    net = wrap(model(seed=5 + me.rank), ALONE)
    optimizer = adamw(net)
    told["resumed"] = everybody(disk.load(state(net, optimizer)), me)
    take_step(net, optimizer, 2, me)
    told["alike"] = alike(net, me)
    write(folder, "replicate_2", net, me)
    other = torch.nn.Linear(3, 2)
    told["refused"] = everybody(what_is_raised(lambda: disk.load(dict(other.named_parameters()))), me)
    (10 * me.rank * other.weight.sum()).backward()
    other.bias.grad = None  # counts as zero
    average_gradients(other.parameters(), me)
    told["head"] = other.weight.grad.flatten().tolist(), other.bias.grad.tolist()
    return told


def shards(folder: Path, me: Ranks) -> dict:
    """FSDP2: a step, its checkpoint while training continues, and resuming from it and from one process's."""
    net = sharded(me, seed=me.rank)
    net.gradient_checkpointing = True
    optimizer = adamw(net)
    kept = {name: p.detach().clone() for name, p in net.named_parameters()}
    told = take_step(net, optimizer, 1, me)
    update_average(kept, dict(net.named_parameters()), 0.75, step=10**6)
    told["average"] = torch.cat([p.full_tensor().flatten() for p in kept.values()]).double().square().sum().item()
    write(folder, "fsdp", net, me)
    told["local"] = {"parameters": sum(p.to_local().nbytes for p in net.parameters()), "optimizer": sum(
        t.to_local().nbytes for t in optimizer.state().values() if isinstance(t, DTensor))}
    files = Checkpoints(folder / "two", "run", me)
    files.save(1, state(net, optimizer), {"clips": 4})
    take_step(net, optimizer, 2, me)
    write(folder, "fsdp_2", net, me)
    files.settle()
    for origin in ("two", "one"):
        net = sharded(me, seed=7)
        optimizer = adamw(net)
        told[origin] = everybody(Checkpoints(folder / origin, "run", me).load(state(net, optimizer)), me)
        take_step(net, optimizer, 2, me)
        write(folder, f"resumed_from_{origin}", net, me)
    return told


def shards_otherwise(me: Ranks, folder: Path) -> dict:
    """bfloat16, offloading, Muon, and gradients that are sent once for two passes."""
    told = {}
    low = sharded(me, dtype=torch.bfloat16)
    loss_of(low, 1, me).backward()
    told["low gradient"] = str(next(low.parameters()).grad.dtype)
    low.zero_grad()
    told["low"] = take_step(low, adamw(low), 1, me)
    away = sharded(me, offload=True)
    told["offload"] = take_step(away, adamw(away), 1, me)
    gradients = []
    for waits in (False, True):
        net = sharded(me)
        for step in (1, 2):
            with without_sync(net, waits and step == 1):
                loss_of(net, step, me).backward()
        gradients.append(torch.cat([p.grad.full_tensor().flatten() for p in net.parameters()]))
    told["without sync"] = ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
    net = sharded(me)
    for p, grad in zip(net.parameters(), random_gradients()):
        p.grad = distribute_tensor(grad, p.device_mesh, p.placements)
    with exact_muon():
        muon(net).step(1.0)
    write(folder, "muon", net, me)
    return told


def mishaps(folder: Path, me: Ranks) -> dict:
    """An error on one rank is raised on both, and what was there before is intact."""
    files = Checkpoints(folder / "mishaps", "run", me)
    placed = wrap(torch.nn.Linear(100, 64), me, "fsdp")
    tensors = {name: p.detach() for name, p in placed.named_parameters()}

    def save(step):
        files.save(step, tensors)
        files.settle()

    save(3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if me.rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    told = {"full disk": what_is_raised(lambda: save(4))}
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    save(5)
    shard = folder / "mishaps" / "run_00000005" / "shard-00002-model-00001-of-00001.safetensors"
    if me.rank:
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")  # the last byte of a number's exponent
    dist.barrier()
    told["damaged"] = files.load(tensors)
    told["refused"] = what_is_raised(lambda: files.load({**tensors, "extra": tensors["bias"]}))
    apart = Checkpoints(folder / f"apart{me.rank}" / "mishaps", "run", me)
    apart.save(1, tensors)
    told["apart"] = what_is_raised(apart.settle)
    if me.rank:
        tensors["bias"].to_local().fill_(float("nan"))
    told["nan"] = what_is_raised(lambda: save(6))
    return {name: everybody(value, me) for name, value in told.items()}


def what_is_raised(run) -> str:
    try:
        run()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def everybody(value, me: Ranks) -> list:
    values = [None] * me.world_size
    dist.all_gather_object(values, value)
    return values


def alike(net: torch.nn.Module, me: Ranks) -> bool:
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    first = weights.clone()
    dist.broadcast(first, src=0)
    return all(everybody(torch.equal(first, weights), me))


# ---- what each of four processes does


def on_nodes(folder: Path, me: Ranks) -> dict:
    """Two nodes of two ranks: as if the machine were two."""
    told = {}
    for how, options in (("fsdp", {}), ("hsdp", {"ranks_a_node": 2})):
        net = sharded(me, me.rank, how, **options)
        optimizer = adamw(net)
        told[how] = take_step(net, optimizer, 1, me)
        told[how]["held"] = sum(p.to_local().numel() for p in net.parameters())
        write(folder, f"{how}_4", net, me)
        files = Checkpoints(folder / how, "run", me)
        files.save(1, state(net, optimizer))
        files.settle()
    told["refused"] = what_is_raised(lambda: sharded(me, how="hsdp", ranks_a_node=3))
    low = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    each = [torch.randn(1000, generator=torch.Generator().manual_seed(rank)).bfloat16() for rank in range(4)]
    low.grad = each[me.rank].clone()
    average_gradients([low], me)
    told["rounded once"] = torch.equal(low.grad, torch.stack(each).float().mean(dim=0).bfloat16())
    return told


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    me = ranks("cpu")
    if me.world_size == 2:
        told = {"replicate": replicated(folder, me), "fsdp": shards(folder, me),
                "otherwise": shards_otherwise(me, folder), "mishaps": mishaps(folder, me)}
    else:
        told = on_nodes(folder, me)
    if me.first:
        (folder / "told.json").write_text(json.dumps(told))
    leave()


# ---- what one process alone does, and the comparison


@pytest.fixture(scope="module")
def alone():
    """One process: figures and state after the first step, and the weights after the second."""
    net = model()
    optimizer = adamw(net)
    told = take_step(net, optimizer, 1, ALONE)
    first = {name: tensor.detach().clone() for name, tensor in state(net, optimizer).items()}
    take_step(net, optimizer, 2, ALONE)
    return told, first, {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


@pytest.fixture(scope="module")
def two(tmp_path_factory, alone):
    folder = tmp_path_factory.mktemp("two_ranks")
    files = Checkpoints(folder / "one", "run")
    files.save(1, alone[1])
    files.settle()
    start_ranks("tests.test_engine_ranks", folder, 2)
    return folder, json.loads((folder / "told.json").read_text())


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four_ranks")
    start_ranks("tests.test_engine_ranks", folder, 4)
    return folder, json.loads((folder / "told.json").read_text())


def same(folder: Path, name: str, expected: dict[str, torch.Tensor], start: dict[str, torch.Tensor],
         allowed: float = 1e-4) -> None:
    """Every tensor moved from `start` as in `expected`, up to a relative error of the move."""
    found = read_tensors(folder / f"{name}.safetensors")
    for key, first in start.items():
        move = expected[key] - first
        assert move.norm() > 0 and (found[key] - expected[key]).norm() <= allowed * move.norm(), key


def resumes_alone(folder: Path, alone: tuple) -> None:
    """One process reads the checkpoint of step 1 and takes the second step."""
    net = model(seed=7)
    optimizer = adamw(net)
    assert Checkpoints(folder, "run").load(state(net, optimizer))[0] == 1
    take_step(net, optimizer, 2, ALONE)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), alone[2][name], rtol=0, atol=1e-7)


def test_two_ranks_take_the_step_of_one(two, alone, subtests):
    for how in ("replicate", "fsdp"):
        with subtests.test(msg=how):
            same(two[0], how, alone[1], START)
            assert two[1][how]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
            assert two[1][how]["norm"] == pytest.approx(alone[0]["norm"], rel=1e-5) and alone[0]["norm"] > 2 * CLIP
    weight, bias = two[1]["replicate"]["head"]
    assert weight == [5.0] * 6 and bias == [0.0] * 2  # (0 + 10) / 2


def test_all_ranks_resume_from_what_the_first_one_found(two, alone):
    told = two[1]["replicate"]
    assert told["resumed"] == [[1, {"clips": 4}, []]] * 2 and told["alike"]
    same(two[0], "replicate_2", alone[2], {name: alone[1][name] for name in START})
    assert told["refused"][0] == told["refused"][1] and "; this run needs " in told["refused"][0]


def test_shards_are_resumed_bit_for_bit_by_as_many_ranks_and_by_more_or_fewer(two, alone):
    folder, told = two[0], two[1]["fsdp"]
    assert told["two"] == [[1, {"clips": 4}, []]] * 2 and told["one"] == [[1, {}, []]] * 2
    through, resumed = (read_tensors(folder / f"{name}.safetensors") for name in ("fsdp_2", "resumed_from_two"))
    assert through.keys() == resumed.keys() and all(torch.equal(through[key], resumed[key]) for key in through)
    same(folder, "resumed_from_one", alone[2], {name: alone[1][name] for name in START})
    resumes_alone(folder / "two", alone)


def test_nodes_that_hold_copies_train_like_one_row_of_ranks(four, alone):
    folder, told = four
    for how in ("fsdp", "hsdp"):
        same(folder, f"{how}_4", alone[1], START)
        assert told[how]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
        assert told[how]["norm"] == pytest.approx(alone[0]["norm"], rel=1e-5)
        resumes_alone(folder / how, alone)
    assert told["hsdp"]["held"] > 1.5 * told["fsdp"]["held"]  # each rank has a half instead of a quarter
    assert told["refused"] == "ValueError: ranks_a_node is 3; it must divide 4, the number of ranks"
    assert told["rounded once"]


def test_the_shards_have_the_size_that_the_memory_table_says(two):
    local = two[1]["fsdp"]["local"]
    worked_out = memory(CONFIG, Inputs(1, 3, 4, 4, 4), 2, "fsdp")
    assert (local["parameters"], local["optimizer"]) == (worked_out.parameters, worked_out.optimizer)


def test_the_moving_average_of_shards(two, alone):
    expected = torch.cat([START[name].lerp(alone[1][name], 0.25).flatten() for name in START])
    assert two[1]["fsdp"]["average"] == pytest.approx(expected.double().square().sum().item(), rel=1e-5)


def test_bfloat16_offloading_one_message_for_two_passes_and_muon(two, alone):
    told = two[1]["otherwise"]
    assert told["offload"] == pytest.approx(alone[0], rel=1e-5)
    assert told["low"] == pytest.approx(alone[0], rel=0.02) and told["low"] != pytest.approx(alone[0], rel=1e-6)
    assert told["low gradient"] == "torch.float32" and told["without sync"] < 1e-6
    net = model()
    for p, grad in zip(net.parameters(), random_gradients()):
        p.grad = grad
    with exact_muon():
        muon(net).step(1.0)
    same(two[0], "muon", {key: p.detach() for key, p in net.named_parameters()}, START)


def test_an_error_on_one_rank_is_raised_on_all(two):
    folder, told = two[0], two[1]["mishaps"]
    for name, kind, words in (("full disk", "OSError", "run_00000004 could not be written"),
                              ("apart", "OSError", "must share the folder"), ("refused", "ValueError", "extra in "),
                              ("nan", "ValueError", "bias holds NaN")):
        first, other = (said.replace("apart1", "apart0") for said in told[name])
        assert first == other and first.startswith(kind) and words in first, told[name]
    (step, _, (sentence,)), other = told["damaged"]
    assert step == 3 and "shard-00002" in sentence and other == [step, {}, [sentence]]
    assert sorted(path.name for path in (folder / "mishaps").iterdir()) == ["run_00000003", "run_00000005"]


# ---- one process is enough


def test_alone_a_model_is_replicated_without_a_group_or_sharded_to_offload(alone, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    me, net = ranks("cpu"), model()
    assert me == ALONE and wrap(net, me) is net and not dist.is_initialized()
    assert mean_over_ranks({"loss": 2.0}, me) == {"loss": 2.0}
    try:
        away = sharded(me, offload=True)
        assert all(isinstance(p, DTensor) for p in away.parameters())
        assert take_step(away, adamw(away), 1, me) == pytest.approx(alone[0], rel=1e-6)
    finally:
        leave()


def test_options_that_do_not_go_together_and_devices_that_are_missing(monkeypatch, subtests):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MINICOGVX_DEVICE", "mps")
    assert ranks().device == torch.device("mps") and ranks("cpu").device == torch.device("cpu")
    mps, net = ranks(), torch.nn.Linear(2, 2)
    for words, me, options in (("sharding is 'zero'", ALONE, {"sharding": "zero"}),
                               ("offload=True", ALONE, {"offload": True}),
                               ("dtype=torch.bfloat16", ALONE, {"dtype": torch.bfloat16}),
                               ("sharding is 'fsdp'.* not 'mps'", mps, {"sharding": "fsdp"}),
                               ("sharding is 'hsdp'.* not 'mps'", mps, {"sharding": "hsdp"})):
        with subtests.test(msg=words), pytest.raises(ValueError, match=words):
            wrap(net, me, **options)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for words, device, world_size in (("device is 'mps'; under torchrun", None, "1"), ("device is 'tpu'", "tpu", "1"),
                                      ("WORLD_SIZE is 'two'", "cpu", "two")):
        monkeypatch.setenv("WORLD_SIZE", world_size)
        with subtests.test(msg=words), pytest.raises(ValueError, match=words):
            ranks(device)
    assert not dist.is_initialized()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
