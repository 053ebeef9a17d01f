"""A small T5 that knows from the start which words stand near each other.

T5 learns from relative positions alone where a word stands: each head adds a learned number for the distance of two
words to their score (Raffel et al., 2020). They start as random numbers near 0, and the encoders of our toys, trained
together with the transformer, did not learn to use them: the scores of the words themselves became far larger. Then a
caption is a bag of words, which is enough for one object but not for two: to the model *red circle, blue star* and
*blue circle, red star* are the same (docs/results.md, "Two objects and the order of words").

Here the numbers start as -slope x distance, with half the slope in each next head, as in ALiBi (Press et al., 2022), so
that a word hears its neighbours best. They are learned from there; the model is a T5 like any other.
"""

import torch
from transformers import T5EncoderModel

from minicogvx.presets import TextConfig
from minicogvx.text import TextEncoder
from minicogvx.training.settings import TransformerTraining


def random_text(config: TextConfig, words: tuple[str, ...], max_length: int,
                training: TransformerTraining) -> TextEncoder:
    """`TextEncoder.from_config`, with the biases that the training wants."""
    text = TextEncoder.from_config(config, words, max_length)
    if training.text_bias_slope is not None:
        prefer_neighbours(text.encoder, training.text_bias_slope)
    return text


@torch.no_grad()
def prefer_neighbours(encoder: T5EncoderModel, slope: float) -> None:
    """Sets each bias to -slope x distance (of a bucket: the mean of its distances), halved from head to head."""
    attention = encoder.encoder.block[0].layer[0].SelfAttention  # the blocks share its biases
    buckets, furthest = attention.relative_attention_num_buckets, attention.relative_attention_max_distance
    places = torch.arange(1 - furthest, furthest)
    of_place = attention._relative_position_bucket(places, bidirectional=True, num_buckets=buckets,
                                                   max_distance=furthest)
    counts = torch.zeros(buckets).index_add(0, of_place, torch.ones(len(places)))
    distances = torch.zeros(buckets).index_add(0, of_place, places.abs().float()) / counts.clamp(min=1)
    slopes = slope * 0.5 ** torch.arange(attention.n_heads)
    attention.relative_attention_bias.weight.copy_(-distances[:, None] * slopes)
