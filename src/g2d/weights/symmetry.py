"""Symmetries of a network's parameters, and distances that see through them.

Permuting hidden units, or rescaling them through a ReLU, changes the parameters and not the
function. `align` undoes both (weight matching, Git Re-Basin, arXiv 2209.04836, algorithm 1, after
balancing); `aligned_distances` is what gates and tables report. What may be permuted is read off
the model and then *verified* on data: a guess that changes the logits is discarded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2d.core.types import State
from g2d.weights.layout import is_number, ties_of, whole_state

_POINTWISE = (nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d)
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.MaxPool1d, nn.AvgPool1d)
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU)
_ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Hardtanh, nn.ReLU6)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Coupling:
    """One layer of hidden units: which tensors they index, and where they enter the next layer.

    `rows` are tensors whose first axis the units index; `scaled` those of them that carry a unit's
    scale (all but running statistics and what precedes a norm); `into` is the next weight, whose
    second axis holds `units` blocks of equal width. `homogeneous` units may be rescaled.
    """

    units: int
    rows: tuple[str, ...]
    scaled: tuple[str, ...]
    into: str
    homogeneous: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor that an order or a scale of the units touches."""
        return (*self.rows, self.into)


def couplings(model: nn.Module, probe: Tensor) -> tuple[Coupling, ...]:
    """Read the hidden layers off a plain feed-forward model (MLP or CNN) and verify them.

    Args:
        model: any module; residual and attention networks have no such chain and give `()`.
        probe: a few inputs, shape (n, ...), on which permuted parameters must give equal logits.

    Returns:
        The couplings in order, or `()` where the model is not a plain chain: alignment is then the
        identity, and reports say "not aligned".
    """
    found, tied = _read_chain(model), ties_of(model)
    shared = {*tied, *tied.values()}
    if not found or any(shared.intersection(layer.tensors) for layer in found):
        return ()  # what is tied would have to be permuted under all of its names
    state = whole_state(model)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(c.units, generator=generator) for c in found]
    moved = permute(state, found, orders)
    scales = [torch.rand(c.units, generator=generator).add(0.5).log2() for c in found]
    moved = rescale(moved, found, [s.exp2() for s in scales])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        before, after = (
            torch.func.functional_call(model, s, (probe.clone(),), tie_weights=False)
            for s in (state, moved)
        )
    model.train(was_training)
    same = torch.allclose(before, after, rtol=1e-3, atol=1e-4 * (1 + float(before.abs().max())))
    return found if same else ()


def _read_chain(model: nn.Module) -> tuple[Coupling, ...]:
    """Walk the leaf modules in order of registration; `()` at the first that breaks the chain."""
    found: list[Coupling] = []
    rows: list[str] = []
    scaled: list[str] = []
    units, homogeneous = 0, True
    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue
        prefix = f"{name}." if name else ""
        own = [prefix + n for n, t in module.state_dict().items() if t.dim() > 0]
        if isinstance(module, _WEIGHTED):
            weight = module.weight
            if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups != 1:
                return ()
            if units:
                if weight.shape[1] % units:
                    return ()
                into = prefix + "weight"
                found.append(Coupling(units, tuple(rows), tuple(scaled), into, homogeneous))
            units, rows, scaled, homogeneous = int(weight.shape[0]), own, list(own), True
        elif isinstance(module, _NORMS):
            rows += own
            scaled = [n for n in own if n.rsplit(".", 1)[-1] in ("weight", "bias")]
            homogeneous = homogeneous and bool(scaled)
        elif isinstance(module, _HOMOGENEOUS + _POINTWISE + _POOLS):
            continue
        elif isinstance(module, _ACTIVATIONS):
            homogeneous = False
        elif not units and not own:
            continue  # what is done to the inputs before the first layer touches no hidden unit
        else:
            return ()
    return tuple(found)


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


def rescale(state: State, chain: Sequence[Coupling], by: Sequence[Tensor]) -> dict[str, Tensor]:
    """Multiply what enters each homogeneous unit by `by[l] > 0` and divide what leaves it."""
    moved = dict(state)
    for layer, factor in zip(chain, by, strict=True):
        if not layer.homogeneous:
            continue
        for name in layer.scaled:
            tensor = moved[name]
            moved[name] = tensor * factor.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        weight = moved[layer.into]
        blocks = weight.reshape(weight.shape[0], layer.units, -1)
        blocks = blocks / factor.to(weight.dtype).view(1, -1, 1)
        moved[layer.into] = blocks.reshape(weight.shape)
    return moved


def balance(state: State, chain: Sequence[Coupling]) -> dict[str, Tensor]:
    """Bring every homogeneous unit to equal incoming and outgoing norm, a canonical scale.

    One sweep in order leaves earlier layers slightly unbalanced, so ten are made; the remaining
    imbalance is below 1e-3 of a norm on the built-in models.
    """
    balanced = dict(state)
    for _ in range(10):
        for layer in chain:
            incoming = sum(
                balanced[name].double().reshape(layer.units, -1).square().sum(1)
                for name in layer.scaled
            )
            weight = balanced[layer.into].double()
            outgoing = weight.reshape(weight.shape[0], layer.units, -1).square().sum((0, 2))
            alive = (torch.as_tensor(incoming) > 1e-20) & (outgoing > 1e-20)
            ratio = (outgoing / torch.as_tensor(incoming).clamp_min(1e-30)).pow(0.25)
            factor = torch.where(alive, ratio, torch.ones_like(ratio))
            balanced = rescale(balanced, [layer], [factor])
    return balanced


def match(reference: State, state: State, chain: Sequence[Coupling]) -> list[Tensor]:
    """Find unit orders of `state` that bring it nearest to `reference` (Re-Basin, algorithm 1).

    Coordinate descent over layers; each layer is one linear assignment. Returns `orders` for
    `permute`. Deterministic: layers are visited in order until none improves.
    """
    from scipy.optimize import linear_sum_assignment  # half a CPU second that few processes need

    orders = [torch.arange(layer.units) for layer in chain]
    for _ in range(50):
        changed = False
        for index, layer in enumerate(chain):
            others = [o if i != index else torch.arange(o.numel()) for i, o in enumerate(orders)]
            moved = permute(state, chain, others)
            gain = _gain(reference, moved, layer)
            _, columns = linear_sum_assignment(gain.numpy(), maximize=True)
            order = torch.from_numpy(columns)
            was = orders[index]
            units = torch.arange(layer.units)
            if float(gain[units, order].sum()) > float(gain[units, was].sum()) * (1 + 1e-12) + 1e-9:
                orders[index], changed = order, True
        if not changed:
            break
    return orders


def _gain(reference: State, state: State, layer: Coupling) -> Tensor:
    """Inner products of every unit of `reference` with every unit of `state`, (units, units)."""
    gain = torch.zeros(layer.units, layer.units, dtype=torch.float64)
    for name in layer.rows:
        a = reference[name].double().reshape(layer.units, -1)
        gain += a @ state[name].double().reshape(layer.units, -1).T
    a, b = (
        s[layer.into].double().reshape(s[layer.into].shape[0], layer.units, -1)
        for s in (reference, state)
    )
    gain += torch.einsum("oik,ojk->ij", a, b)
    return gain


def align(reference: State, state: State, chain: Sequence[Coupling]) -> dict[str, Tensor]:
    """Permute `state`'s hidden units onto `reference`'s; its logits do not change."""
    return permute(state, chain, match(reference, state, chain)) if chain else dict(state)


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
