"""Exercises of notebook 00 distinguish right from wrong, and name the mistake."""

import re

import pytest
import torch
from einops import rearrange

from minicogvx.course.exercises import find, judge
from minicogvx.data.world import captions
from minicogvx.diffusion import NoiseSchedule, inference_timesteps
from minicogvx.diffusion.conditioning import FirstFramePutBack
from minicogvx.media import _to_bytes
from minicogvx.presets import PRESETS, ScheduleConfig
from minicogvx.text import word_tokenizer
from minicogvx.transformer.patchify import patchify
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
        ("A number of 0.198 in the video becomes 152; it must become 153. Take the nearest whole number", cut_off),
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


# ---- 0.3 walk_back


def right_walk_back(steps):
    places = [999 - i * 1000 // steps for i in range(steps + 1)]
    return list(zip(places, places[1:]))


def leading(steps):
    return [(t - (1000 // steps - 1), max(t_next - (1000 // steps - 1), -1)) for t, t_next in right_walk_back(steps)]


def from_1000(steps):
    return [(t + 1, t_next + 1) for t, t_next in right_walk_back(steps)]


def with_linspace(steps):
    places = [*torch.linspace(999, 0, steps).long().tolist(), -1]
    return list(zip(places, places[1:]))


def lands_on_0(steps):
    return right_walk_back(steps)[:-1] + [(right_walk_back(steps)[-1][0], 0)]


def without_the_last(steps):
    return right_walk_back(steps)[:-1]


def timesteps_alone(steps):
    return [t for t, t_next in right_walk_back(steps)]


def forwards(steps):
    return right_walk_back(steps)[::-1]


def lands_beyond(steps):
    return [(t, t_next - 1) for t, t_next in right_walk_back(steps)[:-1]] + right_walk_back(steps)[-1:]


def divided(steps):
    return [(999 - i * 1000 / steps, 999 - (i + 1) * 1000 / steps) for i in range(steps)]


def test_walk_back():
    guard("0.3", right_walk_back, [
        ("walk_back(25) begins at timestep 960; it must begin at 999, the only one without any signal", leading),
        ("begins at timestep 1000", from_1000),
        ("goes from 999 to 957, 42 timesteps; all steps must be equally long, 1000 / 25 = 40", with_linspace),
        ("ends at 0; the last step must land on -1", lands_on_0),
        ("walk_back(25) has 24 pairs; it must have 25", without_the_last),
        ("holds 999; each step must be a pair, (t, t_next)", timesteps_alone),
        ("begins at timestep 39; it must begin at 999", forwards),
        ("step 0 (counted from 0) lands on 958, but step 1 starts from 959", lands_beyond),
        ("holds 999.0, of type float; a timestep is an index", divided),
    ])


def test_a_walk_may_be_a_generator():
    assert judge(find("0.3"), lambda steps: (pair for pair in right_walk_back(steps))).state == "right"


# ---- 0.4 sequence_length


def right_sequence_length(frames, height, width, text, patch_t=1):
    latent = (1 + (frames - 1) // 4, height // 8, width // 8)
    filled = latent[0] + -latent[0] % patch_t
    return text + (filled // patch_t) * (latent[1] // 2) * (latent[2] // 2)


def changed(**changes):
    """A sequence_length with one mistake; each name is the part that differs."""
    def sequence_length(frames, height, width, text, patch_t=1):
        latent_frames = changes.get("latent_frames", lambda f: (f - 1) // 4 + 1)(frames)
        groups = changes.get("groups", lambda n, p: -(-n // p))(latent_frames, patch_t)
        places = changes.get("places", lambda h, w: (h // 16) * (w // 16))(height, width)
        return changes.get("text", lambda n: n)(text) + groups * places
    return sequence_length


def test_sequence_length():
    guard("0.4", right_sequence_length, [
        ("is 80; it must be 112. That is the video alone", changed(text=lambda n: 0)),
        ("is 96; it must be 112. The first frame stays alone", changed(latent_frames=lambda f: f // 4)),
        ("is 304; it must be 112. The VAE shrinks time, too", changed(latent_frames=lambda f: f)),
        ("is 352; it must be 112. That is one token for each latent", changed(places=lambda h, w: h // 8 * (w // 8))),
        ("is 5,152; it must be 112. That cuts pixels", changed(places=lambda h, w: h // 2 * (w // 2))),
        ("A patch is 2 latents high and 2 wide", changed(places=lambda h, w: h // 8 * (w // 16))),
        ("is 41,026; it must be 45,106. An odd number of latent", changed(groups=lambda n, p: n // p)),
        ("patch_t=2) is 85,906; it must be 45,106. With patch_t=2", changed(groups=lambda n, p: n)),
        ("patch_t=2) is 80; it must be 64. An even number", changed(groups=lambda n, p: n // p + (p > 1))),
        ("is 112.0, of type float", changed(places=lambda h, w: h / 16 * w / 16)),
        ("sequence_length(17, 64, 64, 32) is None", lambda frames, height, width, text, patch_t=1: None),
    ])


# ---- 0.5 put_back


def right_put_back(x, known, noise, a, s):
    out = x.clone()
    out[:, :, 0] = known[:, :, 0] * a + noise[:, :, 0] * s
    return out


def clean(x, known, noise, a, s):
    return torch.cat([known, x[:, :, 1:]], dim=2)


def only_fainter(x, known, noise, a, s):
    return torch.cat([a * known, x[:, :, 1:]], dim=2)


def on_top(x, known, noise, a, s):
    return torch.cat([a * known + s * x[:, :, :1], x[:, :, 1:]], dim=2)


def along_channels(x, known, noise, a, s):
    out = x.clone()
    out[:, :1] = a * known[:, :1] + s * noise[:, :1]
    return out


def into_every_frame(x, known, noise, a, s):
    return a * known + s * noise


def into_the_last_frame(x, known, noise, a, s):
    return torch.cat([x[:, :, :-1], a * known + s * noise[:, :, -1:]], dim=2)


def fresh_noise(x, known, noise, a, s):
    return torch.cat([a * known + s * torch.randn_like(known), x[:, :, 1:]], dim=2)


def another_frames_noise(x, known, noise, a, s):
    return torch.cat([a * known + s * noise[:, :, 1:2], x[:, :, 1:]], dim=2)


def exchanged(x, known, noise, a, s):
    return right_put_back(x, known, noise, s, a)


def one_frame_more(x, known, noise, a, s):
    return torch.cat([a * known + s * noise[:, :, :1], x], dim=2)


def into_x_itself(x, known, noise, a, s):
    x[:, :, :1] = a * known + s * noise[:, :, :1]
    return x


def test_put_back():
    guard("0.5", right_put_back, [
        ("holds the picture with the factor 1; it must be 0.6. A signal comes in with the factor a", clean),
        ("holds the noise with the factor 0; it must be 0.8. The network expects", only_fainter),
        ("holds the old x with the factor 0.8; it must be 0", on_top),
        ("frame 1 (counted from 0) is no longer that of x; only frame 0 is known. Frames are axis 2", along_channels),
        ("frame 1 (counted from 0) is no longer that of x", into_every_frame),
        ("frame 4 (counted from 0) is no longer that of x", into_the_last_frame),
        ("frame 0 holds something of its own", fresh_noise),
        ("Take the first frame of the noise given", another_frames_noise),
        ("holds the picture with the factor 0.8; it must be 0.6", exchanged),
        ("has shape (2, 4, 6, 3, 3); it must be (2, 4, 5, 3, 3)", one_frame_more),
        ("changes its input x; make a new tensor", into_x_itself),
    ])


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


def test_the_walk_visits_the_samplers_timesteps():
    for steps in (1, 4, 25, 50, 1000):
        timesteps = inference_timesteps(NoiseSchedule(ScheduleConfig()), steps).tolist()
        assert find("0.3").reference(steps) == list(zip(timesteps, [*timesteps[1:], -1]))


def test_the_sequence_is_what_patchify_cuts(subtests):
    for name, it in PRESETS.items():
        if name == "micro":  # its VAE is one of 4 x 4 x 4
            continue
        with subtests.test(msg=name):
            patch_t, text = it.transformer.patch[0], it.transformer.max_text_seq_length
            frames, *size = it.vae.latent_size(*it.video_size)
            shape = (1, 16, it.transformer.whole_patches(frames), *size)
            tokens = patchify(torch.empty(shape, device="meta"), patch_t, it.transformer.patch_size)
            assert find("0.4").reference(*it.video_size, text, patch_t) == text + tokens.shape[1]


def test_the_picture_is_put_back_as_the_pipeline_does():
    schedule, t = NoiseSchedule(ScheduleConfig()), 399
    x, noise, known = torch.randn(1, 4, 5, 2, 2), torch.randn(1, 4, 5, 2, 2), torch.randn(1, 4, 1, 2, 2)
    bar = schedule.alpha_bar(t)
    wanted = FirstFramePutBack(noise, known, schedule).before(x, t)
    torch.testing.assert_close(find("0.5").reference(x, known, noise, bar ** 0.5, (1 - bar) ** 0.5), wanted)
