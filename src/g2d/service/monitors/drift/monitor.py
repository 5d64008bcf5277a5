"""The monitor of drift: what it feeds to its tests, and what it says when one of them rejects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from g2d.core.types import Array
from g2d.service.monitors.builtin import BuiltIn, Watched
from g2d.service.monitors.drift.figures import Answers, InputFigures, Repeats
from g2d.service.monitors.drift.labels import LabelShift, Shift
from g2d.service.monitors.drift.streams import Ranks, Streams

KIND = "drift"
_STREAMS = 64
_BLOCK, _BYTES = 16, 1 << 22  # requests that are looked at together, and bytes at most, about


class DriftMonitor(BuiltIn):
    """Alarms when predicted classes, scores or inputs are no longer what they were.

    Three families share the chance of a false alarm: predicted classes (`LabelShift`) take 0.8 of
    it, scores and confidence 0.1, inputs 0.1 (ADWIN, on ranks, which is careful by itself). One
    value a request and a stream; inputs that a client repeats do not count. An alarm never rotates:
    fresh parameters do not know the new world either. A swap forgets what was usual of answers, and
    nothing of inputs.
    """

    name = "drift"

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        model, settings = watched.model, watched.settings
        self._least, chance = settings.drift_least, settings.drift_alarms
        classes = min(model.classes, _STREAMS)
        self._repeats, self._figures = Repeats(model), InputFigures(model)
        self._labels = LabelShift(classes, 0.8 * chance, self._least)
        scores = [f"score of class {k}" for k in range(classes)]
        self._scores = Streams([*scores, "confidence"], 0.1 * chance)
        self._inputs = Streams(self._figures.names, 0.1 * chance)
        self._first: list[Array] = []
        self._ranks: Ranks | None = None
        self._named = model.labels if model.classes <= _STREAMS else ()
        self._block: list[tuple[Array, Array]] = []
        self._waiting = 0
        self._counts = dict.fromkeys(("requests", "repeated_inputs", "not_finite", "alarms"), 0)

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        """Take one request; several are looked at together."""
        self._counts["requests"] += 1
        fresh = self._repeats.fresh(inputs, client)
        finite = np.asarray(np.isfinite(logits).all(1))
        self._counts["repeated_inputs"] += len(fresh) - int(fresh.sum())
        self._counts["not_finite"] += len(finite) - int(finite.sum())
        if not (taken := fresh & finite).any():
            return
        self._block.append((inputs[taken], logits[taken]))
        self._waiting += inputs.nbytes + logits.nbytes
        if len(self._block) >= _BLOCK or self._waiting >= _BYTES:
            self._look()

    def swapped(self, number: int) -> None:
        """Forget what was usual of answers: another network's shares and scores are its own."""
        self._look()
        self._labels.reset()
        self._scores.reset()

    def status(self) -> Mapping[str, Any]:
        """Requests seen, and how many of them say what is usual now."""
        usual = {"usual_answers": self._labels.requests, "usual_inputs": self._inputs.requests}
        return {**self._counts, **usual}

    def _look(self) -> None:
        if not self._block:
            return
        inputs, logits = (np.concatenate(each) for each in zip(*self._block, strict=True))
        starts = np.cumsum([0, *(len(each) for each, _ in self._block[:-1])])
        self._block, self._waiting = [], 0
        self._judge("answers", self._of_answers(Answers.of(logits, starts)))
        if self._figures.names:
            self._judge("inputs", self._of_inputs(self._figures(inputs, starts)))

    def _of_answers(self, answers: Answers) -> Shift | None:
        moved = self._labels.add(answers.shares)
        by_scores = self._scores.add(answers.scores)
        if moved is None and self._scores.requests > self._least:
            moved = by_scores
        if moved is not None:
            self._labels.reset()
            self._scores.reset()
        return moved

    def _of_inputs(self, figures: Array) -> Shift | None:
        finite = np.asarray(np.isfinite(figures).all(1))
        self._counts["not_finite"] += len(finite) - int(finite.sum())
        figures = figures[finite]
        if self._ranks is None:
            self._first.append(figures)
            if sum(map(len, self._first)) < self._least:
                return None
            figures, self._first = np.concatenate(self._first), []
            self._ranks = Ranks(figures)
        moved = self._inputs.add(self._ranks(figures))
        if moved is not None and self._inputs.requests > self._least:
            self._ranks = None  # what is usual is asked for anew
            self._inputs.reset()
            return moved
        return None

    def _judge(self, what: str, moved: Shift | None) -> None:
        if moved is None:
            return
        self._counts["alarms"] += 1
        unit = "a rank among the first" if what == "inputs" else "a share"
        text = (
            f"{what} have moved: {self._called(moved.name)} was {moved.before:.3f} in the mean and"
            f" is {moved.after:.3f} ({unit}) in the last {moved.window} requests. Rotation does not"
            " cure it: label what comes now, and run `g2d refresh`"
        )
        evidence: dict[str, float | str] = {
            "what": what, "stream": moved.name, "before": round(moved.before, 6),
            "after": round(moved.after, 6), "window": moved.window,
        }  # fmt: skip
        self.watched.alarm(KIND, text, False, evidence=evidence)

    def _called(self, name: str) -> str:
        """Name a class as the task does, where it has names."""
        words, _, last = name.rpartition(" ")
        if words.endswith("class") and self._named:
            return f"{words} {self._named[int(last)]!r}"
        return name
