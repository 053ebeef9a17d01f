"""The VAE trained by four gloo processes, two teams of two: each team's clips are split in time between its ranks."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx.engine.ranks import Ranks, leave, ranks
from minicogvx.interop.safetensors_files import read_tensors, write_tensors
from minicogvx.training.checks import check_vae
from minicogvx.training.loop import fit
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.vae import VAETask, small_branches, train_vae
from minicogvx.training.videos import VideoSteps, WorldVideos
from minicogvx.vae import CausalVAE
from minicogvx.vae.discriminator import DiscriminatorConfig
from tests.ranks import exact_muon, start_ranks
from tests.tiny import TINY, tiny_vae
from tests.trained import GAN

RANKS, TEAM = 4, 2
STAGE = VAEStage(5, batch_size=4, num_frames=9, loss=replace(GAN, gan_start=0))
TRAINING = VAETraining((STAGE,), optimizer="muon", small_branches=True, chunk_frames=None, warmup=2,
                       discriminator=DiscriminatorConfig(width=4))


def learn(folder: Path, here: Ranks) -> None:
    """A VAE with a GAN, and one that meets a NaN on the last rank alone; each rank writes its own."""
    team = TEAM if here.world_size > 1 else 1
    training = replace(TRAINING, stages=(replace(STAGE, context_ranks=team),))
    keep = Keep(folder, log_every=1, checkpoint_every=5, progress=False)
    vae = train_vae(TINY.vae, training, WorldVideos(), 0, torch.float32, keep, here)
    poisoned, calls = tiny_vae().requires_grad_(True), []
    if here.rank == here.world_size - 1:

        def poison(module, inputs, output):
            calls.append(1)
            return output * float("nan") if len(calls) == 2 else output

        poisoned.encoder.register_forward_hook(poison)
    task = VAETask(poisoned, training, here)
    task.begin(0)
    fit(task, VideoSteps(WorldVideos(), training, 0, TINY.vae, task.ranks), Run("poisoned", 3, keep, here),
        lambda step: 1.0)
    write_tensors(folder / f"rank_{here.rank}.safetensors", {
        f"{name}/{key}": p.clone() for name, part in (("vae", vae), ("poisoned", poisoned))
        for key, p in part.named_parameters()})


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of one rank and of four, and the latter's output."""
    one, four = (tmp_path_factory.mktemp(name) for name in ("one", "four"))
    with exact_muon():
        learn(one, Ranks())
    return one, four, start_ranks("tests.test_vae_ranks", four, RANKS)


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").open()]


def test_teams_learn_what_one_rank_learns_and_end_in_the_same_bits(both):
    first, *others = (read_tensors(both[1] / f"rank_{rank}.safetensors") for rank in range(RANKS))
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    one = read_tensors(both[0] / "rank_0.safetensors")
    torch.manual_seed(0)
    start = CausalVAE(TINY.vae)
    small_branches(start)
    start = {f"vae/{key}": p for key, p in start.named_parameters()}
    apart = sum((one[key] - first[key]).square().sum() for key in start).sqrt()
    learnt = sum((one[key] - p).square().sum() for key, p in start.items()).sqrt()
    assert apart <= 0.005 * learnt, apart / learnt


def test_every_loss_is_that_of_the_whole_clip(both):
    expected, told = (rows(folder, "vae_0") for folder in both[:2])
    assert [row["step"] for row in told] == list(range(STAGE.steps)), "logged once, by one of the ranks"
    a, b = expected[0], told[0]
    assert a.keys() == b.keys() and {"l1", "kl", "gan_generator", "gan_discriminator", "grad_norm"} <= a.keys()
    off = {key: abs(a[key] - b[key]) / (abs(a[key]) + 1e-3) for key in a.keys() - {"seconds", "waiting", "psnr"}}
    assert max(off.values()) < 1e-3, off  # float32; the adaptive weight divides two small gradients
    assert all(row["gan_weight"] > 0 for row in told)
    for a, b in zip(expected, told):
        assert b["total"] == pytest.approx(a["total"], rel=0.02), a["step"]  # a GAN's turns grow from rounding


def test_a_nan_in_one_ranks_frames_is_left_out_by_all(both):
    assert [row["grad_norm"] == "nan" for row in rows(both[1], "poisoned")] == [False, True, False]
    assert both[2].count("poisoned: the gradient of step 1 is not finite; the weights stay as they were") == 1


def test_teams_that_cannot_be_are_refused_before_any_work(subtests):
    for changed, here, told in (
            ({"context_ranks": 2}, Ranks(), "context_ranks is 2; it must divide 1, the number of ranks"),
            ({"context_ranks": 3}, Ranks(0, 4), "context_ranks is 3; it must divide 4"),
            ({"context_ranks": 4}, Ranks(0, 4), "the clip has 3 latent frames"),
            ({"context_ranks": 2, "batch_size": 5}, Ranks(0, 4), "a multiple of 2, the number of teams"),
            ({"context_ranks": 2, "num_frames": 8}, Ranks(0, 2), "num_frames is 8 and .* need 4k \\+ 1")):
        with subtests.test(told), pytest.raises(ValueError, match=f"vae.stages.1 cannot be trained: .*{told}"):
            check_vae(TINY.vae, replace(TRAINING, stages=(replace(STAGE, batch_size=4), replace(STAGE, **changed))),
                      here)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with exact_muon():
        learn(Path(sys.argv[1]), ranks("cpu"))
    leave()
