"""How a job travels to a worker process, and why a worker has died; which runs when is in `engine`.

A worker imports the script that started it only if a job refers to it: a named task needs no
`if __name__ == "__main__"`, and works from a notebook or a script on standard input as well.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import FunctionType, ModuleType
from typing import Any

from g2d.core.imports import words
from g2d.core.jobs import guarded
from g2d.errors import PopulationError

_MAIN = ("__main__", "__mp_main__")
_ENGINE = "G2D_ENGINE"
"""Environment: the process whose engine started this one."""
_UNGUARDED = 77
"""Exit code of a worker in which the script, as it is imported, would start workers itself."""

_TRAVEL = (
    "put it into a module of its own as a plain function or class and import it (or name the task "
    "'module:function'), or run in this process with engine=SerialEngine()"
)


# --- jobs ----------------------------------------------------------------------------------------


def pack_job(job: Any) -> tuple[bytes, list[str]]:
    """Pickle what a worker is to do; return it with the names that it takes from `__main__`.

    Raises:
        PopulationError: it cannot be pickled: a lambda, a local function, an open file.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    try:
        pickler.dump(job)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise PopulationError(
            f"a job cannot travel to a worker process ({words(error)}): {_TRAVEL}"
        ) from error
    return buffer.getvalue(), list(dict.fromkeys(pickler.of_main))


def run_packed(data: bytes) -> Any:
    """Do in a worker what `pack_job` packed: call the job's function with its payload.

    Raises:
        PopulationError: it cannot be loaded here. WorkerError: see `guarded`.
    """
    try:
        work, payload = pickle.loads(data)  # noqa: S301 from the process that started this one
    except Exception as error:
        raise PopulationError(
            f"a worker process cannot load its job ({words(error)}): {_TRAVEL}"
        ) from error
    return guarded(work, payload)


class _Pickler(ForkingPickler):
    """Notes which functions and classes of `__main__` are pickled, all by reference."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.of_main: list[str] = []

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and value.__module__ in _MAIN:
            self.of_main.append(value.__qualname__)
        return NotImplemented


# --- worker processes ----------------------------------------------------------------------------


class WithoutMain(SpawnContext):
    """Spawned processes that leave `__main__` alone."""

    class Process(SpawnProcess):
        """A process that is not told which script started it."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 multiprocessing's name
            with _main_hidden():
                return SpawnProcess._Popen(process_obj)


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """For a moment, `__main__` comes from no file: what spawning tells a process to import."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def check_main(names: Sequence[str]) -> None:
    """Check that a worker can import `__main__`, from which jobs need `names`.

    Raises:
        PopulationError: it is a notebook, a console or a script on standard input.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and not (file and os.path.isfile(file)):
        raise PopulationError(
            f"{', '.join(names[:3])} is defined in a notebook, a console or a script on standard "
            f"input, which worker processes cannot import: {_TRAVEL}"
        )


def refuse_in_import() -> None:
    """End this process if it is a worker that imports a script which starts workers itself."""
    # Python's own sign for it: true from a spawned process's start until `__main__` is imported.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        if os.environ.get(_ENGINE) == str(os.getppid()):
            raise SystemExit(_UNGUARDED)  # quietly: the process that waits for it says why
        raise PopulationError(f"this process imports a script: {_GUARD}")


_GUARD = (
    'what the script does has to stand under `if __name__ == "__main__":`, for worker processes '
    "import it to find what is defined in it"
)


def mark_engine() -> None:
    """Let processes that are started from here know that this one's engine started them."""
    os.environ[_ENGINE] = str(os.getpid())


# --- the dead ------------------------------------------------------------------------------------


_SIGNALS = {
    "SIGKILL": "most likely by the system, which was out of memory; try fewer --workers",
    "SIGTERM": "somebody or a supervisor ended it",
    "SIGSEGV": "a crash in native code, of torch or another library",
    "SIGBUS": "a file or shared memory could not be read: the disk or /dev/shm may be full",
    "SIGABRT": "native code gave up, as torch does where memory ends",
    "SIGILL": "native code for another kind of processor",
    "SIGXCPU": "its limit of CPU time was reached",
}


def cause_of_death(codes: Sequence[int | None], with_main: bool) -> str:
    """Say what worker processes died of, from their exit codes once all have ended.

    Args:
        codes: one dead worker takes the others with it: they end by SIGTERM.
        with_main: whether the workers imported the script that started them.
    """
    own = [code for code in codes if code not in (None, 0, -signal.SIGTERM)]
    code = own[0] if own else -signal.SIGTERM if -signal.SIGTERM in codes else None
    if code is None:
        return "a worker process died, nobody knows of what"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"a worker process was killed by {name} ({_SIGNALS.get(name, 'not by G2D')})"
    if code == _UNGUARDED and with_main:
        return f"a worker process could not start: {_GUARD}"
    hint = f" (it imports your script: {_GUARD})" if with_main else ""
    return f"a worker process ended with exit code {code}; if it said why, it stands above{hint}"
