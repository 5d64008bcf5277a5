"""Where networks run: which device, a model moved there, what is done where its memory ends.

A model that was moved answers where it is asked: inputs on the CPU give logits on the CPU. So what
makes its tensors on the CPU, as judges, attacks and the service do, is right on every device; only
what is worth it (training, attacks by gradients, guidance) moves its data along. Draws are made on
the CPU and moved, so that a seed means the same everywhere. Knows nothing of tasks.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from g2d.errors import DeviceError, SettingsError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

CPU = "cpu"
OVERRIDE = "G2D_DEVICE"
"""Environment: a device to use on this machine in the place of the one that settings name."""
LARGE = 1_000_000
"""Parameters from which on half precision pays: under it a step is the launching of kernels."""

_OTHERWISE = f"set [task] device = 'cpu', or {OVERRIDE}=cpu for this machine alone"


def resolve(name: str) -> str:
    """The device that settings name, as torch calls it: 'cpu', 'cuda', 'cuda:1', 'mps'.

    A worker process of several takes the GPU of its own number. `G2D_DEVICE` goes before `name`.

    Args:
        name: 'auto' (a GPU if there is one), 'cpu', 'cuda' (or 'cuda:1') or 'mps'.

    Raises:
        SettingsError: it is no such name. DeviceError: it is not there.
    """
    wanted = os.environ.get(OVERRIDE) or name
    if wanted == CPU:
        return CPU
    if wanted == "auto":
        found = [kind for kind in ("cuda", "mps") if count(kind)]
        return _own(found[0]) if found else CPU
    if not re.fullmatch(r"cuda(:\d+)?|mps", wanted):
        raise SettingsError(
            f"device must be one of auto, cpu, cuda, cuda:NUMBER, mps, not {wanted!r}"
        )
    kind, _, number = wanted.partition(":")
    there = count(kind)
    if int(number or 0) >= there:
        raise DeviceError(
            f"device {wanted!r} is not there: torch {torch.__version__} finds {there} of"
            f" {kind!r} on this machine; {_OTHERWISE}"
        )
    return wanted if number else _own(wanted)


def count(kind: str) -> int:
    """How many devices of a kind ('cuda', 'mps', 'cpu') there are."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return 1


def _own(kind: str) -> str:
    """Of several GPUs the one of a worker process's own number."""
    if kind != "cuda" or multiprocessing.parent_process() is None or count(kind) < 2:
        return kind
    numbers = multiprocessing.current_process()._identity
    return f"cuda:{(numbers[-1] - 1) % count(kind)}" if numbers else kind


def place(model: M, device: str) -> M:
    """Move a model to a device, in place; from then on it answers where it is asked.

    On the CPU nothing changes. Large convolutional networks on a GPU take channels last.

    Raises:
        DeviceError: the device's memory is too small for it.
    """
    if device == CPU:
        return model
    _make_deterministic(device)
    try:
        model.to(device)
        if device.startswith("cuda") and _is_large(model):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except RuntimeError as error:
        raise _told(error, f"the model cannot be moved to {device!r}") from error
    if not any(isinstance(hook, _Enter) for hook in model._forward_pre_hooks.values()):
        model.register_forward_pre_hook(_Enter(device))
        model.register_forward_hook(_Leave(), prepend=True)
    return model


class _Enter:
    """The hook before a forward pass: inputs come to the model's device. Copies travel along."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._moved(one) if isinstance(one, Tensor) else one for one in given)

    def _moved(self, x: Tensor) -> Tensor:
        moved = x.to(self.device)
        if moved is not x:
            # `_Leave` is given the moved inputs alone, and reads off them where answers go.
            moved.g2d_from = x.device  # type: ignore[attr-defined]
        return moved


class _Leave:
    """The hook after a forward pass: logits go back to where the inputs came from."""

    def __call__(self, _: nn.Module, given: tuple[Any, ...], answer: Any) -> Any:
        home = next((getattr(x, "g2d_from", None) for x in given if isinstance(x, Tensor)), None)
        return answer.to(home) if home is not None and isinstance(answer, Tensor) else answer


def is_crossing(hook: object) -> bool:
    """Whether a forward hook is one of those that `place` adds, which change no value."""
    return isinstance(hook, _Enter | _Leave)


def home_of(models: Sequence[Any], x: Tensor) -> torch.device:
    """The device where attacks on models are searched: that of the first, else that of x."""
    for model in models:
        if isinstance(model, nn.Module):
            parameter = next(model.parameters(), None)
            if parameter is not None:
                return parameter.device
    return x.device


def mixed(model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """What a training step of the model runs in: bfloat16 where that pays, else nothing.

    Large networks on a GPU that has it. Parameters, gradients and the optimiser stay as they are.
    """
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.device.type != "cuda" or not _is_large(model):
        return nullcontext
    if not torch.cuda.is_bf16_supported():
        return nullcontext
    return lambda: torch.autocast("cuda", torch.bfloat16)


def halving(
    work: Callable[[int], T], batch: int, device: str, what: str, again: Callable[[], object]
) -> T:
    """`work(batch)`, and again with half the batch wherever the device runs out of memory.

    Args:
        what: what is done, for the message. again: called before each further try.

    Raises:
        DeviceError: not even one example fits.
    """
    while True:
        try:
            return work(batch)
        except RuntimeError as error:
            if device == CPU or not is_out_of_memory(error):
                raise
            if batch <= 1:
                raise _told(
                    error, f"{what}, one example at a time, does not fit {device!r}"
                ) from error
            batch = max(1, batch // 2)
        again()
        free_memory(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full (mps raises a plain `RuntimeError`)."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def free_memory(device: str) -> None:
    """Give back what torch keeps of a GPU's memory without using it."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def has_room(size: int, device: str) -> bool:
    """Whether `size` bytes of data may stay on a device: a quarter of what is free there."""
    if device.startswith("cuda"):
        return 4 * size <= torch.cuda.mem_get_info(device)[0]
    return device == CPU or size <= 1 << 30


@contextmanager
def memory_of(model: nn.Module, what: str) -> Iterator[None]:
    """Say in one line where the memory of a model's device is full.

    Raises:
        DeviceError: it is; `what` is done, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        parameter = next(model.parameters(), None)
        device = CPU if parameter is None else str(parameter.device)
        if device == CPU or not is_out_of_memory(error):
            raise
        raise _told(error, f"{what} does not fit on {device!r}") from error


def _told(error: BaseException, what: str) -> DeviceError:
    reason = " ".join(str(error).split())[:120]
    return DeviceError(f"{what} ({reason}); take smaller batches, or {_OTHERWISE}")


def _is_large(model: nn.Module) -> bool:
    return sum(p.numel() for p in model.parameters()) >= LARGE


def _make_deterministic(device: str) -> None:
    """Same seed, same device, same bytes: no algorithms that are chosen by how fast they are."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
