"""LoRA files: a header is interpreted like by peft, or rejected; weak adapters survive 16-bit weights."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file

import minicogvx
from minicogvx import pipeline
from minicogvx.interop.lora import FILE, has_adapters, merge_lora, read_adapters, use_lora
from minicogvx.transformer.model import ExpertTransformer
from tests.tiny import tiny_pipe, tiny_transformer

Q, OUT, FF = (f"transformer_blocks.1.{name}" for name in ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj"))
PATCH = "patch_embed.proj"


def model() -> ExpertTransformer:
    return tiny_transformer().requires_grad_(False)


def inputs(dtype: torch.dtype = torch.float32):
    torch.manual_seed(1)
    return (torch.randn(2, 4, 3, 4, 4).to(dtype), torch.tensor([10, 700]), torch.randn(2, 4, 16).to(dtype))


def with_peft(settings: dict, strength: float = 1.0):
    """(a model with peft's adapters of this LoraConfig, their tensors as they stand in a file)."""
    made = model()
    inject_adapter_in_model(LoraConfig(**settings), made)
    torch.manual_seed(2)
    tensors = {}
    for name, parameter in made.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, strength)
            tensors["transformer." + name.replace(".default.", ".")] = parameter.data.clone()
    return made, tensors


def write(folder, tensors: dict, settings: dict | None = None, header: str | None = None):
    metadata = {"format": "pt"}
    if settings is not None:
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{name}": v for name, v in settings.items()})
    if header is not None:
        metadata["lora_adapter_metadata"] = header
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)
    return folder / FILE


SETTINGS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_out.0"]},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["to_q"]},
    "peft's defaults": {"target_modules": ["to_k"]},
    "alpha by name": {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_v"], "alpha_pattern": {Q: 16, "to_v": 1}},
    "alpha by pattern": {"r": 2, "lora_alpha": 8, "target_modules": ["to_q", "to_k"],
                         "alpha_pattern": {r"transformer_blocks\.[01]\.attn1\.to_k": 3.5, "attn1": 99}},
    "ranks and rslora": {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_v"], "use_rslora": True,
                         "rank_pattern": {"to_v": 9, Q: 2}, "alpha_pattern": {"to_v": 3}},
    "names by a pattern": {"r": 3, "lora_alpha": 5, "target_modules": r".*\.1\..*(to_q|net\.0\.proj)"},
    "biases": {"r": 3, "lora_alpha": 6, "target_modules": ["to_q", "net.2"], "lora_bias": True},
    "a convolution": {"r": 3, "lora_alpha": 6, "target_modules": [PATCH, "proj_out"]},
    "dropout and origin": {"r": 3, "lora_alpha": 6, "target_modules": ["to_q"], "lora_dropout": 0.5,
                           "base_model_name_or_path": "somebody/something"},
}


def test_what_peft_computes_is_computed(tmp_path, subtests):
    whole = SETTINGS["ranks and rslora"]
    headers = SETTINGS | {"as peft writes it": {  # all fields of a LoraConfig, most of them at their defaults
        name: list(v) if isinstance(v, set) else v for name, v in LoraConfig(**whole).to_dict().items()}}
    for name, header in headers.items():
        with subtests.test(name):
            theirs, tensors = with_peft(SETTINGS.get(name, whole))
            theirs.eval()
            path = write(tmp_path, tensors, header)
            with torch.no_grad():
                expected = theirs(*inputs())
                for add in (merge_lora, use_lora):
                    ours = model()
                    add(ours, path)
                    effect = (expected - model()(*inputs())).norm()
                    assert effect > 1e-3 and (ours(*inputs()) - expected).norm() < 1e-3 * effect
    _, tensors = with_peft(SETTINGS["plain"])
    for header in (None, "{}"):  # then alpha is the rank
        adapters = read_adapters(model(), write(tmp_path, tensors, header=header))
        assert {adapter.scale for adapter in adapters.values()} == {1.0} and len(adapters) == 4


def test_what_is_not_known_or_not_true_is_refused(tmp_path, subtests):
    cases = [
        {"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "loftq"}, {"bias": "all"},
        {"modules_to_save": ["proj_out"]}, {"fan_in_fan_out": True}, {"layers_to_transform": [0]},
        {"exclude_modules": ["to_q"]}, {"use_qalora": True}, {"corda_config": {"rank": 4}},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [1]}, {"target_parameters": ["x"]}, {"something_new": 0.5},
        {"lora_alpha": None}, {"lora_alpha": "8"}, {"lora_alpha": True}, {"lora_alpha": float("inf")},
        {"r": 5}, {"r": None},
        {"rank_pattern": {"to_q": 3}}, {"rank_pattern": ["to_q"]}, {"alpha_pattern": {"to_q": "much"}},
        {"alpha_pattern": {"(": 3}}, {"alpha_pattern": 7}, {"target_modules": ["to_k"]}, {"target_modules": "to_q"},
        {"use_rslora": "yes"},
    ]
    _, tensors = with_peft(SETTINGS["plain"])
    for change in cases:
        with subtests.test(change=change):
            ours, path = model(), write(tmp_path, tensors, SETTINGS["plain"] | change)
            for add in (merge_lora, use_lora):
                with pytest.raises(ValueError) as error:
                    add(ours, path)
                told = str(error.value)
                assert str(tmp_path) in told and "\n" not in told and len(told) < 400
            assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), model().state_dict().values()))


def test_headers_that_are_no_object_or_have_fields_of_something_else(tmp_path, subtests):
    _, tensors = with_peft(SETTINGS["plain"])
    headers = dict.fromkeys(("", "[]", "5", "{", "[" * 100_000), "lora_adapter_metadata in its header")
    for fields in ({"r": 4, "lora_alpha": 8}, {"unet.r": 4, "unet.lora_alpha": 8}, {"transformer_r": 4}, {"": 4},
                   {"transformer.r": 4, "lora_alpha": 8}, {"text_encoder.r": 4}):
        headers[json.dumps(fields)] = "every field must begin with 'transformer.'"
    for header, told in headers.items():
        with subtests.test(header[:40]), pytest.raises(ValueError, match=told):
            read_adapters(model(), write(tmp_path, tensors, header=header))


def test_tensors_that_do_not_fit(tmp_path, subtests):
    norm = {f"transformer.norm_final.lora_{part}.weight": torch.ones(n) for part, n in (("A", 1), ("B", 32))}
    cases = [
        (lambda t: {n: v for n, v in t.items() if "lora_A" not in n}, "does not fit its shape"),
        (lambda t: {n: v.int() for n, v in t.items()}, "must hold finite floating-point numbers"),
        (lambda t: {n: v * float("nan") for n, v in t.items()}, "must hold finite floating-point numbers"),
        (lambda t: {n: v.flatten() for n, v in t.items()}, "does not fit its shape"),
        (lambda t: {n: v[:0] if "lora_A" in n else v[:, :0] for n, v in t.items()}, "does not fit its shape"),
        (lambda t: {n.replace("lora_B.weight", "lora_B.bias"): v for n, v in t.items()}, "has a tensor"),
        (lambda t: t | {f"transformer.{Q}.lora_magnitude_vector": torch.ones(32)}, "lora_magnitude_vector"),
        (lambda t: {"base_model.model." + n: v for n, v in t.items()}, "has only transformer.....lora_A.weight"),
        (lambda t: {n.replace("to_q", "to_z"): v for n, v in t.items()}, "which this model does not have"),
        (lambda t: norm, "has an adapter of norm_final.weight that does not fit its shape (32,)"),
    ]
    _, tensors = with_peft({"r": 4, "target_modules": ["to_q"]})
    for change, told in cases:
        with subtests.test(told):
            with pytest.raises(ValueError) as error:
                read_adapters(model(), write(tmp_path, change(tensors)))
            assert told in str(error.value) and "\n" not in str(error.value)


# ---- in a pipeline


def test_a_pipeline_is_opened_with_the_adapters_of_a_file(tiny_folder, tmp_path, subtests):
    _, tensors = with_peft(SETTINGS["plain"])
    path = write(tmp_path, tensors, SETTINGS["plain"])
    for dtype, given in (("float32", path), ("float32", str(tmp_path)), ("bfloat16", tmp_path)):
        with subtests.test(dtype, given=given):
            pipe, plain = (minicogvx.load(tiny_folder, "cpu", dtype, lora=lora) for lora in (given, None))
            before, at = plain.transformer(*inputs(pipe.dtype)), inputs(pipe.dtype)
            use_lora(plain.transformer, path)
            assert torch.equal(pipe.transformer(*at), plain.transformer(*at))
            assert not torch.allclose(pipe.transformer(*at), before, atol=1e-2)
            assert has_adapters(pipe.transformer) == (dtype == "bfloat16")


def test_adapters_that_are_not_there_or_do_not_fit_are_refused_before_weights_are_read(tiny_folder, tmp_path,
                                                                                       monkeypatch, subtests):
    _, tensors = with_peft({"r": 4, "target_modules": ["to_q"]})
    fits, other, words = (tmp_path / name for name in ("fits", "other", "words"))
    for folder in (fits, other, words):
        folder.mkdir()
    write(fits, tensors)
    write(other, {name.replace("blocks.1", "blocks.7"): value for name, value in tensors.items()})
    (words / FILE).write_text("words")
    read = []
    monkeypatch.setattr(pipeline, "read_folder", lambda *given: read.append(given) or 1 / 0)
    for given, error, told in (
            (tmp_path / "none", FileNotFoundError, "there is no file .*none; it must be a LoRA file or its folder"),
            ("", FileNotFoundError, "there is no file"), (tmp_path, FileNotFoundError, f"there is no file .*{FILE}"),
            (other, ValueError, "adapts transformer_blocks.7.attn1.to_q.weight, which this model does not have"),
            (words / FILE, ValueError, "words")):
        with subtests.test(str(given)), pytest.raises(error, match=told) as refused:
            minicogvx.load(tiny_folder, "cpu", lora=given)
        assert "\n" not in str(refused.value) and not read
    with pytest.raises(ZeroDivisionError):
        minicogvx.load(tiny_folder, "cpu", lora=fits)


# ---- 16 bits


def test_an_adapter_however_weak_is_kept_whole_beside_bfloat16_weights(tmp_path, subtests):
    """Measured on one layer: what it gives with the adapter less what it gives without, against float64."""
    for strength in (0.3, 0.03, 0.01):
        with subtests.test(strength=strength):
            _, tensors = with_peft({"r": 4, "lora_alpha": 4, "target_modules": [Q]}, strength)
            path, ours = write(tmp_path, tensors), model().bfloat16()
            before = ours.get_submodule(Q)
            x = torch.randn(4096, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
            a, b = (tensors[f"transformer.{Q}.lora_{part}.weight"].double() for part in "AB")
            wanted = x.double() @ (b @ a).T
            use_lora(ours, path)
            layer = ours.get_submodule(Q)
            assert has_adapters(ours) and layer.weight is before.weight
            assert ours.state_dict().keys() == model().state_dict().keys()
            given = (layer(x) - before(x)).double()
            share = float((given * wanted).sum() / wanted.square().sum())
            assert abs(share - 1) < 0.03
            merged = model().bfloat16()
            if strength == 0.01:
                with pytest.warns(UserWarning, match="rounds small steps away: [0-9]+% of this adapter"):
                    merge_lora(merged, path)
                lost = (merged.get_submodule(Q)(x) - before(x)).double()
                assert float((lost * wanted).sum() / wanted.square().sum()) < 0.9
            full = model()
            use_lora(full, path)  # float32 weights take it in
            wanted = model().get_submodule(Q).weight.double() + b @ a
            assert not has_adapters(full) and torch.allclose(full.get_submodule(Q).weight.double(), wanted, atol=1e-6)


def test_beside_16_bit_weights_only_what_is_no_linear_layer_is_merged(tmp_path):
    _, tensors = with_peft(SETTINGS["a convolution"])
    ours, merged = model().bfloat16(), model().bfloat16()
    before = ours.proj_out.weight
    path = write(tmp_path, tensors, SETTINGS["a convolution"])
    use_lora(ours, path)
    merge_lora(merged, path)
    assert ours.proj_out.weight is before and ours.proj_out.lora_a.shape == (3, 32)
    patch = ours.get_submodule(PATCH)
    assert torch.equal(patch.weight, merged.get_submodule(PATCH).weight)
    assert not torch.equal(patch.weight, model().bfloat16().get_submodule(PATCH).weight)


def test_adapters_beside_add_up_move_along_and_are_not_exported(tmp_path):
    pipe = tiny_pipe()
    pipe.transformer.bfloat16()
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    name = "transformer_blocks.0.attn1.to_v"
    tensors = {f"transformer.{name}.lora_A.weight": torch.ones(2, 32),
               f"transformer.{name}.lora_B.weight": torch.ones(32, 2)}
    path, x = write(tmp_path, tensors), torch.full((1, 32), 0.5).bfloat16()
    plain = pipe.transformer.get_submodule(name)(x).float()
    use_lora(pipe.transformer, path, 0.5)
    use_lora(pipe.transformer, path, -0.25)
    given = pipe.transformer.get_submodule(name)(x).float() - plain
    assert torch.allclose(given, torch.full((1, 32), 0.25 * 32), atol=0.1)
    again = copy.deepcopy(pipe.transformer).float()
    assert torch.allclose(again.get_submodule(name)(x.float()) - plain, torch.full((1, 32), 8.0), atol=0.1)
    assert pipe.transformer.state_dict().keys() == before.keys()
    with pytest.raises(ValueError, match="has LoRA adapters beside its weights"):
        pipe.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
