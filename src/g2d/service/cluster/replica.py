"""A replica: the service of one machine (`service.assembly`) led by a coordinator's updates.

It answers only with a lease, and only from what is live as far as it knows; else 503. It is a warm
standby for what comes: an announced generation is verified and loaded before it is due. Knows no
Ray: `deployment` gives it a `CoordinatorClient`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from g2d.errors import G2DError
from g2d.rotation.events import Alarm, Event, Refused
from g2d.rotation.snapshot import Live, Snapshot
from g2d.service.assembly import assemble as assemble_service
from g2d.service.cluster.lease import (
    AnnouncedGeneration,
    CoordinatorUpdate,
    Follower,
    ReplicaReport,
    Terms,
)
from g2d.service.cluster.mirror import GenerationBytes, Mirror, MirrorLoader, VaultIdentity
from g2d.service.http.events import Stopping
from g2d.service.http.limits import AdminToken
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.http.protocol import RequestError
from g2d.service.http.types import Asgi, Message, Receive, Scope, Send
from g2d.service.http.v2 import without
from g2d.service.monitors.observer import Observers
from g2d.vault.keys import VerifyKey

_BOUND = ("/v2/health/ready", "/v2/repository/index")  # besides what is asked of the model
_PATIENCE = 60.0  # seconds that a replica which starts looks for the coordinator


class AwayError(Exception):
    """The coordinator did not answer in time, or is not there."""


class CoordinatorClient(Protocol):
    """A replica's way to the coordinator; calls raise `AwayError` or return within seconds."""

    def identity(self) -> VaultIdentity:
        """Describe the vault."""
        ...

    def watch(self, report: ReplicaReport, patience: float) -> CoordinatorUpdate:
        """Long-poll for an update, `patience` seconds at most."""
        ...

    def fetch(self, announced: AnnouncedGeneration, patience: float) -> GenerationBytes:
        """Get an announced generation's bytes."""
        ...

    def send(self, call: str, *arguments: Any) -> Future[Any]:
        """Call a method of the coordinator; the future raises `AwayError`."""
        ...


@dataclass(frozen=True)
class ReplicaSpec:
    """What every replica is given when it is deployed.

    `marks`: the secret that replicas' marks are derived from; b"": they carry none.
    """

    options: Options
    terms: Terms
    admin_token: AdminToken
    data: str = ""
    key: VerifyKey | None = None
    marks: bytes = field(default=b"", repr=False)


class GenerationSync:
    """Follows the coordinator from a thread of its own, and loads what is announced from another.

    Polling goes on while a generation loads, so a load may take longer than a lease.
    """

    def __init__(self, coordinator: CoordinatorClient, spec: ReplicaSpec, name: str) -> None:
        self._coordinator, self._spec, self._name = coordinator, spec, name
        self._mutex, self._ending = threading.Lock(), threading.Event()
        self._term, self._sequence, self._event, self._inputs = "", -1, 0, 0
        self._loading, self._took = 0, 0.0
        self.status: Mapping[str, Any] = {}
        self.tell: Callable[[Event, float | None], None] = lambda _event, _at: None
        asked, update, first = self._begin()
        self.live = Live(first)
        self._spares = {first.number: first}
        self._since = time.monotonic()
        self.follower = Follower(spec.terms, first.number)
        self.follower.loaded = first.number
        self.follower.hear(update.live.number, 0, asked)
        self.status = update.status
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more; without a lease nothing is answered soon."""
        self._ending.set()
        self._coordinator.send("leave", self._name)
        self._mirror.remove()  # its threads end by themselves; they hold nothing else

    def may_answer(self) -> bool:
        """Whether an answer may leave now."""
        return self.follower.may_answer(time.monotonic())

    def count(self, inputs: int) -> None:
        """Count answered inputs for the coordinator's trigger; by the one thread that infers."""
        self._inputs += inputs

    def send(self, call: str, *arguments: Any) -> Future[Any]:
        """Call a method of the coordinator."""
        return self._coordinator.send(call, *arguments)

    def about(self) -> dict[str, Any]:
        """What a status says of this replica."""
        left = self.follower.left(time.monotonic())
        return {"replica": self._name, "pid": os.getpid(), "lease_left": round(left, 3),
                "answers": self.may_answer(), "age": time.monotonic() - self._since,
                "refused": {str(n): text for n, text in self.follower.refused.items()}}  # fmt: skip

    # --- the first contact -----------------------------------------------------------------------

    def _begin(self) -> tuple[float, CoordinatorUpdate, Snapshot]:
        """Ask the coordinator before anything else: what a replica had before does not count."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                asked = time.monotonic()
                update = self._coordinator.watch(ReplicaReport(""), self._spec.terms.patience)
                mirror = Mirror.make(self._coordinator.identity())
                break
            except AwayError as error:
                if time.monotonic() > until:
                    raise G2DError(f"no coordinator within {_PATIENCE:g} s: {error}") from error
                self._ending.wait(self._spec.terms.retry)
        options = self._spec.options
        try:
            packed = self._coordinator.fetch(update.live, _PATIENCE)
            mirror.take(packed, update.live.digest)
            mirror.activate(packed.number)
            loader = MirrorLoader(
                mirror.path, options.name, self._spec.data, self._spec.key, layout=options.layout,
                marks=(self._spec.marks, self._name),
            )  # fmt: skip
            first, _ = loader.first()
        except BaseException:
            mirror.remove()
            raise
        self._mirror, self.loader = mirror, loader
        return asked, update, first

    # --- the threads -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending.is_set():
            asked = time.monotonic()
            try:
                update = self._coordinator.watch(self._report(), self._spec.terms.patience)
            except AwayError:
                self._ending.wait(self._spec.terms.retry)
                continue
            try:
                if not self._ending.is_set():
                    self._hear(update, asked)
            except Exception as error:  # if it ended, the replica would refuse for good
                self.tell(Alarm("link", f"{type(error).__name__}: {error}"), None)
                self._ending.wait(self._spec.terms.retry)

    def _report(self) -> ReplicaReport:
        follower = self.follower
        about = {"pid": os.getpid(), "node": socket.gethostname(), "load_seconds": self._took}
        return ReplicaReport(
            self._name, self._term, self._sequence, self._event, self.live.number,
            follower.loaded, dict(follower.refused), self._inputs, about,
        )  # fmt: skip

    def _hear(self, update: CoordinatorUpdate, asked: float) -> None:
        spare = update.spare.number if update.spare else 0
        with self._mutex:
            wanted = self.follower.hear(update.live.number, spare, asked)
            swapped = self._swap()
            load = bool(wanted) and not self._loading
            self._loading = wanted if load else self._loading
        if swapped:
            self._coordinator.send("note", self._report())
        if load:
            announced = update.spare if update.spare and wanted == spare else update.live
            threading.Thread(target=self._load, args=(announced,), daemon=True).start()
        self._term, self._sequence, self._event = update.term, update.sequence, update.event
        self.status = update.status
        for happened in update.events:
            self.tell(happened.event, happened.at)

    def _load(self, announced: AnnouncedGeneration) -> None:
        """Fetch, verify and load what is announced; swap if it is live by then."""
        number, began = announced.number, time.monotonic()
        try:
            packed = self._coordinator.fetch(announced, _PATIENCE)
            self._mirror.take(packed, announced.digest)
            snapshot = self.loader.load(number, self.live.number)
            self._took = time.monotonic() - began
            with self._mutex:
                self._spares[number] = snapshot
                self.follower.load(number)
                self._swap()
        except (AwayError, G2DError) as error:
            with self._mutex:
                self.follower.refuse(number, str(error))
            reason = str(getattr(error, "reason", "away"))
            self.tell(Refused(reason=reason, text=str(error), live=self.live.number), None)
            self._ending.wait(self._spec.terms.retry)
        finally:
            self._loading = 0
        self._coordinator.send("note", self._report())

    def _swap(self) -> bool:
        """Let the follower's generation answer; the caller holds the lock."""
        number = self.follower.live
        if number == self.live.number:
            return False
        self.live.swap(self._spares[number])
        self._spares = {n: spare for n, spare in self._spares.items() if n >= number}
        self._since = time.monotonic()
        try:
            self._mirror.retire(number)
        except G2DError as error:  # a full disk: what is in memory answers all the same
            self.tell(Alarm("mirror", str(error)), None)
        return True


class RemoteRotation:
    """A `RotationControl` whose rotation runs far away, beside the coordinator."""

    def __init__(self, sync: GenerationSync) -> None:
        self._sync = sync

    @property
    def live(self) -> int:
        """Number of the generation that answers here."""
        return self._sync.live.number

    def start(self) -> None:
        """Begin to follow."""
        self._sync.start()

    def stop(self) -> None:
        """Follow no more."""
        self._sync.stop()

    def status(self) -> dict[str, Any]:
        """The coordinator's status as it was last heard, and this replica's own."""
        about = self._sync.about()
        own = {"generation": self.live, "age": about["age"], "replica": about,
               "layout": self._sync.live.snapshot.layout}  # fmt: skip
        return {"late": 0.0, "paused": False, **self._sync.status, **own}

    def request(self) -> Future[int]:
        """Ask the coordinator for a rotation; done when all replicas with a lease have followed."""
        found: Future[int] = Future()

        def take(answer: Future[Any]) -> None:
            error = answer.exception()
            if error is None and isinstance(answer.result(), int):
                found.set_result(answer.result())
            else:
                found.set_exception(G2DError(str(error or answer.result())))

        self._sync.send("rotate").add_done_callback(take)
        return found

    def pause(self, paused: bool = True) -> None:
        """Ask the coordinator to suspend rotation, or to go on."""
        if not self._sync.may_answer():
            raise RequestError(503, "the coordinator is away; ask again later")
        self._sync.send("pause", paused)

    def alarm(self, kind: str, text: str, rotate: bool = True, **more: Any) -> None:
        """Pass an alarm of this replica on."""
        self._sync.send("alarm", kind, f"{self._sync.about()['replica']}: {text}", rotate, more)

    def count(self, inputs: int) -> None:
        """Count answered inputs for the coordinator's trigger."""
        self._sync.count(inputs)

    def watch(self) -> None:
        """Do nothing: the coordinator sees whether rotation is late."""


class LeasedApp:
    """Lets answers out only while this replica may answer; says in a header who answered.

    Checked as an answer leaves, not only as its request comes: one that took too long is no
    exception.
    """

    def __init__(
        self,
        inner: Asgi,
        sync: GenerationSync,
        name: str,
        ended: Callable[[], None] = lambda: None,
        prefix: str = "",
    ) -> None:
        self._inner, self._sync, self._name = inner, sync, name.encode()
        self._ended, self._prefix = ended, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            try:
                await self._inner(scope, receive, send)
            finally:
                if scope["type"] == "lifespan":
                    await asyncio.to_thread(self._ended)
            return
        # As the service will: with the prefix taken off once.
        path: str = (without(self._prefix, scope) if self._prefix else scope)["path"]
        bound = path.startswith("/v2/models/") or path.rstrip("/") in _BOUND
        refused = False

        async def out(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = bound and message["status"] < 300 and not self._sync.may_answer()
                if refused:
                    await _refuse(send, self._name)
                else:
                    headers = [*message["headers"], (b"g2d-replica", self._name)]
                    await send({**message, "headers": headers})
            elif not refused:
                await send(message)

        if bound and not self._sync.may_answer():
            await _refuse(send, self._name)
        else:
            await self._inner(scope, receive, out)


async def _refuse(send: Send, name: bytes) -> None:
    body = b'{"error":"this replica does not know what is live; send again in a second"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
               (b"retry-after", b"1"), (b"g2d-replica", name)]  # fmt: skip
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def assemble(coordinator: CoordinatorClient, spec: ReplicaSpec, name: str) -> LeasedApp:
    """Build a replica's application: the service of one machine, led by the coordinator.

    Raises:
        G2DError: an observer cannot be made, or there is nothing that may be served.
    """
    sys.setswitchinterval(5e-4)
    sync = GenerationSync(coordinator, spec, name)
    try:
        observers = Observers(spec.options.observer)  # may import the task's code: it is held now
        parts = assemble_service(
            sync.loader,
            sync.live,
            lambda _: RemoteRotation(sync),
            spec.options,
            spec.admin_token,
            Log(),
            observers,
        )
    except BaseException:
        sync.stop()
        raise

    def told(event: Event, at: float | None) -> None:
        if isinstance(event, Stopping):
            parts.event_log.close()  # streams of events would hold the end up
        parts.event_log.tell(event, at)

    sync.tell = told
    sync.loader.hear(parts.event_log.tell)
    parts.monitor.start()
    # Else its thread may be inside torch as the interpreter ends, which aborts the process.
    prefix = spec.options.root_path
    return LeasedApp(parts.service, sync, name, parts.monitor.stop, prefix)
