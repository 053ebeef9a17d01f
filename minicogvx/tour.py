"""What `minicogvx tour` shows: a clip of the shipped model, and a training of the nano world to watch."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
TRIAL = 6  # training steps by which the speed is measured; the first of them does not count
LOOKS = 8  # at the gains and at a clip, during a training; fewer where they would take more than a third of the time
FEWEST = 60  # training steps: with fewer, a word other than the background's is hardly ever heard
EVERY = 0.2  # seconds between two progress lines
MEASURING = "Measuring how fast this machine trains ..."
HEARD = 0.01  # a gain above which a word counts as heard, as in notebook 09


@contextlib.contextmanager
def waiting(what: str, screen: Screen, say: Say | None = None) -> Iterator[Redrawn]:
    """Shows what the program is at, until it is done; where a line cannot be drawn again, `say` prints it."""
    live = Redrawn(screen)
    live.show([what])
    if say and not screen.codes:
        say(what)
    yield live
    live.clear()


def show_clip_here(video: Float[Tensor, "t h w 3"], fps: int | float, screen: Screen) -> None:
    """Plays a clip and leaves a few of its frames, where there is a terminal."""
    play(video, fps, screen)
    for line in frames_as_text(video, screen):
        put(line + "\n")


def first_clip(pipe: Pipeline, caption: str, seed: int, out: Path, made: list[Path], screen: Screen, say: Say) -> None:
    """Makes a clip of the caption, draws it, and says what the oracle reads. `made` gets the files that are written."""
    with waiting(f"removing noise: step 0 of {STEPS}", screen) as live:
        video = pipe(caption, seed=seed, num_inference_steps=STEPS,
                     on_step=lambda done, total: live.show([f"removing noise: step {done} of {total}"]))
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


@dataclass(frozen=True)
class Plan:
    """How long a training is, in steps, looks, and seconds that both take."""

    steps: int
    looks: int
    seconds: int | float


def plan_for(seconds: int | float, a_step: int | float, a_look: int | float) -> Plan:
    """As many steps as fit beside the looks, which take at most a third of the time; at least one and `FEWEST`."""
    looks = min(LOOKS, max(1, int(max(seconds, FEWEST * a_step) / 3 / a_look)))
    steps = max(FEWEST, int((seconds - looks * a_look) / a_step))
    return Plan(steps, looks, steps * a_step + looks * a_look)


@dataclass
class Training:
    """A training of the nano world, as far as it is."""

    pipe: Pipeline
    world: NanoWorld
    model: ExpertTransformer
    screen: Screen
    say: Say
    done: int = 0  # steps
    loss: float = 0.0
    gains: dict[str, float] = field(default_factory=dict)
    frames: list[str] = field(default_factory=list)  # lines of the last clip

    def look(self) -> Float[Tensor, "t h w 3"]:
        """Measures the gains, and makes the first caption's clip as the model would now."""
        self.gains = word_gains(nano_losses(self.model, self.world, self.pipe.schedule))
        clip = nano_clips(self.pipe, self.model, ASKED[:1], SKETCH_STEPS)[0]
        self.frames = frames_as_text(clip, self.screen)
        return clip

    def plan(self, seconds: int | float, seed: int, live: Redrawn) -> Plan:
        """Measures a look, now that one was taken, and the steps of a network that is thrown away."""
        start = time.perf_counter()
        self.look()
        times = [time.perf_counter()]
        for i, _ in enumerate(train_nano(new_nano(seed), self.world, self.pipe.schedule_config, TRIAL, seed,
                                         taught=True), 1):
            live.show([f"{MEASURING} step {i} of {TRIAL}"])
            times.append(time.perf_counter())
        steps = [after - before for before, after in zip(times[1:], times[2:])]
        return plan_for(seconds, statistics.median(steps), times[0] - start)

    def run(self, plan: Plan, seed: int) -> None:
        """Trains, and shows how it goes: drawn again in place, or a line for each look. The last gains remain."""
        live, looks, drawn = Redrawn(self.screen), [plan.steps * i // plan.looks for i in range(1, plan.looks + 1)], 0.0
        start = time.perf_counter()
        for loss in train_nano(self.model, self.world, self.pipe.schedule_config, plan.steps, seed, taught=True):
            self.done += 1
            self.loss = loss if self.done == 1 else 0.9 * self.loss + 0.1 * loss
            at, passed = f"step {self.done} of {plan.steps}", time.perf_counter() - start
            if self.done in looks:
                live.show(self.lines(f"{at}, taking a look ..."))
                self.look()
            if self.done in looks or time.perf_counter() - drawn > EVERY:
                pace = passed / self.done if self.done > looks[0] else plan.seconds / plan.steps
                live.show(self.lines(f"{at}, loss {self.loss:.2f}, about {pace * (plan.steps - self.done):.0f} s left"))
                drawn = time.perf_counter()
            if self.done in looks and not self.screen.codes:
                told = ", ".join(f"{kind} {_shown(gain)}" for kind, gain in self.gains.items())
                self.say(f"{at}, loss {self.loss:.2f}, gains: {told}")
        live.show(gain_lines(self.gains, self.screen.width))

    def lines(self, status: str) -> list[str]:
        """What is drawn while it runs."""
        return [*self.frames, status, *gain_lines(self.gains, self.screen.width)]


def gain_lines(gains: dict[str, float], width: int) -> list[str]:
    """A heading, and a bar for each kind of word; its length grows with the logarithm of the gain, from 0.001 on."""
    room = max(1, min(30, width - 25))
    lines = [f"gain in loss (heard: above {HEARD})"]
    for kind, gain in gains.items():
        share = (torch.tensor(max(gain, 1e-3)).log10().item() + 3) / 3
        bar = "=" * round(room * min(1.0, share))
        lines.append(f"{kind:10s} {bar:{room}s} {_shown(gain)}{' heard' * (gain > HEARD)}")
    return lines


def train_and_show(pipe: Pipeline, seed: int, seconds: int | float, out: Path, made: list[Path], screen: Screen,
                   say: Say) -> None:
    """Trains a fresh network for about so many seconds, draws what it makes, and says what it has learnt."""
    with waiting("Encoding the captions of a nano world ...", screen, say):
        world, model = nano_world(pipe.text), new_nano(seed)
    training = Training(pipe, world, model, screen, say)
    count, layers = sum(p.numel() for p in model.parameters()), NANO_TRANSFORMER.num_layers
    say(f"A transformer of {layers} blocks with {count:,} random weights learns from {CLIPS - HELD} clips of a nano "
        f"world. Untrained, it makes of \"{ASKED[0]}\" what {out / 'before.png'} shows.")
    with waiting("Making that clip ...", screen, say):
        clip = training.look()
    show_clip_here(clip, pipe.fps, screen)
    made.append(write_strip(out / "before.png", clip))
    with waiting(MEASURING, screen, say) as live:
        plan = training.plan(seconds, seed, live)
    if plan.seconds > seconds and plan.steps == FEWEST:
        say(f"As slow or busy as this machine is now, {FEWEST} steps do not fit into {seconds:g} s. Fewer would show "
            f"little, so it takes {FEWEST} all the same.")
    say(f"Now it trains for {plan.steps} steps, about {plan.seconds:.0f} s. How well does it hear a word? Exchange it "
        f"in the captions of clips that are held back, and see how much the loss rises: the gain. Near 0, the word "
        f"says nothing to the network; above {HEARD} it is heard.")
    training.run(plan, seed)
    with waiting(f"Making {len(ASKED)} clips with it ...", screen, say):
        clips = nano_clips(pipe, model, ASKED, 10)
    say(f"After {plan.steps} steps, the same noise and caption give {out / 'trained.mp4'}.")
    show_clip_here(clips[0], pipe.fps, screen)
    _write(clips[0], pipe.fps, out / "trained", made)
    heard = [kind for kind, gain in training.gains.items() if gain > HEARD]
    say(f"Kinds of words that it hears: {', '.join(heard) or 'none yet'}. {obeyed_sentence(clips)}")


def nano_clips(pipe: Pipeline, model: ExpertTransformer, prompts: tuple[str, ...],
               steps: int) -> Float[Tensor, "b t h w 3"]:
    """Clips that a network of the nano world makes for the prompts, in 0..1."""
    return pipe.decode(nano_sampled(pipe, model, prompts, steps=steps))


def obeyed_sentence(clips: Float[Tensor, "b t h w 3"]) -> str:
    """How many of the clips for `ASKED` the oracle reads as asked, by kind of word."""
    verdicts = [matches(read(clip), parse_caption(words)) for clip, words in zip(clips, ASKED)]
    counts = [f"{kind} {sum(verdict[kind] for verdict in verdicts)} of {len(ASKED)}" for kind in KINDS]
    return f"Of its clips for {len(ASKED)} captions the oracle reads as asked: {', '.join(counts)}."


def _shown(gain: float) -> str:
    return f"{gain:z.3f}"
