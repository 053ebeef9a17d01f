"""Adapters: what is trained, the file in diffusers' format, and what is rejected."""

import pytest
import torch

from minicogvx.training.finetune import FineTuning, finetune, prepare
from minicogvx.training.lora import FILE, add_lora, lora_tensors, merge_lora, trained_alpha, write_lora
from tests.test_finetune import QUIET, outputs, tiny_pipe


def test_lora_begins_as_the_identity_and_only_adapters_learn(clips):
    pipe = tiny_pipe()
    before, start = outputs(pipe.transformer), {name: p.clone() for name, p in pipe.transformer.named_parameters()}
    tuning = FineTuning(steps=4, lora_rank=2, warmup=1)
    assert torch.equal(outputs(prepare(tiny_pipe(), tuning)), before)
    model = finetune(pipe, clips, tuning, keep=QUIET)
    learnt = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learnt) == 2 * 4 * 2 and all("lora_" in name for name in learnt)
    pipes = tiny_pipe(), tiny_pipe()
    torch.manual_seed(12)  # earlier draws do not matter, only the seed
    again, other = (finetune(one, clips, tuning, seed, QUIET) for seed, one in enumerate(pipes))
    down = [name for name in learnt if "lora_A" in name]
    assert all(torch.equal(model.get_parameter(name), again.get_parameter(name)) for name in learnt)
    assert not any(torch.allclose(again.get_parameter(name), other.get_parameter(name), atol=1e-3) for name in down)
    for name, p in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, start[name.replace(".base_layer", "")])
    assert not torch.equal(outputs(model), before)


def test_a_lora_file_merged_computes_what_the_adapters_computed(clips, tmp_path):
    tuning = FineTuning(steps=4, lora_rank=2, lora_alpha=3.0, warmup=1, learning_rate=0.05)
    model = finetune(tiny_pipe(), clips, tuning, keep=QUIET)
    path = write_lora(tmp_path, lora_tensors(model), 2, 3.0)
    assert path == tmp_path / FILE
    merged, plain = tiny_pipe().transformer, tiny_pipe().transformer
    merge_lora(merged, tmp_path)
    assert torch.allclose(outputs(merged), outputs(model), atol=1e-5)
    assert not torch.allclose(outputs(plain), outputs(model), atol=1e-3)
    merge_lora(plain, path, scale=0.0)
    assert torch.equal(outputs(plain), outputs(tiny_pipe().transformer))


def test_diffusers_loads_the_lora_file_and_computes_the_same(clips, tmp_path):
    theirs = pytest.importorskip("diffusers")
    tuning = FineTuning(steps=4, lora_rank=2, lora_alpha=3.0, warmup=1, learning_rate=0.05)
    model = finetune(tiny_pipe(), clips, tuning, keep=QUIET)
    write_lora(tmp_path, lora_tensors(model), 2, 3.0)
    tiny_pipe().save(tmp_path / "pipeline")
    pipe = theirs.CogVideoXPipeline.from_pretrained(tmp_path / "pipeline")
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 4, 3, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    rope = get_3d_rotary_pos_embed(16, None, grid_size=(4, 4), temporal_size=3, grid_type="slice", max_size=(4, 4))

    def their_output():
        with torch.no_grad():
            return pipe.transformer(latents.transpose(1, 2), text, torch.tensor([10, 700]), image_rotary_emb=rope,
                                    return_dict=False)[0].transpose(1, 2)

    before = their_output()
    assert torch.allclose(before, outputs(tiny_pipe().transformer), atol=1e-4)
    pipe.load_lora_weights(tmp_path / FILE)
    assert torch.allclose(their_output(), outputs(model), atol=1e-4)
    assert not torch.allclose(before, outputs(model), atol=1e-3)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: {}, "holds no adapter"),
    (lambda t: t | {"transformer.proj_out.bias": torch.ones(1)}, "has a tensor transformer.proj_out.bias"),
    (lambda t: {k.replace("blocks.1", "blocks.7"): v for k, v in t.items()}, "which this model does not have"),
    (lambda t: {k: v[:, :5] if "lora_A" in k else v for k, v in t.items()}, "does not fit its shape (32, 32)"),
    (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "does not fit its shape"),
])
def test_a_foreign_lora_file_is_refused_and_changes_nothing(tmp_path, change, message):
    model, other = tiny_pipe().transformer, tiny_pipe().transformer
    add_lora(other, 2, 2.0)
    path = write_lora(tmp_path / "a.safetensors", change(lora_tensors(other)), 2, 2.0)
    with pytest.raises(ValueError) as error:
        merge_lora(model, path)
    assert message in str(error.value)
    assert torch.equal(outputs(model), outputs(tiny_pipe().transformer))
    for rank, alpha in ((0, 1.0), (33, 1.0), (2, 0.0)):
        with pytest.raises(ValueError, match="of LoRA is"):
            add_lora(tiny_pipe().transformer, rank, alpha)


def test_adapters_that_are_trained_further_keep_the_alpha_of_their_file(tmp_path):
    model = tiny_pipe().transformer
    add_lora(model, 2, 7.0)
    tensors = {name: torch.full_like(value, 0.02) for name, value in lora_tensors(model).items()}
    path = write_lora(tmp_path, tensors, 2, 7.0)
    further = prepare(tiny_pipe(), FineTuning(lora_rank=2, lora_from=str(path)))
    merged = tiny_pipe().transformer
    merge_lora(merged, path)
    assert trained_alpha(further) == 7.0 and torch.allclose(outputs(further), outputs(merged), atol=1e-5)
    with pytest.raises(ValueError, match="lora_alpha 1.0; the adapters in .* have 2 and 7.0"):
        prepare(tiny_pipe(), FineTuning(lora_rank=2, lora_from=str(path), lora_alpha=1.0))
