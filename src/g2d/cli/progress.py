"""How far work has come and how long it will take: bars on a terminal, lines where there is none.

Lines go to stderr, so that stdout holds results alone. Imports rich lazily and knows no torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2d.cli.console import console, duration, say

if TYPE_CHECKING:
    from g2d.core.types import Progress

Clock = Callable[[], float]


@dataclass
class Stage:
    """One stage as this run has seen it: where it stood at first, and when.

    What an earlier run had done took none of this one's time: the pace is that of what was added
    since the first report.
    """

    first: int
    began: float
    done: int = 0
    total: int = 0
    at: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the first report."""
        return self.at - self.began

    def left(self, now: float | None = None) -> float | None:
        """Seconds left, at the pace until the last report; None: nothing was added yet."""
        added, rest = self.done - self.first, self.total - self.done
        if added <= 0 or self.elapsed <= 0 or rest <= 0:
            return 0.0 if rest <= 0 else None
        since = 0.0 if now is None else now - self.at
        return max(0.0, self.elapsed / added * rest - since)


class Stages:
    """The stages of a command, by name."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._known = clock, dict[str, Stage]()

    def report(self, stage: str, done: int, total: int) -> Stage:
        """Note how far a stage has come."""
        now = self._clock()
        known = self._known.setdefault(stage, Stage(done, now))
        known.done, known.total, known.at = done, total, now
        return known


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show `progress(stage, done, total)`: a bar for each stage, or lines where there is none."""
    if not sys.stdout.isatty():
        yield show_lines(Stages())
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """Ours, not rich's: that counts what an earlier run did, and forgets after 30 seconds."""

        def render(self, task: Task) -> Text:
            seen = task.fields.get("seen")
            return Text(_left(seen.left(time.monotonic())) if seen else "")

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft())
    with Bars(*columns, console=console()) as bars:
        shown: dict[str, Any] = {}
        stages = Stages()

        def show_bar(stage: str, done: int, total: int) -> None:
            seen = stages.report(stage, done, total)
            if stage not in shown:
                shown[stage] = bars.add_task(stage, total=total, seen=seen)
            bars.update(shown[stage], completed=done, total=total)

        yield show_bar


def show_lines(stages: Stages) -> Progress:
    """Print a line when a stage begins, ends, or has gone on by a tenth."""
    tenths: dict[str, int] = {}

    def show_line(stage: str, done: int, total: int) -> None:
        seen = stages.report(stage, done, total)
        tenth = 10 * done // total if total else 10
        if tenth > tenths.get(stage, -1):
            tenths[stage] = tenth
            parts = [f"{stage}: {done} of {total}"]
            parts += [duration(seen.elapsed)] if seen.elapsed else []
            parts += [left] if (left := _left(seen.left())) else []
            say(", ".join(parts))

    return show_line


def _left(seconds: float | None) -> str:
    return f"about {duration(seconds)} left" if seconds else ""
