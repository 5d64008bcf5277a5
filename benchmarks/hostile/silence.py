"""Connections that say nothing and bodies short of a byte: others are answered, rotation goes on.

    python -m benchmarks.hostile.silence             # 5,000 each, five minutes
    python -m benchmarks.hostile.silence --silent 300 --files 200 --bodies 100 --seconds 5   # a try

A real `g2d serve` of a small vault that rotates, over plain TCP and over TLS. From the address that
everybody has, a process holds --silent connections open for --seconds: most send nothing, every
third a piece of a head or of a TLS handshake; one that is closed is opened again at once. Then,
over plain TCP, --bodies connections of which each sends a body as large as is taken, but for its
last byte. Meanwhile regular clients ask on connections of their own, and newcomers open one for
each request; an answer that is no 200, that takes over ten seconds or whose connection was closed
is a failure. From the service's log: when it rotated, calm and meanwhile. Memory and descriptors of
the service are sampled. Writes results/silence.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.hostile.crowd import HOST
from benchmarks.serving.load import infer_request, inputs, whole
from benchmarks.serving.process import QUICK, Server, make_vault

PATIENCE, GAP = 10.0, 0.1  # seconds for an answer, and between requests


# --- the others ----------------------------------------------------------------------------------


class Others:
    """Clients that mean well, on a loop and a thread of their own."""

    def __init__(self, port: int, context: ssl.SSLContext | None, count: int) -> None:
        self.port, self.context, self.count = port, context, count
        self.latencies: dict[str, list[float]] = {"regular": [], "newcomer": []}
        self.failures: Counter[str] = Counter()
        self.request, self.ended = infer_request(inputs(1)), False
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Others:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.thread.join()

    async def _run(self) -> None:
        kinds = ("regular", "newcomer") * self.count
        await asyncio.gather(*(self._client(kind) for kind in kinds))

    async def _client(self, kind: str) -> None:
        wire: tuple[Any, Any] | None = None
        while not self.ended:
            began = time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    wire = wire or await asyncio.open_connection(HOST, self.port, ssl=self.context)
                    await self._ask(*wire)
                self.latencies[kind].append(time.perf_counter() - began)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                self.failures[f"{kind}: {type(error).__name__}"] += 1
                wire = self._close(wire)
            if kind == "newcomer":
                wire = self._close(wire)
            await asyncio.sleep(GAP)
        self._close(wire)

    def _close(self, wire: tuple[Any, Any] | None) -> None:
        if wire is not None:
            wire[1].close()

    async def _ask(self, reader: Any, writer: Any) -> None:
        writer.write(self.request)
        found = b""
        while (size := whole(found)) is None or len(found) < size:
            if not (part := await reader.read(1 << 16)):
                raise EOFError
            found += part
        if not found.startswith(b"HTTP/1.1 200"):
            raise ValueError(found[:20])


class Watch:
    """Samples memory and descriptors of a process."""

    def __init__(self, pid: int) -> None:
        self.process, self.rss, self.files = psutil.Process(pid), [], []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def memory(self) -> float:
        """Resident memory now, in MB."""
        return self.process.memory_info().rss / 1e6

    def _run(self) -> None:
        while not self.ended.wait(0.1):
            self.rss.append(self.memory())
            self.files.append(self.process.num_fds())


# --- one storm -----------------------------------------------------------------------------------


def certificate(folder: Path) -> tuple[str, str]:
    """A certificate for this machine and its key, as files."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST}",
         "-out", str(cert), "-keyout", str(key)], check=True, capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


def gaps(server: Server, begin: float, end: float) -> list[float]:
    """Seconds between rotations of a span of time, its ends included."""
    swaps = [datetime.fromisoformat(line["at"]).timestamp() for line in server.events("swap")]
    times = [begin, *(at for at in swaps if begin < at < end), end]
    return np.diff(times).tolist()


def wait_until_served(server: Server) -> None:
    """Wait until it has started, whether by HTTP or HTTPS, and has rotated twice."""
    until = time.monotonic() + 240
    while server.log.read_text().count('"event":"swap"') < 2:
        if time.monotonic() > until or server.process.poll() is not None:
            raise SystemExit(f"the server did not start: {server.log.read_text()[-2000:]}")
        time.sleep(0.1)


def storm(kind: str, count: int, folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    """Calm, then the crowd, then what is left of it."""
    vault = Path(shutil.copytree(folder / "vault", folder / kind))
    options, context = ["--every", a.every], None
    if kind == "tls":
        cert, key = certificate(folder)
        options += ["--tls-cert", cert, "--tls-key", key]
        context = ssl.create_default_context(cafile=cert)
    own = [sys.executable, "-m", "g2d", "serve", str(vault), *options, "--port"]
    few = ["prlimit", f"--nofile={a.files}:{a.files}"] if a.files else []
    server = Server(vault, folder / f"{kind}.log", command=[*few, *own])
    try:
        wait_until_served(server)
        with Others(server.port, context, a.clients) as others, Watch(server.process.pid) as watch:
            time.sleep(a.calm)
            before, calm_end = watch.memory(), time.time()
            counts = {key: len(times) for key, times in others.latencies.items()}
            crowd = [kind, count, server.port, a.seconds, a.size]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.hostile.crowd", *map(str, crowd)],
                stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
            end = time.time()
            time.sleep(PATIENCE / 2)
            after = watch.memory()
        found = {
            "crowd": json.loads(done.stdout), "failures": dict(others.failures),
            "calm_s": {k: quantiles(t[: counts[k]]) for k, t in others.latencies.items()},
            "storm_s": {k: quantiles(t[counts[k]:]) for k, t in others.latencies.items()},
            "gaps_s": {"calm": gaps(server, calm_end - a.calm, calm_end),
                       "storm": gaps(server, calm_end, end)},
            "rss_mb": {"before": before, "peak": max(watch.rss), "after": after},
            "most_files": max(watch.files), "crowded": server.events("crowded")[-1:],
            "alarms": len(server.events("alarm")), "failed": len(server.events("failed")),
        }  # fmt: skip
        return found | {"exit": server.stop()}
    finally:
        if server.process.poll() is None:
            server.kill()


def quantiles(times: list[float]) -> dict[str, float]:
    """How many, and how long they took."""
    if not times:
        return {"count": 0}
    p50, p99, most = np.percentile(times, (50, 99, 100)).tolist()
    return {"count": len(times), "p50": p50, "p99": p99, "max": most}


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    result = record(a)
    make_vault(folder / "vault", QUICK)
    for kind, count in (("plain", a.silent), ("tls", a.silent), ("bodies", a.bodies)):
        result[kind] = storm(kind, count, folder, a)
        print(kind, result[kind]["failures"], result[kind]["crowd"], flush=True)
    return result


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached. Also for docs/benchmarks/serving.md."""
    a, lines = result["arguments"], []
    words = {"plain": f"{a['silent']:,} silent connections, plain TCP",
             "tls": f"{a['silent']:,} silent connections, TLS",
             "bodies": f"{a['bodies']:,} bodies of {a['size'] / 1e6:.1f} MB short of a byte",
             }  # fmt: skip
    for kind, text in words.items():
        one = result[kind]
        asked = sum(each["count"] for each in one["storm_s"].values())
        worst = max(each.get("p99", 0.0) for each in one["storm_s"].values())
        most, calm = (max(one["gaps_s"][when]) for when in ("storm", "calm"))
        lines += [
            [f"{text}, {a['seconds']:g} s: failures of other clients (of {asked:,} requests; p99)",
             "0", f"{sum(one['failures'].values())} ({1e3 * worst:.0f} ms)"],
            [f"{text}: rotations; the longest wait for one, rotating every {a['every']}, s",
             "on time", f"{len(one['gaps_s']['storm']) - 1}; {most:.1f} (calm: {calm:.1f})"],
        ]  # fmt: skip
    rss = result["bodies"]["rss_mb"]
    reached = " / ".join(f"{rss[k]:.0f}" for k in ("before", "peak", "after"))
    text = f"{words['bodies']}: memory of the service before / at most / after, MB"
    return [*lines, [text, "returns", reached]]


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--silent", type=int, default=5000, help="connections of the crowd")
    flags.add_argument("--bodies", type=int, default=1900)
    flags.add_argument("--size", type=int, default=589_000, help="bytes of each of those bodies")
    flags.add_argument("--seconds", type=float, default=60.0)
    flags.add_argument("--calm", type=float, default=15.0, help="seconds before the crowd comes")
    flags.add_argument("--files", type=int, default=0, help="the service's open files; 0: any")
    flags.add_argument("--every", default="2s", help="mean time between rotations")
    flags.add_argument("--clients", type=int, default=4, help="of each kind that means well")
    command.carry_out("silence", flags, measure, rows)


if __name__ == "__main__":
    main()
