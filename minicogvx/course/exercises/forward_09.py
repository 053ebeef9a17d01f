"""The check of exercise 9.1, the whole network from its parts: which part was forgotten, doubled or exchanged."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from minicogvx.course.exercises.exercise import Wrong, expect_close, expect_shape
from minicogvx.presets import TransformerConfig
from minicogvx.transformer.model import ExpertTransformer

_TINY = TransformerConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, in_channels=4, out_channels=4,
                          text_embed_dim=6, max_text_seq_length=8, time_embed_dim=12, sample_height=4, sample_width=4,
                          sample_frames=9, position_scaling="extrapolate")


def forward_of_parts(net: ExpertTransformer, latents: Float[Tensor, "b c t h w"], timestep: Num[Tensor, " b"],
                     text: Float[Tensor, "b n_text d_text"]) -> Float[Tensor, "b c t h w"]:
    """The expert transformer (paper 2.2), of one size of clips: what `ExpertTransformer.forward` computes."""
    layout = net.layout(net.grid(latents), text.shape[1], latents.device)
    t_emb = F.silu(net.time_embedding(timestep))              # b d_time
    x = net.patch_embed(latents, text, None)                  # b n d: text, then video
    for block in net.transformer_blocks:
        x = block(x, t_emb, layout)                           # b n d
    x = net.norm_final(layout.video(x))                       # b n_video d
    x = net.norm_out(x, t_emb, layout)                        # b n_video d
    return layout.unpatchify(net.proj_out(x))                 # b c t h w


class _InParts(ExpertTransformer):
    """Its parts may be called, it may not."""

    def forward(self, *arguments, **named):
        raise Wrong("model_forward calls net itself, which is what you are to write; call its parts.")


def tiny_net() -> ExpertTransformer:
    """A network in which every part matters: no gate is 0, and no norm's weight is 1."""
    net = _InParts(_TINY).eval()
    for p in net.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    return net


def check_model_forward(model_forward) -> None:
    """The package's numbers for several sizes and lengths of text; each usual slip has its own sentence."""
    net = tiny_net()
    for size, num_text in (((2, 4, 3, 4, 6), 5), ((1, 4, 1, 2, 2), 8), ((2, 4, 2, 4, 4), 0)):
        latents, text = torch.randn(size), torch.randn(size[0], num_text, 6)
        t = torch.tensor([20, 900])[:size[0]]
        what = f"model_forward(net, latents of shape {size}, timestep, {num_text} rows of text)"
        with torch.no_grad():
            got = model_forward(net, latents.clone(), t, text.clone())
            expect_shape(what, got, size)
            wanted = ExpertTransformer.forward(net, latents, t, text)
            if not torch.allclose(got.float(), wanted, atol=1e-3):
                _name_a_slip(got, net, latents, t, text)
            expect_close(what, got, wanted, atol=1e-3)
            _check_order(model_forward, net, latents, t, text)


def _name_a_slip(got: Tensor, net: ExpertTransformer, latents: Tensor, t: Tensor, text: Tensor) -> None:
    for said, options in SLIPS.items():
        try:
            slip = with_slip(net, latents, t, text, **options)
        except RuntimeError:  # shapes that fit in other sizes only
            continue
        if slip.shape == got.shape and torch.allclose(got.float(), slip, atol=1e-4):
            raise Wrong(said)


SLIPS = {
    "The time embedding goes into the blocks without its SiLU: F.silu(net.time_embedding(timestep)).": {"silu": 0},
    "The time embedding goes through SiLU twice; once is right.": {"silu": 2},
    "norm_final is missing: there are two norms after the last block, norm_final, then norm_out.": {"final": False},
    "norm_out is missing: there are two norms after the last block, norm_final, then norm_out.": {"out": False},
    "norm_out comes before norm_final; it is the other way round.": {"exchanged": True},
    "The last rows of the sequence are not taken: text comes first, so video is what follows it.": {"first": True},
    "No block is called, or each gets what entered the first and only the last counts.": {"blocks": 0},
    "Only one block is called; all of net.transformer_blocks come one after the other.": {"blocks": 1},
    "The blocks are called in reverse order.": {"reverse": True},
}


def with_slip(net: ExpertTransformer, latents: Tensor, t: Tensor, text: Tensor, silu: int = 1, final: bool = True,
              out: bool = True, exchanged: bool = False, first: bool = False, blocks: int | None = None,
              reverse: bool = False) -> Tensor:
    """What comes out with one usual slip."""
    layout, t_emb = net.layout(net.grid(latents), text.shape[1], latents.device), net.time_embedding(t)
    for _ in range(silu):
        t_emb = F.silu(t_emb)
    x = net.patch_embed(latents, text, None)
    chosen = list(net.transformer_blocks)[:blocks]
    for block in reversed(chosen) if reverse else chosen:
        x = block(x, t_emb, layout)
    x = x[:, :layout.num_video] if first else layout.video(x)
    norms = [net.norm_final] * final + [lambda y: net.norm_out(y, t_emb, layout)] * out
    for norm in reversed(norms) if exchanged else norms:
        x = norm(x)
    return layout.unpatchify(net.proj_out(x))


def _check_order(model_forward, net: ExpertTransformer, latents: Tensor, t: Tensor, text: Tensor) -> None:
    """Rows of text have no position: in another order they say the same."""
    if text.shape[1] > 1 and not torch.allclose(model_forward(net, latents, t, text.flip(1)),
                                                model_forward(net, latents, t, text), atol=1e-3):
        raise Wrong("The same rows of text in another order change the answer; here they have no positions.")
