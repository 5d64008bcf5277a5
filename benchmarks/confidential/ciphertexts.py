"""What a service that computes on ciphertexts sees, and what encrypted answers give away.

    python -m benchmarks.confidential.ciphertexts --data ../shared/data/mnist    # 15 CPU minutes
    python -m benchmarks.confidential.ciphertexts --task digits --n 20 --steps 150

One network of `mnist-he`, by the library: queries as a client encrypts them, answers as the service
makes them, both as they travel. Who learns from them is the linear classifier that looks at
parties' views (`views.guessed`); that it can learn is shown on what the secret key opens.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy import stats
from torch import nn

from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import record
from benchmarks.confidential.answers import COLUMNS, IDS, halves, line, through
from benchmarks.confidential.homomorphic import task_of, trained
from benchmarks.confidential.pages import block
from benchmarks.confidential.views import guessed
from g2d.core.types import Array
from g2d.protect.homomorphic import EvaluationKeys, Plan, SecretKeys, encode, evaluate
from g2d.protect.homomorphic.wire import HEADER, SEED
from g2d.redteam.rows import Row
from g2d.redteam.scoring import share

NAME, FAMILY = "confidential-ciphertexts", "encrypted"
_BINS = 256


class Asked:
    """Answers to inputs, and what the service saw of queries and answers.

    Attributes:
        logits: (n, classes), as the client rounds them. seen: (n, features), residues modulo the
            first prime, from 0 to 1, of those that were `watched`. counts: of residues modulo every
            prime, by 256 equal parts of what they may be, by what they are of.
    """

    def __init__(self, network: nn.Module, x: torch.Tensor, watched: range) -> None:
        self.plan = plan = Plan.of(network, tuple(x.shape[1:]))
        encoded, keys = encode(plan, network.state_dict()), SecretKeys.new(plan)
        server = EvaluationKeys.read(keys.upload(), plan)
        self.counts = {what: np.zeros(_BINS, np.int64) for what in ("queries", "answers")}
        logits, seen = [], []
        for place, image in enumerate(x):
            query = keys.encrypt(image[None])
            answer = evaluate(plan, encoded, server, query)
            logits.append(keys.decrypt(answer)[0])
            if place in watched:
                seen.append(np.concatenate([self._query(query), self._answer(answer)]))
        self.logits, self.seen = torch.stack(logits).float(), np.stack(seen)

    def _query(self, blob: bytes) -> Array:
        """The half of each ciphertext that is no seed."""
        parameters = self.plan.parameters
        size = parameters.levels * parameters.degree * 8
        parts = [
            np.frombuffer(blob, "<u8", size // 8, HEADER + place * (size + SEED))
            for place in range(self.plan.ciphertexts)
        ]
        words = np.stack(parts).reshape(len(parts), parameters.levels, parameters.degree)
        return self._known("queries", words)

    def _answer(self, blob: bytes) -> Array:
        """Both halves, modulo the one prime that is left."""
        words = np.frombuffer(blob, "<u8", offset=HEADER)
        return self._known("answers", words.reshape(-1, 1, self.plan.parameters.degree))

    def _known(self, what: str, words: Array) -> Array:
        primes = np.array(self.plan.parameters.primes[: words.shape[1]], np.float64)
        parts = words / primes[:, None]
        places = (parts * _BINS).astype(np.int64).clip(max=_BINS - 1)
        self.counts[what] += np.bincount(places.ravel(), minlength=_BINS)
        return parts[:, 0].ravel().astype(np.float32)


def watching(asked: Asked, x: Array, y: Array) -> Iterator[Row]:
    """The service does what it should, and looks."""
    n, half = len(y), len(y) // 2
    chance = float(np.bincount(y[:half]).max() / half)
    p = {f"p_{what}": float(stats.chisquare(found).pvalue) for what, found in asked.counts.items()}
    yield Row(
        FAMILY, "encrypted-view", "the service looks at all that it has of a request", "service",
        "ridge regression on residues", share(guessed(asked.seen, y), n - half),
        metric="classes guessed", chain="encrypted", note=f"chance is {chance:.3f}",
        extra={"chance": chance, **p},
    )  # fmt: skip
    yield Row(
        FAMILY, "encrypted-view-opened", "the service has the client's secret key", "service",
        "the same, on what was encrypted", share(guessed(x.reshape(n, -1), y), n - half),
        metric="classes guessed", chain="plain", harm=1.0, extra={"chance": chance},
        note="the key never leaves the client",
    )  # fmt: skip


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """One network and one client: what is seen, and what answers give away."""
    torch.set_num_threads(1)
    task = task_of(given)
    network = trained(task, given.steps, given.seed)
    both = halves(task, given.n)
    members, others = both
    x = torch.cat([members.x, others.x])
    watched = range(len(members), len(members) + min(given.watched, len(others)))
    asked = Asked(network, x, watched)
    with torch.no_grad():
        plain = network(x)
    y = others.y[: len(watched)].numpy()
    found = list(watching(asked, others.x[: len(watched)].numpy(), y))
    told = {"encrypted": ("encrypted", asked.logits), "plain": ("plain", plain)}
    found += through("encrypted", FAMILY, told, both, task.model(given.seed + 1), given.steps)
    return record(given) | {"rows": [row.as_json(IDS) for row in found]}


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    return [line(row) for row in result["rows"]]


def made(folder: Path = RESULTS) -> dict[str, str]:
    """The block of docs/confidential.md, by the name of its mark."""
    return block(NAME, rows, COLUMNS, folder)


def main() -> None:
    """Measure and keep."""
    flags = parser(__doc__)
    flags.add_argument("--task", default="mnist", choices=["mnist", "digits"])
    flags.add_argument("--data", default="../shared/data/mnist", help="folder of MNIST")
    flags.add_argument("--n", type=int, default=1000, help="members, and others, that are asked")
    flags.add_argument("--watched", type=int, default=1000, help="requests that are looked at")
    flags.add_argument("--steps", type=int, default=1500, help="batches of training")
    flags.add_argument("--seed", type=int, default=0)
    carry_out(NAME, flags, measure, rows, header=COLUMNS)


if __name__ == "__main__":
    main()
