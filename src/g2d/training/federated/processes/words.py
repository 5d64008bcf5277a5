"""What clients and server say to each other around the messages: topics, replies, short notes.

A reply is its kind, a line end, and what belongs to it. Knows neither torch nor NVFlare.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from g2d.errors import FederatedError
from g2d.settings import Settings
from g2d.settings.fields import stored
from g2d.training.federated.form import Form

NEXT, ANSWER, PASS, LEAVE = "next", "answer", "pass", "leave"
TOPICS = (NEXT, ANSWER, PASS, LEAVE)
"""What a client asks: what to do next, to take its answer, to do without it (for a round)."""

WAIT, ROUND, MEMBER, END, TAKEN, UNTAKEN, REFUSED = (
    "wait", "round", "member", "end", "taken", "untaken", "refused"
)  # fmt: skip
KINDS = (WAIT, ROUND, MEMBER, END, TAKEN, UNTAKEN, REFUSED)
"""What a server replies; UNTAKEN: an answer is not taken, REFUSED: the client itself."""

MOST_NOTE = 1 << 16
_MOST_WHY = 200
_OWN = ("members", "workers", "teacher")  # each side decides for itself
_HEX = re.compile(r"[0-9a-f]{64}")


class Reply(NamedTuple):
    """What a server says."""

    kind: str
    data: bytes = b""

    def encode(self) -> bytes:
        """Return its bytes."""
        return self.kind.encode() + b"\n" + self.data

    @property
    def text(self) -> str:
        """What belongs to it as a line, for people."""
        return " ".join(self.data[:2000].decode(errors="replace").split())


def decode_reply(data: bytes) -> Reply:
    """Read a reply.

    Raises:
        FederatedError: it is none.
    """
    kind, end, _ = data[:32].partition(b"\n")
    name = kind.decode(errors="replace")
    if not end or name not in KINDS:
        raise FederatedError(
            f"the server replied {kind[:20]!r}, which is no reply of this release of G2D; use the"
            " same on both sides"
        )
    return Reply(name, data[len(kind) + 1 :])


@dataclass(frozen=True)
class Note:
    """What a client says of itself when it asks.

    Attributes:
        settings: digest of what it trains by. have: SHA-256 of the members that it was sent, by
            name. stage, number, why: of the round that it does not answer.
    """

    settings: str
    have: Mapping[str, str] = field(default_factory=dict)
    stage: str = ""
    number: int = 0
    why: str = ""

    def encode(self) -> bytes:
        """Return its bytes."""
        told = {
            "settings": self.settings, "have": dict(self.have), "stage": self.stage,
            "round": self.number, "why": self.why[:_MOST_WHY],
        }  # fmt: skip
        return json.dumps(told, sort_keys=True).encode()


def decode_note(data: bytes) -> Note:
    """Read a note.

    Raises:
        FederatedError: it is none, or too long.
    """
    if len(data) > MOST_NOTE:
        raise FederatedError(f"a note of {len(data)} bytes, {MOST_NOTE} at most", "size")
    try:
        told: Any = json.loads(data)
    except (RecursionError, ValueError) as error:
        raise FederatedError(f"a note that cannot be read: {error}", "format") from None
    fields = {"settings": str, "have": dict, "stage": str, "round": int, "why": str}
    if not isinstance(told, dict) or told.keys() != fields.keys():
        raise FederatedError("a note of other fields than this release of G2D has", "header")
    if any(type(told[name]) is not kind for name, kind in fields.items()):
        raise FederatedError("a note with a field of the wrong type", "header")
    have = told["have"]
    if not all(isinstance(v, str) and _HEX.fullmatch(v) for v in have.values()):
        raise FederatedError("a note of members without their digests", "header")
    why = ascii(told["why"])[1:-1][:_MOST_WHY]  # it is printed
    return Note(told["settings"], have, told["stage"], told["round"], why)


def settings_digest(settings: Settings, form: Form) -> str:
    """Of all that server and clients have to agree on: model, seed, recipes, rounds.

    Whose data it is, and how many processes work on it, each decides for itself.
    """
    s = settings
    whole = {
        "population": {k: v for k, v in stored(s.population).items() if k not in _OWN},
        "harden": {k: v for k, v in stored(s.harden).items() if k not in _OWN},
        "federated": s.federated.agreed,
        "form": [[name, list(shape)] for name, shape in form.shapes.items()],
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def digest_of_bytes(data: bytes) -> str:
    """SHA-256 of a message."""
    return hashlib.sha256(data).hexdigest()
