"""Memory and accuracy of the VAE's context parallelism, on the shipped toy's VAE.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.context_parallel

First the memory of a training step on one clip of 65 frames, on a single rank and on each of those that share it.
Then the error of the gradient if that of borrowed frames is dropped, as published: one clip of 33 frames in float64,
encoded, decoded and compared with itself (mean squared error), split over the ranks.
"""

import ctypes
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

import minicogvx
from benchmarks.measure import M_MMAP_THRESHOLD, peak_of
from minicogvx.compat import choose_dtype
from minicogvx.engine.ranks import Ranks, barrier, leave, ranks
from minicogvx.engine.sharding import average_gradients
from minicogvx.training.settings import VAEStage, VAETraining
from minicogvx.training.vae import VAETask
from minicogvx.training.videos import VideoPass, world_batch
from minicogvx.vae import CausalVAE, context_parallel
from minicogvx.vae.losses import VAELossConfig

LOSS = VAELossConfig(lpips_weight=0.0, gan_weight=0.0)


def gradients(vae: CausalVAE) -> dict[str, Tensor]:
    """The gradients of the encoder and of the decoder, as one vector each."""
    return {name: torch.cat([p.grad.flatten() for p in part.parameters()])
            for name, part in (("encoder", vae.encoder), ("decoder", vae.decoder))}


def compare_gradients(vae: CausalVAE, team: Ranks) -> None:
    """Rank 0 prints the error of each variant relative to one process with the whole clip."""
    video = world_batch(1, 5, 33, 64, 64).double()
    vae.zero_grad()
    latents = vae.encode(video, chunk_frames=None).mean.double()
    (vae.decode(latents, chunk_latents=None) - video).square().mean().backward()
    whole, own = gradients(vae), context_parallel.own_frames(video)
    for how in ("returned", "dropped"):
        vae.zero_grad()
        posterior = context_parallel.encode(vae, own, borrowed_gradient=how)
        back = context_parallel.decode(vae, posterior.mean.double(), borrowed_gradient=how)
        ((back - own).square().sum() / video.numel()).backward()
        average_gradients(vae.parameters(), team)
        for part, found in gradients(vae).items():
            error = (found - whole[part]).norm() / whole[part].norm()
            if team.first:
                print(f"{team.world_size} ranks, gradient of borrowed frames {how}: {part} off by {error:.1e}")


def compare_memory(vae: CausalVAE, team: Ranks) -> None:
    """Prints the peak memory that a step adds to each rank, alone and together with the others."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # freed blocks are returned at once: memory held is memory used
    video = world_batch(1, 5, 65, 64, 64)

    def step(task: VAETask, frames: int) -> None:
        task.backward(VideoPass(video[:, :, :frames], [0], 0, 1.0, 0), 0.0)

    for who, here in (("alone", Ranks()), ("together", team)):
        stage = VAEStage(1, 1, loss=LOSS, context_ranks=here.context)
        task = VAETask(vae, VAETraining((stage,), chunk_frames=None), replace(here, context=1), choose_dtype("cpu"))
        task.begin(0)
        step(task, 4 * team.world_size + 1)  # loads kernels
        peak = peak_of(lambda: step(task, 65))
        barrier(team)
        peaks = [None] * team.world_size
        dist.all_gather_object(peaks, peak)
        if team.first:
            print(f"one step on 65 frames, {who}: {', '.join(f'{peak / 1e6:.0f} MB' for peak in peaks)} on each rank")


def main() -> None:
    """Runs both comparisons on the ranks that torchrun started."""
    torch.set_num_threads(1)
    me = ranks("cpu")
    if not dist.is_initialized():
        raise SystemExit("start it with torchrun, with 2 ranks or more")
    team = replace(me, context=me.world_size)
    vae = minicogvx.load("toy", "cpu", torch.float32).vae
    compare_memory(vae, team)
    compare_gradients(vae.double(), team)
    leave()


if __name__ == "__main__":
    main()
