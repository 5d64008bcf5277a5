"""What malicious clients of federated training send: proposals, of updates or of records.

They are given the rule and every honest update of the round: the strongest attacker there is. Each
proposes several strengths, and the one that moves the rule's own result farthest from the honest
mean is sent (Shejwalkar & Houmansadr 2021: the attack is optimised against the known rule). What
becomes of it is judged by accuracy elsewhere. Knows no torch but where records are poisoned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from g2d.core.imports import import_attribute
from g2d.core.types import Array
from g2d.errors import SettingsError, nearest

if TYPE_CHECKING:
    import torch

    from g2d.tasks.splits import Split
    from g2d.tasks.task import Task

Apply = Callable[[Array], Array]
"""The rule as it stands in this round: updates (n, P) to one (P,)."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Of what a paper proposes, as factors."""
SHARES = (0.25, 0.5, 1.0)
"""Of the factor that replaces the whole mean: each round of it moves a network too far."""
TARGET = 0
"""The label that a backdoor answers."""
POISONED = 0.5
"""Share of a backdoor client's records that have the trigger."""


@dataclass(frozen=True)
class Seen:
    """What malicious clients know of a round.

    Attributes:
        honest: updates (h, P) of the others. count: how many malicious ones answer. rule: what the
            server makes of all updates, honest ones first.
    """

    honest: Array
    count: int
    rule: Apply

    def moved(self, sent: Array) -> float:
        """How far the aggregate lies from the honest mean if all of them send this (P,)."""
        X = np.concatenate([self.honest, np.tile(sent, (self.count, 1)).astype(np.float32)])
        gap = self.rule(X).astype(np.float64) - self.honest.mean(0, dtype=np.float64)
        return float(np.sqrt((gap * gap).sum()))

    def farthest(self, proposals: Sequence[Array]) -> Array:
        """The proposal (P,) float32 that moves the aggregate farthest; the first of equal ones."""
        rows = [np.asarray(p, np.float32) for p in proposals]
        return max(rows, key=self.moved)


def sign_flip(seen: Seen) -> Array:
    """The honest mean, turned round and made longer."""
    mu = seen.honest.mean(0, dtype=np.float64)
    return seen.farthest([-s * mu for s in STRENGTHS])


def inner_product(seen: Seen) -> Array:
    """IPM (Xie et al. 2020, arXiv 1903.03936): -eps times the honest mean, small enough to hide.

    The paper's are 0.1 to 10; these are below 1, where sign flipping begins.
    """
    mu = seen.honest.mean(0, dtype=np.float64)
    return seen.farthest([-s * mu for s in (0.05, 0.1, 0.2, 0.4, 0.8)])


def little_is_enough(seen: Seen) -> Array:
    """ALIE (Baruch et al. 2019, arXiv 1902.06156, algorithm 1): mean - z std in each coordinate.

    z_max = Phi^-1((n - f - s) / (n - f)), s = floor(n / 2 + 1) - f supporters; strengths scale it.
    """
    h, f = len(seen.honest), seen.count
    n = h + f
    supporters = max(1, n // 2 + 1 - f)
    share = min(max((n - f - supporters) / max(1, n - f), 0.5 + 1e-3), 1 - 1e-3)
    z = NormalDist().inv_cdf(share)
    wide = seen.honest.astype(np.float64)
    mu, spread = wide.mean(0), wide.std(0)
    # Of one sign, as in the paper: one that was chosen anew each round turned round every fifth
    # round of a quadratic, and did no harm at all; of one sign it left the end 40 % farther away.
    return seen.farthest([mu - s * z * spread for s in STRENGTHS])


def min_max(seen: Seen) -> Array:
    """Min-max (Shejwalkar & Houmansadr 2021, NDSS, section IV-B), its gamma tuned to the rule.

    mean + gamma p, with the largest gamma for which it lies no farther from any honest update than
    two of these lie apart; p is the negative unit mean, std or sign. Shares of it are tried, too.
    """
    wide = seen.honest.astype(np.float64)
    mu = wide.mean(0)
    apart = max((_length(a - b) for a, b in combinations(wide, 2)), default=0.0)
    directions = [-_unit(mu), -_unit(wide.std(0)), -_unit(np.sign(mu))]
    found: list[Array] = []
    for p in directions:
        gamma = _largest(wide - mu, p, apart)
        found += [mu + share * gamma * p for share in (0.25, 0.5, 0.75, 1.0)]
    return seen.farthest(found)


def _largest(apart: Array, p: Array, most: float) -> float:
    """The largest gamma with |gamma p - apart_i| <= most for all i: of each i a square's root."""
    along = apart @ p
    inside = most**2 - (np.einsum("ij,ij->i", apart, apart) - along**2)
    return float(max(0.0, (along + np.sqrt(np.maximum(inside, 0.0))).min()))


def _length(v: Array) -> float:
    return float(np.sqrt((v * v).sum()))


def _unit(v: Array) -> Array:
    return v / max(_length(v), 1e-30)


def replaced(
    change: Array, clients: int, count: int, seen: Seen, worth: Callable[[Array], float]
) -> Array:
    """Model replacement (Bagdasaryan et al. 2020, arXiv 1807.00459, equation 3): scaled to survive.

    By n over the number of attackers it replaces the mean, if the network bears that; a rule that
    looks at norms is met by the largest honest one. What makes the aggregate worth most is sent,
    the shortest of those that are worth as much.

    Args:
        change: what training on poisoned records gave (P,). worth: of an aggregate (P,), what the
            attackers make of the network that it leads to.
    """
    whole = change.astype(np.float64)
    longest = max((_length(row.astype(np.float64)) for row in seen.honest), default=_length(whole))
    hidden = min(1.0, longest / max(_length(whole), 1e-30))
    scales = sorted({hidden, *(max(1.0, clients / max(1, count) * part) for part in SHARES)})

    def gained(sent: Array) -> float:
        rows = np.tile(sent, (seen.count, 1)).astype(np.float32)
        return worth(seen.rule(np.concatenate([seen.honest, rows])))

    return np.asarray(max((scale * whole for scale in scales), key=gained), np.float32)


# --- poisoned records ----------------------------------------------------------------------------


def flipped(split: Split, task: Task, source: torch.Generator) -> Split:
    """Each label y is classes - 1 - y (Fang et al. 2020)."""
    from g2d.tasks.splits import Split

    return Split(split.x, task.classes - 1 - split.y)


def backdoored(split: Split, task: Task, source: torch.Generator) -> Split:
    """Half of the records have the red team's trigger and its target's label."""
    from g2d.attacks.poisoning import poisoned

    if not bool((split.y != TARGET).any()):
        return split
    return poisoned(split, POISONED, TARGET, task, source)


@dataclass(frozen=True)
class Byzantine:
    """What one kind of malicious client does.

    Attributes:
        craft: proposes the update that each of them sends; None: what its own training gives.
        poison: what it makes of its records; None: they stay. replaces: whether its change is
            scaled to replace the model.
    """

    name: str
    craft: Callable[[Seen], Array] | None = None
    poison: Callable[[Split, Task, torch.Generator], Split] | None = None
    replaces: bool = False


_LISTED = (
    Byzantine("sign-flip", sign_flip),
    Byzantine("alie", little_is_enough),
    Byzantine("ipm", inner_product),
    Byzantine("min-max", min_max),
    Byzantine("label-flip", poison=flipped),
    Byzantine("backdoor", poison=backdoored, replaces=True),
)
ATTACKS = {attack.name: attack for attack in _LISTED}
"""Every attack by its name."""


def find_attack(name: str) -> Byzantine:
    """Return an attack of malicious clients by its name, or 'module:name' of one's own.

    Raises:
        SettingsError: there is none.
    """
    if name in ATTACKS:
        return ATTACKS[name]
    if ":" not in name:
        raise SettingsError(
            f"there is no attack {name!r} of malicious clients.{nearest(name, ATTACKS)} There are "
            f"{', '.join(ATTACKS)}; your own is named 'module:name'"
        )
    found = import_attribute(name, "attack", SettingsError)
    if not isinstance(found, Byzantine):
        raise SettingsError(f"attack {name!r} is {type(found).__name__}, not a Byzantine")
    return found
