"""What targets of robust aggregation reached, from the rows of all seeds. Knows no torch."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common.command import Result
from benchmarks.common.tables import NOTHING
from benchmarks.federated.deciding import Case, Cell, key_of
from g2d.attacks.byzantine import ATTACKS
from g2d.settings.federated import FederatedSettings

NONE, ALONE, LOCAL = "none", "server alone", "local only"
DEFAULT = FederatedSettings().rule


def name_of(alpha: float, f: int, attack: str, rule: str) -> str:
    """The key of a row."""
    return f"alpha {alpha:g} | f {f} | {attack} | {rule}"


def over_seeds(results: Sequence[Result], case: Case, split: str = "accuracy") -> list[float]:
    """A row's accuracies on the test split, or on the `gate` split, of all seeds that have it."""
    rows = [result["rows"].get(name_of(*case), {}) for result in results]
    return [row[split] for row in rows if split in row]


@dataclass(frozen=True)
class _Judge:
    results: Sequence[Result]
    given: Namespace

    def worst(self, cell: Cell, rule: str, split: str = "accuracy") -> float | None:
        """What a rule's worst attack leaves, as a mean over seeds; None: attacks are missing."""
        each = [over_seeds(self.results, (*cell, a, rule), split) for a in self.given.attacks]
        return min(map(statistics.mean, each)) if each and all(each) else None

    def least(self, cell: Cell, rule: str) -> float:
        """What the worst attack leaves on the worst seed."""
        each = [over_seeds(self.results, (*cell, attack, rule)) for attack in self.given.attacks]
        return min(map(min, each))

    def best(self, cell: Cell) -> tuple[str, float, str] | None:
        """The rule that is put to the target, what it reached, and how it was chosen."""
        before = {result.get("chosen", {}).get(key_of(cell)) for result in self.results}
        if len(before) == 1 and (rule := before.pop()) is not None:
            reached = self.worst(cell, rule)
            return None if reached is None else (rule, reached, "")
        robust = (rule for rule in self.given.rules if rule != "mean")
        gated = {rule: self.worst(cell, rule, "gate") for rule in robust}
        known = {rule: value for rule, value in gated.items() if value is not None}
        if not known:
            return None
        rule = max(known, key=lambda one: known[one])
        reached = self.worst(cell, rule)
        assert reached is not None, "what has the one has the other"
        return rule, reached, "; chosen on the same seeds"

    def told(self, cell: Cell, beside: Sequence[float], name: str) -> str:
        found = self.best(cell)
        if found is None or not beside:
            return NOTHING
        rule, reached, how = found
        control = statistics.mean(beside)
        text = f"{100 * reached:.1f} % ({rule}), {100 * (reached - control):+.1f} points to {name}"
        text += (
            f"; worst seed {100 * self.least(cell, rule):.1f} %" if len(self.results) > 1 else ""
        )
        default = self.worst(cell, DEFAULT)
        if default is not None and rule != DEFAULT:
            away = f"{100 * (default - control):+.1f}"
            text += f"; {DEFAULT} (default) {100 * default:.1f} %, {away}"
        if refused := self.refused(cell, rule):
            text += f"; {refused}"
        if len(self.given.attacks) < len(ATTACKS):
            text += f"; of {len(self.given.attacks)} of {len(ATTACKS)} attacks alone"
        return text + how

    def refused(self, cell: Cell, rule: str) -> str:
        """Of how many seeds the product refuses some base of the rule: its gate accuracy is below
        that of the server's records alone, which the refusal names."""
        judged, below = 0, 0
        for result in self.results:
            own = result["controls"].get(f"{cell[0]:g}", {}).get(ALONE, {}).get("gate")
            each = [over_seeds([result], (*cell, a, rule), "gate") for a in self.given.attacks]
            if own is not None and all(each):
                judged, below = judged + 1, below + (min(min(one) for one in each) < own)
        return f"refused, with both figures, on {below} of {judged} seeds" if below else ""

    def alone(self, alpha: float) -> list[float]:
        kept = [r["controls"].get(f"{alpha:g}", {}).get(ALONE) for r in self.results]
        return [one["accuracy"] for one in kept if one]

    def honest(self, alpha: float) -> list[float]:
        return over_seeds(self.results, (alpha, 0, NONE, "mean"))


def targets(results: Sequence[Result], given: Namespace) -> list[list[object]]:
    """What was wanted, and what one rule reached against its worst attack, on the test split.

    Which rule, another seed has decided (`deciding`); where none has, the gate split of these: the
    one whose worst attack leaves most there, which nobody who trains can know. The default rule
    stands beside it.
    """
    judge, honest = _Judge(results, given), "honest averaging"
    return [
        ["f = 4, alpha 0.5, worst attack", "within 2 points of honest averaging",
         judge.told((0.5, 4), judge.honest(0.5), honest)],
        ["f = 8, even split", "within 3 points",
         judge.told((0.0, 8), judge.honest(0.0), honest)],
        ["f = 8, alpha 0.5", "ahead of server data alone, or refused",
         judge.told((0.5, 8), judge.alone(0.5), ALONE)],
        ["f = 8, alpha 0.1", "ahead of server data alone, or refused",
         judge.told((0.1, 8), judge.alone(0.1), ALONE)],
    ]  # fmt: skip
