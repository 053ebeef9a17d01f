"""What all studies share: when a variant is measured, and the model that its training leaves."""

import copy
from collections.abc import Callable, Mapping

import torch

from minicogvx.data.world.captions import vocabulary
from minicogvx.engine.ranks import Ranks
from minicogvx.presets import ScheduleConfig, TextConfig, TransformerConfig
from minicogvx.text import TextEncoder
from minicogvx.training.local_text import random_text
from minicogvx.training.loop import Task
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.start import random_transformer
from minicogvx.training.transformer import TransformerTask
from minicogvx.transformer.model import ExpertTransformer

OnStep = Callable[[str, int], None]  # called with a variant's name and the steps done


def check_run(variants: Mapping, steps: int, batch_size: int, every: int) -> None:
    """Raises ValueError, in one sentence, for settings that cannot be compared."""
    if not variants:
        raise ValueError("variants is empty; give at least one, such as {'rope': config}")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")


class Measuring:
    """A watcher: calls `measure` every so many steps, and at the end."""

    every = 1

    def __init__(self, name: str, steps: int, often: int, measure: Callable[[int], None], on_step: OnStep | None = None,
                 before: int = 0):
        """`steps`: of the whole run, in which `before` were done in earlier stages."""
        self.name, self.steps, self.often, self.measure = name, steps, often, measure
        self.on_step, self.before = on_step, before

    def __call__(self, step: int, task: Task) -> dict[str, float]:
        """Nothing to log."""
        done = self.before + step
        if self.on_step:
            self.on_step(self.name, done)
        if done % self.often == 0 or done == self.steps:
            self.measure(done)
        return {}


def seeded_task(config: TransformerConfig, training: TransformerTraining, text: TextConfig, schedule: ScheduleConfig,
                device: torch.device, dtype: torch.dtype, seed: int, feature_variance: float = 1.0) -> TransformerTask:
    """A transformer and a text encoder with random weights: those of the text encoder are the same for every config.

    `feature_variance`: see `TransformerTask`.
    """
    torch.manual_seed(seed)
    encoder = random_text(text, vocabulary(), config.max_text_seq_length, training)
    torch.manual_seed(seed)
    model = random_transformer(config, training)
    return TransformerTask(model, encoder, schedule, training, Ranks(device=device), dtype, trains_text=True,
                           feature_variance=feature_variance)


def trained_model(task: TransformerTask) -> tuple[ExpertTransformer, TextEncoder]:
    """A float32 copy of the transformer that was trained and of its text encoder: the averages, if there are any."""
    model = ExpertTransformer(task.model.config).to(task.ranks.device)
    model.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in task.result().items()
                           if name.startswith("transformer.")})
    with task.averaged_weights():
        text = TextEncoder(task.text.tokenizer, copy.deepcopy(task.text.encoder), task.text.max_length)
    return model.eval(), text
