"""Videos that begin with given frames: put back in any model, on channels in one trained for it; films continued."""

import pytest
import torch

from minicogvx.diffusion.conditioning import FirstFramesPutBack, ImageChannels
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.presets import ScheduleConfig
from tests.tiny import CAPTIONS, tiny_pipe

FILM = torch.rand(5, 32, 32, 3, generator=torch.Generator().manual_seed(0))
RUN = {"num_inference_steps": 2}


def test_a_prefix_is_put_back_whole_and_the_rest_is_made(subtests):
    for fields, pad in (({}, 0), ({"patch_size_t": 2}, 1)):
        with subtests.test(fields=fields):
            pipe = tiny_pipe(transformer=fields)
            latents = pipe.sample([CAPTIONS[0]], prefix=FILM[None], **RUN)  # 1 c 3 h w
            known = pipe.vae.encode(FILM.permute(3, 0, 1, 2)[None] * 2 - 1).mean * 0.9
            assert latents.shape == (1, 4, 3, 8, 8)
            apart = (latents[:, :, :2] - known).abs().mean()
            posterior = pipe.vae.encode(FILM.permute(3, 0, 1, 2)[None] * 2 - 1).std.mean() * 0.9
            assert apart < 1.2 * posterior  # as far as a draw of the posterior is from its mean
            other = pipe.sample([CAPTIONS[0]], prefix=FILM.flip(0)[None], **RUN)
            assert not torch.allclose(latents[:, :, 2:], other[:, :, 2:])
    picture = FILM[0]
    one, prefix = (pipe(CAPTIONS[0], **given, **RUN) for given in ({"image": picture}, {"prefix": picture[None]}))
    assert torch.equal(one, prefix)  # an image is a prefix of one frame
    assert pipe(CAPTIONS[0], prefix=FILM, **RUN).shape == (9, 32, 32, 3)


def test_conditions_hold_several_frames():
    schedule, noise, given = NoiseSchedule(ScheduleConfig()), torch.randn(1, 4, 5, 2, 2), torch.randn(1, 4, 2, 2, 2)
    seen = ImageChannels(noise, given).network_input(noise)
    assert torch.equal(seen[:, 4:, :2], given) and not seen[:, 4:, 2:].any() and torch.equal(seen[:, :4], noise)
    padded = FirstFramesPutBack(noise, given, schedule, pad_frames=1)
    known = torch.cat([given[:, :, :1], given], dim=2)
    assert torch.equal(padded.last(noise), torch.cat([known, noise[:, :, 3:]], dim=2))
    assert torch.equal(padded.before(given.new_zeros(noise.shape), 999)[:, :, :3], noise[:, :, :3])  # pure noise


def test_a_prefix_that_cannot_be_is_refused(subtests):
    pipe = tiny_pipe()
    for given, sentence in (
        ({"prefix": FILM[:4]}, "the prefix has 4 frames, and the video is to have 9; it must be 4k"),
        ({"prefix": torch.rand(9, 32, 32, 3)}, "the prefix has 9 frames.*, and fewer than the video's"),
        ({"prefix": FILM[:0]}, "the prefix has 0 frames"),
        ({"prefix": FILM[:, :16]}, "the prefix is 5x16x32; it must be 5x32x32"),
        ({"prefix": FILM * 255}, "the prefix holds values outside 0..1"),
        ({"prefix": FILM, "image": FILM[0]}, "both an image and a prefix are given"),
        ({"prefix": FILM, "video": torch.rand(9, 32, 32, 3)}, "both a video and a prefix are given"),
    ):
        with subtests.test(sentence), pytest.raises(ValueError, match=sentence):
            pipe(CAPTIONS[0], **given, **RUN)
    with pytest.raises((ValueError, TypeError), match="it must be frames x height|[Tt]ype-check"):
        pipe(CAPTIONS[0], prefix=FILM[0], **RUN)


def test_a_film_is_extended_and_stays_as_it_was():
    pipe, film = tiny_pipe(), torch.rand(13, 32, 32, 3)
    longer = pipe.extend(film, CAPTIONS[0], overlap=5, num_inference_steps=2)
    assert longer.shape == (17, 32, 32, 3) and torch.equal(longer[:13], film)
    assert torch.equal(longer[13:], pipe(CAPTIONS[0], prefix=film[-5:], num_inference_steps=2)[5:])
    for overlap in (0, 14):
        with pytest.raises(ValueError, match=f"overlap is {overlap}; it must be from 1 to 13"):
            pipe.extend(film, CAPTIONS[0], overlap=overlap)
