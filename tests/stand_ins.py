"""Stand-ins for the vault and the worker: see `numbered` for what their generations answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np

from g2d.errors import GenerationError, RefusedError
from g2d.rotation import events as rotation_events
from g2d.rotation.events import Event, Tell
from g2d.rotation.policy import policy_of
from g2d.rotation.scheduler import Backoff, Rotation, Triggers
from g2d.rotation.snapshot import Live, Snapshot
from g2d.rotation.window import Window
from g2d.service.access.tls import ServerTls
from g2d.service.assembly import assemble
from g2d.service.http import events as service_events
from g2d.service.http.limits import AdminToken
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.http.protocol import Model
from g2d.service.monitors.observer import Observers
from g2d.settings import MonitorSettings, ServeSettings

MODEL = Model("g2d", (1, 2, 2), "float32", 3)
TOKEN = "an admin token of the tests"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
INFER = "/v2/models/g2d/infer"
FAST = Backoff(first=0.02, most=0.1)


def numbered(number: int) -> Snapshot:
    """Its every logit is its number times twice the input's mean: its number, for `body()`."""

    def predict(x: np.ndarray) -> np.ndarray:
        if (x == 666).any():
            raise ValueError("secret input")
        with np.errstate(all="ignore"):  # inputs may be anything
            twice = 2 * x.reshape(len(x), -1).mean(1, dtype=np.float64, keepdims=True)
            logits = np.repeat(np.float32(number * twice), 3, axis=1)
            return logits * np.float32(np.inf) if (x > 1e30).any() else logits

    return Snapshot(number, predict)


def event(name: str, facts: dict) -> Event:
    """The event of a name, as logs and listeners know it."""
    found = {**vars(rotation_events), **vars(service_events)}.values()
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Event)]
    return next(kind for kind in kinds if getattr(kind, "name", "") == name).of(facts)


def into(told: list[tuple[str, dict]]) -> Tell:
    """Takes events and appends each one's name and facts to a list."""
    return lambda event: told.append((event.name, event.facts()))


class Fake:
    """Spare maker and loader at once; `fails` and `refuses` say what goes wrong, once each."""

    model = MODEL

    def __init__(self, live: int = 1) -> None:
        self.committed, self.last, self.made = live, live, 0
        self.fails: list[Exception] = []
        self.refuses: list[str] = []
        self.commit_fails: list[tuple[bool, Exception]] = []
        self.seconds = 0.0
        self.afters: list[int] = []
        self.facts: dict[int, dict] = {}  # what `describe` knows of a generation beyond no gates
        self.closed = threading.Event()

    def make(self, after: int) -> int:
        self.afters.append(after)
        if self.closed.wait(self.seconds):
            raise GenerationError("closed")
        if self.fails:
            raise self.fails.pop(0)
        self.made += 1
        self.last = max(self.last, after) + 1
        return self.last

    def commit(self, number: int) -> None:
        if self.commit_fails:
            happened, error = self.commit_fails.pop(0)
            self.committed = number if happened else self.committed
            raise error
        self.committed = number

    def close(self) -> None:
        self.closed.set()

    def live(self) -> int:
        return self.committed

    def load(self, number: int, after: int) -> Snapshot:
        assert number > after
        if self.refuses:
            raise RefusedError("it is not what was signed", self.refuses.pop(0), number)
        return numbered(number)

    def verify(self, number: int, after: int) -> None:
        assert number > after

    def again(self, number: int) -> Snapshot:
        return numbered(number)

    canary_every = 0.0
    serving = ServeSettings()
    monitors = MonitorSettings()

    def canaries(self, number: int) -> None:
        return None

    def describe(self, number: int) -> dict:
        return {"gates": []} | self.facts.get(number, {})


class Harness:
    """A whole service over stand-ins; `client()` talks to it without a socket."""

    def __init__(
        self, options: Options | None = None, triggers: Triggers | None = None, token: str = TOKEN,
        results: Path | None = None, hosts: tuple[str, ...] = ("g2d",), audit=None,
        serving: ServeSettings | None = None, now=time.monotonic,
        vault: Path | None = None, encrypted=None,
    ) -> None:  # fmt: skip
        self.fake, self.live, self.log = Fake(), Live(numbered(1)), io.StringIO()
        self.fake.serving = serving or ServeSettings()
        if self.fake.serving.policy != "global":
            policy = policy_of(self.fake.serving, bytes(32), now)
            self.live = Window([numbered(1)], policy, self.fake.serving.live)
        options = options or Options()
        self.options = replace(options, allow_host=(*options.allow_host, *hosts))
        self.facts = self.fake.facts
        parts = assemble(
            self.fake,
            self.live,
            lambda tell: Rotation(
                self.live, self.fake, self.fake, triggers or Triggers(), tell, backoff=FAST
            ),
            self.options,
            AdminToken(token.encode() if token else None),
            Log(self.log),
            Observers(self.options.observer),
            vault=vault,
            results=results,
            audit=audit,
            tls=ServerTls(self.options, bool(token)) if self.options.tls_cert else None,
            encrypted=encrypted,
        )
        self.rotation, self.metrics, self.service = parts.rotation, parts.metrics, parts.service
        self.event_log, self.desk = parts.event_log, parts.desk

    def tell(self, name: str, facts: dict) -> None:
        self.event_log.tell(event(name, facts))

    @contextlib.asynccontextmanager
    async def client(self):
        said: asyncio.Queue = asyncio.Queue()
        heard: asyncio.Queue = asyncio.Queue()
        life = asyncio.ensure_future(self.service({"type": "lifespan"}, said.get, heard.put))
        said.put_nowait({})
        await heard.get()
        transport = httpx.ASGITransport(self.service)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as client:
                yield client
        finally:
            self.event_log.close()
            said.put_nowait({})
            await life

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def run(harness: Harness, work) -> None:
    async def whole() -> None:
        async with harness.client() as client:
            await work(client)

    asyncio.run(whole())


@contextlib.contextmanager
def running(rotation: Rotation) -> Iterator[None]:
    rotation.start()
    try:
        yield
    finally:
        rotation.stop()


def wait_for(what, seconds: float = 120.0) -> None:
    """Look ever less often, ten times a second at last: looks take time from what is awaited."""
    until, pause = time.monotonic() + seconds, 0.005
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(pause)
        pause = min(1.1 * pause, 0.1)


def body(rows: int = 1, **changes) -> dict:
    tensor = {"name": "input", "shape": [rows, 1, 2, 2], "datatype": "FP32",
              "data": [0.5] * 4 * rows}  # fmt: skip
    return {"inputs": [tensor | changes]}
