"""Real processes under mutual TLS: many clients, some gone in every round, some killed; same bytes?

    python -m benchmarks.federated.processes --clients 20
    python -m benchmarks.federated.processes --clients 4 --rounds 3    # a try

A server and clients are processes of their own (`g2d federated server`, `client`), each client with
its share of the task's records; the last client is this process, which answers a round of the base
when everybody else has who is to, so that from the third round on exactly the share `--dropout` is
missing: those are ended by SIGTERM before, and started again one round later. In the second round
the server and a client are killed by SIGKILL while it is open. What the log says of who was missing
when is then played in one process, and base, early checkpoints and members are compared byte by
byte. CPU is of the other processes together. Kept in
benchmarks/results/federated-processes-TASK-seedN.json, seed by seed. Needs `g2d[federated]`; about
0.4 GB of memory a process.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS, ROOT
from benchmarks.common.results import commit, record, save
from benchmarks.common.tables import TARGETS, markdown
from benchmarks.federated import shares
from g2d import Defence, Settings
from g2d.core.types import silent
from g2d.defence.federating import begin_at, federate
from g2d.settings import build
from g2d.training.federated.answers import ANSWERS, AnswerFile
from g2d.training.federated.client import Client
from g2d.training.federated.messages import most_bytes
from g2d.training.federated.networks import Networks
from g2d.training.federated.processes import words
from g2d.training.federated.processes.away import AWAY
from g2d.training.federated.processes.cells import ClientCell
from g2d.training.federated.processes.kits import read_kit
from g2d.training.federated.processes.words import settings_digest
from g2d.training.federated.processes.work import Worker
from g2d.training.federated.records import Turn
from g2d.training.federated.simulate import Simulation
from g2d.training.federated.stages import Asked
from g2d.vault.vault import Vault

KINDS = ("base", "early", "member")
_LOOK = 0.2  # seconds
HEARD = 600.0  # seconds in which a client that leaves is heard
_MISSING = re.compile(r"round (\d+) of ([a-z0-9-]+): \d+ of \d+ answered, without (.+)")


def settings_of(given: Namespace, seed: int) -> Settings:
    """What all train by; so many clients may be malicious as the rule bears, and none is."""
    tables = {
        "task": {"name": given.task, "data": str(given.data or "")},
        "population": {"seed": seed, "members": given.members, "basins": 1, "batch": 32,
                       "pool": 200, "pool_steps": 3},
        "harden": {"recipe": []},
        "federated": {"clients": given.clients, "rounds": given.rounds, "early_rounds": 1,
                      "fork_rounds": 2, "alpha": given.alpha, "member_drop": 1.0, "root": 0,
                      "patience": 36_000.0},
    }  # fmt: skip
    return build(Settings, tables, "benchmark")


@dataclass
class Group:
    """Processes of one run, and their files."""

    given: Namespace
    seed: int
    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def vault(self) -> Path:
        """Of the server."""
        return self.folder / "vault"

    @property
    def names(self) -> list[str]:
        """The clients' names, as in a simulation."""
        return [f"client-{k:02d}" for k in range(self.given.clients)]

    def provision(self) -> None:
        """Make kits."""
        (self.folder / "few.toml").write_text(settings_of(self.given, self.seed).to_toml())
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        clients = [word for name in self.names for word in ("--client", name)]
        self._command(
            "provision", self.folder / "kits", self.given.task, "--server", f"localhost:{port}",
            "--settings", self.folder / "few.toml", *clients,
        ).wait()  # fmt: skip

    def start(self, name: str) -> None:
        """Start the server or a client."""
        kit, place = self.folder / "kits" / name, f"{shares.__name__}:{name.replace('-', '_')}"
        data = ["--data", self.given.data] if self.given.data else []
        command = (
            ["server", kit, self.given.task, "--vault", self.vault, *data]
            if name == "server"
            else ["client", kit, place]
        )
        self.running[name] = self._command(*command, log=f"{name}.log")

    @property
    def told(self) -> dict[str, Any]:
        """What clients' tasks are made of."""
        a = self.given
        return {"task": a.task, "data": str(a.data or ""), "clients": a.clients,
                "alpha": a.alpha, "seed": self.seed}  # fmt: skip

    def _command(self, *given: object, log: str = "kits.log") -> subprocess.Popen[bytes]:
        env = os.environ | {
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1",
            "G2D_STATE": str(self.folder / "state"), shares.VARIABLE: json.dumps(self.told),
        }  # fmt: skip
        with (self.folder / log).open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "g2d", "federated", *map(str, given)],
                stdout=out, stderr=out, env=env, cwd=self.folder,
            )  # fmt: skip

    def end(self, name: str, number: int) -> None:
        """Send a signal and see the process end."""
        self.running[name].send_signal(number)
        self.running.pop(name).wait()

    def stop(self) -> None:
        """End what is left."""
        for name in list(self.running):
            if self.running[name].poll() is None:
                self.running[name].kill()
            self.running.pop(name).wait()

    def log(self, name: str) -> str:
        """What a process has said."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def round(self) -> int:
        """Which round of the base is asked; the last one's number where the base is complete."""
        path = self.vault.with_name("vault.federated") / "base-0" / "state.safetensors"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return 0  # it has not begun, or is complete and was put away
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return int(json.loads(head["__metadata__"]["g2d"])["number"])

    def answered(self, number: int, names: Sequence[str]) -> int:
        """How many of these clients have answered a round of the base that is open."""
        path = self.vault.with_name("vault.federated") / "base-0" / ANSWERS
        known = {sender for sender, _ in AnswerFile(path, 1 << 30).read(number)}
        return len(known & set(names))

    def away(self) -> set[str]:
        """Clients that the server does not wait for."""
        path = self.vault.with_name("vault.federated") / AWAY
        return set(json.loads(path.read_text())) if path.exists() else set()

    def leave(self, name: str) -> None:
        """End a client by SIGTERM; its round would wait for it if the server had not heard so."""
        self.end(name, signal.SIGTERM)
        self.until(lambda: name in self.away(), HEARD, f"the server has not heard {name} leave")

    def until(self, condition: Callable[[], bool], most: float = math.inf, why: str = "") -> None:
        """Wait; who ends by itself before, with an error, is one; so is what takes too long."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > most:
                raise SystemExit(f"{why}: {self.log('server')[-2000:]}")
            for name, process in self.running.items():
                if process.poll() not in (None, 0):
                    raise SystemExit(f"{name} failed: {self.log(name)[-2000:]}")
            time.sleep(_LOOK)


class Replayed(Simulation):
    """A simulation whose clients are missing where real ones were: {(stage, round): names}."""

    missing: dict[tuple[str, int], set[str]]

    def _turns(self, asked: Asked, identity: str) -> list[Turn]:
        gone = self.missing
        return [
            Turn() if identity in gone.get((asked.stage, k), ()) else Turn(True, k)
            for k in range(asked.rounds)
        ]


class Paced(Worker):
    """A client of this process that hands an answer in when it is told to."""

    turn: threading.Semaphore

    def _deliver(self, topic: str, data: bytes, what: str = "") -> None:
        if topic == words.ANSWER:
            self.turn.acquire()
        super()._deliver(topic, data, what)


def paced(group: Group, stop: threading.Event) -> tuple[Paced, ClientCell]:
    """The last client, as the command makes one."""
    kit = read_kit(group.folder / "kits" / group.names[-1])
    settings = kit.settings()
    task = shares.of(group.given.clients - 1, group.told)
    networks, like = Networks.of(task), begin_at(task, settings)
    client = Client(kit.name, task, task.splits.train, settings, networks, like)
    cell = ClientCell(kit, kit.address, most_bytes(networks.form))
    digest = settings_digest(settings, networks.form)
    made = Paced(client, digest, cell, stop, lambda _: None)
    made.turn = threading.Semaphore(0)
    return made, cell


def driven(group: Group) -> None:
    """Run to the end, with dropout in every round of the base and two kills in its second."""
    given, source, others = group.given, random.Random(group.seed), group.names[:-1]
    count = round(given.dropout * given.clients)
    away = [set(source.sample(others, count)) for _ in range(given.rounds)]
    # The first two rounds have everybody: in the second one server and client are killed.
    away = [set(), set(), *away[2:], set()]
    for name in ("server", *others):
        group.start(name)
    stop = threading.Event()
    worker, cell = paced(group, stop)
    thread = threading.Thread(target=worker.run, daemon=True)
    cell.start()
    thread.start()
    try:
        for number in range(given.rounds):
            _round(group, number, away, [n for n in others if n not in away[number]])
            worker.turn.release()
        # Before the last round is closed they would answer it, and nothing of it were lost; and the
        # next stage, which this process's own answer holds open, is to hear them.
        group.until(lambda: group.round() >= given.rounds)
        for name in sorted(away[given.rounds - 1]):
            group.start(name)
        group.until(lambda: not group.away() & set(others))
        worker.turn.release(1000)  # of members nothing is held back
        group.until(lambda: group.running["server"].poll() == 0)
        group.until(lambda: all(p.poll() == 0 for p in group.running.values()))
        thread.join()
    finally:
        stop.set()
        cell.stop()


def _round(group: Group, number: int, away: list[set[str]], there: list[str]) -> None:
    """One round up to where this process's own answer is all that is missing."""
    group.until(lambda: group.round() >= number)
    for name in sorted(away[number - 1] - away[number]) if number else ():
        group.start(name)
    if number == 1:
        group.until(lambda: group.answered(number, there) >= len(there) // 2)
        victim = there[-1]
        for name in (victim, "server"):
            group.end(name, signal.SIGKILL)
        for name in (victim, "server"):
            group.start(name)
    group.until(lambda: group.answered(number, there) == len(there))
    for name in sorted(away[number + 1] - away[number]):
        group.leave(name)


def measured(given: Namespace, seed: int, folder: Path) -> Result:
    """One run, and its replay in this process."""
    group, began = Group(given, seed, folder), time.monotonic()
    try:
        group.provision()
        driven(group)
    finally:
        group.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = _MISSING.findall(group.log("server"))
    missing = {(stage, int(n)): set(names.split(", ")) for n, stage, names in lines}
    lost = sum(len(names) for (stage, _), names in missing.items() if stage == "base-0")
    wall, settings = time.monotonic() - began, settings_of(given, seed)
    os.environ["G2D_STATE"] = str(folder / "replayed")
    with Defence.create(given.task, folder / "same", settings) as defence:
        s = defence.settings
        sim = Replayed(defence.task, s, begin_at(defence.task, s), folder / "same.federated")
        sim.missing = missing
        federate(defence.task, defence.vault, s, None, silent, lambda _: None, sim)
        with Vault.open(group.vault) as real:
            pairs = [
                (real.read(one), defence.vault.read(other))
                for kind in KINDS
                for one, other in zip(real.entries(kind), defence.vault.entries(kind), strict=True)
            ]
    rounds = given.rounds + 1 + 2 * given.members
    return {
        "networks": len(pairs), "same": sum(a == b for a, b in pairs), "rounds": rounds,
        "lost": lost / (given.clients * (given.rounds - 2)),
        "kills": 2, "cpu_seconds": used.ru_utime + used.ru_stime, "wall_seconds": wall,
        "largest_mb": used.ru_maxrss / 1024,
    }  # fmt: skip


def rows(results: Sequence[Result]) -> list[list[object]]:
    """What was wanted, and what was reached."""
    found: list[list[object]] = []
    for result in results:
        a, row = result["arguments"], result["row"]
        what = f"{a['clients']} clients, seed {result['seed']}: networks with a simulation's bytes"
        found.append([what, "all", f"{row['same']} of {row['networks']}"])
        cost = f"{row['lost']:.0%}; {row['kills']} processes killed"
        found.append(["lost of the base's answers, from its third round", "30 %", cost])
        found.append(["CPU of all processes", "–", f"{row['cpu_seconds'] / 60:.1f} minutes"])
    return found


def flags() -> ArgumentParser:
    """What may be asked for."""
    found = parser(__doc__)
    found.add_argument("--task", default="digits")
    found.add_argument("--data", type=Path)
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--clients", type=int, default=20)
    found.add_argument("--alpha", type=float, default=0.5)
    found.add_argument("--dropout", type=float, default=0.3)
    found.add_argument("--rounds", type=int, default=8, help="of the base, three at least")
    found.add_argument("--members", type=int, default=2)
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    if given.data:
        given.data = given.data.absolute()
    torch.set_num_threads(1)
    results = []
    for seed in given.seeds:
        path = given.out / f"federated-processes-{given.task}-seed{seed}.json"
        if not path.exists():
            result = record(given) | {"seed": seed, "commit": commit()}
            with tempfile.TemporaryDirectory() as folder:
                result["row"] = measured(given, seed, Path(folder))
            save(path, result)
        results.append(json.loads(path.read_text()))
    print(markdown(TARGETS, rows(results)))


if __name__ == "__main__":
    main()
