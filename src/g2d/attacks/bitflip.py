"""Bit flips in weights of 8 bits and in float32: the Bit-Flip Attack's search, and single flips.

Rakin, He and Fan 2019, arXiv 1903.12269 (8 bits, progressive bit search); Hong et al. 2019, arXiv
1906.01017 (float32, any one bit). An attacker who can write to memory (Rowhammer and its kin) flips
single bits of the stored weights. Here lie the search and what a flip does; what the flips cost in
accuracy is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from g2d.core.types import State
from g2d.errors import SettingsError
from g2d.tasks.splits import Split

BITS = 8
FLOAT_BITS = 32
_SIGN = BITS - 1  # index of the most significant bit, which weighs -128 in two's complement


@dataclass(frozen=True)
class Flip:
    """One bit of one stored weight: tensor, flat index in it, bit (0 is the least significant).

    The highest is bit 7 of an 8-bit code. In float32 31 is the sign, 30 the exponent's top bit,
    22 to 0 are the mantissa.
    """

    tensor: str
    index: int
    bit: int


@dataclass(frozen=True)
class Quantised:
    """A state dict whose weight matrices and kernels are stored as int8, one scale a tensor.

    Attributes:
        codes: int8 tensors in the weights' shapes. scales: weight = scale * code.
        rest: every other tensor (biases, norms), in full precision.
    """

    codes: Mapping[str, Tensor]
    scales: Mapping[str, float]
    rest: State
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    def weight(self, name: str) -> Tensor:
        """One weight tensor as it is used: in its own type, float32 where `dtypes` has none."""
        kind = self.dtypes.get(name, torch.float32)
        wide = torch.promote_types(kind, torch.float32)
        return (self.codes[name].to(wide) * self.scales[name]).to(kind)

    def state(self) -> dict[str, Tensor]:
        """The state dict that the stored bits stand for."""
        return dict(self.rest) | {name: self.weight(name) for name in self.codes}


def quantise(state: State) -> Quantised:
    """Store every finite float tensor of two or more axes in 8 bits (section 3.1 of the paper).

    Symmetric and per tensor: scale = max|W| / 127, code = round(W / scale), in two's complement.
    The error is at most half a scale; what is quantised already comes back bit by bit.

    Raises:
        SettingsError: the state holds no weight matrix or kernel.
    """
    floating = {n: t for n, t in state.items() if t.is_floating_point() and t.dim() >= 2}
    chosen = {n: t for n, t in floating.items() if t.numel() and bool(torch.isfinite(t).all())}
    if not chosen:
        raise SettingsError("bit flips need weight matrices or kernels; this model has none")
    scales = {name: float(t.abs().max()) / (2**_SIGN - 1) or 1.0 for name, t in chosen.items()}
    codes = {name: (t / scales[name]).round().to(torch.int8) for name, t in chosen.items()}
    rest = {name: tensor for name, tensor in state.items() if name not in chosen}
    return Quantised(codes, scales, rest, {name: tensor.dtype for name, tensor in chosen.items()})


def flipped(stored: Quantised, flips: Sequence[Flip]) -> Quantised:
    """Flip bits; the same flips twice give back what was there. The given codes are not changed.

    Raises:
        SettingsError: a flip names a tensor, index or bit that is not there.
    """
    codes = dict(stored.codes)
    for name in {flip.tensor for flip in flips}:
        if name not in codes:
            raise SettingsError(f"there is no 8-bit tensor {name!r}; known: {', '.join(codes)}")
        codes[name] = codes[name].clone()
    for flip in flips:
        flat = codes[flip.tensor].view(-1)
        if not (0 <= flip.index < flat.numel() and 0 <= flip.bit < BITS):
            raise SettingsError(f"{flip} lies outside the {flat.numel()} weights of 8 bits")
        flat[flip.index] ^= _mask(flip.bit)
    return replace(stored, codes=codes)


def _mask(bit: int) -> int:
    """The int8 whose only set bit is `bit`."""
    return -(2**_SIGN) if bit == _SIGN else 2**bit


def in_ranges(hit: Quantised, known: Quantised) -> dict[str, Tensor]:
    """Weights after flips, cut off at the largest magnitude that their unit had before.

    Args:
        hit: what is stored after the flips. known: before them; one limit for each row (output
            unit) of each tensor, which the defender keeps where the attacker cannot write.
    """
    state = hit.state()
    for name in hit.codes:
        rows = known.weight(name).abs().flatten(1).amax(1)
        limit = rows.view(-1, *[1] * (state[name].dim() - 1))
        state[name] = torch.minimum(torch.maximum(state[name], -limit), limit)
    return state


def bit_steps(codes: Tensor) -> Tensor:
    """By how much each bit's flip moves each code: (numel,) int8 to (numel, 8) integers.

    A set bit i is worth 2^i, the sign bit -128; flipping takes that away or adds it.
    """
    worth = torch.tensor([_mask(bit) for bit in range(BITS)])
    is_set = (codes.view(-1, 1).long() >> torch.arange(BITS)) & 1
    return worth * (1 - 2 * is_set)


def progressive_bit_search(
    model: nn.Module,
    networks: Sequence[Quantised],
    attack: Split,
    *,
    most: int = 50,
    width: int = 1,
    enough: float = 0.0,
) -> list[Flip]:
    """Find the flips that raise the loss fastest, one layer's at a time (algorithm 1 of the paper).

    Each iteration: the gradient of the loss on the attack batch by every stored weight; inside
    every layer the `width` (n_b) bits of the largest first-order gain, gradient times the step that
    the flip takes, are flipped on trial and the loss is measured (in-layer search); the layer whose
    trial gives the largest loss is committed (cross-layer search). Only flips of positive gain
    count, and no bit is flipped twice. Over several networks losses and gains are summed: positions
    are sought that hurt all of them.

    Args:
        model: architecture in evaluation mode; its own parameters are not used.
        networks: one quantised network, or several of the same architecture.
        attack: examples that the attacker owns, one batch.
        most: flips at most. enough: stop when accuracy on the batch is no higher.

    Returns:
        Flips in the order in which they were committed.
    """
    chosen: list[Flip] = []
    networks = list(networks)
    while len(chosen) < most and _accuracy(model, networks, attack) > enough:
        gains = _gains(model, networks, attack)
        best, highest = [], -1.0
        for name, gain in gains.items():
            trial = _best_bits(name, gain, chosen, min(width, most - len(chosen)))
            if not trial:
                continue
            loss = sum(_loss(model, flipped(one, trial), attack) for one in networks)
            if loss > highest:
                best, highest = trial, loss
        if not best:
            break
        networks = [flipped(one, best) for one in networks]
        chosen += best
    return chosen


def _gains(model: nn.Module, networks: Sequence[Quantised], attack: Split) -> dict[str, Tensor]:
    """First-order change of the summed loss for every bit: name to (numel, 8)."""
    gains: dict[str, Tensor] = {}
    for one in networks:
        weights = {name: one.weight(name).requires_grad_(True) for name in one.codes}
        with torch.enable_grad():
            logits = functional_call(
                model, dict(one.rest) | weights, (attack.x,), tie_weights=False
            )
            loss = F.cross_entropy(logits, attack.y)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            gain = gradient.view(-1, 1) * one.scales[name] * bit_steps(one.codes[name])
            gains[name] = gains[name] + gain if name in gains else gain
    return gains


def _best_bits(name: str, gain: Tensor, chosen: Sequence[Flip], width: int) -> list[Flip]:
    """The `width` bits of largest positive gain (numel, 8) that are not chosen yet."""
    free = gain.clone()
    for flip in chosen:
        if flip.tensor == name:
            free[flip.index, flip.bit] = -torch.inf
    values, at = free.view(-1).topk(min(width, free.numel()))
    return [
        Flip(name, place // BITS, place % BITS)
        for value, place in zip(values.tolist(), at.tolist(), strict=True)
        if value > 0
    ]


@torch.no_grad()
def _loss(model: nn.Module, one: Quantised, attack: Split) -> float:
    loss = float(
        F.cross_entropy(
            functional_call(model, one.state(), (attack.x,), tie_weights=False), attack.y
        )
    )
    return loss if loss == loss else float("inf")  # noqa: PLR0124 (NaN: the network is destroyed)


@torch.no_grad()
def _accuracy(model: nn.Module, networks: Sequence[Quantised], attack: Split) -> float:
    """Mean accuracy of the networks on the attacker's batch."""
    right = [
        functional_call(model, one.state(), (attack.x,), tie_weights=False).argmax(1) == attack.y
        for one in networks
    ]
    return float(torch.stack(right).double().mean())


def random_flips(
    stored: Quantised, count: int, generator: torch.Generator, bit: int | None = None
) -> list[Flip]:
    """Flip `count` different weights drawn evenly from all; a random bit of each, or always `bit`.

    The control: what random memory faults do.
    """
    sizes = {name: codes.numel() for name, codes in stored.codes.items()}
    places = draw_places(sizes, count, generator)
    bits = torch.randint(BITS, (count,), generator=generator).tolist()
    return [
        Flip(name, index, drawn if bit is None else bit)
        for (name, index), drawn in zip(places, bits, strict=False)
    ]


def draw_places(
    sizes: Mapping[str, int], count: int, generator: torch.Generator
) -> list[tuple[str, int]]:
    """Draw `count` different weights evenly from all (all, if there are fewer): name and index.

    Args:
        sizes: how many weights each tensor has.
    """
    names = list(sizes)
    ends = torch.tensor(list(sizes.values())).cumsum(0)
    at = torch.randperm(int(ends[-1]), generator=generator)[:count]
    found = []
    for place in at.tolist():
        which = int(torch.searchsorted(ends, place, right=True))
        found.append((names[which], place - (int(ends[which - 1]) if which else 0)))
    return found


def flip_float(tensor: Tensor, index: int, bit: int) -> Tensor:
    """Flip one bit of a float32 tensor; the same flip twice gives back the same bytes.

    Args:
        tensor: any shape; it is not changed. index: flat, in it. bit: 0 to 31 (the sign).

    Raises:
        SettingsError: it is not float32, or the index or bit is not there.
    """
    _check_float(tensor)
    if not (0 <= index < tensor.numel() and 0 <= bit < FLOAT_BITS):
        raise SettingsError(
            f"index {index}, bit {bit} lies outside the {tensor.numel()} weights of 32 bits"
        )
    # As integers all the way: copying a signalling NaN as a float may quiet it.
    raw = tensor.detach().view(torch.int32).clone(memory_format=torch.contiguous_format)
    raw.view(-1)[index] ^= _float_mask(bit)
    return raw.view(torch.float32)


def float_flips(values: Tensor) -> Tensor:
    """What each of the 32 single flips makes of float32 weights: (n,) to (n, 32), bit by bit.

    Raises:
        SettingsError: the values are not float32.
    """
    _check_float(values)
    masks = torch.tensor([_float_mask(bit) for bit in range(FLOAT_BITS)], dtype=torch.int32)
    return (values.detach().view(torch.int32).unsqueeze(-1) ^ masks).view(torch.float32)


def code_flips(codes: Tensor, scale: float) -> Tensor:
    """What each of the 8 single flips makes of weights stored in 8 bits: (n,) int8 to (n, 8)."""
    return (codes.view(-1, 1) + bit_steps(codes)).float() * scale


def _float_mask(bit: int) -> int:
    """The int32 whose only set bit is `bit`."""
    return -(2**31) if bit == FLOAT_BITS - 1 else 2**bit


def _check_float(tensor: Tensor) -> None:
    if tensor.dtype != torch.float32:
        raise SettingsError(f"flips of 32 bits need float32 weights, not {tensor.dtype}")
