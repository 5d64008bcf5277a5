"""What the monitors cost answers: p99 with monitors on against off, in turns of one run.

    python -m benchmarks.monitoring.latency                       # seven minutes
    python -m benchmarks.monitoring.latency --seconds 8 --turns 2 # a try, a minute

Two services of one vault of digits, side by side: one with `--monitor all`, one without; nothing
rotates. Load comes from a second process at a fixed rate, in turns: whoever has no turn is stopped,
and each pair of turns begins with the other one. Bodies are all different, for monitors pass over
what was sent before. The ratio of the p99s is that of all turns of each together; its interval is a
bootstrap over pairs of turns. `--monitors` names others. Inputs that monitors did not keep up with
are printed: they cost nothing, and nobody has looked at them. Writes results/latency.json.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.serving.load import Load, ask_once, infer_request, inputs
from benchmarks.serving.process import TINY, TOKEN, Server, bootstrap, make_vault
from benchmarks.serving.run import pause

KINDS = ("off", "on")
BODIES = 2000
DROPPED = re.compile(rb"^g2d_observer_dropped_inputs_total (\S+)$", re.MULTILINE)


def requests_of(place: int, count: int = BODIES) -> list[bytes]:
    """Different bodies, others in each turn."""
    return [infer_request(inputs(1, 1 + place * count + which)) for which in range(count)]


def turn(server: Server, place: int, seconds: float, a: argparse.Namespace) -> dict[str, Any]:
    """One service's turn: every answer's latency in seconds, and CPU seconds for each."""
    server.signal(signal.SIGCONT)
    Load(server.port, requests_of(place, 50), 0.5, a.connections, a.load).finish()
    before = server.cpu()
    load = Load(server.port, requests_of(place), seconds, a.connections, a.load, place)
    found = load.finish()
    used = server.cpu() - before
    server.signal(signal.SIGSTOP)
    assert not found["failed"] + found["dropped"], found
    took = np.array([seconds for _, seconds in found["latencies"]])
    return {"took": took, "cpu": used / len(took)}


def dropped(server: Server) -> int:
    """Inputs that no monitor has seen, of all that this service answered."""
    server.signal(signal.SIGCONT)
    time.sleep(0.5)
    asked = f"GET /metrics HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
    found = DROPPED.search(ask_once(server.port, asked.encode()))
    return int(float(found[1])) if found else 0


def compared(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Percentiles of all turns together, and the ratios of p50 and p99 with their intervals."""
    pairs, rows = len(turns["on"]), {}
    for kind, each in turns.items():
        took = np.concatenate([one["took"] for one in each])
        rows[kind] = {
            "answers": len(took),
            "cpu_us": 1e6 * float(np.mean([o["cpu"] for o in each])),
        }
        rows[kind] |= {f"p{q}_ms": 1e3 * float(np.percentile(took, q)) for q in (50, 90, 99, 99.9)}
        rows[kind]["p99_ms_of_turns"] = [
            1e3 * float(np.percentile(one["took"], 99)) for one in each
        ]
    for q in (50, 99):

        def ratio(places: np.ndarray, q: int = q) -> float:
            of = {
                kind: np.percentile(np.concatenate([each[i]["took"] for i in places]), q)
                for kind, each in turns.items()
            }
            return float(of["on"] / of["off"])

        every = ratio(np.arange(pairs))
        rows[f"p{q}"] = {"ratio": every, "interval": bootstrap(ratio, pairs, draws=500)}
    return rows


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both services, and their turns."""
    vaults = {"off": make_vault(folder / "off", TINY), "on": folder / "on"}
    shutil.copytree(vaults["off"], vaults["on"])
    flags = {"off": [], "on": [flag for name in a.monitors for flag in ("--monitor", name)]}
    servers: dict[str, Server] = {}
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    try:
        for kind in KINDS:
            servers[kind] = Server(vaults[kind], folder / f"{kind}.log", *flags[kind])
            servers[kind].ready()
            pause(servers[kind])
            servers[kind].signal(signal.SIGSTOP)
        for place in range(a.turns):
            for kind in KINDS[:: -1 if place % 2 else 1]:
                turns[kind].append(turn(servers[kind], place, a.seconds / a.turns, a))
        missed = {kind: dropped(server) for kind, server in servers.items()}
    finally:
        for server in servers.values():
            server.kill()
    return record(a) | {"compared": compared(turns), "dropped": missed}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets."""
    found, a = result["compared"], result["arguments"]
    table = []
    for q, target in ((99, "≤ 1.1"), (50, "")):
        one = found[f"p{q}"]
        low, high = one["interval"]
        table.append([
            f"p{q} with {', '.join(a['monitors'])} / without, ms ({found['on']['answers']:,} "
            f"answers at {a['load']:g}/s each)", target,
            f"{found['on'][f'p{q}_ms']:.2f} / {found['off'][f'p{q}_ms']:.2f} = {one['ratio']:.2f}"
            f" ({low:.2f}–{high:.2f})",
        ])  # fmt: skip
    cost = found["on"]["cpu_us"] - found["off"]["cpu_us"]
    table.append(["CPU time that monitors take of a request", "", f"{cost:.0f} µs"])
    share = result["dropped"]["on"] / max(1, found["on"]["answers"])
    table.append(["inputs that monitors did not keep up with", "", f"{100 * share:.1f} %"])
    return table


def main() -> None:
    """Measure, keep and print."""
    flags = command.parser(__doc__)
    flags.add_argument("--seconds", type=float, default=180, help="of load on each service")
    flags.add_argument("--turns", type=int, default=20, help="of each service")
    flags.add_argument("--connections", type=int, default=8)
    flags.add_argument("--load", type=float, default=200, help="requests a second")
    flags.add_argument("--monitors", nargs="+", default=["all"])
    command.carry_out("latency", flags, measure, rows)


if __name__ == "__main__":
    main()
