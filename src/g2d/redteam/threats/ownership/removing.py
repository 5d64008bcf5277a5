"""The ways to remove a mark, by name: each makes a network of the n-th stolen one.

How they work is in `g2d.attacks.removal`; here is what they are tried with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from g2d.attacks import removal
from g2d.core.types import State
from g2d.errors import SettingsError
from g2d.generator import hidden_units
from g2d.protect.watermark import InputForm, WatermarkKey, triggers_of
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.threats.ownership.stolen import Spent, Stolen
from g2d.tasks.inference import load_model, predict
from g2d.tasks.splits import Split

SOUP = 8
TUNED, COPIED = "tuned", "copied"
"""What a removal takes beside weights: labelled data to train on, or answers to learn from."""

Make = Callable[[Stolen, int], State]


@dataclass(frozen=True)
class Removal:
    """One way: what this thief does, by which algorithm, and what it takes beside the weights."""

    threat: str
    attack: str
    make: Make
    takes: str = ""


def _pruned(stolen: Stolen, index: int, part: float) -> State:
    return removal.pruned(stolen.state(index), part)


def _rounded(stolen: Stolen, index: int, bits: int) -> State:
    return removal.rounded(stolen.state(index), bits)


def _noised(stolen: Stolen, index: int, part: float) -> State:
    return removal.noised(stolen.state(index), part, stolen.draws(index))


def _disguised(stolen: Stolen, index: int) -> State:
    return removal.disguised(stolen.state(index), hidden_units(stolen.task), stolen.draws(index))


def _souped(stolen: Stolen, index: int) -> State:
    return removal.souped(removal.nearest(stolen.state(index), stolen.whole, SOUP))


def _tuned(stolen: Stolen, index: int, rate: float, overwrite: bool = False) -> State:
    return removal.fine_tuned(
        stolen.task, stolen.state(index), stolen.task.splits.train,
        steps=stolen.case.number("steps"), rate=rate, generator=stolen.draws(index),
        besides=thiefs_own(stolen) if overwrite else None,
    )  # fmt: skip


def _copied(stolen: Stolen, index: int, soft: bool) -> State:
    return removal.distilled(
        stolen.task, stolen.model(index), stolen.task.splits.train.x, soft=soft,
        steps=stolen.case.number("steps"), rate=stolen.context.spec.settings.population.rate / 3,
        seed=stolen.context.seed("thief", stolen.case.name, index),
    )  # fmt: skip


def thiefs_own(stolen: Stolen) -> Split:
    """Triggers of another key, as many as the owner's: what a thief overwrites the mark with."""
    number = stolen.context.seed("the thief's key")
    key, mark = WatermarkKey(number.to_bytes(32, "big")), stolen.mark
    form = InputForm.of(stolen.task)
    drawn = [triggers_of(key.of_set(place), form, size) for place, size in enumerate(mark.sizes)]
    x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return Split(x.to(mark.x.dtype), y.to(mark.y.dtype))


def _removals() -> dict[str, Removal]:
    found = {"nothing": Removal("a stolen network as it is", "none", lambda s, i: s.state(i))}
    for part in (0.3, 0.5, 0.8):
        attack = f"the smallest {part:.0%} of all weights set to zero"
        make: Make = partial(_pruned, part=part)
        found[f"pruned-{part:.0%}".rstrip("%")] = Removal("pruning", attack, make)
    for bits in (8, 4):
        attack = f"weights rounded to {bits} bits"
        found[f"int{bits}"] = Removal("quantising", attack, partial(_rounded, bits=bits))
    found["noise"] = Removal(
        "noise", "Gaussian, a tenth of each tensor's root mean square", partial(_noised, part=0.1)
    )
    found["disguised"] = Removal(
        "disguise", "hidden units permuted and rescaled: the same function", _disguised
    )
    found["soup"] = Removal(
        "collusion", f"the mean of the {SOUP} stolen generations that lie nearest", _souped
    )
    for rate in (1e-3, 3e-3, 1e-2):
        make = partial(_tuned, rate=rate)
        found[f"tuned-{rate:g}"] = Removal("fine-tuning", f"Adam at {rate:g}", make, TUNED)
    found["overwritten"] = Removal(
        "overwriting", "Adam at 0.001, with triggers of the thief's own key",
        partial(_tuned, rate=1e-3, overwrite=True), TUNED,
    )  # fmt: skip
    for name, soft in (("soft", True), ("hard", False)):
        learned = "probabilities" if soft else "labels"
        found[f"distilled-{name}"] = Removal(
            "distillation", f"a fresh network learns the {learned} that the stolen one answers",
            partial(_copied, soft=soft), COPIED,
        )  # fmt: skip
    return found


REMOVALS = _removals()


def removed(stolen: Stolen) -> list[Row]:
    """The rows of a removal: what the owner can still prove, and what the thief paid."""
    case, way = stolen.case, REMOVALS[stolen.case.name]
    attack = way.attack
    if steps := case.number("steps"):
        attack = f"{attack}, {steps:,} steps"
    try:
        states = [way.make(stolen, index) for index in range(len(stolen.networks))]
    except SettingsError as error:  # no chain of hidden units
        kinds = ("ownership-mark", "ownership-price")
        seed, extra = stolen.context.spec.seed, {"algorithm": case.name}
        return [
            not_measured(case.family, kind, way.threat, case.chain, attack, str(error),
                         seed=seed, extra=extra)
            for kind in kinds
        ]  # fmt: skip
    count = len(stolen.task.splits.train)
    spent = Spent(
        steps or None,
        examples=count if way.takes == TUNED else 0,
        queries=count if way.takes == COPIED else None,
    )
    return stolen.judged(way.threat, attack, states, spent, **_besides(stolen, states))


def _besides(stolen: Stolen, states: list[State]) -> dict[str, object]:
    """Of overwriting: how many of the thief's own triggers his copies hit."""
    if stolen.case.name != "overwritten":
        return {}
    own = thiefs_own(stolen)
    shares = [
        float((predict(load_model(stolen.task, state), own.x).argmax(1) == own.y).double().mean())
        for state in states
    ]
    mean = sum(shares) / len(shares)
    note = f"the copies carry {mean:.0%} of the thief's own mark"
    return {"extra": {"own_mark": mean}, "note": note}
