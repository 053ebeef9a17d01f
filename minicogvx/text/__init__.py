"""Text encoding: T5 and its tokenizer."""

from minicogvx.text.encoder import TextEncoder, word_tokenizer

__all__ = ["TextEncoder", "word_tokenizer"]
