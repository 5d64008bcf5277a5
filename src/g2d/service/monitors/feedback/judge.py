"""Takes labelled inputs: keeps them, asks what is live about them, and tests its accuracy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from g2d.core.types import Array
from g2d.rotation.snapshot import Live
from g2d.service.http.protocol import Model
from g2d.service.monitors.alarms import RaiseAlarm
from g2d.service.monitors.feedback.bound import upper_bound
from g2d.service.monitors.feedback.log import FeedbackLog
from g2d.settings import MonitorSettings

KIND = "accuracy"


class _Tally(NamedTuple):
    """Labels that are judged together, and the least accuracy that was promised for them."""

    right: int = 0
    n: int = 0
    least: float = 1.0
    of: object = None


class FeedbackJudge:
    """Tests, after every label, whether what is served is as accurate as its gates said.

    Feedback carries the input itself, not the name of an answer: so nothing of what clients ask
    has to be kept, and what is judged is the generation that answers now. Labels of several
    generations count together, against the least accuracy that any of them may have: each passed
    the gates, so each one's accuracy on the gate split, less the allowed drop, is a promise. What
    a former population answered before a refresh says nothing of the one after.

    Args:
        accuracy: a generation's accuracy on the gate split, by its number; None: it is not known,
            and its answers count for nothing. population: what a generation was made from.
    """

    name: ClassVar[str] = "feedback"

    def __init__(
        self,
        live: Live,
        model: Model,
        settings: MonitorSettings,
        accuracy: Callable[[int], float | None],
        alarm: RaiseAlarm,
        log: FeedbackLog,
        population: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._population = population
        self.model, self._live, self._accuracy = model, live, accuracy
        self._settings, self._alarm, self._log = settings, alarm, log
        self._mutex = threading.Lock()
        self._labels = self._repeated = self._alarms = 0
        self._tally = _Tally()

    def take(self, x: Array, y: Array) -> Mapping[str, int]:
        """Take inputs (n, ...) with their classes y (n,); an input that came before is not counted.

        Returns:
            How many were kept and how many had come before; nothing of what was right.

        Raises:
            G2DError: they cannot be kept, and nothing is counted. What the model raises on these
                inputs: nothing of them is kept.
        """
        with self._mutex:  # one after another: bounded work, whoever sends
            snapshot = self._live.snapshot
            promised = self._accuracy(snapshot.number)
            # Asked before they are kept: what no model answers is nothing to learn from either.
            right = None if promised is None else snapshot.predict(x).argmax(1) == y
            new = self._log.add(x, y)
            self._labels += len(new)
            self._repeated += len(x) - len(new)
            if new and right is not None and promised is not None:
                self._judge(right[new], promised, snapshot.number)
        return {"kept": len(new), "repeated": len(x) - len(new)}

    def status(self) -> Mapping[str, Any]:
        """Labels, and of those that are judged together how many were right, with the bound."""
        tally = self._tally  # once: labels may come meanwhile, and nobody waits for them here
        known = {"labels": self._labels, "repeated": self._repeated, "alarms": self._alarms,
                 "rows": len(self._log), "judged": tally.n}  # fmt: skip
        if not tally.n:
            return known
        bound = upper_bound(tally.right, tally.n, self._settings.accuracy_alarms)
        return {**known, "accuracy": tally.right / tally.n, "upper": bound, "least": tally.least}

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    def _judge(self, found: Array, promised: float, number: int) -> None:
        """Count answers, whether each was right (n,), and test all that are judged together."""
        of = self._population(number)
        right, n, least, _ = self._tally if self._tally.of == of else _Tally()
        least = min(least, promised - self._settings.accuracy_drop)
        right += int(found.sum())
        n += len(found)
        self._tally = _Tally(right, n, least, of)
        bound = upper_bound(right, n, self._settings.accuracy_alarms)
        if bound >= least:
            return
        self._alarms += 1
        text = (
            f"{right / n:.2%} of {n} labels that came are answered rightly, {bound:.2%} at most"
            f" in truth, and {least:.2%} was promised at least (gate split, less"
            f" {self._settings.accuracy_drop:.2%}). Rotation does not cure it: look at the labels,"
            f" then `g2d refresh`; they are in {self._log.path}"
        )
        evidence = {"right": right, "labels": n, "upper": round(bound, 6),
                    "least": round(least, 6), "generation": number}  # fmt: skip
        self._alarm(KIND, text, False, level="critical", evidence=evidence)
        self._tally = _Tally()
