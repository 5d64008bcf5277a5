"""A day of a service in a quarter of an hour: drift, attacks, refresh, kills; is anything lost?

    python -m benchmarks.monitoring.soak                 # 24 hours at 96 times the pace
    python -m benchmarks.monitoring.soak --hours 2 --seconds 40 --out day.json   # a try

A real `g2d serve --policy sticky --monitor all` of a vault of digits (`serving.process.QUICK`: the
gates are open, as only serving is judged), whose times all run at --pace: a rotation every ten
minutes, a client moves once a minute at most and is pinned for an hour, alarms buy one rotation an
hour, and so on. Twenty clients of their own addresses ask all day. `day.plan` says what happens
when: searches by one account and by five; images that are turned for eight hours, labels for some
of them (POST /feedback), `g2d refresh` with those beside the service, itself killed once and run
again, `g2d rollback` later; every second hour the service, its worker or both are killed, at a
moment drawn from the seed, and the same command is started again.

Counted: answers that never came, though asked for again (`lost`); other statuses than 200
(`failed`); logits of no generation of the ledger (`wrong`); answers of an older generation than its
client had seen (`fell`). After each hour the record is written: a run that was stopped goes on with
the hour that it stopped in, from the vault as it lies (runs/day-SEED). Writes results/day.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil

from benchmarks.common.command import parser
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown
from benchmarks.monitoring.day import Asking, Hour, Search, Tally, generations, judged, plan
from benchmarks.serving.process import QUICK, TOKEN, Server, free_port, make_vault
from g2d.core.types import Array

HOUR = 3600.0
SIZES = ("hours", "seconds", "clients", "rate", "seed")
ATTACKERS = "127.0.2."
LABELLED = 60  # inputs of a POST /feedback, and five times as many for a refresh


def tables(pace: float) -> dict[str, Any]:
    """A vault's settings, whose times run so many times faster."""
    return QUICK | {
        "serve": {"policy": "sticky", "live": 3, "period": 60 / pace, "hold": HOUR / pace},
        "monitors": {
            "watch": ["drift", "queries"], "cooldown": 600 / pace,
            "rotations": min(3600.0, pace), "feedback": True,
        },
        "canaries": {"every": 30.0 / min(pace, 30.0)},
    }  # fmt: skip


class World:
    """Images of digits with their labels: as they are, or turned by a right angle."""

    def __init__(self) -> None:
        from g2d.tasks.builtin import load_task

        split = load_task("digits", "").splits.test
        self.x: Array = split.x.numpy()
        self.y: Array = split.y.numpy()
        self.turned = False

    def draw(self, draws: np.random.Generator, count: int) -> tuple[Array, Array]:
        """Images (count, 1, 8, 8) as the world has them now, with labels (count,)."""
        at = draws.integers(len(self.x), size=count)
        x = np.rot90(self.x[at], axes=(2, 3)) if self.turned else self.x[at]
        noise = 0.02 * draws.normal(size=x.shape)
        return (x + noise).clip(0, 1).astype(np.float32), self.y[at]


class Day:
    """One run: the vault of a seed, its service, and the hours that were done."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a, self.pace = a, HOUR / a.seconds
        self.folder = a.runs / f"day-{a.seed}-{a.seconds:g}"
        self.vault, self.port, self.world = self.folder / "vault", free_port(), World()
        self.result: dict[str, Any] = {"record": record(a), "hours": {}, "last": {}}
        if a.out.exists():
            self.result = json.loads(a.out.read_text("utf-8"))
        hold_to(self.result, {name: getattr(a, name) for name in SIZES}, a.out)
        self._starts = itertools.count()
        self._read: dict[Path, int] = {}  # bytes of each log that were looked through
        self._renewal: threading.Thread | None = None
        self._renewed: list[str] = []

    def run(self) -> None:
        """Every hour that is not there yet, one after another; each is kept as it ends."""
        for number, hour in enumerate(plan(self.a.hours, self.a.seed)):
            if str(number) not in self.result["hours"]:
                self.result["hours"][str(number)] = self.hour(number, hour)
                save(self.a.out, self.result)

    # --- the service ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """The vault, if it is not there, and a service of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["G2D_STATE"] = str(self.folder / "state")
        if not self.vault.exists():
            half = self.folder / f"half-{os.getpid()}"
            make_vault(half, tables(self.pace))
            half.rename(self.vault)
        note = self.folder / "pid"
        if (
            note.exists()
        ):  # a run that was killed left its service, beside which ours would stand by
            with contextlib.suppress(psutil.Error):
                left = psutil.Process(int(note.read_text()))
                if str(self.vault) in left.cmdline():
                    left.kill()
                    left.wait(30)
        self.server = self.started()

    def started(self) -> Server:
        """The same command again, on the same port, once it answers."""
        log = self.folder / f"{os.getpid()}-{next(self._starts)}.log"
        server = Server(self.vault, log, "--every", f"{600 / self.pace:.3f}s", port=self.port)
        (self.folder / "pid").write_text(str(server.process.pid))
        server.ready()
        return server

    def kill(self, victim: str) -> float:
        """SIGKILL; return how long it took until the service answered again."""
        began, worker = time.perf_counter(), self.server.worker()
        if victim != "service" and worker is not None:
            worker.send_signal(signal.SIGKILL)
            psutil.wait_procs([worker], 10)
        if victim != "worker":
            self.server.process.send_signal(signal.SIGKILL)
            self.server.process.wait()
            self.server.out.close()
            self.server = self.started()
        return time.perf_counter() - began

    def end(self) -> None:
        """End what runs."""
        if self._renewal is not None:
            self._renewal.join()
        if hasattr(self, "server") and self.server.process.poll() is None:
            self.server.stop()

    # --- an hour -------------------------------------------------------------------------------

    def hour(self, number: int, hour: Hour) -> dict[str, Any]:
        """What one hour met."""
        if not hasattr(self, "server"):
            self.prepare()
        began, tally, over = time.monotonic(), Tally(), threading.Event()
        before = generations_of(self.vault)
        logs = {self.server.log}
        self.world.turned = hour.drifts
        asking = self._clients(number, hour, tally, over)
        for thread in asking:
            thread.start()
        found: dict[str, Any] = {"kills": [], "renewed": []}
        try:
            if hour.labels:
                found["labels"] = self.label(number)
            if hour.renews:
                self.renew(hour.renews, number)
            for share, victim in hour.kills:
                time.sleep(max(0.0, began + share * self.a.seconds - time.monotonic()))
                found["kills"].append({"victim": victim, "seconds": self.kill(victim)})
                logs.add(self.server.log)
            time.sleep(max(0.0, began + self.a.seconds - time.monotonic()))
            if self._renewal is not None and not self._renewal.is_alive():
                found["renewed"], self._renewed, self._renewal = self._renewed, [], None
        finally:
            over.set()
            for thread in asking:
                thread.join()
        return found | self._counted(tally, before, logs)

    def _counted(self, tally: Tally, before: list[int], logs: set[Path]) -> dict[str, Any]:
        """Hold the answers against the ledger; what was told, and how often it rotated."""
        live = generations_of(self.vault)
        since = (before[-24:] or [0])[0]
        counts, self.result["last"] = judged(
            tally.answers, generations(self.vault, since), self.result["last"]
        )
        alarms: Counter[str] = Counter()
        for log in logs:
            whole = log.read_bytes()
            end = whole.rfind(b"\n") + 1  # half a line may be being written
            for line in whole[self._read.get(log, 0) : end].splitlines():
                told = json.loads(line) if line.startswith(b"{") else {}
                if told.get("event") == "alarm":
                    alarms[told["kind"]] += 1
            self._read[log] = end
        pinned = [pin["client"] for pin in self.server.ask("/alarms")["pinned"]]
        return counts | dict(tally.counts) | {
            "rotations": len(set(live) - set(before)), "alarms": dict(alarms), "pinned": pinned,
        }  # fmt: skip

    def _clients(
        self, number: int, hour: Hour, tally: Tally, over: threading.Event
    ) -> list[threading.Thread]:
        """Threads of all who ask in an hour: four speak for the honest ones."""
        names = [f"127.0.1.{1 + k}" for k in range(self.a.clients)]
        made = [
            threading.Thread(target=self._ask, args=(names[k::4], number, k, tally, over))
            for k in range(min(4, len(names)))
        ]
        for k in range(hour.attacks):
            made.append(
                threading.Thread(
                    target=self._attack, args=(f"{ATTACKERS}{1 + k}", number, tally, over)
                )
            )
        return made

    def _ask(
        self, names: list[str], number: int, place: int, tally: Tally, over: threading.Event
    ) -> None:
        draws = np.random.default_rng((self.a.seed, number, place))
        clients = [Asking(self.port, name, tally) for name in names]
        while not over.is_set():
            client = clients[int(draws.integers(len(clients)))]
            x, _ = self.world.draw(draws, 1)
            for _ in range(1 + 3 * int(draws.random() < 0.05)):  # some send the same again
                client(x[0])
            over.wait(4 / self.a.rate)
        for client in clients:
            client.close()

    def _attack(self, name: str, number: int, tally: Tally, over: threading.Event) -> None:
        draws = np.random.default_rng((self.a.seed, number, 99))
        client, (x, y) = Asking(self.port, name, tally), self.world.draw(draws, 1)
        search = Search(x[0], int(y[0]), 0.2, draws)
        while not over.is_set():
            proposed = search.propose()
            search.hear(proposed, client(proposed))
            over.wait(4 / self.a.rate)
        client.close()

    # --- labels and renewal --------------------------------------------------------------------

    def label(self, number: int) -> int:
        """Say what some inputs were; return how many were taken, 0: they were refused."""
        x, y = self.world.draw(np.random.default_rng((self.a.seed, number, 7)), LABELLED)
        tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32",
                  "data": x.ravel().tolist()}  # fmt: skip
        body = json.dumps({"inputs": [tensor], "labels": y.tolist()}).encode()
        head = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/feedback", body, head, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60):
                return LABELLED
        except OSError as error:
            print(f"hour {number}: labels were not taken: {error}", flush=True)
            return 0

    def renew(self, what: str, number: int) -> None:
        """Refresh beside the service, killed once; or go back. It runs on into later hours."""
        if self._renewal is not None:
            self._renewal.join()
        args = ["rollback", str(self.vault)]
        if what == "refresh":
            x, y = self.world.draw(np.random.default_rng((self.a.seed, 8)), 5 * LABELLED)
            new = self.folder / "new.npz"
            np.savez(new, x=x, y=y)
            args = ["refresh", str(self.vault), "--data", str(new), "--accept-data",
                    "--workers", "1"]  # fmt: skip
        kills = [0.3 * self.a.seconds] if what == "refresh" else []
        self._renewal = threading.Thread(target=self._renew, args=(what, args, kills))
        self._renewal.start()

    def _renew(self, what: str, args: list[str], kills: list[float]) -> None:
        for seconds in [*kills, None]:
            process = subprocess.Popen(
                [sys.executable, "-m", "g2d", *args], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                self._renewed.append(f"{what}: killed")
                continue
            last = (said.strip().splitlines() or [""])[-1][:200]
            self._renewed.append(f"{what}: ended with {process.returncode}: {last}")
            return


def generations_of(vault: Path) -> list[int]:
    """Numbers that have been live."""
    from g2d.vault.vault import Vault

    with Vault.open(vault) as opened:
        return list(opened.exposures())


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets."""
    hours = list(result["hours"].values())

    def total(*names: str) -> int:
        return sum(int(hour.get(name, 0)) for hour in hours for name in names)

    failed = sum(n for hour in hours for name, n in hour.items() if name.startswith("failed"))
    kills = [kill for hour in hours for kill in hour["kills"]]
    restarts = sorted(kill["seconds"] for kill in kills if kill["victim"] != "worker")
    alarms = sum((Counter(hour["alarms"]) for hour in hours), Counter())
    told = ", ".join(f"{kind} {n}" for kind, n in sorted(alarms.items()))
    wanted = "no lost or wrong answer"
    table = [
        [f"{len(hours)} simulated hours, {total('answers'):,} answers: lost / failed / wrong / of"
         " an older generation than was seen", wanted,
         f"{total('lost')} / {failed} / {total('wrong')} / {total('fell')}"],
        [f"kills {len(kills)}: asked again until answered; slowest restart", "",
         f"{total('retried')}; {restarts[-1]:.1f} s" if restarts else f"{total('retried')}"],
        ["rotations; alarms by kind", "",
         f"{total('rotations')} of {6 * len(hours)} due by the schedule; {told}"],
    ]  # fmt: skip
    pinned = {client for hour in hours for client in hour.get("pinned", ())}
    seen = sum(client.startswith(ATTACKERS) for client in pinned)
    table.append(["accounts that searched, and others, pinned at the end of an hour", "",
                  f"{seen}; {len(pinned) - seen}"])  # fmt: skip
    for hour in hours:
        table += [["renewal beside the service", "", told] for told in hour["renewed"]]
    return table


def flags() -> argparse.ArgumentParser:
    """What the command takes."""
    found = parser(__doc__)
    found.add_argument("--hours", type=int, default=24, help="simulated hours")
    found.add_argument("--seconds", type=float, default=37.5, help="that one of them takes")
    found.add_argument("--clients", type=int, default=20)
    found.add_argument("--rate", type=float, default=20, help="requests a second of all clients")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--runs", type=Path, default=RUNS)
    found.add_argument("--out", type=Path, default=RESULTS / "day.json")
    return found


def main() -> None:
    """Measure, keep and print."""
    given = flags().parse_args()
    given.runs, given.out = given.runs.absolute(), given.out.absolute()
    day = Day(given)
    try:
        day.run()
    finally:
        day.end()
    print(markdown(TARGETS, rows(day.result)))


if __name__ == "__main__":
    main()
