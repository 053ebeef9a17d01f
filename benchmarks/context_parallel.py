"""What dropping the gradient of borrowed frames, as published, does to the gradient of the shipped toy's VAE.

    torchrun --standalone --nproc-per-node 4 -m benchmarks.context_parallel

One clip of 33 frames in float64, encoded, decoded and compared with itself (mean squared error), split over the ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor

import minicogvx
from minicogvx.training.distributed import average_gradients, leave, ranks
from minicogvx.training.vae import world_batch
from minicogvx.vae import CausalVAE, context_parallel


def gradients(vae: CausalVAE) -> dict[str, Tensor]:
    """The gradients of the encoder and of the decoder, as one vector each."""
    return {name: torch.cat([p.grad.flatten() for p in part.parameters()])
            for name, part in (("encoder", vae.encoder), ("decoder", vae.decoder))}


def main() -> None:
    """Rank 0 prints how far each way is from one process that sees the whole clip."""
    torch.set_num_threads(1)
    me = ranks("cpu")
    if not dist.is_initialized():
        raise SystemExit("start it by torchrun, with 2 ranks or more")
    vae = minicogvx.load("toy", "cpu", torch.float32).vae.double()
    video = world_batch(1, 5, 33, 64, 64).double()
    latents = vae.encode(video, chunk_frames=None).mean.double()
    (vae.decode(latents, chunk_latents=None) - video).square().mean().backward()
    whole, own = gradients(vae), context_parallel.own_frames(video)
    for how in ("returned", "dropped"):
        vae.zero_grad()
        posterior = context_parallel.encode(vae, own, borrowed_gradient=how)
        back = context_parallel.decode(vae, posterior.mean.double(), borrowed_gradient=how)
        ((back - own).square().sum() / video.numel()).backward()
        average_gradients(vae.parameters(), me, sum_only=True)
        for part, found in gradients(vae).items():
            error = (found - whole[part]).norm() / whole[part].norm()
            if me.first:
                print(f"{me.world_size} ranks, gradient of borrowed frames {how}: {part} off by {error:.1e}")
    leave()


if __name__ == "__main__":
    main()
