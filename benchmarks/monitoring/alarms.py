"""Alarms: can an attacker buy rotations?

    python -m benchmarks.monitoring.alarms                       # four minutes, hardly any CPU
    python -m benchmarks.monitoring.alarms --seconds 6           # a try

A service's own `Rotation` rotates every five seconds by schedule; its generations are there at
once, so that nothing but the rules holds rotations back. In --seconds of calm, and under --alarms
a minute that each ask for a rotation: of one account, of a new account each, and of a new account
each with the token bucket open, as before there was one. All go the way that monitors' alarms go
(`AlarmLine`, `Rotation.alarm`), with the default settings. Each run is kept in results/alarms.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hold_to, record, save
from g2d.rotation.events import Alarm, Event, Swap
from g2d.rotation.scheduler import Rotation
from g2d.rotation.snapshot import Live, Snapshot
from g2d.rotation.triggers import AlarmBudget, Triggers
from g2d.service.monitors.alarms import AlarmLine
from g2d.settings import MonitorSettings

EVERY = 5.0  # seconds between rotations by schedule
OPEN = 1e9  # rotations an hour: as good as no bucket
RUNS = {
    "calm": (0, False),
    "one account": (1, False),
    "a new account each": (0, False),
    "a new account each, no bucket": (0, True),
}


def snapshot(number: int) -> Snapshot:
    """A generation that answers nothing."""
    return Snapshot(number, lambda x: np.zeros((len(x), 2), np.float32))


class AtOnce:
    """Makes and loads generations in no time."""

    def __init__(self) -> None:
        self.number = 1

    def make(self, after: int) -> int:
        return after + 1

    def commit(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        pass

    def live(self) -> int:
        return self.number

    def load(self, number: int, after: int) -> Snapshot:
        return snapshot(number)

    def verify(self, number: int, after: int) -> None:
        pass


def rotations(alarms: int, seconds: float, accounts: int, unbounded: bool) -> dict[str, int]:
    """Rotations, and alarms that were told, in so many seconds of so many alarms a minute."""
    told: list[Event] = []
    settings, source = MonitorSettings(), AtOnce()
    made = Rotation(
        Live(snapshot(1)), source, source, Triggers(EVERY, 0.0), told.append,
        budget=AlarmBudget(OPEN if unbounded else settings.rotations),
    )  # fmt: skip
    line, sent = AlarmLine(), 0
    line.connect(made.alarm, settings.cooldown)
    made.start()
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        while sent < alarms * now / 60:
            line("query_attack", "a benchmark's", client=f"jwt:{sent % (accounts or sent + 1)}")
            sent += 1
        time.sleep(0.01)
    made.stop()
    kinds = {kind: sum(isinstance(event, kind) for event in told) for kind in (Swap, Alarm)}
    return {"rotations": kinds[Swap], "sent": sent, "told": kinds[Alarm]}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets."""
    if "calm" not in result["runs"]:
        return []
    calm = result["runs"]["calm"]["rotations"]
    table = [["rotations by schedule", "", str(calm)]]
    for name, one in result["runs"].items():
        if name != "calm":
            target = "" if "no bucket" in name else f"{calm} ± 1"
            told = f"{one['rotations']}; {one['told']:,} of {one['sent']:,} alarms told"
            table.append([f"rotations under alarms: {name}", target, told])
    return table


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Measure each run that is not there yet."""
    out = given.out or RESULTS / "alarms.json"
    result: dict[str, Any] = {"record": record(given), "runs": {}}
    if out.exists():
        old = json.loads(out.read_text("utf-8"))
        result |= {key: old[key] for key in ("runs", "sizes") if key in old}
    hold_to(result, {"alarms": given.alarms, "seconds": given.seconds}, out)
    for name, how in RUNS.items():
        if name not in result["runs"]:
            alarms = given.alarms if name != "calm" else 0
            result["runs"][name] = rotations(alarms, given.seconds, *how)
            save(out, result)
    return result


def main() -> None:
    """Measure, keep and print."""
    flags = command.parser(__doc__)
    flags.add_argument("--alarms", type=int, default=10_000, help="a minute")
    flags.add_argument("--seconds", type=float, default=60.0, help="of each run")
    command.carry_out("alarms", flags, measure, rows)


if __name__ == "__main__":
    main()
