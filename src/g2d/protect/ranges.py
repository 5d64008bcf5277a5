"""The range that each tensor of a sound model keeps to, and a guard that holds a live model there.

A flip of a float's top exponent bit makes of 0.05 some 10^37, and one such weight ruins a network
(Hong et al. 2019, arXiv 1906.01017). Held to its layer's own range it is at most a large weight.
How flips are found and what they cost does not live here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from g2d.core.types import State
from g2d.errors import CheckpointError, nearest

__all__ = ["Ranges", "hold_in_ranges"]


@dataclass(frozen=True)
class Ranges:
    """The least and largest value of every floating tensor, by name.

    Attributes:
        ends: (low, high). For parameters and most buffers -m and m, m the tensor's largest
            magnitude; for a running variance its own least and largest value.
    """

    ends: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, state: State, infinite: Collection[str] = ()) -> Ranges:
        """The ranges of a known-good state dict; one that was verified, not one read from memory.

        Args:
            infinite: names of tensors that hold infinity by design, as an attention mask: their
                range goes to their own least and largest value.

        Raises:
            CheckpointError: a tensor holds NaN or infinity, or a running variance below zero.
        """
        floating = {n: t for n, t in state.items() if t.is_floating_point() and t.numel()}
        return cls({n: _ends(n, tensor, n in infinite) for n, tensor in floating.items()})

    @torch.no_grad()
    def hold(self, name: str, tensor: Tensor) -> bool:
        """Bring a tensor back into its range, in place; return whether anything had left it.

        NaN counts as 0, an infinity as the end on its side. What lies inside keeps every bit.
        """
        if tensor.numel() == 0 or name not in self.ends:
            return False
        low, high = self.ends[name]
        if _inside(tensor, low, high):  # reads alone: memory stays clean and shared
            return False
        # One write of the right values: another thread's forward never meets a half repaired one.
        tensor.copy_(tensor.nan_to_num(0.0, torch.inf, -torch.inf).clamp(low, high))
        return True

    def check(self, state: State) -> None:
        """Refuse a state that these are not the ranges of.

        Raises:
            CheckpointError: gives every reason: a floating tensor without a range, a range without
                a tensor, values outside.
        """
        tensors = {n: t for n, t in state.items() if t.is_floating_point() and t.numel()}
        reasons = [f"tensor {name!r} has no range" for name in tensors if name not in self.ends]
        for name, (low, high) in self.ends.items():
            if name not in tensors:
                hint = nearest(name, tensors)
                reasons.append(f"there is a range for {name!r}, which the model lacks.{hint}")
            elif not _inside(tensors[name], low, high):
                reasons.append(f"tensor {name!r} leaves its range of {low:g} to {high:g}")
        if reasons:
            more = f"; and {len(reasons) - 4} more" if len(reasons) > 4 else ""
            raise CheckpointError(
                f"the ranges do not fit the model: {'; '.join(reasons[:4])}{more}. Give Ranges.of "
                "the verified state that the model was loaded from"
            )


class _Guard:
    """The hook. Not a closure: a copied or pickled model takes along one of its own."""

    def __init__(self, model: nn.Module, ranges: Ranges) -> None:
        self._ranges = ranges
        # Where each tensor lives and not the tensor: `model.to` and `functional_call` put others
        # there. Walking the modules at each forward would cost more than looking at the values.
        self._places = [
            (home, key, name, *ranges.ends[name])
            for name, home, key in _places(model)
            if name in ranges.ends
        ]

    def __call__(self, model: nn.Module, inputs: object) -> None:
        for home, key, name, low, high in self._places:
            tensor = home[key]
            if tensor is None:
                continue
            # `_inside` written out: calls and detach() doubled the cost of a forward's check.
            least, largest = torch.aminmax(tensor)
            if not (low <= least.item() and largest.item() <= high):
                self._ranges.hold(name, tensor)


def hold_in_ranges(model: nn.Module, ranges: Ranges) -> RemovableHandle:
    """Have every forward of a model begin by bringing its tensors back into their ranges.

    A flipped bit then never acts outside its layer's range. Integers are left alone; names in the
    state dict stay; logits of an untouched model stay bit by bit. Buffers that state dicts leave
    out are left alone too: a mask may be infinite, a cache be filled by the forward. For models
    that answer: under training the ranges would hold the weights back.

    Cost: mnist_cnn's forward takes 1.18 times as long on one image (20 us more), 1.02 times on 128;
    resnet18's 1.19 and 1.00 times (one busy core, medians of interleaved runs; nothing to repair).

    What it does not stop: flips that stay inside the range (a sign bit, or many of them together);
    a flip after a forward has begun; calls of a submodule that go past `model`. The ranges must be
    kept where the attacker cannot write: whoever raises a limit, or removes the hook, is not held.
    It hides no damage: `MemoryWatch` still finds the tensor, which is repaired only roughly.

    Args:
        ranges: of the very state that the model holds.

    Returns:
        A handle; `handle.remove()` takes the guard off.

    Raises:
        CheckpointError: the ranges are not of this model, or its values lie outside them already.
    """
    ranges.check(model.state_dict())
    return model.register_forward_pre_hook(_Guard(model, ranges), prepend=True)


def _places(model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor | None], str]]:
    """Every slot of a parameter or buffer: full name, the module's own table, key in it."""
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for key in table:
                yield (f"{prefix}.{key}" if prefix else key), table, key


def _ends(name: str, tensor: Tensor, infinite: bool) -> tuple[float, float]:
    low, high = (float(end) for end in tensor.detach().aminmax())
    if infinite and low <= high:  # NaN fails the comparison
        return low, high
    if not -torch.inf < low <= high < torch.inf:  # NaN fails each comparison
        raise CheckpointError(
            f"tensor {name!r} holds NaN or infinity: no known-good state. Load it anew"
        )
    if name.rsplit(".", 1)[-1] != "running_var":
        largest = max(-low, high)
        return -largest, largest
    if low < 0:
        raise CheckpointError(
            f"running variance {name!r} goes down to {low:g}: no known-good state. Load it anew"
        )
    return low, high


def _inside(tensor: Tensor, low: float, high: float) -> bool:
    """Whether every value lies in [low, high]; NaN does not."""
    least, largest = tensor.detach().aminmax()
    return low <= least.item() and largest.item() <= high
