"""What happened: counters, the history of rotations, live events; `log` writes the lines.

Everything that rotation, limits and integrity checks tell goes through one `EventLog`. It keeps
facts of ours alone: no input, no token, no header.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from g2d.rotation.events import Accepted, Alarm, Event, Failed, Refused, Spare, Swap
from g2d.service.http.events import Rejected, WrongToken
from g2d.service.http.limits import client_of
from g2d.service.http.log import Log, to_json
from g2d.service.http.metrics import Metrics, open_reasons

_KEPT = 200  # rotations, alarms and rejected candidates that the status shows
_LISTENERS, _OWN = 64, 8  # streams of events at once, and those of one client
_SPAN = 1.0  # seconds before and after a swap whose latencies stand for "before" and "after"
_NEAR = 0.1  # seconds on either side of a swap that stand for "during"
_RECENT, _MOST = 5.0, 8  # seconds, and swaps, whose latencies may not have been told yet
_WORDS = " Its last words:"  # `worker` puts them at the end
_QUOTED = re.compile(r"(['\"])/(?:[^'\"/]*/)*([^'\"/]*)\1")
_PATH = re.compile(r"(?<![\w.:/'\"])/(?:[^\s/'\",;:()]+/)+([^\s/'\",;:()]*)")
_PRIVATE = frozenset({"client", "who", "how"})  # for the log, not for whoever listens


class EventLog:
    """Takes every event, once, from any thread; keeps what `/status` shows; feeds `/events`.

    Args:
        describe: facts about a generation for the history, by its number.
        vault: its folder, which only the log may name: anybody may read the rest.
        audit: is told every event first, whole, with when it happened if that was elsewhere.
    """

    def __init__(
        self,
        metrics: Metrics,
        log: Log,
        describe: Callable[[int], Mapping[str, Any]],
        vault: Path | None = None,
        audit: Callable[[Event, float | None], None] = lambda *_: None,
    ) -> None:
        self._audit = audit
        self._metrics, self._log, self._describe = metrics, log, describe
        folders = {str(vault.absolute()), str(vault.resolve())} if vault else set()
        self._vaults = sorted(folders, key=len, reverse=True)
        self._mutex = threading.Lock()
        self._history: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._alarms: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._closed_alarms: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._rejected: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._swapped: deque[tuple[float, dict[str, Any]]] = deque(maxlen=_KEPT)
        self._spares: dict[int, Mapping[str, float]] = {}
        self._listeners: dict[asyncio.Queue[bytes | None], asyncio.AbstractEventLoop] = {}
        self._clients: dict[asyncio.Queue[bytes | None], str] = {}
        self._quiet: set[asyncio.Queue[bytes | None]] = set()
        self._closed = False

    def tell(self, event: Event, at: float | None = None) -> None:
        """Log, count, keep and publish an event, if that is public; `at`: when, if elsewhere."""
        self._audit(event, at)
        facts = event.facts() if at is None else {"time": at, **event.facts()}
        record = {"time": time.time(), **facts}
        if "text" in facts:
            record["text"] = self.plain(str(facts["text"]))
        with self._mutex:
            shown = self._keep(event, record)
        self._log(event.name, **facts)
        if event.public and not (isinstance(event, Alarm) and event.closed):
            self._publish(event.name, shown)

    def remember(self, numbers: list[int]) -> None:
        """Begin the history with generations that were live before this service."""
        found = [self._described(number) for number in numbers]
        with self._mutex:
            self._history.extendleft(reversed(found))

    def snapshot(self) -> dict[str, Any]:
        """Return the history of rotations, open alarms and rejected candidates, newest last."""
        with self._mutex:
            history, alarms = list(self._history), list(self._alarms)
            rejected = list(self._rejected)
        return {"history": history, "alarms": alarms, "rejected": rejected}

    def alarms(self) -> list[dict[str, Any]]:
        """Return all alarms, newest last, for who may hear of those of queries, too."""
        with self._mutex:
            every = [*self._alarms, *self._closed_alarms]
        return sorted(every, key=lambda alarm: float(alarm["time"]))

    def rotations(self) -> list[dict[str, Any]]:
        """Return which generation went live when and why, since this start, newest last."""
        with self._mutex:
            swaps = [record for record in self._history if "time" in record]
        told = ("time", "generation", "reasons")
        return [{key: swap[key] for key in told if key in swap} for swap in swaps]

    def settle(self) -> None:
        """Keep latency quantiles around swaps of which a second has passed, while they are known.

        Of a few swaps a call, 0.6 ms each; the service calls it several times a second.
        """
        complete = time.perf_counter() - _NEAR - _SPAN
        for _ in range(_MOST):
            with self._mutex:
                if not self._swapped or self._swapped[0][0] > complete:
                    return
                at, record = self._swapped.popleft()
            take = self._metrics.latencies.quantiles
            record["latency"] = {
                "before": take(at - _NEAR - _SPAN, at - _NEAR),
                "during": take(at - _NEAR, at + _NEAR),
                "after": take(at + _NEAR, at + _NEAR + _SPAN),
            }

    def latencies(self) -> list[dict[str, Any]]:
        """Return complete latencies around the last seconds' swaps, for who knows the rest."""
        since = time.time() - _RECENT
        with self._mutex:
            last = [self._history[-i - 1] for i in range(min(_MOST, len(self._history)))]
        return [
            {"generation": record["generation"], "latency": record["latency"]}
            for record in last
            if record.get("time", 0.0) >= since and "latency" in record
        ]

    def plain(self, text: str) -> str:
        """Strip from a text what is nobody's business: where files lie, what the worker printed."""
        text = text.partition(_WORDS)[0]
        for folder in self._vaults:
            text = text.replace(folder, "vault")
        return _QUOTED.sub(r"\1\2\1", _PATH.sub(r"\1", text))

    # --- listeners -------------------------------------------------------------------------------

    def listen(
        self, client: str = "", trusted: bool = False, quiet: bool = False
    ) -> asyncio.Queue[bytes | None] | None:
        """Open a queue of server-sent events for the running loop; None: too many listen.

        A listener that does not keep up misses events, never memory. None in the queue: the end.

        Args:
            client: the address that asks. trusted: it gave the admin's token: there is always room.
            quiet: it may not know what happens, and hears of the end alone.
        """
        client = client_of(client)
        with self._mutex:
            own = list(self._clients.values()).count(client)
            full = own >= _OWN or len(self._listeners) >= _LISTENERS
            if self._closed or (full and not trusted):
                return None
            listener: asyncio.Queue[bytes | None] = asyncio.Queue(256)
            self._listeners[listener] = asyncio.get_running_loop()
            self._clients[listener] = client
            if quiet:
                self._quiet.add(listener)
            return listener

    def leave(self, listener: asyncio.Queue[bytes | None]) -> None:
        """Close a queue."""
        with self._mutex:
            self._listeners.pop(listener, None)
            self._clients.pop(listener, None)
            self._quiet.discard(listener)

    def close(self) -> None:
        """End every stream of events."""
        self._closed = True
        self._send(None)

    def _publish(self, event: str, record: Mapping[str, Any]) -> None:
        told = {key: value for key, value in record.items() if key not in _PRIVATE}
        self._send(b"event: %b\ndata: %b\n\n" % (event.encode(), to_json(told)))

    def _send(self, message: bytes | None) -> None:
        with self._mutex:
            listeners = list(self._listeners.items())
            if message is not None:
                listeners = [each for each in listeners if each[0] not in self._quiet]
        for listener, loop in listeners:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put, listener, message)

    # --- keeping ---------------------------------------------------------------------------------

    def _keep(self, event: Event, record: dict[str, Any]) -> dict[str, Any]:
        """Count and keep an event; return it as it is kept."""
        metrics = self._metrics
        match event:
            case Spare():
                self._spares = {event.generation: event.seconds}
            case Swap():
                metrics.swaps.inc()
                made = self._spares.pop(event.generation, {})
                own = {"seconds": {**made, "swap": event.seconds},
                       "reasons": open_reasons(event.reasons)}  # fmt: skip
                record = self._described(event.generation) | record | own
                self._history.append(record)
                self._swapped.append((time.perf_counter(), record))
            case Rejected():
                for gate in event.gates:
                    metrics.rejected.labels(gate["gate"]).inc()
                self._rejected.append(record)
            case Refused():
                metrics.refused.labels(event.reason).inc()
                record = {"kind": "refused", **record}
                self._alarms.append(record)
            case Failed():
                metrics.failures.inc()
                record = {"kind": "generator", **record}
                self._alarms.append(record)
            case Accepted():
                record = {"kind": "accepted", **record}
                self._alarms.append(record)
            case Alarm() if event.closed:
                metrics.monitor_alarms.labels(event.kind, event.level).inc()
                # By themselves: many of them must not drive out what the service says of itself.
                self._closed_alarms.append(record)
            case Alarm():
                metrics.alarms.labels(event.kind).inc()
                self._alarms.append(record)
            case WrongToken():
                metrics.wrong_tokens.inc()
        return record

    def _described(self, number: int) -> dict[str, Any]:
        return {"generation": number, **self._describe(number)}


def _put(listener: asyncio.Queue[bytes | None], message: bytes | None) -> None:
    if listener.full():
        if message is not None:
            return
        listener.get_nowait()
    listener.put_nowait(message)
