"""Ten thousand rotations under light load: memory, open files, threads, disk.

    python -m benchmarks.serving.soak                      # 10,000 rotations; stops after --minutes
    python -m benchmarks.serving.soak --rotations 300      # half a minute, a try

A real `g2d serve` with its real worker, on a vault of digits whose generations are made in 25 ms
(`serving_process.QUICK`: nothing is guided, the gates are open), rotated as fast as the worker
makes them. Every `--sample` rotations: resident and unique memory, open files and threads of the
service and of the worker. Growth is (mean of the last tenth of the samples - mean of the second
tenth) / mean of the second tenth: the first tenth is warm-up. Writes results/soak.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.serving.answers import judge
from benchmarks.serving.load import Load, bodies, infer_requests
from benchmarks.serving.process import QUICK, Server, make_vault

KEYS = ("rss_mb", "uss_mb", "fds", "threads")


def sample(process: psutil.Process) -> dict[str, float]:
    """Memory in MB, open files, threads of one process."""
    memory = process.memory_full_info()
    return {
        "rss_mb": memory.rss / 1e6, "uss_mb": memory.uss / 1e6,
        "fds": process.num_fds(), "threads": process.num_threads(),
    }  # fmt: skip


def disk(vault: Path) -> dict[str, float]:
    """Bytes of the vault's files, its generations counted."""
    files = [path.stat().st_size for path in vault.rglob("*") if path.is_file()]
    ledger = sum(path.stat().st_size for path in vault.glob("ledger.sqlite*"))
    generations = sum(1 for _ in (vault / "generations").iterdir())
    return {"mb": sum(files) / 1e6, "ledger_mb": ledger / 1e6, "generations": generations}


def grown(samples: list[dict[str, Any]], who: str) -> dict[str, dict[str, float]]:
    """Growth of each quantity from the second tenth to the last; its extremes after warm-up."""
    tenth = max(1, len(samples) // 10)
    found = {}
    for key in KEYS:
        values = [one[who][key] for one in samples]
        early = sum(values[tenth : 2 * tenth]) / tenth
        late = sum(values[-tenth:]) / tenth
        found[key] = {"early": early, "late": late, "growth": late / early - 1,
                      "least": min(values[tenth:]), "most": max(values[tenth:])}  # fmt: skip
    return found


def soak(server: Server, a: argparse.Namespace) -> dict[str, Any]:
    """Rotate until there were enough, or the time is over; sample on the way."""
    until = time.monotonic() + 60
    while (worker := server.worker()) is None or server.rotation()["generation"] < 2:
        assert time.monotonic() < until, "no rotation within a minute"
        time.sleep(0.1)
    service, pid = psutil.Process(server.process.pid), worker.pid
    began, first, samples = time.monotonic(), server.rotation()["generation"], []
    done, restarts = 0, 0
    while done < a.rotations and time.monotonic() - began < 60 * a.minutes:
        time.sleep(0.05)
        done = server.rotation()["generation"] - first
        if done < len(samples) * a.sample:
            continue
        found = server.worker()
        restarts += found is None or found.pid != pid
        worker, pid = found or worker, found.pid if found else pid
        seconds = time.monotonic() - began
        now = {"rotations": done, "seconds": seconds, "service": sample(service),
               "worker": sample(worker)}  # fmt: skip
        samples.append(now)
        if len(samples) % 10 == 1:
            print(f"{done} rotations, {seconds:.0f} s: service {now['service']['rss_mb']:.1f} MB,"
                  f" worker {now['worker']['rss_mb']:.1f} MB", flush=True)  # fmt: skip
    return {"rotations": done, "seconds": time.monotonic() - began, "samples": samples,
            "worker_restarts": restarts}  # fmt: skip


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    vault = make_vault(folder / "vault", QUICK)
    result = record(a) | {"disk": [disk(vault)]}
    server = Server(vault, folder / "log", "--every", a.every)
    try:
        server.ready()
        load = Load(server.port, infer_requests(), 60 * a.minutes + 300, 2, a.load)
        result |= soak(server, a)
        found = load.finish(early=True)
        assert server.stop() == 0, "SIGTERM must drain and exit 0"
        result["failures"] = len(server.events("failed")) + len(server.events("refused"))
        result["log_mb"] = server.log.stat().st_size / 1e6
    finally:
        if server.process.poll() is None:
            server.kill()
    result["disk"].append(disk(vault))
    result["answered"] = len(found["latencies"])
    result |= asdict(judge(vault, bodies(), found["answers"]))
    result |= {key: found[key] for key in ("failed", "dropped", "out_of_order")}
    for who in ("service", "worker"):
        result[f"{who}_growth"] = grown(result["samples"], who)
    return result


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached. Also for docs/benchmarks/serving.md."""
    found = []
    for who in ("service", "worker"):
        g = result[f"{who}_growth"]
        memory = ", ".join(
            f"{name} {g[key]['early']:.1f} → {g[key]['late']:.1f} MB ({100 * g[key]['growth']:+.2f}"
            " %)" for name, key in (("RSS", "rss_mb"), ("USS", "uss_mb"))
        )  # fmt: skip
        leaked = [round(g[key]["late"] - g[key]["early"], 1) for key in ("fds", "threads")]
        found.append([
            f"{result['rotations']:,} rotations in {result['seconds'] / 60:.1f} min, {who}: memory"
            " growth / leaked files / threads", "< 1 % / 0 / 0",
            f"{memory} / {leaked[0]:+g} / {leaked[1]:+g}",
        ])  # fmt: skip
    before, after = result["disk"]
    each = 1e3 * (after["mb"] - before["mb"]) / max(1, result["rotations"])
    found.append([
        "disk that each rotation takes (nothing is deleted)", "–",
        f"{each:.0f} kB; ledger {after['ledger_mb']:.0f} MB at the end",
    ])  # fmt: skip
    bad = sum(result[key] for key in ("failed", "dropped", "wrong", "out_of_order"))
    found.append([
        f"failed, dropped, wrong (mixed or another's) or out-of-order answers of"
        f" {result['answered']:,} meanwhile; generations not made or refused",
        "0; 0", f"{bad}; {result['failures']}",
    ])  # fmt: skip
    return found


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--rotations", type=int, default=10_000)
    flags.add_argument(
        "--minutes", type=float, default=60, help="stop then, however many were done"
    )
    flags.add_argument(
        "--every", default="20ms", help="mean time between rotations: the worker's pace"
    )
    flags.add_argument("--sample", type=int, default=20, help="rotations between samples")
    flags.add_argument("--load", type=float, default=20, help="requests a second meanwhile")
    command.carry_out("soak", flags, measure, rows)


if __name__ == "__main__":
    main()
