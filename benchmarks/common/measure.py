"""What the benchmarks measure of networks: attacks and what they get wrong.

Scores come from `g2d.redteam.scoring`, on the test split alone; here they are only collected.
Distances and novelty are those of the product (`g2d.redteam.novelty`).
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Sequence
from typing import Any

import psutil
from scipy import stats
from torch import Tensor

from g2d.core.types import Logits
from g2d.redteam.scoring import Rate, Trial, accuracy_rate
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split


class PeakMemory:
    """Peak proportional set size of this process and its workers, sampled every second."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._done.wait(1):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.mib = max(self.mib, total / 2**20)


def stale(
    target: Logits, history: Sequence[Logits], full: Trial, half: Trial, worst: bool
) -> dict[str, Any]:
    """ASR on one target of attacks crafted on its predecessors, oldest first.

    `last`: on the newest alone, on all examples of `full`. On those of `half`: `joint_8` and
    `joint_16`, on the newest 8 and 16 together, if there are as many; and with `worst` the largest
    of the single attacks on the newest 16.
    """
    found: dict[str, Any] = {}
    newest = list(history)[-16:]
    found["last"] = full.score(target, full.craft(newest[-1], "single", 0)).value
    if worst:
        found["worst_16"] = max(
            half.score(target, half.craft(model, "single", place)).value
            for place, model in enumerate(newest)
        )
    for count in (8, 16):
        if len(newest) >= count:
            crafted = half.craft(newest[-count:], "joint", count)
            found[f"joint_{count}"] = half.score(target, crafted).value
    return found


def white_box(target: Logits, trial: Trial) -> float:
    """ASR of an attack crafted on the target itself."""
    return trial.score(target, trial.craft(target, "white-box")).value


def wrong(model: Logits, split: Split) -> Tensor:
    """Which examples a model misclassifies, (n,) bool."""
    return predict(model, split.x).argmax(1) != split.y


def mean_iou(errors: Sequence[Tensor]) -> float:
    """Mean over pairs of |both wrong| / |either wrong|: 1 if all err on the same inputs."""
    found = [
        float((a & b).sum()) / max(1, int((a | b).sum()))
        for i, a in enumerate(errors)
        for b in errors[i + 1 :]
    ]
    return statistics.mean(found) if found else float("nan")


def function_columns(
    models: Sequence[Logits], nearest: Sequence[Logits], test: Split
) -> dict[str, Any]:
    """Accuracy, disagreement with the nearest member, overlap of errors; whole test split."""
    clean = [accuracy_rate(model, test).value for model in models]
    labels = [predict(model, test.x).argmax(1) for model in models]
    other = [predict(model, test.x).argmax(1) for model in nearest]
    apart = [float((a != b).double().mean()) for a, b in zip(labels, other, strict=False)]
    return {
        "clean_mean": statistics.mean(clean),
        "clean_worst": min(clean),
        "clean_each": clean,
        "disagreement": statistics.mean(apart) if apart else None,
        "iou_wrong": mean_iou([label != test.y for label in labels]),
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


__all__ = ["Rate", "Trial"]
