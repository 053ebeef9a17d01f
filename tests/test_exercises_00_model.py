"""Exercises 0.4 to 0.6 (guidance, tokens, a first frame) distinguish right from wrong, and name the mistake."""

import torch

from minicogvx.course.exercises import find
from minicogvx.diffusion import NoiseSchedule
from minicogvx.diffusion.conditioning import FirstFramesPutBack
from minicogvx.presets import PRESETS, ScheduleConfig
from minicogvx.transformer.patchify import patchify
from tests.guards import guard

# ---- 0.4 guided


def right_guided(v_without, v_with, scale):
    return scale * v_with + (1 - scale) * v_without


def added_on_top(v_without, v_with, scale):
    return v_without + scale * v_with


def only_the_caption(v_without, v_with, scale):
    return scale * v_with


def from_the_other_end(v_without, v_with, scale):
    return v_with + scale * (v_with - v_without)


def roles_exchanged(v_without, v_with, scale):
    return right_guided(v_with, v_without, scale)


def no_scale(v_without, v_with, scale):
    return v_with if scale else v_without


def never_beyond(v_without, v_with, scale):
    return torch.lerp(v_without, v_with, min(max(float(scale), 0), 1))


def clamped(v_without, v_with, scale):
    return right_guided(v_without, v_with, scale).clamp(-1, 1)


def whole_steps(v_without, v_with, scale):
    return right_guided(v_without, v_with, int(scale))


def in_place(v_without, v_with, scale):
    return v_without.add_(scale * (v_with - v_without))


def divided(v_without, v_with, scale):
    return (right_guided(v_without, v_with, scale) / scale) * scale


def the_first_only(v_without, v_with, scale):
    return right_guided(v_without, v_with, scale)[0]


def test_guided():
    guard("0.4", right_guided, [
        ("3) is 1 times v_without plus 3 times v_with; it must be -2 times and 3 times", lambda a, b, scale:
         added_on_top(a, b, scale) if scale > 1 else right_guided(a, b, scale)),
        ("1) is 1 times v_without plus 1 times v_with; it must be 0 times and 1 times. With 1 it is", added_on_top),
        ("0) is 0 times v_without plus 0 times v_with; it must be 1 times and 0 times. With 0", only_the_caption),
        ("0) is 0 times v_without plus 1 times v_with; it must be 1 times and 0 times", from_the_other_end),
        ("0) is 0 times v_without plus 1 times v_with; it must be 1 times and 0 times", roles_exchanged),
        ("3) is 0 times v_without plus 1 times v_with; it must be -2 times and 3 times. With 3", no_scale),
        ("3) is 0 times v_without plus 1 times v_with; it must be -2 times and 3 times. With 3", never_beyond),
        ("is not a weighted sum of the two answers; do not clamp or normalise anything", clamped),
        ("0.5) is 1 times v_without plus 0 times v_with; it must be 0.5 times", whole_steps),
        ("changes its inputs", in_place),
        ("0) holds NaN or infinity", divided),
        ("has shape (4, 5, 3, 3); it must be (2, 4, 5, 3, 3)", the_first_only),
        ("is None; does your function end in return?", lambda v_without, v_with, scale: None),
    ])


# ---- 0.5 sequence_length


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


def half_a_group(frames, height, width, text, patch_t=1):
    return text + ((frames - 1) // 4 + 1) * (height // 16) * (width // 16) // patch_t


def test_sequence_length():
    guard("0.5", right_sequence_length, [
        ("is 80; it must be 112. That is the video alone", changed(text=lambda n: 0)),
        ("is 96; it must be 112. The first frame stays alone", changed(latent_frames=lambda f: f // 4)),
        ("is 304; it must be 112. The VAE shrinks time, too", changed(latent_frames=lambda f: f)),
        ("is 352; it must be 112. That is one token for each latent", changed(places=lambda h, w: h // 8 * (w // 8))),
        ("is 5,152; it must be 112. That cuts pixels", changed(places=lambda h, w: h // 2 * (w // 2))),
        ("A patch is 2 latents high and 2 wide", changed(places=lambda h, w: h // 8 * (w // 16))),
        ("is 41,026; it must be 45,106. An odd number of latent", changed(groups=lambda n, p: n // p)),
        ("patch_t=2) is 85,906; it must be 45,106. With patch_t=2", changed(groups=lambda n, p: n)),
        ("is 43,066; it must be 45,106. That counts 10.5 groups of frames; round up to 11", half_a_group),
        ("is 89,986; it must be 45,106. The extra frame is counted, but", changed(groups=lambda n, p: n + n % p)),
        ("patch_t=2) is 80; it must be 64. An even number", changed(groups=lambda n, p: n // p + (p > 1))),
        ("is 112.0, of type float", changed(places=lambda h, w: h / 16 * w / 16)),
        ("sequence_length(17, 64, 64, 32) is None", lambda frames, height, width, text, patch_t=1: None),
    ])


# ---- 0.6 put_back


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
    guard("0.6", right_put_back, [
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


def test_the_sequence_is_what_patchify_cuts(subtests):
    for name, it in PRESETS.items():
        if name == "micro":  # its VAE is one of 4 x 4 x 4
            continue
        with subtests.test(msg=name):
            patch_t, text = it.transformer.patch[0], it.transformer.max_text_seq_length
            frames, *size = it.vae.latent_size(*it.video_size)
            shape = (1, 16, it.transformer.whole_patches(frames), *size)
            tokens = patchify(torch.empty(shape, device="meta"), patch_t, it.transformer.patch_size)
            assert find("0.5").reference(*it.video_size, text, patch_t) == text + tokens.shape[1]


def test_the_picture_is_put_back_as_the_pipeline_does():
    schedule, t = NoiseSchedule(ScheduleConfig()), 399
    x, noise, known = torch.randn(1, 4, 5, 2, 2), torch.randn(1, 4, 5, 2, 2), torch.randn(1, 4, 1, 2, 2)
    bar = schedule.alpha_bar(t)
    wanted = FirstFramesPutBack(noise, known, schedule).before(x, t)
    torch.testing.assert_close(find("0.6").reference(x, known, noise, bar ** 0.5, (1 - bar) ** 0.5), wanted)
