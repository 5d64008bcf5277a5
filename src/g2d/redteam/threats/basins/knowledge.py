"""What the basin-aware attacker knows: exposed networks, sorted into basins, and means of them.

Nothing here crafts or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2d.attacks.crafting import Functional
from g2d.attacks.eot import dirichlet
from g2d.core.types import Logits, State
from g2d.redteam.context import AttackContext, Network
from g2d.redteam.targets import as_logits
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.basins import basins_of
from g2d.weights.layout import differing, is_extra

_LOOKED_AT = 500  # examples on which the accuracy at a midpoint is taken
MOST = 6  # basins that are attacked, the most exposed first; each is one submission


@dataclass(frozen=True, eq=False)
class Basin:
    """Exposed networks of one basin, oldest first: their models and their tensors, stacked.

    Attributes:
        stacked: what they differ in. shared: what they do not, and what cannot be mixed.
        shell: the module that runs a mean of them. logits: False where it answers probabilities.
    """

    models: Sequence[Logits]
    stacked: dict[str, Tensor]
    shared: dict[str, Tensor]
    shell: nn.Module
    logits: bool = True

    @classmethod
    def of(
        cls, task: Task, models: Sequence[Logits], states: Sequence[State], logits: bool = True
    ) -> Basin:
        """Stack the tensors of networks that share a basin."""
        names = differing(states)
        there = [{n: t.to(task.device) for n, t in state.items()} for state in states]
        stacked = {name: torch.stack([state[name] for state in there]) for name in sorted(names)}
        shared = {n: t for n, t in there[0].items() if n not in names and not is_extra(n)}
        shell = task.placed(task.model(0).eval().requires_grad_(False))
        return cls(models, stacked, shared, shell, logits)

    def __len__(self) -> int:
        return len(self.models)

    def soup(self, generator: torch.Generator) -> Logits:
        """A mean of the networks by weights from Dirichlet(1, ..., 1): evenly over the simplex."""
        shares = dirichlet(len(self), generator)
        means = {name: _mean(tensor, shares) for name, tensor in self.stacked.items()}
        run = Functional(self.shell, self.shared | means)
        return run if self.logits else as_logits(run)

    def drawing(self, count: int, generator: torch.Generator) -> Callable[[], list[Logits]]:
        """Draw for each step of an attack: half of them networks as they are, half soups."""
        if len(self) == 1:
            return lambda: list(self.models)

        def draw() -> list[Logits]:
            whole = torch.randint(len(self), ((count + 1) // 2,), generator=generator).tolist()
            return [self.models[i] for i in whole] + [
                self.soup(generator) for _ in range(count // 2)
            ]

        return draw

    def fingerprint(self, x: Tensor) -> Tensor:
        """Mean log-probabilities (n, classes) of its networks on inputs (n, ...)."""
        return torch.stack([predict(model, x).log_softmax(1) for model in self.models]).mean(0)


def sort_into_basins(context: AttackContext, networks: Sequence[Network]) -> list[Basin]:
    """Exposed networks of a chain by basin; see `sort_states`.

    The guide split stands for data of the attacker's own: the examples that the attack is judged on
    have no part in it.
    """
    own = context.task.splits.guide.sample(_LOOKED_AT, context.source("basins", "sorting"))
    states: list[State] = [context.state(network) for network in networks]
    models = context.models(networks)
    return sort_states(context.task, models, states, own, logits=not context.remark)


def sort_states(
    task: Task, models: Sequence[Logits], states: Sequence[State], own: Split, logits: bool = True
) -> list[Basin]:
    """Networks by basin, the largest basins first and no more than `MOST`.

    By linear mode connectivity on data of the attacker's `own`.
    """
    groups: dict[int, list[int]] = {}
    for place, basin in enumerate(basins_of(task, states, split=own)):
        groups.setdefault(basin, []).append(place)
    largest = sorted(groups.values(), key=len, reverse=True)[:MOST]
    return [
        Basin.of(task, [models[i] for i in inside], [states[i] for i in inside], logits)
        for inside in largest
    ]


def recognised(target: Logits, basins: Sequence[Basin], x: Tensor) -> int:
    """The basin that a target answers most like: least mean KL from it to the fingerprint.

    Args:
        x: what the target is asked, one score query each.
    """
    own = predict(target, x).log_softmax(1)
    distances = [
        float((own.exp() * (own - basin.fingerprint(x))).sum(1).mean()) for basin in basins
    ]
    return min(range(len(basins)), key=distances.__getitem__)


def _mean(stacked: Tensor, shares: Tensor) -> Tensor:
    """The weighted mean over the first axis."""
    return torch.tensordot(shares.to(stacked), stacked, 1)
