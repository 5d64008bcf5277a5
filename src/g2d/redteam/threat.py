"""A threat: one object that says what an attacker tries, plans its cases and runs them.

Which threats there are does not live here: `g2d.redteam.threats` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from g2d.errors import SettingsError
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Identifiers, Row
from g2d.tasks.attack import BALL, NONE
from g2d.tasks.task import Task

CONTROLS = frozenset({"retrained", "soup", "noise", "permuted"})


@dataclass(frozen=True)
class CurveStyle:
    """How the page draws the curves of a threat's rows (`extra["curve"]`); plain values.

    Attributes:
        x: key of a point's place; `across` and `upwards` label the axes. by: what keeps panels
            apart: keys of a row, or "control" (the defence and what it replaces share a panel).
        title: of the page's section. reads: how to read it. hides: what it does not show.
    """

    x: str
    by: tuple[str, ...]
    across: str
    title: str
    reads: str
    hides: str
    upwards: str = "attack success rate"


@dataclass(frozen=True)
class Threat:
    """What one attacker tries. Its functions are pure: the same spec, case and seed, the same rows.

    Functions of modules, so that workers can be sent the threat.

    Attributes:
        name: key of the family, unlike any other; its cases and rows carry it. title: for people.
        question: what it asks, one sentence. ids: what it is called in other catalogues.
        plan: the cases to run on the chains of a spec; none where nothing can be tried.
        run: a case's rows. What it raises becomes a row that says so.
        merge: what rows of several cases say together. on_service: cases against a live service of
            an address and a model's name; None: it needs a vault.
        chains: networks that are made for it beside the generated, the frozen and the unrotated.
        curve: how its curves are drawn; None: it has none.
        fits: kinds of tasks, beside those attacked in the ball of eps, whose cases it can run:
            'tokens' and 'own' where it crafts by `attacks.crafting`, 'none' where it attacks no
            inputs. What does not fit becomes one row that says "not measured".
        numbers: it needs inputs that are numbers, and no ball: `fits` holds where they are.
    """

    name: str
    title: str
    question: str
    ids: Identifiers
    plan: Callable[[RunSpec], list[Case]]
    run: Callable[[Case, AttackContext], list[Row]]
    merge: Callable[[Sequence[Row]], list[Row]] = list
    on_service: Callable[[RunSpec, str, str], list[Case]] | None = None
    chains: frozenset[str] = frozenset()
    curve: CurveStyle | None = None
    fits: frozenset[str] = frozenset()
    numbers: bool = False

    @property
    def module(self) -> str:
        """The module that decides its rows, with whatever that imports."""
        return self.run.__module__

    def unfit(self, task: Task) -> str:
        """Why it cannot be tried on a task; "" where it can."""
        kind = task.attack_kind
        if kind == BALL:
            return ""
        if kind in self.fits and (task.splits.guide.x.is_floating_point() or not self.numbers):
            return ""
        if kind == NONE and not self.numbers:
            return f"task {task.name!r} says attack = 'none': nothing attacked it"
        if not task.splits.guide.x.is_floating_point():
            return "it needs inputs that are numbers, and those of this task are token ids"
        return (
            f"it searches in the ball of eps, and this task has another limit: {task.attack_words}"
        )

    def plan_service(self, spec: RunSpec, url: str, model: str) -> list[Case]:
        """Return the cases against a live service.

        Raises:
            SettingsError: this threat needs a vault.
        """
        if self.on_service is None:
            raise SettingsError(f"{self.name!r} cannot be tried on a service, only on a vault")
        return self.on_service(spec, url, model)

    def as_json(self) -> dict[str, Any]:
        """Return what pages tell of it, as plain values (docs/results.md, `families`)."""
        return {
            "name": self.name,
            "title": self.title,
            "question": self.question,
            "identifiers": asdict(self.ids),
            "curve": asdict(self.curve) if self.curve else None,
        }
