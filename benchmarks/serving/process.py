"""What the benchmarks of serving share: a small vault, and a running server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.serving.load import PLAIN, Tls, ask_once, infer_request, inputs

TOKEN = "a-token-of-the-benchmark"
TINY = {
    "task": {"name": "digits"},
    "population": {"members": 4, "basins": 2, "base_steps": 200, "early_steps": 60,
                   "fork_steps": 60, "batch": 64, "pool": 128, "pool_steps": 3},
    "autoencoder": {"steps": 40, "width": 32},
    "diffusion": {"steps": 200, "width": 32, "depth": 1, "sampler_steps": 10},
    "guidance": {"pool": 128, "pool_steps": 3, "latent_steps": 5, "polish_steps": 40},
    "gates": {"accuracy_drop": 0.2, "class_drop": 0.5, "stale_asr": 1.0, "pool": 64},
}  # fmt: skip
QUICK = TINY | {
    "diffusion": {"steps": 200, "width": 32, "depth": 1, "sampler_steps": 2},
    "guidance": {"memory": 1, "pool": 8, "pool_steps": 1, "reverse_steps": 0, "latent_steps": 0,
                 "polish_steps": 0, "batch": 8, "particles": 1},
    "gates": {"accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "distance": 0.0,
              "history": 1, "pool": 8, "pool_steps": 1},
}  # fmt: skip
"""A generation in 25 ms: nothing is guided and the gates are open, as only serving is judged."""


# --- the vault -------------------------------------------------------------------


def make_vault(path: Path, tables: dict[str, Any], key: Path | None = None) -> Path:
    """Build a small vault of digits in five seconds; with `key`, what is accepted is signed."""
    import torch

    import g2d
    from g2d.core.engine import SerialEngine
    from g2d.settings import build

    torch.set_num_threads(1)
    signing = {"signing": {"key": str(key)}} if key else {}
    settings = build(g2d.Settings, tables | signing, "the benchmark")
    with g2d.Defence.build("digits", path, settings, engine=SerialEngine()):
        return path


def make_key(folder: Path) -> tuple[Path, Path]:
    """`g2d keys new`: the files of a fresh private and public key."""
    private, public = folder / "signing.key", folder / "signing.pub"
    subprocess.run(
        [sys.executable, "-m", "g2d", "keys", "new", "--key", str(private), "--public",
         str(public)], check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return private, public


def copy_vault(vault: Path, copy: Path, key: Path) -> Path:
    """Copy a signed vault, and say that `key` signs for the copy, too."""
    from g2d.vault.confirmed import confirm_key
    from g2d.vault.vault import Vault

    shutil.copytree(vault, copy)
    with Vault.open(copy, write=True) as opened:
        confirm_key(opened, str(key))
    return copy


def copied(vault: Path, copy: Path) -> Path:
    """Copy a vault, and take the copy as it is: the marks of what it reached lie elsewhere."""
    from g2d.vault.mark import FileMark
    from g2d.vault.rollback import accept
    from g2d.vault.sealing.remembered import VARIABLE
    from g2d.vault.vault import Vault

    shutil.copytree(vault, copy)
    with Vault.open(copy) as opened:
        if opened.sealing.record is not None and not os.environ.get(VARIABLE):
            raise SystemExit(f"{vault} is sealed: set {VARIABLE} to what opens it")
        accept(opened, FileMark(copy, opened.identity))
    return copy


def bootstrap(
    statistic: Callable[[np.ndarray], float], turns: int, seed: int = 0, draws: int = 2000
) -> list[float]:
    """95 % interval of a statistic of turns: it gets the places of turns drawn with replacement."""
    chance = np.random.default_rng(seed)
    values = [statistic(chance.integers(0, turns, turns)) for _ in range(draws)]
    return [float(v) for v in np.percentile(values, (2.5, 97.5))]


# --- a server ------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server as a process, in a session of its own; `g2d serve` unless a command is given.

    Args:
        options: of `g2d serve`. log: takes its stderr. command: another server's. tls: how clients
            reach it.
    """

    def __init__(
        self, vault: Path, log: Path, *options: str, port: int = 0,
        command: Sequence[str] | None = None, tls: Tls = PLAIN,
    ) -> None:  # fmt: skip
        self.tls = tls
        self.port, self.log, self.out = port or free_port(), log, log.open("w")
        ours = [sys.executable, "-m", "g2d", "serve", str(vault), "--port", str(self.port)]
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, str(self.port)] if command else [*ours, *options],
            stderr=self.out, stdout=subprocess.DEVNULL, process_group=0,
            env=os.environ | {"G2D_ADMIN_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ready(self, patience: float = 120.0) -> bytes:
        """Wait until it answers one input; return the answer."""
        request = infer_request(inputs(1), token=TOKEN)
        while time.perf_counter() - self.began < patience and self.process.poll() is None:
            try:
                answer = ask_once(self.port, request, tls=self.tls)
                if answer.startswith(b"HTTP/1.1 200"):
                    return answer
            except OSError:
                pass  # it does not listen yet: asked again, until patience or the process ends
            time.sleep(0.005)
        self.kill()
        raise SystemExit(f"the server did not start: {self.log.read_text()[-2000:]}")

    def ask(self, path: str, method: str = "GET") -> dict[str, Any]:
        """A call with the admin's token; the JSON of the answer, whatever its status."""
        headers = {"authorization": f"Bearer {TOKEN}"}
        context = self.tls.context()
        url = f"http{'s' if context else ''}://localhost:{self.port}{path}"
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def rotation(self) -> dict[str, Any]:
        """What /status says of rotation."""
        return self.ask("/status")["rotation"]

    def worker(self) -> psutil.Process | None:
        """The process that makes generations, while there is one."""
        try:
            children = psutil.Process(self.process.pid).children()
            return next((c for c in children if "g2d.service.worker" in c.cmdline()), None)
        except psutil.Error:
            return None

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log that tell of one event; at least its start is there, and no line lost.

        Of events that any client can cause some are held back: a later one says how many.
        """
        lines = self.log.read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        # Nothing found would read as nothing wrong, were the log written in another way.
        assert any(line["event"] == "start" for line in told), f"{self.log} has no start"
        assert not any("dropped" in line for line in told if line["event"] == "log"), self.log
        return [line for line in told if line["event"] == name]

    def count(self, name: str, key: str = "event") -> int:
        """How many events there were that have `key`, those held back after them included."""
        return sum(1 + e.get("held_back", 0) for e in self.events(name) if key in e)

    def cpu(self) -> float:
        """CPU seconds so far of it and its children."""
        total = 0.0
        own = psutil.Process(self.process.pid)
        for process in [own, *own.children(recursive=True)]:
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.Error:
                continue
        return total

    def signal(self, number: int) -> None:
        """Send a signal to the service and not to its worker, which is a group of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.out.close()
        return code

    def kill(self) -> None:
        """SIGKILL; its worker ends as it finds itself alone."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.out.close()
