"""How a command fails: one line on stderr, an exit code, and a file with the trace of a surprise.

A surprise is whatever is neither ours (`G2DError`) nor the system's (`OSError`): a fault of G2D,
of a library, or of the user's own model, in this process or in a worker. Which commands there are
is in `main`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import sys
import tempfile
import traceback as tracebacks
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from g2d.cli.console import say
from g2d.errors import G2DError

_INTERRUPTED = "interrupted; what is complete is kept, run the same command again to go on"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Usage errors are typer's own to show. Their root is click's in older versions of typer, and a copy
# inside typer in newer ones: found from BadParameter(UsageError(ClickException)) in both.
_TYPERS: tuple[type[Exception], ...] = (typer.Exit, typer.Abort, typer.BadParameter.__mro__[2])
_PREFIX = "g2d-trace-"
_LONGEST = 256 * 1024  # characters of a trace: a recursion of a thousand frames is half of that
_MOST = 20  # traces that are kept: a service that is started again and again fills no disk
_FRAME = re.compile(r'^ *File "([^"]+)", line (\d+)', re.MULTILINE)
_NEXT = re.compile(r"^(The above exception was|During handling of the above)", re.MULTILINE)


class Commands(TyperGroup):
    """The commands, with one way out: an error is one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; 1 after an error, 130 after Ctrl-C (usage errors are typer's: 2)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say(_INTERRUPTED)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(1) from None
        except _TYPERS:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error.__context__, BrokenPipeError) and isinstance(error, SystemExit):
                raise  # rich's way to end where nobody reads any more
            if ctx.params.get("traceback"):
                tracebacks.print_exc()
            with contextlib.suppress(ValueError):  # a closed stdout has nothing left to fail
                try:
                    sys.stdout.flush()
                except OSError:
                    _drop_output()
            say(_reason(error), "error: ")
            raise typer.Exit(1) from None


def _drop_output() -> None:
    """Let what is still buffered go nowhere: it must not fail once more as the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(error: BaseException) -> str:
    if isinstance(error, G2DError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in _NO_ROOM:
            return f"{where}the disk is full. Free some space and run the same command again."
        return f"{where}{error.strerror or error}"
    return _surprise(error)


def _surprise(error: BaseException) -> str:
    """Say what came up and where, and which file has the trace."""
    text = "".join(tracebacks.format_exception(error))
    said = str(error).strip()
    what = type(error).__name__ + (f": {said[:500]}" if said else "")
    place = _place(text)
    try:
        rest = f"The trace is in {keep_trace(text)}"
    except OSError as failure:
        rest = f"The trace cannot be kept ({failure}): run `g2d --traceback ...` to see it"
    return f"{what}{f' ({place})' if place else ''}. What is complete is kept. {rest}"


def _place(trace: str) -> str:
    """File and line of the innermost frame of the first cause, wherever its process was."""
    frames = _FRAME.findall(_NEXT.split(trace, maxsplit=1)[0])
    return f"{frames[-1][0]}, line {frames[-1][1]}" if frames else ""


def keep_trace(text: str) -> Path:
    """Write a trace into the system's folder for temporary files, readable by its owner alone.

    Not into the vault: that may be read-only or on a full disk, `g2d verify` knows all its files,
    and some commands have none. The oldest of ours go where there are more than `_MOST`.

    Raises:
        OSError: it cannot be written.
    """
    from g2d import __version__

    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = (
            f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
        )
    head = f"g2d {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
    handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=".txt")  # mode 600, no link followed
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(head + text)
    _forget_oldest(Path(name).parent)
    return Path(name)


def _forget_oldest(folder: Path) -> None:
    found = []
    for path in folder.glob(f"{_PREFIX}*.txt"):
        with contextlib.suppress(OSError):  # another process may be tidying, too
            known = path.lstat()
            if not hasattr(os, "getuid") or known.st_uid == os.getuid():
                found.append((known.st_mtime_ns, path))
    for _, path in sorted(found, reverse=True)[_MOST:]:
        with contextlib.suppress(OSError):
            path.unlink()
