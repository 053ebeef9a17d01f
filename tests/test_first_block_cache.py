"""The first-block cache: what is skipped and what is added instead, for which clips, and that nothing stays behind."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import CogVideoXPipeline, FirstBlockCacheConfig

from minicogvx.pipeline import Pipeline
from minicogvx.transformer.caching import with_cache
from minicogvx.transformer.model import ExpertTransformer
from tests.test_pipeline_parity import NEGATIVE, PROMPT, TEXT, relative, shrunken
from tests.tiny import tiny_pipe, tiny_transformer

CAPTION, PAIR, RUN = "a red circle moves right", ["a red circle moves right", "a blue star grows"], {
    "num_inference_steps": 8, "guidance_scale": 3.0}
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


def make(layers: int = 4, **options) -> Pipeline:
    """Videos of 9 frames of 16 x 16 pixels; `options` of the transformer."""
    return tiny_pipe(size=16, transformer={"num_layers": layers} | options)


def rows_of(pipe: Pipeline, prompts: list[str], **options) -> tuple[torch.Tensor, list[int]]:
    """The latents, and how many rows of the batch reached the last block in each step."""
    rows, blocks = [], pipe.transformer.transformer_blocks
    hooks = [blocks[0].register_forward_pre_hook(lambda *_: rows.append(0)),
             blocks[-1].register_forward_pre_hook(lambda _, inputs: rows.append(rows.pop() + len(inputs[0])))]
    latents = pipe.sample(prompts, **RUN | options)
    for hook in hooks:
        hook.remove()
    return latents, rows


def test_a_clip_is_that_of_diffusers_with_the_same_cache(tmp_path):
    """Theirs judges the whole batch, which for one clip is the clip with and without its caption."""
    pipe, mixed = shrunken("5b"), 0
    torch.manual_seed(0)
    pipe.transformer = ExpertTransformer(replace(pipe.transformer.config, num_layers=4)).eval()
    for parameter in pipe.transformer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    folder, latents = pipe.save(tmp_path / "pipe"), torch.randn(1, 4, 3, 4, 6)
    call = {"negative_prompt": NEGATIVE, "num_inference_steps": 8, "guidance_scale": 3.0}
    for threshold in THRESHOLDS:
        reference = CogVideoXPipeline.from_pretrained(folder, local_files_only=True)
        reference.set_progress_bar_config(disable=True)
        reference.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        theirs = reference(PROMPT, latents=latents.transpose(1, 2).clone(), num_frames=9, height=32, width=48,
                           max_sequence_length=TEXT, generator=torch.Generator().manual_seed(5), output_type="latent",
                           **call).frames
        ours, rows = rows_of(pipe, [PROMPT], latents=latents, seed=5, cache=threshold, **call)
        assert relative(ours, theirs.transpose(1, 2)) < 1e-5, (threshold, rows)
        mixed += 0 < rows.count(0) < 7
    assert mixed  # in some of these runs steps were skipped, and not all that could be


def test_a_skipped_step_adds_what_all_later_blocks_added_when_they_last_ran():
    model, seen = tiny_transformer(num_layers=4), []
    text, t, a = torch.randn(1, 5, 16), torch.tensor([500]), torch.randn(1, 4, 3, 4, 4)
    b = a + 0.1 * torch.randn_like(a)
    for block in (model.transformer_blocks[0], model.transformer_blocks[-1]):
        block.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        plain = [model(x, t, text) for x in (a, b)]
        first_a, last_a, first_b, _ = seen
        cached = with_cache(model, 1.0, clips=1)
        found = [cached(x, t, text) for x in (a, b, a)]
        layout, t_emb = model.layout((3, 2, 2), 5, a.device), F.silu(model.time_embedding(t))
        x = layout.video(first_b + (last_a - first_a))
        expected = layout.unpatchify(model.proj_out(model.norm_out(model.norm_final(x), t_emb, layout)))
    torch.testing.assert_close(found[1], expected)
    assert torch.equal(found[0], plain[0]) and not torch.allclose(found[1], plain[1], rtol=1e-4)
    torch.testing.assert_close(found[2], plain[0])


def test_without_a_threshold_the_bits_are_the_same_and_so_while_nothing_is_skipped(subtests):
    film, image = torch.rand(1, 9, 16, 16, 3), torch.rand(1, 16, 16, 3)
    for given in ({}, {"image": image}, {"video": film}, {"sampler": "dpm"}, {"dynamic_guidance": "meant"},
                  {"guidance_scale": 1.0}, {"value_residual": True}):
        with subtests.test(given=list(given)):
            pipe = make(value_residual=given.pop("value_residual", False))
            plain = pipe.sample(PAIR, **RUN | given)
            assert torch.equal(pipe.sample(PAIR, cache=0.0, **RUN | given), plain)
            assert torch.equal(pipe.sample(PAIR, cache=1e-9, **RUN | given), plain)
            assert not torch.equal(pipe.sample(PAIR, cache=1.0, **RUN | given), plain)
            pipe.transformer = with_cache(pipe.transformer, 0.0, clips=2)
            assert torch.equal(pipe.sample(PAIR, **RUN | given), plain)


def test_a_clip_does_not_depend_on_the_others_of_its_batch():
    """Also where one of them skips a step that the other takes."""
    pipe, noise = make(), torch.randn(2, 4, 3, 4, 4)
    noise[1] *= 3
    apart = 0
    for threshold in THRESHOLDS:
        both, rows = rows_of(pipe, PAIR, latents=noise, cache=threshold)
        assert set(rows) <= {0, 2, 4}  # a clip with and without its caption
        apart += 2 in rows
        for i, caption in enumerate(PAIR):
            alone = pipe.sample([caption], latents=noise[i:i + 1], cache=threshold, **RUN)
            assert torch.allclose(both[i:i + 1], alone, atol=1e-4)
    assert apart


def test_where_guidance_sets_in_every_block_runs():
    _, rows = rows_of(make(), [CAPTION], cache=1.0, dynamic_guidance="meant")  # no guidance in the first step
    assert rows[:2] == [1, 2] and 0 in rows


def test_nothing_stays_behind():
    pipe = make()
    plain, names, blocks = pipe.sample([CAPTION], **RUN), list(pipe.transformer.state_dict()), pipe.transformer._modules
    nested = []

    def sample_another(done: int, total: int) -> None:
        nested.append(pipe.sample([CAPTION], **RUN))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.sample([CAPTION], cache=0.9, on_step=sample_another, **RUN)
    assert len(nested) == 3 and all(torch.equal(one, plain) for one in nested)
    cached = pipe.sample([CAPTION], cache=0.9, **RUN)
    assert torch.equal(pipe.sample([CAPTION], **RUN), plain) and not torch.equal(cached, plain)
    assert torch.equal(pipe.sample([CAPTION], cache=0.9, **RUN), cached)
    assert list(pipe.transformer.state_dict()) == names and pipe.transformer._modules is blocks
    pipe.cache = 0.9  # of every call that does not say otherwise
    assert torch.equal(pipe.sample([CAPTION], **RUN), cached) and torch.equal(
        pipe(CAPTION, cache=0.0, **RUN), pipe.decode(plain)[0])


def test_compiled_blocks_are_skipped_as_others_and_what_cannot_be_skipped_is_refused(subtests):
    compiled, wrapped = make(), make()
    compiled.transformer.compile()
    wrapped.transformer = torch.compile(wrapped.transformer)
    for pipe, sentence in ((make(layers=1), "cache is 0.5; it must be 0 for this model, whose only block"),
                           (compiled, "it must be 0 for a transformer that is compiled as a whole"),
                           (wrapped, "compiled as a whole, as no block of it can be skipped: compile each")):
        with subtests.test(sentence):
            pipe.text.encode = lambda *_: pytest.fail("work has begun")
            with pytest.raises(ValueError, match=sentence):
                pipe.sample([CAPTION], cache=0.5, **RUN)
    pipe = make()
    plain, called = pipe.sample([CAPTION], cache=0.5, **RUN), []
    for block in pipe.transformer.transformer_blocks:
        block._compiled_call_impl = lambda *given, block=block: called.append(block) or block.forward(*given)
    assert torch.equal(pipe.sample([CAPTION], cache=0.5, **RUN), plain) and len(set(called)) == 4
