"""Where a `Task` object came from, so that another process can make it again by a name.

Nothing is imported or called here: a name is recorded only where it is plain from the stack that
importing the module, and calling the function, makes a task and does nothing else.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_BUILTIN = "g2d.tasks.builtin"


@dataclass(frozen=True)
class Origin:
    """The function that made a task; `name` is 'module:function', or "" where none can be named."""

    name: str = ""
    file: str = ""
    why: str = ""


def caller() -> tuple[FrameType | None, Origin]:
    """The innermost frame outside this package, and what it says of a task that is made in it.

    A built-in task has no origin: its name is enough.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _ours(frame):
        if frame.f_globals.get("__name__") == _BUILTIN:
            return frame, Origin()  # one of ours, by whomever it was asked for
        frame = frame.f_back
    return frame, Origin() if frame is None else _read(frame)


def _ours(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    generated = frame.f_code.co_filename.startswith("<string>")  # a dataclass's own __init__
    return generated or module.partition(".")[0] in ("g2d", "dataclasses", "copy")


def _read(frame: FrameType) -> Origin:
    code, file = frame.f_code, frame.f_code.co_filename
    if not Path(file).is_file():
        return Origin(why="it was made in a notebook, or typed in")
    where = str(Path(file).absolute())
    module = str(frame.f_globals.get("__name__", ""))
    if module == "__main__":
        spec: Any = frame.f_globals.get("__spec__")
        module = spec.name if spec is not None else Path(file).stem
    if code.co_qualname == "<module>":
        return Origin(file=where, why="it was made outside of any function")
    if not code.co_qualname.isidentifier():
        return Origin(file=where, why=f"it was made in {code.co_qualname}, not in a plain function")
    function = frame.f_globals.get(code.co_qualname)
    missing = code.co_argcount - len(getattr(function, "__defaults__", None) or ())
    missing += code.co_kwonlyargcount - len(getattr(function, "__kwdefaults__", None) or {})
    if missing > 0:
        return Origin(file=where, why=f"{code.co_qualname}() takes arguments")
    return Origin(f"{module}:{code.co_qualname}", where)


def settled(origin: Origin) -> Origin:
    """Where a defence is made: the origin, unless to import or call it would make that once more.

    A function that is still running does more than to make a task; a file whose own lines are
    running without a guard would run them again when it is imported.
    """
    if not origin.name:
        return origin
    function = origin.name.partition(":")[2]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if str(Path(code.co_filename).absolute()) == origin.file:
            if code.co_qualname == function:
                return Origin(file=origin.file, why=f"{function}() does more than to return it")
            if code.co_qualname == "<module>" and not _guarded(origin.file, frame.f_lineno):
                return Origin(file=origin.file, why='the file has no `if __name__ == "__main__"`')
        frame = frame.f_back
    return origin


def _guarded(file: str, line: int) -> bool:
    """Whether a line at the top level of a file stands under `if __name__ == ...`."""
    try:
        tree = ast.parse(Path(file).read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return False
    return any(
        isinstance(node, ast.If)
        and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))
        and node.lineno <= line <= (node.end_lineno or node.lineno)
        for node in tree.body
    )
