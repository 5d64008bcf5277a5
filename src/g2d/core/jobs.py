"""What a job raises, so that it reaches whoever asked for it; where jobs run is in `engine`.

An exception crosses from a worker process as a pickle. One of the user's own whose arguments do not
fit its pickle breaks the whole pool on arrival, which looks like a worker that was killed; and a
`SystemExit` would end the command in silence.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from g2d.core.imports import words


class WorkerError(Exception):
    """A job raised what cannot travel; the message has its type and words, its cause the trace."""


def guarded(work: Callable[[Any], Any], payload: Any) -> Any:
    """Return `work(payload)`; what it raises is as it was where that can travel.

    Raises:
        WorkerError: in the place of an exception that cannot be pickled and read back, and of one
            that would end the process.
    """
    try:
        return work(payload)
    except (Exception, SystemExit) as error:
        if not isinstance(error, SystemExit) and _travels(error):
            raise
        said = f"raised {words(error)}"
        if isinstance(error, SystemExit):
            said = f"called sys.exit({error.code!r}); raise an error in its place"
        raise WorkerError(f"a job in a worker process {said}") from error


def _travels(error: Exception) -> bool:
    try:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:
        return False
    return type(again) is type(error) and str(again) == str(error)
