"""Aesthetic scores by tiny predictors with random weights, in folders as the published ones are."""

import json

import pytest
import torch
import torch.nn.functional as F
from films import mp4, pan, texture
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from minicogvx.data import command
from minicogvx.data.films.aesthetics import AestheticScorer, ClipWithHead
from minicogvx.data.films.curate import curate

HEADS = {  # of each kind, the weights of its head
    "AestheticsPredictorV1": {"predictor.weight"},
    "AestheticsPredictorV2Linear": {f"layers.{i}.weight" for i in (0, 2, 4, 6, 7)},
    "AestheticsPredictorV2ReLU": {f"layers.{i}.weight" for i in (0, 3, 6, 9, 11)},
}
KINDS = tuple(HEADS)


def folder_of(kind: str, folder, processor: bool = True):
    """A model of this kind, saved."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=32, patch_size=8, projection_dim=16, architectures=[kind])
    model = ClipWithHead(config)
    for name, p in model.named_parameters():
        if name.startswith(("predictor", "layers")):  # transformers' initial values would hardly have an effect
            torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text()) | {"architectures": [kind]}
    (folder / "config.json").write_text(json.dumps(written))
    if processor:
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def by_hand(folder, picture):
    """The score without ClipWithHead: the tower by transformers, the head from the file's own names."""
    weights = load_file(folder / "model.safetensors")
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)(
        images=(picture * 255).round().to(torch.uint8).numpy(), return_tensors="pt")["pixel_values"]
    x = CLIPVisionModelWithProjection.from_pretrained(folder)(pixel_values=pixels).image_embeds
    x = x / x.norm(dim=-1, keepdim=True)
    names = sorted((name for name in weights if name.startswith(("predictor", "layers")) and name.endswith("weight")),
                   key=lambda name: int(name.split(".")[1]) if "." in name.removesuffix(".weight") else 0)
    for i, name in enumerate(names):
        x = F.linear(x, weights[name], weights[name.replace("weight", "bias")])
        x = F.relu(x) if "ReLU" in folder.name and i < len(names) - 1 else x
    return x.item(), [tuple(weights[name].shape) for name in names]


def test_the_score_is_the_heads_of_the_normalised_embedding(tmp_path, subtests):
    picture = texture(48, 64, grain=2)
    for kind, names in HEADS.items():
        with subtests.test(msg=kind):
            folder = folder_of(kind, tmp_path / kind)
            expected, shapes = by_hand(folder, picture)
            score = AestheticScorer(folder)
            assert score(picture) == pytest.approx(expected, abs=1e-5) and abs(expected) > 1e-4
            assert names <= load_file(folder / "model.safetensors").keys() and len(shapes) == len(names)
            assert score(1 - picture) != score(picture)


def test_without_a_file_the_preparation_is_clips_own(tmp_path):
    with_file = AestheticScorer(folder_of(KINDS[0], tmp_path / "with"))
    without = AestheticScorer(folder_of(KINDS[0], tmp_path / "without", processor=False))
    picture = texture(48, 64, grain=2)
    assert with_file(picture) == without(picture)


def test_scores_are_float32_unless_another_format_is_asked_for(tmp_path, monkeypatch):
    folder, picture = folder_of(KINDS[1], tmp_path / "model"), texture(48, 64, grain=2)
    monkeypatch.setenv("MINICOGVX_DTYPE", "bfloat16")  # for networks without an explicit dtype
    exact, low = AestheticScorer(folder, "cpu"), AestheticScorer(folder, "cpu", torch.bfloat16)
    assert exact.model.dtype == torch.float32 and low.model.dtype == torch.bfloat16
    assert exact(picture) != low(picture) == pytest.approx(exact(picture), abs=0.05)
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        AestheticScorer(folder, "cpu", torch.float16)


def test_curate_takes_a_predictor(tmp_path, capsys):
    films, model = tmp_path / "films", folder_of(KINDS[0], tmp_path / "model")
    films.mkdir()
    mp4(films / "pan.mp4", pan(16, seed=1))
    arguments = ["curate", str(films), "--out", str(tmp_path / "out"), "--aesthetic", str(model)]
    assert command.main([*arguments, "--min-aesthetic", "0"]) == 0
    shot, = curate(films, tmp_path / "again", scorer=AestheticScorer(model), progress=False).shots
    assert shot.scores["aesthetic"] < 4.5 and "plain" in shot.reasons
    assert command.main(arguments) == 0
    assert "0 shots kept, 1 dropped (plain 1)" in capsys.readouterr().out


def test_folders_that_cannot_score_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        AestheticScorer(tmp_path / "nowhere")
    folder = folder_of(KINDS[0], tmp_path / "model")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"architectures": ["CLIPVisionModel"]}))
    with pytest.raises(ValueError, match="architectures is 'CLIPVisionModel'"):
        AestheticScorer(folder)
    (folder / "config.json").write_text(json.dumps(written | {"architectures": [KINDS[1]]}))
    with pytest.raises(ValueError, match="lacks weights: layers.0.bias"):
        AestheticScorer(folder)
