"""Exercise 2.2 of notebook 02: an encoder assembled by the learner is held to the package's, and the mistake named."""

import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.course.exercises import find, judge
from minicogvx.vae.layers import halve_time
from tests.guards import guard


class Causal3d(nn.Module):
    def __init__(self, inside, outside, first=True):
        super().__init__()
        self.conv, self.first = nn.Conv3d(inside, outside, 3, padding=(0, 1, 1)), first

    def forward(self, x):
        past = x[:, :, :1] if self.first else torch.zeros_like(x[:, :, :1])
        return self.conv(torch.cat([past, past, x], dim=2))


class ResBlock(nn.Module):
    def __init__(self, inside, outside, groups, adds=True):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inside, eps=1e-6), nn.GroupNorm(groups, outside, eps=1e-6)
        self.conv1, self.conv2, self.adds = Causal3d(inside, outside), Causal3d(outside, outside), adds
        self.conv_shortcut = nn.Conv3d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + self.conv_shortcut(x) if self.adds else h


class Shrink(nn.Module):
    def __init__(self, channels, temporal, around=(0, 1, 0, 1)):
        super().__init__()
        self.conv, self.temporal, self.around = nn.Conv2d(channels, channels, 3, stride=2), temporal, around

    def forward(self, x):
        x = halve_time(x) if self.temporal else x
        frames = self.conv(F.pad(x.transpose(1, 2).flatten(0, 1), self.around))
        return frames.unflatten(0, (len(x), -1)).transpose(1, 2)


class Right(nn.Module):
    """Every choice that a wrong answer makes otherwise is a method or an attribute."""

    silu_at_the_end = True

    def __init__(self, config):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = self.first_convolution(widths[0])
        self.down_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip((widths[0], *widths), widths)):
            stage = nn.Module()
            stage.resnets = nn.ModuleList(self.block(before if j == 0 else width, width, groups)
                                          for j in range(self.blocks(config)))
            if self.shrinks(i, config):
                stage.downsamplers = nn.ModuleList([self.shrink(width, self.halves_time(i, config))])
            self.down_blocks.append(stage)
        self.mid_block = nn.Module()
        self.mid_block.resnets = nn.ModuleList(self.block(widths[-1], widths[-1], groups) for _ in range(2))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = Causal3d(widths[-1], self.answers(config))

    def first_convolution(self, width):
        return Causal3d(3, width)

    def block(self, inside, outside, groups):
        return ResBlock(inside, outside, groups)

    def blocks(self, config):
        return config.layers_per_block

    def shrinks(self, i, config):
        return i < len(config.block_out_channels) - 1

    def halves_time(self, i, config):
        return 2 ** (i + 1) <= config.temporal_compression_ratio

    def shrink(self, width, temporal):
        return Shrink(width, temporal)

    def answers(self, config):
        return 2 * config.latent_channels

    def forward(self, video):
        x = self.conv_in(video)
        for stage in self.down_blocks:
            for block in stage.resnets:
                x = block(x)
            for shrink in getattr(stage, "downsamplers", ()):
                x = shrink(x)
        for block in self.mid_block.resnets:
            x = block(x)
        x = self.norm_out(x)
        return self.conv_out(F.silu(x) if self.silu_at_the_end else x)


class TimeInTheLastStages(Right):
    def halves_time(self, i, config):
        return super().halves_time(len(config.block_out_channels) - 2 - i, config)


class TimeTwiceAlways(Right):
    def halves_time(self, i, config):
        return i < 2


class NoLastSiLU(Right):
    silu_at_the_end = False


class NothingAdded(Right):
    def block(self, inside, outside, groups):
        return ResBlock(inside, outside, groups, adds=False)


class PaddedAround(Right):
    def shrink(self, width, temporal):
        return Shrink(width, temporal, around=(1, 0, 1, 0))


class ZerosBefore(Right):
    def first_convolution(self, width):
        return Causal3d(3, width, first=False)


class OneBlockAStage(Right):
    def blocks(self, config):
        return 1


class ShrinksToTheEnd(Right):
    def shrinks(self, i, config):
        return True


class MeansOnly(Right):
    def answers(self, config):
        return config.latent_channels


class OtherNames(Right):
    def __init__(self, config):
        super().__init__(config)
        self.blocks_down = self.down_blocks
        del self.down_blocks


class NoMiddle(Right):
    def forward(self, video):
        x = self.conv_in(video)
        for stage in self.down_blocks:
            for part in [*stage.resnets, *getattr(stage, "downsamplers", ())]:
                x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Silent(Right):
    def forward(self, video):
        super().forward(video)


class MeansReturned(Right):
    def forward(self, video):
        return super().forward(video).chunk(2, dim=1)[0]


class Unfinished(Right):
    def forward(self, video):
        raise NotImplementedError("write this")


def a_function(config):
    return Right(config).forward


def test_my_encoder():
    guard("2.2", Right, [
        ("down_blocks.0.downsamplers.0 gives shape (2, 2, 9, 8, 8); it must be (2, 2, 5, 8, 8)",
         TimeInTheLastStages),
        ("down_blocks.1.downsamplers.0 gives shape (2, 2, 3, 4, 4); it must be (2, 2, 5, 4, 4)",
         TimeTwiceAlways),
        ("the first part whose output differs is conv_out", NoLastSiLU),
        ("the first part whose output differs is down_blocks.0.resnets.0,", NothingAdded),
        ("the first part whose output differs is down_blocks.0.downsamplers.0", PaddedAround),
        ("the first part whose output differs is conv_in", ZerosBefore),
        ("lacks 32 of 96 weights, first down_blocks.0.resnets.1.norm1.weight", OneBlockAStage),
        ("has 2 weights too many, first down_blocks.2.downsamplers.0.conv.weight", ShrinksToTheEnd),
        ("conv_out.conv.weight has shape (2, 4, 3, 3, 3); in a checkpoint it has (4, 4, 3, 3, 3)", MeansOnly),
        ("It has blocks_down.0.resnets.0.", OtherNames),
        ("never uses mid_block.resnets.0", NoMiddle),
        ("is None; does forward end in return?", Silent),
        ("what is returned is not the output of conv_out", MeansReturned),
        ("is a method; it must be an nn.Module", a_function),
    ])


def test_a_half_written_class_is_not_tried_yet():
    assert judge(find("2.2"), Unfinished).state == "not tried"
