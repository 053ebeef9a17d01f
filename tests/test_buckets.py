"""Buckets of sizes: every shape of video finds one of about the same area that keeps most of it."""

import pytest
import torch

from minicogvx.data.films.buckets import ASPECTS, aspect_buckets, choose_bucket, kept_share
from minicogvx.data.films.decode import resize_and_crop


def test_sizes_suit_the_model_and_cost_about_the_same(subtests):
    for height, width in ((480, 720), (768, 1360), (128, 128)):
        with subtests.test(msg=f"{height}x{width}"):
            buckets = aspect_buckets(height, width)
            for h, w in buckets:
                assert h % 16 == 0 and w % 16 == 0
                assert abs(h * w / (height * width) - 1) < (0.03 if height > 400 else 0.16)
                assert (w, h) in buckets  # a video turned on its side is as welcome
            assert len(buckets) == len(set(buckets)) >= 5
            shapes = [w / h for h, w in buckets]
            assert shapes == sorted(shapes)
            if height > 400:
                assert shapes == pytest.approx(ASPECTS, rel=0.04)


def test_the_published_size_is_a_bucket_of_itself():
    assert (480, 720) in aspect_buckets(480, 720)
    assert aspect_buckets(768, 1360, aspects=[1360 / 768]) == ((768, 1360),)


def test_two_aspects_that_round_to_one_size_are_one_bucket():
    assert aspect_buckets(32, 32, aspects=[1.0, 1.1]) == ((32, 32),)
    assert aspect_buckets(16, 16, aspects=[100.0]) == ((16, 160),)  # a side is never rounded to nothing


def test_kept_share_is_what_resize_and_crop_leaves(subtests):
    for h, w, bucket in ((90, 160, (64, 64)), (64, 64, (90, 160)), (120, 60, (48, 72)), (48, 72, (96, 144))):
        with subtests.test(msg=f"{h}x{w} to {bucket}"):
            # Every pixel holds its row and column; what the crop spans is what was kept.
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            frame = torch.stack([rows, columns, rows * 0], dim=-1).to(torch.uint8)[None]
            kept = resize_and_crop(frame, *bucket)[0] * 255
            scale = max(bucket[0] / h, bucket[1] / w)
            spans = [(kept[..., axis].max() - kept[..., axis].min()).item() + 1 / scale for axis in (0, 1)]
            assert spans[0] * spans[1] / (h * w) == pytest.approx(kept_share(h, w, bucket), abs=0.04)


def test_the_chosen_bucket_keeps_most_and_of_common_shapes_nearly_all(subtests):
    buckets = aspect_buckets(480, 720)
    common, odd = [(9, 16), (2, 3), (3, 4), (1, 1), (1, 2)], [(1080, 1920), (1000, 1000), (817, 1920), (1, 500)]
    for h, w in [*common, *odd]:
        with subtests.test(msg=f"{h}x{w}"):
            chosen = choose_bucket(h, w, buckets)
            assert all(kept_share(h, w, chosen) >= kept_share(h, w, other) for other in buckets)
            assert choose_bucket(w, h, buckets) == chosen[::-1]
            assert (h, w) in odd or kept_share(h, w, chosen) > 0.96 < kept_share(w, h, chosen[::-1])


def test_bad_sizes_are_named(subtests):
    for call, message in (
        (lambda: aspect_buckets(8, 720), "8x720"),
        (lambda: aspect_buckets(480, 720, aspects=[]), "give at least one"),
        (lambda: aspect_buckets(480, 720, aspects=[0.0]), "above 0"),
        (lambda: kept_share(0, 10, (16, 16)), "the video is 0x10, the bucket 16x16"),
        (lambda: choose_bucket(9, 16, ()), "no buckets"),
    ):
        with subtests.test(msg=message), pytest.raises(ValueError, match=message):
            call()
