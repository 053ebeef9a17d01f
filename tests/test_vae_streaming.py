"""A long video through the VAE in pieces: the same result as in one pass, in constant memory."""

from itertools import product

import pytest
import torch

from minicogvx.vae import CausalVAE
from minicogvx.vae.causal_conv import ConvCache
from tests.tiny import tiny_vae


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


VIDEO, LATENTS = normal(1, 3, 21, 8, 8), normal(1, 4, 6, 2, 2)
CLOSE = {"rtol": 0.0, "atol": 2e-6}


def encoded(vae: CausalVAE, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    stream = list(vae.encode_stream(iter(VIDEO.split(sizes, dim=2))))
    return torch.cat([p.mean for p in stream], dim=2), torch.cat([p.logvar for p in stream], dim=2)


def decoded(vae: CausalVAE, sizes: list[int]) -> torch.Tensor:
    return torch.cat(list(vae.decode_stream(iter(LATENTS.split(sizes, dim=2)))), dim=2)


def test_encoding_in_pieces_is_encoding_the_whole(subtests):
    for grad, sizes in product((False, True), [[21], [1, 4, 4, 4, 4, 4], [9, 12], [5, 8, 8], [1, 20]]):
        with subtests.test(grad=grad, sizes=sizes):
            vae = tiny_vae(norm_over="frame")
            whole = vae.encode(VIDEO, chunk_frames=None)
            with torch.set_grad_enabled(grad):
                mean, logvar = encoded(vae, sizes)
            torch.testing.assert_close(mean, whole.mean, **CLOSE)
            torch.testing.assert_close(logvar, whole.logvar, **CLOSE)


def test_decoding_in_pieces_is_decoding_the_whole(subtests):
    for grad, sizes in product((False, True), [[6], [1, 1, 1, 1, 1, 1], [3, 2, 1], [2, 4]]):
        with subtests.test(grad=grad, sizes=sizes):
            vae = tiny_vae(norm_over="frame")
            with torch.set_grad_enabled(grad):
                pieces = decoded(vae, sizes)
            torch.testing.assert_close(pieces, vae.decode(LATENTS, chunk_latents=None), **CLOSE)


def test_chunks_change_nothing_where_norms_see_one_frame(subtests):
    for fields in ({}, {"time_padding": "zeros"}, {"resampling": "residual"}):
        with subtests.test(**fields):
            vae = tiny_vae(norm_over="frame", **fields)
            whole = vae.encode(VIDEO, chunk_frames=None).mean
            for chunk in (4, 8, 12):
                torch.testing.assert_close(vae.encode(VIDEO, chunk_frames=chunk).mean, whole, **CLOSE)
            for chunk in (1, 2, 3):
                torch.testing.assert_close(vae.decode(LATENTS, chunk_latents=chunk), vae.decode(LATENTS, None), **CLOSE)


def test_norms_over_the_chunk_stream_as_the_published_chunks():
    vae = tiny_vae()
    mean, _ = encoded(vae, [13, 8])  # how 21 frames are cut
    assert torch.equal(mean, vae.encode(VIDEO, chunk_frames=8).mean)
    assert torch.equal(decoded(vae, [2, 2, 2]), vae.decode(LATENTS, chunk_latents=2))
    other, _ = encoded(vae, [5, 8, 8])  # other pieces, other statistics
    assert (other - mean).abs().max() > 1e-3


def test_a_stream_needs_the_same_memory_after_two_pieces_and_after_eight(subtests):
    for norm_over in ("chunk", "frame"):
        with subtests.test(norm_over=norm_over):
            vae = tiny_vae(norm_over=norm_over)
            for network, first, later in ((vae.encoder, normal(1, 3, 5, 8, 8), normal(1, 3, 4, 8, 8)),
                                          (vae.decoder, normal(1, 4, 2, 2, 2), normal(1, 4, 1, 2, 2))):
                cache, held = ConvCache(), []
                for piece in (first, *[later] * 7):
                    network(piece, cache)
                    cache.start = False
                    held.append(sum(past.untyped_storage().nbytes() for past in cache.past.values()))
                assert held[1] == held[7] > 0
                assert all(past.shape[2] == 2 for past in cache.past.values())  # two frames for each causal convolution


def test_a_stream_asks_for_a_piece_only_when_it_needs_it():
    asked = []

    def pieces():
        for i in range(3):
            asked.append(i)
            yield VIDEO[:, :, :5] if i == 0 else VIDEO[:, :, 5:9]

    stream = tiny_vae().encode_stream(pieces())
    assert asked == []
    next(stream)
    assert asked == [0]
    next(stream)
    assert asked == [0, 1]


def test_two_streams_do_not_disturb_each_other():
    vae = tiny_vae()
    one, two = (vae.decode_stream(iter(z.split(2, dim=2))) for z in (LATENTS, -LATENTS))
    mixed = [next(stream) for stream in (one, two, one, two, one, two)]
    torch.testing.assert_close(torch.cat(mixed[::2], dim=2), vae.decode(LATENTS))
    torch.testing.assert_close(torch.cat(mixed[1::2], dim=2), vae.decode(-LATENTS))


def test_a_piece_that_cuts_a_latent_or_cannot_be_encoded_or_decoded_is_refused(subtests):
    vae = tiny_vae()
    for sizes, frames in (([4, 17], 4), ([5, 3, 13], 3), ([5, 5, 11], 5)):
        with subtests.test(sizes=sizes), pytest.raises(ValueError, match=f"^a piece has {frames} frames; .* 4k . 1 "):
            encoded(vae, sizes)
    cases = [
        (vae.encode_stream, [torch.zeros(1, 3, 5, 8, 10)], "the video is 8x10"),
        (vae.encode_stream, [torch.zeros(1, 1, 5, 8, 8)], "the video has 1 channels"),
        (vae.encode_stream, [torch.full((1, 3, 5, 8, 8), torch.nan)], "the video holds NaN"),
        (vae.decode_stream, [LATENTS, LATENTS * torch.nan], "the latents hold NaN"),
    ]
    for stream, pieces, sentence in cases:
        with subtests.test(sentence), pytest.raises(ValueError, match=f"^{sentence}"):
            list(stream(iter(pieces)))


def test_a_stream_takes_a_list_of_pieces_of_different_lengths():
    for _ in range(3):  # the type check looks at one piece of a list, drawn by chance
        assert len(list(tiny_vae().encode_stream(list(VIDEO.split([5, 8, 8], dim=2))))) == 3
        assert len(list(tiny_vae().decode_stream(list(LATENTS.split([3, 2, 1], dim=2))))) == 3
