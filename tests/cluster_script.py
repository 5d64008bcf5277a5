"""A replica without Ray: a scripted line to a coordinator, and what it is asked through."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np

from g2d.service.cluster.lease import AnnouncedGeneration, CoordinatorUpdate, ReplicaReport, Terms
from g2d.service.cluster.mirror import GenerationBytes, Mirror, identify, pack
from g2d.service.cluster.replica import AwayError, LeasedApp, ReplicaSpec, assemble
from g2d.service.http.limits import AdminToken
from g2d.service.http.options import Options
from g2d.vault.vault import Vault
from stand_ins import wait_for

TERMS = Terms(lease=120.0, beat=0.05, retry=0.02, prepare=0.2)
BRIEF = replace(TERMS, lease=0.6)


def packed_generations(vault: Path) -> dict[int, GenerationBytes]:
    with Vault.open(vault) as opened:
        return {number: pack(opened, number) for number in (1, 2, 3)}


def mirrored(vault: Path, packed: GenerationBytes) -> Mirror:
    with Vault.open(vault) as opened:
        mirror = Mirror.make(identify(opened))
    mirror.take(packed, packed.digest)
    mirror.activate(packed.number)
    return mirror


class Script:
    """A line to a coordinator that says what the test wants it to say."""

    def __init__(self, vault: Path) -> None:
        self.packed = packed_generations(vault)
        with Vault.open(vault) as opened:
            self.of = identify(opened)
        self.live, self.spare, self.away, self.lost = 1, 0, False, False
        self.report = ReplicaReport("")
        self.sent: list[tuple] = []

    def identity(self):
        return self.of

    def watch(self, report: ReplicaReport, patience: float) -> CoordinatorUpdate:
        self.report = report if report.replica else self.report
        time.sleep(0.01)
        if self.away:
            raise AwayError("away")
        spare = self.announced(self.spare) if self.spare else None
        return CoordinatorUpdate("t", 0, 0, self.announced(self.live), spare)

    def announced(self, number: int) -> AnnouncedGeneration:
        return AnnouncedGeneration(number, self.packed[number].digest, number)

    def fetch(self, announced: AnnouncedGeneration, patience: float) -> GenerationBytes:
        if self.lost:
            raise AwayError("lost")
        return self.packed[announced.place]

    def send(self, call: str, *arguments) -> Future:
        self.sent.append((call, *arguments))
        if call == "note":
            self.report = arguments[0]
        answer: Future = Future()
        answer.set_result(7 if call == "rotate" else None)
        return answer


@contextlib.asynccontextmanager
async def client(app: LeasedApp):
    said: asyncio.Queue = asyncio.Queue()
    heard: asyncio.Queue = asyncio.Queue()
    life = asyncio.ensure_future(app({"type": "lifespan"}, said.get, heard.put))
    said.put_nowait({})
    await heard.get()
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as made:
            yield made
    finally:
        said.put_nowait({})
        await life


def drive(script: Script, work: Callable, token: bytes | None = None, terms: Terms = TERMS) -> None:
    async def run() -> None:
        app = assemble(
            script, ReplicaSpec(Options(allow_host=("g2d",)), terms, AdminToken(token)), "r1"
        )
        async with client(app) as made:
            await work(made)

    asyncio.run(run())


async def until(what) -> None:
    await asyncio.to_thread(wait_for, what)


async def infer(client: httpx.AsyncClient, x: np.ndarray) -> httpx.Response:
    tensor = {"name": "input", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    return await client.post("/v2/models/g2d/infer", json={"inputs": [tensor]})


async def until_status(client: httpx.AsyncClient, x: np.ndarray, status: int) -> httpx.Response:
    """Infer until the answer has this status."""
    end = time.monotonic() + 120
    while (answer := await infer(client, x)).status_code != status:
        assert time.monotonic() < end, answer.text
        await asyncio.sleep(0.01)
    return answer
