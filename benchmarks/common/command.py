"""What the command line of a benchmark does: measure in a folder of its own, keep, print."""

from __future__ import annotations

import json
import os
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.places import RESULTS
from benchmarks.common.results import save
from benchmarks.common.tables import TARGETS, markdown

Result = dict[str, Any]


def parser(doc: str | None) -> ArgumentParser:
    """An argument parser described by the first line of a module's docstring."""
    return ArgumentParser(description=(doc or "").split("\n")[0])


def carry_out(
    name: str,
    flags: ArgumentParser,
    measure: Callable[[Namespace, Path], Result],
    rows: Callable[[Result], Sequence[Sequence[object]]],
    shown: str = "",
    header: Sequence[str] = TARGETS,
) -> None:
    """Read the flags, measure, save the result as `NAME.json`, and print its table.

    Args:
        shown: a key of the result that is printed before it. header: of the table.
    """
    flags.add_argument("--out", type=Path, help=f"default: benchmarks/results/{name}.json")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["G2D_STATE"] = str(Path(folder) / "state")  # marks of vaults that go with it
        result = measure(given, Path(folder))
    save(given.out or RESULTS / f"{name}.json", result)
    if shown:
        print(json.dumps(result[shown], indent=1))
    print(markdown(header, rows(result)))
