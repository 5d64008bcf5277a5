"""A small network of squares whose generations answer real ciphertexts behind a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import uvicorn
from torch import nn

from g2d.rotation.snapshot import Live, Snapshot
from g2d.service.encrypted.evaluators import Evaluators
from g2d.service.encrypted.offer import Offer
from g2d.service.http.options import Options
from g2d.service.http.protocol import Model
from g2d.tasks.polynomials import Square
from g2d.weights.checkpoints import pack
from stand_ins import Fake, Harness, wait_for

SHAPE, CLASSES = (1, 8, 8), 3
OPTIONS = Options(
    encrypted_waiting=32, encrypted_keys=4, encrypted_timeout=900.0, timeout=900.0, drain=900.0
)


def network(number: int, classes: int = CLASSES) -> nn.Module:
    """Generation `number`: its weights are drawn by its number."""
    with torch.random.fork_rng():
        torch.manual_seed(number)
        made = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), Square(), nn.Flatten(), nn.Linear(36, classes)
        )
    return made.eval().requires_grad_(False)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def expected(number: int, x: np.ndarray) -> np.ndarray:
    """What a generation answers in plain, (n, classes)."""
    return network(number)(torch.from_numpy(x)).numpy()


@dataclass
class Serving:
    """A running service: where it is, and its generations."""

    harness: Harness
    evaluators: Evaluators
    address: str = ""
    server: uvicorn.Server = field(default=None, repr=False)

    def snapshot(self, number: int) -> Snapshot:
        made = network(number)

        def predict(x: np.ndarray) -> np.ndarray:
            return made(torch.from_numpy(x)).numpy()

        held = self.evaluators.encode(pack(made.state_dict()))
        return Snapshot(number, predict, encrypted=held)

    def swap(self, number: int) -> None:
        self.harness.live.swap(self.snapshot(number))


@contextlib.contextmanager
def serving(options: Options = OPTIONS, classes: int = CLASSES) -> Iterator[Serving]:
    """Generation 1, with a socket, in a thread."""
    from g2d.protect.homomorphic import Plan

    offer = Offer.of(Plan.of(network(1, classes), SHAPE))
    evaluators = Evaluators(
        offer.text, options.encrypted_processes, options.encrypted_waiting, 900.0
    )
    Fake.model, was = Model("g2d", SHAPE, "float32", classes), Fake.model
    try:
        made = Serving(Harness(options, encrypted=(offer, evaluators)), evaluators)
    finally:
        Fake.model = was
    if classes == CLASSES:
        made.harness.service.encrypted._live = made.harness.live = Live(made.snapshot(1))
        made.harness.service._batcher._live = made.harness.live
    bound = socket.create_server(("127.0.0.1", 0))
    made.address = "http://{}:{}".format(*bound.getsockname())
    config = uvicorn.Config(made.harness.service, log_config=None, lifespan="on")
    made.server = uvicorn.Server(config)
    thread = threading.Thread(target=made.server.run, args=([bound],))
    thread.start()
    try:
        wait_for(lambda: made.server.started or not thread.is_alive())
        yield made
    finally:
        made.harness.event_log.close()
        made.server.should_exit = True
        thread.join(900)
        evaluators.close()
        bound.close()


class Recorder:
    """A proxy that keeps every byte that a client sends through it."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        self._to = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = "http://{}:{}".format(*self._listening.getsockname())
        self._sent: list[bytes] = []
        self._ending = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def sent(self) -> bytes:
        return b"".join(self._sent)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A connection of our own ends the wait: `accept` is not woken by `close`.
        self._ending = True
        socket.create_connection(self._listening.getsockname()).close()
        self._thread.join(60)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            here, _ = self._listening.accept()
            if self._ending:
                here.close()
                return
            threading.Thread(target=self._relay, args=(here,), daemon=True).start()

    def _relay(self, here: socket.socket) -> None:
        with here, socket.create_connection(self._to) as there:
            back = threading.Thread(target=self._copy, args=(there, here, None))
            back.start()
            self._copy(here, there, self._sent)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket, kept: list[bytes] | None) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                if kept is not None:
                    kept.append(part)
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)
