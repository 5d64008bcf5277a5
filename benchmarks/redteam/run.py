"""The red team's full matrix on MNIST, for the vaults of benchmarks/generation.

    python -m benchmarks.redteam --data ../shared/data/mnist --seeds 0 1 2

Attacks `runs/mnist-<seed>` (make them with `python -m benchmarks.generation` first) as
`g2d attack` does and writes benchmarks/results/threats-mnist-seed<seed>.json; `python -m
benchmarks.tables` makes the pages. Goes on where it stopped; about 25 minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.common.places import RESULTS, ROOT, RUNS
from benchmarks.common.results import save
from g2d import redteam
from g2d.cli.progress import show_progress
from g2d.report import page as report


def run(seed: int, data: str, workers: int) -> None:
    """Attack one vault; keep its rows, and its page beside the vault."""
    vault = RUNS / f"mnist-{seed}"
    out = RUNS / f"redteam-{seed}"
    with show_progress() as progress:
        results = redteam.attack(
            vault, seed=seed, out=out, data=data, workers=workers, progress=progress
        )
    report.render_results(results, out / "report.html")
    keep(results, vault, f"threats-mnist-seed{seed}")


def keep(results: dict[str, Any], vault: Path, name: str) -> None:
    """Write what an attack found as benchmarks/results/<name>.json: the rows are the evidence."""
    results["summary"] = None  # pictures of the page
    results["vault"]["path"] = str(vault.relative_to(ROOT))
    save(RESULTS / f"{name}.json", results)


def main() -> None:
    """Attack the vault of each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of MNIST's idx files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    for seed in args.seeds:
        run(seed, args.data, args.workers)


if __name__ == "__main__":
    main()
