"""The secret layout of a served model: a position in memory means nothing in another load.

Two secrets, drawn from the operating system at each load and forgotten with it. *Units*: hidden
units are permuted and rescaled, which leaves the function as it is (`weights.symmetry`). *Places*:
all tensors lie in one block of memory, in a secret order and at secret distances. Bits that were
found on a file, on another replica or on another generation are then other weights' bits, or none's
(Rowhammer on networks: Yao et al. 2020, arXiv 2003.13746). Whoever reads the live memory first, and
then flips, is not stopped. Which generation may be served is not decided here.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from g2d.core.imports import words
from g2d.core.types import State
from g2d.errors import CheckpointError, SettingsError
from g2d.protect.memory import keep_apart, own_memory, tensors_of
from g2d.protect.turns import TURNS
from g2d.weights.layout import is_number, same_bits
from g2d.weights.symmetry import Coupling, couplings, permute, rescale

__all__ = ["PLAIN", "SECRET", "Concealed", "Units", "conceal", "hide", "is_secret", "move",
           "places", "random_inputs", "reveal"]  # fmt: skip

SECRET, PLAIN = "secret", "plain"
CLOSE = 1e-5
"""How far logits may move, relative to 1 + the largest of their input: sums in another order."""

Draw = Callable[[int], bytes]
"""Gives so many random bytes; `secrets.token_bytes`, but in tests and in the red team."""

Moved = tuple[Tensor, Tensor]
"""A tensor that was moved, and one of the same form in the memory that it left."""

_LINE = 64  # bytes: a tensor begins at a line of the cache, as torch's own do
_LEAST_ROOM, _MOST_ROOM = 4 << 20, 32 << 20  # bytes: see `places`
_LARGE = 4096  # values of an input whose forward pass is dear


@dataclass(frozen=True)
class Units:
    """The secret of one load's units: `permute`'s orders and `rescale`'s factors, layer by layer.

    Enough to undo it (`reveal`), so it is kept no longer than a load takes, and never shown.
    """

    orders: tuple[Tensor, ...] = field(repr=False)
    factors: tuple[Tensor, ...] = field(repr=False)  # all of a layer are the same, but for signs

    @classmethod
    def draw(cls, chain: Sequence[Coupling], draw: Draw) -> Units:
        """Draw orders evenly, and for each layer one factor out of 1/4, 1/2, 1, 2 and 4.

        Powers of two change no bit of a mantissa, so nothing is rounded and it can be undone bit by
        bit. One a layer, not one a unit: the guard of `protect.ranges` knows one range for each
        tensor, and a unit made smaller than its neighbours would be held in a wider one. Ten flips
        of top exponent bits cost digits' network nothing so, 1.5 points of accuracy with factors of
        1 and 2 for each unit, 41 with 1/4 to 4. Each unit of a square has a sign of its own, which
        no range minds. The orders hide; a factor could be guessed.
        """
        orders = tuple(_order(layer.units, draw) for layer in chain)
        powers = [number % 5 - 2 for number in _numbers(len(chain), draw).tolist()]
        factors = (_signs(layer, draw) * 2.0**p for layer, p in zip(chain, powers, strict=True))
        return cls(orders, tuple(factors))


def hide(
    state: State, chain: Sequence[Coupling], draw: Draw = secrets.token_bytes
) -> tuple[dict[str, Tensor], Units]:
    """Permute and rescale a state's hidden units by secrets drawn now; the function is the same.

    Where a factor would be rounded (a subnormal weight, one at the type's end), all are 1.

    Args:
        chain: of `couplings`, verified.

    Returns:
        the hidden state, and what `reveal` needs: `reveal(*hide(state, chain), chain)` is the state
        bit by bit.

    Raises:
        CheckpointError: that is not so: memory changed meanwhile.
    """
    units = Units.draw(chain, draw)
    ones = tuple(torch.ones_like(factor) for factor in units.factors)
    for tried in (units, Units(units.orders, ones)):
        hidden = dict(state)
        for layer, order, factor in zip(chain, tried.orders, tried.factors, strict=True):
            hidden = _scaled(permute(hidden, [layer], [order]), layer, factor)
        if _undoes(hidden, state, tried, chain):
            return hidden, tried
    raise CheckpointError("a state changed while its units were hidden: look for faulty memory")


def reveal(state: State, units: Units, chain: Sequence[Coupling]) -> dict[str, Tensor]:
    """Undo `hide`, bit by bit."""
    plain = dict(state)
    for layer, order, factor in _last_first(units, chain):
        plain = _shown(plain, layer, order, factor)
    return plain


def _undoes(hidden: State, state: State, units: Units, chain: Sequence[Coupling]) -> bool:
    """Whether `reveal` gives the state; a layer at a time, so that no second copy is held."""
    back = dict(hidden)
    for layer, order, factor in _last_first(units, chain):
        back = _shown(back, layer, order, factor)
        if not same_bits(back.pop(layer.into), state[layer.into]):  # earlier layers do not touch it
            return False
    return all(same_bits(tensor, state[name]) for name, tensor in back.items())


def _last_first(units: Units, chain: Sequence[Coupling]) -> list[tuple[Coupling, Tensor, Tensor]]:
    return list(zip(chain, units.orders, units.factors, strict=True))[::-1]


def _shown(state: State, layer: Coupling, order: Tensor, factor: Tensor) -> dict[str, Tensor]:
    """Undo one layer's order and factor."""
    return permute(_scaled(state, layer, 1 / factor), [layer], [order.argsort()])


def _scaled(state: State, layer: Coupling, factor: Tensor) -> dict[str, Tensor]:
    """`rescale` of one layer. A factor of 1 computes nothing.

    For with `torch.set_flush_denormal` even a product with 1 makes a subnormal weight zero.
    """
    return rescale(state, [layer], [factor]) if bool((factor != 1).any()) else dict(state)


def places(sizes: Sequence[int], draw: Draw) -> tuple[list[int], int]:
    """Draw where tensors of so many bytes begin in one block of memory, and how long that is.

    Order and distances are drawn evenly. The room between them is as much as the tensors take, at
    least 4 MiB and at most 32 MiB: the smallest tensors are those whose bits cost most, and one of
    them lies where a flip was aimed with a chance of its size by the room.
    """
    lines = [-(-size // _LINE) for size in sizes]
    free = min(max(sum(sizes), _LEAST_ROOM), _MOST_ROOM) // _LINE
    gaps = sorted(number % (free + 1) for number in _numbers(len(sizes), draw).tolist())
    starts, before = [0] * len(sizes), 0
    for gap, which in zip(gaps, _order(len(sizes), draw).tolist(), strict=True):
        starts[which] = (gap + before) * _LINE
        before += lines[which]
    return starts, (before + free) * _LINE


@torch.no_grad()
def move(model: nn.Module, draw: Draw = secrets.token_bytes) -> list[Moved]:
    """Move a model's tensors to secret places in one block of memory; values and strides stay.

    Between them lie copies of the largest one, so that the room is no emptier to a flip than the
    rest. What shares its memory with another tensor, or is none of ours to move (not dense, not on
    the CPU), stays where it is.

    Returns:
        each tensor that was moved, tied ones once, with what it was: the memory that it left.
    """
    own = own_memory(model)
    if not own:
        return []
    sizes = [tensor.numel() * tensor.element_size() for tensor in own]
    starts, size = places(sizes, draw)
    block = torch.empty(size, dtype=torch.uint8)
    filler = max(own, key=lambda tensor: tensor.numel() * tensor.element_size()).detach()
    filler = filler.as_strided((filler.numel(),), (1,)).view(torch.uint8)
    filler = filler.repeat(max(1, _LEAST_ROOM // len(filler)))
    for start in range(0, size, len(filler)):
        block[start : start + len(filler)] = filler[: size - start]
    moved = []
    for tensor, start, taken in zip(own, starts, sizes, strict=True):
        place = block[start : start + taken].view(tensor.dtype)
        place = place.as_strided(tensor.shape, tensor.stride())
        place.copy_(tensor)
        moved.append((tensor, tensor.data))
        tensor.data = place
    keep_apart(model)
    return moved


@dataclass(frozen=True)
class Concealed:
    """What `conceal` reached.

    Attributes:
        layout: in words, for a status. state: what the model holds now. failed: why its units were
            not hidden although they could be; "": nothing failed.
    """

    layout: str
    state: State = field(repr=False)
    failed: str = ""


def conceal(
    model: nn.Module, state: State, probe: Tensor, draw: Draw = secrets.token_bytes
) -> Concealed:
    """Give a model that holds a verified state the secret layout, if its logits stay.

    Its places are secret whatever the model is, but of tensors that it reads where they lay before
    (a view that it kept); its units, where it is a plain chain of layers (not with shortcuts,
    attention or tied weights: `couplings`), and answers to the probe within `CLOSE` of what they
    were. In half precision sums in another order miss that as a rule.

    Where the units cannot be undone, they stay in order. Whether `state` changed meanwhile is told
    by a digest that was taken before: compare what is returned with it.

    Args:
        model: in evaluation mode, built for this alone. probe: inputs, shape (n, ...).
    """
    chain: tuple[Coupling, ...] | None = None
    before, why, failed = None, "not tried", ""
    try:  # it is the user's model: whatever it raises, it is served as it is
        chain = couplings(model, probe)
        before = _answers(model, probe)
    except Exception as error:
        if chain != ():  # without a chain nothing could have been hidden
            failed = f"the model does not answer the inputs that they are tried on ({words(error)})"
    moved, total = move(model, draw), len(tensors_of(model))
    count = len(moved)
    if before is not None and _close(before, before):
        back = _put_back(model, moved, probe, before)
        why = "not tried" if back is None else "no chain"
        count -= back or 0
    del moved  # and with it the memory that was left
    some = f", {count} of {total} tensors moved" if count < total else ""
    if before is not None and chain:
        try:
            hidden, _ = hide(state, chain, draw)
        except CheckpointError:
            why, failed = "not undone", "what was hidden cannot be undone bit by bit"
        else:
            model.load_state_dict(hidden)
            if _close(before, _answers(model, probe)):
                model.load_state_dict(hidden)  # a probe may have moved something
                return Concealed(SECRET + some, hidden)
            why, failed = "logits differ", "in another order its logits differ beyond rounding"
    model.load_state_dict(state)
    return Concealed(f"secret places, {why}{some}" if count else f"{PLAIN}, {why}", state, failed)


def is_secret(layout: str) -> bool:
    """Whether a layout that somebody chose is the secret one.

    Raises:
        SettingsError: it is neither "secret" nor "plain".
    """
    if layout not in (SECRET, PLAIN):
        raise SettingsError(f"layout is {layout!r}, expected {SECRET!r} or {PLAIN!r}")
    return layout == SECRET


def random_inputs(shape: Sequence[int], dtype: torch.dtype, vocabulary: int = 0) -> Tensor:
    """Inputs (n, *shape) to probe a model with where there are no data; always the same.

    Of many sizes, for units that are off on all of them would prove nothing; 16, or 4 large ones.

    Args:
        vocabulary: how many token ids there are; 0: not known.
    """
    source = torch.Generator().manual_seed(0)
    each = 4 if math.prod(shape) <= _LARGE else 1
    full = (4 * each, *shape)
    if not dtype.is_floating_point:
        return torch.randint(vocabulary or 2, full, generator=source).to(dtype)
    x = torch.randn(full, generator=source)
    x[:each] = torch.rand((each, *shape), generator=source)
    x[2 * each : 3 * each] *= 30
    x[3 * each :] *= 1000
    return x.to(dtype)


@torch.no_grad()
def _answers(model: nn.Module, probe: Tensor) -> Tensor:
    """A model's logits, (n, values)."""
    logits: Tensor = model(probe.clone())
    return logits.reshape(len(logits), -1).double()


def _put_back(
    model: nn.Module, moved: Sequence[Moved], probe: Tensor, before: Tensor
) -> int | None:
    """Move back what the model reads where it lay before, as through a view that it kept.

    There it would neither be watched nor held in ranges.

    Returns:
        how many were moved back; None: the model does not answer alike twice, nothing was tried.
    """

    def find(some: Sequence[Moved]) -> list[Moved]:
        if _unread(model, some, probe, before):
            return []
        if len(some) == 1:
            return list(some)
        half = len(some) // 2
        return find(some[:half]) + find(some[half:]) or list(some)  # or: both together alone

    if not moved or _unread(model, moved, probe, before):
        return 0
    if not _unread(model, (), probe, before):
        return None
    found = find(moved)
    for tensor, left in found:
        tensor.data = left
    return len(found)


@torch.no_grad()
def _unread(model: nn.Module, moved: Sequence[Moved], probe: Tensor, before: Tensor) -> bool:
    """Whether answers stay while the memory that some tensors left holds NaN.

    NaN passes through sums and products with anything. Integers are not tried: an index made wrong
    may read anywhere.
    """
    buffers = [(t, t.clone()) for t, _ in moved if not isinstance(t, nn.Parameter)]
    with TURNS.probing():  # what was left may be memory that a network which answers reads, too
        try:
            for _, left in moved:
                if is_number(left):
                    left.fill_(torch.nan)
            same = _close(before, _answers(model, probe))
        except Exception:  # a model may refuse NaN
            same = False
        for tensor, kept in buffers:  # a forward that writes what it read
            tensor.copy_(kept)
        for tensor, left in moved:
            left.copy_(tensor)
    return same


def _close(before: Tensor, after: Tensor) -> bool:
    """Whether logits (n, classes) are the same but for rounding, wherever they are finite."""
    sound = before.isfinite().all(1)
    apart = (before - after)[sound].abs().amax(1)
    return bool(sound.any()) and bool((apart <= CLOSE * (1 + before[sound].abs().amax(1))).all())


def _numbers(count: int, draw: Draw) -> Tensor:
    """Random numbers of 64 bits, (count,)."""
    return torch.frombuffer(bytearray(draw(8 * count)), dtype=torch.int64)


def _signs(layer: Coupling, draw: Draw) -> Tensor:
    """A random sign of each unit, where it can be changed and changed back bit by bit; else 1."""
    if not layer.even or layer.vertex:  # about a vertex the bias would be rounded
        return torch.ones(layer.units)
    return (_numbers(layer.units, draw) % 2) * 2.0 - 1


def _order(count: int, draw: Draw) -> Tensor:
    """A random order of `count` things; equal numbers of 64 bits are not to be expected."""
    return _numbers(count, draw).argsort()
