"""Takes labelled inputs: keeps them, asks what is live about them, and tests its accuracy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from g2d.core.types import Array
from g2d.rotation.snapshot import Live
from g2d.service.http.protocol import Model
from g2d.service.monitors.alarms import RaiseAlarm
from g2d.service.monitors.feedback.bound import upper_bound
from g2d.service.monitors.feedback.log import FeedbackLog
from g2d.settings import MonitorSettings

KIND = "accuracy"


class FeedbackJudge:
    """Tests, after every label, whether what is served is as accurate as its gates said.

    Feedback carries the input itself, not the name of an answer: so nothing of what clients ask
    has to be kept, and what is judged is the generation that answers now. Labels of several
    generations count together, against the least accuracy that any of them may have: each passed
    the gates, so each one's accuracy on the gate split, less the allowed drop, is a promise.

    Args:
        accuracy: a generation's accuracy on the gate split, by its number; None: it is not known,
            and its answers count for nothing.
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
    ) -> None:
        self.model, self._live, self._accuracy = model, live, accuracy
        self._settings, self._alarm, self._log = settings, alarm, log
        self._mutex = threading.Lock()
        self._labels = self._repeated = self._alarms = 0
        self._forget()

    def take(self, x: Array, y: Array) -> Mapping[str, int]:
        """Take inputs (n, ...) with their classes y (n,); an input that came before is not counted.

        Returns:
            How many were kept and how many had come before; nothing of what was right.

        Raises:
            G2DError: they cannot be kept, and nothing is counted.
        """
        with self._mutex:  # one after another: bounded work, whoever sends
            new = self._log.add(x, y)
            self._labels += len(new)
            self._repeated += len(x) - len(new)
            if new:
                self._judge(x[new], y[new])
        return {"kept": len(new), "repeated": len(x) - len(new)}

    def status(self) -> Mapping[str, Any]:
        """Labels, and of those that are judged together how many were right, with the bound."""
        known = {"labels": self._labels, "repeated": self._repeated, "alarms": self._alarms,
                 "rows": len(self._log), "judged": self._n}  # fmt: skip
        if not self._n:
            return known
        bound = upper_bound(self._right, self._n, self._settings.accuracy_alarms)
        return {**known, "accuracy": self._right / self._n, "upper": bound, "least": self._least}

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    def _forget(self) -> None:
        self._right = self._n = 0
        self._least = 1.0

    def _judge(self, x: Array, y: Array) -> None:
        snapshot = self._live.snapshot
        promised = self._accuracy(snapshot.number)
        if promised is None:
            return
        self._least = min(self._least, promised - self._settings.accuracy_drop)
        self._right += int((snapshot.predict(x).argmax(1) == y).sum())
        self._n += len(y)
        bound = upper_bound(self._right, self._n, self._settings.accuracy_alarms)
        if bound >= self._least:
            return
        self._alarms += 1
        found = self._right / self._n
        text = (
            f"{found:.2%} of {self._n} labels that came are answered rightly, {bound:.2%} at most"
            f" in truth, and {self._least:.2%} was promised at least (gate split, less"
            f" {self._settings.accuracy_drop:.2%}). Rotation does not cure it: look at the labels,"
            f" then `g2d refresh`; they are in {self._log.path}"
        )
        evidence = {"right": self._right, "labels": self._n, "upper": round(bound, 6),
                    "least": round(self._least, 6), "generation": snapshot.number}  # fmt: skip
        self._alarm(KIND, text, False, level="critical", evidence=evidence)
        self._forget()
