"""SIGKILL at random moments under load, then the same command again: what comes back, how soon.

    python -m benchmarks.hostile.kills               # 100 kills, ten minutes
    python -m benchmarks.hostile.kills --kills 6     # a try

A real `g2d serve` of a signed vault of digits (`--key`, `--served`), rotated as fast as its worker
makes generations. Every kill takes service, worker or both, at a moment drawn from a seed: before
the worker is ready, or in the midst of making, keeping and committing. Where the service was killed
it is started again at once, and timed from exec to the first good answer; where the worker was, the
service has to go on answering, without a request dropped, and to rotate again; what was under way
as the service itself was killed is cut, and counted apart. Checked each time: the answers are their
generation's own logits on their own input; the first is of the last one committed in the ledger; no
number is below one seen before; the ledger passes SQLite's integrity_check. At the end everything
in the vault is read and every signature verified (`g2d verify`). The generations are made in 25 ms
(`serving_process.QUICK`: the gates are open). Writes results/kills.json.
"""

from __future__ import annotations

import argparse
import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import g2d
from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.serving.answers import judge
from benchmarks.serving.load import Answers, Load, answer_of, ask_once, bodies, infer_requests
from benchmarks.serving.process import QUICK, Server, free_port, make_key, make_vault
from benchmarks.serving.run import wait_to_write
from g2d.vault.vault import Vault

CONNECTIONS = 4


def ledger_state(vault: Path) -> tuple[int, str]:
    """The last generation committed, and what SQLite says of the ledger."""
    with closing(sqlite3.connect(f"file:{vault}/ledger.sqlite?mode=ro", uri=True)) as ledger:
        ((live,),) = ledger.execute("SELECT max(number) FROM exposures")
        ((said,),) = ledger.execute("PRAGMA integrity_check")
    return int(live), str(said)


class Storm:
    """The kills, one after another, of one vault. Args: command: makes the server's process."""

    def __init__(self, vault: Path, options: list[str], folder: Path, a: argparse.Namespace):
        self.vault, self.options, self.folder, self.a = vault, options, folder, a
        self.chance, self.port = random.Random(a.seed), free_port()
        self.seen, self.falls = 0, 0
        self.rounds: list[dict[str, Any]] = []
        self.answers: Answers = set()
        self.load = {"sent": 0, "answered": 0, "failed": 0, "out_of_order": 0, "dropped": 0,
                     "cut": 0}  # fmt: skip
        self.server = self.started(0)

    def started(self, place: int) -> Server:
        """The same command again, on the same port."""
        log = self.folder / f"{place}.log"
        return Server(self.vault, log, *self.options, port=self.port)

    def round(self, place: int) -> dict[str, Any]:
        """One kill and what follows; the server answers before and after."""
        load = Load(self.port, infer_requests(), 600, CONNECTIONS, self.a.load, place)
        moment = self.wait()
        victim = self.chance.choice(("service", "service", "worker", "both"))
        worker = self.server.worker()
        victim = victim if worker else "service"
        if victim != "service":
            worker.send_signal(signal.SIGKILL)
        if victim != "worker":
            self.server.process.send_signal(signal.SIGKILL)
            self.server.process.wait()
        if victim != "service":
            psutil.wait_procs([worker], 10)  # one that outlives the service may commit once more
        committed, said = ledger_state(self.vault)
        found = {"victim": victim, "moment": moment, "committed": committed, "ledger": said}
        found |= self.back(place) if victim != "worker" else self.onward(committed)
        found["load"] = self.take(load.finish(early=True), victim)
        return found

    def wait(self) -> dict[str, Any]:
        """Wait for a random moment: of the start, or of a rotation in full swing."""
        mid = self.chance.random() < self.a.mid
        if mid:
            number, until = self.answer(), time.monotonic() + 120
            while self.answer() == number:
                assert time.monotonic() < until, "no rotation within two minutes"
                time.sleep(0.01)
        wait = self.chance.uniform(0.0, 1.5)
        time.sleep(wait)
        return {"rotating": mid, "wait": wait}

    def back(self, place: int) -> dict[str, Any]:
        """Start again; time it, and compare its first answer's generation with the ledger's."""
        self.server.out.close()
        self.server = self.started(place + 1)
        first = self.note(self.server.ready())
        seconds = time.perf_counter() - self.server.began
        return {"restart_s": seconds, "first": first, "latest": ledger_state(self.vault)[0]}

    def onward(self, committed: int) -> dict[str, Any]:
        """The worker was killed: the service answers, and rotates again by itself."""
        began, first = time.perf_counter(), self.answer()
        latest = ledger_state(self.vault)[0]
        while self.answer() <= committed:
            assert time.perf_counter() - began < 120, "no rotation after the worker's end"
            time.sleep(0.05)
        return {"first": first, "latest": latest, "rotated_s": time.perf_counter() - began}

    def answer(self) -> int:
        """The generation of one answer."""
        return self.note(ask_once(self.port, infer_requests()[0]))

    def note(self, answer: bytes) -> int:
        """Keep an answer for the comparison; numbers never fall."""
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
        number, data = answer_of(answer)
        self.answers.add((number, 0, data))
        self.falls += number < self.seen
        self.seen = max(self.seen, number)
        return number

    def take(self, found: dict[str, Any], victim: str) -> dict[str, int]:
        """Add what the load found; what a kill of the service itself cut is no fault of it."""
        self.answers |= found["answers"]
        self.seen = max([self.seen, *(number for number, _, _ in found["answers"])])
        counts = {key: found[key] for key in ("sent", "failed", "out_of_order")}
        counts["answered"] = len(found["latencies"])
        lost = counts["sent"] - counts["answered"]
        counts |= {"dropped": 0, "cut": lost}
        if victim == "worker":  # nor may a connection end that was idle
            counts |= {"dropped": max(lost, found["dropped"]), "cut": 0}
        self.load = {key: self.load[key] + counts[key] for key in self.load}
        return counts


def verified(vault: Path, public: Path) -> dict[str, Any]:
    """Read everything in the vault and verify every signature; say what is wrong."""
    problems = g2d.verify(vault, public)
    print(*problems, sep="\n")
    with Vault.open(vault) as opened:
        exposed = opened.exposures()
    return {"exposed": len(exposed), "unreadable": len(problems),
            "problems": [str(problem) for problem in problems],
            "rising": exposed == sorted(exposed)}  # fmt: skip


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    private, public = make_key(folder)
    vault = make_vault(folder / "vault", QUICK, private)
    options = ["--every", a.every, "--key", str(public), "--served", str(folder / "served")]
    result = record(a)
    storm = Storm(vault, options, folder, a)
    try:
        storm.note(storm.server.ready())
        for place in range(a.kills):
            storm.rounds.append(storm.round(place))
            last = storm.rounds[-1]
            took = f", restart {last['restart_s']:.2f} s" if "restart_s" in last else ""
            print(f"{place + 1}: {last['victim']}, committed {last['committed']}, first answer"
                  f" {last['first']}{took}", flush=True)  # fmt: skip
    finally:
        storm.server.kill()
    wait_to_write(vault)
    verdict = judge(vault, bodies(), storm.answers)
    return result | summary(storm) | verified(vault, public) | {
        **asdict(verdict), "falls": storm.falls, "load": storm.load,
        "rounds": storm.rounds,
    }  # fmt: skip


def summary(storm: Storm) -> dict[str, Any]:
    """Restart times, and whether each time what was committed last came back."""
    times = [r["restart_s"] for r in storm.rounds if "restart_s" in r]
    right = [r["committed"] <= r["first"] <= r["latest"] for r in storm.rounds]
    quartiles = np.percentile(times, (50, 90, 100)) if times else [float("nan")] * 3
    return {
        "kills": len(storm.rounds),
        "victims": {v: sum(r["victim"] == v for r in storm.rounds)
                    for v in ("service", "worker", "both")},
        "restart_s": {"p50": float(quartiles[0]), "p90": float(quartiles[1]),
                      "max": float(quartiles[2]), "under_2_s": sum(t < 2 for t in times),
                      "of": len(times)},
        "last_committed": sum(right),
        "newer": sum(r["first"] > r["committed"] for r in storm.rounds),
        "ledger_ok": sum(r["ledger"] == "ok" for r in storm.rounds),
    }  # fmt: skip


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached. Also for docs/benchmarks/serving.md."""
    v, r, n = result["victims"], result["restart_s"], result["kills"]
    bad = result["wrong"] + result["falls"] + result["load"]["out_of_order"]
    bad += result["load"]["failed"]
    return [
        [f"SIGKILL at {n} random moments under load ({v['service']} of the service, {v['worker']}"
         f" of the worker, {v['both']} of both): served what was committed last",
         f"{n} of {n}", f"{result['last_committed']} of {n} (in {result['newer']} a worker that"
         " outlived the service had committed one more)"],
        ["ledger intact (integrity_check); exposed generations unreadable or not verified",
         f"{n} of {n}; 0",
         f"{result['ledger_ok']} of {n}; {result['unreadable']} of {result['exposed']}"],
        [f"failed or wrong answers (mixed or another's) of {result['load']['answered']:,}, or"
         " generation numbers that fell", "0", str(bad)],
        ["requests dropped where only the worker was killed; cut where the service was",
         f"0; at most {CONNECTIONS} a kill",
         f"{result['load']['dropped']}; {result['load']['cut']}"],
        ["from exec to the first good answer, s: median / 90 % / worst", "< 2",
         f"{r['p50']:.2f} / {r['p90']:.2f} / {r['max']:.2f}; {r['under_2_s']} of {r['of']} under"
         " 2 s"],
    ]  # fmt: skip


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--kills", type=int, default=100)
    flags.add_argument("--seed", type=int, default=5)
    flags.add_argument("--every", default="100ms", help="mean time between rotations")
    flags.add_argument("--mid", type=float, default=0.7, help="share of kills in mid rotation")
    flags.add_argument("--load", type=float, default=100, help="requests a second meanwhile")
    command.carry_out("kills", flags, measure, rows)


if __name__ == "__main__":
    main()
