"""`g2d serve` as a process: start it, ask it, end it; and what its answers are held against."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import torch

import g2d
from g2d.errors import VaultError
from g2d.vault.vault import Vault
from places import ROOT
from stand_ins import TOKEN, wait_for

TOKEN = TOKEN.replace(" ", "-")


class Process:
    """A running `g2d serve`."""

    def __init__(self, vault: Path, *options: str, log: Path) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "G2D_ADMIN_TOKEN": TOKEN}
        self.log, self.out = log, log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "g2d", "serve", str(vault), "--port", "0", *options],
            stderr=self.out, env=env,
        )  # fmt: skip

    def __enter__(self) -> Process:
        try:
            wait_for(lambda: " is live at " in self.text() or self.process.poll() is not None, 240)
            assert self.process.poll() is None, self.text()
            self.address = self.text().split(" is live at ")[1].split("/v2")[0]
        except BaseException:
            self.end()  # or what it leaves open fails another test
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.out.close()

    def text(self) -> str:
        return self.log.read_text()

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def ask(self, path: str, body: object = None, method: str | None = None) -> tuple[int, dict]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {TOKEN}"} if path.startswith("/admin") else {}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, json.loads(response.read() or "{}")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or "{}")

    def infer(self, x: np.ndarray) -> tuple[int, np.ndarray]:
        tensor = {"name": "input", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
        status, told = self.ask("/v2/models/g2d/infer", {"inputs": [tensor]})
        assert status == 200, told
        output = told["outputs"][0]
        return told["parameters"]["generation"], np.reshape(output["data"], output["shape"])

    def rotate(self) -> int:
        """Ask for one rotation, again only where it was refused; the generation that came of it."""
        until, before = time.monotonic() + 240, self.rotation()["generation"]
        while time.monotonic() < until:
            status, told = self.ask("/admin/rotate", method="POST")
            if status == 200:
                return told["generation"]
            assert status in (202, 409), told
            # 202: not within the request's time. It stays due, and must not be asked for twice.
            while status == 202 and "demand" in self.rotation().get("due", ()):
                assert time.monotonic() < until, self.text()
                time.sleep(0.1)
            if status == 202 and (now := self.rotation())["generation"] > before:
                return now["generation"]
            time.sleep(0.1)
        raise AssertionError(self.text())

    def rotation(self) -> dict:
        return self.ask("/status")[1]["rotation"]

    def worker(self) -> psutil.Process:
        found = []

        def there() -> bool:
            children = psutil.Process(self.process.pid).children()
            found[:] = [c for c in children if "g2d.service.worker" in c.cmdline()]
            return bool(found)

        wait_for(there)
        return found[0]


def expected(vault: Path, number: int, x: np.ndarray) -> np.ndarray:
    with g2d.Defence.open(vault, write=False) as defence, torch.no_grad():
        return defence.generation(number).model()(torch.from_numpy(x)).numpy()


def can_write(vault: Path) -> bool:
    try:
        Vault.open(vault, write=True).close()
    except VaultError:
        return False
    return True


def serve(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "g2d", "serve", *arguments], capture_output=True, text=True,
        timeout=240, check=False, env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | env,
    )  # fmt: skip


def certificate(folder: Path) -> tuple[str, str]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime.now(UTC),
                                      datetime.now(UTC) + timedelta(1))  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "c.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())  # fmt: skip
    (folder / "k.pem").write_bytes(private)
    return str(folder / "c.pem"), str(folder / "k.pem")
