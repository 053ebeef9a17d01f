"""The sampling loop serves every task: what each begins with, shows the network and ends with."""

import torch

from minicogvx.diffusion.conditioning import FirstFramesPutBack, ImageChannels, NoisedVideo, TextOnly
from minicogvx.diffusion.samplers import DDIMSampler
from minicogvx.diffusion.sampling import sample_loop
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.presets import ScheduleConfig


class Knows(torch.nn.Module):
    """Answers with the velocity towards zeros, and keeps what it saw."""

    config = type("Config", (), {"ofs_embed_dim": None})

    def __init__(self, schedule: NoiseSchedule):
        super().__init__()
        self.schedule, self.seen = schedule, []

    def forward(self, latents, t, text, ofs):
        self.seen.append(latents)
        x = latents[:, :4]  # x0 = a x - s v = 0 where v = a x / s
        a, s = self.schedule.alpha_bar(int(t[0])) ** 0.5, (1 - self.schedule.alpha_bar(int(t[0]))) ** 0.5
        return a * x / s


def test_each_task_begins_sees_and_ends_as_it_says():
    schedule = NoiseSchedule(ScheduleConfig())
    sampler, network = DDIMSampler(schedule, 4), Knows(schedule)
    noise, given = torch.randn(1, 4, 3, 2, 2), torch.randn(1, 4, 3, 2, 2)
    image, text = given[:, :, :1], torch.zeros(2, 1, 1)

    def made(condition):
        network.seen.clear()
        return sample_loop(network, sampler, text, condition, [1.0] * (4 - condition.start))

    torch.testing.assert_close(made(TextOnly(noise)), torch.zeros_like(noise))
    assert torch.equal(network.seen[0], noise)
    made(ImageChannels(noise, image))
    assert torch.equal(network.seen[3][:, 4:, :1], image) and not network.seen[3][:, 4:, 1:].any()
    assert torch.equal(made(FirstFramesPutBack(noise, image, schedule))[:, :, :1], image)
    levels = [schedule.add_noise(image, noise[:, :, :1], int(t)) for t in sampler.timesteps]
    assert all(torch.equal(seen[:, :, :1], level) for seen, level in zip(network.seen, levels))
    made(NoisedVideo(noise, given, sampler, 0.5))
    assert len(network.seen) == 2 and torch.equal(
        network.seen[0], schedule.add_noise(given, noise, int(sampler.timesteps[2])))
    assert torch.equal(made(NoisedVideo(noise, given, sampler, 0.0)), given)
