"""A verification whose hundred queries went to the reserve, too: what is left of fine-tuned copies.

    python -m benchmarks.ownership.asked --data FOLDER --vault runs/ownership-{seed}-marked

Of vaults that `carried` made. The mark is trained on both sets alike, so this tells what a larger
set to be shown, and a smaller reserve, would be worth at the same price in training.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common import results
from benchmarks.common.command import carry_out, parser
from benchmarks.ownership.vaults import of_seed
from g2d import Defence
from g2d.attacks import removal
from g2d.core.seeds import seed_of
from g2d.protect.watermark.chance import LIKELY, p_value
from g2d.protect.watermark.mark import Mark
from g2d.tasks.inference import load_model, predict
from g2d.weights.checkpoints import unpack

QUERIES = (64, 96, 100)


def copies(given: Namespace, seed: int) -> list[list[int]]:
    """Hits of the first of all triggers, as many as QUERIES says, of each fine-tuned copy."""
    found = []
    with Defence.open(of_seed(given.vault, seed), write=False, data=given.data) as defence:
        task, vault = defence.task, defence.vault
        mark = Mark.of(defence.settings.watermark, task)
        assert mark is not None, "the vault names its key"
        for index, number in enumerate(reversed(vault.numbers(1)[-given.count :])):
            draws = torch.Generator().manual_seed(seed_of(seed, "thief", index))
            state = removal.fine_tuned(
                task, unpack(vault.read_generation(number)), task.splits.train,
                steps=given.tune_steps, rate=1e-3, generator=draws,
            )  # fmt: skip
            right = predict(load_model(task, state), mark.x).argmax(1) == mark.y
            found.append([int(right[:n].sum()) for n in QUERIES])
    return found


def measure(given: Namespace, _: Path) -> dict[str, Any]:
    """Every seed's copies."""
    seeds = {str(seed): copies(given, seed) for seed in given.seeds}
    return results.record(given) | {"seeds": seeds}


def rows(result: dict[str, Any]) -> Sequence[Sequence[object]]:
    """Queries, copies that are proven, least hits."""
    found = [copy for copies in result["seeds"].values() for copy in copies]
    table = []
    for place, n in enumerate(QUERIES):
        hits = [copy[place] for copy in found]
        proven = sum(p_value(one, n, 10) < LIKELY for one in hits)
        what = f"fine-tuned at 0.001, {n} queries, at p < 2^-64"
        table.append((what, "20 of 20", f"{proven} of {len(hits)}, least {min(hits)} hits"))
    return table


def main() -> None:
    """Measure and print."""
    flags: ArgumentParser = parser(__doc__)
    flags.add_argument("--data", default="")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--vault", type=Path, required=True, help="{seed} is the seed")
    flags.add_argument("--count", type=int, default=20, help="copies of each vault")
    flags.add_argument("--tune-steps", type=int, default=500)
    carry_out("ownership-asked", flags, measure, rows)


if __name__ == "__main__":
    main()
