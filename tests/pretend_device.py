"""A pretended GPU: tensors on another device, computed on the CPU, bit for bit.

The device is PyTorch's ``meta``, which exists everywhere. Real values are inside, so branches that
look at data take the way they take on the CPU, and results can be compared with the CPU's. What a
GPU refuses is refused here too: tensors of two devices in one operation (single numbers excepted),
NumPy's view of a tensor, products of integer matrices, random numbers from the CPU's generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

__all__ = ["GPU", "WrongDevice", "moved", "pretended_gpu"]

GPU = torch.device("meta")

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "addmv", "linear", "matmul"}
_BETWEEN_DEVICES = {"_to_copy", "copy_"}
# operations that index with tensors of the CPU, as PyTorch allows
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class WrongDevice(Exception):
    """What PyTorch would refuse on a GPU."""


class OnGpu(Tensor):
    """A tensor on the pretended GPU.

    Attributes
    ----------
    inner : the real tensor, on the CPU
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        with torch.inference_mode(False):  # so that views of it can be made in any mode
            made = Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=GPU,
            )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.inner})"

    def tolist(self) -> Any:
        """Return the elements, which PyTorch does for no subclass of its tensors."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What PyTorch does in C++ before it dispatches an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and _is_gpu(kwargs.get("device")):
            return OnGpu(torch.tensor(*args, **{**kwargs, "device": None}))
        if func is Tensor.numpy and isinstance(args[0], OnGpu):
            if not kwargs.get("force"):
                raise WrongDevice("NumPy: the tensor is on the GPU")
            return args[0].inner.numpy(force=True)
        if func is Tensor.__setitem__ and isinstance(args[0], OnGpu):
            target, place, value = tree_map(_inner, args)
            target[place] = value  # from either device, as PyTorch allows
            return None
        return func(*args, **kwargs)


def _is_gpu(device: object) -> bool:
    return device is not None and torch.device(device).type == GPU.type  # type: ignore[arg-type]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = [x for x in tensors if isinstance(x, OnGpu)]
    others = [x for x in tensors if not isinstance(x, OnGpu) and x.dim()]
    if name in _INDEXING:
        others = [x for x in others if x is args[0]] if on_gpu else []
    if on_gpu and others and name not in _BETWEEN_DEVICES:
        shapes = [tuple(x.shape) for x in others]
        raise WrongDevice(f"{func}: tensors on the GPU and on the CPU: {shapes}")
    if on_gpu and name in _PRODUCTS and not on_gpu[0].dtype.is_floating_point:
        raise WrongDevice(f"{func}: a GPU has no product of {on_gpu[0].dtype}")
    named = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.device)]
    goes = on_gpu if not named else _is_gpu(named[0])
    generator = kwargs.get("generator")
    if generator is not None and goes:
        raise WrongDevice(f"{func}: generator on {generator.device}, tensors on the GPU")
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if func._schema.is_mutable:
        return args[0]
    if not goes:
        return result
    known = {id(x.inner): x for x in on_gpu}

    def outer(x: Any) -> Any:
        return known.get(id(x)) if id(x) in known else OnGpu(x) if isinstance(x, Tensor) else x

    return tree_map(outer, result)


def _inner(x: Any) -> Any:
    """Return what the CPU computes with: a tensor's real tensor, and the CPU as device."""
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.inner if isinstance(x, OnGpu) else x


def moved(module: nn.Module) -> nn.Module:
    """Move the parameters and buffers of a module to the pretended GPU, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(OnGpu(parameter.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnGpu(buffer)
    return module


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let tensors be made on the pretended GPU, and moved there and back."""
    with _Functions(), _Mode():
        yield
