"""The memory table: its arithmetic against real tensors, and its activations against the growth of a process."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from minicogvx import cli
from minicogvx.pipeline import Pipeline
from minicogvx.presets import preset
from minicogvx.text import TextEncoder
from minicogvx.training.lora import add_lora
from minicogvx.training.memory import (
    SHARDINGS,
    Inputs,
    activations_of,
    count_activations,
    inputs_for,
    memory,
    memory_of_lora,
)
from minicogvx.training.memory_generating import Generating, Part, generating
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE
from tests.tiny import TINY

CONFIG = replace(TINY.transformer, num_layers=3)
INPUTS = Inputs(batch=2, frames=3, height=8, width=8, text=4)
FIVE = preset("5b")


def test_one_gpu_holds_what_a_real_step_holds():
    torch.manual_seed(0)
    model = ExpertTransformer(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 4, 3, 8, 8), torch.tensor([3, 900]), torch.randn(2, 4, 16)).square().mean().backward()
    optimizer.step()
    worked_out = memory(CONFIG, INPUTS, 1, "replicate", torch.float32)
    assert worked_out.parameters == sum(p.nbytes for p in model.parameters())
    assert worked_out.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert worked_out.optimizer == sum(held[slot].nbytes for held in optimizer.state.values()
                                       for slot in ("exp_avg", "exp_avg_sq"))
    assert worked_out.gathered == worked_out.host == 0
    cut = memory(CONFIG, INPUTS, 1, "fsdp", torch.float32)
    assert (cut.parameters, cut.gradients, cut.optimizer) == (
        worked_out.parameters, worked_out.gradients, worked_out.optimizer)


def test_a_model_of_six_layers_counts_as_two_and_three_say(subtests):
    six = replace(CONFIG, num_layers=6)
    for way in product((False, True), (torch.float32, torch.bfloat16)):  # checkpointing, number format
        with subtests.test(way=way):
            assert activations_of(six, INPUTS, *way) == count_activations(six, INPUTS, *way)


def bytes_saved(model: ExpertTransformer) -> int:
    """Bytes that autograd keeps for the backward pass, beside the weights."""
    saved, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(2, 4, 3, 8, 8), torch.tensor([3, 900]), torch.randn(2, 4, 16)).square().mean()
    return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in weights)


def test_what_is_kept_is_what_autograd_saves():
    torch.manual_seed(0)
    real, kept = bytes_saved(ExpertTransformer(CONFIG)), activations_of(CONFIG, INPUTS, dtype=torch.float32).kept
    assert abs(real / kept - 1) < 0.05, (real, kept)


def test_checkpointing_keeps_one_input_a_block():
    two, three = (count_activations(replace(FIVE.transformer, num_layers=n), inputs_for(FIVE), True, torch.bfloat16)
                  for n in (2, 3))
    tokens = 13 * 30 * 45 + 226
    assert three.kept - two.kept == tokens * 3072 * 2  # b n d in 16 bits
    plain = activations_of(FIVE.transformer, inputs_for(FIVE))
    assert plain.peak > plain.kept > 10 * activations_of(FIVE.transformer, inputs_for(FIVE), True).kept


def test_the_published_5b():
    count, inputs = 5_570_283_072, inputs_for(FIVE)
    assert (inputs.frames, inputs.height, inputs.width, inputs.text) == (13, 60, 90, 226)
    table = {(s, n): memory(FIVE.transformer, inputs, n, s) for s in SHARDINGS for n in (1, 8, 64)}
    whole = table["replicate", 1]
    assert (whole.parameters, whole.gradients, whole.optimizer) == (6 * count, 4 * count, 8 * count)
    assert table["replicate", 64] == whole
    cut = table["fsdp", 8]
    assert cut.parameters == cut.gradients == cut.optimizer // 2
    assert 4 * count / 8 <= cut.parameters < 4.001 * count / 8
    assert table["fsdp+checkpoint", 64].total < table["fsdp+checkpoint", 8].total < table["fsdp", 8].total < whole.total
    away = table["fsdp+checkpoint+offload", 8]
    assert away.parameters == away.optimizer == 0 and away.host == 4 * cut.parameters
    assert away.total < table["fsdp+checkpoint", 8].total


# ---- LoRA and making a video


def test_lora_of_the_published_5b_by_hand():
    """42 blocks, four matrices of 3072 x 3072 each: an adapter of rank 64 has 64 x (3072 + 3072) numbers."""
    adapters = 42 * 4 * 64 * (3072 + 3072)
    assert adapters == 66_060_288
    inputs = inputs_for(FIVE)
    plain, checkpoint = (memory_of_lora(FIVE.transformer, inputs, 64, again) for again in (False, True))
    for need in (plain, checkpoint):
        assert need.parameters == 2 * 5_570_283_072 + (2 + 4) * adapters
        assert (need.gradients, need.optimizer) == (4 * adapters, 8 * adapters)
        assert need.gathered == need.host == 0
    tokens = 13 * 30 * 45 + 226
    assert checkpoint.activations > 42 * tokens * 3072 * 2  # the input of every block
    assert checkpoint.total < 20 * 2**30 < 60 * 2**30 < plain.total  # one GPU of 24 GB, and none of 48
    whole = memory(FIVE.transformer, inputs, 1, "replicate+checkpoint")
    assert checkpoint.activations < whole.activations


def test_what_lora_keeps_is_what_autograd_saves():
    torch.manual_seed(0)
    model = ExpertTransformer(CONFIG)
    add_lora(model, 2, 1.0)
    real, kept = bytes_saved(model), activations_of(CONFIG, INPUTS, False, torch.float32, 2).kept
    assert abs(real / kept - 1) < 0.05, (real, kept)
    assert kept < activations_of(CONFIG, INPUTS, dtype=torch.float32).kept  # frozen layers keep less
    low = ExpertTransformer(CONFIG).bfloat16()
    add_lora(low, 2, 1.0)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}  # as the count takes it


def test_making_a_video_with_the_published_5b_by_hand():
    need, gib = generating(FIVE, inputs_for(FIVE)), 2**30
    assert need.text.weights == 2 * 4_762_310_656 and need.transformer.weights == 2 * 5_570_283_072  # T5-XXL's encoder
    assert need.vae.weights == need.tiled.weights == 2 * 215_583_907
    pixels, tokens = 49 * 480 * 720 * 3, 13 * 30 * 45 + 226
    assert need.vae.work > 2 * 2 * pixels and need.vae.work > 3 * need.tiled.work > 3 * 2 * pixels
    assert need.transformer.work > 2 * tokens * (4 * 3072) * 2  # two videos, the widest layer of a block
    assert need.peak() == need.text.weights + need.transformer.weights + need.vae.weights + need.vae.work
    assert need.peak(offload=True) == need.transformer.weights + need.transformer.work < 16 * gib
    assert need.peak(tile=True) < 24 * gib < need.peak()


def test_the_peak_is_that_of_the_network_that_needs_most():
    need = Generating(Part(50, 1), Part(40, 20), Part(5, 70), Part(5, 8))
    assert need.peak() == 95 + 70 and need.peak(tile=True) == 95 + 20
    assert need.peak(offload=True) == 75 and need.peak(tile=True, offload=True) == 60


def test_the_weights_counted_are_those_of_a_real_pipeline():
    size = preset("micro")
    text = TextEncoder.from_config(size.text, (), size.transformer.max_text_seq_length)
    pipe = Pipeline(CausalVAE(size.vae), ExpertTransformer(size.transformer), size.schedule, text).to(torch.bfloat16)
    need = generating(size, inputs_for(size))
    for part, network in ((need.text, text.encoder), (need.transformer, pipe.transformer), (need.vae, pipe.vae)):
        assert part.weights == sum(p.nbytes for p in network.parameters()) and part.work > 0
    assert generating(size, inputs_for(size), torch.float32).vae.weights == 2 * need.vae.weights
    twice = generating(size, inputs_for(size, batch=2))
    assert twice.vae.weights == need.vae.weights and 1.9 * need.vae.work < twice.vae.work <= 2.1 * need.vae.work


def test_the_count_is_the_same_where_gradients_are_switched_off():
    with torch.no_grad():  # as in a notebook
        assert count_activations(CONFIG, INPUTS, True, torch.float32) == activations_of(CONFIG, INPUTS, True,
                                                                                        torch.float32)


def test_attention_scores_are_never_counted():
    one = replace(CONFIG, num_layers=1)
    short, long = (count_activations(one, replace(INPUTS, height=8 * n), False, torch.bfloat16) for n in (8, 16))
    assert long.kept < 2.1 * short.kept  # twice the tokens: a square would be four times


def test_every_kind_of_preset_can_be_worked_out_and_what_cannot_be_is_refused(subtests):
    for name in ("toy", "2b", "5b-i2v", "1.5-5b-i2v"):
        with subtests.test(name):
            size = preset(name)
            assert memory(size.transformer, inputs_for(size), 2, "fsdp+checkpoint").activations > 0
    calls = {
        "height is 470; it must be a multiple of 16": lambda: inputs_for(FIVE, height=470),
        "frames is 48; it must be 4k + 1, such as 45 or 49": lambda: inputs_for(FIVE, frames=48),
        "batch is 0": lambda: inputs_for(FIVE, batch=0), "gpus is 0": lambda: memory(CONFIG, INPUTS, 0, "fsdp"),
        "sharding is 'zero'; it must be one of replicate": lambda: memory(CONFIG, INPUTS, 1, "zero"),
        "the rank of LoRA is 0; it must be from 1 to 32": lambda: memory_of_lora(CONFIG, INPUTS, 0, False),
        "the rank of LoRA is 33; it must be from 1 to 32": lambda: memory_of_lora(CONFIG, INPUTS, 33, False),
    }
    for message, call in calls.items():
        with subtests.test(message), pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_the_command_prints_a_table(capsys, monkeypatch):
    assert cli.main(["memory", "toy", "--gpus", "1", "4", "--parts", "4"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("toy: on each GPU 1 x latents 16x5x8x8, 112 tokens")
    assert [line.split()[0] for line in told.splitlines()[3:8]] == list(SHARDINGS)
    rows = {line.split("  ")[0]: line.split()[-5:] for line in told.splitlines() if "  " in line}
    assert float(rows["lora"][0]) > float(rows["lora+checkpoint"][0]) > 0
    assert "finetune recomputes activations of this model (+checkpoint) only with --set gradient_ch" in told
    assert {"text encoder", "transformer", "VAE", "VAE, --tile", "all on the GPU", "--offload"} <= rows.keys()
    monkeypatch.setattr("minicogvx.training.memory_command.find_spec", lambda name: None)
    assert cli.main(["memory", "micro", "--gpus", "1", "--parts", "1"]) == 0
    told = capsys.readouterr().out
    assert "not counted: it needs the peft package (pip install peft)" in told and "--offload" in told


def test_mistakes_of_the_command_are_one_sentence(capsys, subtests):
    cases = [
        (["huge"], "there is no preset 'huge'"), (["toy", "--gpus", "0"], "--gpus is 0; it must be 1 or more"),
        (["toy", "--lora", "0"], "lora is 0; it must be from 1 to 256, the model's width"),
        (["toy", "--device", "cpu"], "device is 'cpu'; it goes with --check, as the tables are for any GPU"),
        (["toy", "--check", "--device", "tpu"], "device is 'tpu', which is not a device that PyTorch knows"),
        (["toy", "--check", "--dtype", "bfloat16"], "dtype is 'bfloat16'; with --check on the processor it must be"),
    ]
    for arguments, message in cases:
        with subtests.test(message):
            assert cli.main(["memory", *arguments]) == 2
            told = capsys.readouterr().err
            assert message in told and told.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_the_check_holds_against_a_real_process():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "minicogvx", "memory", "micro", "--batch", "48", "--check"],
                          capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"\(\+0\.0%, at most 0%\)", done.stdout)) == 3 and "at most 5%" in done.stdout
