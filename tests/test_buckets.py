import itertools

import pytest
import torch

from minicogvx.data.films.buckets import ASPECTS, aspect_buckets, choose_bucket, kept_share
from minicogvx.data.films.decode import resize_and_crop

SIZES = [(480, 720), (768, 1360), (128, 128)]


@pytest.mark.parametrize("height, width", SIZES)
def test_sizes_suit_the_model_and_cost_about_the_same(height, width):
    buckets = aspect_buckets(height, width)
    for h, w in buckets:
        assert h % 16 == 0 and w % 16 == 0
        assert abs(h * w / (height * width) - 1) < (0.03 if height > 400 else 0.16)
        assert (w, h) in buckets  # a video turned on its side is as welcome
    assert len(buckets) == len(set(buckets)) >= 5
    shapes = [w / h for h, w in buckets]
    assert shapes == sorted(shapes)
    for shape, aspect in zip(shapes, ASPECTS):
        if height > 400:
            assert shape == pytest.approx(aspect, rel=0.04)


def test_the_published_size_is_a_bucket_of_itself():
    assert (480, 720) in aspect_buckets(480, 720)
    assert aspect_buckets(768, 1360, aspects=[1360 / 768]) == ((768, 1360),)


def test_two_aspects_that_round_to_one_size_are_one_bucket():
    assert aspect_buckets(32, 32, aspects=[1.0, 1.1]) == ((32, 32),)
    assert aspect_buckets(16, 16, aspects=[100.0]) == ((16, 160),)  # a side is never rounded to nothing


@pytest.mark.parametrize("h, w, bucket", [(90, 160, (64, 64)), (64, 64, (90, 160)), (120, 60, (48, 72)),
                                          (48, 72, (96, 144))])
def test_kept_share_is_what_resize_and_crop_leaves(h, w, bucket):
    # Every pixel holds its row and column; what the crop spans is what was kept.
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    frame = torch.stack([rows, columns, rows * 0], dim=-1).to(torch.uint8)[None]
    kept = resize_and_crop(frame, *bucket)[0] * 255
    scale = max(bucket[0] / h, bucket[1] / w)
    spans = [(kept[..., axis].max() - kept[..., axis].min()).item() + 1 / scale for axis in (0, 1)]
    assert spans[0] * spans[1] / (h * w) == pytest.approx(kept_share(h, w, bucket), abs=0.04)


@pytest.mark.parametrize("h, w", [(1080, 1920), (1920, 1080), (480, 640), (1000, 1000), (817, 1920), (1, 500)])
def test_the_chosen_bucket_keeps_most(h, w):
    buckets = aspect_buckets(480, 720)
    chosen = choose_bucket(h, w, buckets)
    assert all(kept_share(h, w, chosen) >= kept_share(h, w, other) for other in buckets)
    assert choose_bucket(w, h, buckets) == chosen[::-1]


def test_videos_of_common_shapes_lose_little():
    buckets = aspect_buckets(480, 720)
    for (a, b), turned in itertools.product([(16, 9), (3, 2), (4, 3), (1, 1), (2, 1)], (False, True)):
        h, w = (a, b) if turned else (b, a)
        assert kept_share(h, w, choose_bucket(h, w, buckets)) > 0.96


@pytest.mark.parametrize("call, message", [
    (lambda: aspect_buckets(8, 720), "the size is 8x720; both sides must be at least 16"),
    (lambda: aspect_buckets(480, 720, aspects=[]), "give at least one"),
    (lambda: aspect_buckets(480, 720, aspects=[0.0]), "all above 0"),
    (lambda: kept_share(0, 10, (16, 16)), "the video is 0x10, the bucket 16x16"),
    (lambda: choose_bucket(9, 16, ()), "there are no buckets"),
])
def test_bad_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
