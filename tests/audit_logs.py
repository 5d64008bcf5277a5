"""Audit logs made in a moment, and what is wrong with them, in words of one."""

from __future__ import annotations

from pathlib import Path

from g2d.protect.audit.places import anchor_file, read_anchor
from g2d.protect.audit.verify import Report, verify
from g2d.protect.audit.writer import Writer
from g2d.rotation.events import Alarm, Swap
from g2d.vault.keys import SigningKey

EVENTS = (Swap(7, 6, ("schedule",), 0.002), Alarm("drift", "the monitor says so"))


def entries(count: int, turn: int = 0):
    made = [EVENTS[index % 2] for index in range(count)]
    return [(10**18 + turn * 1000 + i, e.name, e.facts()) for i, e in enumerate(made)]


def write(path: Path, key: SigningKey, count: int, size: int = 1 << 20, close: bool = True):
    """Write so many events; a checkpoint after every eighth."""
    writer = Writer(path, key, anchor_file(path), size)
    for turn in range(0, count, 8):
        writer.turn()
        writer.append(entries(min(8, count - turn), turn))
        writer.checkpoint()
    if close:
        writer.checkpoint(closed=True)
    writer.release()
    return writer


def check(path: Path, key: SigningKey, anchored: bool = True, **more) -> Report:
    anchor = read_anchor(anchor_file(path)) if anchored else None
    return verify(path, key.public, anchor=anchor, **more)


def kinds(report: Report) -> list[str]:
    return [problem.kind for problem in report.problems]
