"""Frame pack: what is packed together, and that a pack computes what its clips compute alone.

Which packs come at a step: test_order.py. How they are trained on: test_batches.py, test_transformer_task.py.
"""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import mixtures, packing
from benchmarks.mixtures import PUBLISHED_MIXTURE, TOY_MIXTURE, ClipSize, filled_share
from minicogvx.data.clips import packs as frame_pack
from minicogvx.data.clips.packs import frame_packs
from minicogvx.diffusion.objective import diffusion_loss
from minicogvx.diffusion.schedule import NoiseSchedule
from minicogvx.presets import ScheduleConfig, TransformerConfig, preset
from minicogvx.training.packed import packed_diffusion_loss
from minicogvx.transformer.layout import DenseLayout
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import (
    check_pack,
    checked_mask,
    clip_mask,
    forward_clips,
    pack_layout,
    pack_order,
    same_clip,
)

SMALL = TransformerConfig(num_attention_heads=2, attention_head_dim=32, num_layers=2, in_channels=4, out_channels=4,
                          text_embed_dim=12, max_text_seq_length=6, time_embed_dim=16, sample_height=8, sample_width=12,
                          sample_frames=9)
OPTIONS = [dict(position=p, modulation=m) for p in ("rope", "sincos", "none") for m in ("expert", "shared")]
OPTIONS += [dict(position_scaling="extrapolate"), dict(patch_size_t=2), dict(ofs_embed_dim=16)]
OPTIONS += [dict(value_residual=True, num_layers=3)]
# Images, clips of one shape not side by side, one with fewer words, one wide and one upright of equal length.
SHAPES = [(3, 4, 6, 5), (1, 4, 4, 5), (3, 4, 6, 2), (1, 4, 4, 5), (2, 8, 4, 6), (3, 6, 4, 5)]  # t h w, text tokens
SCHEDULE = NoiseSchedule(ScheduleConfig())


# ---------------------------------------------------------------------------- what is packed together

def test_packs_of_realistic_mixtures_are_full_hold_every_clip_once_and_resemble_the_data(subtests):
    for mixture in (TOY_MIXTURE, PUBLISHED_MIXTURE):
        with subtests.test(mixture.preset):
            clips, room = mixture.draw(4000, seed=1), mixture.sequence_length
            tokens = mixture.tokens(clips)
            packs = list(frame_packs(tokens, room, seed=2))
            packed = [i for pack in packs for i in pack.indices]
            assert sorted(packed) == list(range(4000))
            for pack in packs:
                assert pack.tokens == sum(tokens[i] for i in pack.indices) <= pack.sequence_length == room
            assert filled_share(packs) >= 0.95  # the last, short pack counts, too
            assert min(pack.tokens / room for pack in packs[:-2]) >= 0.95
            arrival = next(frame_packs(tokens, sum(tokens), seed=2)).indices  # room for all: in order of arrival
            for j in range(0, 4000, 400):
                images, arrived = (sum(clips[i].frames == 1 for i in part[j:j + 400]) for part in (packed, arrival))
                assert abs(images - arrived) <= 20, (j, images, arrived)


def test_the_seed_decides_the_packs():
    tokens = TOY_MIXTURE.tokens(TOY_MIXTURE.draw(300, seed=0))
    packs = [list(frame_packs(tokens, 2048, seed)) for seed in (5, 5, 6)]
    assert packs[0] == packs[1] != packs[2]
    assert TOY_MIXTURE.draw(9, 1) == TOY_MIXTURE.draw(9, 1) != TOY_MIXTURE.draw(9, 2)


def test_the_rule_on_a_case_worked_out_by_hand(monkeypatch):
    monkeypatch.setattr(frame_pack, "shuffled", lambda clips, seed: list(range(clips)))
    packs = [pack.indices for pack in frame_packs([6, 5, 1, 2, 4], 10, seed=0)]
    assert packs == [(0, 4), (1, 2, 3)]  # after 6 the 5 does not fit, and of 1, 2 and 4 the 4 is longest
    packs = [pack.indices for pack in frame_packs([6, 5, 1, 2, 4], 10, seed=0, look_ahead=2)]
    assert packs == [(0, 2, 3), (1, 4)]  # the 4 was not in sight


def test_no_clip_waits_for_long():
    tokens = [2000] * 3 + [100, 900, 300, 1700, 50] * 40
    for look_ahead in (1, 4, 64):
        arrival = next(frame_packs(tokens, sum(tokens), seed=3)).indices  # room for all: in order of arrival
        waiting = list(arrival)
        for pack in frame_packs(tokens, 2000, 3, look_ahead):
            assert pack.indices[0] == waiting[0]  # the clip that has waited longest
            assert all(waiting.index(i) < look_ahead + j for j, i in enumerate(pack.indices))  # none from further back
            waiting = [i for i in waiting if i not in pack.indices]
        assert not waiting


def test_looking_further_ahead_fills_more():
    tokens = TOY_MIXTURE.tokens(TOY_MIXTURE.draw(2000, seed=0))
    shares = [filled_share(list(frame_packs(tokens, 2048, 0, look_ahead))) for look_ahead in (1, 4, 64)]
    assert shares[0] + 0.02 < shares[1] < shares[2]


def test_tokens_are_those_of_the_published_sequences():
    for model, size, expected in (("5b", ClipSize(49, 480, 720), 17776), ("5b", ClipSize(1, 480, 720), 1350 + 226),
                                  ("1.5-5b", ClipSize(81, 768, 1360), 44880 + 226),
                                  ("toy", ClipSize(17, 64, 64), 80 + 32)):
        assert size.tokens(preset(model)) == expected


def test_clips_that_cannot_be_packed_are_named_at_once():
    for call, told in ((lambda: frame_packs([5, 11], 10, 0), "clip 1 has 11 tokens; .* it must have 1 to 10"),
                       (lambda: frame_packs([0], 10, 0), "clip 0 has 0 tokens"),
                       (lambda: frame_packs([5], 10, 0, look_ahead=0), "look_ahead is 0")):
        with pytest.raises(ValueError, match=told):
            call()


# ---------------------------------------------------------------------------- what a pack computes

def make(config: TransformerConfig, dtype: torch.dtype = torch.float32) -> ExpertTransformer:
    """A model whose every weight is random, so that no zero gate hides anything."""
    torch.manual_seed(0)
    model = ExpertTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype)


def clips_of(config: TransformerConfig, dtype: torch.dtype = torch.float32):
    """Latents, texts, timesteps and noises of clips of `SHAPES`."""
    generator, patch_t = torch.Generator().manual_seed(1), config.patch_size_t or 1

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    latents = [draw(config.in_channels, t * patch_t, h, w) for t, h, w, _ in SHAPES]
    texts = [draw(n, config.text_embed_dim) for *_, n in SHAPES]
    return latents, texts, torch.arange(len(SHAPES)) * 190 + 19, [draw(*clip.shape) for clip in latents]


def separate(model, latents, timesteps, texts, ofs=None):
    return [model(clip[None], t, text[None], None if ofs is None else ofs[:1])[0]
            for clip, t, text in zip(latents, timesteps.split(1), texts)]


def test_a_pack_computes_what_its_clips_compute_alone(subtests):
    for option in OPTIONS:
        with subtests.test(**option):
            config = replace(SMALL, **option)
            model, (latents, texts, timesteps, _) = make(config, torch.float64), clips_of(config, torch.float64)
            ofs = torch.full((len(SHAPES),), 2.0) if config.ofs_embed_dim else None
            with torch.no_grad():
                packed = forward_clips(model, latents, timesteps, texts, ofs)
                alone = separate(model, latents, timesteps, texts, ofs)
            assert len(packed) == len(alone)
            for a, b in zip(packed, alone):
                # The rotary tables are float32 in any model, and turn through float32.
                assert a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=2e-5 * b.abs().max().item())


def test_loss_and_gradients_are_the_sum_of_the_separate_ones(subtests):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        config = replace(SMALL, position="sincos" if dtype == torch.float64 else "rope")
        model, (latents, texts, timesteps, noises) = make(config, dtype), clips_of(config, dtype)
        each = zip(latents, texts, timesteps.split(1), noises)
        alone = torch.cat([diffusion_loss(model(SCHEDULE.add_noise(x[None], noise[None], t), t, text[None]), x[None],
                                          noise[None], t, SCHEDULE) for x, text, t, noise in each])
        alone.sum().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters()}
        scale = max(g.abs().max() for g in expected.values())
        for checkpointing in (False, True):
            with subtests.test(dtype=dtype, checkpointing=checkpointing):
                model.zero_grad()
                model.gradient_checkpointing = checkpointing
                runs = []
                handle = model.transformer_blocks[0].ff.register_forward_hook(lambda *_, runs=runs: runs.append(1))
                packed = packed_diffusion_loss(model, SCHEDULE, latents, texts, timesteps, noises)
                packed.sum().backward()
                handle.remove()
                assert len(runs) == (2 if checkpointing else 1)
                assert torch.allclose(packed, alone, rtol=tolerance, atol=0)
                for name, parameter in model.named_parameters():
                    apart = (parameter.grad - expected[name]).abs().max()
                    assert apart <= tolerance * max(expected[name].abs().max(), 1e-2 * scale), name


def test_clips_of_a_pack_do_not_see_each_other_and_keep_their_order():
    model, (latents, texts, timesteps, _) = make(SMALL), clips_of(SMALL)
    with torch.no_grad():
        out = forward_clips(model, latents, timesteps, texts)
        for changed in range(len(SHAPES)):
            other = list(latents), timesteps.clone(), list(texts)
            other[0][changed] = other[0][changed] + 1
            other[1][changed] += 5
            other[2][changed] = other[2][changed] * 2
            for i, (a, b) in enumerate(zip(out, forward_clips(model, *other))):
                assert torch.allclose(a, b, atol=1e-5) == (i != changed)
        backwards = forward_clips(model, latents[::-1], timesteps.flip(0), texts[::-1])[::-1]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(out, backwards))


def test_bfloat16_stays_close():
    config = replace(SMALL, position_scaling="extrapolate")
    model, (latents, texts, timesteps, _) = make(config), clips_of(config)
    with torch.no_grad():
        exact = forward_clips(model, latents, timesteps, texts)
        model.bfloat16()
        short = forward_clips(model, [x.bfloat16() for x in latents], timesteps, [x.bfloat16() for x in texts])
    for a, b in zip(short, exact):
        assert a.dtype == torch.bfloat16 and ((a - b).norm() / b.norm()) < 0.1


def test_the_document_mask_is_the_block_diagonal():
    clips = [DenseLayout(num_text, (1, 1, num_video)) for num_text, num_video in ((2, 1), (1, 2), (2, 1), (1, 1))]
    order = pack_order(clips)
    assert order == [0, 2, 1, 3]
    clips = [clips[i] for i in order]
    layout = pack_layout(clips)
    assert layout.batches == [(clips[0], 2), (clips[2], 1), (clips[3], 1)] and layout.lengths == [6, 3, 2]
    mask = clip_mask(clips, torch.device("cpu"))
    rows, columns = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    expected = torch.block_diag(*[torch.ones(n, n) for n in (3, 3, 3, 2)]).bool()
    assert torch.equal(mask.mask_mod(0, 0, rows, columns), expected)


def test_flex_attention_gives_the_same(monkeypatch):
    from torch.nn.attention import flex_attention
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # not compiled: seconds less
    model, (latents, texts, timesteps, _) = make(SMALL), clips_of(SMALL)
    with torch.no_grad():
        expected = forward_clips(model, latents, timesteps, texts, kernel="batches")
        flex = forward_clips(model, latents, timesteps, texts, kernel="flex")
    assert all(torch.allclose(a, b, atol=1e-5 * b.abs().max().item()) for a, b in zip(flex, expected))


def test_one_attention_under_a_mask_gives_the_same_and_any_other_mask_something_else(subtests):
    for option in OPTIONS:
        with subtests.test(**option):
            config = replace(SMALL, **option)
            model, (latents, texts, timesteps, _) = make(config), clips_of(config)
            ofs = torch.full((len(SHAPES),), 2.0) if config.ofs_embed_dim else None
            lengths = [len(text) + config.num_patches(tuple(clip.shape[1:])) for clip, text in zip(latents, texts)]
            with torch.no_grad():
                expected = forward_clips(model, latents, timesteps, texts, ofs, "batches")
                for mask in (None, same_clip(lengths)):
                    dense = forward_clips(model, latents, timesteps, texts, ofs, "dense", mask=mask)
                    assert all(torch.allclose(a, b, atol=1e-5 * b.abs().max().item()) for a, b in zip(dense, expected))
                mask = same_clip(lengths)
                mask[lengths[0]:sum(lengths[:2]), :lengths[0]] = True  # clip 1 sees clip 0
                leak = forward_clips(model, latents, timesteps, texts, ofs, "dense", mask=mask)
            apart = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(leak, expected)]
            assert apart == [i == 1 for i in range(len(SHAPES))]


def test_the_mask_of_clips_end_to_end():
    assert torch.equal(same_clip([2, 1, 3]), torch.block_diag(*[torch.ones(n, n) for n in (2, 1, 3)]).bool())
    assert torch.equal(same_clip([4]), torch.ones(4, 4).bool())


def test_masks_that_do_not_fit_are_refused(subtests):
    latents, texts, timesteps, _ = clips_of(SMALL)
    empty = same_clip([2, 3])
    empty[3] = False
    for call, told in ((lambda: checked_mask(same_clip([2, 3]).float(), [2, 3]), "mask is torch.float32 of shape"),
                       (lambda: checked_mask(same_clip([2, 2]), [2, 3]), r"clips of 2, 3 tokens .* of shape \(5, 5\)"),
                       (lambda: checked_mask(empty, [2, 3]), "mask shows query 3 no key"),
                       (lambda: forward_clips(make(SMALL), latents, timesteps, texts, mask=empty),
                        "mask is given with kernel='auto'; only 'dense' takes one")):
        with subtests.test(told), pytest.raises(ValueError, match=told):
            call()
    assert torch.equal(checked_mask(same_clip([2, 3]), [2, 3]), same_clip([2, 3]))


def test_what_does_not_fit_into_a_pack_is_refused(subtests):
    latents, texts, timesteps, noises = clips_of(SMALL)
    for changed, told in (
            ({"position": "learned"}, "position is 'learned'"), ({"position": "rope+learned"}, "position is 'rope"),
            ({"modulation": "separate"}, "modulation is 'separate'"),
            ({"attention": "factorised"}, "attention is 'factorised'"),
            ({"ofs_embed_dim": 16}, "clip 0 of the pack: ofs is None"),
            ({"patch_size_t": 2}, "clip 0 of the pack: latents have 3 frames"),
            ({"patch_size": 4}, "clip 0 of the pack: latents are 4 x 6"),
            ({"max_text_seq_length": 4}, "clip 0 of the pack: the text has 5 tokens"),
            ({"text_embed_dim": 13}, "clip 0 of the pack: text features are 12 wide"),
            ({"in_channels": 5}, "clip 0 of the pack: latents have 4 channels")):
        with subtests.test(told), pytest.raises(ValueError, match=told):
            forward_clips(ExpertTransformer(replace(SMALL, **changed)), latents, timesteps, texts)

    def loss(texts, noises):
        return packed_diffusion_loss(model, SCHEDULE, latents, texts, timesteps, noises)

    model = make(SMALL)
    for call, told in (
            (lambda: forward_clips(model, [], timesteps[:0], []), "latents is empty"),
            (lambda: forward_clips(model, latents, timesteps, texts[1:]), "texts has 5 entries for 6 clips"),
            (lambda: forward_clips(model, latents, timesteps[1:], texts), "timesteps has 5 entries for 6 clips"),
            (lambda: check_pack(SMALL, [latents[0][None]], timesteps[:1], texts[:1], None), "clip 0 of the pack has"),
            (lambda: loss(texts, noises[::-1]), "noises has shapes"),
            (lambda: loss(texts[1:], noises), "6 clips, 5 texts")):
        with subtests.test(told), pytest.raises(ValueError, match=told):
            call()
    # Where jaxtyping checks the annotations it speaks first.
    with pytest.raises(Exception, match="kernel is 'flash'; it must be one of 'auto'|Type-check error"):
        forward_clips(model, latents, timesteps, texts, kernel="flash")


# ---------------------------------------------------------------------------- the benchmark

def test_the_benchmark_prints_and_writes_every_way(monkeypatch, capsys, tmp_path):
    tiny = replace(preset("toy"), transformer=replace(
        preset("toy").transformer, num_attention_heads=1, attention_head_dim=16, num_layers=1, max_text_seq_length=4))
    monkeypatch.setattr(packing, "preset", lambda name: tiny)
    monkeypatch.setattr(mixtures, "preset", lambda name: tiny)
    monkeypatch.setattr(packing, "TOY_MIXTURE", replace(TOY_MIXTURE, sequence_length=512))
    path = tmp_path / "figures.json"
    arguments = ["--clips", "200", "--steps", "2", "--seconds", "0", "--dtype", "float32", "--markdown"]
    assert packing.main([*arguments, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    ways = ["frame pack", "bucketing", "padding", "one clip at a time"]
    assert all(f"| {way} " in out for way in ways) and "packed and separate losses differ by" in out
    written = json.loads(path.read_text())
    assert [row["way"] for row in written["ways"]] == ways and list(tmp_path.iterdir()) == [path]
    pack, bucket, pad, single = written["ways"]
    assert pack["filled"] == single["filled"] > bucket["filled"] > pad["filled"] > 0
    assert all(len(row["seconds"]) == 3 and row["useful_tokens_per_second"] > 0 for row in written["ways"])
    assert pack["against_frame_pack"] == 1.0
    monkeypatch.setattr(packing, "difference", lambda *_: 1.0)
    assert packing.main(arguments) == 1 and "DISAGREE" in capsys.readouterr().out
    for arguments, told in ((["--clips", "0"], "must be at least 1"), (["--steps", "0"], "must be at least 1"),
                            (["--json", "absent/x.json"], "absent")):
        with pytest.raises(SystemExit):
            packing.main(arguments)
        assert told in capsys.readouterr().err
