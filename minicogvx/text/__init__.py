"""Text encoding: T5 and its tokenizer."""

from minicogvx.text.encoder import TextEncoder, unknown_sentence, word_tokenizer

__all__ = ["TextEncoder", "unknown_sentence", "word_tokenizer"]
