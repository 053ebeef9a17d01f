"""Speed of the 5B at its native size, and of decoding, compared with diffusers."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from diffusers import CogVideoXDPMScheduler
from torch import Tensor, nn

from benchmarks.gpu.machine import Machine, speeds
from benchmarks.gpu.rows import FAILED, NOT_FINITE, Row, attempt, measured
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.twins import Inputs, TransformerTwins, apart, mse, random_model, vae_inputs, vae_twins
from benchmarks.measure import count_flops
from minicogvx.diffusion.guidance import guide
from minicogvx.diffusion.samplers import DPMSampler
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.interop.configs import to_diffusers
from minicogvx.training.lora import TARGETS, add_lora
from minicogvx.vae import CausalVAE
from minicogvx.vae.tiling import tiled_decode

GUIDANCE, STEPS = 6.0, 50  # as published

Pair = tuple[Callable[[], object], Callable[[], object]]  # one run of ours, one of diffusers


def transformer(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """The 5B: a forward pass, a step of sampling under guidance, and a training step of LoRA with checkpointing."""
    def rows() -> Iterator[Row]:
        twins = TransformerTwins(sizes.transformers["5b"], sizes.full_frames, machine.dtype, machine.device)
        size = f"5b, {sizes.pixels(twins.ours.config, sizes.full_frames)}"
        # Attempted separately: sampling may fit where training does not.
        for part, pair in (("forward", _forward), ("guided step", _guided), ("LoRA training step", _lora)):
            label = f"{part}, {size}"
            yield from attempt("speed 5b", machine.numbers, lambda: _beside_diffusers(
                machine, "speed 5b", label, pair(twins, sizes), sizes.rounds), label)

    yield from attempt("speed 5b", machine.numbers, rows)


def _beside_diffusers(machine: Machine, check: str, part: str, pair: Pair, rounds: int) -> Iterator[Row]:
    ours, theirs = speeds(machine, list(pair), rounds)
    yield measured(apart([ours.result], [theirs.result]), check=check, part=part, numbers=machine.numbers,
                   beside="diffusers", seconds=ours.seconds, other_seconds=theirs.seconds,
                   share=machine.share(ours.flops, ours.seconds), flops=ours.flops, memory=ours.memory,
                   other_share=machine.share(theirs.flops, theirs.seconds), other_memory=theirs.memory)


def _forward(twins: TransformerTwins, sizes: Sizes) -> Pair:
    run = torch.no_grad()
    return run(lambda: twins.ours_says(twins.inputs)), run(lambda: twins.theirs_says(twins.inputs))


def _guided(twins: TransformerTwins, sizes: Sizes) -> Pair:
    """The first of 50 steps: without and with caption in one batch, guidance, DPM-Solver; the same noise for both."""
    x, sampler = twins.inputs, DPMSampler(NoiseSchedule(sizes.schedule), STEPS)
    values = to_diffusers(sizes.schedule)
    scheduler = CogVideoXDPMScheduler(**{key: value for key, value in values.items() if not key.startswith("_")})
    scheduler.set_timesteps(STEPS, device=x.latents.device)
    t = sampler.timesteps[0].to(x.latents.device)
    both = Inputs(torch.cat([x.latents, x.latents]), t.expand(2), torch.cat([torch.zeros_like(x.text), x.text]),
                  x.target)

    @torch.no_grad()
    def ours() -> Tensor:
        output = guide(*twins.ours_says(both).float().chunk(2), GUIDANCE)
        return sampler.step(output, 0, x.latents, None, torch.Generator().manual_seed(3))[0]

    @torch.no_grad()
    def theirs() -> Tensor:
        without, with_caption = twins.theirs_says(both).float().transpose(1, 2).chunk(2)
        output = without + GUIDANCE * (with_caption - without)
        latents = scheduler.step(output, None, scheduler.timesteps[0], None, x.latents.transpose(1, 2),
                                 generator=torch.Generator().manual_seed(3), return_dict=False)[0]
        return latents.transpose(1, 2).to(x.latents.dtype)

    return ours, theirs


def _lora(twins: TransformerTwins, sizes: Sizes) -> Pair:
    """Forward, mean squared error, backward into the adapters, AdamW. Returns the losses."""
    from peft import LoraConfig, inject_adapter_in_model

    rank, x = sizes.lora_rank, twins.inputs
    add_lora(twins.ours, rank, rank / 2)
    twins.theirs.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank / 2, target_modules=list(TARGETS)), twins.theirs)
    theirs = dict(twins.theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in twins.ours.named_parameters():
            if parameter.requires_grad:  # separate adapters with the same values
                theirs[name].copy_(parameter)
    return (_training_step(twins.ours, lambda: mse(twins.ours_says(x), x.target)),
            _training_step(twins.theirs, lambda: mse(twins.theirs_says(x), x.target)))


def _training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()
    return run


# ---- VAE


def vae(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """Encode and decode in the published chunks, diffusers beside them."""
    def rows() -> Iterator[Row]:
        ours, theirs = vae_twins(sizes.vae, machine.dtype, machine.device)
        video, latents = vae_inputs(sizes.vae, sizes.vae_parity, machine.dtype, machine.device)
        run, size = torch.no_grad(), _size(sizes.vae_parity)
        encode = run(lambda: ours.encode(video).mean), run(lambda: theirs.encode(video).latent_dist.mean.float())
        decode = run(lambda: ours.decode(latents)), run(lambda: theirs.decode(latents).sample)
        for part, pair in ((f"encode, {size}", encode), (f"decode, {size}", decode)):
            yield from _beside_diffusers(machine, "speed vae", part, pair, sizes.rounds)

    yield from attempt("speed vae", machine.numbers, rows)


def large_decode(machine: Machine, sizes: Sizes) -> Iterator[Row]:
    """The clip of the 1.5 models: whole frames and tiles, each in the published chunks of time."""
    def rows(label: str, decode: Callable[[CausalVAE, Tensor], Tensor]) -> Iterator[Row]:
        model = random_model(CausalVAE, sizes.large_vae, machine.dtype, machine.device)
        _, latents = vae_inputs(sizes.large_vae, sizes.large, machine.dtype, machine.device)
        with torch.no_grad():
            decode(model, latents[:, :, :3])  # loads kernels, and selects them for these frames
            video, seconds, memory = machine.timed(lambda: decode(model, latents))
            # On the meta device, because counting slows the run down.
            _, flops = count_flops(lambda: decode(model.to("meta"), latents.to("meta")))
        row = Row("large decode", label, machine.numbers, seconds=seconds, flops=flops, memory=memory,
                  share=machine.share(flops, seconds))
        yield row if torch.isfinite(video).all() else replace(row, result=FAILED, reason=NOT_FINITE)

    size = _size(sizes.large)
    for how, decode in (("tiles", tiled_decode), ("whole frames", lambda vae, latents: vae.decode(latents))):
        label = f"{how}, {size}"
        yield from attempt("large decode", machine.numbers, lambda: rows(label, decode), label)


def _size(clip: tuple[int, int, int]) -> str:
    """As 480x720x49: height, width, frames."""
    return f"{clip[1]}x{clip[2]}x{clip[0]}"
