"""The expert transformer's own properties: options, positions, initial state, precision, errors."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minicogvx.presets import TransformerConfig, preset
from minicogvx.transformer import cpu_attention
from minicogvx.transformer.model import ExpertTransformer, flops
from minicogvx.transformer.patchify import patchify, unpatchify
from minicogvx.transformer.positions import rope_3d, rotate, sincos_3d, with_text
from tests.tiny import TINY

SMALL = replace(TINY.transformer, attention_head_dim=32, out_channels=3, text_embed_dim=12, max_text_seq_length=6,
                time_embed_dim=16, sample_width=12, position_scaling="interpolate")  # no two sizes are alike
OPTIONS = [dict(position=p) for p in ("rope", "sincos", "learned", "rope+learned", "none")]
OPTIONS += [dict(modulation=m, attention=a) for m in ("expert", "shared", "separate") for a in ("full", "factorised")]
OPTIONS += [dict(patch_size_t=1), dict(position_scaling="extrapolate"), dict(ofs_embed_dim=16)]
OPTIONS += [dict(value_residual=True, modulation=m) for m in ("expert", "shared")]


def make(config: TransformerConfig, std: float = 0.25) -> ExpertTransformer:
    """A model whose every weight is random, so that no zero gate hides anything."""
    torch.manual_seed(0)
    model = ExpertTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def inputs(config: TransformerConfig, b=2, t=3, h=8, w=12, text=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(b, config.in_channels, t, h, w, generator=generator), torch.arange(b) * 300 + 19,
            torch.randn(b, text, config.text_embed_dim, generator=generator),
            torch.full((b,), 2.0) if config.ofs_embed_dim else None]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_every_option_runs_and_every_parameter_learns(subtests):
    for option in OPTIONS:
        with subtests.test(option=option):
            config = replace(SMALL, **option)
            model = make(config)
            out = model(*inputs(config))
            assert out.shape == (2, 3, 3, 8, 12) and out.isfinite().all()
            out.square().sum().backward()
            # No gradient reaches the bias of all keys alike (softmax) and the text's way out of the last block.
            silent = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6}
            last = "transformer_blocks.1."
            allowed = {name for name in silent if name.endswith("norm_k.bias") or name.startswith(last)
                       and ("ff_text" in name or "text.to_out" in name or "norm2.text_norm" in name)}
            allowed |= {name for name in silent if name.startswith(f"{last}attn1.text.") and "_q." in name}
            assert silent <= allowed, silent - allowed


def test_samples_do_not_mix_and_each_depends_on_everything(subtests):
    for option in OPTIONS:
        with subtests.test(option=option):
            config = replace(SMALL, **option)
            model, (latents, timestep, text, ofs) = make(config), inputs(config)
            with torch.no_grad():
                out = model(latents, timestep, text, ofs)
                for i in range(3):
                    changed = [latents.clone(), timestep.clone(), text.clone(), ofs]
                    changed[i][1] += 1
                    other = model(*changed)
                    assert torch.allclose(other[0], out[0], atol=1e-5)
                    assert not torch.allclose(other[1], out[1], atol=1e-3)


def test_blocks_start_as_the_identity_and_the_output_as_xavier(subtests):
    for option in OPTIONS:
        with subtests.test(option=option):
            config = replace(SMALL, **option)
            torch.manual_seed(0)
            model, x, t_emb = ExpertTransformer(config), torch.randn(2, 5 + 72, config.width), torch.randn(2, 16)
            layout = model.layout((3, 4, 6), 5, torch.device("cpu"))
            y = x
            for block in model.transformer_blocks:
                y = block(y, t_emb, layout)  # with value_residual the first returns a pair
            assert torch.equal(y, x)
    model = ExpertTransformer(SMALL)
    for layer in (model.patch_embed.proj, model.proj_out):
        weight = layer.weight.flatten(1)
        bound = (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max() <= bound and weight.abs().max() > 0.9 * bound and not layer.bias.any()
    for block in model.transformer_blocks:
        assert not any(p.any() for norm in (block.norm1, block.norm2) for p in norm.linear.parameters())


def test_patchify_has_an_inverse_and_the_published_order():
    latents = torch.arange(2 * 3 * 4 * 6 * 8).float().view(2, 3, 4, 6, 8)
    for patch_t in (1, 2):
        tokens = patchify(latents, patch_t, 2)
        assert torch.equal(unpatchify(tokens, (4 // patch_t, 3, 4), patch_t, 2), latents)
        assert torch.equal(tokens[1, 5], latents[1, :, :patch_t, 2:4, 2:4].flatten())  # token 5: row 1, column 1


def turn(x: torch.Tensor, grid: tuple[int, int, int], token: tuple[int, int, int]) -> torch.Tensor:
    row = (token[0] * grid[1] + token[1]) * grid[2] + token[2]
    return rotate(x.view(1, 1, 1, -1), rope_3d(grid, x.shape[-1])[row:row + 1]).flatten()


def test_rope_scores_depend_only_on_the_offset():
    torch.manual_seed(0)
    q, k, grid = torch.randn(32), torch.randn(32), (6, 9, 9)
    score = turn(q, grid, (1, 2, 3)) @ turn(k, grid, (3, 1, 7))
    shifted = turn(q, grid, (3, 6, 1)) @ turn(k, grid, (5, 5, 5))
    elsewhere = turn(q, grid, (3, 6, 1)) @ turn(k, grid, (5, 5, 6))
    assert torch.isclose(score, shifted, atol=1e-4) and not torch.isclose(score, elsewhere, atol=1e-2)
    assert torch.isclose(turn(q, grid, (5, 8, 8)).norm(), q.norm())


def test_rope_leaves_text_alone_and_pairs_neighbours():
    table = rope_3d((2, 2, 2), 16)
    x = torch.randn(1, 1, 3 + 8, 16)
    turned = rotate(x, with_text(table, 3))
    assert torch.equal(turned[:, :, :4], x[:, :, :4]) and not torch.equal(turned[:, :, 4:], x[:, :, 4:])
    last, c, s = x[0, 0, -1], table.real[-1], table.imag[-1]  # written out for the token (1, 1, 1)
    x0, x1 = last[0::2], last[1::2]
    assert torch.allclose(turned[0, 0, -1, 0::2], x0 * c - x1 * s, atol=1e-6)
    assert torch.allclose(turned[0, 0, -1, 1::2], x1 * c + x0 * s, atol=1e-6)
    assert torch.allclose(c[:2], torch.tensor([1.0, 0.01]).cos())  # time: 2 of 8 pairs
    assert torch.allclose(c[2:5], c[5:])  # rows and columns: 3 each


def test_sincos_places_time_then_column_then_row():
    table = sincos_3d((2, 3, 4), 32, spatial_scale=2.0, temporal_scale=1.0).view(2, 3, 4, 32)
    assert torch.allclose(table[1, 2, 3, 0], torch.tensor(1.0).sin())      # 8 of time: 4 sines, then 4 cosines
    assert torch.allclose(table[1, 2, 3, 4], torch.tensor(1.0).cos())
    assert torch.allclose(table[1, 2, 3, 8], torch.tensor(3 / 2.0).sin())  # 12 of the column
    assert torch.allclose(table[1, 2, 3, 20], torch.tensor(2 / 2.0).sin())  # 12 of the row


def test_interpolation_keeps_the_base_grid_and_squeezes_others():
    base = (6, 8)
    assert torch.equal(rope_3d((3, 6, 8), 32, base), rope_3d((3, 6, 8), 32))
    angle = rope_3d((1, 12, 16), 64, base).angle()[:16, 20]
    assert torch.allclose(angle[:6], torch.arange(6) / 2)  # a column in a grid of twice the size is worth half


def test_positions_order_the_patches_and_only_learned_ones_the_text(subtests):
    """Flip the video left to right in whole patches: only a model without positions flips its answer exactly."""
    for position in ("rope", "sincos", "learned", "none"):
        config = replace(SMALL, position=position, patch_size=1, sample_height=4, sample_width=4)
        model, (latents, timestep, text, ofs) = make(config), inputs(config, h=4, w=4)
        with subtests.test(position), torch.no_grad():
            out = model(latents, timestep, text, ofs)
            patches = distance(model(latents.flip(-1), timestep, text, ofs).flip(-1), out)
            assert (patches < 1e-5) if position == "none" else (patches > 1e-3)
            words = distance(model(latents, timestep, text.flip(1), ofs), out)
            assert (words > 2e-5) if position == "learned" else (words < 2e-6)


def test_first_frame_sees_the_last_one():
    """Nothing is causal here, with either attention."""
    for option in ("full", "factorised"):
        model = make(config := replace(SMALL, attention=option))
        latents, timestep, text, ofs = inputs(config)
        changed = latents.clone()
        changed[:, :, -1] += 1
        with torch.no_grad():
            before, after = model(latents, timestep, text, ofs), model(changed, timestep, text, ofs)
        assert distance(after[:, :, 0], before[:, :, 0]) > 1e-4


def test_checkpointing_changes_no_number(subtests):
    for option in [{}, dict(modulation="separate", attention="factorised"), dict(value_residual=True, num_layers=3)]:
        with subtests.test(option=option):
            config = replace(SMALL, **option)
            model, gradients = make(config), []
            for model.gradient_checkpointing in (False, True):
                model.zero_grad()
                model(*inputs(config)).square().mean().backward()
                gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            assert gradients[0].keys() == gradients[1].keys()
            for name in gradients[0]:
                assert torch.allclose(gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_values_of_the_first_block_are_mixed_into_those_of_the_others_by_a_learnt_share():
    """Against the published model, with hooks on its value layers; the share of block 2 is another than that of 1."""
    config = replace(SMALL, num_layers=3)
    plain, mixing, given, first = make(config), make(replace(config, value_residual=True)), inputs(config), []
    shares = [torch.tensor([share], requires_grad=True) for share in (0.3, -0.2)]
    missing = mixing.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f"transformer_blocks.{i}.attn1.first_share" for i in (1, 2)]
    new = ExpertTransformer(mixing.config).transformer_blocks
    assert [block.attn1.first_share for block in new] == [None, 0.5, 0.5]
    for block, share in zip(mixing.transformer_blocks[1:], shares):
        block.attn1.first_share.data.copy_(share)
    values = [block.attn1.to_v for block in plain.transformer_blocks]
    values[0].register_forward_hook(lambda layer, x, v: first.append(v))
    for layer, share in zip(values[1:], shares):
        layer.register_forward_hook(lambda layer, x, v, share=share: (1 - share) * v + share * first[0])
    expected, out = plain(*given), mixing(*given)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for model_out in (expected, out):
        model_out.square().sum().backward()
    learning = dict(mixing.named_parameters())
    for name, p in plain.named_parameters():
        torch.testing.assert_close(learning[name].grad, p.grad, rtol=1e-3, atol=1e-3 * p.grad.abs().max().item() + 1e-4)
    for name, share in zip(missing, shares):
        torch.testing.assert_close(learning[name].grad, share.grad, rtol=1e-3, atol=1e-4)
    with pytest.raises(RuntimeError, match="first_share"):
        mixing.load_state_dict(plain.state_dict())
    for refused in (dict(attention="factorised"), dict(modulation="separate")):
        with pytest.raises(ValueError, match="value_residual is True with attention="):
            replace(SMALL, value_residual=True, **refused)


COMPILES = """
import torch
from dataclasses import replace
from tests.test_transformer import SMALL, inputs, make
for checkpointing, value_residual in ((False, False), (True, False), (False, True)):
    model, arguments = make(replace(SMALL, value_residual=value_residual)), inputs(SMALL)
    model.gradient_checkpointing = checkpointing
    expected = model(*arguments)  # the first call makes the position tables, outside of the graph
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(*arguments), expected)
"""


def test_it_compiles_as_one_graph():
    """In a process of its own: where annotations are checked, the checks break the graph."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COMPILES], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bfloat16_weights_and_autocast_stay_near_float32(monkeypatch, subtests):
    for kept in (0, 2**23):
        with subtests.test(kept=kept):
            monkeypatch.setattr(cpu_attention, "KEPT_SCORES", kept)
            config = replace(SMALL, sample_height=16, sample_width=16)
            model, (latents, timestep, text, _) = make(config, std=0.15), inputs(config, t=5, h=16, w=16)
            timestep = torch.tensor([997, 998])  # both would be 1000 in bfloat16
            exact = model(latents, timestep, text)
            assert exact.dtype == torch.float32
            exact_gradients = torch.autograd.grad(exact.square().mean(), list(model.parameters()))
            with torch.autocast("cpu", torch.bfloat16):
                cast = model(latents, timestep, text)
            cast_gradients = torch.autograd.grad(cast.float().square().mean(), list(model.parameters()))
            norms = [torch.stack([g.norm() for g in gradients]) for gradients in (exact_gradients, cast_gradients)]
            assert distance(norms[1], norms[0]) < 0.03
            half = model.bfloat16()
            out = half(latents.bfloat16(), timestep, text.bfloat16())
            assert out.dtype == torch.bfloat16
            assert distance(out.float(), exact) < 0.03 and distance(cast.float(), exact) < 0.03
            table = next(iter(model._layouts.values())).rope
            assert table.dtype == torch.complex64
            assert not torch.equal(half.time_embedding(timestep)[0], half.time_embedding(timestep)[1])


def test_tables_made_while_sampling_serve_in_training():
    for position in ("rope", "sincos"):
        model = make(config := replace(SMALL, position=position))
        with torch.inference_mode():
            model(*inputs(config))
        model(*inputs(config)).sum().backward()
        assert len(model._layouts) == 1
        for t in range(1, 40):
            model(*inputs(config, t=t, h=2, w=2))
        assert len(model._layouts) <= 16


def test_sizes_that_do_not_fit_are_named(subtests):
    cases = [
        ({}, dict(h=7), "latents are 7 x 12; height and width must be multiples of patch_size=2"),
        ({}, dict(w=9), "latents are 8 x 9"), ({}, dict(text=7), "the text has 7 tokens; max_text_seq_length is 6"),
        (dict(patch_size_t=2), dict(t=3), "latents have 3 frames; with patch_size_t=2"),
        (dict(position="learned"), dict(t=2), "the learned position table fits only 3 x 8 x 12"),
        (dict(position="rope+learned"), dict(h=10), "latents are 3 x 10 x 12"),
    ]
    for option, change, sentence in cases:
        with subtests.test(sentence), pytest.raises(ValueError, match=sentence):
            config = replace(SMALL, **option)
            ExpertTransformer(config)(*inputs(config, **change))
    model, (latents, timestep, text, _) = ExpertTransformer(SMALL), inputs(SMALL)
    with_ofs = ExpertTransformer(replace(SMALL, ofs_embed_dim=16))
    calls = {
        "latents have 3 channels; this transformer takes 4": lambda: model(latents[:, :3], timestep, text),
        "text features are 11 wide; this transformer takes 12": lambda: model(latents, timestep, text[..., :11]),
        "ofs was given": lambda: model(latents, timestep, text, torch.full((2,), 2.0)),
        "ofs is None": lambda: with_ofs(latents, timestep, text),
    }
    for sentence, call in calls.items():
        with subtests.test(sentence), pytest.raises(ValueError, match=sentence):
            call()


def test_flops_are_those_counted(subtests):
    for option in ({}, dict(modulation="shared"), dict(modulation="separate"), dict(attention="factorised"),
                   dict(ofs_embed_dim=16)):
        with subtests.test(option=option):
            config = replace(SMALL, **option)
            model, arguments = make(config).bfloat16(), inputs(config)
            arguments[0], arguments[2] = arguments[0].bfloat16(), arguments[2].bfloat16()
            with FlopCounterMode(display=False) as counter:
                model(*arguments)
            assert counter.get_total_flops() == flops(config, (3, 8, 12), num_text=5, batch=2)


def test_options_cost_what_they_say():
    def count(**option):
        with torch.device("meta"):
            model = ExpertTransformer(replace(preset("toy").transformer, **option))
        return sum(p.numel() for p in model.parameters())

    config = preset("toy").transformer
    d, layers = config.width, config.num_layers
    modulation = layers * 2 * (config.time_embed_dim + 1) * 3 * d
    assert count() - count(modulation="shared") == modulation
    own = layers * (4 * (d * d + d) + 4 * config.attention_head_dim + 8 * d * d + 5 * d + 4 * d)
    assert count(modulation="separate") - count() == own
    assert count(position="learned") - count() == (config.max_text_seq_length + 5 * 4 * 4) * d
    assert count(position="sincos") == count(position="none") == count(position="rope+learned") == count()
