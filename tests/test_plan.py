"""Work counted from configs against PyTorch's counter, the roofline, and plans against the paper's tables."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minicogvx import cli
from minicogvx.course import plan_figure
from minicogvx.presets import VAEConfig, preset
from minicogvx.text import TextEncoder
from minicogvx.training import memory_command
from minicogvx.training.devices import DEVICES, Device, measure_device
from minicogvx.training.memory import flash_attention, inputs_for
from minicogvx.training.plan import (
    SHARE_OF_DECODING,
    SHARE_OF_PASS,
    Work,
    decode_work,
    lora_step,
    pass_work,
    plan,
    text_work,
)
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae import CausalVAE, fast
from minicogvx.vae.flops import decode_flops, decoder_convolutions, encode_flops
from tests.tiny import TINY

H800, FIVE = DEVICES["H800"], preset("5b")


def counted(run) -> int:
    """By PyTorch's own counter, on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# ---- work


@pytest.mark.parametrize("config", [preset("toy").vae, preset("micro").vae, VAEConfig(block_out_channels=(32, 64, 64)),
                                    replace(preset("toy").vae, resampling="residual"),
                                    replace(preset("toy").vae, temporal_compression_ratio=2)])
def test_the_vae_s_convolutions_are_those_that_pytorch_counts(config):
    with torch.device("meta"):
        vae, space = CausalVAE(config), config.spatial_compression_ratio
        for frames in (1, 9, 17):
            video = torch.empty(1, 3, frames, 2 * space, 3 * space)
            latents = torch.empty(1, config.latent_channels, *config.latent_size(*video.shape[2:]))
            with fast.off():
                encoding, decoding = counted(lambda: vae.encode(video)), counted(lambda: vae.decode(latents))
            assert encode_flops(config, tuple(video.shape[2:])) == encoding
            assert decode_flops(config, tuple(latents.shape[2:])) == decoding


def test_an_even_number_of_latents_gives_four_frames_each_in_the_published_vae():
    last = list(decoder_convolutions(VAEConfig(), (4, 2, 2)))[-1]
    assert last.places == 16 * 16 * 16 and last.outputs == 3
    assert list(decoder_convolutions(VAEConfig(), (5, 2, 2)))[-1].places == 17 * 16 * 16


def test_a_pass_of_the_transformer_is_what_pytorch_counts():
    config, size = TINY.transformer, (3, 8, 8)
    with torch.device("meta"):
        model = ExpertTransformer(config)
        inputs = torch.empty(2, 4, *size), torch.empty(2), torch.empty(2, 4, config.text_embed_dim)
        with flash_attention():
            found = counted(lambda: model(*inputs))
    work = pass_work(config, size, 4, 2)
    assert work.flops == pytest.approx(found, rel=1e-3)
    assert work.bytes > 2 * sum(p.numel() for p in model.parameters())
    assert pass_work(config, size, 4, 2, itemsize=4).bytes == 2 * work.bytes


def test_a_pass_of_the_text_encoder_is_what_pytorch_counts():
    config = preset("toy").text
    with torch.device("meta"):
        encoder = TextEncoder.from_config(config, (), 32).encoder
        found = counted(lambda: encoder(torch.zeros(2, 32, dtype=torch.int64)))
    assert text_work(config, 32, 2).flops == pytest.approx(found, rel=1e-3)
    weights = sum(p.numel() for name, p in encoder.named_parameters() if p.ndim == 2 and "shared" not in name
                  and "bias" not in name)
    assert text_work(config, 32).bytes == 2 * weights


def test_the_slower_side_counts():
    device = Device("d", flops=10.0, bandwidth=5.0)
    assert Work(100, 1).seconds(device) == 10 and Work(1, 100).seconds(device) == 20
    assert Work(100, 1).seconds(device, 0.5) == 20


# ---- what the notebook says


def test_two_passes_explain_table_8_and_a_clip_of_41_frames_has_the_tokens_of_81_with_two_a_patch():
    rate = [2 * pass_work(FIVE.transformer, size, 226).flops / seconds / 1e12
            for size, seconds in (((13, 32, 48), 0.41), ((13, 60, 90), 2.11), ((11, 96, 170), 9.60))]
    assert max(rate) / min(rate) < 1.03 and 300 < min(rate) < max(rate) < 320
    assert rate[1] / 1e-12 / H800.flops == pytest.approx(SHARE_OF_PASS, abs=0.001)
    later = preset("1.5-5b")
    new = later.transformer.num_patches(later.vae.latent_size(81, 768, 1360))
    assert new == FIVE.transformer.num_patches(FIVE.vae.latent_size(41, 768, 1360)) == 44_880


def test_table_7_follows_from_two_shares():
    for name, size, seconds in (("5b", (480, 720, 49), 113), ("5b", (768, 1360, 41), 500), ("2b", (480, 720, 49), 49),
                                ("2b", (768, 1360, 41), 220)):
        sizes = preset(name)
        inputs = inputs_for(sizes, *size)
        latents = inputs.frames, inputs.height, inputs.width
        told = (50 * pass_work(sizes.transformer, latents, 226, 2).seconds(H800, SHARE_OF_PASS)
                + decode_work(sizes, latents).seconds(H800, SHARE_OF_DECODING))
        assert told == pytest.approx(seconds, rel=0.1), (name, size, told)


def test_what_a_plan_says_of_the_5b():
    inputs = inputs_for(FIVE)
    large, small = plan(FIVE, inputs, H800), plan(FIVE, inputs, DEVICES["RTX 4090"])
    assert large.way == "whole" and large.memory < H800.memory and large.seconds == pytest.approx(113, rel=0.02)
    assert small.way not in (None, "whole") and small.memory < small.device.memory
    assert small.seconds > 4 * large.seconds
    assert plan(FIVE, inputs, H800, guided=False).denoising == pytest.approx(large.denoising / 2, rel=0.05)
    assert plan(FIVE, inputs, H800, steps=25).denoising == large.denoising / 2
    assert large.kilowatt_hours == pytest.approx(large.seconds * 700 / 3.6e6)
    nowhere = plan(FIVE, inputs, replace(H800, memory=4 * 2**30))
    assert nowhere.way is None and nowhere.memory > 4 * 2**30
    seconds, need, fits = lora_step(FIVE, inputs, DEVICES["RTX 4090"])
    assert fits and need < 20 * 2**30 and 10 < seconds < 60
    with pytest.raises(ValueError, match="steps is 0; it must be 1 or more"):
        plan(FIVE, inputs, H800, steps=0)


def test_the_plan_to_turn_says_time_memory_energy_and_cost(monkeypatch):
    shown = {}
    monkeypatch.setattr(plan_figure, "explore_figure", lambda draw, alt, **sliders: shown.update(draw=draw, **sliders))
    plan_figure.explore_plan(("micro",), ("32x32",), (9,), ("on",), {"H800": 3.6})
    figure, words = shown["draw"]("micro", "32x32", 9, "on")
    labels = [text.get_text().strip() for text in figure.axes[0].texts]
    assert len(labels) == len(DEVICES) == len(figure.axes[0].patches)
    assert re.fullmatch(r"0\.\d+ s, 0 GiB, 0 Wh, costs 0\.00", labels[list(DEVICES).index("H800")])
    assert "costs" not in labels[0] and "RTX 3090: " in words and shown["model"] == ("micro",)
    too_large = replace(plan(FIVE, inputs_for(FIVE), H800), way=None)
    assert re.fullmatch(r"does not fit \(\d+ GiB\)", plan_figure._label(too_large, {}))
    with pytest.raises(ValueError, match="prices has 'H8'; the GPUs are RTX 3090, "):
        plan_figure.explore_plan(prices={"H8": 1})


# ---- devices and the command


def test_every_device_has_a_source_and_numbers_that_can_be():
    for name, device in DEVICES.items():
        assert device.name == name and device.source.startswith("NVIDIA")
        assert 5e13 < device.flops < 1e15 and 2e11 < device.bandwidth < 1e13
        assert 20 * 2**30 < device.memory and 50 < device.watts <= 700


def test_this_machine_is_measured():
    here = measure_device("cpu", torch.float32, side=256, copied=2**22)
    assert here.flops > 1e8 and here.bandwidth > 1e7 and (here.memory, here.watts) == (0, 0)
    assert plan(TINY, inputs_for(TINY), here).way == "whole"


def test_the_command_tells_times_of_large_models_only(capsys):
    assert cli.main(["memory", "toy", "--gpus", "1", "--parts", "1"]) == 0
    assert "no times: so small a model" in capsys.readouterr().out
    arguments = memory_command._parser().parse_args("2b --frames 9 --steps 25 --unguided".split())
    memory_command._print_devices(preset("2b"), inputs_for(preset("2b"), frames=9), arguments)
    told = capsys.readouterr().out
    rows = dict(re.findall(r"^(\w[\w ]+, \d+ GB) +(.+)$", told, re.MULTILINE))
    assert len(rows) == len(DEVICES) and rows["H800, 80 GB"].split()[2] == "whole"
    assert "not measured: worked out for 32% of each GPU's peak" in told
