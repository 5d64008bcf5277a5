"""What serving costs, and what rotation under load costs: throughput, p99, wrong answers.

    python -m benchmarks.serving                                       # 25 minutes
    python -m benchmarks.serving --seconds 6 --turns 2 --throughput 1  # 2 minutes, a try

Load comes from a second process over loopback, with keep-alive. Three questions, in one run:
  throughput  the service, rotation paused, against the same model behind FastAPI + uvicorn (as fast
              as that goes, and as most write it: serving_plain.py) and behind LitServe (the better
              of its settings for each body: serving_litserve.py), closed loop, in turns; whoever
              has no turn is stopped. JSON and binary bodies of 1 and of 16 inputs
  latency     p99 while rotating every second against p99 while paused, at a fixed rate, in turns.
              Headline: the worker makes each generation on the same machine, at low priority. The
              same again with generations made ahead (`g2d generate --keep`), which it only judges
              and commits (its gates on distance and stale ASR open): the difference is what
              making them costs. And once more rotating ten times more seldom; both for half as long
  right       failed, dropped, wrong or out-of-order answers: connections send different inputs in
              turn, and every distinct answer is compared with its generation's own logits on its
              own input
Intervals are bootstraps over turns. Writes results/serving.json and prints a table. `--vault` takes
a digits vault; without one a tiny one is made. Of one that is sealed G2D_CUSTODIAN says what opens
it; what unsealing adds to a swap alone is measured by `benchmarks.sealing.swap`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.serving.answers import judge
from benchmarks.serving.load import Load, bodies, infer_requests
from benchmarks.serving.process import TINY, Server, bootstrap, copied, make_vault
from g2d.errors import VaultError
from g2d.settings import Settings
from g2d.vault.vault import Vault

LITSERVE = {"litserve 1": ("1", "fast"), "litserve 64": ("64", "fast"),
            "litserve 1, plain queue": ("1", "plain"),
            "litserve 64, plain queue": ("64", "plain")}  # fmt: skip
RIVALS = {"fastapi": "FastAPI + uvicorn, orjson", "plain": "FastAPI + uvicorn, as most write it",
          "litserve": "LitServe"}  # fmt: skip
BODIES = {f"{kind}, {count}": (count, kind == "binary")
          for count in (1, 16) for kind in ("JSON", "binary")}  # fmt: skip


# --- throughput ----------------------------------------------------------------------------------


def turn(
    server: Server, requests: list[bytes], seconds: float, a: argparse.Namespace
) -> dict[str, Any]:
    """One server's turn: answers a second, its CPU seconds for each, its distinct answers."""
    server.signal(signal.SIGCONT)
    Load(server.port, requests, 0.2, a.connections).finish()  # it may have been stopped for long
    before = server.cpu()
    found = Load(server.port, requests, seconds, a.connections).finish()
    used = server.cpu() - before
    server.signal(signal.SIGSTOP)
    assert not found["failed"] + found["dropped"], found
    count = len(found["latencies"])
    return {"rate": count / seconds, "cpu": used / count, "answers": found["answers"]}


def throughput(servers: dict[str, Server], a: argparse.Namespace) -> dict[str, Any]:
    """Every body's rates in interleaved turns; the rival LitServe is its best setting."""
    found = {}
    for server in servers.values():
        server.signal(signal.SIGSTOP)
    for body, (count, binary) in BODIES.items():
        requests = infer_requests(count, binary)
        tried = {name: turn(servers[name], requests, min(3.0, a.throughput), a)["rate"]
                 for name in LITSERVE}  # fmt: skip
        best = max(tried, key=lambda name: tried[name])
        names = {"g2d": "g2d", "fastapi": "fastapi", "plain": "plain", "litserve": best}
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for place in range(a.turns):
            for name in sorted(names, reverse=bool(place % 2)):
                turns[name].append(turn(servers[names[name]], requests, a.throughput, a))
        found[body] = compared(turns) | {"litserve_tried": tried, "litserve": best}
        found[body]["answers"] = set().union(*(t["answers"] for t in turns["g2d"]))
        print(body, {name: round(v) for name, v in found[body]["median"].items()}, flush=True)
    for server in servers.values():
        server.signal(signal.SIGCONT)
    return found


def compared(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over turns, and the ratios of G2D's to each rival's with their intervals."""
    rates = {name: np.array([t["rate"] for t in each]) for name, each in turns.items()}
    ratios = {}
    for rival in ("fastapi", "plain", "litserve"):

        def ratio(places: np.ndarray, rival: str = rival) -> float:
            return float(np.median(rates["g2d"][places]) / np.median(rates[rival][places]))

        every = np.arange(len(rates["g2d"]))
        ratios[rival] = {"ratio": ratio(every), "interval": bootstrap(ratio, len(every))}
    return {
        "turns": {name: values.tolist() for name, values in rates.items()},
        "median": {name: float(np.median(values)) for name, values in rates.items()},
        "cpu_us": {name: 1e6 * float(np.median([t["cpu"] for t in each]))
                   for name, each in turns.items()},
        "ratios": ratios,
    }  # fmt: skip


# --- latency -------------------------------------------------------------------------------------


def pause(server: Server) -> None:
    """Pause rotation, and wait until the worker has made the spare: then it rests."""
    server.ask("/admin/pause", "POST")
    until = time.monotonic() + 60
    while server.rotation()["spare"] is None and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)


def latency(server: Server, a: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Latencies while rotation is paused and while it runs, in turns, at a fixed rate."""
    pause(server)
    before = server.rotation()["generation"]
    load = Load(server.port, infer_requests(), 20 * a.seconds + 600, a.connections, rate)
    time.sleep(1.5)
    edges: dict[str, list[tuple[float, float]]] = {"steady": [], "rotating": []}
    for place in range(2 * a.turns):
        name = "rotating" if place % 2 else "steady"
        if name == "steady":
            pause(server)
        else:
            server.ask("/admin/resume", "POST")
        began = time.perf_counter()
        time.sleep(a.seconds / a.turns)
        edges[name].append((began, time.perf_counter()))
    server.ask("/admin/pause", "POST")
    found = load.finish(early=True)
    at, took = np.array(found["latencies"]).T
    swaps = [e for e in server.events("swap") if e["generation"] > before]
    parts = {name: [took[(at >= begin) & (at < end)] for begin, end in spans]
             for name, spans in edges.items()}  # fmt: skip
    turning = np.any([(at >= begin) & (at < end) for begin, end in edges["rotating"]], 0)
    make_s = [event["seconds"]["make"] for event in server.events("spare")]
    return ratios(parts) | near(at[turning], took[turning], swaps) | {
        "rate": rate, "rotations": len(swaps), "rotating_seconds": a.seconds,
        "make_s": float(np.median(make_s)),
        "swap_ms": 1e3 * float(np.median([e["seconds"] for e in swaps])),
        "not_made": len(server.events("failed")) + len(server.events("refused")),
        "rejected": len(server.events("rejected")),
        "sent": found["sent"], "answered": len(at), "answers": found["answers"],
        **{key: found[key] for key in ("failed", "dropped", "out_of_order")},
    }  # fmt: skip


def near(at: np.ndarray, took: np.ndarray, swaps: list[dict[str, Any]]) -> dict[str, Any]:
    """The p99 while rotating in two parts: within 50 ms of a swap, and all other answers."""
    if not swaps:
        raise SystemExit("nothing rotated: the worker made no spare in time; see the vault's gates")
    offset = time.time() - time.perf_counter()  # the log tells the time of day
    times = [datetime.fromisoformat(swap["at"]).timestamp() - offset for swap in swaps]
    close = np.any([np.abs(at - moment) < 0.05 for moment in times], 0)
    parts = {"near_a_swap": took[close], "apart_from_swaps": took[~close]}
    return {
        name: {"answers": len(part), "p99_ms": 1e3 * float(np.percentile(part, 99))}
        for name, part in parts.items()
        if len(part)
    }


def ratios(parts: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Percentiles of all turns together, and the ratio of the p99s with its interval."""

    def ratio(places: np.ndarray) -> float:
        p99 = {name: np.percentile(np.concatenate([each[i] for i in places]), 99)
               for name, each in parts.items()}  # fmt: skip
        return float(p99["rotating"] / p99["steady"])

    rows = {}
    for name, each in parts.items():
        all_turns = np.concatenate(each)
        rows[name] = {"answers": len(all_turns), "max_ms": 1e3 * float(all_turns.max())} | {
            f"p{q}_ms": 1e3 * float(np.percentile(all_turns, q)) for q in (50, 90, 99, 99.9)
        }
        rows[name]["p99_ms_of_turns"] = [1e3 * float(np.percentile(t, 99)) for t in each]
    turns = len(parts["steady"])
    return rows | {
        "p99_ratio": ratio(np.arange(turns)),
        "interval": bootstrap(ratio, turns, draws=500),
    }


# --- the run -------------------------------------------------------------------------------------


def prepare(a: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The vault, and a copy of it with generations made ahead: more than will be rotated."""
    vault, ahead = folder / "vault", folder / "ahead"
    if a.vault:
        copied(a.vault, vault)
    else:
        make_vault(vault, TINY)
    copied(vault, ahead)
    with Vault.open(ahead, write=True) as opened:
        # What is made ahead is not guided away from each other: those gates would refuse most.
        settings = Settings.from_vault(opened.settings_text)
        settings = settings.override(gates__distance=0.0, gates__stale_asr=1.0)
        opened.write_settings(settings.to_toml())
    count = str(round(1.3 * a.seconds / a.every) + 2 * a.turns + 5)
    command = [sys.executable, "-m", "g2d", "generate", str(ahead), "--keep", "-n", count]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"rotating": vault, "made ahead": ahead}


def speeds(a: argparse.Namespace, vault: Path, folder: Path) -> dict[str, Any]:
    """The throughput question, with all servers of it."""
    commands = {name: ["benchmarks.serving.plain", str(vault), kind]
                for name, kind in (("fastapi", "fast"), ("plain", "plain"))}  # fmt: skip
    commands |= {
        name: ["benchmarks.serving.litserve", str(vault), *o] for name, o in LITSERVE.items()
    }
    servers: dict[str, Server] = {}
    try:
        for name, (module, *arguments) in commands.items():
            whole = [sys.executable, "-m", module, *arguments]
            servers[name] = Server(vault, folder / f"{name}.log", command=whole)
            servers[name].ready()
        servers["g2d"] = Server(vault, folder / "g2d.log")
        servers["g2d"].ready()
        pause(servers["g2d"])
        return throughput(servers, a)
    finally:
        for server in servers.values():
            server.kill()


def wait_to_write(vault: Path) -> None:
    """Wait until the worker of a service that was killed has let go of the vault."""
    for _ in range(600):
        try:
            Vault.open(vault, write=True).close()
            return
        except VaultError:
            time.sleep(0.05)
    raise SystemExit(f"{vault} is still held by another process")


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    vaults = prepare(a, folder)
    result = record(a) | {"throughput": speeds(a, vaults["rotating"], folder), "latency": {}}
    for body, row in result["throughput"].items():
        count = BODIES[body][0]
        row.update(asdict(judge(vaults["rotating"], bodies(count), row.pop("answers"))))
    rate = a.load * result["throughput"]["JSON, 1"]["median"]["g2d"]
    plans = {"rotating": (1, 1), "made ahead": (1, 2), "seldom": (10, 2)}
    for name, (times, share) in plans.items():
        vault, every = vaults.get(name, vaults["rotating"]), times * a.every
        wait_to_write(vault)
        server = Server(vault, folder / f"{name}.log", "--every", f"{every}s")
        once = argparse.Namespace(**vars(a) | {"seconds": a.seconds / share})
        try:
            server.ready()
            slow = latency(server, once, rate)
            assert server.stop() == 0, "SIGTERM must drain and exit 0"
        finally:
            if server.process.poll() is None:
                server.kill()
        slow |= asdict(judge(vault, bodies(), slow.pop("answers")))
        result["latency"][name] = slow
    result["hardware"]["load_after"] = os.getloadavg()
    return result


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached. Also for docs/benchmarks/serving.md."""

    def span(interval: list[float]) -> str:
        return f"({interval[0]:.2f}–{interval[1]:.2f})"

    found = []
    slow = result["latency"]["rotating"]
    due = slow["rotating_seconds"] / result["arguments"]["every"]
    bad = sum(slow[key] for key in ("failed", "dropped", "wrong", "out_of_order"))
    found.append([
        f"rotation every {result['arguments']['every']:g} s for {slow['rotating_seconds']:.0f} s"
        f" under load ({slow['rotations']} rotations of {due:.0f} due, {slow['answered']:,}"
        f" answers, {slow['rotating']['answers']:,} of them while it rotated,"
        f" at {slow['rate']:.0f}/s, {slow['compared']:,} distinct ones compared): failed, dropped,"
        " wrong (mixed or another's) or out-of-order answers",
        "0", str(bad + slow["sent"] - slow["answered"] - slow["dropped"]),
    ])  # fmt: skip
    labels = {"rotating": "p99 while rotating / p99 steady, ms",
              "made ahead": "the same, generations made ahead of time",
              "seldom": "the same, rotating ten times more seldom"}  # fmt: skip
    for name, label in labels.items():
        r = result["latency"][name]
        found.append([
            f"{label} ({r['rotations']} rotations)", "≤ 1.2" if name == "rotating" else "–",
            f"{r['rotating']['p99_ms']:.2f} / {r['steady']['p99_ms']:.2f} = {r['p99_ratio']:.2f}"
            f" {span(r['interval'])}",
        ])  # fmt: skip
    for rivals, target in (("fastapi", "plain"), "≥ 0.95"), (("litserve",), "≥ 1.0"):
        for body, r in result["throughput"].items():
            rival = max(rivals, key=lambda name, r=r: r["median"][name])
            one = r["ratios"][rival]
            found.append([
                f"answers/s against {RIVALS[rival]}, {body} input{'s' * (body[-2:] != ' 1')}",
                target, f"{r['median']['g2d']:.0f} / {r['median'][rival]:.0f} = {one['ratio']:.2f}"
                f" {span(one['interval'])}",
            ])  # fmt: skip
    return found


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--vault", type=Path, help="a digits vault; it is copied")
    flags.add_argument("--seconds", type=float, default=120, help="of rotation; as many without")
    flags.add_argument("--throughput", type=float, default=6, help="seconds of each server's turn")
    flags.add_argument("--turns", type=int, default=10)
    flags.add_argument("--connections", type=int, default=16)
    flags.add_argument("--every", type=float, default=1.0, help="seconds between rotations")
    flags.add_argument(
        "--load", type=float, default=0.4, help="share of the throughput that is sent"
    )
    command.carry_out("serving", flags, measure, rows)


if __name__ == "__main__":
    main()
