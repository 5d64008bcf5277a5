"""Observers: what looks at every query and its answer, off the path of answers.

An answer never waits for an observer: it is shown what was answered after it was sent, from one
thread, and what it does not keep up with is dropped and counted. The weights' watch is in `memory`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from g2d.core.imports import import_attribute, words
from g2d.core.types import Array
from g2d.errors import SettingsError
from g2d.service.monitors.alarms import AlarmLine, RaiseAlarm
from g2d.service.monitors.builtin import BuiltIn

__all__ = [
    "Observer",
    "ObserverQueue",
    "Observers",
    "RaiseAlarm",
    "find_observers",
    "load_observers",
]


class Observer(Protocol):
    """Looks at what was asked and what was answered; one thread calls it, request by request."""

    def observe(self, inputs: Array, logits: Array, client: str) -> None:
        """Look at one request that was answered.

        What it raises is logged by its type and counted. No listener is told; the count, which
        names neither observer nor request, is for who says who asks.

        Args:
            inputs: (n, ...) in the task's dtype, read-only. logits: (n, classes) float32,
                read-only. client: who asked, as "spiffe://domain/path", "dns:name", "cn:name",
                "email:address", "jwt:subject" or "operator" (with the admin token); where nobody
                is asked, the address, of IPv6 its network of 64 bits.
        """
        ...


def find_observers(names: Iterable[str]) -> dict[str, Any]:
    """Import the factories that an operator named 'module:factory'; none is called.

    Raises:
        SettingsError: there is no such factory.
    """
    found: dict[str, Any] = {}
    for name in names:
        if not all(name.partition(":")):
            raise SettingsError(f"the observer is {name!r}, expected 'module:factory'")
        found[name] = import_attribute(name, "observer", SettingsError)
    return found


def load_observers(names: Iterable[str], alarm: RaiseAlarm) -> dict[str, Observer]:
    """Make the observers that an operator named 'module:factory'; a factory is given `alarm`.

    Raises:
        SettingsError: there is no such factory, it fails, or what it makes cannot observe.
    """
    made: dict[str, Observer] = {}
    for name, factory in find_observers(names).items():
        try:
            made[name] = factory(alarm)
        except (Exception, SystemExit) as error:
            raise SettingsError(f"observer {name!r}: making it raised {words(error)}") from error
        if not callable(getattr(made[name], "observe", None)):
            raise SettingsError(
                f"observer {name!r} made a {type(made[name]).__name__}, which has no method"
                " observe(inputs, logits, client)"
            )
    return made


class Observers:
    """Observers that are made before the service is: what they alarm of waits for `connect`.

    Args:
        names: see `load_observers`, whose `SettingsError` it raises.

    Attributes:
        made: the observers by their names. line: what they raise alarms by.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.line = AlarmLine()
        self.made = load_observers(names, self.line)

    def connect(
        self,
        alarm: RaiseAlarm,
        cooldown: float = 0.0,
        kept: Iterable[tuple[str, str, float, int]] = (),
    ) -> None:
        """Pass alarms on from now, and those that waited: see `AlarmLine`."""
        self.line.connect(alarm, cooldown, kept)


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    inputs: Array
    logits: Array
    client: str


class ObserverQueue:
    """Shows observers what was answered; `offer` returns at once, whatever they do.

    Args:
        observers: by the names that an operator knows. dropped: called with the number of inputs
            that no observer will see. failed: called with an observer's name and what it raised.
            waiting: inputs that may wait, so that memory is bounded.
    """

    def __init__(
        self,
        observers: Mapping[str, Observer],
        dropped: Callable[[int], None],
        failed: Callable[[str, BaseException], None],
        waiting: int = 4096,
    ) -> None:
        self._observers, self._dropped, self._failed = observers, dropped, failed
        self._room = waiting
        self._counting = threading.Lock()
        self._answered: queue.SimpleQueue[_Answered | int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="observers", daemon=True)

    def start(self) -> None:
        """Begin to show what is offered."""
        self._thread.start()

    def stop(self, seconds: float = 2.0) -> None:
        """Show what waits, for so long at most, and end."""
        self._answered.put(None)
        self._thread.join(seconds)

    def offer(self, inputs: Array, logits: Array, client: str) -> None:
        """Take a request that was answered, or drop it and count its inputs if too many wait."""
        with self._counting:
            fits = len(inputs) <= self._room
            self._room -= len(inputs) if fits else 0
        if fits:
            self._answered.put(_Answered(_kept(inputs), _kept(logits), client))
        else:
            self._dropped(len(inputs))

    def swapped(self, number: int) -> None:
        """Tell built-in monitors, in its place among the answers, that a generation is live."""
        self._answered.put(number)

    def _run(self) -> None:
        while (shown := self._answered.get()) is not None:
            for name, observer in self._observers.items():
                try:
                    if isinstance(shown, _Answered):
                        observer.observe(shown.inputs, shown.logits, shown.client)
                    elif isinstance(observer, BuiltIn):
                        observer.swapped(shown)
                except (Exception, SystemExit) as error:  # their own code; others look on
                    self._failed(name, error)
            if isinstance(shown, _Answered):
                with self._counting:
                    self._room += len(shown.inputs)


def _kept(values: Array) -> Array:
    """What may wait: a view that no observer can change, which keeps no larger memory alive."""
    owner = values
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    # Else a slice would keep its whole batch, or a request's body, beyond what `waiting` counts.
    alone = owner.base is None and owner.nbytes <= values.nbytes
    view = values.view() if alone else values.copy()
    view.flags.writeable = False
    return view
