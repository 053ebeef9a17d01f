# %% [markdown]
# # The 3D causal VAE
#
# **How do you make a clip 40 times smaller while it is still being filmed?**
#
# First, a clip drawn by a program; then the same clip, squeezed into a fortieth of its numbers and unpacked again.

# %% tags=["nbval-ignore-output"]
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import minicogvx
from minicogvx.ablation.seeds import gain_of_pairs
from minicogvx.course import (
    check, compare_clips, explore_figure, hint, new_figure, notebook_device, outcome, predict, predictions, progress,
    show_figure, show_source, solution, solved,
)
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import DIRECTIONS, Scene, ShapeObject, sample_scenes
from minicogvx.evaluation.reconstruction import flicker, psnr
from minicogvx.presets import preset
from minicogvx.vae import CausalVAE
from minicogvx.vae.blocks import Downsample, ResnetBlock, SpatialNormSiLU, Upsample, first_stays_single
from minicogvx.vae.causal_conv import CausalConv3d, ConvCache
from minicogvx.vae.layers import NormSiLU, halve_time

torch.set_grad_enabled(False)  # nothing is trained in this notebook
device = notebook_device()  # the processor, unless MINICOGVX_DEVICE names another device
pipe = minicogvx.load("toy", device, torch.float32)
vae = pipe.vae


def to_pixels(clip):
    """A clip for people, t h w 3 in 0..1, as the model sees it: 1 c t h w in -1..1, on its device."""
    return rearrange(clip * 2 - 1, "t h w c -> 1 c t h w").to(device)


def to_clip(pixels):
    """The way back: what the model sees, as a clip for people."""
    return (rearrange(pixels.cpu(), "1 c t h w -> t h w c") / 2 + 0.5).clamp(0, 1)


ring = Scene((ShapeObject("ring", "purple", "moves right", x=0.28, y=0.5, radius=0.2, speed=0.44),), "navy")
clip = render(ring, 17, 64, 64)  # t h w 3
pixels = to_pixels(clip)
latents = vae.encode(pixels).mode()  # b c t h w
back = to_clip(vae.decode(latents))
compare_clips({"the clip": clip, "after the VAE": back}, "A purple ring moves right over navy, once as it was drawn "
                                                         "and once after the VAE.", pipe.fps)

# %% [markdown]
# The machine that does this is a **variational autoencoder**, VAE. Its encoder turns pixels into *latents*; its decoder
# turns latents into pixels. CogVideoX uses one VAE for all its models ([the paper](https://arxiv.org/abs/2408.06072),
# section 2.1). It is *3D*, because it shrinks time as well as height and width, and *causal*, because its convolutions
# do not look ahead.
#
# Here you build it: its convolution, its encoder, into which you load the toy's trained weights, and the way back.
# You let a clip stream through it piece by piece. On the way two results come out wrong, and you build the instrument
# that finds the culprit. All of it takes about 125 minutes. For the notation, see the box in [notebook
# 01](01_video_tensors.ipynb).
#
# ## 1. A convolution that does not look ahead
#
# Think of a clip of one pixel: a list of brightnesses $x_t$, one for each frame $t$. A convolution over time replaces
# each by a weighted sum of itself and its neighbours,
#
# $$y_t = w_0\,x_{t-1} + w_1\,x_t + w_2\,x_{t+1}.$$
#
# The causal version shifts the window into the past, to $x_{t-2}$, $x_{t-1}$, $x_t$. Two questions before you run the
# cell. A light is switched on at frame 4: when does each version notice? And what should a convolution see before
# frame 0?

# %%
def filtered(light, weights, ahead, outside):
    """Each frame as a weighted sum of three, `ahead` of them in the future; beyond the ends it sees `outside`."""
    result = []
    for t in range(len(light)):
        total = 0.0
        for k, weight in enumerate(weights):
            seen = t + k - 2 + ahead
            total += weight * (light[seen] if 0 <= seen < len(light) else outside)
        result.append(total)
    return result


light, always_on, weights = [0.0] * 4 + [1.0] * 5, [1.0] * 6, [0.25, 0.5, 0.25]
both_sides, causal = (filtered(light, weights, ahead, outside=0.0) for ahead in (1, 0))
for name, result in (("both sides", both_sides), ("causal", causal)):
    print(f"{name}: notices the light at frame {next(t for t, y in enumerate(result) if y > 0)}")
after_zeros, after_itself = (filtered(always_on, weights, 0, outside) for outside in (0.0, always_on[0]))
print("a light that is always on, after zeros:         ", after_zeros)
print("a light that is always on, after its first frame:", after_itself)

figure, (axes,) = new_figure(1, 2, width=8, height=2.3)
for values, label, line in ((light, "light", ":"), (both_sides, "both sides", "--"), (causal, "causal", "-")):
    axes[0].plot(values, line, marker="o", markersize=4, label=label)
for values, label, line in ((after_zeros, "zeros before", "--"), (after_itself, "its first frame before", "-")):
    axes[1].plot(values, line, marker="o", markersize=4, label=label)
for axis, title in zip(axes, ("switched on at frame 4", "on in every frame, causal")):
    axis.set(xlabel="frame (from 0)", ylabel="brightness", title=title, ylim=(0, 1.1))
    axis.legend()
show_figure(figure, "Left, the light jumps at frame 4. The convolution over both sides rises at frame 3 and falls at "
                    "the end; the causal one rises from frame 4. Right, zeros before the clip give a fade-in.")

# %% [markdown]
# The ordinary convolution knows at frame 3 that somebody will switch on the light. To compute frame 3 you must
# already have frame 4. The causal one needs only what has already happened.
#
# With zeros before frame 0, every clip begins with a fade from black that nobody filmed. CogVideoX repeats the first
# frame, so a still clip stays still. We will need that in section 9.
#
# ### Exercise 2.1: pad_past (difficulty 1 of 3, 10 minutes)
#
# Write the padding for real videos, `b c t h w`: put copies of the first frame in front, one for each frame that a
# causal kernel of `kernel_size` frames lacks at frame 0. (Stuck? `hint("2.1")`, three times, and then
# `solution("2.1")`.)

# %%
def pad_past(x, kernel_size):
    """x (b c t h w) with copies of its first frame in front: as many as a causal kernel lacks."""
    ### BEGIN SOLUTION
    return torch.cat([x[:, :, :1].expand(-1, -1, kernel_size - 1, -1, -1), x], dim=2)
    ### END SOLUTION


pad_past = check("2.1", pad_past)

# %% [markdown]
# Now in three dimensions. A 3 x 3 x 3 convolution is three ordinary image convolutions, one for each frame that it
# sees, added up. We write it with loops, with the weights of the toy's own first layer.

# %%
conv_in = vae.encoder.conv_in  # a CausalConv3d: 3 colours in, 16 channels out


def apart(a, b):
    """The largest difference of two tensors."""
    return (a - b).abs().max().item()


def conv_by_hand(x, weight, bias):
    """A causal 3D convolution as a sum of image convolutions. x: c t h w; weight: o c 3 3 3."""
    frames = []
    for t in range(x.shape[1]):
        frame = bias[:, None, None]
        for k in range(3):
            seen = max(t - 2 + k, 0)  # before the clip: its first frame
            frame = frame + F.conv2d(x[:, seen], weight[:, :, k], padding=1)
        frames.append(frame)
    return torch.stack(frames, dim=1)


by_hand = conv_by_hand(pixels[0], conv_in.conv.weight, conv_in.conv.bias)
padded = F.conv3d(pad_past(pixels, 3), conv_in.conv.weight, conv_in.conv.bias, padding=(0, 1, 1))
whose = "your" if solved("2.1") else "the package's"
print(f"loops and the package's class differ by at most {apart(by_hand, conv_in(pixels)[0]):.3f}")
print(f"{whose} padding and that class differ by at most {apart(padded, conv_in(pixels)):.3f}")
assert max(apart(by_hand, conv_in(pixels)[0]), apart(padded, conv_in(pixels))) < 1e-3
show_source(CausalConv3d)

# %% [markdown]
# `self.conv` is PyTorch's convolution. The `cache` is the subject of section 5. Where it says `fast`, the package
# takes a faster route to the same numbers.
#
# ## 2. The first frame
#
# An image is a clip of one frame. The causal convolution sees it three times and does not mind. So one VAE encodes
# both images and clips, and a model can learn from both.
#
# **Prediction 2.1.** We encode the clip, and then its frame 0 alone: is the result for frame 0 the same, for one
# convolution and for the whole encoder?

# %%
predict("2.1", "the same for both", "the same for the convolution only", "different for both")

# %% tags=["folded", "nbval-ignore-output"]
image, equal = pixels[:, :, :1], {}
for name, network in (("one convolution", conv_in), ("the whole encoder", lambda x: vae.encode(x).mode())):
    difference = apart(network(image), network(pixels)[:, :, :1])
    equal[name] = difference < 1e-3
    print(f"{name}: frame 0 alone and frame 0 of the clip differ by up to {difference:.3f}")
outcome("2.1", "the same for both" if all(equal.values()) else
        "the same for the convolution only" if equal["one convolution"] else "different for both")
assert equal == {"one convolution": True, "the whole encoder": False}

# %% [markdown]
# The convolution passes, the encoder does not. Something in the encoder tells its first frame about later ones. That
# is our **first clue**; we come back to it with an instrument.
#
# ## 3. The encoder
#
# How does the encoder shrink time? Not with learned weights: it takes the mean of each pair of frames, and does so
# twice. The first frame stays alone.

# %%
def halved(x):
    """x (b c t h w): the first frame, then the means of pairs."""
    frames = [x[:, :, 0]]
    for t in range(1, x.shape[2], 2):
        frames.append((x[:, :, t] + x[:, :, t + 1]) / 2)
    return torch.stack(frames, dim=2)


numbers = torch.arange(17.0).reshape(1, 1, 17, 1, 1)  # a clip whose frames are simply 0 to 16
print("once: ", halved(numbers).flatten().tolist())
print("twice:", halved(halved(numbers)).flatten().tolist())
assert torch.equal(halved(numbers), halve_time(numbers))
show_source(halve_time)

# %% [markdown]
# 17 frames become 9, then 5. The value 2.5 is the mean of frames 1 to 4, the first group of four. That is why clips
# have 4k + 1 frames.
#
# Height and width are halved three times by a convolution that moves in steps of two pixels. One row of zeros is
# added below and one column on the right, so that 64 pixels give 32. Between these steps stand **residual blocks**:
# norm, SiLU ($x$ times its sigmoid), convolution, the same again, and at the end the block's input is added. These
# are all the parts of an encoder. The toy's checkpoint shows how they are put together.

# %%
class Causal3d(nn.Module):
    """A causal 3 x 3 x 3 convolution."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv3d(c_in, c_out, 3, padding=(0, 1, 1))

    def forward(self, x):
        return self.conv(pad_past(x, 3))


class ResBlock(nn.Module):
    """The input, plus what two rounds of norm, SiLU and convolution make of it."""

    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, c_in, eps=1e-6), nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv1, self.conv2 = Causal3d(c_in, c_out), Causal3d(c_out, c_out)
        self.conv_shortcut = nn.Conv3d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Shrink(nn.Module):
    """Half the height and width and, if `temporal`, half the frames."""

    def __init__(self, channels, temporal):
        super().__init__()
        self.conv, self.temporal = nn.Conv2d(channels, channels, 3, stride=2), temporal

    def forward(self, x):
        x = halved(x) if self.temporal else x
        frames = F.pad(rearrange(x, "b c t h w -> (b t) c h w"), (0, 1, 0, 1))
        return rearrange(self.conv(frames), "(b t) c h w -> b c t h w", b=len(x))


for name, weight in vae.encoder.state_dict().items():
    if name.endswith("weight"):
        print(f"{name:45s}{tuple(weight.shape)}")
print({name: getattr(vae.config, name) for name in ("block_out_channels", "layers_per_block", "norm_num_groups",
                                                    "temporal_compression_ratio", "latent_channels")})

# %% [markdown]
# ### Exercise 2.2: MyEncoder (difficulty 3 of 3, 30 minutes)
#
# Assemble the encoder for any `config` (of the class `VAEConfig`, its fields as printed), with attributes of exactly
# the names printed, so that the checkpoint fits. Stage $i$ has `layers_per_block` blocks of width
# `block_out_channels[i]`. Every stage but the last ends in a `Shrink`, and the first ones halve time: two of them for a
# ratio of 4. Then come two blocks, a norm (`eps` as in `ResBlock`), SiLU, and a convolution to twice `latent_channels`:
# a mean and a log-variance for each latent value.

# %%
class MyEncoder(nn.Module):
    """Pixels b 3 t h w -> means and log-variances of the latents, b 2c lt lh lw."""

    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        widths, groups, stages = config.block_out_channels, config.norm_num_groups, []
        for i, width in enumerate(widths):
            stage, before = nn.Module(), widths[max(i - 1, 0)]
            stage.resnets = nn.ModuleList(ResBlock(before if j == 0 else width, width, groups)
                                          for j in range(config.layers_per_block))
            if i < len(widths) - 1:
                halves = 2 ** (i + 1) <= config.temporal_compression_ratio
                stage.downsamplers = nn.ModuleList([Shrink(width, halves)])
            stages.append(stage)
        self.conv_in = Causal3d(3, widths[0])
        self.down_blocks = nn.ModuleList(stages)
        self.mid_block = nn.Module()
        self.mid_block.resnets = nn.ModuleList(ResBlock(widths[-1], widths[-1], groups) for _ in range(2))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = Causal3d(widths[-1], 2 * config.latent_channels)
        ### END SOLUTION

    def forward(self, video):
        ### BEGIN SOLUTION
        x = self.conv_in(video)
        for stage in self.down_blocks:
            for part in [*stage.resnets, *getattr(stage, "downsamplers", [])]:
                x = part(x)
        for block in self.mid_block.resnets:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))
        ### END SOLUTION


MyEncoder = check("2.2", MyEncoder)

encoder = MyEncoder(vae.config).to(device)
print(encoder.load_state_dict(vae.encoder.state_dict()))
mean, logvar = encoder(pixels).chunk(2, dim=1)
at_once = vae.encode(pixels, chunk_frames=None).mode()
whose = "your" if solved("2.2") else "the package's"
print(f"{whose} encoder and the toy's: latents differ by at most {apart(mean, at_once):.3f}")
print(f"clip {tuple(pixels.shape)}, latents {tuple(mean.shape)}: {pixels.numel() / mean.numel():.0f} times fewer "
      f"numbers")
assert apart(mean, at_once) < 1e-3
show_source(ResnetBlock)
show_source(NormSiLU)
show_source(Downsample)

# %% [markdown]
# The trained weights fit. Time shrinks by 4, height and width by 8: 256 pixels become one place. But 3 colours become
# 16 channels, so the saving is nearer to 40 than to 256. (The log-variance is for notebook 03; here we take the mean,
# `mode()`.)
#
# ## 4. The way back
#
# The decoder has similar blocks. It doubles height and width three times, and in the first two of these steps time as
# well: every frame but the first is repeated.
#
# ### Exercise 2.3: stretch (difficulty 1 of 3, 10 minutes)
#
# Stretch `z` to `frames` frames: the first appears once, all the others equally often. The same function must take 5
# frames to 17 and to 9, and leave a single frame alone.

# %%
def stretch(z, frames):
    """z (b c n h w) -> b c frames h w: frame 0 once, every other frame equally often."""
    ### BEGIN SOLUTION
    times = (frames - 1) // max(z.shape[2] - 1, 1)
    return torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(times, dim=2)], dim=2)
    ### END SOLUTION


stretch = check("2.3", stretch)

# %% [markdown]
# One part is peculiar to the decoder. Each of its norms reads the latent $z$ again: its scale $y$ and shift $b$ are 1 x
# 1 x 1 convolutions of $z$, so they differ from place to place. That is a **spatial norm**, here with its SiLU,
# $\mathrm{silu}(\mathrm{norm}(x)\,y(z) + b(z))$. Here is the whole decoder by hand.

# %%
def spatial_norm(layer, x, z):
    """silu(norm(x) * y(z) + b(z)), with y and b stretched to the size of x."""
    norm = layer.norm_layer
    x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    y, b = (F.interpolate(stretch(conv(z), x.shape[2]), x.shape[2:]) for conv in (layer.conv_y, layer.conv_b))
    return F.silu(x * y + b)


def block_by_hand(block, x, z):
    """A residual block that reads the latent."""
    h = block.conv1(spatial_norm(block.norm1, x, z))
    h = block.conv2(spatial_norm(block.norm2, h, z))
    return h + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def grown(up, x):
    """Twice the height and width, then a convolution in each frame; if `temporal`, 2t - 1 frames."""
    frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2)
    frames = F.conv2d(frames, up.conv.weight, up.conv.bias, padding=1)
    x = rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))
    return stretch(x, 2 * x.shape[2] - 1) if up.temporal else x


def decoded_by_hand(decoder, z):
    """Latents b c lt lh lw -> pixels b 3 t h w."""
    x = decoder.conv_in(z)
    for block in decoder.mid_block.resnets:
        x = block_by_hand(block, x, z)
    for stage in decoder.up_blocks:
        for block in stage.resnets:
            x = block_by_hand(block, x, z)
        x = x if stage.upsamplers is None else grown(stage.upsamplers[0], x)
    return decoder.conv_out(spatial_norm(decoder.norm_out, x, z))


difference = apart(decoded_by_hand(vae.decoder, latents), vae.decode(latents, chunk_latents=None))
print(f"by hand and by the package: pixels differ by at most {difference:.3f}")
assert difference < 1e-3
show_source(SpatialNormSiLU)

# %% [markdown]
# ## 5. A clip that never ends
#
# A camera delivers four frames at a time. Can we encode them as they come? First the plain way: each piece goes
# through the convolution as if it were a clip of its own. Which frames come out wrong?

# %%
whole = conv_in(pixels)
pieces = torch.cat([conv_in(piece) for piece in pixels.split(4, dim=2)], dim=2)
error = (pieces - whole).abs().amax(dim=(0, 1, 3, 4))  # t
print("wrong frames:", (error > 1e-3).nonzero().flatten().tolist())

figure, ((axis,),) = new_figure(width=5.5, height=2)
axis.bar(range(17), error.cpu())
axis.set(xlabel="frame (from 0)", ylabel="largest error", xticks=range(0, 17, 4))
show_figure(figure, "The error is zero except at the first two frames of each later piece: frames 4, 5, 8, 9, 12, 13 "
                    "and 16.")

# %% [markdown]
# Two wrong frames at each seam. There the kernel should have seen the end of the previous piece; instead it saw copies
# of the new piece's first frame.
#
# ### Exercise 2.4: stream (difficulty 2 of 3, 20 minutes)
#
# Repair it. `conv` is a plain `nn.Conv3d` without any padding in time. Show it each piece of `chunk` frames together
# with the earlier frames that it needs.

# %%
def stream(conv, x, chunk):
    """The causal convolution of x (b c t h w), `chunk` frames at a time; equal to that of the whole clip."""
    ### BEGIN SOLUTION
    missing = conv.kernel_size[0] - 1
    past, results = x[:, :, :1].expand(-1, -1, missing, -1, -1), []
    for piece in x.split(chunk, dim=2):
        seen = torch.cat([past, piece], dim=2)
        results.append(conv(seen))
        past = seen[:, :, seen.shape[2] - missing:]
    return torch.cat(results, dim=2)
    ### END SOLUTION


stream = check("2.4", stream)

# %% [markdown]
# The memory of a causal convolution is two frames, however long the clip. The package's `ConvCache` keeps two frames
# for each convolution in the network.
#
# **Prediction 2.2.** A clip of 41 frames goes through the whole encoder in pieces of 1, 4, 4, ... frames, every
# convolution with its cache: do the latents agree with those of the clip in one piece?

# %%
predict("2.2", "all 11 latent frames agree", "some agree", "none agrees")

# %% tags=["folded", "nbval-ignore-output"]
long_clip = to_pixels(render(ring, 41, 64, 64))
sizes = [1] + [4] * 10
cache, held = ConvCache(), []
for piece in long_clip.split(sizes, dim=2):
    vae.encoder(piece, cache)
    cache.start = False
    held.append(sum(past.numel() for past in cache.past.values()))
for seen, remembered in ((5, held[1]), (41, held[-1])):
    print(f"after {seen:2d} frames ({long_clip[:, :, :seen].numel():,} numbers): {remembered:,} numbers remembered")


def streamed(network):
    """The latents of the long clip, encoded as its pieces come."""
    return torch.cat([posterior.mode() for posterior in network.encode_stream(long_clip.split(sizes, dim=2))], dim=2)


at_once = vae.encode(long_clip, chunk_frames=None).mode()
off = (streamed(vae) - at_once).abs().amax(dim=(0, 1, 3, 4)).cpu()  # lt
print("largest error of each latent frame:", [round(error, 2) for error in off.tolist()])
agree = int((off < 1e-3).sum())
outcome("2.2", "all 11 latent frames agree" if agree == 11 else "some agree" if agree else "none agrees")
assert held[1] == held[-1] and agree < 11

# %% [markdown]
# The memory does not grow: that part works. But the latents are not those of the whole clip, although every convolution
# has its cache: our **second clue**.
#
# ## 6. How a piece knows that it begins the clip
#
# The first frame must stay alone, but only in the first piece. How does a piece know which one it is? In the
# `diffusers` library its number of frames tells: an *odd* count begins a clip, an *even* one continues it. 49 frames go
# in as pieces of 9, 8, 8, 8, 8 and 8, and come back from pieces of 3, 2, 2, 2, 2 and 2 latents. At every halving and
# doubling, an odd count leaves its first frame alone and an even one does not. Our version asks the cache
# (`cache.start`).
#
# ### Exercise 2.5: find the lengths that come back (difficulty 2 of 3, 15 minutes)
#
# Users of the published models were told "4k + 1 frames", sent 5, and got 8. `lengths` runs the toy under the
# published rule (`VAEConfig.first_frame="parity"`). Find out which lengths come back unchanged. Then state a rule, one
# that also covers other numbers of `halvings` than the VAE's two. The check tests your claim.

# %%
def rebuilt(**changes):
    """The toy's VAE with its trained weights and some fields of its config changed."""
    other = CausalVAE(replace(vae.config, **changes)).to(device)
    other.load_state_dict(vae.state_dict())
    return other.requires_grad_(False)


published = rebuilt(first_frame="parity")


def lengths(num_frames, network=published):
    """How many latent frames `num_frames` small frames become, and how many frames these become."""
    there = network.encode(torch.zeros(1, 3, num_frames, 8, 8, device=device), chunk_frames=None).mode()
    return there.shape[2], network.decode(there, chunk_latents=None).shape[2]


there, returned = lengths(5)
print(f"5 frames become {there} latents and come back as {returned} frames")


def comes_back(num_frames, halvings=2):
    """Whether the published rule returns as many frames as it was given: True or False."""
    ### BEGIN SOLUTION
    return num_frames % 2 ** (halvings + 1) in (0, 1)
    ### END SOLUTION


comes_back = check("2.5", comes_back)

# %%
for count in (1, 5, 8, 9, 13, 16, 17):
    there, returned = lengths(count)
    ours = f"; ours returns {lengths(count, vae)[1]}" if count % 4 == 1 else ""
    rule = "come back" if comes_back(count) else "do not come back"
    print(f"{count:2d} frames, {there} latents, back as {returned:2d}; by the rule they {rule}{ours}")
    assert comes_back(count) == (returned == count)
show_source(Upsample)
show_source(first_stays_single)

# %% [markdown]
# 5 frames shrink to 3, then to 2. The decoder sees an even count, takes it for the middle of a clip, and makes 4 and
# then 8. Of the lengths 4k + 1 only 8k + 1 are safe. Our package makes the rule an option. The toy marks the start
# instead, so every 4k + 1 comes back.
#
# ## 7. What leaks the future?
#
# Two clues: the first frame knows about later ones, and pieces differ from the whole. What in the encoder is *not* a
# convolution, a mean over pairs, or a function of one number? First the instrument.
#
# ### Exercise 2.6: first_affected (difficulty 2 of 3, 15 minutes)
#
# `network` is any function from a video `b c t h w` to another, perhaps with fewer frames. Change one frame of `clip`
# in a way that no layer can overlook, and leave `clip` itself as it was. Return the number of the first frame of the
# *output* that changed by more than rounding, or `None`.

# %%
def first_affected(network, clip, frame):
    """The first output frame that changes when frame `frame` of `clip` (b c t h w) changes, or None."""
    ### BEGIN SOLUTION
    changed = clip.clone()
    changed[:, :, frame] += torch.randn_like(changed[:, :, frame])
    difference = (network(changed) - network(clip)).abs().amax(dim=(0, 1, 3, 4))  # t
    frames = (difference > 1e-4).nonzero().flatten().tolist()
    return frames[0] if frames else None
    ### END SOLUTION


first_affected = check("2.6", first_affected)

# %% [markdown]
# Now point it at the parts. Frame 16 is the last one, and belongs to latent frame 4: a causal part answers 16, or 4
# where time has shrunk. We also turn frame 16 into its negative, and measure how far each latent frame moves.
#
# **Prediction 2.3.** Encoded in pieces of 9 and 8 frames, as `diffusers` does it, how many of the 5 latent frames
# move?

# %%
predict("2.3", "only the last", "the last two", "all five")

# %% tags=["folded", "nbval-ignore-output"]
norm = vae.encoder.down_blocks[0].resnets[0].norm1
over_frame = rebuilt(norm_over="frame")
suspects = {
    "first convolution": conv_in,
    "group norm after it": lambda x: norm(conv_in(x)),
    "encoder, whole clip": lambda x: vae.encode(x, chunk_frames=None).mode(),
    "encoder, pieces of 8": lambda x: vae.encode(x, chunk_frames=8).mode(),
    "norm over each frame": lambda x: over_frame.encode(x, chunk_frames=None).mode(),
}
for name, suspect in suspects.items():
    print(f"{name:21s} frame 16 changes frame {first_affected(suspect, pixels, 16)} of the output and what follows")

spoilt = pixels.clone()
spoilt[:, :, 16] *= -1
changes = {name: (suspects[name](spoilt) - suspects[name](pixels)).abs().mean(dim=(0, 1, 3, 4)).cpu()  # lt
           for name in list(suspects)[2:]}
moved = int((changes["encoder, pieces of 8"] > 1e-4).sum())
outcome("2.3", {1: "only the last", 2: "the last two"}.get(moved, "all five"))

top = 1.05 * max(change.max().item() for change in changes.values())
figure, (axes,) = new_figure(1, 3, width=8.5, height=2.4)
for axis, (name, change) in zip(axes, changes.items()):
    axis.bar(range(5), change)
    axis.set(xlabel="latent frame (from 0)", ylabel="mean change", title=name, ylim=(0, top), xticks=range(5))
show_figure(figure, "How far each latent frame moves when the last frame of the clip is inverted. Whole clip: all "
                    "five, the first four a little. Pieces of 8: the last two. Norm over each frame: only the last.")

# %% [markdown]
# The group norm is the culprit. It subtracts a mean and divides by a spread, both taken over a group of channels, all
# places *and all frames* that it is given. Change the last frame, and every frame is divided by something else. In
# pieces of 8 frames the leak ends at the border of a piece, but within the piece it is stronger, because fewer frames
# share the statistics.
#
# With `norm_over="frame"` each frame has its own statistics, and the last network is clean. Does that explain both
# clues? What does it cost a network that was trained the other way? (Measured in decibels: 10 more is a tenth of the
# squared error.)

# %% tags=["nbval-ignore-output"]
clean = over_frame.encode(long_clip, chunk_frames=None).mode()
alone = apart(over_frame.encode(long_clip[:, :, :1]).mode(), clean[:, :, :1])
print(f"clue 1, an image alone and a clip's frame 0: latents differ by {alone:.3f}")
print(f"clue 2, the stream and the whole: latents differ by {apart(streamed(over_frame), clean):.3f}")
assert max(alone, apart(streamed(over_frame), clean)) < 1e-3

clips = [render(scene, 17, 64, 64) for scene in sample_scenes(12, seed=4, two_objects=0.0)]
decibels = {name: [psnr(one, to_clip(network.decode(network.encode(to_pixels(one)).mode()))) for one in clips]
            for name, network in (("as trained", vae), ("over each frame", over_frame))}
for name, values in decibels.items():
    print(f"round trip, norm {name}: {sum(values) / len(clips):.1f} dB")
gain = gain_of_pairs(decibels["over each frame"], decibels["as trained"])
print(f"over each frame minus as trained: {gain.mean:+.2f} dB (95 % interval over {len(clips)} clips: "
      f"{gain.low:+.2f} to {gain.high:+.2f})")
assert abs(gain.mean) < 1

# %% [markdown]
# Both clues are explained, and strict causality is one config field away. In our world neighbouring frames have much
# the same statistics, so the switch costs little. Whether that holds for real videos and the published weights, this
# notebook cannot say.
#
# ## 8. Looking at latents
#
# 16 channels are more than a screen has colours. So we look for the three directions in which the latents vary most
# (their principal components) and show those as red, green and blue.

# %%
values = rearrange(latents.cpu(), "1 c t h w -> (t h w) c")
values = values - values.mean(dim=0)
directions = torch.linalg.svd(values, full_matrices=False).Vh[:3]  # 3 c
colours = values @ directions.T
colours = (colours - colours.amin(dim=0)) / (colours.amax(dim=0) - colours.amin(dim=0))
colours = rearrange(colours, "(t h w) c -> t h w c", t=5, h=8)

figure, axes = new_figure(2, 5, width=7.5, height=3.3)
for place in range(5):
    for row, picture in ((0, clip[4 * place]), (1, colours[place])):
        axes[row][place].imshow(picture)
        axes[row][place].set(xticks=[], yticks=[], title=f"frame {4 * place}" if row == 0 else f"latent {place}")
        axes[row][place].grid(False)
show_figure(figure, "Above, five frames of the clip. Below, the five latent frames, 8 x 8 places each, in false "
                    "colours: a blot differs from its surroundings and moves to the right with the ring.")

# %% [markdown]
# The latents are a coarse map of the clip. If each place speaks for its own pixels, we can cut and paste: the left half
# of one clip's latents, the right half of another's. And if we change a single place, how far does the change reach?

# %% tags=["nbval-ignore-output"]
left = Scene((ShapeObject("circle", "red", "moves up", x=0.25, y=0.72, radius=0.17, speed=0.44),), "navy")
right = Scene((ShapeObject("cross", "cyan", "moves down", x=0.75, y=0.28, radius=0.17, speed=0.44),), "brown")
one, two = (render(scene, 17, 64, 64) for scene in (left, right))
z_one, z_two = (vae.encode(to_pixels(each)).mode() for each in (one, two))
pasted = to_clip(vae.decode(torch.cat([z_one[..., :4], z_two[..., 4:]], dim=-1)))  # along the width
compare_clips({"first clip": one, "second clip": two, "pasted latents": pasted},
              "A red circle moves up on the left, over navy; a cyan cross moves down on the right, over brown; decoded "
              "from the pasted latents, both move in one clip, half navy and half brown.", pipe.fps)
plain, shares = vae.decode(latents), {}  # of the change, for each place that was tried


def influence(row, column):
    """Where pixels change when latent frame 2 gets other values at one place: a figure, and its words."""
    other = latents.clone()
    other[:, :, 2, row, column] += torch.randn(latents.shape[1], generator=torch.Generator().manual_seed(0)).to(device)
    change = (vae.decode(other) - plain).abs().mean(dim=(0, 1)).cpu()  # t h w
    own = change[5:9].mean(dim=0)  # frames 5 to 8 are those of latent frame 2
    top, side = 8 * row, 8 * column
    near = own[max(top - 8, 0):top + 16, max(side - 8, 0):side + 16]
    shares[row, column] = [(own[top:top + 8, side:side + 8].sum() / own.sum()).item(), (near.sum() / own.sum()).item(),
                           (change[5:9].sum() / change.sum()).item()]
    figure, (axes,) = new_figure(1, 2, width=7, height=2.6)
    axes[0].imshow(own, cmap="magma")
    axes[0].contour(clip[7, :, :, 0].numpy(), levels=[0.4], colors="white", linewidths=0.6)  # the ring's outline
    axes[0].plot([side - 0.5, side + 7.5, side + 7.5, side - 0.5, side - 0.5],
                 [top - 0.5, top - 0.5, top + 7.5, top + 7.5, top - 0.5], color="#56B4E9")
    axes[0].set(xticks=[], yticks=[], title="mean change, frames 5 to 8")
    axes[0].grid(False)
    axes[1].bar(range(17), change.mean(dim=(1, 2)))
    axes[1].set(xlabel="frame (from 0)", ylabel="mean change")
    return figure, (f"Latent frame 2 was changed at row {row}, column {column}. Left, the change of the pixels, with a "
                    f"box around that place's own 8 x 8 and the ring's outline in frame 7; right, its mean in each "
                    f"frame.")


explore_figure(influence, "The reach of one place", row=range(8), column=range(8))
for place in ((2, 2), (2, 5), (5, 2), (5, 5)):
    influence(*place)
own, near, in_time = (sum(each) / len(shares) for each in zip(*shares.values()))
print(f"of the change in frames 5 to 8, {100 * own:.0f} % lies in the place's own 8 x 8 pixels and {100 * near:.0f} % "
      f"in the 24 x 24 around it; {100 * in_time:.0f} % of all change lies in these four frames")
assert own > 0.2 and near > 0.6

# %% [markdown]
# The pasted latents give a clip that nobody drew, with a clean line where the backgrounds meet. (Shapes may fray: the
# decoder now sees other neighbours and other statistics.) A place in the latents speaks first for its own 8 x 8 pixels,
# then for its neighbours'. It reaches into later frames, and through the norms a little into earlier ones. A diffusion
# model can place things here much as in an image.
#
# ## 9. Flicker
#
# Why not simply encode each frame as an image, with a 2D VAE? The usual answer is that such a video would flicker. Is
# that true? Flicker is how much pixels change from one frame to the next (`flicker`, in grey levels of 0 to 255; paper,
# Table 1). Motion counts, too, so we also look at clips in which nothing moves.
#
# We use the same network in two ways. *As a clip*: 17 frames become 5 latent frames. *Frame by frame*, as a 2D VAE
# works: each frame is encoded and decoded alone, 17 latent frames in all. A diffusion model never makes latents quite
# right. So we also try an error on each latent value: $0.2\,\epsilon$, with $\epsilon$ standard normal.
#
# **Prediction 2.4.** With perfect latents, which way gives the better picture (PSNR) of clips that move?

# %%
predict("2.4", "as a clip", "frame by frame", "no difference can be told")

# %% tags=["folded", "nbval-ignore-output"]
def as_clip(pixels, error):
    """Through the VAE as one clip, with an error on the latents."""
    z = vae.encode(pixels).mode()
    return vae.decode(z + error * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(device))


def frame_by_frame(pixels, error):
    """The same, each frame as a clip of its own."""
    frames = rearrange(pixels, "1 c t h w -> t c 1 h w")
    return rearrange(as_clip(frames, error), "t c 1 h w -> 1 c t h w")


scenes = sample_scenes(300, seed=5, two_objects=0.0)
kinds = {"still": [s for s in scenes if s.objects[0].motion == "stays still"][:4],
         "moving": [s for s in scenes if s.objects[0].motion in DIRECTIONS][:12]}
added, quality, kept = {}, {}, {}
for kind, chosen in kinds.items():
    true = [render(scene, 17, 64, 64) for scene in chosen]
    print(f"{kind}: the true clips change by {sum(map(flicker, true)) / len(true):.2f}")
    for error in (0.0, 0.2):
        for way in (as_clip, frame_by_frame):
            copies = [to_clip(way(to_pixels(one), error)) for one in true]
            case = kind, error, way.__name__
            kept[case] = copies[-1]
            added[case] = [flicker(copy) - flicker(one) for one, copy in zip(true, copies)]
            quality[case] = [psnr(one, copy) for one, copy in zip(true, copies)]
            print(f"  error {error}, {way.__name__.replace('_', ' '):14s}: flicker beyond that "
                  f"{sum(added[case]) / len(true):+.2f}, {sum(quality[case]) / len(true):.1f} dB")
gain = gain_of_pairs(quality["moving", 0.0, "frame_by_frame"], quality["moving", 0.0, "as_clip"])
more = gain_of_pairs(added["moving", 0.2, "frame_by_frame"], added["moving", 0.2, "as_clip"])
print("moving clips in pairs, frame by frame minus as a clip, with 95 % intervals:")
print(f"  no error: {gain.mean:+.2f} dB ({gain.low:+.2f} to {gain.high:+.2f})")
print(f"  error 0.2: {more.mean:+.2f} in flicker ({more.low:+.2f} to {more.high:+.2f})")
outcome("2.4", {"higher": "frame by frame", "lower": "as a clip"}.get(gain.verdict, "no difference can be told"))
assert max(added["still", 0.0, "as_clip"] + added["still", 0.0, "frame_by_frame"]) < 0.05
assert sum(added["still", 0.2, "frame_by_frame"]) > 1.3 * sum(added["still", 0.2, "as_clip"]) and more.mean > 0

# %%
still = {"the true clip": render(kinds["still"][-1], 17, 64, 64), "as a clip": kept["still", 0.2, "as_clip"],
         "frame by frame": kept["still", 0.2, "frame_by_frame"]}
compare_clips(still, "A still clip, and two copies from latents with an error: as a clip it changes slowly; frame by "
                     "frame it trembles.", pipe.fps)
figure, (axes,) = new_figure(1, 3, width=8, height=2.4)
for axis, (name, copy) in zip(axes, still.items()):
    axis.imshow(copy[:, int(64 * kinds["still"][-1].objects[0].y)], aspect="auto", interpolation="nearest")
    axis.set(xlabel="column", ylabel="frame (from 0)", title=name)
    axis.grid(False)
show_figure(figure, "One row of pixels of these clips, one frame below another. True clip: straight stripes. As a "
                    "clip: stripes that change slowly. Frame by frame: stripes that jump at each frame.")

# %% [markdown]
# Without an error a still clip does not flicker, either way: equal frames have equal codes, and as the padding repeats
# the first frame, every layer sees the same at every moment.
#
# For quality, frame by frame has an advantage that is easily forgotten: it spends 17 latent frames where the clip has
# 5. For flicker, the error makes the difference. Frame by frame, each frame gets an error of its own. As a clip, four
# frames share one, and the decoder's convolutions smooth it over time. So the 3D VAE leaves a generator fewer chances
# to contradict itself from frame to frame: a narrower reason than is usually given. (This VAE was trained on clips; one
# trained on images might do better on single frames.)
#
# ## 10. At full size
#
# The published VAE is the same class with more and wider layers. On the **meta device** a tensor has a shape and no
# memory, so we can send a whole clip through: 49 frames of 480 x 720 pixels, six seconds. How large is its largest
# tensor when all 13 latent frames are decoded at once? And in pieces of two, as published?

# %%
with torch.device("meta"):
    giant = CausalVAE(preset("5b").vae)
    video = torch.empty(1, 3, 49, 480, 720)
for name, each in (("published", giant), ("toy", vae)):
    print(f"{name}: {sum(p.numel() for p in each.parameters()):,} parameters")

with FlopCounterMode(display=False) as work:
    giant_latents = giant.encode(video).mode()
print(f"latents {tuple(giant_latents.shape)}: {video.numel() / giant_latents.numel():.0f} times fewer numbers; "
      f"to encode: {work.get_total_flops() / 1e12:.0f} TFLOP")


def largest_tensor(network, run):
    """The largest output of any layer during `run()`: how many numbers, and its shape."""
    outputs = []
    hooks = [layer.register_forward_hook(lambda layer, given, out: outputs.append((out.numel(), tuple(out.shape))))
             for layer in network.modules()]
    run()
    for hook in hooks:
        hook.remove()
    return max(outputs)


for chunk in (None, 2):
    with FlopCounterMode(display=False) as work:
        count, shape = largest_tensor(giant, lambda: giant.decode(giant_latents, chunk_latents=chunk))
    print(f"{'in pieces' if chunk else 'at once'}: largest tensor {shape}, {2 * count / 1e9:.1f} GB in 16 bits; "
          f"to decode: {work.get_total_flops() / 1e12:.0f} TFLOP")

# %% [markdown]
# The work is the same; the memory is not. At once, a single tensor fills 8.7 GB, and a layer needs several of them. In
# pieces it is 1.6 GB, for a clip of any length.
#
# ## What you can now explain
#
# Answer first, then open.
#
# <details><summary>1. What makes a convolution causal, and what does it gain?</summary>
#
# All its padding in time stands in front. So it needs only the past: an image is a clip of one frame, and a clip can
# pass through in pieces with a memory of two frames for each layer.
# </details>
#
# <details><summary>2. Why do 5 frames come back as 8 from the published VAE?</summary>
#
# It knows the start of a clip by an odd count. 5 frames become 2 latents, an even count, so the decoder doubles both of
# them twice.
# </details>
#
# <details><summary>3. Is the causal VAE causal?</summary>
#
# Its convolutions are. Its group norm takes statistics over a whole piece, so later frames change earlier ones a
# little, within the piece.
# </details>
#
# **What the paper found.** Its Table 1 compares VAEs on real videos. A 2D VAE (8 x 8 x 1, 4 channels) has flicker 93.2
# and 28.4 dB; the 3D one that became CogVideoX (8 x 8 x 4, 16 channels) has 86.3 and 28.7 dB. At least two things
# changed at once, time and channels, and the paper gives no unit of flicker: only the order of its numbers can be
# compared with ours. Far stronger compression (16 x 16 x 8) made convergence extremely difficult; the authors name it
# as future work.
#
# **Where to read on.** `minicogvx/vae/autoencoder.py` is the whole VAE on one page, made of `blocks.py` and
# `layers.py`. `tiling.py` cuts large frames as this notebook cut long clips. How the VAE *learns* is the question of
# [notebook 03](03_vae_losses.ipynb).

# %%
progress()
predictions("2")
