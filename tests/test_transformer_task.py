"""A step of the transformer's trainer against plain PyTorch, however it is computed; and its options one by one.

Which clips, captions and noise a step has: test_batches.py. The loop around it: test_loop.py.
"""

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from minicogvx.data.world.captions import evaluation_caption
from minicogvx.data.world.features import FEATURES
from minicogvx.data.world.scenes import sample_scenes
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.engine.optim import warmup_cosine
from minicogvx.engine.ranks import Ranks, leave
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.training import validation
from minicogvx.training.alignment import Alignment
from minicogvx.training.batches import Pass, Steps
from minicogvx.training.foreground import cell_weights
from minicogvx.training.loop import fit
from minicogvx.training.routing import kept_tokens, skipped_blocks
from minicogvx.training.run import Keep, Run
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.train import learning_rate
from minicogvx.training.transformer import TransformerTask, open_gates, recomputes
from minicogvx.training.validation import SwapGain, Validation
from minicogvx.transformer.layout import DenseLayout
from minicogvx.transformer.model import ExpertTransformer
from tests.ranks import whole_weights
from tests.tiny import TINY, tiny_text, tiny_transformer
from tests.trained import further, take_steps, world_clips

MIXED = TransformerTraining((Stage(3, 8, images=0.25),), learning_rate=1e-3, weight_decay=0.1, timesteps="stratified")
PACKED = replace(MIXED, stages=(Stage(3, 2, images=0.5, pack=200),))
VARIANTS = {
    "one pass": MIXED, "four passes": replace(MIXED, accumulate=4), "packed": PACKED,
    "recomputed": replace(MIXED, gradient_checkpointing=True), "in shards": replace(MIXED, sharding="fsdp"),
    "offloaded": replace(MIXED, accumulate=4, sharding="fsdp", offload=True),
    "packed, offloaded": replace(PACKED, gradient_checkpointing=True, sharding="fsdp", offload=True),
}


@pytest.fixture(scope="module")
def world():
    """Eight clips of the shapes world."""
    return world_clips()


def begin(training: TransformerTraining, **options) -> TransformerTask:
    """The tiny transformer, trained with its text encoder."""
    return TransformerTask(tiny_transformer(), tiny_text(), TINY.schedule, training, trains_text=True, **options)


def steps_of(clips, training: TransformerTraining) -> Steps:
    return Steps(clips, training, TINY.transformer)


def plain_steps(data: Steps, text_learns: bool = True) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Three steps in plain PyTorch, one clip at a time: losses and gradient norms, and the weights after them."""
    training, model, text = data.training, tiny_transformer().train(), tiny_text()
    learning = {f"transformer.{name}": p for name, p in model.named_parameters()}
    learning |= {f"text.{name}": p for name, p in text.encoder.named_parameters()} if text_learns else {}
    optimizer = torch.optim.AdamW(learning.values(), training.rate(), (0.9, 0.95), 1e-8, training.weight_decay)
    abar, rows = NoiseSchedule(TINY.schedule).alphas_cumprod.float(), []
    for step in range(3):
        loss = torch.zeros(())
        for one in data[step]:
            for clip in one.examples:
                a, s = abar[clip.timestep].sqrt(), (1 - abar[clip.timestep]).sqrt()
                x0, noise = clip.latents[None], clip.noise[None]
                v = model(a * x0 + s * noise, torch.tensor([clip.timestep]), text.encode([clip.caption]))
                loss = loss + (v - (a * noise - s * x0)).square().mean() / one.total
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learning.values(), training.clip)
        optimizer.step()
        optimizer.zero_grad()
        rows.append((loss.item(), norm.item()))
    return rows, {name: p.detach() for name, p in learning.items()}


def check(task: TransformerTask, rows, plain, weights) -> None:
    """Losses, norms and weights are those of plain PyTorch, each tensor to a fiftieth of the way that it has gone."""
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(plain), rtol=1e-3, atol=1e-5)
    start = {f"transformer.{name}": p for name, p in tiny_transformer().named_parameters()}
    start |= {f"text.{name}": p for name, p in tiny_text().encoder.named_parameters()}
    learnt = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in task.result().items()}
    assert learnt.keys() == weights.keys()
    for name, p in weights.items():
        way = (p - start[name]).norm()
        assert (learnt[name] - p).norm() <= 0.02 * way + 1e-6, name


def test_a_step_is_that_of_plain_pytorch_however_it_is_computed(world, subtests):
    """Clips and pictures in one batch; in passes, packs or shards, also in CPU memory; a frozen text encoder or not."""
    plain = {}
    for name, training in VARIANTS.items():
        with subtests.test(name):
            data, key = steps_of(world, training), training.stages
            plain[key] = plain[key] if key in plain else plain_steps(data)
            task = begin(training)
            try:
                check(task, take_steps(task, data), *plain[key])
                if training.sharding == "fsdp":
                    assert all(isinstance(p, DTensor) and p.device.type == "cpu" for p in task.model.parameters())
            finally:
                leave()
    with subtests.test("frozen text encoder"):
        data, task = steps_of(world, MIXED), further(MIXED)
        check(task, take_steps(task, data), *plain_steps(data, text_learns=False))
        frozen = tiny_text().encoder.state_dict()
        assert all(torch.equal(p, frozen[name]) for name, p in task.text.encoder.state_dict().items())


def compare_compiled() -> None:
    """Without a C++ compiler, but as torch.compile traces it."""
    real = torch.compile
    torch.compile = lambda model: real(model, backend="eager")
    data = steps_of(world_clips(), MIXED)
    task = begin(replace(MIXED, compile=True))
    check(task, take_steps(task, data), *plain_steps(data))
    training = replace(MIXED, stages=(Stage(3, 8, images=0.25, routed=0.5),))
    rows = [take_steps(routed(replace(training, compile=compiled)), steps_of(world_clips(), training))
            for compiled in (False, True)]
    torch.testing.assert_close(*map(torch.tensor, rows), rtol=1e-3, atol=1e-5)


def test_a_compiled_transformer_takes_the_same_steps():
    """In a process of its own: the shape checks of this one cannot be compiled."""
    done = subprocess.run([sys.executable, "-m", "tests.test_transformer_task"], capture_output=True, text=True,
                          timeout=300, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]


def test_in_16_bits_the_weights_that_learn_are_float32(world):
    """Steps of 1e-5 would be lost in bfloat16."""
    small = replace(MIXED, learning_rate=1e-5, weight_decay=0.0)
    tasks = [begin(small, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    exact, rounded = (take_steps(task, steps_of(world, small)) for task in tasks)
    torch.testing.assert_close(torch.tensor(rounded), torch.tensor(exact), rtol=0.1, atol=0.0)
    start, task = dict(tiny_transformer().named_parameters()), tasks[1]
    for name, p in task.model.named_parameters():
        learning = task.weights.learning[f"transformer.{name}"]
        assert p.dtype == torch.bfloat16 and learning.dtype == torch.float32
        assert torch.equal(p, learning.bfloat16())
        assert (learning - start[name]).abs().max() <= 1e-4, "of the weights before they were rounded"
    assert next(task.text.encoder.parameters()).dtype == torch.float32
    moved = task.weights.learning["transformer.proj_out.weight"] - start["proj_out.weight"]
    assert 1e-5 < moved.abs().median() < 4e-5


def test_in_16_bits_a_text_encoder_that_learns_has_products_in_16_bits_and_gradients_near_float32(world):
    gradients, dtypes = [], set()
    for dtype in (torch.float32, torch.bfloat16):
        task, seen = begin(MIXED, dtype=torch.float32), set()
        task.dtype = dtype  # the transformer's own weights stay as they are, so that the encoder alone differs
        task.model.to(dtype)
        for module in task.text.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda module, x, y, seen=seen: seen.add(y.dtype))
        for batch in Steps(world, MIXED, TINY.transformer)[0]:
            task.losses(batch).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in task.text.encoder.named_parameters()})
        dtypes |= {(dtype, each) for each in seen}
    assert dtypes == {(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)}
    exact, found = gradients
    assert all(each.dtype == torch.float32 for each in found.values())
    for name, each in exact.items():
        assert (found[name] - each).norm() < 0.1 * each.norm() + 1e-6, name


def test_the_result_is_the_moving_average_with_which_is_measured(world):
    training = replace(MIXED, ema_decay=0.5)
    task, data = begin(training, dtype=torch.bfloat16), steps_of(world, training)
    expected = task.weights.copies()
    for step in range(3):
        take_steps(task, data, [step])
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * task.weights.learning[name].detach()
                    for name, value in expected.items()}
    assert task.result().keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(task.result()[name], value)
    name, before = "transformer.proj_out.weight", task.model.proj_out.weight.clone()
    with task.averaged_weights():
        assert torch.equal(task.model.proj_out.weight, task.average[name].bfloat16())
        assert not (task.model.training or task.text.encoder.training)
    assert torch.equal(task.model.proj_out.weight, before) and not torch.equal(task.average[name].bfloat16(), before)
    assert task.model.training and task.text.encoder.training


def test_training_goes_on_from_its_own_weights_after_the_average_was_measured(world):
    """FSDP2 keeps the outermost weights that it gathered for a forward pass; after it they are others."""
    training = replace(MIXED, ema_decay=0.5, sharding="fsdp")
    task, data = begin(training), steps_of(world, training)
    try:
        take_steps(task, data)
        with torch.no_grad():
            before = task.losses(data[0][0])
            with task.averaged_weights():
                average = task.losses(data[0][0])
            after = task.losses(data[0][0])
        assert torch.equal(before, after) and not torch.allclose(before, average, rtol=1e-4)
    finally:
        leave()


def test_in_16_bits_the_gradients_of_several_passes_add_up_in_float32(world):
    training = replace(MIXED, accumulate=4)
    task, passes, each = begin(training, dtype=torch.bfloat16), steps_of(world, training)[0], []
    name = "transformer.proj_out.weight"
    for one in passes:
        task.backward(one, 0.0)
        task.weights.take_gradients()
        each.append(task.weights.learning[name].grad.clone())
        for p in task.weights.learning.values():
            p.grad = None
    for one in passes:
        task.backward(one, 0.0, one is passes[-1])
    task.weights.take_gradients()
    assert len(each) == 4 and torch.equal(task.weights.learning[name].grad, sum(each))
    assert all(grad.equal(grad.bfloat16().float()) for grad in each)


def test_it_learns_a_batch_by_heart_and_muon_does_too(world, subtests):
    for optimizer in ("adamw", "muon"):
        with subtests.test(optimizer):
            training = replace(MIXED, learning_rate=3e-3, optimizer=optimizer, muon_factor=3.0)
            losses = [loss for loss, _ in take_steps(begin(training), steps_of(world, training), [0] * 25)]
            assert losses[-1] < 0.7 * losses[0]


def test_a_dropped_caption_has_the_features_that_guidance_compares_with(world):
    training = replace(MIXED, text_dropout=0.5)
    one = steps_of(world, training)[0][-1]
    dropped = torch.tensor([not words for words in one.captions])
    assert 0 < dropped.sum() < len(dropped)
    for zero_text in (False, True):
        features = begin(training, zero_text=zero_text).text_features(one)
        empty = tiny_text().encode([""])[0] * (not zero_text)
        assert torch.allclose(features[dropped], empty.expand_as(features[dropped]), atol=1e-6)
        assert features[~dropped].abs().max() > 0


def test_large_models_are_recomputed_by_default():
    with torch.device("meta"):
        models = ExpertTransformer(TINY.transformer), ExpertTransformer(preset("2b").transformer)
    assert [recomputes(model, MIXED) for model in models] == [False, True]
    for asked in (True, False):
        assert {recomputes(model, replace(MIXED, gradient_checkpointing=asked)) for model in models} == {asked}


def test_a_run_moves_between_whole_weights_and_shards_and_back(world, tmp_path, subtests):
    """And a checkpoint, in whatever form, holds nothing but what learns."""
    def run(training: TransformerTraining, steps: int, folder: Path | None = None, **changed) -> dict:
        task = further(replace(training, **changed))
        try:
            fit(task, steps_of(world, training), Run("run", steps, Keep(folder, 1, log_every=1, progress=False)),
                lambda step: 1.0)
            return whole_weights(task.model)
        finally:
            leave()

    for rank in (0, 2):
        with subtests.test(lora_rank=rank):
            training, folder = replace(MIXED, lora_rank=rank), tmp_path / str(rank)
            whole = run(training, 3)
            run(training, 1, folder)
            run(training, 2, folder, sharding="fsdp", offload=True)
            moved = run(training, 3, folder)
            assert all(torch.allclose(whole[name], moved[name], atol=1e-4) for name in whole)
            assert [json.loads(row)["step"] for row in (folder / "run.jsonl").open()] == [0, 1, 2]
            paths = sorted((folder / "checkpoints").iterdir())
            assert [path.name for path in paths] == ["run_00000002", "run_00000003"]
            for path in paths if rank else ():
                names = json.loads((path / "checkpoint.json").read_text())["tensors"]
                assert len(names) == 4 * 16 and all("lora_" in name for name in names), "weights, step and two moments"


# ---- departures from the published training


def test_with_open_gates_every_kind_of_block_begins_as_the_identity_and_learns_at_once(subtests):
    for departure in ({}, {"modulation": "shared"}, {"modulation": "separate"}, {"attention": "factorised"}):
        with subtests.test(**departure):
            torch.manual_seed(0)
            model = ExpertTransformer(replace(TINY.transformer, **departure))
            open_gates(model)
            block, x, time = model.transformer_blocks[0], torch.randn(2, 5 + 48, 32), torch.randn(2, 8)
            y = block(x, time, DenseLayout(5, (3, 4, 4)))
            assert torch.equal(y, x)
            y.square().sum().backward()
            last = [part for name, part in block.named_modules() if name.endswith(("to_out.0", "net.2"))]
            assert len(last) == (3 if "attention" in departure else 4 if departure.get("modulation") == "separate"
                                 else 2)
            assert all(part.weight.grad.abs().max() > 0 for part in last)
            assert model.proj_out.weight.abs().max() == 0


def test_alignment_teaches_the_first_half_of_the_blocks_the_kinds_named_and_fades(world):
    torch.manual_seed(0)
    model = tiny_transformer(num_layers=4)
    alignment, features = Alignment(model, ("motion", "colour")), torch.rand(2, 3, 8, 8, FEATURES)
    losses = []
    for changed in (features, torch.cat([1 - features[..., :6], features[..., 6:]], -1), 1 - features):
        model(torch.ones(2, 4, 3, 8, 8), torch.tensor([1, 500]), torch.ones(2, 5, 16))
        losses.append(alignment(changed))
    assert losses[0] == losses[1] != losses[2], "the first six are shapes"
    losses[0].backward()
    assert [block.ff.net[2].weight.grad is not None for block in model.transformer_blocks] == [True, True, False, False]
    with pytest.raises(ValueError, match="no feature 'taste' to align with; the features are shape, motion, colour"):
        replace(MIXED, alignment_kinds=("taste",))

    gradients = {}
    for weight, accumulate, progress in ((0.0, 1, 0.0), (1.0, 1, 1.0), (1.0, 1, 0.0), (1.0, 4, 0.0)):
        training = replace(MIXED, alignment_weight=weight, accumulate=accumulate)
        task = begin(training, feature_variance=0.1)
        figures = [task.backward(one, progress) for one in steps_of(world, training)[0]]
        assert ("alignment" in figures[0]) == bool(weight)
        gradients[weight * (1 - progress), accumulate, weight] = task.model.transformer_blocks[0].ff.net[2].weight.grad
    none, faded, one, four = gradients.values()
    assert torch.allclose(none, faded, atol=1e-7) and not torch.allclose(none, one, atol=1e-4)
    assert torch.allclose(one, four, atol=1e-5)


def test_several_blocks_are_aligned_each_by_a_head_of_its_own(world):
    torch.manual_seed(0)
    features, given = torch.rand(2, 3, 8, 8, FEATURES), (torch.ones(2, 4, 3, 8, 8), torch.tensor([1, 500]),
                                                         torch.ones(2, 5, 16))
    model = tiny_transformer(num_layers=6)
    both, single = Alignment(model, blocks=(1, 3)), [Alignment(model, blocks=(block,)) for block in (1, 3)]
    for alone, head in zip(single, both.heads):
        alone.heads[0].load_state_dict(head.state_dict())
    model(*given)
    loss, each = both(features), [alone(features) for alone in single]
    assert loss.item() == pytest.approx((each[0].item() + each[1].item()) / 2) and each[0] != each[1]
    loss.backward()
    assert [block.ff.net[2].weight.grad is not None for block in model.transformer_blocks] == [True] * 4 + [False] * 2
    assert all(p.grad.abs().max() > 0 for p in both.heads.parameters())

    training = replace(MIXED, alignment_weight=1.0, alignment_blocks=(0, 1))
    for checkpointing in (False, True):
        task = begin(replace(training, gradient_checkpointing=checkpointing))
        take_steps(task, steps_of(world, training), [0, 1])
    assert sum("alignment.heads.1" in name for name in task.weights.learning) == 4


def test_cells_of_objects_count_more_where_there_is_little_noise_in_training_and_nowhere_else(world):
    features = torch.zeros(2, 1, 1, 2, FEATURES)
    features[:, 0, 0, 1, 3] = 0.1  # a shape covers a tenth of the second cell
    features[:, 0, 0, 0, 7] = 1.0  # a motion alone is no cover
    weights = cell_weights(features, torch.tensor([0.9, 0.5, 0.0]), torch.tensor([1, 2]), 4.0)
    assert weights.shape == (2, 1, 1, 1, 2) and weights.flatten().tolist() == [1, 3, 1, 1]

    training = replace(MIXED, alignment_weight=1.0)
    plain, weighted = begin(training), begin(replace(training, foreground_weight=4.0))
    one = steps_of(world, training)[0][0]
    assert torch.equal(plain.losses(one), weighted.losses(one)), "what is watched stays comparable"
    first, second = (task.backward(one, 0.0)["loss"] for task in (plain, weighted))
    assert first < second < 5 * first
    with pytest.raises(ValueError, match="foreground_weight is 4.0 and alignment_weight 0"):
        replace(MIXED, foreground_weight=4.0)


def test_the_alignment_decays_stays_or_ends(world):
    training = replace(MIXED, alignment_weight=2.0)
    course = {}
    for schedule in ("decay", "constant"):
        for end in (1.0, 0.5):
            changed = replace(training, alignment_schedule=schedule, alignment_end=end)
            course[schedule, end] = [changed.alignment_at(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert course == {("decay", 1.0): [2.0, 1.5, 1.0, 0.5, 0.0], ("decay", 0.5): [2.0, 1.0, 0.0, 0.0, 0.0],
                      ("constant", 1.0): [2.0] * 4 + [0.0], ("constant", 0.5): [2.0, 2.0, 0.0, 0.0, 0.0]}
    def gradient(progress: float, **changed) -> torch.Tensor:
        task = begin(replace(training, **changed))
        for one in steps_of(world, training)[0]:
            task.backward(one, progress)
        return task.model.transformer_blocks[0].ff.net[2].weight.grad

    stays = {"alignment_schedule": "constant", "alignment_end": 0.5}
    assert torch.equal(gradient(0.4, **stays), gradient(0.0))
    assert torch.equal(gradient(0.5, **stays), gradient(1.0)) and not torch.equal(gradient(0.0), gradient(0.5))


def test_the_learning_rate_follows_the_schedule_named():
    training = replace(MIXED, stages=(Stage(50), Stage(50, learning_rate_factor=0.5)), warmup=10)
    cosine, wsd = (learning_rate(begin(replace(training, schedule=name, cooldown=0.3)))
                   for name in ("cosine", "wsd"))
    assert [cosine(step) for step in (4, 60)] == [0.5, 0.5 * warmup_cosine(60, 100, 10)]
    assert [wsd(step) for step in (4, 10, 49, 50, 69)] == [0.5, 1.0, 1.0, 0.5, 0.5] and wsd(70) < 0.5
    assert wsd(99) == pytest.approx(0.5 * 0.02)


def plainly_routed(model: ExpertTransformer, batch: Pass, training: TransformerTraining,
                   text: torch.Tensor) -> torch.Tensor:
    """The losses of a pass whose clips go one by one, in which the skipped tokens are kept by hand."""
    schedule, losses, skipped = NoiseSchedule(TINY.schedule), [], skipped_blocks(training, model.config)
    for clip, words in zip(batch.examples, text):
        x0, noise, t = clip.latents[None], clip.noise[None], torch.tensor([clip.timestep])
        layout = model.layout(model.grid(x0), text.shape[1], torch.device("cpu"))
        t_emb = F.silu(model.time_embedding(t))
        x = model.patch_embed(schedule.add_noise(x0, noise, t), words[None], None)
        places = [*range(text.shape[1]), *(text.shape[1] + clip.kept).tolist()]
        few = DenseLayout(text.shape[1], (len(clip.kept), 1, 1), rope=layout.rope[places])
        for number, block in enumerate(model.transformer_blocks):
            if number in skipped:
                after = x.clone()
                after[:, places] = block(x[:, places], t_emb, few)
                x = after
            else:
                x = block(x, t_emb, layout)
        x = model.norm_out(model.norm_final(layout.video(x)), t_emb, layout)
        losses.append(diffusion_loss(layout.unpatchify(model.proj_out(x)), x0, noise, t, schedule))
    return torch.cat(losses)


def test_routed_tokens_skip_the_middle_blocks_in_training_alone(world):
    training = replace(MIXED, stages=(Stage(3, 8, images=0.25, routed=0.75),), routed_blocks=(1, 2))
    task, data = routed(training), steps_of(world, training)
    for one in data[0]:
        text = task.text_features(one)
        with task.routing.keeping(one.stack("kept")):
            losses = task.losses(one)
        plain = plainly_routed(task.model, one, training, text)
        torch.testing.assert_close(losses, plain, rtol=1e-4, atol=1e-5)
        found, expected = (torch.autograd.grad(loss.sum(), [*task.model.parameters()], retain_graph=True)
                           for loss in (losses, plain))
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        whole = task.losses(one)
        assert not torch.allclose(whole, losses, rtol=1e-3)
        examples = [replace(example, kept=None) for example in one.examples]
        assert torch.equal(whole, task.losses(replace(one, examples=examples))), "only within `keeping`"
    task.backward(one, 0.0)
    assert torch.equal(whole, task.losses(one)), "not after the backward pass: samples and measurements see all tokens"
    with pytest.raises(ZeroDivisionError), task.routing.keeping(one.stack("kept")):
        1 / 0
    assert task.routing.kept is None


def routed(training: TransformerTraining, **fields) -> TransformerTask:
    """The tiny transformer with four blocks."""
    model = tiny_transformer(num_layers=4, **fields)
    return TransformerTask(model, tiny_text(), TINY.schedule, training, trains_text=True)


def test_a_step_with_routed_tokens_is_the_same_however_it_is_computed(world, subtests):
    training = replace(MIXED, stages=(Stage(3, 8, images=0.25, routed=0.5),))
    assert skipped_blocks(training, replace(TINY.transformer, num_layers=4)) == range(2, 3)
    for fields in ({}, {"value_residual": True}):
        expected, data = None, steps_of(world, training)
        for changed in ({}, {"accumulate": 4}, {"gradient_checkpointing": True}, {"alignment_weight": 0.1},
                        {"sharding": "fsdp", "accumulate": 4, "gradient_checkpointing": True}):
            with subtests.test(**fields, **changed):
                task = routed(replace(training, **changed), **fields)
                try:
                    rows = torch.tensor(take_steps(task, steps_of(world, task.training)))
                finally:
                    leave()
                if expected is None:
                    expected = rows
                elif "alignment_weight" not in changed:
                    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-5)
    assert {len(one.examples[0].kept) for one in data[0]} == {8, 24}


def test_each_clip_keeps_other_tokens_in_each_step_and_nothing_else_that_is_drawn_changes(world):
    plain, training = steps_of(world, MIXED), replace(MIXED, stages=(Stage(3, 8, images=0.25, routed=0.7),))
    data, kept = steps_of(world, training), []
    for step in range(3):
        for one, other in zip(plain[step], data[step]):
            for a, b in zip(one.examples, other.examples):
                assert a.kept is None and (a.caption, a.timestep) == (b.caption, b.timestep)
                assert torch.equal(a.noise, b.noise) and torch.equal(a.latents, b.latents)
                tokens = b.latents.shape[1] * 16
                assert len(b.kept) == tokens - int(0.7 * tokens) == len(set(b.kept.tolist()))
                assert 0 <= b.kept.min() and b.kept.max() < tokens
                kept.append(tuple(b.kept.tolist()))
    assert len(set(kept)) == 24, "those of pictures, too: 5 of 16 tokens"
    often = torch.zeros(48)
    for number in range(2000):
        often[kept_tokens(48, 0.75, torch.Generator().manual_seed(number))] += 1
    assert 400 < often.min() and often.max() < 600, "500 each: no token is preferred"


def test_a_stage_with_fewer_text_slots_has_captions_that_fit(world):
    training = replace(MIXED, stages=(Stage(2, 8, text_slots=16), Stage(1, 8)), text_dropout=0.3)
    data, plain = steps_of(world, training), steps_of(world, replace(MIXED, text_dropout=0.3))
    task, lengths = begin(training), []
    task.model.register_forward_pre_hook(lambda model, given: lengths.append(given[2].shape[1]))
    take_steps(task, data)
    assert lengths == [16, 16, 32], "and the last stage as many as samples"
    for step in range(2):
        (brief,), pictures_too = data[step], [e for one in plain[step] for e in one.examples]
        assert all(len(words.split()) < 16 for words in brief.captions)
        assert sum(not words for words in brief.captions) == sum(not e.caption for e in pictures_too)
        ids = TextEncoder(task.text.tokenizer, task.text.encoder, 16).tokens(brief.captions)
        assert torch.equal(ids, task.text.tokens(brief.captions)[:, :16]) and (ids == 1).any(1).all()
        assert brief.tokens == sum(16 + 16 * e.latents.shape[1] for e in brief.examples)
    assert len({words for words in data[0][0].captions if words}) > 3
    gradients = torch.autograd.grad(task.losses(data[0][0]).sum(), [*task.text.encoder.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


# ---- what is watched


def test_validation_is_the_loss_of_the_average_at_each_timestep_with_fixed_noise(world):
    training = replace(MIXED, ema_decay=0.9, validate_every=1)
    task, watcher = begin(training), Validation(world, 1, most=4)
    take_steps(task, steps_of(world, training))
    before = torch.get_rng_state()
    found = watcher(3, task)
    assert found == watcher(3, task) and torch.equal(before, torch.get_rng_state())
    assert found["validation"] == pytest.approx(sum(found[f"loss_{t}"] for t in (100, 300, 500, 700, 900)) / 5)
    with task.averaged_weights():  # one rank's clips after another's are those of a single rank
        halves = [Validation(world, 1, Ranks(rank, 2), most=4).loss_at(task, 500) for rank in (0, 1)]
        teams = [Validation(world, 1, Ranks(rank, 4, context=2), most=4).own for rank in range(4)]
    assert teams == [range(2), range(2), range(2, 4), range(2, 4)]
    assert found["loss_500"] == pytest.approx(sum(halves) / 2)
    assert found["loss_500"] != pytest.approx(watcher.loss_at(task, 500), rel=1e-4), "of the weights themselves"
    with pytest.raises(ValueError, match="8 clips are held back; there must be at least one a rank"):
        Validation(world, 1, Ranks(0, 9))


def test_swapped_words_cost_nothing_where_words_are_not_read(world, monkeypatch):
    task, gain = begin(MIXED), SwapGain(world.scenes, world, 1)
    whole = gain(0, task)["swap_gain"]
    assert abs(whole) > 1e-6
    monkeypatch.setattr(validation, "AT_ONCE", 3)
    assert gain(0, task)["swap_gain"] == pytest.approx(whole, rel=1e-3), "however many at a time"
    encode = task.text.encode
    task.text.encode = lambda captions: 0 * encode(captions)
    assert gain(0, task)["swap_gain"] == 0


def test_the_other_words_are_of_one_kind():
    for scene in sample_scenes(40, 0, two_objects=0.5):
        for kind in validation.WORDS:
            other = validation.with_other_words(scene, kind)
            if kind == "background":
                assert other.background != scene.background and other.objects == scene.objects
                continue
            assert other.background == scene.background
            for mine, was in zip(other.objects, scene.objects, strict=True):
                assert getattr(mine, kind) != getattr(was, kind)
                assert replace(mine, **{kind: getattr(was, kind)}) == was
    with pytest.raises(ValueError, match="kind is 'size'; it must be one of shape, colour, motion, background"):
        validation.with_other_words(scene, "size")
    choices = {"shape": ("circle", "star"), "background": ("navy",)}
    star = sample_scenes(1, 0, two_objects=0.0, choices={"shape": ("star",)})[0]
    assert validation.with_other_words(star, "shape", choices).objects[0].shape == "circle"
    assert validation.with_other_words(star, "colour", choices) == validation.with_other_words(star, "colour")
    for kind, words, text in (("background", choices, "at least two"),
                              ("shape", {"shape": ("circle", "ring")}, "the scene has 'star'")):
        with pytest.raises(ValueError, match=text):
            validation.with_other_words(star, kind, words)


def test_each_kind_of_word_has_a_gain(world):
    task = begin(MIXED)
    alone = [replace(scene, objects=scene.objects[:1]) for scene in world.scenes]
    gains = {kind: validation.swap_gain(task.model, task.text, task.schedule, alone, world, torch.float32, kind=kind)
             for kind in validation.WORDS}
    assert len(set(gains.values())) == 4 and all(value != 0 for value in gains.values())


def test_a_bag_of_words_gains_nothing_when_two_objects_exchange_theirs(world):
    scenes = sample_scenes(len(world.scenes), 3, two_objects=1.0)
    for kind in ("shape", "colour", "motion"):
        for scene in scenes:
            other = validation.with_exchanged_words(scene, kind)
            assert [getattr(thing, kind) for thing in other.objects] == \
                [getattr(thing, kind) for thing in scene.objects][::-1]
            assert validation.with_exchanged_words(other, kind) == scene
            said, exchanged = (evaluation_caption(one, random.Random(0)) for one in (scene, other))
            if kind != "motion":  # a motion has several phrases
                assert Counter(said.split()) == Counter(exchanged.split())
    task = begin(MIXED)
    measure = partial(validation.swap_gain, task.model, task.text, task.schedule, scenes, world, torch.float32)
    assert measure(kind="colour", exchange=True) != 0
    encode = task.text.encode
    task.text.encode = lambda captions: encode(captions).mean(dim=1, keepdim=True).expand(-1, 32, -1)
    table = task.text.encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        table.zero_()
    assert abs(measure(kind="colour", exchange=True)) < 1e-6 < abs(measure(kind="colour"))
    for scene, kind, text in ((sample_scenes(1, 0, two_objects=0.0)[0], "shape", "the scene has 1 object;"),
                              (scenes[0], "background", "kind is 'background'")):
        with pytest.raises(ValueError, match=text):
            validation.with_exchanged_words(scene, kind)


if __name__ == "__main__":
    compare_compiled()
