"""Which folders Python may take code from: never the current one by itself, and never a vault.

Python puts the current directory first for `-m` and `-c`, and for an empty part of `PYTHONPATH`:
whoever can put a `torch.py` there runs code in whatever is started there. What is here keeps it out
of our processes and out of their children. What a module consists of is in `sources`.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from g2d.errors import SettingsError

LEDGER = "ledger.sqlite"
"""The file by which a folder is known as a vault."""

_HOME = Path(__file__).resolve().parents[2]  # where this very package was found
_VARIABLES = ("PYTHONSAFEPATH", "PYTHONPATH")
_TOLD = "G2D_TASK_PATH"  # environment: the folders of `--task-path`, for child processes
_task_paths: list[str] = []
_added: set[str] = set()  # those of them that stand in `sys.path` because of us
_spawning = threading.RLock()


def vault_of(path: Path | str) -> Path | None:
    """The vault that a file or folder lies in, or is; links are looked at from both ends."""
    absolute = Path(os.path.abspath(path))
    for start in dict.fromkeys((absolute, Path(os.path.realpath(absolute)))):
        for folder in (start, *start.parents):
            if os.path.lexists(folder / LEDGER):
                return folder
    return None


# --- this process --------------------------------------------------------------------------------


def leave_current_folder(by_module: bool = False) -> None:
    """Take the current directory off `sys.path`, unless this very package comes from there.

    One that `PYTHONPATH` names stays: somebody wrote it there. An empty part of it is an accident,
    and means the current directory.

    Args:
        by_module: the interpreter was started with `-m`, which has put it first.
    """
    try:
        here = os.getcwd()
    except OSError:
        return  # it was deleted: nothing can lie there
    if Path(here).resolve() == _HOME:
        return
    if by_module and not sys.flags.safe_path and sys.path and _is(sys.path[0], here):
        del sys.path[0]
    parts = _python_path()
    if "" in parts and not any(part and _is(part, here) for part in parts):
        sys.path[:] = [entry for entry in sys.path if not _is(entry, here)]
    sys.path[:] = [entry for entry in sys.path if entry]


def refuse_vaults() -> None:
    """Refuse to go on where a folder that modules are looked for in lies in a vault.

    Raises:
        SettingsError: one does.
    """
    for entry in sys.path:
        if entry and (vault := vault_of(entry)) is not None:
            raise SettingsError(
                f"Python looks for modules in {entry}, which lies in the vault {vault}: code from"
                " a vault is never run. Take it off PYTHONPATH, or move it out of the vault"
            )


def add_task_path(folder: Path) -> str:
    """Let modules of a user's own be found in a folder, after all that is installed.

    Raises:
        SettingsError: there is no such folder, or it lies in a vault.
    """
    entry = os.path.abspath(folder)
    if not os.path.isdir(entry):
        raise SettingsError(f"--task-path {folder}: there is no such folder")
    if (vault := vault_of(entry)) is not None:
        raise SettingsError(
            f"--task-path {folder}: it lies in the vault {vault}, and code from a vault is never"
            " run: keep the task's module elsewhere"
        )
    _task_paths.append(entry)
    _tell_children()
    if entry not in sys.path:
        _added.add(entry)
        sys.path.append(entry)  # last: it shadows nothing
    return entry


def drop_task_path(entry: str) -> None:
    """Take back what `add_task_path` has returned."""
    _task_paths.remove(entry)
    _tell_children()
    if entry not in _task_paths and entry in _added:  # what was there before is not ours to take
        _added.discard(entry)
        if entry in sys.path:
            sys.path.remove(entry)


def adopt_task_paths() -> None:
    """Take over the folders of the command that started this process, whoever started it for it."""
    for entry in os.environ.get(_TOLD, "").split(os.pathsep):
        if os.path.isabs(entry) and entry not in _task_paths and vault_of(entry) is None:
            _task_paths.append(entry)
            if entry not in sys.path:
                _added.add(entry)
                sys.path.append(entry)


def _tell_children() -> None:
    """Ray, unlike `multiprocessing`, hands nobody our `sys.path`, but starts with what we have."""
    known = [entry for entry in task_paths() if os.pathsep not in entry]
    _set(_TOLD, os.pathsep.join(known) or None)


def task_paths() -> Sequence[str]:
    """The folders that were added."""
    return tuple(dict.fromkeys(_task_paths))


# --- child processes -----------------------------------------------------------------------------


def search_path() -> list[str]:
    """What a child of this process may have as its `sys.path`: ours, without any accident."""
    return [os.path.abspath(entry) for entry in sys.path if entry and vault_of(entry) is None]


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which a Python that we start takes no code from the current directory.

    Not `python -I`: that forgets PYTHONPATH and packages installed for one user, which developers
    and people without a virtual environment need, and every other setting of the interpreter.
    `PYTHONSAFEPATH` (`-P`) leaves them alone, and holds for what the child starts, too. PYTHONPATH
    is kept without its empty parts and without vaults.
    """
    found = dict(os.environ if environ is None else environ)
    parts = [os.path.abspath(part) for part in _python_path(found) if part]
    parts = [part for part in parts if vault_of(part) is None]
    if not any(_is(entry, str(_HOME)) for entry in parts) and not _installed(_HOME):
        parts.append(str(_HOME))
    # A folder with a colon in its name would be read as two, of which the second is relative.
    parts = [part for part in parts if os.pathsep not in part]
    found.pop("PYTHONPATH", None)
    if parts:
        found["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(parts))
    return found | {"PYTHONSAFEPATH": "1"}


@contextmanager
def isolated_children() -> Iterator[None]:
    """For a block in which a library starts Python processes: they get `child_environment`.

    `multiprocessing` starts its processes with `-c`, and hands them our `sys.path` only once they
    have imported it, from wherever they were started.
    """
    with _spawning:
        before = {name: os.environ.get(name) for name in _VARIABLES}
        made = child_environment()
        try:
            for name in _VARIABLES:
                _set(name, made.get(name))
            yield
        finally:
            for name, value in before.items():
                _set(name, value)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _python_path(environ: Mapping[str, str] | None = None) -> list[str]:
    if environ is None and sys.flags.ignore_environment:
        return []
    text = (os.environ if environ is None else environ).get("PYTHONPATH", "")
    return text.split(os.pathsep) if text else []


def _is(entry: str, folder: str) -> bool:
    return os.path.realpath(entry or os.curdir) == os.path.realpath(folder)


def _installed(folder: Path) -> bool:
    """Whether it is a folder of installed packages, which a child finds by itself."""
    return installed_folders().intersection({str(folder), os.path.realpath(folder)}) != set()


@functools.cache
def installed_folders() -> frozenset[str]:
    """Where Python's own modules and installed packages lie."""
    import site
    import sysconfig

    paths = sysconfig.get_paths()
    found = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*site.getsitepackages(), site.getusersitepackages()]
    return frozenset(os.path.realpath(folder) for folder in found)
