"""Symmetries of a network's parameters, and distances that see through them.

Permuting hidden units, or rescaling them through a ReLU, changes the parameters and not the
function. Through a square s before is undone by 1/s² after, and a sign is lost. `align` undoes all
of it (weight matching, Git Re-Basin, arXiv 2209.04836, algorithm 1, after balancing);
`aligned_distances` is what gates and tables report. What may be moved is read off the model
(`chains`) and then *verified* on data: a guess that changes the logits is discarded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from g2d.core.types import State
from g2d.weights.chains import Coupling, read_chain
from g2d.weights.layout import is_number, ties_of, whole_state

__all__ = ["Coupling", "align", "aligned_distances", "balance", "couplings", "incoming", "match",
           "permute", "relative_l1", "rescale", "signs"]  # fmt: skip

Place = tuple[Tensor, Tensor]
"""Where the units of a layer belong: an order (units,), and then a sign of each."""


def couplings(model: nn.Module, probe: Tensor) -> tuple[Coupling, ...]:
    """Read the hidden layers off a plain feed-forward model (MLP or CNN) and verify them.

    Args:
        model: any module; residual and attention networks have no such chain and give `()`.
        probe: a few inputs, shape (n, ...), on which permuted parameters must give equal logits.

    Returns:
        The couplings in order, or `()` where the model is not a plain chain: alignment is then the
        identity, and reports say "not aligned".
    """
    found, tied = read_chain(model), ties_of(model)
    shared = {*tied, *tied.values()}
    if not found or any(shared.intersection(layer.tensors) for layer in found):
        return ()  # what is tied would have to be permuted under all of its names
    state = whole_state(model)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(c.units, generator=generator) for c in found]
    moved = permute(state, found, orders)
    scales = [torch.rand(c.units, generator=generator).add(0.5) for c in found]
    turned = [signs(layer, generator) for layer in found]
    moved = rescale(moved, found, [s * t for s, t in zip(scales, turned, strict=True)])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        before, after = (
            torch.func.functional_call(model, s, (probe.clone(),), tie_weights=False)
            for s in (state, moved)
        )
    model.train(was_training)
    return found if _same(before, after) else ()


def _same(before: Tensor, after: Tensor) -> bool:
    """Whether logits (n, ...) are equal but for rounding, each input's by the scale of its own.

    A polynomial makes of one input, a thousand times another, logits that are so 10^24 times, or
    none that are finite: by the largest of all, any logits of the others would be equal.
    """
    before, after = (logits.flatten(1).double() for logits in (before, after))
    sound = before.isfinite().all(1)
    before, after = before[sound], after[sound]
    limit = 1e-4 * (1 + before.abs().amax(1, keepdim=True)) + 1e-3 * before.abs()
    return bool(len(before)) and bool(((before - after).abs() <= limit).all())


def permute(state: State, chain: Sequence[Coupling], orders: Sequence[Tensor]) -> dict[str, Tensor]:
    """Reorder hidden units: unit `orders[l][i]` of layer l becomes unit i. Logits are unchanged."""
    moved = dict(state)
    for layer, order in zip(chain, orders, strict=True):
        for name in layer.rows:
            moved[name] = moved[name][order]
        weight = moved[layer.into]
        blocks = weight.reshape(weight.shape[0], layer.units, -1)
        moved[layer.into] = blocks[:, order].reshape(weight.shape)
    return moved


def signs(layer: Coupling, generator: torch.Generator) -> Tensor:
    """Draw a sign for each unit of a layer, (units,): all 1 where signs matter."""
    if not layer.even:
        return torch.ones(layer.units)
    return torch.randint(2, (layer.units,), generator=generator) * 2.0 - 1


def rescale(state: State, chain: Sequence[Coupling], by: Sequence[Tensor]) -> dict[str, Tensor]:
    """Multiply what enters each unit by `by[l]`, and divide what leaves it by `by[l] ** degree`.

    Logits are unchanged. Where units may not be rescaled (degree 0), the signs alone count.

    Args:
        by: factors (units,) of each layer: positive, or of either sign where the layer is `even`.
    """
    moved = dict(state)
    for layer, given in zip(chain, by, strict=True):
        if not (layer.homogeneous or layer.even):
            continue
        factor = given if layer.homogeneous else given.sign()
        assert layer.even or bool((factor > 0).all())
        for name in layer.scaled:
            tensor = moved[name]
            moved[name] = tensor * factor.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        if layer.vertex:
            bias = moved[layer.bias]
            moved[layer.bias] = bias + layer.vertex * (1 - factor.to(bias.dtype))
        if layer.homogeneous:
            weight = moved[layer.into]
            blocks = weight.reshape(weight.shape[0], layer.units, -1)
            blocks = blocks / factor.to(weight.dtype).pow(layer.degree).view(1, -1, 1)
            moved[layer.into] = blocks.reshape(weight.shape)
    return moved


def balance(state: State, chain: Sequence[Coupling]) -> dict[str, Tensor]:
    """Bring every homogeneous unit to equal incoming and outgoing norm, a canonical scale.

    One sweep in order leaves earlier layers slightly unbalanced, so ten are made; the remaining
    imbalance is below 1e-3 of a norm on the built-in models. Signs stay: `align` knows which.
    """
    balanced = dict(state)
    for _ in range(10):
        for layer in chain:
            if not layer.homogeneous:
                continue
            incoming = sum(
                balanced[name].double().reshape(layer.units, -1).square().sum(1)
                for name in layer.scaled
            )
            weight = balanced[layer.into].double()
            outgoing = weight.reshape(weight.shape[0], layer.units, -1).square().sum((0, 2))
            factor = layer.balancing(torch.as_tensor(incoming), outgoing)
            balanced = rescale(balanced, [layer], [factor])
    return balanced


def match(reference: State, state: State, chain: Sequence[Coupling]) -> list[Place]:
    """Find where units of `state` belong to be nearest to `reference` (Re-Basin, algorithm 1).

    Coordinate descent over layers; each layer is one linear assignment. Deterministic: layers are
    visited in order until none improves. Of units that are even the sign is found, too; as wrong
    signs mislead the layer before, a second descent begins with orders by what enters alone, and
    the better of the two counts.

    Returns:
        of each layer its order, for `permute`, and then the signs (units,), for `rescale`.
    """
    found = _descend(reference, state, chain, [torch.arange(layer.units) for layer in chain])
    if not any(layer.even for layer in chain):
        return found
    second = _descend(reference, state, chain, incoming(reference, state, chain))
    ways = (found, second)
    return max(ways, key=lambda way: _likeness(reference, _put(state, chain, way), chain))


def _descend(
    reference: State, state: State, chain: Sequence[Coupling], orders: Sequence[Tensor]
) -> list[Place]:
    """The nearest that coordinate descent comes to, from where it begins."""
    from scipy.optimize import linear_sum_assignment  # half a CPU second that few processes need

    places = [(order, torch.ones(order.numel())) for order in orders]
    for index, layer in enumerate(chain):
        if layer.even:
            entering, _ = _gains(reference, _except(state, chain, places, index), layer)
            places[index] = _turned(entering, places[index][0], layer)
    for _ in range(50):
        changed = False
        for index, layer in enumerate(chain):
            entering, rest = _gains(reference, _except(state, chain, places, index), layer)
            gain = (entering.abs() if layer.even else entering) + rest
            _, columns = linear_sum_assignment(gain.numpy(), maximize=True)
            order, sign = _turned(entering, torch.from_numpy(columns), layer)
            was, stood = places[index]
            units = torch.arange(layer.units)
            before = float((entering[units, was] * stood + rest[units, was]).sum())
            after = float((entering[units, order] * sign + rest[units, order]).sum())
            if after > before * (1 + 1e-12) + 1e-9:
                places[index], changed = (order, sign), True
        if not changed:
            break
    return places


def _turned(entering: Tensor, order: Tensor, layer: Coupling) -> Place:
    """An order with the signs that suit it."""
    suits = entering[torch.arange(layer.units), order] >= 0
    return order, torch.where(suits | (not layer.even), 1.0, -1.0)


def _except(
    state: State, chain: Sequence[Coupling], places: Sequence[Place], index: int
) -> dict[str, Tensor]:
    """A state with all units in their places but those of one layer."""
    units = chain[index].units
    own = (torch.arange(units), torch.ones(units))
    return _put(state, chain, [p if i != index else own for i, p in enumerate(places)])


def _put(state: State, chain: Sequence[Coupling], places: Sequence[Place]) -> dict[str, Tensor]:
    """A state with its units in their places."""
    moved = permute(state, chain, [order for order, _ in places])
    for layer, (_, sign) in zip(chain, places, strict=True):
        if layer.even:
            moved = rescale(moved, [layer], [sign])  # of 1 and -1: no scale changes
    return moved


def _likeness(reference: State, state: State, chain: Sequence[Coupling]) -> float:
    """The inner product of all that units touch."""
    names = dict.fromkeys(name for layer in chain for name in layer.tensors)
    return sum(float((reference[n].double() * state[n].double()).sum()) for n in names)


def _gains(reference: State, state: State, layer: Coupling) -> tuple[Tensor, Tensor]:
    """Inner products of every unit of `reference` with every unit of `state`, (units, units) each.

    Of what enters with the unit's scale, and so its sign, and of all the rest.
    """
    entering = layer.entering(reference, torch.float64) @ layer.entering(state, torch.float64).T
    a, b = (
        s[layer.into].double().reshape(s[layer.into].shape[0], layer.units, -1)
        for s in (reference, state)
    )
    rest = torch.einsum("oik,ojk->ij", a, b)
    for name in layer.rows:
        if name not in layer.scaled:
            a, b = (s[name].double().reshape(layer.units, -1) for s in (reference, state))
            rest += a @ b.T
    return entering, rest


def incoming(reference: State, state: State, chain: Sequence[Coupling]) -> list[Tensor]:
    """Orders of hidden units by what enters them alone, layer after layer, for `permute`.

    Where `align` begins with units in a foreign order, what leaves a layer enters the next one in
    disorder and misleads it; what enters does not, once the layers before are in order.
    """
    from scipy.optimize import linear_sum_assignment

    orders = [torch.arange(layer.units) for layer in chain]
    for index, layer in enumerate(chain):
        pair = (reference, permute(state, chain, orders))
        ours, theirs = (layer.entering(s, torch.float32) for s in pair)
        gain = ours @ theirs.T
        if layer.even:
            gain = gain.abs()  # of either sign a unit is the same
        for name in layer.rows:
            if name not in layer.scaled:
                ours, theirs = (s[name].float().reshape(layer.units, -1) for s in pair)
                gain += ours @ theirs.T
        _, columns = linear_sum_assignment(gain.numpy(), maximize=True)
        orders[index] = torch.from_numpy(columns)
    return orders


def align(reference: State, state: State, chain: Sequence[Coupling]) -> dict[str, Tensor]:
    """Permute `state`'s hidden units onto `reference`'s, and turn those that stand the other way.

    Its logits do not change.
    """
    return _put(state, chain, match(reference, state, chain)) if chain else dict(state)


def aligned_distances(
    references: Iterable[State],
    state: State,
    chain: Sequence[Coupling],
    names: Collection[str] | None = None,
) -> list[float]:
    """Relative L1 distances `‖state − reference‖₁ / ‖reference‖₁` after removing symmetries.

    All are balanced first, then `state` is aligned to each reference; to a permuted or rescaled
    copy the distance is zero.

    Args:
        names: the tensors that count; None: all numbers.
    """
    if not chain:
        return [relative_l1(reference, state, names) for reference in references]
    state = balance(state, chain)
    even = (balance(reference, chain) for reference in references)
    return [relative_l1(reference, align(reference, state, chain), names) for reference in even]


def relative_l1(reference: State, state: State, names: Collection[str] | None = None) -> float:
    """Relative L1 distance over the tensors of `names` (None: all numbers), without alignment."""
    counted = [n for n, t in reference.items() if is_number(t) and (names is None or n in names)]
    moved = sum(float((_wide(state[n]) - _wide(reference[n])).abs().sum()) for n in counted)
    total = sum(float(_wide(reference[n]).abs().sum()) for n in counted)
    return moved / max(total, 1e-30)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()
