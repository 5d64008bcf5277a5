"""What a restart must know of suspects: pins, what others have left, budget and cool-downs.

A file of mode 600 beside what serving policies keep, and like it by the vault's path. It names
clients, so it holds the last thousand of each at most, and none for longer than its time. Two
services of one vault on a machine, one of them a standby, take up what the other has written.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from g2d.core.files import read_plain, replace_file
from g2d.core.platforms import private_state
from g2d.errors import DAMAGE, VaultError
from g2d.rotation.triggers import AlarmBudget
from g2d.rotation.window import Keeper, Window
from g2d.service.monitors.alarms import AlarmLine
from g2d.service.policy_state import state_file

MOST = 1000
"""Clients of each kind that are kept: the last ones."""
_BYTES, _LONGEST, _NUMBERS = 1 << 24, 256, 64
_SELDOM = 5.0  # seconds between two writings of cool-downs alone: anybody may cause those


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
        pins = [pin for pin in self.pins if len(pin.client) <= _LONGEST][-MOST:]
        told = [one for one in self.told if max(map(len, one[:2])) <= _LONGEST][-MOST:]
        spent = {c: at for c, at in self.spent.items() if len(c) <= _LONGEST}
        said = {
            "left": self.left[-_NUMBERS:], "pins": pins, "token": self.token,
            "spent": dict(list(spent.items())[-MOST:]), "told": told,
        }  # fmt: skip
        return json.dumps(said).encode()


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
        self._mutex, self._leaving = threading.Lock(), tuple[int, ...]()
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
            self._budget, now = budget, self._now()
            quiet = {client: now - at for client, at in self.kept.spent.items()}
            budget.restore(self.kept.token - now, quiet)

    def leaving(self, left: Sequence[int]) -> None:
        """Keep what others leave, before they do: after a kill they must not come back."""
        with self._mutex, suppress(OSError):  # `look` tries again, and says so
            self._leaving = tuple(left)
            self._write(self._known())

    def look(self) -> None:
        """Keep what has changed, and take up what another service has written.

        Raises:
            VaultError: it cannot be kept; tried again when there is something new.
        """
        if self._stamped() != self._stamp:
            with suppress(OSError, *DAMAGE):  # a start says so
                self._take_up(self._read())
            self._stamp = self._stamped()
        try:
            with self._mutex:
                self._keep(time.monotonic())
        except OSError as error:
            raise VaultError(
                f"who is pinned cannot be kept in {self._file} ({error.strerror or error}):"
                " a restart will not know"
            ) from error

    def _keep(self, now: float) -> None:
        """Write what has changed; the caller holds the lock."""
        known = self._known()
        urgent = _places(known) != _places(self.kept) or set(known.left) != set(self.kept.left)
        seldom = now >= self._since + _SELDOM and _clients(known) != _clients(self.kept)
        if urgent or seldom:
            self._since, self.kept = now, known  # what cannot be kept is told once
            self._write(known)

    def _take_up(self, other: Kept) -> None:
        """Three ways: what the other has added or taken away since both knew the same."""
        if self._window is not None:
            base, theirs = _places(self.kept), _places(other)
            if len(theirs) < MOST:  # else the list was full, and who lacks in it may be pinned
                here = _places(self._known())
                for client, _ in (base - theirs) & here:
                    self._window.release(client)
            added = [pin for pin in other.pins if (pin.client, pin.number) in theirs - base]
            self._window.restore(self._restored(pin) for pin in added)
            self._window.learn(other.left)
        self.kept = other

    def _known(self) -> Kept:
        """What is to be kept now; of what nobody here knows, what was kept."""
        now, kept = self._now(), self.kept
        left, pins, token, spent, told = kept.left, kept.pins, kept.token, kept.spent, kept.told
        if self._window is not None:
            left = tuple(sorted({*self._window.left, *self._leaving}))
            pins = tuple(_pin(one, now) for one in self._window.pins(MOST))
        if self._budget is not None:
            wait, quiet = self._budget.kept()
            token = now + wait if math.isfinite(wait) else 0.0
            spent = {client: now - seconds for client, seconds in quiet.items()}
        if self._line is not None:
            told = tuple((kind, c, now + s, w) for kind, c, s, w in self._line.kept(MOST))
        return Kept(left, pins, token, spent, told)

    def _restored(self, pin: Pin) -> dict[str, Any]:
        seconds = pin.until - self._now()
        return {"client": pin.client, "why": pin.why, "generation": pin.number, "seconds": seconds}

    def _read(self) -> Kept:
        try:
            return Kept.of(json.loads(read_plain(self._file, _BYTES)))
        except FileNotFoundError:
            return Kept()

    def _write(self, kept: Kept) -> None:
        private_state(self._file.parent.name)
        replace_file(self._file, kept.written(), self._file.with_suffix(f".{os.getpid()}"))
        self._stamp, self.kept = self._stamped(), kept

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


def _clients(kept: Kept) -> tuple[set[str], set[tuple[str, str]]]:
    """Who has had a rotation, and what cools down about whom."""
    return set(kept.spent), {(kind, client) for kind, client, _, _ in kept.told}


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
