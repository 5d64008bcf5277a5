"""A device that is not there: it computes on the CPU and refuses what a GPU would.

Its tensors say that they are on 'lazy' and hold CPU tensors inside. An operation that is given
tensors of both sides fails, as on a GPU: numbers (of no dimensions) and indices may be the CPU's.
So a test runs real code, gets real numbers, and finds each tensor made in the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from g2d.core import devices

NAME = "lazy"
_THERE = torch.device(NAME)
_CROSSES = ("copy_", "_to_copy", "set_data")  # operations between devices
_INDEXED = ("index", "index_put_", "index_put", "_index_put_impl_")  # indices may be the CPU's


class There(torch.Tensor):
    """A tensor of the device; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=_THERE,
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"There({self.inner!r})"


class _Mode(TorchDispatchMode):
    """Catches what makes tensors, which no argument would show."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = [t for t in given if isinstance(t, There)]
    here = [t for t in given if not isinstance(t, There) and t.dim() > 0]
    device = kwargs.get("device")
    makes_here = device is not None and torch.device(device) != _THERE
    makes_there = (device is not None and not makes_here) or (bool(there) and not makes_here)
    if not makes_there and not there:
        return func(*args, **kwargs)
    if there and here and name not in _CROSSES:
        indexed = name in _INDEXED and isinstance(args[0], There)
        values = name != "index" and len(args) > 2 and isinstance(args[2], Tensor)
        if not indexed or (values and not isinstance(args[2], There) and args[2].dim() > 0):
            shapes = [(type(t).__name__, tuple(t.shape)) for t in given]
            raise RuntimeError(f"{name}: tensors on two devices, {shapes}")
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: expected a generator of {NAME!r}, found the CPU's")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    back = {id(t.inner): t for t in there}
    plain = tree_map(lambda t: t.inner if isinstance(t, There) else t, (args, kwargs))
    found = func(*plain[0], **plain[1])
    if torch.Tag.inplace_view in func.tags:  # the outer tensor's own shape changes, too
        args[0].data = There(found)
        return args[0]
    if name == "copy_":
        return args[0]
    if makes_here:
        return found

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, There):
            return value
        return back[id(value)] if id(value) in back else There(value)

    return tree_map(wrapped, found)


@contextmanager
def fake_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device while the context is open: settings that name 'cuda' mean it."""
    real = devices.resolve

    def resolve(name: str) -> str:
        return NAME if name in ("cuda", NAME) else real(name)

    with monkeypatch.context() as patched, _Mode():
        for module in ("core.devices", "tasks.placing", "service.loader"):
            patched.setattr(f"g2d.{module}.resolve", resolve)
        patched.setattr("g2d.tasks.source.resolve_device", resolve)
        yield NAME
