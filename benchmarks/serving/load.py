"""Requests of the serving benchmarks, and load: a process of its own over loopback, keep-alive.

asyncio and uvloop, one request under way for each connection. Every connection sends the requests
in turn and begins at another one, so that at any moment different inputs are under way and an
answer that reached the wrong client shows. The load says every distinct answer that it got, with
its request's place and its generation; `serving_answers` compares. The server is
`serving_process`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHAPE = (1, 8, 8)  # of one input of the task digits
MANY = 16  # different bodies of a load
Answers = set[tuple[int, int, str]]  # generation, which request, the data
PATH = "/v2/models/g2d/infer"
GENERATION = re.compile(rb'"generation":(\d+)')
DATA = re.compile(rb'"data":\[([^\]]*)\]')
JSON_LENGTH = re.compile(rb"\r\ninference-header-content-length: (\d+)")


# --- requests ------------------------------------------------------------------------------------


def inputs(count: int, which: int = 0) -> np.ndarray:
    """Inputs of a request, (count, 1, 8, 8): others for each `which`, the same in every run."""
    x = np.random.default_rng(which).random((count, *SHAPE))
    return np.round(x, 4).astype(np.float32)


def bodies(count: int = 1) -> list[np.ndarray]:
    """The different inputs of a load's requests."""
    return [inputs(count, which) for which in range(MANY)]


def infer_requests(
    count: int = 1, binary: bool = False, tokens: Sequence[str] = ("",)
) -> list[bytes]:
    """A load's requests, of the inputs that `bodies` gives; `tokens` in turn say who asks."""
    return [
        infer_request(x, binary, tokens[place % len(tokens)])
        for place, x in enumerate(bodies(count))
    ]


def infer_request(x: np.ndarray, binary: bool = False, token: str = "") -> bytes:
    """A whole HTTP request: head and body, a JSON or a binary tensor; with a bearer token."""
    tensor: dict[str, Any] = {"name": "input", "shape": list(x.shape), "datatype": "FP32"}
    whole: dict[str, Any] = {"inputs": [tensor]}
    tail, extra = b"", f"authorization: Bearer {token}\r\n" if token else ""
    if binary:
        tail = x.astype("<f4").tobytes()
        tensor["parameters"] = {"binary_data_size": len(tail)}
        whole["parameters"] = {"binary_data_output": True}
    else:
        tensor["data"] = [round(float(v), 4) for v in x.ravel()]
    head = json.dumps(whole).encode()
    if binary:
        extra += f"inference-header-content-length: {len(head)}\r\n"
    kind = "octet-stream" if binary else "json"
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/{kind}\r\n{extra}"
        f"content-length: {len(head) + len(tail)}\r\n\r\n"
    ).encode() + head + tail  # fmt: skip


def answer_of(answer: bytes) -> tuple[int, str]:
    """The generation of a whole HTTP answer, and its logits as text or in hexadecimal."""
    number = int(GENERATION.search(answer)[1])
    binary = JSON_LENGTH.search(answer.lower()[: answer.find(b"\r\n\r\n") + 4])
    if binary is None:
        return number, DATA.search(answer)[1].decode()
    return number, answer[answer.find(b"\r\n\r\n") + 4 + int(binary[1]) :].hex()


def logits_of(text: str) -> np.ndarray:
    """Logits, flat, of what `answer_of` gave."""
    if "," in text:
        return np.array([float(v) for v in text.split(",")])
    return np.frombuffer(bytes.fromhex(text), "<f4").astype(float)


@dataclass(frozen=True)
class Tls:
    """How a client meets a service over TLS: files of the CA, of its own certificate and key."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    @classmethod
    def of(cls, text: str) -> Tls:
        """Read what `str()` wrote."""
        return cls(*text.split("|"))

    def __str__(self) -> str:
        return f"{self.ca}|{self.cert}|{self.key}"

    def context(self) -> ssl.SSLContext | None:
        """Return the client's context; None: plain TCP."""
        if not self.ca:
            return None
        made = ssl.create_default_context(cafile=self.ca)
        if self.cert:
            made.load_cert_chain(self.cert, self.key)
        return made


PLAIN = Tls()


def ask_once(port: int, request: bytes, timeout: float = 10.0, tls: Tls = PLAIN) -> bytes:
    """One request on a connection of its own; the whole answer, b"" if the peer closed early."""
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout))
        if context := tls.context():
            peer = stack.enter_context(context.wrap_socket(peer, server_hostname="localhost"))
        peer.settimeout(timeout)
        peer.sendall(request)
        found = b""
        while (size := whole(found)) is None or len(found) < size:
            part = peer.recv(1 << 16)
            if not part:
                return b""
            found += part
        return found


def whole(answer: bytes) -> int | None:
    """Bytes of a whole answer, once its head is there."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = re.search(rb"\r\ncontent-length: (\d+)", answer[: end + 2].lower())
    return end + 4 + (int(length[1]) if length else 0)


# --- the load, in a process of its own -----------------------------------------------------------


@dataclass
class _Plan:
    """What all connections share: when to end, seconds between requests (0: closed loop)."""

    requests: list[bytes]
    until: float
    gap: float
    seed: int
    found: dict[str, Any]


class _Client(asyncio.Protocol):
    """One keep-alive connection: sends the next request as soon as, or when, it may."""

    def __init__(self, plan: _Plan, place: int) -> None:
        self.plan, self.place = plan, place
        self.which = place % len(plan.requests)
        self.buffer, self.need, self.last = b"", None, 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        late = np.random.default_rng((self.plan.seed, self.place)).random()
        self.due = time.perf_counter() + self.plan.gap * late
        self.schedule()

    def schedule(self) -> None:
        now = time.perf_counter()
        if max(self.due, now if not self.plan.gap else 0.0) > self.plan.until:
            self.finish()
        elif self.due > now:
            asyncio.get_running_loop().call_later(self.due - now, self.send)
        else:
            self.send()

    def send(self) -> None:
        if self.due > self.plan.until or self.done.done():  # told to end while it waited
            self.finish()
            return
        # Open loop: latency counts from when the request was due, not from when it could be sent.
        self.began = self.due if self.plan.gap else time.perf_counter()
        self.plan.found["sent"] += 1
        self.transport.write(self.plan.requests[self.which])

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.need is None:
            self.need = whole(self.buffer)
        if self.need is None or len(self.buffer) < self.need:
            return
        now = time.perf_counter()
        self.take(self.buffer[: self.need], now)
        self.which = (self.which + 1) % len(self.plan.requests)
        self.buffer, self.need = self.buffer[self.need :], None
        self.due = self.due + self.plan.gap if self.plan.gap else now
        self.schedule()

    def take(self, answer: bytes, now: float) -> None:
        found = self.plan.found
        found["latencies"].append((now, now - self.began))
        if not answer.startswith(b"HTTP/1.1 200"):
            found["failed"] += 1
            return
        number, data = answer_of(answer)
        found["out_of_order"] += number < self.last
        self.last = number
        found["answers"].add((number, self.which, data))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.plan.found["dropped"] += 1
            self.done.set_result(None)

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self.transport.close()


async def _drive(
    port: int, requests: list[bytes], seconds: float, connections: int, rate: float, seed: int,
    tls: Tls = PLAIN,
) -> dict[str, Any]:  # fmt: skip
    found = {"sent": 0, "failed": 0, "dropped": 0, "out_of_order": 0, "latencies": [],
             "answers": set()}  # fmt: skip
    gap = connections / rate if rate else 0.0
    plan = _Plan(requests, time.perf_counter() + seconds, gap, seed, found)
    loop, clients, context = asyncio.get_running_loop(), [], tls.context()
    threading.Thread(target=_await_end, args=(plan,), daemon=True).start()
    for place in range(connections):
        try:
            _, client = await loop.create_connection(
                lambda place=place: _Client(plan, place), "127.0.0.1", port,
                ssl=context, server_hostname="localhost" if context else None,
            )  # fmt: skip
        except OSError:  # the server has just been killed
            found["dropped"] += 1
            continue
        clients.append(client)
    if not clients:
        return found
    await asyncio.wait([client.done for client in clients], timeout=seconds + 30)
    found["dropped"] += sum(not client.done.done() for client in clients)
    return found


def _await_end(plan: _Plan) -> None:
    """The parent ends the load early by closing the pipe."""
    sys.stdin.buffer.read()
    plan.until = min(plan.until, time.perf_counter())


class Load:
    """A running load. Args: rate: requests a second of all connections; 0: as fast as answered."""

    def __init__(
        self, port: int, requests: list[bytes], seconds: float, connections: int, rate: float = 0.0,
        seed: int = 0, tls: Tls = PLAIN,
    ) -> None:  # fmt: skip
        sizes = ",".join(str(len(request)) for request in requests)
        numbers = (port, sizes, seconds, connections, rate, seed, tls)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, numbers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._process.stdin.write(b"".join(requests))
        self._process.stdin.flush()

    def finish(self, early: bool = False) -> dict[str, Any]:
        """Wait for its end, or end it early; return what it found."""
        if early:
            self._process.stdin.close()
        found = json.loads(self._process.stdout.read())
        assert self._process.wait() == 0
        found["answers"] = {(number, which, data) for number, which, data in found["answers"]}
        self._process.stdin.close()
        self._process.stdout.close()
        return found


def _main() -> None:
    import uvloop

    port, sizes, seconds, connections, rate, seed, tls = sys.argv[1:]
    requests = [sys.stdin.buffer.read(int(size)) for size in sizes.split(",")]
    driven = _drive(int(port), requests, float(seconds), int(connections), float(rate), int(seed),
                    Tls.of(tls))  # fmt: skip
    found = uvloop.run(driven)
    found["answers"] = sorted(found["answers"])
    json.dump(found, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for the pipe may still read it


if __name__ == "__main__":
    _main()
