"""The rows that decide the targets of robust aggregation, and which rule each target is put to.

A deployer knows how many clients may be malicious, and has to take a rule before any attack comes.
So the rule of each target is chosen on a seed that no target is judged by: the one whose worst
attack leaves most on the gate split. Which it is, is found without measuring all rows: a rule is
left as soon as one attack leaves less than another rule's worst, which changes nothing of the
choice. Knows no torch; who measures a row is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.common.command import Result

Cell = tuple[float, int]
Case = tuple[float, int, str, str]
"""Of a row: alpha, f, attack, rule."""
Measure = Callable[[Case], Result]

WANTED: tuple[Cell, ...] = ((0.5, 4), (0.0, 8), (0.5, 8), (0.1, 8))
"""Split and f of every target; each is held against averaging without f, or the server alone."""
HONEST = (0.0, 0.5)
"""Splits of which averaging without malicious clients is a control."""
ORDER = ("alie", "min-max", "ipm", "label-flip", "sign-flip", "backdoor")
"""Attacks by how much harm they were seen to do: the sooner a rule falls, the less is measured."""
AGAINST_MEAN = ("sign-flip", "backdoor")
"""Attacks that the plain mean is put to as a control: below chance none could bring it."""
CHOSEN_ON = 100
"""The seed that rules are chosen on."""


def key_of(cell: Cell) -> str:
    """A cell's name in JSON."""
    return f"alpha {cell[0]:g} | f {cell[1]}"


def chosen(
    cell: Cell, rules: Sequence[str], attacks: Sequence[str], measure: Measure
) -> tuple[str, float] | None:
    """The rule of a cell whose worst attack leaves most, and how much; None: all refuse so many.

    Args:
        measure: of a row the accuracy on the gate split, as `gate`; without one, it was refused.
    """
    best: tuple[str, float] | None = None
    for rule in rules:
        worst = _worst(cell, rule, attacks, measure, -1.0 if best is None else best[1])
        if worst is not None:
            best = rule, worst
    return best


def _worst(
    cell: Cell, rule: str, attacks: Sequence[str], measure: Measure, least: float
) -> float | None:
    """What a rule's worst attack leaves; None as soon as it is no more than `least`."""
    worst = 2.0
    for attack in sorted(attacks, key=_place):
        worst = min(worst, measure((*cell, attack, rule)).get("gate", -1.0))
        if worst <= least:
            return None
    return worst


def _place(attack: str) -> int:
    return ORDER.index(attack) if attack in ORDER else len(ORDER)


def deciding(
    choice: Mapping[str, str], default: str, attacks: Sequence[str], alphas: Sequence[float]
) -> Iterator[Case]:
    """The rows of one seed that decide all targets: the chosen rule, the default, the controls."""
    for alpha in HONEST:
        if alpha in alphas:
            yield alpha, 0, "none", "mean"
    for cell in WANTED:
        if cell[0] not in alphas:
            continue
        for rule in dict.fromkeys((choice.get(key_of(cell), default), default)):
            yield from ((*cell, attack, rule) for attack in attacks)
        yield from ((*cell, attack, "mean") for attack in attacks if attack in AGAINST_MEAN)


def cost(result: Result) -> float:
    """CPU minutes of a result's rows and controls."""
    rows = [*result.get("rows", {}).values()]
    rows += [control for each in result.get("controls", {}).values() for control in each.values()]
    return sum(float(row.get("cpu_seconds", 0.0)) for row in rows if row) / 60
