"""Text encoders from folders: every tensor and every id fits, or the folder is rejected in one sentence."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from minicogvx.interop.text_folder import read_text, write_text
from minicogvx.text import TextEncoder
from tests.tiny import TINY

CONFIG = replace(TINY.text, num_layers=2, vocab_size=16)
CAPTION = "a red ring moves"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For reading only."""
    torch.manual_seed(0)
    text = TextEncoder.from_config(CONFIG, tuple(CAPTION.split()), 8)
    place = tmp_path_factory.mktemp("text") / "tiny"
    write_text(text, place)
    return place


@pytest.fixture
def another(folder, tmp_path):
    """Each call copies `folder` once more."""
    return lambda: Path(shutil.copytree(folder, tmp_path / str(len(list(tmp_path.iterdir())))))


@pytest.fixture
def copy(another) -> Path:
    return another()


def change_tensors(folder: Path, change) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"format": "pt"})


def change_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refused(folder: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_text(folder, 8)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def test_transformers_opens_what_is_saved_and_computes_the_same(folder):
    ours = read_text(folder, 8)
    theirs = T5EncoderModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        expected = theirs(ours.tokens([CAPTION])).last_hidden_state
        assert torch.equal(ours.encode([CAPTION]), expected)
    assert {name: tensor.dtype for name, tensor in theirs.state_dict().items()} == {
        name: tensor.dtype for name, tensor in ours.encoder.state_dict().items()}
    assert ours.encoder.shared.weight is ours.encoder.encoder.embed_tokens.weight


def test_whatever_the_format_in_the_file_transformers_takes_float32_and_we_what_is_asked(folder, tmp_path, subtests):
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        with subtests.test(dtype=dtype):
            there = tmp_path / str(dtype)
            write_text(read_text(folder, 8), there, dtype if dtype.itemsize > 1 else torch.float32)
            if dtype.itemsize == 1:
                change_tensors(there, lambda t: t.update({name: tensor.to(dtype) for name, tensor in t.items()}))
            assert T5EncoderModel.from_pretrained(there / "text_encoder").dtype == torch.float32
            opened = read_text(there, 8).encoder
            wanted = torch.bfloat16 if dtype.itemsize == 1 else dtype
            formats = {name: tensor.dtype for name, tensor in opened.state_dict().items()}
            wide = {name for name, found in formats.items() if found != wanted}
            sums = {name for name in formats if name.endswith("wo.weight")}
            assert wide == (sums if dtype == torch.float16 else set())
            full = read_text(there, 8, torch.float32).encoder
            assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


def test_moved_to_float16_the_sums_that_overflow_stay_float32(folder):
    text = read_text(folder, 8)
    before = {name: tensor.clone() for name, tensor in text.encoder.state_dict().items()}
    assert text.to("cpu", torch.float16) is text
    for name, tensor in text.encoder.state_dict().items():
        wide = name.endswith("wo.weight")
        assert torch.equal(tensor, before[name] if wide else before[name].half()) and (
            tensor.dtype == torch.float32) == wide
    text.to(torch.bfloat16)
    assert {parameter.dtype for parameter in text.encoder.parameters()} == {torch.bfloat16}


def test_fields_that_are_left_out_have_the_defaults_of_t5_and_those_without_effect_may_hold_anything(copy):
    expected, path = read_text(copy, 8).encode([CAPTION]), copy / "text_encoder" / "config.json"
    change_json(path, lambda values: [values.pop(name) for name in (
        "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon")])
    assert torch.equal(read_text(copy, 8).encode([CAPTION]), expected)
    change_json(path, lambda values: values.update(
        torch_dtype="float16", dropout_rate=0.5, id2label=5, num_decoder_layers=-1, tie_word_embeddings=False))
    assert torch.equal(read_text(copy, 8).encode([CAPTION]), expected)


def test_the_table_of_words_may_have_either_name_or_both_if_they_agree(copy):
    expected = read_text(copy, 8).encode([CAPTION])
    change_tensors(copy, lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"].clone()}))
    assert torch.equal(read_text(copy, 8).encode([CAPTION]), expected)
    change_tensors(copy, lambda t: t.pop("shared.weight"))
    assert torch.equal(read_text(copy, 8).encode([CAPTION]), expected)
    change_tensors(copy, lambda t: t.update({"shared.weight": t["encoder.embed_tokens.weight"] + 1}))
    assert "two different tables" in refused(copy)


FF = "encoder.block.1.layer.1.DenseReluDense.wo.weight"


def test_a_tensor_that_is_missing_extra_whole_or_misshapen(another, subtests):
    cases = [
        (lambda t: t.pop("shared.weight"), "lacks the tensor shared.weight"),
        (lambda t: t.pop("encoder.final_layer_norm.weight"), "lacks the tensor encoder.final_layer_norm.weight"),
        (lambda t: [t.pop(name) for name in list(t) if ".block.1." in name], "lacks the tensor encoder.block.1"),
        (lambda t: t.update({"decoder.final_layer_norm.weight": torch.ones(16)}), "has a tensor decoder.final"),
        (lambda t: t.update({"encoder.block.2.layer.0.layer_norm.weight": torch.ones(16)}), "a tensor encoder.block.2"),
        (lambda t: t.update({FF: t[FF].to(torch.int8)}), "int8"),
        (lambda t: t.update({FF: t[FF][:, :-1].contiguous()}), "(16, 31)"),
        (lambda t: t.update({"shared.weight": t["shared.weight"][:-1].contiguous()}), "(15, 16)"),
    ]
    for change, told in cases:
        with subtests.test(told):
            folder = another()
            change_tensors(folder, change)
            assert told in refused(folder)


def test_a_config_that_cannot_be_or_computes_something_else(another, subtests):
    cases = [
        ("num_layers", 0, "0"), ("num_layers", 10**6, "1000000"), ("num_heads", -2, "-2"), ("d_kv", 2.5, "2.5"),
        ("d_ff", "many", "'many'"), ("vocab_size", 10**400, "1000"), ("layer_norm_epsilon", -1, "-1"),
        ("layer_norm_epsilon", float("nan"), "nan"), ("relative_attention_max_distance", 0, "0"),
        ("relative_attention_max_distance", 8, "8; with 32 buckets"), ("relative_attention_num_buckets", 2, "2"),
        ("feed_forward_proj", "gated-nothing", "'gated-nothing'"), ("dense_act_fn", "relu", "'relu'"),
        ("is_decoder", True, "True"), ("model_type", "bert", "'bert'"), ("quantization_config", {"bits": 4}, "{'bits'"),
    ]
    for field, value, told in cases:
        with subtests.test(field, value=told):
            folder = another()
            change_json(folder / "text_encoder" / "config.json", lambda values: values.update({field: value}))
            assert re.search(f"{field}( is |=){re.escape(told)}", refused(folder))


def test_ids_beyond_the_vocabulary(copy):
    path = copy / "tokenizer" / "tokenizer.json"
    change_json(path, lambda values: values["model"]["vocab"].update(ring=16))
    assert "gives 'ring' the id 16; the text encoder beside it has vocab_size=16" in refused(copy)
    change_json(path, lambda values: values["model"]["vocab"].update(ring=15))
    read_text(copy, 8).encode(["a red ring"])
    for number in (15, 16, 4000):  # which the end of a caption alone has
        end = {"</s>": {"id": "</s>", "ids": [number], "tokens": ["</s>"]}}
        change_json(path, lambda values: values["post_processor"]["special_tokens"].update(end))
        if number == 15:
            assert read_text(copy, 8).tokens(["a"])[0, 1] == number
        else:
            assert f"gives a special token the id {number}; the text encoder beside it has vocab" in refused(copy)


def test_code_beside_a_tokenizer_is_never_run(copy, tmp_path, monkeypatch):
    (copy / "tokenizer" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    change_json(copy / "tokenizer" / "tokenizer_config.json", lambda values: values.update(
        tokenizer_class="Mine", auto_map={"AutoTokenizer": [None, "mine.Mine"]}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    try:
        read_text(copy, 8)
    except ValueError as error:
        assert "does not open" in str(error)
    assert not (tmp_path / "ran").exists()


def test_tokenizers_that_cannot_work(another, subtests):
    cases = {
        "no words": lambda values: values["model"].update(vocab={}),
        "no table": lambda values: values["model"].update(vocab=5),
        "no model": lambda values: values.update(model=None),
        "unknown part": lambda values: values.update(pre_tokenizer={"type": "Nothing"}),
        "no end": lambda values: values["post_processor"].update(special_tokens={}),  # the library itself panics here
    }
    for name, change in cases.items():
        with subtests.test(name):
            folder = another()
            change_json(folder / "tokenizer" / "tokenizer.json", change)
            assert "tokenizer" in refused(folder)
    folder = another()
    change_json(folder / "tokenizer" / "tokenizer.json", lambda values: values.update(normalizer=None))
    text = read_text(folder, 8)  # without a normalizer it works, without padding it does not
    assert text.unknown_words("a red dog") == ["dog"] and text.tokens(["a red ring"]).shape == (1, 8)
    change_json(folder / "tokenizer" / "tokenizer_config.json", lambda values: values.pop("pad_token"))
    assert "does not open" in refused(folder)


def test_a_missing_package_is_named(copy, monkeypatch):
    from minicogvx.interop import text_folder

    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "spiece.model").write_bytes(b"")
    monkeypatch.setattr(text_folder, "find_spec", lambda name: None)
    assert "needs the package sentencepiece; install it with `pip install sentencepiece protobuf`" in refused(copy)
