"""The transformer against diffusers: the same weights give the same numbers, for all five published variants."""

from dataclasses import replace

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed, get_timestep_embedding
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch.utils.flop_counter import FlopCounterMode

from minicogvx.presets import TransformerConfig, preset
from minicogvx.transformer.embeddings import timestep_sinusoid
from minicogvx.transformer.model import ExpertTransformer, flops
from minicogvx.transformer.positions import rope_3d, sincos_3d

VARIANTS = ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")
PARAMETERS = {"2b": 1_693_783_872, "5b": 5_570_283_072, "5b-i2v": 5_570_479_680, "1.5-5b": 5_570_676_352,
              "1.5-5b-i2v": 5_571_594_880}
TENSORS = {"2b": 736, "5b": 1024, "5b-i2v": 1025, "1.5-5b": 1024, "1.5-5b-i2v": 1028}
TEXT = 7


def shrunken(name: str) -> TransformerConfig:
    """A published config with everything made small that can be; options and oddities stay."""
    config = preset(name).transformer
    return replace(config, num_attention_heads=2, attention_head_dim=32, num_layers=2, text_embed_dim=24,
                   max_text_seq_length=TEXT, time_embed_dim=20, ofs_embed_dim=20 if config.ofs_embed_dim else None,
                   sample_height=12, sample_width=20, sample_frames=9)


def theirs(config: TransformerConfig) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=config.num_attention_heads, attention_head_dim=config.attention_head_dim,
        in_channels=config.in_channels, out_channels=config.out_channels, time_embed_dim=config.time_embed_dim,
        ofs_embed_dim=config.ofs_embed_dim, text_embed_dim=config.text_embed_dim, num_layers=config.num_layers,
        sample_width=config.sample_width, sample_height=config.sample_height, sample_frames=config.sample_frames,
        patch_size=config.patch_size, patch_size_t=config.patch_size_t,
        max_text_seq_length=config.max_text_seq_length,
        use_rotary_positional_embeddings="rope" in config.position,
        use_learned_positional_embeddings="learned" in config.position)


def their_rope(config: TransformerConfig, t: int, h: int, w: int):
    """As their pipeline prepares it: linspace over a crop of the base grid for 1.0, a slice of the table for 1.5."""
    if "rope" not in config.position:
        return None
    p, base = config.patch_size, (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    if config.patch_size_t is None:
        crop = get_resize_crop_region_for_grid((h // p, w // p), base[1], base[0])
        return get_3d_rotary_pos_embed(config.attention_head_dim, crop, (h // p, w // p), t)
    return get_3d_rotary_pos_embed(config.attention_head_dim, None, (h // p, w // p), t // config.patch_size_t,
                                   grid_type="slice", max_size=(max(base[0], h // p), max(base[1], w // p)))


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).norm() / reference.norm()).item()


def both(name: str):
    torch.manual_seed(0)
    config = shrunken(name)
    model, reference = ExpertTransformer(config), theirs(config)
    for tensor in (*reference.parameters(), *reference.state_dict().values()):
        torch.nn.init.normal_(tensor, std=0.15)
    model.load_state_dict(reference.state_dict(), strict=True)
    return config, model, reference


def inputs(config: TransformerConfig, t: int, h: int, w: int, text: int):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2, config.in_channels, t, h, w, generator=generator), torch.tensor([19, 999]),
            torch.randn(2, text, config.text_embed_dim, generator=generator),
            torch.full((2,), 2.0) if config.ofs_embed_dim else None)


def run_theirs(reference, config, latents, timestep, text, ofs):
    rope = their_rope(config, *latents.shape[2:])
    return reference(latents.transpose(1, 2), text, timestep, ofs=ofs, image_rotary_emb=rope).sample.transpose(1, 2)


def test_parameters_are_counted_as_published_and_named_as_in_diffusers(subtests):
    for name in VARIANTS:
        with subtests.test(name):
            config = shrunken(name)
            with torch.device("meta"):
                model = ExpertTransformer(preset(name).transformer)
                ours, reference = ExpertTransformer(config).state_dict(), theirs(config).state_dict()
            assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
            assert len(model.state_dict()) == TENSORS[name]
            if name == "5b-i2v":  # the learned table is no parameter: 226 + 13 * 30 * 45 rows of 3072
                assert model.patch_embed.pos_embedding.shape == (1, 17_776, 3072)
            assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in reference.items()}


def test_published_size_runs_on_the_meta_device(subtests):
    for name in VARIANTS:
        with subtests.test(name):
            config = preset(name).transformer
            t, h, w = (22, 96, 170) if config.patch_size_t else (13, 60, 90)
            with torch.device("meta"):
                model = ExpertTransformer(config)
                ofs = torch.empty(1) if config.ofs_embed_dim else None
                latents, text = torch.empty(1, config.in_channels, t, h, w), torch.empty(1, 226, 4096)
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    out = model(latents, torch.empty(1), text, ofs)
            assert out.shape == (1, 16, t, h, w)
            assert counter.get_total_flops() == flops(config, (t, h, w), num_text=226)


SIZES = [("2b", 3, 12, 20, TEXT), ("2b", 2, 16, 8, TEXT), ("5b", 3, 12, 20, TEXT), ("5b", 2, 8, 22, 3),
         ("5b", 1, 20, 12, 5), ("5b-i2v", 3, 12, 20, TEXT), ("1.5-5b", 4, 12, 20, 4), ("1.5-5b", 2, 22, 6, TEXT),
         ("1.5-5b-i2v", 4, 8, 14, TEXT), ("1.5-5b-i2v", 6, 12, 20, 5)]


def test_forward_and_gradients_agree(subtests):
    for name, t, h, w, text in SIZES:
        with subtests.test(name, size=(t, h, w), text=text):
            config, model, reference = both(name)
            arguments = inputs(config, t, h, w, text)
            expected = run_theirs(reference, config, *arguments)
            actual = model(*arguments)
            assert actual.shape == expected.shape and relative(actual, expected) < 1e-5
            probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
            (expected * probe).sum().backward()
            (actual * probe).sum().backward()
            gradients = dict(model.named_parameters())
            for key, parameter in reference.named_parameters():
                # One shift of all keys cancels in the softmax: without RoPE that bias has no gradient but rounding.
                if not key.endswith("norm_k.bias"):
                    assert relative(gradients[key].grad, parameter.grad) < 1e-5, key
            scale = max(parameter.grad.norm() for parameter in reference.parameters())
            for key, parameter in reference.named_parameters():
                assert (gradients[key].grad - parameter.grad).norm() < 1e-5 * scale, key


def test_bfloat16_is_as_near_to_float32_as_diffusers_is():
    config, model, reference = both("5b")
    latents, timestep, text, _ = inputs(config, 3, 12, 20, TEXT)
    with torch.no_grad():
        exact = run_theirs(reference, config, latents, timestep, text, None)
        half = (latents.bfloat16(), timestep, text.bfloat16(), None)
        ours = relative(model.bfloat16()(*half).float(), exact)
        other = relative(run_theirs(reference.bfloat16(), config, *half).float(), exact)
    assert ours < 1.2 * other and ours < 0.05


def agrees(table, expected):
    """Theirs is cosines and sines, each twice, for both channels of a pair."""
    for ours, reference in zip((table.real, table.imag), expected, strict=True):
        assert torch.allclose(ours.repeat_interleave(2, dim=1), reference, atol=1e-6)


def test_position_tables_and_the_sines_of_a_timestep_are_theirs():
    for t, h, w in ((3, 30, 45), (1, 45, 30), (2, 48, 48), (5, 16, 24), (2, 7, 90)):  # interpolated
        crop = get_resize_crop_region_for_grid((h, w), 45, 30)
        agrees(rope_3d((t, h, w), 64, base_grid=(30, 45)), get_3d_rotary_pos_embed(64, crop, (h, w), t))
    expected = get_3d_rotary_pos_embed(48, None, (9, 31), 4, grid_type="slice", max_size=(150, 150))
    agrees(rope_3d((4, 9, 31), 48), expected)  # extrapolated
    expected = get_3d_sincos_pos_embed(1920, (45, 30), 3, 1.875, 1.0, output_type="pt").flatten(0, 1)
    assert torch.allclose(sincos_3d((3, 30, 45), 1920), expected.float(), atol=1e-6)
    timestep = torch.tensor([0, 19, 999])
    expected = get_timestep_embedding(timestep, 1920, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(timestep_sinusoid(timestep, 1920), expected, atol=1e-6)
    assert torch.equal(timestep_sinusoid(timestep.double(), 1920), timestep_sinusoid(timestep, 1920))
