"""Adapters (LoRA): what is trained, the file in diffusers' format, training them further, and what is refused."""

import re
import shlex
import shutil
from dataclasses import replace

import pytest
import torch

from minicogvx import cli
from minicogvx.data.clips.cache import CachedClips
from minicogvx.interop.safetensors_files import read_json, read_tensors
from minicogvx.training.batches import Steps
from minicogvx.training.lora import FILE, add_lora, lora_tensors, merge_lora, trained_alpha, write_lora
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.start import prepared_transformer
from minicogvx.transformer.model import ExpertTransformer
from tests.tiny import TINY, tiny_pipe, tiny_transformer
from tests.trained import further, take_steps

TRAINING = TransformerTraining((Stage(4, batch_size=2),), learning_rate=0.05, lora_rank=2, lora_alpha=3.0)


def outputs(model: ExpertTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, 3, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([10, 700]), text)


@pytest.fixture(scope="module")
def trained(clips):
    """A task after four steps."""
    torch.manual_seed(0)
    task = further(TRAINING)
    take_steps(task, Steps(clips, TRAINING, TINY.transformer), range(4))
    task.model.eval()
    return task


def test_training_begins_with_the_model_itself_and_changes_only_adapters(trained, clips):
    before = tiny_transformer()
    assert torch.equal(outputs(prepared_transformer(tiny_transformer(), TRAINING)), outputs(before))
    names = list(trained.weights.learning)
    assert len(names) == 2 * 4 * 2 and all("lora_" in name for name in names)
    assert all("lora_" in name for name in trained.state()), "nor do checkpoints hold the others"
    frozen = {name.replace(".base_layer", ""): p for name, p in trained.model.named_parameters() if "lora_" not in name}
    assert frozen.keys() == before.state_dict().keys()
    assert all(torch.equal(p, frozen[name]) for name, p in before.named_parameters())
    assert not torch.allclose(outputs(trained.model), outputs(before), atol=1e-3)


def test_they_learn_in_float32_beside_a_model_in_16_bits(trained, clips):
    torch.manual_seed(0)
    task = further(TRAINING, tiny_transformer().bfloat16(), dtype=torch.bfloat16)
    assert {p.dtype for p in task.weights.learning.values()} == {torch.float32}
    take_steps(task, Steps(clips, TRAINING, TINY.transformer), range(4))
    name = "transformer.transformer_blocks.0.attn1.to_v.lora_B.default.weight"
    exact, rounded = (one.weights.learning[name].detach().flatten() for one in (trained, task))
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.8


def test_the_file_computes_the_same_when_it_is_merged_and_in_diffusers(trained, tmp_path):
    assert write_lora(tmp_path, lora_tensors(trained.model), 2, 3.0) == tmp_path / FILE
    expected, merged, plain = outputs(trained.model), tiny_transformer(), tiny_transformer()
    merge_lora(merged, tmp_path)
    assert torch.allclose(outputs(merged), expected, atol=1e-5)
    merge_lora(plain, tmp_path / FILE, scale=0.0)
    assert torch.equal(outputs(plain), outputs(tiny_transformer()))

    theirs = pytest.importorskip("diffusers")
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    pipe = theirs.CogVideoXPipeline.from_pretrained(tiny_pipe().save(tmp_path / "pipeline"))
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, 3, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    rope = get_3d_rotary_pos_embed(16, None, grid_size=(4, 4), temporal_size=3, grid_type="slice", max_size=(4, 4))

    def their_output():
        with torch.no_grad():
            return pipe.transformer(latents.transpose(1, 2), text, torch.tensor([10, 700]), image_rotary_emb=rope,
                                    return_dict=False)[0].transpose(1, 2)

    assert torch.allclose(their_output(), outputs(tiny_transformer()), atol=1e-4)
    pipe.load_lora_weights(tmp_path / FILE)
    assert torch.allclose(their_output(), expected, atol=1e-4)


def test_those_of_a_file_are_trained_further_at_their_rank_and_alpha(tmp_path, subtests):
    model = tiny_transformer()
    add_lora(model, 2, 7.0)
    tensors = {name: torch.full_like(value, 0.02) for name, value in lora_tensors(model).items()}
    path = write_lora(tmp_path, tensors, 2, 7.0)
    training = TransformerTraining(lora_rank=2, lora_from=str(path))
    again, merged = prepared_transformer(tiny_transformer(), training), tiny_transformer()
    merge_lora(merged, path)
    assert trained_alpha(again) == 7.0 and torch.allclose(outputs(again), outputs(merged), atol=1e-5)

    for name, given, changed, told in (
            ("another alpha", tensors, {"lora_alpha": 1.0}, "lora_alpha 1.0; the adapters in .* have 2 and 7.0"),
            ("another rank", tensors, {"lora_rank": 4}, "lora_rank is 4"),
            ("no keys", {k: v for k, v in tensors.items() if "to_k" not in k}, {}, "cannot be trained further"),
            ("nothing", {}, {}, "holds no adapter"),
            ("another model", {k.replace("blocks.1", "blocks.7"): v for k, v in tensors.items()}, {}, "does not have")):
        with subtests.test(name):
            write_lora(path, given, 2, 7.0)
            model = tiny_transformer()
            with pytest.raises(ValueError, match=told):
                prepared_transformer(model, replace(training, **changed))
            assert torch.equal(outputs(model), outputs(tiny_transformer())), "nothing was changed"


# ---- by the command


@pytest.fixture(scope="module")
def command(clips, tiny_folder):
    """`minicogvx finetune` of the tiny model on `clips`, with a status that is asserted."""
    def run(out, *options, steps=1, status=0):
        assert cli.main(["finetune", str(clips.folder), "--model", str(tiny_folder), "--out", str(out), "--dtype",
                         "float32", "--device", "cpu", "--steps", str(steps), *map(str, options)]) == status

    return run


def test_a_run_takes_adapters_of_another_and_knows_them_again(command, tmp_path, capsys):
    command(tmp_path / "one", "--lora", 2, "--learning-rate", 0.01, steps=2)
    first = read_tensors(tmp_path / "one" / FILE)
    command(tmp_path / "two", "--lora-from", tmp_path / "one", "--learning-rate", 0)  # zero is zero
    assert all(torch.equal(first[name], one) for name, one in read_tensors(tmp_path / "two" / FILE).items())
    record = read_json(tmp_path / "two" / "recipe.json")
    assert (record["transformer.lora_rank"], record["transformer.learning_rate"]) == (2, 0)
    command(tmp_path / "three", "--lora-from", tmp_path / "one" / FILE, "--learning-rate", 0.01)
    assert any(not torch.equal(first[name], one) for name, one in read_tensors(tmp_path / "three" / FILE).items())
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    capsys.readouterr()
    further = "--lora-from", tmp_path / "moved", "--learning-rate", 0.01
    command(tmp_path / "three", *further)
    assert "resuming with transformer.lora_from=" in capsys.readouterr().out
    write_lora(tmp_path / "moved", {name: 2 * value for name, value in first.items()}, 2, 1.0)
    command(tmp_path / "three", *further, status=2)
    assert "was begun with other adapters: " in capsys.readouterr().err
    command(tmp_path / "three", "--lora", 2, "--learning-rate", 0.01, "--set", "lora_alpha=1.0", status=2)
    assert "was begun with other adapters: " in capsys.readouterr().err


def test_adapters_that_do_not_fit_are_refused_before_a_clip_is_read(command, tmp_path, capsys, monkeypatch, subtests):
    monkeypatch.setattr(CachedClips, "__init__", lambda *_: pytest.fail("clips were read"))
    model = tiny_transformer()
    add_lora(model, 2, 3.0)
    tensors = lora_tensors(model)
    some = write_lora(tmp_path / "some", {name: value for name, value in tensors.items() if "to_k" not in name}, 2, 3.0)
    path = write_lora(tmp_path / "all", tensors, 2, 3.0)
    for options, told in ((("--lora-from", some), "cannot be trained further"),
                          (("--lora-from", tmp_path / "none.safetensors"), "none.safetensors"),
                          (("--lora-from", path, "--lora", 4), "have rank 2; leave --lora out"),
                          (("--lora-from", path, "--set", "lora_alpha=1.0"), "alpha"),
                          (("--lora", 2, "--set", "lora_alpha=0.0"), "the alpha of LoRA is 0.0"),
                          (("--lora", 33), "is 33; it must be from 1 to 32")):
        with subtests.test(told):
            command(tmp_path / "out", *options, status=2)
            error = capsys.readouterr().err
            assert re.search(re.escape(told), error) and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_command_that_is_printed_runs(command, tmp_path, capsys, monkeypatch, subtests):
    monkeypatch.chdir(tmp_path)
    for name, options in {"lora": ("--lora", 2), "image": ("--image-to-video",), "all": ()}.items():
        with subtests.test(name):
            command(tmp_path / f"a folder's {name}", *options)
            told = capsys.readouterr().out.splitlines()[-1]
            program, *words = shlex.split(told[told.index("minicogvx generate"):])
            assert words[1].startswith("a ")
            assert cli.main([*words, "--steps", "1", "--dtype", "float32", "--out", f"{name}.mp4"]) == 0
            assert (tmp_path / f"{name}.mp4").exists()
