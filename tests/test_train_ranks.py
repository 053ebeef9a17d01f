"""Training from scratch on two gloo processes, started by torchrun, gives the result of one process."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minicogvx.data.clips.world import encode_world
from minicogvx.diffusion.timesteps import rank_interval, stratified_timesteps
from minicogvx.engine.optim import MuonAdamW
from minicogvx.engine.ranks import Ranks, leave, ranks
from minicogvx.interop.safetensors_files import read_tensors, write_tensors
from minicogvx.training.joint_batch import Batch, own_part
from minicogvx.training.loop import Keep, Run
from minicogvx.training.transformer import Networks, TransformerStage, TransformerTraining, train_transformer
from minicogvx.training.vae import initialise, train_stage, train_vae
from minicogvx.vae import CausalVAE
from minicogvx.vae.perceptual import PerceptualDistance
from tests.ranks import exact_muon, start_ranks
from tests.test_training import GAN, STAGE, TINY

STAGES = (replace(STAGE, steps=4, batch_size=4, loss=replace(GAN, gan_start=0)),
          replace(STAGE, steps=3, frame_rates=(8, 16)))
TRAINING = TransformerTraining((TransformerStage(3, 8, latent_frames=1), TransformerStage(3, 4)), warmup=2)


def learn(folder: Path, here: Ranks) -> None:
    """A VAE with a GAN, a transformer, and a VAE that meets a NaN on the last rank alone; each rank writes its own."""
    keep = Keep(folder, log_every=1, checkpoint_every=2, progress=False)
    vae = train_vae(TINY.vae, STAGES, 0, torch.float32, keep, here)
    torch.manual_seed(0)
    latents = encode_world(CausalVAE(TINY.vae), 32, 0, 9, dtype=torch.float32, progress=False, here=here)
    transformer, text = train_transformer(TINY, latents, replace(TRAINING, sample_every=2), 0, torch.float32, keep,
                                          lambda *_: {"obeyed": 0.5}, here)
    poisoned = CausalVAE(TINY.vae)
    if here.rank == here.world_size - 1:
        calls = []

        def poison(module, inputs, output):
            calls.append(1)
            return output * float("nan") if len(calls) == 2 else output

        poisoned.encoder.register_forward_hook(poison)
    train_stage(poisoned, replace(STAGE, steps=3, loss=GAN), 0, torch.float32, keep, "poisoned", here)
    parts = {"vae": vae, "transformer": transformer, "text": text.encoder, "poisoned": poisoned}
    write_tensors(folder / f"rank_{here.rank}.safetensors", {
        f"{name}/{key}": p.clone() for name, part in parts.items() for key, p in part.named_parameters()} | {
        "latents/mean": latents.mean, "latents/std": latents.std, "latents/features": latents.features}
        | resumed_apart(folder / f"disk_{here.rank}", here))


def resumed_apart(disk: Path, here: Ranks) -> dict[str, torch.Tensor]:
    """What a rank has after a restart when each sees a disk of its own, and the first one alone has written."""
    for start in (0.0, 1.0):
        net = nn.Linear(2, 2)
        nn.init.constant_(net.weight, start + here.rank)
        optimizer = MuonAdamW(net.named_parameters())
        run = Run("apart", 2, Keep(disk, progress=False), here.first)
        done = run.resume({"net": net}, {"optimizer": optimizer})
        for _ in run:
            net(torch.ones(1, 2)).sum().backward()
            run.record(optimizer.step(1.0))
    state = optimizer.adamw.state[net.bias]
    return {"apart/done": torch.tensor([done]), "apart/net": net.weight.detach(), "apart/average": state["exp_avg"]}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of one rank and of two, the latter's output, and the weights before training."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    with exact_muon():
        learn(one, Ranks())
    return one, two, start_ranks("tests.test_train_ranks", two, 2)


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").open()]


def test_both_ranks_end_in_the_same_bits(both):
    first, second = (read_tensors(both[1] / f"rank_{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_ranks_resume_from_what_the_first_one_found(both):
    first, second = (read_tensors(both[1] / f"rank_{rank}.safetensors") for rank in (0, 1))
    assert first["apart/done"].item() == second["apart/done"].item() == 2 and first["apart/average"].abs().max() > 0
    assert not (both[1] / "disk_1").exists()


def test_two_ranks_learn_what_one_learns(both):
    one, two = (read_tensors(folder / "rank_0.safetensors") for folder in both[:2])
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("latents/"))
    torch.manual_seed(0)
    vae = CausalVAE(TINY.vae)
    initialise(vae)
    torch.manual_seed(0)
    nets = Networks(TINY, TRAINING, torch.float32, torch.device("cpu"))
    for name, part, tolerance in (("vae", vae, 0.03), ("transformer", nets.master, 1e-4),
                                  ("text", nets.text.encoder, 1e-4)):
        start = {f"{name}/{key}": p for key, p in part.named_parameters()}
        apart = sum((one[key] - two[key]).square().sum() for key in start).sqrt()
        learnt = sum((one[key] - p).square().sum() for key, p in start.items()).sqrt()
        assert 0 < apart <= tolerance * learnt, (name, apart / learnt)


def test_figures_are_those_of_one_rank_and_written_once(both):
    one, two, _ = both
    for name, steps in (("vae_0", 4), ("vae_1", 3), ("transformer", 6)):
        expected, told = rows(one, name), rows(two, name)
        assert [row["step"] for row in told] == list(range(steps)) == [row["step"] for row in expected]
        for a, b in zip(expected, told):
            assert a.keys() == b.keys()
            off = {key: abs(a[key] - b[key]) / (abs(a[key]) + 1e-3)
                   for key in a.keys() - {"seconds", "psnr", "swap_gain"}}
            close = 1e-5 if a["step"] == 0 and name == "vae_0" else 0.03 if name.startswith("vae") else 1e-4
            assert max(off.values()) < close, (name, a["step"], off)
    assert [row["step"] for row in rows(two, "transformer") if "obeyed" in row] == [1, 3, 5]
    assert sorted(path.name for path in (two / "checkpoints").glob("vae_0*")) == ["vae_0_00000002.safetensors",
                                                                               "vae_0_00000004.safetensors"]


def test_a_nan_on_one_rank_is_left_out_by_all(both):
    one, two, said = both
    assert [row["grad_norm"] == "nan" for row in rows(two, "poisoned")] == [False, True, False]
    assert said.count("poisoned: the gradient of step 1 is not finite; the weights stay as they were") == 1
    assert rows(two, "poisoned")[2]["total"] == pytest.approx(rows(one, "poisoned")[2]["total"], rel=1e-2)


def test_each_rank_takes_the_clips_of_its_own_timesteps():
    generator = torch.Generator().manual_seed(3)
    x, t = torch.arange(12.0)[:, None, None, None, None], stratified_timesteps(12, 1000, generator)
    joint = Batch(x, [str(i) for i in range(12)], x, x, t)
    seen = []
    for rank in range(3):
        own = own_part(joint, Ranks(rank, 3))
        low, high = rank_interval(1000, rank, 3)
        assert len(own.t) == 4 and low <= own.t.min() and own.t.max() < high
        clips = own.x0.flatten().int().tolist()
        assert own.captions == [str(i) for i in clips] and torch.equal(own.t, t[clips])
        seen += clips
    assert sorted(seen) == list(range(12)) and own_part(joint, Ranks()) is joint


def test_random_frames_do_not_depend_on_how_a_batch_is_cut():
    lpips = pytest.importorskip("lpips")
    model, video = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False), torch.zeros(4, 3, 9, 32, 32)

    def frames(shard, clips):
        distance = PerceptualDistance(model, frames=2, shard=shard)
        return distance._choose(clips, torch.Generator().manual_seed(1))

    assert torch.equal(torch.cat([frames((i, 2), video[:2]) for i in (0, 1)]), frames((0, 1), video))


@pytest.mark.parametrize("train", [
    lambda here: train_vae(TINY.vae, (STAGE, replace(STAGE, batch_size=5)), here=here),
    lambda here: train_transformer(TINY, [], TransformerTraining((TransformerStage(1, 5),)), here=here),
], ids=["vae", "transformer"])
def test_a_batch_that_the_ranks_do_not_divide_is_refused_before_any_work(train):
    with pytest.raises(ValueError, match="batch_size is 5, of all ranks together; it must be a multiple of 2"):
        train(Ranks(1, 2))
    with pytest.raises(ValueError, match="clips is 1; it must be at least 2, the number of ranks"):
        encode_world(CausalVAE(TINY.vae), 1, 0, 9, here=Ranks(1, 2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with exact_muon():
        learn(Path(sys.argv[1]), ranks("cpu"))
    leave()
