"""What it costs to know who asks: throughput over TLS alone, against mTLS + JWT + roles + quotas.

    python -m benchmarks.serving.access                              # 5 minutes
    python -m benchmarks.serving.access --seconds 2 --turns 2        # a try
    python -m benchmarks.serving.access --guarded '--audit a.log'    # and with what else it has

Two services of one vault, rotation paused, take turns under the same load (closed loop, keep-alive,
TLS 1.3); whoever has no turn is stopped. The guarded one verifies a client certificate at each
connection and one of 16 subjects' tokens at each request, and holds an access file's quotas against
both. Intervals are bootstraps over turns. Writes results/access.json and prints a table.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.serving.credentials import Credentials
from benchmarks.serving.load import MANY, Load, infer_requests
from benchmarks.serving.process import TINY, Server, bootstrap, make_vault
from benchmarks.serving.run import BODIES, pause

_BODIES = ("JSON, 1", "binary, 16")
NAMES = {"tls": "TLS alone", "guarded": "mTLS, JWT, roles and quotas"}


def turn(server: Server, requests: list[bytes], a: argparse.Namespace) -> dict[str, Any]:
    """One server's turn: answers a second, CPU microseconds for each, latencies.

    All of the time between, once every connection has been agreed: what is asked is what answers
    cost on connections that are kept.
    """
    server.signal(signal.SIGCONT)
    Load(server.port, requests, 0.3, a.connections, tls=server.tls).finish()  # it was stopped
    load = Load(server.port, requests, 600.0, a.connections, tls=server.tls)
    time.sleep(0.3 * a.seconds)
    began, before = time.perf_counter(), server.cpu()
    time.sleep(a.seconds)
    ended, used = time.perf_counter(), server.cpu() - before
    found = load.finish(early=True)
    server.signal(signal.SIGSTOP)
    assert not found["failed"] + found["dropped"], found
    at, took = np.array(found["latencies"]).T
    took = took[(at >= began) & (at < ended)]
    return {"rate": len(took) / (ended - began), "cpu_us": 1e6 * used / len(took),
            "p50_ms": 1e3 * float(np.median(took)),
            "p99_ms": 1e3 * float(np.percentile(took, 99))}  # fmt: skip


def compared(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over turns, and the guarded service's rate by the other's with its interval."""
    rates = {name: np.array([each["rate"] for each in rows]) for name, rows in turns.items()}

    def ratio(places: np.ndarray) -> float:
        return float(np.median(rates["guarded"][places]) / np.median(rates["tls"][places]))

    every = np.arange(len(rates["tls"]))
    return {
        "turns": turns,
        "median": {name: {key: float(np.median([each[key] for each in rows])) for key in rows[0]}
                   for name, rows in turns.items()},
        "ratio": ratio(every), "interval": bootstrap(ratio, len(every)),
    }  # fmt: skip


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    known, servers = Credentials(folder / "credentials"), {}
    vault = folder / "vault"
    make_vault(vault, TINY)
    options = {"tls": known.server(), "guarded": [*known.guarded(), *shlex.split(a.guarded)]}
    tokens = {"tls": ("",), "guarded": known.tokens(MANY)}
    try:
        for name in NAMES:
            own = Path(shutil.copytree(vault, folder / name))
            servers[name] = Server(own, folder / f"{name}.log", *options[name],
                                   tls=known.tls(name == "guarded"))  # fmt: skip
            servers[name].ready()
            pause(servers[name])
            servers[name].signal(signal.SIGSTOP)
        result = record(a) | {"throughput": {}}
        for body in a.body or _BODIES:
            count, binary = BODIES[body]
            turns: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
            for place in range(a.turns):
                for name in sorted(NAMES, reverse=bool(place % 2)):
                    requests = infer_requests(count, binary, tokens[name])
                    turns[name].append(turn(servers[name], requests, a))
            result["throughput"][body] = compared(turns)
    finally:
        for server in servers.values():
            server.kill()
    return result


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached."""
    found = []
    for body, row in result["throughput"].items():
        rate = {name: row["median"][name]["rate"] for name in NAMES}
        span = "({:.2f}–{:.2f})".format(*row["interval"])
        found.append([
            f"answers/s with {NAMES['guarded']} against {NAMES['tls']}, {body}", "≥ 0.90",
            f"{rate['guarded']:.0f} / {rate['tls']:.0f} = {row['ratio']:.2f} {span}",
        ])  # fmt: skip
    return found


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--seconds", type=float, default=6, help="of each turn")
    flags.add_argument("--turns", type=int, default=10)
    flags.add_argument("--connections", type=int, default=16)
    flags.add_argument("--body", action="append", choices=list(BODIES), help="repeatable")
    flags.add_argument("--guarded", default="", help="more options of the guarded service")
    command.carry_out("access", flags, measure, rows)


if __name__ == "__main__":
    main()
