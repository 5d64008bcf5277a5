"""What a gate is given and what it answers; which gates there are is listed in the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from g2d.attacks import pgd
from g2d.attacks.crafting import craft
from g2d.core.types import Bounds, State
from g2d.generator import Exposure
from g2d.protect.watermark.mark import Mark
from g2d.settings import GateSettings
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.weights.layout import is_number
from g2d.weights.symmetry import Coupling


@dataclass(frozen=True)
class GateResult:
    """One gate's verdict. `value` is what was measured, `limit` what it was held against.

    `title` is how people are told of it ("": by the gate's name); `share`: value and limit are
    shares of one, and shown in percent. `n`: on how many examples it was measured; 0: on none.
    """

    gate: str
    passed: bool
    value: float
    limit: float
    reason: str = ""
    title: str = ""
    share: bool = False
    n: int = 0

    def entry(self) -> dict[str, Any]:
        """Plain values as a manifest keeps them; how it is shown only where the gate says so."""
        plain = asdict(self)
        shown = {key: plain.pop(key) for key in ("title", "share", "n")}
        return plain | {key: value for key, value in shown.items() if value}


@dataclass(frozen=True)
class Reference:
    """What a candidate is compared with: the base's correctness on the gate split, (n,) bool.

    `eps` and `bounds` are the task's attack budget (inf-norm) and data range, for the robust gate;
    with the `task` it is attacked as that says. `added`: how many examples at the end of the split
    a refresh has added, each part of which is judged by itself, too; 0: none. `pre_activations`:
    the largest magnitude that the split brings to each polynomial of the base, by layer.
    """

    split: Split
    base_correct: Tensor
    classes: int
    eps: float = 0.0
    bounds: Bounds = None
    task: Task | None = None
    added: int = 0
    pre_activations: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CandidateView:
    """A candidate as every gate sees it: what is measured once is measured for all of them.

    `model` is the forward pass of `state`, in evaluation mode. `exposures` are those whose attacks
    are remembered, `exposed_states` every exposed generation that distance counts, by number.
    `chain` are the verified couplings of hidden units, for alignment. `scope` names the tensors
    that move, of which alone parameters are judged; None: every floating tensor.
    `mark` are the triggers of the vault's watermark, if it has one.
    """

    state: State
    model: nn.Module
    reference: Reference
    exposures: Sequence[Exposure]
    exposed_states: Mapping[int, State]
    chain: Sequence[Coupling]
    settings: GateSettings
    scope: frozenset[str] | None = None
    mark: Mark | None = None

    @cached_property
    def moving(self) -> dict[str, Tensor]:
        """The candidate's tensors that count: those in scope, by name."""
        return {
            name: tensor
            for name, tensor in self.state.items()
            if is_number(tensor) and (self.scope is None or name in self.scope)
        }

    @cached_property
    def logits(self) -> Tensor:
        """The candidate's logits (n, classes) on the gate split."""
        return predict(self.model, self.reference.split.x)

    @cached_property
    def under_pgd(self) -> tuple[Tensor, Tensor]:
        """Which of `pool` gate examples the candidate gets right: clean, and after PGD on it; bool.

        Every candidate meets the same examples and random starts: one that barely failed is not
        saved by another draw.
        """
        draws, reference = torch.Generator().manual_seed(0), self.reference
        some = reference.split.sample(self.settings.pool, draws)
        eps, steps = reference.eps, self.settings.pool_steps
        if reference.task is not None:
            attacked = craft(
                reference.task, self.model, some.x, some.y, eps=eps, steps=steps, generator=draws
            )
        else:
            attacked = pgd(
                self.model, some.x, some.y, eps=eps, steps=steps, generator=draws,
                bounds=reference.bounds,
            )  # fmt: skip
        clean = predict(self.model, some.x).argmax(1) == some.y
        return clean, (predict(self.model, attacked).argmax(1) == some.y) & clean

    @cached_property
    def correct(self) -> Tensor:
        """Which examples of the gate split the candidate gets right, (n,) bool."""
        return self.logits.argmax(1) == self.reference.split.y


class Gate(Protocol):
    """Judges a candidate. A pure function: the same view gives the same result."""

    def __call__(self, view: CandidateView) -> GateResult | None:
        """Measure; None where the settings do not ask for this gate.

        Where it does not pass, `reason` gives what was measured and what is allowed.
        """
        ...
