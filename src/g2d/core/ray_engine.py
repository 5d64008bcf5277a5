"""Jobs as Ray tasks: an `engine.Engine` for population, candidates of a red team, and the like.

A job is a pure function of its payload, so one that was lost with its node is simply run again,
and the result is the same bytes wherever it ran. Ray is imported here when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from g2d.core.engine import Work, configure_threads
from g2d.core.jobs import guarded
from g2d.core.ray_cluster import joined
from g2d.errors import PopulationError

_RETRIES = 3  # after a lost node or a killed worker; an exception of the job itself is final
_LOOK = 1.0  # seconds between looks at what has finished: Ctrl-C is heard in between


class RayEngine:
    """Ray tasks of one CPU and one torch thread each, on a cluster or this machine's cores.

    Args:
        address: see `ray_cluster.joined`. workers: tasks in flight; 0: one for each CPU there is.
    """

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self._leaving = ExitStack()
        own = self._leaving.enter_context(joined(address, workers))
        import ray

        self._workers = workers if workers and not own else 0
        self._flying: dict[Any, int] = {}
        task: Any = ray.remote(_work)
        self._task = task.options(num_cpus=1, max_retries=_RETRIES)

    def run(self, work: Work, payloads: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield `(position, work(payload))` as jobs finish; payloads are made when needed.

        Raises:
            PopulationError: a job was lost more often than it is tried again. Else whatever the
                job itself raised.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        waiting, flying = enumerate(payloads), self._flying
        more = True
        try:
            while True:
                while more and len(flying) < self._room():
                    position, payload = next(waiting, (-1, None))
                    more = position >= 0
                    if more:
                        flying[self._task.remote(work, payload)] = position
                if not flying:
                    return
                done, _ = ray.wait(list(flying), num_returns=1, timeout=_LOOK)
                for reference in done:
                    yield flying.pop(reference), ray.get(reference)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise PopulationError(
                f"a job was lost {_RETRIES + 1} times with its node or worker ({_words(error)})."
                " What is complete is kept: run the same command again, with fewer --workers if"
                " memory is short"
            ) from error
        finally:
            self._cancel()

    def close(self) -> None:
        """Cancel what runs, and leave the cluster; one of this machine alone ends."""
        self._cancel()
        self._leaving.close()

    def _room(self) -> int:
        """Tasks that may be in flight now: a cluster grows and shrinks."""
        import ray

        return self._workers or max(1, int(ray.cluster_resources().get("CPU", 1.0)))

    def _cancel(self) -> None:
        import ray

        flying, self._flying = self._flying, {}
        for reference in flying:
            ray.cancel(reference, force=True)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _work(work: Work, payload: Any) -> Any:
    configure_threads()
    return guarded(work, payload)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
