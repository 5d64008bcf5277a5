"""Puts the parts together and runs them under uvicorn until SIGTERM or Ctrl-C."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import uvicorn

from g2d.core import platforms
from g2d.errors import G2DError, SettingsError
from g2d.report.results import results_path
from g2d.service.access.tls import ServerTls
from g2d.service.assembly import Parts, assemble, rotate_vault
from g2d.service.auditing import NONE, configured, open_audit, refused_start
from g2d.service.http.app import Service
from g2d.service.http.connection import Connection, within
from g2d.service.http.door import Door
from g2d.service.http.events import Crowded, Fault, Serving, Started, Stopped
from g2d.service.http.limits import AdminToken
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.http.places import Places
from g2d.service.http.startup import leave
from g2d.service.monitors.observer import Observers
from g2d.service.opening import open_live
from g2d.settings import ServeSettings

if TYPE_CHECKING:
    from g2d.protect.audit.log import AuditLog
    from g2d.rotation.events import Tell
    from g2d.service.encrypted.opening import EncodingLoader, Encrypted
    from g2d.service.loader import VaultLoader

_BACKLOG = 65_535  # who waits in the system's queue is no descriptor of ours; it takes fewer
_CONNECTIONS, _FILES = 2000, 100  # at once; descriptors besides: the vault, the worker, libraries
_SWITCH = 5e-4  # seconds that a thread may keep the interpreter; Python's 5 ms is a late answer


def listen(options: Options) -> socket.socket:
    """Open the service's socket, so that a port in use is said before anything is loaded.

    Raises:
        SettingsError: the address cannot be bound.
    """
    host = options.host.strip("[]")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        try:
            # Windows' SO_REUSEADDR would let a second service take the port from the first.
            once = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
            bound.setsockopt(socket.SOL_SOCKET, once, 1)
            bound.bind(address)
            bound.listen(_BACKLOG)  # only this keeps a second service off; who connects waits
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot bind to {options.host} port {options.port} ({error.strerror}); choose another"
            " --port, or --port 0 for any free one"
        ) from error
    bound.set_inheritable(False)
    return bound


def connections(log: Callable[..., None]) -> int:
    """Return how many connections there may be; make room for file descriptors if there is little.

    Without one left the service could not even open its vault.
    """
    if (resource := platforms.resource) is None:  # Windows limits sockets by memory alone
        return _CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _CONNECTIONS + _FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return _CONNECTIONS
    found = max(16, soft - _FILES)
    text = f"of {soft} file descriptors {found} are for connections: raise `ulimit -n` to {needed}"
    log("few_descriptors", text=text)
    return found


class _UvicornLog(logging.Handler):
    """Turns what uvicorn logs, an exception above all, into events."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record; of an exception its type and where it was raised, not its values."""
        facts: dict[str, Any] = {}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            places = traceback.extract_tb(error.__traceback__)
            facts["error"] = type(error).__name__
            facts["trace"] = tuple(f"{place.filename}:{place.lineno}" for place in places[-8:])
        self._tell(Fault(record.getMessage(), record.name, **facts))


class Server(uvicorn.Server):
    """uvicorn's server with doors of ours, which says when it begins to drain.

    Args:
        config: its `http` is a class from `connection.within`; it knows nothing of TLS. ending:
            called as it begins to drain.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        places: Places,
        ending: Callable[[], None] = lambda: None,
        tls: ServerTls | None = None,
    ) -> None:
        super().__init__(config)
        self._places, self._ending, self._tls = places, ending, tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the application's start, then open the doors; uvicorn itself accepts nothing."""
        await super().startup(sockets=[])
        config = self.config

        def make() -> Connection:
            kind: Any = config.http_protocol_class
            made: Connection = kind(config, self.server_state, self.lifespan.state)
            return made

        patience: float = config.http_protocol_class.patience  # type: ignore[attr-defined]
        context = self._tls.current if self._tls else lambda: None
        doors = [Door(one, self._places, make, patience, context) for one in sockets or ()]
        for door in doors:
            door.open()
        self.servers: list[Any] = [*doors]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal; uvicorn gives up waiting on a second Ctrl-C."""
        self._ending()
        super().handle_exit(sig, frame)


def serve(
    vault: Path,
    options: Options,
    *,
    bound: socket.socket,
    token: bytes | None = None,
    key: Path | None = None,
    served: Path | None = None,
    data: str = "",
    audit: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a vault's live generation and rotate it, until SIGTERM or Ctrl-C has drained it.

    Args:
        bound: from `listen`. key: public key file; None: generations need no signature. served:
            see `VaultLoader`. audit: see `open_audit`. say: called with lines for the operator.

    Raises:
        G2DError: there is nothing that may be served, or an observer cannot be made.
    """
    log, trusted = Log(), read_public_key(key)
    audited, loader = open_audit(audit, vault, say), None  # first: it hears why a start is refused
    try:
        kind = _loading(vault, options)
        loader = kind(vault, options.name, data, trusted, served, layout=options.layout)
        sys.setswitchinterval(_SWITCH)
        observers = Observers(options.observer)  # may import the task's code, which is held now
        serving = options.serving(loader.serving)
        encrypted = loader.encrypt(options, serving)
        parts = _assemble(loader, vault, data, options, token, log, observers, audited, encrypted)
    except BaseException as error:
        if loader is not None:
            loader.close()
        if audited is not None:
            if isinstance(error, G2DError):
                audited.tell(refused_start(error))
            audited.close()
        raise
    service, rotation, tell = parts.service, parts.rotation, parts.event_log.tell
    address = f"{'https' if options.tls_cert else 'http'}://{_where(bound)}"
    say(f"generation {rotation.live} is live at {address}/v2/models/{options.name}")
    warn(options, token, key, log, say)
    tell(configured(options, vault, token is not None, trusted))
    _tell_start(parts, serving, address)
    if encrypted is not None:
        say(encrypted[0].told(address))
    if audited is None and audit != NONE:
        rotation.alarm("audit", "no audit log is written; the first lines say why", rotate=False)
    parts.monitor.start()
    with ExitStack() as ending:
        ending.callback(log.close)
        if audited is not None:
            ending.callback(audited.close)
        ending.callback(lambda: tell(Stopped(rotation.live)))
        stops = loader.close, parts.desk.close, rotation.stop, parts.monitor.stop
        for stop in stops:  # the last one first
            ending.callback(stop)
        _run(service, options, bound, log)


def _tell_start(parts: Parts, serving: ServeSettings, address: str) -> None:
    """Say that it answers; under a policy, or where answers are shaped, how."""
    snapshots = parts.live.snapshots
    number, layout = parts.rotation.live, parts.live.snapshot.layout
    parts.event_log.tell(Started(number, address, os.getpid(), layout=layout))
    if serving != ServeSettings():
        live = tuple(snapshot.number for snapshot in snapshots)
        parts.event_log.tell(Serving(serving.policy, serving.answers, live))


def _assemble(
    loader: VaultLoader, vault: Path, data: str, options: Options, token: bytes | None, log: Log,
    observers: Observers, audit: AuditLog | None = None, encrypted: Encrypted = None,
) -> Parts:  # fmt: skip
    opened = open_live(loader, options.serving(loader.serving), vault)
    live, warning, left_out, suspects = opened
    parts = assemble(
        loader,
        live,
        lambda tell: rotate_vault(vault, loader, live, options, tell, data, suspects=suspects),
        options,
        AdminToken(token),
        log,
        observers,
        vault,
        # A red team's rows are counts of people's own records, without noise: for the owner alone.
        None if loader.private else results_path(vault),
        loader.now,
        audit,
        ServerTls(options, token is not None) if options.tls_cert else None,
        suspects,
        encrypted,
    )
    parts.event_log.remember(loader.exposures())
    if warning:
        parts.rotation.alarm(warning.reason, str(warning))
    if left_out:
        parts.rotation.alarm("policy", left_out, rotate=False)
    return parts


def _loading(vault: Path, options: Options) -> type[EncodingLoader]:
    """What loads generations: all of them, or those alone that were released to this host."""
    from g2d.service.encrypted.opening import EncodingLoader
    from g2d.service.released import holds_releases_alone, refuse_triggers

    if not holds_releases_alone(vault):
        return EncodingLoader
    refuse_triggers(options)
    from g2d.service.released_loader import ReleasedLoader

    return ReleasedLoader


def read_public_key(key: Path | None) -> Any:
    """Read what `--key` names; None if it names nothing."""
    if key is None:
        return None
    from g2d.vault.signing import VerifyKey

    return VerifyKey.read(key)


def _run(service: Service, options: Options, bound: socket.socket, log: Log) -> None:
    gc.freeze()  # what is loaded stays: collecting it again would stop answers for 50 ms
    config = uvicorn.Config(
        service, http=within(options.timeout, service.access), loop=_loop(), ws="none",
        lifespan="on", log_config=None, access_log=False, server_header=False, date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(options.drain)), timeout_keep_alive=30,
    )  # fmt: skip

    def ending() -> None:
        service.draining = True
        # Not here: a signal may interrupt this very thread while it holds the event log's lock.
        threading.Thread(target=service.event_log.close).start()

    errors = logging.getLogger("uvicorn")
    errors.handlers, errors.propagate = [_UvicornLog(service.event_log.tell)], False
    # uvicorn raises what it caught again once it has drained: then this handler ends it with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None if service.draining else leave())
    places = _places(service, connections(log))
    Server(config, places, ending, service.access.tls).run(sockets=[bound])


def _places(service: Service, most: int) -> Places:
    def told(open_: int, gone: int, refused: int) -> None:
        service.event_log.tell(Crowded(open_, gone, refused))

    def count(why: str) -> None:
        service.metrics.ended.labels(why).inc()

    places = Places(most, service.options.client_connections or max(1, most // 2), told, count)
    service.metrics.connections.set_function(lambda: float(len(places.all)))
    return places


def _loop() -> Literal["uvloop", "asyncio"]:
    """The fast event loop; asyncio's own where there is none (Windows)."""
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return "asyncio"
    return "uvloop"


def _where(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def warn(
    options: Options, token: bytes | None, key: Path | None, log: Log, say: Callable[[str], None]
) -> None:
    """Say loudly what an operator may not have meant."""
    if options.exposed and not options.tls_cert:
        text = (
            f"EXPOSED WITHOUT TLS: {options.host} is open to other machines; inputs, answers and"
            " admin tokens travel in the clear. Give --tls-cert and --tls-key, or keep to loopback"
            " behind a proxy"
        )
        say(f"WARNING: {text}.")
        log("exposed", host=options.host, text=text)
    if options.exposed and not options.authenticated:
        text = (
            f"EXPOSED WITHOUT AUTHENTICATION: {options.host} is open to other machines, and whoever"
            " reaches it may infer and read status, events and metrics. Give --client-ca or --jwks,"
            " or keep to loopback behind a proxy that asks who it is"
        )
        say(f"WARNING: {text}.")
        log("exposed", host=options.host, text=text)
    if token is None and not options.authenticated:
        say("admin calls are off: no token was given")
    if key is None:
        say("generations are served unsigned: give --key to have their signatures verified")
