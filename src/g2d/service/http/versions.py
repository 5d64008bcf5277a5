"""What a client is told in place of a generation, and what nobody but an operator may know.

Where the newest generation answers everybody, it is its number: that publishes when it rotates.
Under every other policy it is a tag, and what tells of rotations is told to who may observe alone.
"""

from __future__ import annotations

from typing import Any

import orjson

from g2d.rotation.control import RotationControl
from g2d.rotation.window import Window
from g2d.service.access.identity import OBSERVE, OPERATE, Caller
from g2d.service.http.protocol import RequestError
from g2d.settings.serve import STICKY

_NO_PINS = "the serving policy is {}, which pins nobody; only sticky does"
_TOLD = frozenset({OBSERVE, OPERATE})
_SECRET: dict[str, Any] = {
    "generation": None, "age": 0.0, "countdown": None, "every": None, "queries": None,
    "answered": 0, "spare": None, "due": [], "late": 0.0, "failures": 0, "paused": False,
    "unready": None, "layout": None,
}  # fmt: skip


class Versions:
    """Numbers, for everybody."""

    hidden = False
    """Whether rotations are nobody's business but an operator's."""

    def __init__(self, rotation: RotationControl) -> None:
        self._rotation = rotation

    def current(self, caller: Caller) -> int | str:
        """What a caller would be answered by now."""
        return self._rotation.live

    def of(self, caller: Caller, numbers: tuple[int, ...]) -> int | str:
        """What a caller is told of the generations that answered."""
        return numbers[-1]

    def parameters(self, caller: Caller, numbers: tuple[int, ...]) -> dict[str, Any] | None:
        """What `parameters` of an answer say besides; None: the version as it is."""
        return None

    def knows(self, caller: Caller) -> bool:
        """Whether a caller may know when it rotates."""
        return True

    def tells(self, caller: Caller) -> bool:
        """Whether what a caller is told of an answer names one generation, and no other."""
        return True

    def release(self, client: str) -> bool:
        """Let a client move again that is pinned; return whether it was.

        Raises:
            RequestError: 409, the policy pins nobody.
        """
        raise RequestError(409, _NO_PINS.format("global"))

    def status(self) -> dict[str, Any]:
        """What `/status` says of several that are live; {}: there is one."""
        return {}


class Tags(Versions):
    """Tags, each one client's alone; numbers only to who says who he is and may observe."""

    hidden = True

    def __init__(self, rotation: RotationControl, window: Window, policy: str) -> None:
        super().__init__(rotation)
        self._window, self._policy = window, policy

    def current(self, caller: Caller) -> int | str:
        """The caller's tag, of what would answer it now."""
        chosen = self._window.choose(caller.client, b"")
        return self.of(caller, tuple(snapshot.number for snapshot in chosen))

    def of(self, caller: Caller, numbers: tuple[int, ...]) -> int | str:
        """The caller's tag."""
        return self._window.tag(caller.client, numbers)

    def parameters(self, caller: Caller, numbers: tuple[int, ...]) -> dict[str, Any] | None:
        """To who may know, the numbers; of several as a text, for the protocol takes no lists."""
        if not self.knows(caller):
            return None
        if len(numbers) == 1:
            return {"generation": numbers[0]}
        return {"generation": self.of(caller, numbers), "generations": _text(numbers)}

    def knows(self, caller: Caller) -> bool:
        """Whether the caller has said who he is, and may observe or operate."""
        return bool(caller.name) and not _TOLD.isdisjoint(caller.roles)

    def tells(self, caller: Caller) -> bool:
        """Whether numbers or a tag do: under other policies a client has one tag for all."""
        return self.knows(caller) or self._policy == STICKY

    def release(self, client: str) -> bool:
        """Let a client move again that is pinned."""
        if self._policy != STICKY:
            raise RequestError(409, _NO_PINS.format(self._policy))
        return self._window.release(client)

    def status(self) -> dict[str, Any]:
        """The policy, and what it makes of the generations that answer."""
        return {"serving": {"policy": self._policy, **self._window.status()}}


def hidden(status: dict[str, Any]) -> dict[str, Any]:
    """Return a status, or a part of it, without anything that tells of rotations.

    Everything is there that was, so that the page reads it; `hidden` says that this is not so.
    """
    told = {key: value for key, value in status.items() if key in _OPEN}
    empty: dict[str, Any] = {key: [] for key in ("history", "alarms", "rejected") if key in status}
    return told | empty | {"hidden": True, "rotation": dict(_SECRET)}


_OPEN = ("model", "ready", "now", "traffic", "admin", "redteam")


def _text(numbers: tuple[int, ...]) -> str:
    return orjson.dumps(numbers).decode()
