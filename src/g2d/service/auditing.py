"""Where a service meets its audit log: opening it, what it is told first, who hears its alarms.

The log itself is in `protect.audit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from g2d.errors import G2DError
from g2d.protect.audit.log import AuditLog, open_log
from g2d.protect.audit.records import Head, canonical, digest
from g2d.rotation.events import Event, Refused, Tell
from g2d.service.http.events import Configured
from g2d.service.http.log import Log
from g2d.service.http.options import Options

if TYPE_CHECKING:
    from g2d.vault.keys import VerifyKey

NONE = "none"
"""What `--audit` says where no log is wanted."""


class TellAt(Protocol):
    """Takes an event, and when it happened (seconds since 1970) if that was not now."""

    def __call__(self, event: Event, at: float | None = None) -> None:
        """Take it; called from any thread."""


def open_audit(choice: str, vault: Path, say: Callable[[str], None]) -> AuditLog | None:
    """Open the audit log of a service; None: there is none.

    Args:
        choice: a file; `NONE`; "": the vault's own, in the state folder. say: told what the
            operator should know.

    Raises:
        G2DError: the file that was asked for cannot be written. Where none was asked for, that is
            said, and the service goes without.
    """
    if choice == NONE:
        say("no audit log is written")
        return None
    try:
        audit = open_log(Path(choice) if choice else None, vault)
    except G2DError as error:
        if choice:
            raise
        say(f"WARNING: no audit log is written: {error}")
        return None
    say(f"the audit log is {audit.path}")
    return audit


def connect(audit: AuditLog | None, tell: Tell, dropped: Callable[[int], None], log: Log) -> None:
    """Let an audit log's alarms be heard, its losses be counted, and its heads stand elsewhere too.

    A head in the log lines that somebody collects is an anchor that no one who writes this
    machine's files can change.
    """
    if audit is None:
        return
    path = str(audit.path)

    def note(head: Head) -> None:
        log("audit", file=path, head=str(head))

    audit.connect(tell, dropped, note)


def configured(options: Options, vault: Path, admin: bool, key: VerifyKey | None) -> Configured:
    """What a service was started with; no secret is among its options."""
    from g2d import __version__

    said = asdict(options)
    trusted = () if key is None else key.fingerprints
    place = str(vault.absolute())
    return Configured(digest(canonical(said)), said, place, __version__, admin, trusted)


def refused_start(error: G2DError) -> Refused:
    """Why a service did not start, as its audit log is told."""
    number, reason = getattr(error, "number", None), getattr(error, "reason", None)
    return Refused(generation=number or 0, reason=str(reason or "start"), text=str(error))


@contextmanager
def audited(choice: str, vault: Path, log: Log, say: Callable[[str], None]) -> Iterator[TellAt]:
    """The audit log of a cluster, beside its coordinator; its own alarms are log lines."""
    audit = open_audit(choice, vault, say)

    def tell(event: Event, at: float | None = None) -> None:
        if audit is not None:
            audit.tell(event, at)

    def warn(event: Event) -> None:
        log(event.name, **event.facts())
        tell(event)

    connect(audit, warn, lambda _: None, log)
    try:
        yield tell
    except G2DError as error:
        tell(refused_start(error))
        raise
    finally:
        if audit is not None:
            audit.close()
