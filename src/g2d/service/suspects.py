"""What a restart must know of suspects: pins, what others have left, budget and cool-downs.

A file of mode 600 beside what serving policies keep, and like it by the vault's path. It names
clients, so it holds the last thousand of each at most, and none for longer than its time. Two
services of one vault on a machine, one of them a standby, take up what the other has written, and
never write over what they have not read: whoever writes holds a lock, and writes both.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from g2d.core.files import read_plain, replace_file
from g2d.core.platforms import held, private_state
from g2d.errors import DAMAGE, VaultError
from g2d.rotation.triggers import AlarmBudget
from g2d.rotation.window import Keeper, Window
from g2d.service.monitors.alarms import AlarmLine
from g2d.service.policy_state import state_file

MOST = 1000
"""Clients of each kind that are kept: the last ones."""
_BYTES, _LONGEST, _NUMBERS = 1 << 24, 256, 64
_SELDOM = 5.0  # seconds between two writings of cool-downs alone: anybody may cause those
_CLOSE = 5.0  # seconds by which moments may differ from what is kept
_WAIT = 1.0  # seconds for the other service to have written


class Pin(NamedTuple):
    """A client under suspicion, the number that it is pinned to, why, and until when (1970)."""

    client: str
    number: int
    why: str
    until: float


@dataclass(frozen=True)
class Kept:
    """All of it; moments in seconds since 1970.

    Attributes:
        left: see `Window`. token: when there is one again. spent: when who had one alarmed last.
            told: kind, client, end of the cool-down, and weight of an alarm that was told.
    """

    left: tuple[int, ...] = ()
    pins: tuple[Pin, ...] = ()
    token: float = 0.0
    spent: Mapping[str, float] = field(default_factory=dict)
    told: tuple[tuple[str, str, float, int], ...] = ()

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Kept:
        """Read what `json` gave; raise one of `DAMAGE` if it is something else."""
        if sorted(said) != ["left", "pins", "spent", "token", "told"]:
            raise ValueError("it lacks a part, or has one too many")
        pins = tuple(
            Pin(_text(c), _whole(n), _text(why), _moment(at)) for c, n, why, at in said["pins"]
        )
        told = tuple(
            (_text(kind), _text(c), _moment(at), _whole(w)) for kind, c, at, w in said["told"]
        )
        spent = {_text(client): _moment(at) for client, at in said["spent"].items()}
        left = tuple(_whole(number) for number in said["left"])
        return cls(left, pins, _moment(said["token"]), spent, told)

    def written(self) -> bytes:
        """As JSON that `of` reads, of each kind the last that fit."""
        few = self.fitting()
        said = {
            "left": few.left, "pins": few.pins, "token": few.token, "spent": dict(few.spent),
            "told": few.told,
        }  # fmt: skip
        return json.dumps(said).encode()

    def fitting(self) -> Kept:
        """Of each kind the last that fit."""
        spent = [(c, at) for c, at in self.spent.items() if len(c) <= _LONGEST]
        return Kept(
            self.left[-_NUMBERS:],
            tuple(pin for pin in self.pins if len(pin.client) <= _LONGEST)[-MOST:],
            self.token,
            dict(spent[-MOST:]),
            tuple(one for one in self.told if max(map(len, one[:2])) <= _LONGEST)[-MOST:],
        )

    def without_ended(self, now: float) -> Kept:
        """What still counts; when who had a rotation is quiet for long enough, a budget says."""
        pins = tuple(pin for pin in self.pins if pin.until > now)
        told = tuple(one for one in self.told if one[2] > now)
        return replace(self, pins=pins, told=told)

    def merged(self, base: Kept, other: Kept) -> Kept:
        """This with what another has added to, or taken away from, what both had before."""
        gone = _gone(base, other)
        pins = {pin.client: pin for pin in self.pins if (pin.client, pin.number) not in gone}
        added = {
            pin.client: pin for pin in other.pins if (pin.client, pin.number) in _added(base, other)
        }
        spent = dict(self.spent)
        for client, at in other.spent.items():
            spent[client] = max(at, spent.get(client, at))
        told = {one[:2]: one for one in sorted((*self.told, *other.told), key=lambda one: one[2])}
        left = tuple(sorted({*self.left, *other.left}))
        token = max(self.token, other.token)
        return Kept(left, tuple((added | pins).values()), token, spent, tuple(told.values()))


class Suspects(Keeper):
    """Keeps what a restart must know of suspects, and says it after one.

    Args:
        now: seconds since 1970. Where that clock is set forward pins end early; set back, none
            lasts longer than it would have, had it begun now.

    Attributes:
        damage: why what was kept could not be read, and is forgotten; "": it could. kept: what was.
    """

    def __init__(self, vault: Path, now: Callable[[], float] = time.time) -> None:
        self._file, self._now = state_file(vault).with_suffix(".suspects"), now
        self._window: Window | None = None
        self._budget: AlarmBudget | None = None
        self._line: AlarmLine | None = None
        self._mutex, self._leaving, self._failed = threading.Lock(), set[int](), False
        self.damage, self.kept = "", Kept()
        self._stamp, self._since = self._stamped(), -math.inf
        try:
            self.kept = self._read()
        except (OSError, *DAMAGE) as error:
            self.damage = (
                f"{self._file} is not what `g2d serve` wrote ({error}): who was pinned and what"
                " cools down is forgotten, and the newest generation alone is live; look why"
            )
            with suppress(OSError):  # the next start tells it again
                self._write(self.kept)

    @property
    def pins(self) -> list[dict[str, Any]]:
        """Pins that were kept, as `Policy.restore` takes them."""
        return [self._restored(pin) for pin in self.kept.pins]

    @property
    def told(self) -> list[tuple[str, str, float, int]]:
        """What was told and cools down, as `Cooldown.restore` takes it."""
        return [(kind, c, at - self._now(), weight) for kind, c, at, weight in self.kept.told]

    def watch(
        self,
        *,
        window: Window | None = None,
        budget: AlarmBudget | None = None,
        line: AlarmLine | None = None,
    ) -> None:
        """Keep what these know from now; a budget goes on where it was."""
        self._window, self._line = window or self._window, line or self._line
        if budget is not None:
            self._budget = budget
            budget.restore(*_budget(self.kept, self._now()))

    def leaving(self, left: Sequence[int]) -> None:
        """Keep what others leave, before they do: after a kill they must not come back."""
        with self._mutex, suppress(OSError):  # `look` tries again, and says so
            self._leaving = {*self._leaving, *left}
            self._write(self._known())

    def look(self) -> None:
        """Keep what has changed, and take up what another service has written.

        Raises:
            VaultError: it cannot be kept; told once until it can be, and tried again.
        """
        try:
            if self._stamped() != self._stamp:
                self._meet()
            with self._mutex:
                self._keep(time.monotonic())
        except OSError as error:
            failed, self._failed = self._failed, True
            if not failed:
                raise VaultError(
                    f"who is pinned cannot be kept in {self._file} ({error.strerror or error}):"
                    " a restart will not know"
                ) from error

    def _meet(self) -> None:
        """Take up what another has written; what is gone, or is no such file, is written anew."""
        with self._mutex:
            stamp, other = self._stamped(), self._found()
            if other is not None:
                self._take_up(other)
            self._stamp, self.kept = stamp, other or Kept()
        if other is not None and self._window is not None:
            self._window.learn(other.left)  # it waits for a swap, and a swap for `leaving`

    def _keep(self, now: float) -> None:
        """Write what has changed, if that is not tried too often; the caller holds the lock."""
        known, kept = self._known(), self.kept
        # What is left no more may stay: another service may still have it live.
        urgent = _places(known) != _places(kept) or not set(known.left) <= set(kept.left)
        if not urgent and not _moved(known, kept, self._now()):
            self._failed = False
        elif (urgent and not self._failed) or now >= self._since + _SELDOM:
            self._since = now
            self._write(known)
            self._failed = False

    def _take_up(self, other: Kept) -> None:
        """What the other has added or taken away since both knew the same; holds the lock."""
        now = self._now()
        if self._window is not None:
            for client, _ in _gone(self.kept, other) & _places(self._known()):
                self._window.release(client)
            added = _added(self.kept, other)
            self._window.restore(
                self._restored(pin) for pin in other.pins if (pin.client, pin.number) in added
            )
            self._leaving = {*self._leaving, *other.left}
        if self._budget is not None:
            self._budget.restore(*_budget(other, now))
        if self._line is not None:
            self._line.restore((kind, c, at - now, w) for kind, c, at, w in other.told)

    def _known(self) -> Kept:
        """What is to be kept now; of what nobody here knows, what was kept."""
        now = self._now()
        kept = self.kept.without_ended(now)
        left, pins, token, spent, told = kept.left, kept.pins, kept.token, kept.spent, kept.told
        if self._window is not None:
            first = self._window.now.live[0].number
            self._leaving = {number for number in self._leaving if number >= first}
            left = tuple(sorted({*self._window.left, *self._leaving}))
            pins = tuple(_pin(one, now) for one in self._window.pins(MOST))
        if self._budget is not None:
            wait, quiet = self._budget.kept()
            token = now + wait if 0 < wait < math.inf else 0.0
            spent = {client: now - seconds for client, seconds in quiet.items()}
        if self._line is not None:
            told = tuple((kind, c, now + s, w) for kind, c, s, w in self._line.kept(MOST))
        return Kept(left, pins, token, spent, told).fitting()

    def _restored(self, pin: Pin) -> dict[str, Any]:
        seconds = pin.until - self._now()
        return {"client": pin.client, "why": pin.why, "generation": pin.number, "seconds": seconds}

    def _read(self) -> Kept:
        try:
            return Kept.of(json.loads(read_plain(self._file, _BYTES)))
        except (FileNotFoundError, NotADirectoryError):
            return Kept()

    def _found(self) -> Kept | None:
        """What lies there; None: nothing, or what no service has written; may raise an OSError."""
        try:
            return self._read() if self._stamped() else None
        except DAMAGE:
            return None

    def _write(self, known: Kept) -> None:
        """Write what is known, and with it what another has written since `look`, which sees it.

        Raises:
            OSError: it cannot be written, or another service holds the lock for too long.
        """
        private_state(self._file.parent.name)
        with held(self._file.with_suffix(".suspects.lock"), _WAIT):  # of all services of it
            ours = self._stamped() == self._stamp
            other = None if ours else self._found()
            whole = known if other is None else known.merged(self.kept, other)
            replace_file(self._file, whole.written(), self._file.with_suffix(".suspects.new"))
            if other is None:
                self._stamp, self.kept = self._stamped(), known

    def _stamped(self) -> tuple[int, ...]:
        """What changes when the file does; (): there is none."""
        try:
            about = os.lstat(self._file)
        except OSError:
            return ()
        return about.st_ino, about.st_mtime_ns, about.st_size


def _pin(told: Mapping[str, Any], now: float) -> Pin:
    """A pin as `Policy.pins` tells it."""
    why = str(told["why"])[:_LONGEST]
    return Pin(told["client"], told["generation"] or 0, why, now + told["seconds"])


def _places(kept: Kept) -> set[tuple[str, int]]:
    """Who is pinned to what."""
    return {(pin.client, pin.number) for pin in kept.pins}


def _gone(base: Kept, other: Kept) -> set[tuple[str, int]]:
    """Pins that another has ended; where its list is full, who lacks in it may be pinned."""
    return _places(base) - _places(other) if len(other.pins) < MOST else set()


def _added(base: Kept, other: Kept) -> set[tuple[str, int]]:
    """Pins that another has made, or moved."""
    return _places(other) - _places(base)


def _budget(kept: Kept, now: float) -> tuple[float, dict[str, float]]:
    """What was kept of a budget, as `AlarmBudget.restore` takes it."""
    return kept.token - now, {client: now - at for client, at in kept.spent.items()}


def _moved(known: Kept, kept: Kept, now: float) -> bool:
    """Whether who has had a rotation, or what cools down, is another, or has another time."""
    new, old = _moments(known), _moments(kept)
    return (
        new.keys() != old.keys()
        or any(abs(at - old[key]) > _CLOSE for key, at in new.items())
        or abs(max(known.token, now) - max(kept.token, now)) > _CLOSE
    )


def _moments(kept: Kept) -> dict[tuple[str, ...], float]:
    """Of who has had a rotation, and of what cools down, the moment that counts."""
    return {(client,): at for client, at in kept.spent.items()} | {
        (kind, client): at for kind, client, at, _ in kept.told
    }


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > _LONGEST:
        raise ValueError("a name is none, or too long")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a number is none")
    return value


def _moment(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("a moment is none")
    return float(value)
