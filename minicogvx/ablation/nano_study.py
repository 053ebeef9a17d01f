"""Makes what notebook 09 shows of longer runs in the nano world (ablation/nano.py).

    python -m minicogvx.ablation.nano_study clips      # data/nano/clips.safetensors: the latents, in 8 bits
    python -m minicogvx.ablation.nano_study words      # when each kind of word is learnt, and samples on the way
    python -m minicogvx.ablation.nano_study taught     # the same, with a teacher
    python -m minicogvx.ablation.nano_study clinic     # the charts of trainings with one thing wrong, and samples
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from minicogvx.ablation.nano import (
    FOLDER,
    FRAMES,
    KINDS,
    PATIENTS,
    NanoWorld,
    Patient,
    nano_losses,
    nano_scenes,
    nano_world,
    new_nano,
    short_captions,
    train_nano,
    word_gains,
)
from minicogvx.ablation.rounding import short_numbers
from minicogvx.data.clips.clips import stack_latents
from minicogvx.data.clips.world import encode_world
from minicogvx.files import written_whole
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.pipeline import Pipeline
from minicogvx.transformer.model import ExpertTransformer

RESULTS = FOLDER.parent / "results"
EVERY, EARLY = 25, 400  # steps between measurements up to step EARLY; then four times as many
ASKED = ("a red cross moves right on a grey background", "a blue bar moves up on a black background",
         "a green circle moves left on a grey background", "a yellow bar moves down on a black background")
SAMPLED = (0, 25, 50, 100, 200, 400, 800, 1200, 1600, 2400)  # steps after which samples are kept
SAMPLE_STEPS, GUIDANCE = 10, 3.0


def nano_sampled(pipe: Pipeline, model: ExpertTransformer, prompts: Sequence[str] = ASKED, seed: int = 0,
                 steps: int = SAMPLE_STEPS, guidance_scale: int | float = GUIDANCE) -> Float[Tensor, "b c t h w"]:
    """Latents that a network of the nano world makes for the prompts, always from the same noise."""
    maker = Pipeline(pipe.vae, model, pipe.schedule_config, short_captions(pipe.text), pipe.fps)
    return maker.sample(list(prompts), num_frames=FRAMES, num_inference_steps=steps, guidance_scale=guidance_scale,
                        seed=[seed + i for i in range(len(prompts))])


def words_of(pipe: Pipeline, world: NanoWorld, steps: int, seed: int,
             taught: bool = False) -> tuple[dict, dict[int, Tensor]]:
    """The curves of one healthy training, and its samples by the steps that were done."""
    model, samples, start = new_nano(seed), {}, time.perf_counter()
    curve = {"seed": seed, "steps": [], "loss": [], "gain": {kind: [] for kind in KINDS}}

    def measure(done: int) -> None:
        if done % (EVERY if done <= EARLY else 4 * EVERY) == 0 or done == steps:
            losses = nano_losses(model, world, pipe.schedule)
            curve["steps"].append(done)
            curve["loss"].append(losses["own"])
            for kind, gain in word_gains(losses).items():
                curve["gain"][kind].append(gain)
        if done in SAMPLED:
            samples[done] = nano_sampled(pipe, model)

    measure(0)
    for done, loss in enumerate(train_nano(model, world, pipe.schedule_config, steps, seed, taught=taught), 1):
        measure(done)
        if done % (4 * EVERY) == 0:
            print(done, f"{loss:.4f}", {kind: round(gain[-1], 4) for kind, gain in curve["gain"].items()}, flush=True)
    return curve | {"seconds": time.perf_counter() - start}, samples


def chart_of(pipe: Pipeline, world: NanoWorld, patient: Patient, steps: int, seed: int) -> tuple[dict, Tensor]:
    """What can be measured of one training, and its samples.

    "training_loss": the mean of the last 25 steps. "loss": on clips held back, with the weights that are used. "gain":
    the mean over kinds of words. "without": how much higher the loss is without captions. "time": how far the answer
    changes with the timestep alone, as a share. "spread": of the latents.
    """
    model = new_nano(seed)
    losses = list(train_nano(model, world, pipe.schedule_config, steps, seed, patient))
    held = nano_losses(model, world, pipe.schedule, patient.time_scale, patient.latent_scale)
    chart = {"training_loss": sum(losses[-25:]) / 25, "loss": held["own"],
             "gain": sum(word_gains(held).values()) / len(KINDS), "without": held["none"] - held["own"],
             "time": _hears_time(pipe, model, world, patient),
             "spread": (patient.latent_scale * world.latents).std().item()}
    samples = nano_sampled(pipe, _Scaled(model, patient.time_scale)) / patient.latent_scale
    return {"name": patient.name, "seed": seed, "chart": chart, "losses": losses}, samples


@torch.no_grad()
def _hears_time(pipe: Pipeline, model: ExpertTransformer, world: NanoWorld, patient: Patient) -> float:
    x0, text = patient.latent_scale * world.latents[-8:], world.features[-8:]
    noisy = pipe.schedule.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)), 500)
    early, late = (model(noisy, patient.time_scale * torch.full((8,), t), text) for t in (100, 900))
    return ((early - late).norm() / (early.norm() + late.norm()) * 2).item()


class _Scaled(ExpertTransformer):
    """A copy of a network that gets its timesteps as it did in training."""

    def __init__(self, model: ExpertTransformer, scale: int | float):
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        self.scale = scale

    def forward(self, latents, timestep, text, ofs=None, layout=None):
        return super().forward(latents, self.scale * timestep, text, ofs, layout)


# ---- files


def write_clips(pipe: Pipeline, path: Path) -> None:
    """Encodes the scenes and stores their latents in 8 bits: whole numbers, and of each channel the step between."""
    clips = encode_world(pipe.vae, num_frames=FRAMES, scenes=nano_scenes(), dtype=torch.float32)
    latents = stack_latents(clips, range(len(clips)))
    step = latents.abs().amax(dim=(0, 2, 3, 4)) / 127
    whole = (latents / step.view(-1, 1, 1, 1)).round().to(torch.int8)
    with written_whole(path) as part:
        save_file({"latents": whole.contiguous(), "step": step}, part)


def add_run(what: str, run: dict, samples: dict[str, Tensor], steps: int) -> None:
    """Adds a run to data/results/nano-WHAT.json, and its samples to data/nano/nano-WHAT.safetensors."""
    path, weights = RESULTS / f"nano-{what}.json", FOLDER / f"nano-{what}.safetensors"
    others = [each for each in stored_runs(what, steps) if (each["seed"], each.get("name")) != (
        run["seed"], run.get("name"))]
    runs = sorted([*others, short_numbers(run)], key=lambda each: each["seed"])
    seeds = " ".join(str(seed) for seed in sorted({each["seed"] for each in runs}))
    content = {"command": f"python -m minicogvx.ablation.nano_study {what} --seeds {seeds} --steps {steps}",
               "steps": steps, "torch": torch.__version__, "threads": torch.get_num_threads(), "runs": runs}
    with written_whole(path) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
    if samples:
        kept = read_tensors(weights) if len(runs) > 1 and weights.exists() else {}
        with written_whole(weights) as part:
            save_file(kept | {key: value.half().contiguous() for key, value in samples.items()}, part)


def stored_runs(what: str, steps: int) -> list[dict]:
    """The runs of so many steps that are stored already; a study that was killed goes on after them."""
    path = RESULTS / f"nano-{what}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": None}
    return content["runs"] if content["steps"] == steps else []


def main(argv: list[str] | None = None) -> int:
    """Runs one part of the study and writes its files; what is stored is not run again."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.ablation.nano_study",
                                     description="Make what notebook 09 shows of longer runs.")
    parser.add_argument("what", choices=("clips", "words", "taught", "clinic"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: 2400, for the clinic 120")
    options = parser.parse_args(argv)
    pipe = Pipeline.load("toy", "cpu", torch.float32)
    if options.what == "clips":
        write_clips(pipe, FOLDER / "clips.safetensors")
        return 0
    steps, world = options.steps or (120 if options.what == "clinic" else 2400), nano_world(pipe.text)
    for seed in options.seeds:
        done = [run.get("name") for run in stored_runs(options.what, steps) if run["seed"] == seed]
        if options.what != "clinic" and not done:
            curve, made = words_of(pipe, world, steps, seed, options.what == "taught")
            kept = {str(step): latents for step, latents in made.items()} if not seed else {}
            add_run(options.what, curve, kept, steps)
        for patient in PATIENTS if options.what == "clinic" else ():
            if patient.name not in done:
                run, made = chart_of(pipe, world, patient, steps, seed)
                print(seed, patient.name, run["chart"], flush=True)
                add_run("clinic", run, {} if seed else {patient.name: made[:2]}, steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
