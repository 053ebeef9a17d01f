"""Text to features: a T5 encoder run without attention mask on captions padded to one length, as published.

The small models have a small T5 with a vocabulary of whole words; the published ones load T5 v1.1 XXL. Both are
`transformers.T5EncoderModel`, so one class serves both.
"""

from collections.abc import Iterable
from unicodedata import category

import torch
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from minicogvx.presets import TextConfig
from minicogvx.visible import first_few, many

T5_ALWAYS = {"dropout_rate": 0.0, "is_encoder_decoder": False, "use_cache": False, "pad_token_id": 0, "eos_token_id": 1}
SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as T5 has them


def word_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A tokenizer whose every token is one of the given lower-case words; like T5's it ends a caption with `</s>`.

    Capital letters and punctuation do not matter, and the saved file says so too: other programs read it alike.
    """
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *words))}, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), " ")])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   model_input_names=["input_ids", "attention_mask"])


class TextEncoder:
    """Tokenizer and T5 encoder. `encode(["a red circle"])` gives `b n d_text` with n = `max_length`."""

    def __init__(self, tokenizer, encoder: T5EncoderModel, max_length: int):
        self.tokenizer, self.encoder, self.max_length = tokenizer, encoder, max_length
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.whole_words = backend is not None and isinstance(backend.model, models.WordLevel)
        self.vocabulary = set(tokenizer.get_vocab()) - set(SPECIAL) if self.whole_words else None

    @classmethod
    def from_config(cls, config: TextConfig, words: tuple[str, ...], max_length: int) -> "TextEncoder":
        """A new encoder with random weights and a vocabulary of `words`."""
        t5 = T5Config(vocab_size=max(config.vocab_size, len(words) + len(SPECIAL)), d_model=config.d_model,
                      d_kv=config.d_kv, d_ff=config.d_ff, num_layers=config.num_layers, num_heads=config.num_heads,
                      feed_forward_proj=config.feed_forward_proj, **T5_ALWAYS)
        return cls(word_tokenizer(words), T5EncoderModel(t5), max_length)

    def to(self, *target) -> "TextEncoder":
        """Moves the encoder to a device or dtype, as `move_encoder` does."""
        move_encoder(self.encoder, *target)
        return self

    def tokens(self, captions: list[str]) -> Int[Tensor, "b n"]:
        """Token ids, padded to `max_length`. Raises ValueError for a caption that is longer."""
        rows = self.tokenizer(captions, padding="max_length", max_length=self.max_length, truncation=False).input_ids
        for caption, row in zip(captions, rows):
            if len(row) > self.max_length:
                raise ValueError(f"the caption {caption[:40]!r}... has {len(row)} tokens; at most {self.max_length} "
                                 f"fit")
        return torch.tensor(rows)

    def encode(self, captions: list[str]) -> Float[Tensor, "b n d_text"]:
        """Features of each token, padding included; gradients flow where they are enabled."""
        ids = self.tokens(captions).to(self.encoder.device)
        return self.encoder(ids).last_hidden_state

    def unknown_words(self, caption: str) -> list[str]:
        """Words of the caption that this model has never seen, then signs such as emoji, which it drops.

        Punctuation does not count. Always empty for a sub-word vocabulary.
        """
        if not self.whole_words:
            return []
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        plain = caption if normalizer is None else normalizer.normalize_str(caption)
        signs = [sign for sign in caption
                 if category(sign).startswith("S") and not sign.isascii() and sign not in plain]
        # A selector of how an emoji looks is left over as a word of its own, which nobody wrote.
        words = [word for word in plain.split() if not all(category(each).startswith("M") for each in word)]
        return [word for word in words if word not in self.vocabulary] + signs


def unknown_sentence(text: TextEncoder, captions: Iterable[tuple[str, str]]) -> str:
    """The words of all captions that the model does not know, and where they are; empty if there are none.

    `captions`: names of films, and their captions.
    """
    unknown = {} if not text.whole_words else {
        name: words for name, caption in captions if (words := text.unknown_words(caption))}
    words = sorted({word for each in unknown.values() for word in each})
    return "" if not words else (f"words that this model does not know, in {many(len(unknown), 'caption')}: "
                                 f"{first_few(words, 12)} ({first_few(list(unknown), 3)})")


def move_encoder(encoder: T5EncoderModel, *target) -> None:
    """`encoder.to(*target)`, except that layers called `wo` are float32 where the others are float16.

    Their sums overflow float16 in T5 XXL; transformers does the same.
    """
    layers = [module for name, module in encoder.named_modules() if name.endswith(".wo")]
    weights = [layer.weight.detach() for layer in layers]  # not rounded on the way
    encoder.to(*target)
    for layer, weight in zip(layers, weights):
        if layer.weight.dtype == torch.float16:
            layer.weight.data = weight.to(layer.weight.device, torch.float32)
