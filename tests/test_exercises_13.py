"""Exercises of notebook 13 distinguish right from wrong, and name the mistake."""

import math

import torch
import torch.nn.functional as F

from minicogvx.course.exercises.films_13 import continued
from minicogvx.course.exercises.notebook_13 import beside, known_put_back, steps_before, strength_of_most, widened
from minicogvx.diffusion.conditioning import FirstFramesPutBack
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.presets import ScheduleConfig
from tests.guards import guard

# ---- 13.1 put_back


def with_level(latents, known, a, s, noise):
    return torch.cat([a * known + s * noise[:, :, :known.shape[2]], latents[:, :, known.shape[2]:]], dim=2)


def right(latents, known, noise, alpha_bar):
    return with_level(latents, known, alpha_bar ** 0.5, (1 - alpha_bar) ** 0.5, noise)


def clean(latents, known, noise, alpha_bar):
    return with_level(latents, known, 1, 0, noise)


def fresh_noise(latents, known, noise, alpha_bar):
    return right(latents, known, torch.randn_like(noise), alpha_bar)


def without_the_roots(latents, known, noise, alpha_bar):
    return with_level(latents, known, alpha_bar, 1 - alpha_bar, noise)


def exchanged(latents, known, noise, alpha_bar):
    return right(latents, known, noise, 1 - alpha_bar)


def only_the_first(latents, known, noise, alpha_bar):
    return right(latents, known[:, :, :1], noise, alpha_bar)


def in_place(latents, known, noise, alpha_bar):
    latents[:, :, :known.shape[2]] = right(latents, known, noise, alpha_bar)[:, :, :known.shape[2]]
    return latents


def noise_of_the_end(latents, known, noise, alpha_bar):
    return right(latents, known, noise.roll(known.shape[2], 2), alpha_bar)


def as_numpy(latents, known, noise, alpha_bar):
    return right(latents, known, noise, alpha_bar).numpy()


def into_the_last_frames(latents, known, noise, alpha_bar):
    return right(latents.flip(2), known, noise, alpha_bar).flip(2)


def test_put_back():
    guard("13.1", right, [
        ("were put back clean", clean),
        ("it draws fresh noise", fresh_noise),
        ("were put back as 0.64 known + 0.36 noise", without_the_roots),
        ("with the two shares exchanged", exchanged),
        ("latent frame 1 was not put back", only_the_first),
        ("changed the latents that it was given", in_place),
        ("with the noise of the last frames", noise_of_the_end),
        ("is a ndarray; it must be a tensor", as_numpy),
        ("which are not known,", into_the_last_frames),
        ("does your function end in return", lambda *_: None),
    ])


def test_it_is_what_the_pipeline_does():
    schedule, latents, noise = NoiseSchedule(ScheduleConfig()), torch.randn(1, 4, 5, 2, 2), torch.randn(1, 4, 5, 2, 2)
    known = torch.randn(1, 4, 3, 2, 2)
    pinned = FirstFramesPutBack(noise, known, schedule)
    torch.testing.assert_close(known_put_back(latents, known, noise, schedule.alpha_bar(400)),
                               pinned.before(latents, 400))


# ---- 13.2 image_beside


def made(pictures, encode, frames, generator, sigma=None, before=True, everywhere=False):
    b = len(pictures)
    if sigma is None:
        sigma = (-3 + 0.5 * torch.randn(b, 1, 1, 1, 1, generator=generator)).exp()
    latents = encode(pictures + sigma * torch.randn(pictures.shape, generator=generator) if before else pictures)
    if not before:
        latents = latents + sigma * torch.randn(latents.shape, generator=generator)
    if everywhere:
        return latents.expand(-1, -1, frames, -1, -1)
    return F.pad(latents, (0, 0, 0, 0, 0, frames - 1))


def after_encoding(*given):
    return made(*given, before=False)


def in_all_frames(*given):
    return made(*given, everywhere=True)


def one_sigma(pictures, encode, frames, generator):
    return made(pictures, encode, frames, generator, (-3 + 0.5 * torch.randn((), generator=generator)).exp())


def no_exponential(pictures, encode, frames, generator):
    return made(pictures, encode, frames, generator, -3 + 0.5 * torch.randn(len(pictures), 1, 1, 1, 1))


def no_noise(pictures, encode, frames, generator):
    return made(pictures, encode, frames, generator, 0.0)


def one_noise(pictures, encode, frames, generator):
    sigma = (-3 + 0.5 * torch.randn(len(pictures), 1, 1, 1, 1, generator=generator)).exp()
    return F.pad(encode(pictures + sigma * torch.randn(pictures[:1].shape)), (0, 0, 0, 0, 0, frames - 1))


def spread_forgotten(pictures, encode, frames, generator):
    return made(pictures, encode, frames, generator,
                (-3 + torch.randn(len(pictures), 1, 1, 1, 1, generator=generator)).exp())


def zeros_in_front(pictures, encode, frames, generator):
    return made(pictures, encode, frames, generator).flip(2)


def one_frame_too_many(pictures, encode, frames, generator):
    return made(pictures, encode, frames + 1, generator)


def one_by_one(pictures, encode, frames, generator):
    return torch.cat([made(picture[None], encode, frames, generator) for picture in pictures])


def test_image_beside():
    guard("13.2", made, [
        ("Noise belongs on the pixels", after_encoding),
        ("must be zeros; one picture says nothing about them", in_all_frames),
        ("noise of nearly the same strength", one_sigma),
        ("it must be exp(-3) = 0.0498", no_exponential),
        ("went to encode without noise", no_noise),
        ("the same noise, only stronger or weaker", one_noise),
        ("its logarithm the spread", spread_forgotten),
        ("latent frame 0 must be what encode gave", zeros_in_front),
        ("it must be (64, 4, 5, 2, 2)", one_frame_too_many),
        ("encode must be called once", one_by_one),
    ])


# ---- 13.3 widen


def test_widen():
    def random_new(weight):
        return torch.cat([weight, 0.02 * torch.randn_like(weight)], dim=1)

    def picture_first(weight):
        return torch.cat([torch.zeros_like(weight), weight], dim=1)

    def halves(weight):
        return torch.cat([weight, weight], dim=1) / 2

    def repeated(weight):
        return torch.cat([weight, weight], dim=1)

    def more_outputs(weight):
        return torch.cat([weight, torch.zeros_like(weight)], dim=0)

    def all_new(weight):
        return torch.zeros(len(weight), 2 * weight.shape[1], 2, 2)

    guard("13.3", lambda weight: torch.cat([weight, 0 * weight], dim=1), [
        ("random ones are noise to every block", random_new),
        ("reads the picture first", picture_first),
        ("halves the old weights", halves),
        ("a picture changes the tokens", repeated),
        ("it must be (6, 8, 2, 2)", more_outputs),
        ("the old weights must stay, for the first 4 channels", all_new),
        ("is a ndarray", lambda weight: widened(weight).numpy()),
    ])


# ---- 13.4 first_step


def test_first_step():
    guard("13.4", lambda strength, steps: steps - math.floor(strength * steps), [
        ("40 is how many steps are taken", lambda strength, steps: int(strength * steps) if 0 < strength < 1 else
            steps_before(strength, steps)),
        ("Strength 1 forgets the video", lambda strength, steps: int(strength * steps)),
        ("only whole steps can be taken, rounded down", lambda strength, steps: steps - math.ceil(strength * steps)),
        ("That is a timestep", lambda strength, steps: 1000 - int(strength * 1000) if 0 < strength < 1 else
            steps_before(strength, steps)),
        ("no step is left", lambda strength, steps: min(steps_before(strength, steps), steps - 1)),
        ("of type float", lambda strength, steps: float(steps_before(strength, steps))),
        ("of type Tensor", lambda strength, steps: torch.tensor(steps_before(strength, steps))),
    ])


# ---- 13.5 best_strength


def test_best_strength():
    guard("13.5", strength_of_most, [
        ("That is a place in the list", lambda strengths, changed, kept: int((changed & kept).sum(1).argmax())),
        ("That is a place in the list", lambda strengths, changed, kept: 3),
        ("of equals take the weaker", lambda strengths, changed, kept: strengths[
            len(strengths) - 1 - int((changed & kept).sum(1).flip(0).argmax())]),
        ("and none has changed", lambda strengths, changed, kept: strengths[int(kept.sum(1).argmax())]),
        ("of equals take the weaker", lambda strengths, changed, kept: strengths[int(changed.sum(1).argmax())]),
        ("There no film has both", lambda strengths, changed, kept: 0.6),
        ("it must be 0.4", lambda strengths, changed, kept: int((changed & kept).sum(1).max())),
        ("does your function end in return", lambda *_: None),
        ("has both at 0.9 alone", lambda strengths, changed, kept: strengths[
            int((changed.sum(1) * (kept.sum(1) < 5)).bool().int().argmax())]),
    ])


# ---- 13.6 continue_film


def test_continue_film():
    def doubled(film, make, overlap, times):
        for _ in range(times):
            film = torch.cat([film, make(film[-overlap:])])
        return film

    def one_lost(film, make, overlap, times):
        for _ in range(times):
            film = torch.cat([film, make(film[-overlap:])[overlap + 1:]])
        return film

    def in_latents(film, make, overlap, times):
        k = (overlap - 1) // 4 + 1
        for _ in range(times):
            film = torch.cat([film, make(film[-k:])[k:]])
        return film

    def always_from_the_given(film, make, overlap, times):
        return torch.cat([film, *(make(film[-overlap:])[overlap:] for _ in range(times))])

    def from_the_start(film, make, overlap, times):
        for _ in range(times):
            film = torch.cat([film, make(film[:overlap])[overlap:]])
        return film

    def overlap_replaced(film, make, overlap, times):
        for _ in range(times):
            film = torch.cat([film[:-overlap], make(film[-overlap:])])
        return film

    def only_once(film, make, overlap, times):
        return continued(film, make, overlap, 1)

    def only_new(film, make, overlap, times):
        return continued(film, make, overlap, times)[len(film):]

    def clean_loop(film, make, overlap, times):
        parts = [film]
        for _ in range(times):
            parts.append(make(torch.cat(parts)[-overlap:])[overlap:])
        return torch.cat(parts)

    guard("13.6", clean_loop, [
        ("only the frames after it are new", doubled),
        ("frames are missing", one_lost),
        ("The overlap counts frames, not latents", in_latents),
        ("the last frame of the film so far", always_from_the_given),
        ("the last frame of the film so far", from_the_start),
        ("were replaced by what make gave", overlap_replaced),
        ("called make 1 times; it must be 3", only_once),
        ("has shape", only_new),
        ("is a ndarray", lambda *given: continued(*given).numpy()),
        ("does your function end in return", lambda film, make, overlap, times: [make(film[-overlap:])] and None),
    ])


# ---- what the notebook says


def test_the_channels_are_those_of_training():
    """The reference of 13.2 draws what the package draws for a clip: one sigma, then one noise."""
    from minicogvx.training.image_condition import noised_picture
    from minicogvx.training.settings import ImageCondition

    picture, seen = torch.zeros(3, 1, 4, 4), []
    beside(picture[None], lambda x: seen.append(x) or x[..., ::4, ::4], 2, torch.Generator().manual_seed(3))
    wanted = noised_picture(picture, ImageCondition(), torch.Generator().manual_seed(3))
    torch.testing.assert_close(seen[0][0], wanted)
