"""What clients were answered, and whether any answer came too late from a retired generation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One line of `asking`; times are seconds since 1970, on the clock that all hosts share."""

    asked: float
    got: float
    status: int
    replica: str
    generation: int


def read(file: Path) -> list[Answer]:
    """Every whole line of a client's file."""
    if not file.exists():
        return []
    lines = file.read_text().split("\n")[:-1]
    return [Answer(**json.loads(line)) for line in lines]


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """How many of each status, from which generations, and whether numbers of a replica fell."""
    last: dict[str, int] = {}
    fell = 0
    for one in answers:
        if one.status == 200:
            fell += one.generation < last.get(one.replica, 0)
            last[one.replica] = one.generation
    return {
        "by_status": dict(sorted(Counter(str(one.status) for one in answers).items())),
        "generations": sorted({one.generation for one in answers if one.status == 200}),
        "replicas": len(last),
        "fell": fell,
    }


def stale(
    answers: Sequence[Answer], swaps: Sequence[tuple[int, float]], lease: float
) -> dict[str, Any]:
    """Answers from n that were asked for more than a lease after n+1 was live.

    Args:
        swaps: numbers and when they became live. `latest_seconds`: how long after its successor
            was live the last answer from a retired generation arrived.
    """
    ended = {number - 1: at for number, at in swaps}
    for number in sorted(ended, reverse=True):  # a number that nobody was given ends with the next
        ended.setdefault(number - 1, ended[number])
    late, latest = [], 0.0
    for one in answers:
        if one.status == 200 and one.generation in ended:
            latest = max(latest, one.got - ended[one.generation])
            if one.asked > ended[one.generation] + lease:
                late.append([one.generation, round(one.asked - ended[one.generation], 2)])
    return {"beyond_the_lease": len(late), "examples": late[:5], "latest_seconds": round(latest, 2)}
