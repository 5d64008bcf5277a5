"""Federated processes of a test: kits, tasks that hold one client's share each, and a replay."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from g2d.settings import Settings, build
from g2d.training.federated.answers import ANSWERS, AnswerFile
from g2d.training.federated.records import Turn
from g2d.training.federated.simulate import Simulation
from places import ROOT
from tiny_tables import TINY

CLINICS = '''
"""The task of each client: digits, of whose records it has its own share."""

import dataclasses

from g2d.tasks.builtin import load_task
from g2d.tasks.splits import Split
from g2d.training.federated.records import shares


def _own(k):
    task = load_task("digits")
    train = task.splits.train
    part = shares(train.y.numpy(), 3, 0.0, 0)[k]
    splits = dataclasses.replace(task.splits, train=Split(train.x[part], train.y[part]))
    return dataclasses.replace(task, splits=splits)


def client_00():
    return _own(0)


def client_01():
    return _own(1)


def client_02():
    return _own(2)
'''
NAMES = ["client-00", "client-01", "client-02"]
FEW = {
    "clients": 3, "rule": "mean", "rounds": 4, "early_rounds": 1, "fork_rounds": 1,
    "local_steps": 2, "local_rate": 0.5, "root": 0, "alpha": 0.0, "patience": 3600.0,
    "member_drop": 1.0,
}  # fmt: skip


def settings(**federated) -> Settings:
    tables = {"task": {"name": "digits"}, **TINY, "federated": FEW | federated}
    tables["population"] = TINY["population"] | {
        "members": 2, "basins": 1, "batch": 32, "pool": 30, "pool_steps": 1,
    }  # fmt: skip
    return build(Settings, tables, "tests")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


class Replayed(Simulation):
    """A simulation whose clients are missing where real ones were: {(stage, round): names}."""

    missing: dict[tuple[str, int], set[str]]

    def _turns(self, asked, identity):
        gone = self.missing
        return [
            Turn() if identity in gone.get((asked.stage, k), ()) else Turn(True, k)
            for k in range(asked.rounds)
        ]


class Group:
    """A folder with kits, clients' tasks and logs; `start` runs a command as a process."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.kits, self.vault = folder / "kits", folder / "vault"
        (folder / "clinics.py").write_text(CLINICS)
        (folder / "few.toml").write_text(settings().to_toml())
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def provision(self) -> list[str]:
        clients = [word for name in NAMES for word in ("--client", name)]
        where = ["--server", f"localhost:{self.port}", "--settings", str(self.folder / "few.toml")]
        return ["federated", "provision", str(self.kits), "digits", *where, *clients]

    def start(self, name: str) -> None:
        kit = str(self.kits / name)
        words = (
            ["server", kit, "digits", "--vault", str(self.vault)]
            if name == "server"
            else ["client", kit, f"clinics:{name.replace('-', '_')}", "--task-path",
                  str(self.folder)]
        )  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "g2d", "federated", *words], stdout=log, stderr=log, env=env
            )

    def signal(self, name: str, number: int) -> None:
        self.running[name].send_signal(number)

    def kill(self, name: str) -> None:
        self.signal(name, signal.SIGKILL)
        self.running[name].wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def answered(self, number: int, name: str) -> bool:
        path = self.vault.with_name("vault.federated") / "base-0" / ANSWERS
        return name in dict(AnswerFile(path, 1 << 24).read(number))

    def round(self) -> int:
        """Which round of the base is asked; 0 before there is a state."""
        path = self.vault.with_name("vault.federated") / "base-0" / "state.safetensors"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return 0
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(head["__metadata__"]["g2d"])["number"]

    def end(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()
