"""Parties of a test: certificates, parties.toml, and real processes where SPU's environment is."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from g2d.protect.multiparty.client import Client
from g2d.protect.multiparty.config import Config
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.identities import make_identity
from g2d.protect.multiparty.starting import command, interpreter
from g2d.protect.multiparty.wire import Line

LONG = 240.0  # seconds: a machine may be busy


@functools.cache
def why_absent() -> str:
    """Why no real party can run here; "": they can."""
    code = "import sys; from importlib.util import find_spec; sys.exit(find_spec('spu') is None)"
    try:
        found = subprocess.run([interpreter(), "-c", code], capture_output=True, check=False)
    except MultipartyError as error:
        return str(error)
    return "" if found.returncode == 0 else f"{interpreter()} has no SPU: run `make smpc`"


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Setup:
    """A folder with all certificates and parties.toml; `start` runs a rank as a process."""

    def __init__(self, folder: Path, protocol: str = "aby3", **limits: Any) -> None:
        self.folder, self.file = folder, folder / "parties.toml"
        self.count = {"aby3": 3, "cheetah": 2}[protocol]
        for name in [f"party{rank}" for rank in range(self.count)] + ["dealer", "client", "other"]:
            make_identity(folder / name)
        limits = {"silence": 60.0, "arrive": 30.0} | limits  # a busy machine is silent for long
        self.lines = [f'protocol = "{protocol}"', 'dealers = ["dealer.pem"]',
                      'clients = ["client.pem", "other.pem"]']  # fmt: skip
        for rank, port in enumerate(free_ports(self.count)):
            self.lines += ["[[parties]]", f'address = "127.0.0.1:{port}"',
                           f'certificate = "party{rank}.pem"']  # fmt: skip
        self.lines += ["[limits]", *(f"{k} = {str(v).lower()}" for k, v in limits.items())]
        self.file.write_text("\n".join(self.lines) + "\n")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def config(self) -> Config:
        return Config.read(self.file)

    def own(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def start(self, rank: int, *more: str, log: str = "") -> subprocess.Popen[bytes]:
        state = self.folder / f"state{log or rank}"
        flags = ["--rank", str(rank), "--config", str(self.file), "--state", str(state), *more]
        arguments, environment = command(flags)
        with self.log(log or str(rank)).open("ab") as file:
            made = subprocess.Popen(arguments, env=environment, stderr=file, stdout=file)
        self.processes[rank] = made
        return made

    def start_all(self) -> None:
        for rank in range(self.count):
            self.start(rank)

    def log(self, name: str) -> Path:
        return self.folder / f"party{name}.log"

    def said(self, rank: int | str) -> str:
        path = self.log(str(rank))
        return path.read_text(errors="replace") if path.exists() else ""

    def status(self, rank: int = 0) -> dict[str, Any]:
        with Line(self.config, rank, self.own("client"), 10.0) as line:
            return line.ask({"kind": "status"})[0]

    def client(self, **given: Any) -> Client:
        return Client(self.config, self.own("client"), **given)

    def until_met(self) -> None:
        """Wait until the parties have a session, with or without weights."""
        for rank in range(self.count):
            wait_for(lambda r=rank: _met(self.status(r)), self)

    def until_open(self) -> None:
        """Wait until all parties answer."""
        for rank in range(self.count):
            wait_for(lambda r=rank: bool(self.status(r)["open"]), self)

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(LONG)
            finally:
                process.kill()


def _met(status: dict[str, Any]) -> bool:
    return bool(status["open"]) or bool(status["session"])


def wait_for(true: Callable[[], bool], setup: Setup | None = None, seconds: float = LONG) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except MultipartyError:
            pass
        if time.monotonic() > until:
            logs = [setup.said(r) for r in range(setup.count)] if setup else []
            pytest.fail("it did not happen:\n" + "\n".join(logs))
        time.sleep(0.05)


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder whose name is short: Unix sockets' names have 108 characters."""
    return tempfile.TemporaryDirectory(prefix="g2d-", dir=os.environ.get("TMPDIR", "/tmp"))
