"""What a service tells, one dataclass an event; what its rotation tells is in `rotation.events`."""

from __future__ import annotations

from dataclasses import dataclass

from g2d.core.types import Values
from g2d.rotation.events import Event


@dataclass(frozen=True)
class Rejected(Event):
    """A candidate failed its gates; each is one's verdict as JSON has it, with `gate`, its name."""

    name = "rejected"
    generation: int
    gates: tuple[Values, ...]


@dataclass(frozen=True)
class Hurried(Event):
    """The worker got too little of a core, and now runs at a higher priority."""

    name = "hurried"
    text: str


@dataclass(frozen=True)
class Admin(Event):
    """An operator's call was let in; `who` and `how` say whose, `client` from which address."""

    name = "admin"
    client: str
    call: str
    who: str | None = None
    how: str | None = None


@dataclass(frozen=True)
class AdminUntold(Admin):
    """One that no listener hears of: it would tell an attacker when something is seen of him."""

    public = False


@dataclass(frozen=True)
class Released(Event):
    """An operator has let a client move again that was pinned; `who` is the operator."""

    name = "released"
    public = False
    client: str
    who: str | None = None


@dataclass(frozen=True)
class WrongToken(Event):
    """A call came with a wrong token, or with none."""

    name = "wrong_token"
    public = False
    client: str
    call: str


@dataclass(frozen=True)
class Denied(Event):
    """Somebody who may not has asked; `unsaid`: how many such were not told since the last."""

    name = "denied"
    public = False
    client: str
    call: str
    reason: str
    text: str
    who: str | None = None
    how: str | None = None
    unsaid: int | None = None


@dataclass(frozen=True)
class AccessChanged(Event):
    """Files that say who may ask changed, and count from now on; by their flags."""

    name = "access_changed"
    public = False
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Crowded(Event):
    """Connections gave way to new ones or were refused, so many since this was last told."""

    name = "crowded"
    public = False
    open: int
    gave_way: int
    refused: int


@dataclass(frozen=True)
class HeldOff(Event):
    """A client guessed the admin's token, and is heard again after `seconds` only."""

    name = "held_off"
    public = False
    client: str
    seconds: float


@dataclass(frozen=True)
class Broken(Event):
    """The model raised something on a request's inputs."""

    name = "broken"
    public = False
    text: str


@dataclass(frozen=True)
class KeysTaken(Event):
    """A client's evaluation keys were taken, of so many bytes; `who` and `how` say whose."""

    name = "keys taken"
    public = False
    client: str
    bytes: int
    who: str | None = None
    how: str | None = None


@dataclass(frozen=True)
class Stopping(Event):
    """The coordinator ends."""

    name = "stopping"
    live: int


@dataclass(frozen=True)
class ReplicaJoined(Event):
    """A replica has said for the first time that it is there."""

    name = "replica"
    replica: str
    generation: int


@dataclass(frozen=True)
class RolledOut(Event):
    """Every replica that is there answers from a generation, `seconds` after the swap."""

    name = "rolled out"
    generation: int
    replicas: int
    seconds: float


@dataclass(frozen=True)
class Signed(Event):
    """The worker has signed a generation; `signer` is the fingerprint of the key that it used."""

    name = "signed"
    generation: int
    signer: str


@dataclass(frozen=True)
class Configured(Event):
    """What a service was started with; `digest` is the SHA-256 of the options in canonical JSON."""

    name = "configuration"
    public = False
    digest: str
    options: Values
    vault: str
    version: str
    admin: bool
    key: tuple[str, ...] = ()


@dataclass(frozen=True)
class Started(Event):
    """The service answers; `replicas` and `lease` (s) where it has any, else the `layout`."""

    name = "start"
    public = False
    generation: int
    address: str
    pid: int
    replicas: int | None = None
    lease: float | None = None
    layout: str | None = None


@dataclass(frozen=True)
class Serving(Event):
    """Under which policy it answers, what, and from which generations, oldest first, at the start.

    Pins are not kept: who was pinned before this start is where the policy says.
    """

    name = "serving"
    public = False
    policy: str
    answers: str
    live: tuple[int, ...]


@dataclass(frozen=True)
class Stopped(Event):
    """The service has ended in order."""

    name = "stop"
    public = False
    generation: int | None = None


@dataclass(frozen=True)
class Fault(Event):
    """The server logs an error of its own: of an exception its type and where, not its values."""

    name = "server"
    public = False
    text: str
    logger: str
    error: str | None = None
    trace: tuple[str, ...] | None = None
