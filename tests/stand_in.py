"""A simulated GPU: the device "stand_in", which computes on the CPU and raises the errors of a GPU.

    import tests.stand_in                            # registers the device with PyTorch
    x = torch.randn(3, 4).to("stand_in")             # or MINICOGVX_DEVICE=stand_in

Its tensors meet no CPU tensor, save a single number in arithmetic and an index; they give themselves neither to numpy
nor to a generator of the CPU. Everything else works, gradients too. So a machine without a GPU finds the line that
forgets to move a tensor. It cannot find what depends on a real card: speed, memory, rounding, kernels of its own.

The device is PyTorch's PrivateUse1. Each of its tensors is a wrapper around a CPU tensor, and `__torch_dispatch__`
unwraps them for every operation, which costs about 20 microseconds. What it cannot catch: a gradient on the CPU that is
handed to `backward`, and it knows no autocast, so compute in float32, which `choose_dtype` takes there.
"""

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from minicogvx.vae.fast import conv3d

NAME = "stand_in"
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}  # what may cross between devices
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
# Factories that the dispatcher would otherwise build on an empty tensor which grows in place: a wrapper cannot grow.
_FACTORIES = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "randperm",
              "randperm.generator", "eye", "eye.m", "tril_indices", "triu_indices")


class StandInTensor(torch.Tensor):
    """A tensor of the stand-in device; `raw` is the CPU tensor that holds its numbers.

    `operations`: how many were computed on the device so far, so that a test sees whether any was.
    """

    operations = 0
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw, requires_grad=False):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(NAME, 0), requires_grad=requires_grad)
        wrapper.raw = raw
        return wrapper

    def __repr__(self, **_):
        return f"{self.raw!r} on {NAME}"

    def __format__(self, spec):
        return format(self.raw, spec)

    def numpy(self, **_):
        """Refused, as by every device but the CPU."""
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def tolist(self):
        """The numbers, as Python's; a tensor on a GPU gives them, too."""
        return self.raw.tolist()

    def untyped_storage(self):
        """That of `raw`: whoever writes files asks which tensors share one."""
        return self.raw.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list(_leaves((args, kwargs)))
        for value in given:
            if isinstance(value, (torch.Tensor, torch.Generator)) and not isinstance(value, cls):
                _refuse_unless_allowed(operation, value, given[0])
        StandInTensor.operations += 1
        result = (_quick_conv3d(*_raw(args)) if operation is _aten.convolution.default
                  else operation(*_raw(args), **_raw(kwargs)))
        wrappers = {id(value.raw): value for value in given if isinstance(value, cls)}
        if torch.device(kwargs.get("device") or NAME).type != NAME:  # it leaves for the CPU
            return result.clone() if id(result) in wrappers else result
        if operation is _aten.copy_.default and not isinstance(given[0], cls):
            return result
        return _wrapped(result, wrappers)


def _leaves(value):
    """Every value in nested arguments, first the positional ones."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(tuple(value.values()))
    else:
        yield value


def _raw(value):
    """Nested arguments with the CPU's tensors and the CPU as device."""
    if isinstance(value, StandInTensor):
        return value.raw
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_raw, value))
    return {name: _raw(each) for name, each in value.items()} if isinstance(value, dict) else value


def _wrapped(result, wrappers):
    """Results of the CPU as those of the stand-in; what an operation wrote to is the wrapper that it was given."""
    if isinstance(result, (tuple, list)):
        return type(result)(_wrapped(each, wrappers) for each in result)
    if not isinstance(result, torch.Tensor):
        return result
    wrapper = wrappers.get(id(result))
    if wrapper is None:
        return StandInTensor(result)
    if wrapper.shape != result.shape or wrapper.stride() != result.stride():
        raise NotImplementedError(f"the {NAME} device cannot reshape a tensor in place; it became "
                                  f"{tuple(result.shape)} and was {tuple(wrapper.shape)}")
    return wrapper


def _refuse_unless_allowed(operation, value, first) -> None:
    """RuntimeError where a GPU would reject a tensor, or a generator, of the CPU."""
    if isinstance(value, torch.Generator):
        raise RuntimeError(f"{operation}: expected a {NAME!r} generator, but found one of {value.device.type!r}")
    pointwise = torch.Tag.pointwise in operation.tags or operation.name().startswith("aten::_foreach_")
    number = value.ndim == 0 and pointwise
    index = operation in _INDEXING and isinstance(first, StandInTensor) and not value.is_floating_point()
    if not (number or index or operation in _COPIES):
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device, but found {NAME!r} and "
                           f"{value.device.type!r} (shape {tuple(value.shape)}, {value.dtype})")


def _quick_conv3d(x, weight, bias, stride, padding, dilation, transposed, *rest):
    """The convolution; where the package has a quicker way on the CPU, that way: it saves the tests a minute."""
    plain = not transposed and {*stride, *dilation} == {1} and padding[0] == 0 and padding[1:2] == padding[2:]
    if x.ndim == 5 and plain and bias is not None:
        return conv3d(x, weight, bias, padding)
    return _aten.convolution.default(x, weight, bias, stride, padding, dilation, transposed, *rest)


def _factory(name: str):
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(_aten, packet), overload or "default")

    def make(*args, device=None, pin_memory=None, generator=None, **options):
        if generator is not None:
            _refuse_unless_allowed(operation, generator, None)
        return StandInTensor(operation(*args, device="cpu", **options))

    return make


def _copy_from(source, target, non_blocking=False):
    """What `torch.tensor(numbers, device="stand_in")` asks for, past `__torch_dispatch__`."""
    _raw(target).copy_(_raw(source))
    return target


class _Module:
    """What PyTorch asks a device's module for: `torch.stand_in`."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = synchronize = empty_cache = manual_seed_all = manual_seed = staticmethod(lambda *_: None)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
_library = torch.library.Library("aten", "IMPL", "PrivateUse1")  # the factories exist as long as this object
for _name in _FACTORIES:
    _library.impl(_name, _factory(_name))
_library.impl("_copy_from", _copy_from)
torch.__future__.set_swap_module_params_on_conversion(True)  # `module.to` keeps its parameters' identity, as on a GPU
