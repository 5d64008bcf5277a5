"""The process that grows one basin beside a service: the lowest priority, one thread, no writer.

It says how far it is in lines of JSON, and ends when the service does; what it has trained is kept
in the vault's folder for it, and the next one goes on there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from g2d.core.search_path import child_environment, search_path
from g2d.errors import G2DError

NICE = 19


class GrowingProcess:
    """One basin that is grown by a process of its own, which ends when the service does."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Start it, at the lowest priority, with one thread."""
        kept = {name: value for name, value in os.environ.items() if name != "G2D_ADMIN_TOKEN"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "g2d.service.grower", json.dumps(search_path()),
             *self._arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=child_environment(kept) | {"OMP_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C in a terminal is for the service alone
        )  # fmt: skip
        with suppress(ProcessLookupError, AttributeError):  # Windows has no niceness
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)
        if self._ended.is_set():
            self.end()

    def said(self) -> Iterator[dict[str, Any]]:
        """Its lines, until it has ended."""
        assert self._process is not None, "it was started"
        assert self._process.stdout is not None, "it has a pipe"
        with self._process.stdout as lines:
            for line in lines:
                yield json.loads(line)

    def end(self) -> None:
        """Kill it, if it is there yet."""
        self._ended.set()
        if (process := self._process) is not None:
            process.kill()
            process.wait()
            with suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()


# --- in the process that grows -------------------------------------------------------------------


def work(folders: str, vault: str, data: str, task: str, code: str) -> None:
    """Grow one basin and say how far it is, in lines of JSON; the parent's end is this one's.

    Args:
        folders: what `sys.path` is to be, in JSON. code: see `worker.Worker`, in JSON.
    """
    sys.path[:] = json.loads(folders)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no line of ours
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def answer(**facts: Any) -> None:
        out.write(json.dumps(facts) + "\n")

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "growing":
            answer(done=done, total=total)

    try:
        from g2d.core.engine import configure_threads
        from g2d.defence.defence import Defence
        from g2d.defence.growing import Grow, grow

        configure_threads()
        with Defence.open(
            vault, write=False, data=data, named=task, code=json.loads(code)
        ) as defence:
            answer(grown=grow(defence, Grow(progress)).basin)
    except Exception as error:
        said = str(error) if isinstance(error, G2DError) else f"{type(error).__name__}: {error}"
        answer(failed=said)


def _end_with_parent() -> None:
    for _ in sys.stdin.buffer:
        pass
    os._exit(0)  # whatever killed the service; what is trained is kept


if __name__ == "__main__":
    work(*sys.argv[1:6])
