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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from g2d.core.imports import words
from g2d.core.types import State
from g2d.errors import CheckpointError, SettingsError
from g2d.weights.layout import same_bits
from g2d.weights.symmetry import Coupling, couplings, permute, rescale

__all__ = ["PLAIN", "SECRET", "Concealed", "Units", "conceal", "hide", "is_secret", "move",
           "places", "random_inputs", "reveal"]  # fmt: skip

SECRET, PLAIN = "secret", "plain"
CLOSE = 1e-5
"""How far logits may move, relative to 1 + the largest of their input: sums in another order."""

Draw = Callable[[int], bytes]
"""Gives so many random bytes; `secrets.token_bytes`, but in tests and in the red team."""

_LINE = 64  # bytes: a tensor begins at a line of the cache, as torch's own do
_LEAST_ROOM, _MOST_ROOM = 4 << 20, 32 << 20  # bytes: see `places`
_LARGE = 4096  # values of an input whose forward pass is dear


@dataclass(frozen=True)
class Units:
    """The secret of one load's units: `permute`'s orders and `rescale`'s factors, layer by layer.

    Enough to undo it (`reveal`), so it is kept no longer than a load takes, and never shown.
    """

    orders: tuple[Tensor, ...] = field(repr=False)
    factors: tuple[Tensor, ...] = field(repr=False)  # all of a layer are the same

    @classmethod
    def draw(cls, chain: Sequence[Coupling], draw: Draw) -> Units:
        """Draw orders evenly, and for each layer one factor out of 1/4, 1/2, 1, 2 and 4.

        Powers of two change no bit of a mantissa, so nothing is rounded and it can be undone bit by
        bit. One a layer, not one a unit: the guard of `protect.ranges` knows one range for each
        tensor, and a unit made smaller than its neighbours would be held in a wider one. Ten flips
        of top exponent bits cost digits' network nothing so, 1.5 points of accuracy with factors of
        1 and 2 for each unit, 41 with 1/4 to 4. The orders hide; a factor could be guessed.
        """
        orders = tuple(_order(layer.units, draw) for layer in chain)
        powers = [number % 5 - 2 for number in _numbers(len(chain), draw).tolist()]
        sizes = [layer.units for layer in chain]
        factors = (torch.full((n,), 2.0**p) for n, p in zip(sizes, powers, strict=True))
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
        hidden = rescale(permute(state, chain, tried.orders), chain, tried.factors)
        back = reveal(hidden, tried, chain)
        if all(same_bits(tensor, back[name]) for name, tensor in state.items()):
            return hidden, tried
    raise CheckpointError("a state changed while its units were hidden: look for faulty memory")


def reveal(state: State, units: Units, chain: Sequence[Coupling]) -> dict[str, Tensor]:
    """Undo `hide`, bit by bit."""
    plain = rescale(state, chain, [1 / factor for factor in units.factors])
    return permute(plain, chain, [order.argsort() for order in units.orders])


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
def move(model: nn.Module, draw: Draw = secrets.token_bytes) -> int:
    """Move a model's tensors to secret places in one block of memory; their values stay.

    Between them lie copies of the largest one, so that the room is no emptier to a flip than the
    rest. What shares its memory with another tensor, or is none of ours to move (not dense, not on
    the CPU), stays where it is.

    Returns:
        how many tensors were moved, tied ones once.
    """
    own = _own_memory(model)
    if not own:
        return 0
    sizes = [tensor.numel() * tensor.element_size() for tensor in own]
    starts, size = places(sizes, draw)
    block = torch.empty(size, dtype=torch.uint8)
    filler = max(own, key=lambda tensor: tensor.numel() * tensor.element_size())
    filler = filler.detach().reshape(-1).view(torch.uint8)
    filler = filler.repeat(max(1, _LEAST_ROOM // len(filler)))
    for start in range(0, size, len(filler)):
        block[start : start + len(filler)] = filler[: size - start]
    for tensor, start, taken in zip(own, starts, sizes, strict=True):
        place = block[start : start + taken].view(tensor.dtype).view(tensor.shape)
        place.copy_(tensor)
        tensor.data = place
    return len(own)


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

    Its places are secret whatever the model is; its units, where it is a plain chain of layers
    (not with shortcuts, attention or tied weights: `couplings`), and answers to the probe within
    `CLOSE` of what they were. In half precision sums in another order miss that as a rule.

    Args:
        model: in evaluation mode, built for this alone. probe: inputs, shape (n, ...).

    Raises:
        CheckpointError: the state changed meanwhile.
    """
    try:
        chain, why, failed = couplings(model, probe), "no chain", ""
    except Exception as error:  # it is the user's model: whatever it raises, it is served as it is
        chain, why = (), "not tried"
        failed = f"the model does not answer the inputs that they are tried on ({words(error)})"
    before = _answers(model, probe) if chain else None
    where = "secret places" if move(model, draw) else PLAIN
    if before is not None:
        hidden, _ = hide(state, chain, draw)
        model.load_state_dict(hidden)
        if _close(before, _answers(model, probe)):
            model.load_state_dict(hidden)  # a probe may have moved something
            return Concealed(SECRET, hidden)
        why, failed = "logits differ", "in another order its logits differ beyond rounding"
    model.load_state_dict(state)
    return Concealed(f"{where}, {why}", state, failed)


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
    """A model's logits, (n, classes)."""
    logits: Tensor = model(probe.clone())
    return logits.double()


def _close(before: Tensor, after: Tensor) -> bool:
    """Whether logits (n, classes) are the same but for rounding, wherever they are finite."""
    sound = before.isfinite().all(1)
    apart = (before - after)[sound].abs().amax(1)
    return bool(sound.any()) and bool((apart <= CLOSE * (1 + before[sound].abs().amax(1))).all())


def _own_memory(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers that have their memory to themselves, each once."""
    found = {id(t): t for t in (*model.parameters(), *model.buffers()) if t.numel()}.values()
    dense = [
        t for t in found
        if type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided and t.is_contiguous()
        and t.device.type == "cpu" and not t.is_quantized
    ]  # fmt: skip
    strided = [t for t in found if t.layout == torch.strided]
    owners = Counter(tensor.untyped_storage().data_ptr() for tensor in strided)
    return [
        t for t in dense
        if owners[t.untyped_storage().data_ptr()] == 1
        and t.untyped_storage().nbytes() == t.numel() * t.element_size()
    ]  # fmt: skip


def _numbers(count: int, draw: Draw) -> Tensor:
    """Random numbers of 64 bits, (count,)."""
    return torch.frombuffer(bytearray(draw(8 * count)), dtype=torch.int64)


def _order(count: int, draw: Draw) -> Tensor:
    """A random order of `count` things; equal numbers of 64 bits are not to be expected."""
    return _numbers(count, draw).argsort()
