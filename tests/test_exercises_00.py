"""Exercises 0.1 to 0.3 (bytes, words, averages) distinguish right from wrong, and name the mistake."""

import math
import re

import pytest
import torch
from einops import rearrange, reduce, repeat

from minicogvx.course.exercises import find
from minicogvx.course.exercises.averages import decibels_of_means, numbers_kept
from minicogvx.data.world import captions
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import Scene, ShapeObject
from minicogvx.media import _to_bytes
from minicogvx.text import word_tokenizer
from tests.guards import guard

# ---- 0.1 to_screen


def right_to_screen(video):
    return (video.permute(0, 2, 3, 4, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def still_floats(video):
    return rearrange(video / 2 + 0.5, "b c t h w -> b t h w c").clamp(0, 1)


def cut_off(video):
    return (still_floats(video) * 255).to(torch.uint8)


def times_256(video):
    return (still_floats(video) * 256).int().to(torch.uint8)


def not_shifted(video):
    return (video.permute(0, 2, 3, 4, 1).clamp(0, 1) * 255).round().to(torch.uint8)


def wraps_around(video):
    return ((video / 2 + 0.5) * 255).round().int().permute(0, 2, 3, 4, 1).to(torch.uint8)


def clamped_above_only(video):
    return ((video / 2 + 0.5) * 255).round().clamp(max=255).int().permute(0, 2, 3, 4, 1).to(torch.uint8)


def reshaped(video):
    b, c, t, h, w = video.shape
    return right_to_screen(video.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3))


def channels_before_frames(video):
    return rearrange(right_to_screen(video), "b t h w c -> b c t h w")


def stretched(video):
    low, high = video.min(), video.max()
    return right_to_screen((video - low) / (high - low) * 2 - 1)


def clamped_in_place(video):
    return right_to_screen(video.clamp_(-1, 1))


def the_first_only(video):
    return right_to_screen(video)[0]


def upside_down(video):
    return right_to_screen(video).flip(2)


def test_to_screen():
    guard("0.1", right_to_screen, [
        ("has dtype torch.float32; a screen wants whole numbers 0..255, torch.uint8", still_floats),
        ("A number of 0.198 in the video becomes 152; it must become 153. Take the nearest integer", cut_off),
        ("A number of 1 in the video becomes 0; it must become 255", times_256),
        ("A number of 0.202 in the video becomes 52; it must become 153. Black is -1", not_shifted),
        ("A number of 1.3 in the video becomes 37; it must become 255. A byte ends at 255", wraps_around),
        ("A number of -1.3 in the video becomes 218; it must become 0. A byte cannot hold", clamped_above_only),
        ("the pixels have moved: reshape and view keep the order of the numbers", reshaped),
        ("has shape (2, 3, 5, 4, 6); it must be (2, 5, 4, 6, 3)", channels_before_frames),
        ("A number of -1 in the video becomes 29; it must become 0", stretched),
        ("changes its input video", clamped_in_place),
        ("has shape (5, 4, 6, 3); it must be (2, 5, 4, 6, 3)", the_first_only),
        ("The shape is right, but the pixels have moved", upside_down),
    ])


# ---- 0.2 number_words


def right_number_words(caption, number_of, length):
    words = re.findall(r"\w+", caption.lower())
    if len(words) >= length:
        raise ValueError(f"{len(words)} words")
    return ([number_of[word] if word in number_of else 2 for word in words] + [1] + [0] * length)[:length]


def knows_every_word(caption, number_of, length):
    words = re.findall(r"\w+", caption.lower())
    return ([number_of[word] for word in words] + [1] + [0] * length)[:length]


def drops_the_unknown(caption, number_of, length):
    known = [word for word in re.findall(r"\w+", caption.lower()) if word in number_of]
    return right_number_words(" ".join(known), number_of, length)


def capitals_matter(caption, number_of, length):
    words = re.findall(r"\w+", caption)
    return ([number_of.get(word, 2) for word in words] + [1] + [0] * length)[:length]


def punctuation_sticks(caption, number_of, length):
    words = caption.lower().split()
    return ([number_of.get(word, 2) for word in words] + [1] + [0] * length)[:length]


def punctuation_vanishes(caption, number_of, length):
    return punctuation_sticks(re.sub(r"[^\w\s]", "", caption), number_of, length)


def without_an_end(caption, number_of, length):
    return [token for token in right_number_words(caption, number_of, length) if token != 1] + [0]


def end_at_the_end(caption, number_of, length):
    return without_an_end(caption, number_of, length)[:-1] + [1]


def without_padding(caption, number_of, length):
    return [token for token in right_number_words(caption, number_of, length) if token]


def cuts_off(caption, number_of, length):
    return right_number_words(caption, number_of, 99)[:length]


def refuses_a_full_row(caption, number_of, length):
    if len(caption.split()) + 1 >= length:
        raise ValueError("too long")
    return right_number_words(caption, number_of, length)


def learns_new_words(caption, number_of, length):
    for word in re.findall(r"\w+", caption.lower()):
        number_of.setdefault(word, 2)
    return right_number_words(caption, number_of, length)


def as_a_tensor(caption, number_of, length):
    return torch.tensor(right_number_words(caption, number_of, length))


def test_number_words():
    guard("0.2", right_number_words, [
        ("KeyError: 'dragon'", knows_every_word),
        ("[3, 6, 5, 7, 1, 0, 0, 0]; it must be [3, 6, 2, 5, 7, 1, 0, 0]. An unknown word becomes 2", drops_the_unknown),
        ("is [2, 2, 2, 5, 7, 1, 0, 0]; it must be [3, 6, 4, 5, 7, 1, 0, 0]. Capital letters do not", capitals_matter),
        ("Punctuation counts as a space", punctuation_sticks),
        ("Punctuation counts as a space", punctuation_vanishes),
        ("is [3, 6, 4, 5, 7, 0, 0, 0]; it must be [3, 6, 4, 5, 7, 1, 0, 0]. First the words", without_an_end),
        ("is [3, 6, 4, 5, 7, 0, 0, 1]; it must be", end_at_the_end),
        ("is [3, 6, 4, 5, 7, 1]; it must be", without_padding),
        ("number_of, 5) gives [3, 6, 4, 5, 7]; it must raise ValueError", cuts_off),
        ("ValueError: too long", refuses_a_full_row),
        ("changes number_of", learns_new_words),
        ("of type Tensor; it must be [3, 6, 4, 5, 7, 1, 0, 0], of type list", as_a_tensor),
    ])


# ---- 0.3 cheapest_average

PAIRS = [(together, side) for together in (1, 2, 4, 8, 16) for side in (1, 2, 4, 8, 16)]


def quality(clip, together, side):
    groups = [clip[:1], *clip[1:].split(together)]
    copy = torch.cat([repeat(reduce(group, "t (h p) (w q) c -> h w c", "mean", p=side, q=side),
                             "h w c -> t (h p) (w q) c", t=len(group), p=side, q=side) for group in groups])
    return -10 * math.log10((clip - copy).square().mean().item() + 1e-30)


def count(clip, together, side):
    return (1 + math.ceil((len(clip) - 1) / together)) * clip[0].numel() // side**2


def right_cheapest_average(clip, target):
    return min((pair for pair in PAIRS if quality(clip, *pair) >= target), key=lambda pair: count(clip, *pair))


def the_best_quality(clip, target):
    return max(PAIRS, key=lambda pair: quality(clip, *pair))


def the_fewest_of_all(clip, target):
    return 16, 16


def the_wrong_way_round(clip, target):
    return right_cheapest_average(clip, target)[::-1]


def the_first_that_reaches(clip, target):
    return next(pair for pair in PAIRS if quality(clip, *pair) >= target)


def largest_side_first(clip, target):
    return max((pair for pair in PAIRS if quality(clip, *pair) >= target), key=lambda pair: pair[::-1])


def largest_group_first(clip, target):
    return max(pair for pair in PAIRS if quality(clip, *pair) >= target)


def the_count_itself(clip, target):
    return count(clip, *right_cheapest_average(clip, target))


def a_side_of_three(clip, target):
    return 2, 3


def never_exact(clip, target):
    return min((pair for pair in PAIRS[1:] if quality(clip, *pair) >= target), default=(1, 2),
               key=lambda pair: count(clip, *pair))


def test_cheapest_average():
    guard("0.3", right_cheapest_average, [
        ("another pair reaches the target with", the_best_quality),
        ("target 20 dB, is (16, 16), which reaches only", the_fewest_of_all),
        ("Is your pair the wrong way round? Frames come first.", the_wrong_way_round),
        ("another pair reaches the target with", the_first_that_reaches),
        ("blinking squares (17 x 32 x 32), target 19 dB, is (1, 2), which keeps 13,056 numbers", largest_side_first),
        ("another pair reaches the target with", largest_group_first),
        ("it must be a pair (frames in a group, side of a square)", the_count_itself),
        ("is (2, 3); it must be a pair", a_side_of_three),
        ("target 90 dB, is (1, 2), which reaches only", never_exact),
        ("is None; does your function end in return?", lambda clip, target: None),
    ])


def test_averages_as_good_as_25_decibels_cost_ten_times_the_numbers_of_the_vae():
    star = ShapeObject("star", "yellow", "moves right", x=0.28, y=0.5, radius=0.2, speed=0.44)  # notebook 00's clip
    clip = render(Scene((star,), "navy"), 17, 64, 64)
    best = find("0.3").reference(clip, 25)
    assert best == (1, 2) and numbers_kept(clip, *best) == 52_224
    assert numbers_kept(clip, 2, 4) == 6_912 and decibels_of_means(clip, 2, 4) < 22


# ---- what replaces the learner's own


def test_the_screen_gets_what_the_pipeline_writes_to_files():
    video = 2.4 * torch.rand(1, 3, 5, 16, 16) - 1.2
    decoded = rearrange(video / 2 + 0.5, "b c t h w -> b t h w c").clamp(0, 1)  # as Pipeline.decode ends
    assert torch.equal(find("0.1").reference(video)[0], _to_bytes(decoded[0]))


def test_words_are_numbered_as_the_tokenizer_does():
    words = captions.vocabulary()
    tokenizer, number_of = word_tokenizer(words), {word: 3 + i for i, word in enumerate(words)}
    for caption in ("a red circle moves right", "A Red dragon, moves right!", "", "x-y it's a star..."):
        ids = tokenizer(caption, padding="max_length", max_length=32).input_ids
        assert find("0.2").reference(caption, number_of, 32) == ids
    with pytest.raises(ValueError, match="the caption has 6 tokens with its end; at most 5 fit"):
        find("0.2").reference("a red circle moves right", number_of, 5)
