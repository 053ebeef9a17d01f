"""The text encoder: whole-word vocabulary, unknown words, padding, saving."""

import io
import json

import pytest
import sentencepiece
import torch

from minicogvx.data.world.captions import vocabulary
from minicogvx.interop.text_folder import read_text, write_text
from minicogvx.text import TextEncoder
from tests.tiny import TINY


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    return TextEncoder.from_config(TINY.text, vocabulary(), max_length=12)


def test_every_word_is_one_token_whatever_its_case_and_punctuation(text):
    ids = text.tokens(["a red circle moves right"])[0].tolist()
    assert len(ids) == 12 and ids[5] == 1 and ids[6:] == [0] * 6  # five words, </s>, padding
    assert len(set(ids[:5])) == 5 and 2 not in ids and text.tokens(["dog"])[0, 0] == 2
    assert text.tokens(["A red circle, moves RIGHT."])[0].tolist() == ids


def test_unknown_words_and_signs_are_named_and_punctuation_is_not(text, subtests):
    cases = {
        "a red dog moves right, quickly!": ["dog", "quickly"], "a red circle moves right": [],
        "\U0001f534 circle moves \u27a1\ufe0f": ["\U0001f534", "\u27a1"], "a red circle \u2192 right": ["\u2192"],
        "a star \u00a9 on black": ["\u00a9"], "a \u201cred\u201d circle \u2014 it moves right; up\u2026": [],
        "a red circle ~ moves + right": [],
    }
    for caption, unknown in cases.items():
        with subtests.test(caption):
            assert text.unknown_words(caption) == unknown


def test_overlong_caption_is_refused(text):
    with pytest.raises(ValueError, match="has 14 tokens; at most 12 fit"):
        text.tokens(["a " * 13])


def test_encoding_depends_on_words_and_their_order(text):
    a, b, c = text.encode(["a red circle", "a circle red", "a red circle"]).detach()
    assert a.shape == (12, 16)
    assert torch.equal(a, c) and not torch.allclose(a, b)


def test_no_attention_mask(text):
    """Padding takes part, as published: the first word's feature changes with the padded length."""
    longer = TextEncoder(text.tokenizer, text.encoder, max_length=20)
    assert not torch.allclose(text.encode(["a red circle"])[0, 0], longer.encode(["a red circle"])[0, 0])


def test_saved_and_opened_it_is_the_same(text, tmp_path):
    write_text(text, tmp_path)
    again = read_text(tmp_path, max_length=12)
    caption = ["a blue star grows on black"]
    assert torch.equal(text.tokens(caption), again.tokens(caption))
    assert torch.equal(text.encode(caption), again.encode(caption))
    assert again.unknown_words("a blue zebra") == ["zebra"]
    assert not list(tmp_path.rglob("*.bin"))


def test_any_program_reads_the_saved_tokenizer_alike(text, tmp_path):
    from transformers import PreTrainedTokenizerFast

    write_text(text, tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    for caption in ("A Red circle, moves RIGHT!", "", "a red dog"):
        ids = theirs(caption, padding="max_length", max_length=12).input_ids
        assert ids == text.tokens([caption])[0].tolist()


def test_a_published_folder_opens_whose_tokenizer_is_a_sentencepiece_model_alone(tmp_path):
    """As in all published CogVideoX folders; sentencepiece itself gives the expected ids."""
    from transformers import T5Config, T5EncoderModel

    caption, model = "a red circle moves right on a black background", io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([caption, "the blue star grows"] * 30),
                                             model_writer=model, vocab_size=60, hard_vocab_limit=False, pad_id=0,
                                             eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
        "extra_ids": 100, "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]}))
    config = T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
    opened = read_text(tmp_path, max_length=40)
    ids = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(caption) + [1]
    assert opened.tokens([caption])[0].tolist() == ids + [0] * (40 - len(ids)) and len(ids) > 9
    assert opened.unknown_words("a red dog") == [] and opened.encode([caption]).shape == (1, 40, 16)
