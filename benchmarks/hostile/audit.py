"""Tampered audit logs: is every mutation found, and which are not without a head kept elsewhere?

    python -m benchmarks.hostile.audit                # 1,000 mutations, a minute
    python -m benchmarks.hostile.audit --cases 120    # a try

A closed log of several files, as `g2d serve` writes it, beside another one of the same key. Seeded
mutations of twelve kinds (audit_damages.py), by one who writes files and has no key: each is
verified with the anchor that the writer left in the state folder, and once more without any. Every
hundredth case is a control: untouched, it has to be sound. Writes results/audit.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import command
from benchmarks.common.places import RESULTS
from benchmarks.common.results import record
from benchmarks.common.tables import TARGETS, markdown
from benchmarks.hostile.audit_damages import DAMAGES, Forger, changed
from g2d.errors import G2DError
from g2d.protect.audit.places import Anchor, anchor_file, read_anchor
from g2d.protect.audit.verify import verify
from g2d.protect.audit.writer import Writer
from g2d.rotation.events import Alarm, Committed, Spare, Swap
from g2d.service.http.events import Admin, Signed, WrongToken
from g2d.vault.keys import SigningKey, VerifyKey

EVENTS = (
    Signed(2, "sha256:ab"), Spare(2, {"make": 0.1, "load": 0.2}), Committed(2),
    Swap(2, 1, ("schedule",), 0.001), Admin("192.0.2.1", "/admin/rotate"),
    Alarm("drift", "a monitor's words"), WrongToken("192.0.2.7", "/admin/pause"),
)  # fmt: skip
FOUND = "found"


def write(path: Path, key: SigningKey, chance: random.Random) -> None:
    """A closed log of some 90 records, a checkpoint after every few, in files of 6,000 bytes."""
    writer = Writer(path, key, anchor_file(path), size=6000)
    for _ in range(12):
        writer.turn()
        told = chance.choices(EVENTS, k=chance.randint(2, 9))
        writer.append([(time.time_ns(), event.name, event.facts()) for event in told])
        writer.checkpoint()
    writer.checkpoint(closed=True)
    writer.release()


def judge(path: Path, key: VerifyKey, anchor: Anchor | None) -> str:
    """What `g2d audit verify` makes of a log: found, or missed, or a crash."""
    try:
        return "missed" if verify(path, key, anchor=anchor).sound else FOUND
    except G2DError:
        return FOUND  # no file of it is left
    except Exception as error:
        return f"crash: {type(error).__name__}"


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    os.environ["G2D_STATE"] = str(folder / "state")
    chance, key = random.Random(a.seed), SigningKey.generate()
    log, other = folder / "a" / "audit.jsonl", folder / "b" / "audit.jsonl"
    write(log, key, chance)
    write(other, key, chance)
    anchor, trusted = read_anchor(anchor_file(log)), key.public
    forger = Forger.of(log, other, SigningKey.generate(), chance)
    anchored = {damage.__name__: Counter[str]() for damage in DAMAGES}
    alone = {damage.__name__: Counter[str]() for damage in DAMAGES}
    controls, began = 0, time.time()
    for case in range(a.cases):
        damage = DAMAGES[case % len(DAMAGES)]
        while not changed(forger):
            damage(forger)
        anchored[damage.__name__][judge(log, trusted, anchor)] += 1
        alone[damage.__name__][judge(log, trusted, None)] += 1
        forger.restore()
        if case % 100 == 0:
            controls += judge(log, trusted, anchor) != "missed"
    return record(a) | {
        "cases": a.cases, "files": len(forger.files), "records": len(forger.flat()),
        "anchored": {name: dict(found) for name, found in anchored.items()},
        "alone": {name: dict(found) for name, found in alone.items()},
        "controls_refused": controls, "seconds": time.time() - began,
    }  # fmt: skip


def _share(found: dict[str, dict[str, int]], cases: int) -> str:
    return f"{100 * sum(kinds.get(FOUND, 0) for kinds in found.values()) / cases:.6g} %"


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached."""
    cases, alone = result["cases"], result["alone"]
    missed = {name: kinds["missed"] for name, kinds in alone.items() if kinds.get("missed")}
    why = ", ".join(f"{name} {count}" for name, count in missed.items()) or "none"
    return [
        [f"mutations of an audit log found, of {cases:,}, with the anchor in the state folder",
         "100 %", _share(result["anchored"], cases)],
        [f"the same without any head kept elsewhere (missed: {why})", "–", _share(alone, cases)],
        ["untouched logs that were refused", "0", str(result["controls_refused"])],
    ]  # fmt: skip


def made() -> dict[str, str]:
    """The table of docs/audit.md."""
    path = RESULTS / "audit.json"
    if not path.is_file():
        return {"audit": "Not measured yet."}
    return {"audit": markdown(TARGETS, rows(json.loads(path.read_text("utf-8"))))}


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--cases", type=int, default=1000)
    flags.add_argument("--seed", type=int, default=17)
    command.carry_out("audit", flags, measure, rows, "anchored")


if __name__ == "__main__":
    main()
