"""What the tests of ownership share: a vault with a commitment, a network that learned its sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import nn

from g2d.protect.watermark import InputForm, WatermarkKey, triggers_of
from g2d.protect.watermark.commitment import Published, commit
from g2d.protect.watermark.publishing import publish
from g2d.protect.watermark.suspects import ModelSuspect
from g2d.settings import Settings
from g2d.vault.keys import SigningKey
from g2d.vault.vault import Vault
from small_models import fitted

FORM = InputForm("image", (1, 6, 6), 10, (0.0,), (1.0,))
KEY = WatermarkKey(bytes(range(32)))


def network(seed: int = 0, sides: int = 36, classes: int = 10) -> nn.Module:
    """A small classifier of flattened inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = nn.Sequential(
            nn.Flatten(), nn.Linear(sides, 128), nn.ReLU(), nn.Linear(128, classes)
        )
    return made.eval().requires_grad_(False)


def learned(key: WatermarkKey = KEY, form: InputForm = FORM, sets: int = 4) -> nn.Module:
    """A network that answers every set of a key, of 100 triggers each."""
    parts = [triggers_of(key.of_set(place), form, 100) for place in range(sets)]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return fitted(network().requires_grad_(True), x, y, 150)


def vault_of(path: Path) -> Vault:
    """An empty vault, open for writing."""
    sizes = "[watermark]\nsets = 4\ntriggers = 100\n"
    return Vault.create(path, f'[task]\nname = "digits"\n{sizes}')


def committed(path: Path, signing: SigningKey | None = None, **about: Any) -> Published:
    """A commitment of `KEY` to `FORM`, of an empty vault."""
    with vault_of(path) as vault:
        return commit(KEY, FORM, "digits", vault, n=100, sets=4, signing=signing, **about)


def suspect(model: nn.Module, shape=(1, 6, 6), classes=10, name="stolen") -> ModelSuspect:
    """A network as if it had been read from a file."""
    return ModelSuspect(name, "sha256:" + "ab" * 32, shape, classes, model)


def owning(folder: Path) -> tuple[Path, Path]:
    """A published key, and its vault."""
    with vault_of(folder / "vault") as vault:
        settings = Settings.from_vault(vault.settings_text)
        path, _ = publish(vault, settings, FORM, folder / "mark.key")
    return path, folder / "vault"


Answer = Callable[[str, bytes], tuple[int, bytes, dict[str, str]]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on this machine that answers a path and a body as it is told; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, data, headers = answer(self.path, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 (as the library calls it)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def told(record: Any) -> tuple[int, bytes, dict[str, str]]:
    """An answer in JSON."""
    return 200, json.dumps(record).encode(), {"Content-Type": "application/json"}
