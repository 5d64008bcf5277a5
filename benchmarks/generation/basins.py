"""The strongest stale attacker against product and free rivals on MNIST, one vault a seed.

    python -m benchmarks.generation.basins --data ../shared/data/mnist --seeds 0

Rotates `runs/basins-<seed>` (its population is made first: a dozen minutes on two cores) with the
product's settings until `--rotations` generations have followed the base, sets threat `basins` at
it as `g2d attack` does, and writes benchmarks/results/basins-mnist-seed<seed>.json. Goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.common.places import RUNS
from benchmarks.redteam.run import keep
from g2d import Defence, Settings, redteam
from g2d.cli.console import show_progress
from g2d.core.engine import LocalEngine

IMAGES = 250


def run(seed: int, data: str, rotations: int, workers: int) -> None:
    """Make a vault's rotations, attack it, keep the rows."""
    vault = RUNS / f"basins-{seed}"
    settings = Settings().override(task__name="mnist", task__data=data, population__seed=seed)
    with show_progress() as progress:
        with (
            Defence.create("mnist", vault, settings) as defence,
            LocalEngine(workers) as engine,
        ):
            defence.populate(engine, progress)
            defence.fit(progress)
            done = len(defence.vault.exposures()) - 1
            defence.generate(max(0, rotations - done), seed=seed, progress=progress)
        results = redteam.attack(
            vault, threats=["basins"], n=IMAGES, seed=seed, data=data, workers=workers,
            out=RUNS / f"basins-redteam-{seed}", progress=progress,
        )  # fmt: skip
    keep(results, vault, f"basins-mnist-seed{seed}")


def main() -> None:
    """Measure each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of MNIST's idx files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rotations", type=int, default=24)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    for seed in args.seeds:
        run(seed, args.data, args.rotations, args.workers)


if __name__ == "__main__":
    main()
