"""The census of single bit flips: which share of a model's parameters has one flip that ruins it.

The measure of Hong et al. 2019 (arXiv 1906.01017). Flips are proposed by `attacks.bitflip` and
judged here, each by forward passes over the whole split. Searches for several flips that work
together do not live here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from g2d.attacks.bitflip import Flip, Quantised, code_flips, draw_places, float_flips
from g2d.core.types import State
from g2d.errors import SettingsError
from g2d.protect.ranges import Ranges
from g2d.redteam.scoring import Rate, share
from g2d.tasks.building import build_model, is_hooked
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.weights.checkpoints import check_state


@dataclass(frozen=True)
class WorstFlip:
    """The costliest flip found of one parameter.

    Attributes:
        lost: points of accuracy, 1 is all. Above the threshold it is that of the first such flip,
            where the search ended. flip: None where no flip changes the weight that acts.
    """

    tensor: str
    index: int
    flip: Flip | None
    lost: float


@dataclass(frozen=True)
class Census:
    """What single flips cost, parameter by parameter.

    Attributes:
        accuracy: before any flip. fragile: share of parameters with a flip that costs more than
            `threshold` in points of accuracy. relative: the same of the accuracy before (Hong et
            al.), never less. tolls: one for each parameter drawn. passes: over the split.

    The intervals of `fragile` and `relative` cover the draw of parameters, not the choice of
    examples, nor the luck of one network.
    """

    accuracy: Rate
    threshold: float
    fragile: Rate
    relative: Rate
    tolls: tuple[WorstFlip, ...]
    passes: int


def flip_census(
    model: nn.Module,
    state: State | Quantised,
    split: Split,
    *,
    parameters: int,
    generator: torch.Generator,
    limits: Ranges | None = None,
    threshold: float = 0.10,
) -> Census:
    """Flip every bit of a sample of parameters, one at a time, and take each one's worst flip.

    Flips are tried from the largest change of the weight to the smallest and end at the first that
    costs more than the threshold: that alone cannot change a verdict. Flips that come to the same
    weight are judged once.

    Args:
        model: the architecture; a copy in evaluation mode is flipped, the model stays as it is.
        state: float32 (32 bits each; drawn from every parameter of one axis or more), or stored in
            8 bits (drawn from the weights that are; biases are not).
        parameters: how many are drawn, evenly and without repetition; all, if there are fewer.
        limits: clamp the flipped weight as `protect.ranges.guard` does; None: no clamps.
        threshold: of accuracy, 0.1 is ten points.

    Raises:
        CheckpointError: the state does not fit the model, or the limits do not fit the state.
        SettingsError: nothing can be drawn, a parameter is not float32, no example is given, or the
            threshold is not a share.
    """
    if parameters < 1 or not len(split) or not 0 < threshold < 1:
        raise SettingsError(
            f"a census needs parameters >= 1, examples and a threshold between 0 and 1, not "
            f"{parameters}, {len(split)} and {threshold}"
        )
    bench = _Bench(model, state, split, limits)
    places = draw_places(bench.sizes, parameters, generator)
    # Tensor by tensor: what lies before a flipped layer is computed once.
    found = {place: bench.toll(*place, threshold) for place in sorted(places)}
    tolls = tuple(found[place] for place in places)
    before = share(bench.before, len(split))
    fragile = sum(_more(toll.lost, threshold) for toll in tolls)
    relative = sum(_more(toll.lost, threshold * before.value) for toll in tolls)
    return Census(
        before,
        threshold,
        share(fragile, len(tolls)),
        share(relative, len(tolls)),
        tolls,
        bench.passes,
    )


def _plain_sequence(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a forward pass is its children's, one after another: no hook (a guard) acts on all.

    A subclass may do anything in its own forward.
    """
    changed = is_hooked(model) or "forward" in vars(model)
    return type(model) is nn.Sequential and not changed


def _cut(model: nn.Sequential, at: int) -> tuple[nn.Sequential, nn.Sequential]:
    layers = list(model)
    first = nn.Sequential(*layers[:at])
    build_model(lambda: first)  # its first layer may change the examples in place
    return first, nn.Sequential(*layers[at:])


_KEPT = 2000  # examples whose activations are kept: one batch of `predict`


def _more(lost: float, threshold: float) -> bool:
    """Whether a loss exceeds the threshold: 35 examples of 350 are not more than 0.1."""
    return lost > threshold + 1e-9


class _Bench:
    """A copy of the model whose weights are flipped, judged and put back one by one."""

    def __init__(
        self, model: nn.Module, state: State | Quantised, split: Split, limits: Ranges | None
    ) -> None:
        plain = state.state() if isinstance(state, Quantised) else state
        check_state(model.state_dict(), plain, "the state")
        if limits is not None:
            limits.check(plain)
        self._model, self._split = copy.deepcopy(model).eval().requires_grad_(False), split
        self._model.load_state_dict(plain)
        self._stored = state if isinstance(state, Quantised) else None
        self._limits = limits
        self._weights = {
            name: weight
            for name, weight in self._model.named_parameters()
            if weight.is_floating_point() and weight.dim() and weight.numel()
            if self._stored is None or name in self._stored.codes
        }
        if not self._weights:
            raise SettingsError("the model has no floating parameters to flip; check its state")
        if other := {str(w.dtype) for w in self._weights.values()} - {"torch.float32"}:
            raise SettingsError(f"a census needs float32 parameters, not {', '.join(other)}")
        self.sizes = {name: weight.numel() for name, weight in self._weights.items()}
        self.passes = 0
        self._entry, self._tail, self._entering = "", self._model, split.x
        self.before = self._right()

    def _enter(self, name: str) -> None:
        """Judge from the layer of a sequential model that holds a tensor; what enters it is kept.

        Two thirds of a small CNN's weights lie behind its convolutions: a flip there costs a
        fortieth of a whole pass.
        """
        entry, model = name.partition(".")[0], self._model
        if entry == self._entry:
            return
        self._entry, self._tail, self._entering = entry, model, self._split.x
        if not _plain_sequence(model) or len(self._split) > _KEPT or entry not in model._modules:
            return
        before, after = _cut(model, list(model._modules).index(entry))
        try:
            entering = predict(before, self._split.x)
            given = entering.clone()
            right = int((predict(after, entering).argmax(1) == self._split.y).sum())
        except (TypeError, RuntimeError):  # what passes between the layers is no batch of examples
            return
        # A layer may change what it is given in place.
        if right == self.before and torch.equal(given, entering):
            self._tail, self._entering = after, entering

    def _right(self) -> int:
        """How many examples the copy classifies correctly as it stands."""
        self.passes += 1
        logits = predict(self._tail, self._entering)
        return int((logits.argmax(1) == self._split.y).sum())

    def toll(self, name: str, index: int, threshold: float) -> WorstFlip:
        """Find the costliest flip of one parameter, up to the first above the threshold."""
        weight, worst = self._weights[name], WorstFlip(name, index, None, 0.0)
        self._enter(name)
        place = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), weight.shape))
        old = weight[place].clone()
        try:
            for bit, value in self._values(name, index, old):
                weight[place] = value
                lost = (self.before - self._right()) / len(self._split)
                if worst.flip is None or lost > worst.lost:
                    worst = WorstFlip(name, index, Flip(name, index, bit), lost)
                if _more(lost, threshold):
                    break
        finally:
            weight[place] = old
        return worst

    def _values(self, name: str, index: int, old: Tensor) -> list[tuple[int, Tensor]]:
        """What single flips make of a weight, each value once, the largest change first."""
        if self._stored is None:
            values = float_flips(old.view(1))[0]
        else:
            code = self._stored.codes[name].reshape(-1)[index]
            values = code_flips(code.view(1), self._stored.scales[name])[0]
        if self._limits is not None:
            self._limits.hold(name, values)
        change = (values.double() - old.double()).abs().nan_to_num(torch.inf, torch.inf)
        same = int(old.view(torch.int32))
        found: dict[int, tuple[int, Tensor]] = {}
        for bit in change.argsort(descending=True, stable=True).tolist():
            raw = int(values[bit].view(torch.int32))
            if raw != same:  # clamped to what it was: nothing acts
                found.setdefault(raw, (bit, values[bit]))
        return list(found.values())
