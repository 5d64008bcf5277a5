"""The searches: what each is called, and how it is let loose on a log of queries."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from g2d.attacks.query import art_square, clock_square, hop_skip_jump
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.query_log import QueryLog

BUDGETS = (1, 10, 30, 100, 300, 1_000, 2_000, 5_000, 10_000)
ATTACKS = {
    "square": ("Square (ART)", "API, scores; does not know the clock"),
    "square-clock": ("Square (ours)", "API, scores; knows the clock"),
    "square-margin": (
        "Square (ours, deepest margin)",
        "API, scores; knows the clock and goes on after the first flip",
    ),
    "square-long": ("Square (ours, long search)", "API, scores; knows the clock"),
    "square-stale": (
        "Square (ours, stale start)",
        "API, scores; knows the clock and holds exposed generations",
    ),
    "hop-skip-jump": ("HopSkipJump (ART)", "API, labels; does not know the clock"),
}


def label_of(case: Case) -> str:
    """Algorithm and budget of a case."""
    return f"{ATTACKS[case.name][0]}, {case.number('at'):,} queries"


def kind_of(case: Case) -> str:
    """The kind of a case's rows."""
    return f"query-{case.name}"


def launch(
    case: Case,
    context: AttackContext,
    lanes: QueryLog,
    every: int | None,
    begin: Tensor | None = None,
) -> None:
    """Let the attack search; what it won stands in the log."""
    x, y = lanes.split.x, lanes.split.y
    bounds, classes = context.bounds, context.task.classes
    seed = context.seed("query", case.name, every)
    if case.name == "square":
        assert isinstance(bounds, tuple), "checked before"
        art_square(
            lanes, x, y,
            eps=context.eps, budget=lanes.budget, seed=seed, bounds=bounds, classes=classes,
        )  # fmt: skip
    elif case.name == "hop-skip-jump":
        assert isinstance(bounds, tuple), "checked before"
        hop_skip_jump(lanes, x, y, seed=seed, bounds=bounds, classes=classes)
    else:
        generator = torch.Generator().manual_seed(seed)
        clock_square(
            lanes, x, y,
            eps=context.eps, budget=lanes.budget, generator=generator, bounds=bounds, every=every,
            start=begin, beyond=lanes.beyond,
        )  # fmt: skip


def curve_of(lanes: QueryLog) -> list[dict[str, float]]:
    """ASR at every budget up to the log's own."""
    known = [budget for budget in BUDGETS if budget <= lanes.budget]
    if lanes.budget not in known:
        known.append(lanes.budget)
    return [{"queries": queries} | asdict(lanes.asr(queries)) for queries in known]
