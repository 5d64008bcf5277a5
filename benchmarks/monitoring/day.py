"""What the soak of a day counts: clients that never give up, and answers held against the ledger.

Under `sticky` no client is told a number: whose answer it was is found by its logits, among all
generations that have been live, and no client's numbers may fall. No service here: see `soak`.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.answers import CLOSE
from benchmarks.serving.load import PATH
from g2d.core.types import Array

PATIENCE = 120.0  # seconds until an answer that does not come is lost
VICTIMS = ("service", "worker", "both")


@dataclass(frozen=True)
class Hour:
    """What happens in one hour of the day; a kill has a moment, as a share of it, and a victim."""

    attacks: int = 0  # accounts that search
    drifts: bool = False
    labels: bool = False
    renews: str = ""  # "refresh", or "rollback"
    kills: tuple[tuple[float, str], ...] = ()


def plan(hours: int, seed: int) -> list[Hour]:
    """A day that has everything; of fewer hours as much of it as they hold, in its order.

    Two searches, one of one account and one of five; the world moves for a third of the day, is
    labelled, and the vault refreshed; later it goes back. Every second hour something is killed.
    """
    chance, made = random.Random(seed), []
    for hour in range(hours):
        of = hour * 24 // hours  # the hour of a whole day that this one begins with
        told = set(range(of, max(of + 1, (hour + 1) * 24 // hours)))
        kill = ((chance.uniform(0.1, 0.9), chance.choice(VICTIMS)),) if hour % 2 else ()
        renews = "refresh" if 10 in told else "rollback" if 16 in told else ""
        attacks = 1 if told & {3, 4} else 5 if told & {18, 19} else 0
        moved = bool(told & set(range(8, 16)))
        made.append(Hour(attacks, moved, bool(told & {9}), renews, kill))
    return made


@dataclass(frozen=True, eq=False)
class Answer:
    """Who got which logits (classes,) for which input (...), in the order of each client."""

    client: str
    x: Array
    logits: Array


@dataclass
class Tally:
    """What clients met; safe to use from many threads."""

    answers: list[Answer] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """One more of these: `retried`, `lost`, or `failed` and a status."""
        with self.mutex:
            self.counts[what] += 1

    def keep(self, answer: Answer) -> None:
        """One more answer."""
        with self.mutex:
            self.answers.append(answer)


class Asking:
    """One client: asks from an address of its own, and again until it is answered.

    What a kill of the service cuts is asked again, as every client of a service must; only what is
    never answered is lost. Any other status than 200 is counted as failed.
    """

    def __init__(self, port: int, client: str, tally: Tally, patience: float = PATIENCE) -> None:
        self.client, self._port, self._tally, self._patience = client, port, tally, patience
        self._line: http.client.HTTPConnection | None = None

    def __call__(self, x: Array) -> Array | None:
        """Ask about one input (...); return its logits (classes,), None: there was no answer."""
        tensor = {"name": "input", "shape": [1, *x.shape], "datatype": "FP32",
                  "data": [float(value) for value in x.ravel()]}  # fmt: skip
        body = json.dumps({"inputs": [tensor]})
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            try:
                status, told = self._once(body)
            except (OSError, http.client.HTTPException, ValueError):
                self.close()
                self._tally.count("retried")
                time.sleep(0.05)
                continue
            if status != 200:
                self._tally.count(f"failed {status}")
                return None
            logits = np.array(told["outputs"][0]["data"], np.float64)
            self._tally.keep(Answer(self.client, x, logits))
            return logits
        self._tally.count("lost")
        return None

    def _once(self, body: str) -> tuple[int, Mapping[str, Any]]:
        if self._line is None:
            self._line = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=30, source_address=(self.client, 0)
            )
        self._line.request("POST", PATH, body, {"content-type": "application/json"})
        answer = self._line.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        """End its connection."""
        if self._line is not None:
            self._line.close()
            self._line = None


class Search:
    """An attacker's search by scores, in its smallest form: keep what lessens the margin."""

    def __init__(self, x: Array, label: int, eps: float, draws: np.random.Generator) -> None:
        self.x, self._best, self._label, self._eps = x, x, label, eps
        self._draws, self._margin, self.wins = draws, np.inf, 0

    def propose(self) -> Array:
        """The next input: signs of a square of the best one changed."""
        side = int(self._draws.integers(1, 1 + self.x.shape[-1] // 2))
        top, left = self._draws.integers(0, self.x.shape[-1] - side + 1, 2)
        found = self._best.copy()
        part = np.s_[..., top : top + side, left : left + side]
        found[part] = self.x[part] + self._eps * self._draws.choice([-1.0, 1.0])
        return found.clip(0, 1).astype(np.float32)

    def hear(self, proposed: Array, logits: Array | None) -> None:
        """Take an answer to what was proposed."""
        if logits is None:
            return
        others = np.delete(logits, self._label).max()
        margin = float(logits[self._label] - others)
        self.wins += margin < 0
        if margin < self._margin:
            self._best, self._margin = proposed, margin


def judged(
    answers: Sequence[Answer],
    computed: Mapping[int, Callable[[Array], Array]],
    last: Mapping[str, int],
) -> tuple[dict[str, int], dict[str, int]]:
    """Hold answers against all generations that were live.

    Args:
        computed: of each number what gives the logits (n, classes) of inputs (n, ...). last: the
            highest number that each client has seen before.

    Returns:
        Counts: `answers`; `wrong`, which are no generation's logits on their input; `fell`, which
        are those of generations alone that are older than one that its client had seen; and the
        highest number of each client now.
    """
    by_client: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_client[answer.client].append(answer)
    seen, counts = dict(last), {"answers": len(answers), "wrong": 0, "fell": 0}
    for client, own in by_client.items():
        x, told = np.stack([a.x for a in own]), np.stack([a.logits for a in own])
        fits = {
            number: np.isclose(told, compute(x), rtol=CLOSE, atol=CLOSE).all(1)
            for number, compute in computed.items()
        }
        for row in range(len(own)):
            numbers = [number for number, right in fits.items() if right[row]]
            newer = [number for number in numbers if number >= seen.get(client, 0)]
            counts["wrong"] += not numbers
            counts["fell"] += bool(numbers and not newer)
            if newer:
                seen[client] = min(newer)
    return counts, seen


def generations(vault: Path, since: int) -> dict[int, Callable[[Array], Array]]:
    """What a vault's generations compute, of those that were live from a number on."""
    import torch

    import g2d

    def computing(model: Any) -> Callable[[Array], Array]:
        def compute(x: Array) -> Array:
            with torch.no_grad():
                found: Array = model(torch.from_numpy(x)).double().numpy()
            return found

        return compute

    with g2d.Defence.open(vault, write=False) as defence:
        numbers = [number for number in defence.vault.exposures() if number >= since]
        return {number: computing(defence.generation(number).model()) for number in numbers}
