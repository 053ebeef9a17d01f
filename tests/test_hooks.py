"""Modules can be hooked and replaced: hooks fire, what they keep is not overwritten, a replaced layer is used."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import torch
from torch import nn

from minicogvx.transformer.model import ExpertTransformer
from minicogvx.transformer.packed import forward_clips
from minicogvx.vae import CausalVAE
from minicogvx.vae.discriminator import PatchDiscriminator3D
from tests.tiny import TINY


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vae(**changed):
    """A VAE, and how it is run: chunk by chunk, so that every cache is used."""
    torch.manual_seed(0)
    model = CausalVAE(replace(TINY.vae, **changed))

    def run(dtype):
        posterior = model.encode(normal(2, 3, 9, 8, 8).clamp(-1, 1).to(dtype), chunk_frames=4)
        return model.decode(posterior.mean.to(dtype), chunk_latents=1)

    return model, run


def transformer(packed: bool = False, **changed):
    """A transformer without closed gates, and how it is run."""
    torch.manual_seed(0)
    config = replace(TINY.transformer, sample_height=4, sample_width=4, **changed)
    model = ExpertTransformer(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25)

    def run(dtype):
        latents, text = normal(2, 4, 3, 4, 4).to(dtype), normal(2, 5, 16, seed=1).to(dtype)
        timestep, ofs = torch.tensor([20, 700]), torch.full((2,), 2.0) if config.ofs_embed_dim else None
        if packed:
            return torch.stack(forward_clips(model, list(latents), timestep, list(text), ofs))
        return model(latents[:, :, :config.patch_size_t or 3], timestep, text, ofs)

    return model, run


def discriminator():
    torch.manual_seed(0)
    model = PatchDiscriminator3D()
    return model, lambda dtype: model(normal(1, 3, 5, 16, 16).to(dtype))


MODELS = {
    "vae": vae,
    "vae, norms over the frame": lambda: vae(norm_over="frame"),
    "vae, zeros before the first frame": lambda: vae(time_padding="zeros"),
    "vae, residual": lambda: vae(resampling="residual"),
    "vae, parity": lambda: vae(first_frame="parity", temporal_compression_ratio=2),
    "transformer": transformer,
    "transformer 1.5": lambda: transformer(patch_size_t=2, ofs_embed_dim=8),
    "transformer, learned positions": lambda: transformer(position="learned"),
    "transformer, separate and factorised": lambda: transformer(modulation="separate", attention="factorised"),
    "transformer, shared": lambda: transformer(modulation="shared", position="sincos"),
    "transformer, packed": lambda: transformer(packed=True),
    "discriminator": discriminator,
}


NETWORKS = [name for name in MODELS if name != "discriminator"]


@contextmanager
def mode(name: str):
    with torch.inference_mode(name == "inference_mode"), torch.set_grad_enabled(name == "grad"):
        yield


def weighted(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}


def test_hooks_fire_on_every_module_with_weights_and_what_they_keep_stays(subtests):
    for name, dtype, grad in product(MODELS, (torch.float32, torch.bfloat16), ("grad", "no_grad", "inference_mode")):
        model, run = MODELS[name]()
        if not isinstance(model, CausalVAE):
            model.to(dtype)  # the VAE's weights stay float32, as in training
        kept, called = [], set()

        def keep(module, inputs, output):
            called.add(module)
            tensors = [v for v in (*inputs, output) if isinstance(v, torch.Tensor)]
            kept.extend((module, tensor, tensor.clone()) for tensor in tensors)

        for module in model.modules():
            module.register_forward_hook(keep)
        with subtests.test(name, dtype=dtype, grad=grad), mode(grad):
            run(dtype)
            assert [part for part, module in weighted(model).items() if module not in called] == []
            changed = {type(module).__name__ for module, tensor, before in kept if not torch.equal(tensor, before)}
            assert not changed


def test_a_hook_sees_the_same_with_gradients_and_without(subtests):
    for name in NETWORKS:
        model, run = MODELS[name]()
        seen = {"grad": [], "no_grad": []}
        for grad, outputs in seen.items():
            hooks = [module.register_forward_hook(lambda *call, part=part, to=outputs: to.append((part, call[2])))
                     for part, module in weighted(model).items()]
            with mode(grad):
                run(torch.float32)
            for hook in hooks:
                hook.remove()
        with subtests.test(name):
            for (part, a), (same, b) in zip(seen["no_grad"], seen["grad"], strict=True):
                assert part == same
                torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5, msg=lambda text: f"{part}: {text}")


def test_backward_hooks_fire_on_every_module_with_weights(subtests):
    for name in MODELS:
        with subtests.test(name):
            model, run = MODELS[name]()
            called = set()
            for module in model.modules():
                module.register_full_backward_hook(lambda module, *_: called.add(module))
            run(torch.float32).square().mean().backward()
            assert [name for name, module in weighted(model).items() if module not in called] == []


def test_a_tensor_that_the_caller_keeps_stays_where_hooks_are_on_all_modules_or_a_forward_is_wrapped():
    """Ways to watch a layer that its own hooks do not show."""
    model, run = vae()
    kept = []

    def keep(module, inputs, output):
        if isinstance(output, torch.Tensor):
            kept.append((output.detach(), output.clone()))

    with torch.no_grad():
        hook = nn.modules.module.register_module_forward_hook(keep)
        try:
            run(torch.float32)
        finally:
            hook.remove()
        conv = model.decoder.mid_block.resnets[0].conv2
        forward = conv.forward
        conv.forward = lambda *inputs: (keep(conv, inputs, y := forward(*inputs)), y)[1]
        run(torch.float32)
    assert len(kept) > 100 and all(torch.equal(a, b) for a, b in kept)


def test_hooks_change_no_number(subtests):
    """The numbers and gradients are the same to the last bit, watched or not."""
    for grad in ("grad", "no_grad"):
        with subtests.test(grad=grad):
            model, run = vae()
            found = []
            for watched in (False, True):
                if watched:
                    for module in model.modules():
                        module.register_forward_hook(lambda *_: None)
                model.zero_grad()
                with mode(grad):
                    y = run(torch.float32)
                if grad == "grad":
                    y.square().mean().backward()
                found.append([y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
            assert len(found[0]) == len(found[1]) > (100 if grad == "grad" else 0)
            assert all(map(torch.equal, *found))


class Instead(nn.Module):
    """Replaces a layer, as adapters and quantisers do: it has only the layer's call."""

    def __init__(self, layer: nn.Module, calls: list[nn.Module]):
        super().__init__()
        self.layer, self.calls = layer, calls

    def forward(self, *inputs):
        self.calls.append(self.layer)
        return self.layer(*inputs)


def test_a_layer_that_is_replaced_is_not_passed_by(subtests):
    for name, grad in product(NETWORKS, ("grad", "no_grad")):
        model, run = MODELS[name]()
        layers = [module for module in weighted(model).values() if not list(module.children())]
        calls = []
        with subtests.test(name, grad=grad), mode(grad):
            expected = run(torch.float32)
            for parent in list(model.modules()):
                for part, child in list(parent.named_children()):
                    if any(child is layer for layer in layers):
                        setattr(parent, part, Instead(child, calls))
            assert torch.equal(run(torch.float32), expected)
            assert {*calls} == {*layers}


def test_a_published_patch_embedding_is_a_convolution():
    """The same layer as a plain `nn.Conv2d`, as tools that replace layers by type insert it."""
    model, run = transformer()
    expected, proj = run(torch.float32), model.patch_embed.proj
    model.patch_embed.proj = nn.Conv2d(4, 32, kernel_size=2, stride=2)
    model.patch_embed.proj.load_state_dict(proj.state_dict())
    torch.testing.assert_close(run(torch.float32), expected, rtol=1e-4, atol=1e-4)


def test_plain_convolutions_in_place_of_the_causal_ones_give_the_same():
    model, run = vae()
    with torch.no_grad():
        expected = run(torch.float32)
        for module in list(model.modules()):
            conv = getattr(module, "conv", None)
            if isinstance(conv, nn.Conv3d):
                module.conv = nn.Conv3d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
                module.conv.load_state_dict(conv.state_dict())
        torch.testing.assert_close(run(torch.float32), expected, rtol=1e-4, atol=1e-5)
