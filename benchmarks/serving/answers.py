"""Whether answers are right: each against its generation's own logits on its own input."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving.load import Answers, logits_of

CLOSE = 1e-4  # relative and absolute: a batch's other rows change an answer's last bits


@dataclass(frozen=True)
class Verdict:
    """How many distinct answers were compared, and what of them is wrong.

    Attributes:
        wrong: not its generation's logits on its input. anothers: those of them that are the
            generation's logits on another input of the load: they reached the wrong client.
        alike: right ones that would be right for another input too, so that they prove less.
    """

    compared: int
    wrong: int
    anothers: int
    alike: int


def judge(vault: Path, bodies: list[np.ndarray], answers: Answers) -> Verdict:
    """Compare every distinct answer with what its generation computes on its request's inputs."""
    import torch

    import g2d

    torch.set_num_threads(1)
    wrong = anothers = alike = 0
    by_generation: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, which, data in answers:
        by_generation[number].append((which, data))
    x = torch.from_numpy(np.concatenate(bodies))
    with g2d.Defence.open(vault, write=False) as defence, torch.no_grad():
        for number, found in by_generation.items():
            logits = defence.generation(number).model()(x).numpy()
            right = logits.reshape(len(bodies), -1)
            for which, data in found:
                same = fits(logits_of(data), right)
                elsewhere = same.sum() > same[which]
                wrong += not same[which]
                anothers += bool(elsewhere and not same[which])
                alike += bool(elsewhere and same[which])
    return Verdict(len(answers), wrong, anothers, alike)


def fits(data: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Which rows of `right` an answer is."""
    if data.shape != right.shape[1:]:
        return np.zeros(len(right), bool)
    return np.isclose(data, right, rtol=CLOSE, atol=CLOSE).all(1)
