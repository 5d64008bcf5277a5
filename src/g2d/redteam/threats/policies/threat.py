"""Serving policies: does it help who queries that a service has several generations live?

Every policy is attacked by the same searches, on the same images, beside a service that never
rotates. A search is `searches`, a vote under other attacks `voting`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from g2d.attacks.tables import is_region
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.policies.attackers import ATTACKERS
from g2d.redteam.policies.schemes import (
    EVERY,
    LIVE,
    NAMES,
    TOGETHER,
    options_of,
    scheme_of,
    words_of,
)
from g2d.redteam.rows import Identifiers, Row, Status, not_measured
from g2d.redteam.scoring import difference
from g2d.redteam.threat import CurveStyle, Threat
from g2d.redteam.threats.policies.searches import Searches, kind_of
from g2d.redteam.threats.policies.voting import Voting

VOTE = "vote"
_SQUARES = ("clock", "margin", "accounts-5", "accounts-20", "inferred")
_FORMED = ("never", "global", "sticky", "sticky-pinned")  # what is tried with other answers, too
_IMAGES, _BUDGET = 40, 5_000


def plan(spec: RunSpec) -> list[Case]:
    """Every search under every policy; other forms of answers under some; votes."""
    if "generated" not in spec.chains:
        return []
    size = {"images": _IMAGES, "budget": _BUDGET, "every": EVERY, "live": LIVE, "steps": 100}
    if spec.quick:
        size = {"images": 12, "budget": 100, "every": 25, "live": 2, "steps": 10}
    cases = [case for case in cases_of(spec, size) if _is_worth(case)]
    return [case for case in cases if not spec.quick or _is_quick(case)]


def _is_worth(case: Case) -> bool:
    """Whether `g2d attack` takes the time; the benchmark takes it for all.

    No service has `TOGETHER`. Accounts are asked where the account decides who answers, and where
    nothing rotates, beside that; elsewhere they hear what one account hears, and pay for it. Who
    infers the clock of a vote hears what all who ask hear, as of `global`.
    """
    scheme = str(case.option("scheme"))
    if case.name.startswith("accounts"):
        return scheme == "never" or (case.option("policy") == "sticky" and scheme != TOGETHER)
    return scheme != TOGETHER and not (case.name == "inferred" and scheme.startswith(VOTE))


def cases_of(spec: RunSpec, size: dict[str, int]) -> list[Case]:
    """All cases of a size: `images`, `budget`, `every`, `live` (networks at once) and `steps`.

    Among them those of a scheme that no service has, for benchmarks.
    """
    cases = [case for scheme in NAMES for case in searches_of(spec, scheme, size)]
    for scheme in _FORMED:
        cases += [_case(spec, "clock", scheme, told, size) for told in ("rounded", "aaa", "label")]
        cases.append(_case(spec, "labels", scheme, "label", size))
    return cases + [_vote(spec, count, size) for count in (3, 5)]


def searches_of(spec: RunSpec, scheme: str, size: dict[str, int]) -> list[Case]:
    """Every Square under one scheme."""
    return [_case(spec, name, scheme, "scores", size) for name in _SQUARES]


def _is_quick(case: Case) -> bool:
    """A smoke test: the clock's Square under each policy that differs in kind, and one vote."""
    if case.name == VOTE:
        return case.number("live") == 3
    told = (str(case.option("scheme")), str(case.option("answers")))
    return case.name == "clock" and told in {
        ("never", "scores"), ("global", "scores"), ("sticky-pinned", "scores"),
    }  # fmt: skip


def _reads(spec: RunSpec) -> tuple[str, ...]:
    return ("generated", *(name for name in ("draws",) if name in spec.chains))


def _case(spec: RunSpec, name: str, scheme: str, told: str, size: dict[str, int]) -> Case:
    images = min(size["images"], 20) if ATTACKERS[name].labels else size["images"]
    options = (
        *options_of(scheme, told, size["every"], size["live"]),
        ("width", size["live"]), ("images", images), ("budget", size["budget"]),
    )  # fmt: skip
    cost = images * size["budget"] / (8_000 if ATTACKERS[name].labels else 25_000)
    votes = int(dict(options)["live"]) if scheme.startswith(VOTE) else 1
    return Case("policies", name, "generated", options, _reads(spec), cost=cost * (1 + votes) / 2)


def _vote(spec: RunSpec, count: int, size: dict[str, int]) -> Case:
    options = (
        ("scheme", f"vote-{count}"), ("policy", "vote"), ("live", count), ("answers", "scores"),
        ("every", 0), ("images", size["images"]), ("budget", size["budget"]),
        ("steps", size["steps"]),
    )  # fmt: skip
    own = tuple(name for name in ("attacker",) if name in spec.chains)
    cost = size["images"] * (size["budget"] / 40_000 + size["steps"] / 500) * 2 * count
    return Case("policies", VOTE, "generated", options, ("generated", *own), cost=cost)


def run(case: Case, context: AttackContext) -> list[Row]:
    """Search under one scheme, or attack one vote."""
    if case.name == VOTE:
        return Voting(case, context).rows()
    if why := _unfit(case, context):
        target = words_of(scheme_of(case))
        words = (f"{target}: {ATTACKERS[case.name].knows}", target, ATTACKERS[case.name].attack)
        seed = context.spec.seed
        return [not_measured("policies", kind_of(case), *words, why, chain=case.chain, seed=seed)]
    return Searches(case, context).rows()


def _unfit(case: Case, context: AttackContext) -> str:
    """Why ART's attack on labels does not apply; our Square asks for neither images nor a range."""
    if not ATTACKERS[case.name].labels:
        return ""
    if is_region(context.bounds) or context.bounds is None:
        return "HopSkipJump needs one range for all features; the Square is run on labels, too"
    shape = tuple(context.examples(1).x.shape[1:])
    if len(shape) != 3 or min(shape[1:]) < 3:
        return f"ART's attacks are set up for images (channels, H, W), not for {shape}"
    return ""


def merge(rows: Sequence[Row]) -> list[Row]:
    """Put every search beside the same one on a service that never rotates and tells all.

    Where the never rotating one tells its answers in the same form there is a second figure.
    """
    still = {
        (row.kind, str(row.extra["told"])): row for row in rows
        if row.extra.get("scheme") == "never" and "first" in row.extra
    }  # fmt: skip
    return [_beside(row, still) for row in rows]


def _beside(row: Row, still: dict[tuple[str, str], Row]) -> Row:
    if row.status != Status.OK or "first" not in row.extra:
        return row
    own = still.get((row.kind, str(row.extra["told"])))
    plain = still.get((row.kind, "scores"))
    extra: dict[str, Any] = {}
    for name, other in (("never", own), ("never_scores", plain)):
        if other is None or other is row or (name == "never_scores" and other is own):
            continue
        ours, theirs = _won(row), _won(other)
        if len(ours) != len(theirs) or other.value is None:
            continue
        extra |= {name: asdict(other.value), f"more_than_{name}": asdict(difference(ours, theirs))}
    if not extra:
        return row
    note = row.note
    if "never" in extra:
        more = extra["more_than_never"]
        note += (
            f"; {100 * extra['never']['value']:.0f} % where it never rotates, on the same images: "
            f"{100 * more['value']:+.0f} points ({100 * more['low']:+.0f} to "
            f"{100 * more['high']:+.0f})"
        )
    return replace(row, note=note, extra=dict(row.extra) | extra)


def _won(row: Row) -> torch.Tensor:
    return torch.tensor([0 < number < math.inf for number in row.extra["first"]])


THREAT = Threat(
    name="policies",
    title="Serving policies under query attack",
    question="Does it help who queries that several generations are live at once?",
    ids=Identifiers(
        atlas="AML.T0043.001 Craft Adversarial Data: Black-Box Optimization",
        nist="NISTAML.025 Black-box Evasion",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    merge=merge,
    chains=frozenset({"draws", "attacker"}),
    curve=CurveStyle(
        x="queries",
        by=("attack",),
        across="queries spent on one example",
        title="Searches under each serving policy",
        reads=(
            "One panel for each attacker, one line for each policy; “never rotating” is the "
            "comparison. A policy helps where its line lies under that one."
        ),
        hides=(
            "What a find is worth afterwards: whether it works again for the attacker, and on "
            "other clients, stands in rows of its own."
        ),
    ),
)
