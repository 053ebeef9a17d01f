"""Explicit uniform sampling (paper 3.3): how much steadier a batch's loss is if its timesteps are spread on purpose.

    python -m benchmarks.uniform_sampling [--batches 20000] [--draws 2]

The shipped toy's loss is taken at every timestep for a few clips and noises. Batches are then drawn from these losses,
with the timesteps that the package's own functions choose: `uniform_timesteps`; `rank_timesteps`, in which the batch
lies on 2, 4, 8 .. ranks with an interval each; `stratified_timesteps` on one device.
"""

import argparse
import random
import time

import torch
from torch import Tensor

import minicogvx
from minicogvx.data.clips.clips import stack_latents
from minicogvx.data.clips.world import encode_world
from minicogvx.data.world.captions import caption
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.timesteps import rank_timesteps, stratified_timesteps, uniform_timesteps


@torch.no_grad()
def losses(draws: int, seed: int) -> Tensor:
    """The loss at every timestep (row) for `draws` pairs of clip and noise each, all different."""
    pipe = minicogvx.load("toy", "cpu")
    T, dtype = pipe.schedule.num_train_timesteps, pipe.transformer.proj_out.weight.dtype
    latents = encode_world(pipe.vae, 64, seed, pipe.video_size.num_frames, dtype=dtype, progress=False)
    generator, words = torch.Generator().manual_seed(seed), random.Random(seed)
    found = []
    for t in torch.arange(T).repeat_interleave(draws).split(100):
        index = torch.randint(len(latents.scenes), (len(t),), generator=generator)
        x0 = stack_latents(latents, index.tolist(), generator)
        noise = torch.randn(x0.shape, generator=generator)
        text = pipe.text.encode([caption(latents.scenes[i], words) for i in index]).to(dtype)
        prediction = pipe.transformer(pipe.schedule.add_noise(x0, noise, t).to(dtype), t, text)
        found.append(diffusion_loss(prediction, x0, noise, t, pipe.schedule))
    return torch.cat(found).view(T, draws)


def batch_losses(table: Tensor, batches: int, batch: int, ranks: int | None, generator: torch.Generator) -> Tensor:
    """Mean losses of many batches. `ranks`: 1 is uniform, None is stratified, else the batch is spread over so many."""
    T, draws = table.shape

    def timesteps() -> Tensor:
        if ranks is None:
            return stratified_timesteps(batch, T, generator)
        if ranks == 1:
            return uniform_timesteps(batch, T, generator)
        return torch.cat([rank_timesteps(batch // ranks, T, rank, ranks, generator) for rank in range(ranks)])

    t = torch.stack([timesteps() for _ in range(batches)])
    return table[t, torch.randint(draws, t.shape, generator=generator)].double().mean(1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20000)
    parser.add_argument("--draws", type=int, default=2, help="clips and noises for each timestep")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    table = losses(args.draws, args.seed)
    within = table.var(1).mean().item()
    print(f"toy, {table.numel()} losses in {time.perf_counter() - start:.0f} s: mean {table.mean():.4f}, variance "
          f"{table.var():.2e}, of which clips and noise at the same timestep {within:.2e}\n")
    print("batch  timesteps            mean loss   variance   of uniform's")
    generator = torch.Generator().manual_seed(args.seed)
    for batch in (8, 32):
        plain = None
        for ranks in (1, *(n for n in (2, 4, 8, 32) if n <= batch), None):
            values = batch_losses(table, args.batches, batch, ranks, generator)
            variance = values.var().item()
            plain = plain or variance
            name = {1: "uniform", None: "stratified"}.get(ranks, f"{ranks} ranks x {batch // (ranks or 1)}")
            print(f"{batch:5}  {name:20} {values.mean():.4f}      {variance:.2e}   {100 * variance / plain:5.1f} %")
    error = 100 * (2 / args.batches) ** 0.5
    print(f"\n{time.perf_counter() - start:.0f} s; the error of a variance is about {error:.1f} %")


if __name__ == "__main__":
    main()
