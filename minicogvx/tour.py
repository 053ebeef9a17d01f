"""What `minicogvx tour` shows: a clip of the shipped model, and a training of the nano world to watch."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from minicogvx.ablation.nano import (
    CLIPS,
    HELD,
    KINDS,
    NANO_TRANSFORMER,
    NanoWorld,
    nano_losses,
    nano_world,
    new_nano,
    train_nano,
    word_gains,
)
from minicogvx.ablation.nano_study import ASKED, nano_sampled
from minicogvx.data.world.captions import parse_caption
from minicogvx.data.world.oracle import matches, read
from minicogvx.data.world.oracle_sentence import oracle_sentence
from minicogvx.media import MAKER, write_gif, write_mp4, write_strip
from minicogvx.pipeline import Pipeline
from minicogvx.terminal import Redrawn, Screen, frames_as_text, play, put
from minicogvx.transformer.model import ExpertTransformer

Say = Callable[..., None]  # prints paragraphs
STEPS, SKETCH_STEPS = 25, 6  # of denoising: for the first clip, and for looks at a training
TRIAL = 4  # training steps by which the speed is measured; the first of them does not count
LOOKS = 8  # at the gains and at a clip, during a training
FEWEST = 2  # training steps
EVERY = 0.2  # seconds between two progress lines
HEARD = 0.01  # a gain above which a word counts as heard, as in notebook 09


def show_clip_here(video: Float[Tensor, "t h w 3"], fps: int | float, screen: Screen) -> None:
    """Plays a clip and leaves a few of its frames, where there is a terminal."""
    play(video, fps, screen)
    for line in frames_as_text(video, screen):
        put(line + "\n")


def first_clip(pipe: Pipeline, caption: str, seed: int, out: Path, made: list[Path], screen: Screen, say: Say) -> None:
    """Makes a clip of the caption, draws it, and says what the oracle reads. `made` gets the files that are written."""
    live = Redrawn(screen)
    video = pipe(caption, seed=seed, num_inference_steps=STEPS,
                 on_step=lambda done, total: live.show([f"removing noise: step {done} of {total}"]))
    live.clear()
    show_clip_here(video, pipe.fps, screen)
    _write(video, pipe.fps, out / "first", made)
    say(f"The clip is {out / 'first.mp4'}, with a gif and a strip beside it.")
    told = oracle_sentence(caption, video)
    say(f"{told[0].upper()}{told[1:]}. (The oracle is a small program that reads such clips from their pixels alone. "
        f"It was not told the caption.)" if told else
        "The caption names none of the shapes that the model was trained on, so there is nothing to check.")


def _write(video: Float[Tensor, "t h w 3"], fps: int | float, stem: Path, made: list[Path]) -> None:
    made.append(write_mp4(stem.with_suffix(".mp4"), video, fps, MAKER))
    made.append(write_gif(stem.with_suffix(".gif"), video, fps))
    made.append(write_strip(stem.with_suffix(".png"), video))


# ---- a training to watch


@dataclass
class Training:
    """A training of the nano world, as far as it is."""

    pipe: Pipeline
    world: NanoWorld
    model: ExpertTransformer
    screen: Screen
    say: Say
    steps: int = 0  # in all
    done: int = 0
    loss: float = 0.0
    gains: dict[str, float] = field(default_factory=dict)
    frames: list[str] = field(default_factory=list)  # lines of the last clip
    start: float = field(default_factory=time.perf_counter)

    def look(self) -> Float[Tensor, "t h w 3"]:
        """Measures the gains, and makes the first caption's clip as the model would now."""
        self.gains = word_gains(nano_losses(self.model, self.world, self.pipe.schedule))
        clip = nano_clips(self.pipe, self.model, ASKED[:1], SKETCH_STEPS)[0]
        self.frames = frames_as_text(clip, self.screen)
        return clip

    def lines(self) -> list[str]:
        """What is drawn while it runs."""
        passed = time.perf_counter() - self.start
        left = passed / max(1, self.done) * (self.steps - self.done)
        return [*self.frames, f"step {self.done} of {self.steps}, loss {self.loss:.2f}, about {left:.0f} s left",
                *gain_lines(self.gains, self.screen.width)]

    def run(self, seed: int) -> None:
        """Trains, and shows how it goes: drawn again in place, or a line for each look."""
        live, looks, drawn = Redrawn(self.screen), [self.steps * i // LOOKS for i in range(1, LOOKS + 1)], 0.0
        self.start = time.perf_counter()
        for loss in train_nano(self.model, self.world, self.pipe.schedule_config, self.steps, seed, taught=True):
            self.done += 1
            self.loss = loss if self.done == 1 else 0.9 * self.loss + 0.1 * loss
            looked = self.done in looks
            if looked:
                self.look()
            if looked or time.perf_counter() - drawn > EVERY:
                live.show(self.lines())
                drawn = time.perf_counter()
            if looked and not self.screen.codes:
                told = ", ".join(f"{kind} {_shown(gain)}" for kind, gain in self.gains.items())
                self.say(f"step {self.done} of {self.steps}, loss {self.loss:.2f}, gains: {told}")
        live.clear()


def gain_lines(gains: dict[str, float], width: int) -> list[str]:
    """A bar for each kind of word; its length grows with the logarithm of the gain, from 0.001 on."""
    room = max(1, min(30, width - 22))
    lines = []
    for kind, gain in gains.items():
        share = (torch.tensor(max(gain, 1e-3)).log10().item() + 3) / 3
        lines.append(f"{kind:10s} {'=' * round(room * min(1.0, share)):{room}s} {_shown(gain)}")
    return lines


def train_and_show(pipe: Pipeline, seed: int, seconds: int | float, out: Path, made: list[Path], screen: Screen,
                   say: Say) -> None:
    """Trains a fresh network for about so many seconds, draws what it makes, and says what it has learnt."""
    world, model = nano_world(pipe.text), new_nano(seed)
    training = Training(pipe, world, model, screen, say)
    count, layers = sum(p.numel() for p in model.parameters()), NANO_TRANSFORMER.num_layers
    say(f"A transformer of {layers} blocks with {count:,} random weights learns from {CLIPS - HELD} clips of a nano "
        f"world. Untrained, it makes of \"{ASKED[0]}\" what {out / 'before.png'} shows.")
    before = time.perf_counter()
    clip = training.look()
    a_look = time.perf_counter() - before
    show_clip_here(clip, pipe.fps, screen)
    made.append(write_strip(out / "before.png", clip))
    training.steps = steps_for(seconds, step_seconds(pipe, world, seed), a_look)
    say(f"Now it trains for {training.steps} steps. How well does it hear a word? Exchange it in the captions of clips "
        f"that are held back, and see how much the loss rises: the gain. Near 0, the word says nothing to the network; "
        f"above {HEARD} it is heard.")
    training.run(seed)
    clips = nano_clips(pipe, model, ASKED, 10)
    say(f"After {training.steps} steps, the same noise and caption give {out / 'trained.mp4'}.")
    show_clip_here(clips[0], pipe.fps, screen)
    _write(clips[0], pipe.fps, out / "trained", made)
    heard = [kind for kind, gain in training.gains.items() if gain > HEARD]
    say(f"It hears {_and(heard)}. {obeyed_sentence(clips)}")


def nano_clips(pipe: Pipeline, model: ExpertTransformer, prompts: tuple[str, ...],
             steps: int) -> Float[Tensor, "b t h w 3"]:
    """Clips that a network of the nano world makes for the prompts, in 0..1."""
    return pipe.decode(nano_sampled(pipe, model, prompts, steps=steps))


def step_seconds(pipe: Pipeline, world: NanoWorld, seed: int) -> float:
    """Seconds of one training step here, by a few steps of a network that is thrown away."""
    trial = train_nano(new_nano(seed), world, pipe.schedule_config, TRIAL, seed, taught=True)
    next(trial)
    start = time.perf_counter()
    count = sum(1 for _ in islice(trial, TRIAL - 1))
    return (time.perf_counter() - start) / count


def steps_for(seconds: int | float, a_step: int | float, a_look: int | float) -> int:
    """Training steps that fit into the time beside the looks; a few at least."""
    return max(FEWEST, int((seconds - LOOKS * a_look) / a_step))


def obeyed_sentence(clips: Float[Tensor, "b t h w 3"]) -> str:
    """How many of the clips for `ASKED` the oracle reads as asked, by kind of word."""
    verdicts = [matches(read(clip), parse_caption(words)) for clip, words in zip(clips, ASKED)]
    counts = [f"{kind} in {sum(verdict[kind] for verdict in verdicts)}" for kind in KINDS]
    return f"Of {len(ASKED)} clips, one a caption, the oracle reads as asked: {_and(counts)}."


def _shown(gain: float) -> str:
    return f"{gain:z.3f}"


def _and(words: list[str]) -> str:
    return "no word yet" if not words else words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
