"""Parties as a benchmark has them: real processes here, with certificates of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.common.places import ROOT
from g2d.core.types import Array
from g2d.protect.multiparty.client import Client
from g2d.protect.multiparty.config import PARTIES, Config
from g2d.protect.multiparty.dealing import Shared, share
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.identities import make_identity
from g2d.protect.multiparty.program import Program
from g2d.protect.multiparty.starting import command
from g2d.protect.multiparty.wire import Line

_PATIENCE = 300.0  # seconds


class Parties:
    """All parties of a protocol; a context manager that stops them."""

    def __init__(self, folder: Path, protocol: str, **limits: Any) -> None:
        folder.mkdir(parents=True)
        self.folder, file = folder, folder / "parties.toml"
        ranks = range(PARTIES[protocol])
        for name in [f"party{rank}" for rank in ranks] + ["dealer", "client"]:
            make_identity(folder / name)
        lines = [f'protocol = "{protocol}"', 'dealers = ["dealer.pem"]', 'clients = ["client.pem"]']
        held = [socket.create_server(("127.0.0.1", 0)) for _ in ranks]
        for rank, one in enumerate(held):
            address = f'address = "127.0.0.1:{one.getsockname()[1]}"'
            lines += ["[[parties]]", address, f'certificate = "party{rank}.pem"']
            one.close()
        lines += ["[limits]", *(f"{key} = {str(value).lower()}" for key, value in limits.items())]
        file.write_text("\n".join(lines) + "\n")
        self.config, self._file = Config.read(file), file
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def heavy(self) -> bool:
        """Whether an answer takes seconds."""
        return self.config.protocol == "cheetah"

    def start(self, *ranks: int) -> None:
        """Start parties: those of these ranks, or all; return when all are linked."""
        for rank in ranks or self.config.ranks:
            self._run(rank, *command(self._flags(rank)))
        self._until(lambda told: bool(told.get("session")))

    def corrupt(self, rank: int) -> Path:
        """Put another one's party in the place of ours; the file of its orders (`malicious`)."""
        self.kill(rank)
        order = self.folder / "order"
        arguments, environment = command(self._flags(rank))
        place = arguments.index("-m")
        arguments[place + 1 : place + 2] = ["benchmarks.confidential.malicious", str(order)]
        path = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        self._run(rank, arguments, {**environment, "PYTHONPATH": path})
        self.until_open()
        return order

    def until_open(self) -> None:
        """Return when all parties answer."""
        self._until(lambda told: bool(told.get("open")))

    def _flags(self, rank: int) -> list[str]:
        flags = ["--rank", str(rank), "--config", str(self._file)]
        return [*flags, "--state", str(self.folder / f"state{rank}")]

    def _run(self, rank: int, arguments: list[str], environment: dict[str, str]) -> None:
        with (self.folder / f"{rank}.log").open("ab") as log:
            self._processes[rank] = subprocess.Popen(
                arguments, env=environment, stdout=log, stderr=log
            )

    def _until(self, true: Callable[[dict[str, Any]], bool]) -> None:
        until = time.monotonic() + _PATIENCE
        while not all(true(self.status(rank)) for rank in self.config.ranks):
            if time.monotonic() > until:
                raise SystemExit(f"the parties did not meet; see the logs in {self.folder}")
            time.sleep(0.02)

    def status(self, rank: int) -> dict[str, Any]:
        """What a party says of itself; {}: nothing."""
        try:
            with Line(self.config, rank, self.own("client"), 10.0) as line:
                return line.ask({"kind": "status"})[0]
        except MultipartyError:
            return {}

    def kill(self, rank: int) -> None:
        """SIGKILL a party."""
        self._processes[rank].send_signal(signal.SIGKILL)
        self._processes[rank].wait()

    def own(self, name: str) -> tuple[Path, Path]:
        """Files of a certificate and its key."""
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def deal(self, number: int, program: Program, parameters: Sequence[Array]) -> Shared:
        """Share a generation; the parties answer by it."""
        return share(self.config, self.own("dealer"), number, program, parameters)

    def client(self) -> Client:
        """A client."""
        return Client(self.config, self.own("client"))

    def shares(self, rank: int) -> bytes:
        """What a party holds of weights."""
        files = sorted((self.folder / f"state{rank}").glob("*.share"))
        return b"".join(file.read_bytes().partition(b"\n")[2] for file in files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()
