"""The whole idea in one command, on scikit-learn's digits.

`run` builds a defence, rotates it (ten times), has the red team attack it (quick) and writes
`report.html`, `summary.json` and `picture.png` (the README's). How attacks are scored lives in
`redteam`, how a page looks in `report`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from g2d import redteam
from g2d.attacks import art
from g2d.cli.shared import seal_from_now
from g2d.core.engine import LocalEngine
from g2d.core.types import Progress, silent
from g2d.defence.defence import Defence
from g2d.errors import GenerationError
from g2d.report import page as report
from g2d.rotation.snapshot import Rotor, Snapshot
from g2d.settings import Settings, build
from g2d.tasks.builtin import load_task
from g2d.vault.keys import SigningKey

ROTATIONS = 10
EXAMPLES = 400  # all the test images that digits has
ROUNDS = 3  # times that a rotation whose every candidate was rejected is tried again


def run(
    out: Path,
    seed: int = 0,
    workers: int = 0,
    progress: Progress = silent,
    rotations: int = ROTATIONS,
    members: int | None = None,
) -> dict[str, Any]:
    """Build, rotate, judge and report on digits; goes on where an interrupted run stopped.

    Args:
        out: folder for `vault/`, `report.html` and `summary.json`. workers: 0 is one per core.
        rotations: how many generations follow the base. members: of the population; None: as many
            as the task has.

    Raises:
        G2DError: matplotlib, jinja2, cryptography or an attack library is missing, the folder
            cannot be written, or it holds a vault of other settings.
    """
    report.require()
    art.require()
    out = Path(out)
    clock = _Clock()
    with _create(out / "vault", seed, members) as defence, LocalEngine(workers) as engine:
        defence.populate(engine, progress)
        clock.lap("population")
        defence.fit(progress)
        clock.lap("generator")
        _rotate(defence, seed, rotations, progress)
        clock.lap("rotations")
        results = redteam.attack(
            out / "vault", quick=True, n=EXAMPLES, seed=seed, engine=engine, progress=progress
        )
        clock.lap("red team")
    summary = results["summary"]
    report.render_results(results, out / "report.html")
    report.save_hero(out / "picture.png", summary, results["rows"])
    clock.lap("report")
    summary |= {"seed": seed, "red_team": results["rows"]}
    summary["seconds"] = dict(clock.laps) | {"total": round(sum(clock.laps.values()), 2)}
    text = json.dumps(summary, indent=1, allow_nan=False)
    report.write(out / "summary.json", text + "\n")
    kept: dict[str, Any] = json.loads(text)  # what is returned is what was written
    return kept


class _Clock:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._began = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = round(now - self._began, 2)
        self._began = now


def _create(path: Path, seed: int, members: int | None = None) -> Defence:
    """Open the demo's vault with the product's own settings for digits, and the run's seed.

    It is signed and sealed from the start. Its keys lie in `keys/` beside it, for a demo's sake:
    elsewhere they belong on another disk.
    """
    tables = {key: dict(table) for key, table in load_task("digits").settings.items()}
    settings = build(Settings, tables, "settings of task 'digits'")
    keys = path.parent.absolute() / "keys"
    private = keys / "signing.key"
    if not private.exists():
        made = SigningKey.generate()
        made.write(private)
        made.public.write(keys / "signing.pub")
    own = settings.override(
        population__seed=seed, population__members=members, signing__key=str(private)
    )
    defence = Defence.create("digits", path, own)
    try:
        seal_from_now(defence.vault, f"file:{keys / 'custodian.key'}")
    except BaseException:
        defence.close()
        raise
    return defence


class _Seeded:
    """A `rotation.Source` over a defence whose generations are reproducible.

    Real rotations draw secret bits (`Rotor(defence)`); a demo must give the same table twice.
    """

    def __init__(self, defence: Defence, seed: int, progress: Progress) -> None:
        self._defence, self._seed, self._progress = defence, seed, progress

    def snapshot(self) -> Snapshot:
        return self._defence.snapshot()

    def advance(self) -> Snapshot:
        for attempt in range(ROUNDS):
            try:
                self._defence.generate(1, seed=self._seed + attempt * 10**6)
                break
            except GenerationError:
                if attempt == ROUNDS - 1:
                    raise
        return self._defence.snapshot()


def _rotate(defence: Defence, seed: int, rotations: int, progress: Progress) -> None:
    """Rotate a `Rotor` until that many have followed the base; ask it once each time."""
    rotor = Rotor(_Seeded(defence, seed, progress))
    probe = defence.task.splits.gate.x[:8]
    done = len(defence.vault.exposures()) - 1
    progress("rotations", done, rotations)
    while done < rotations:
        rotor.rotate()
        rotor(probe)
        done += 1
        progress("rotations", done, rotations)
