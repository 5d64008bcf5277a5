"""Simulate a rollout to 1,000 replicas; leases, polls and the wait before a commit are g2d's own.

    python -m benchmarks.cluster [--vault VAULT] [--seeds 10]

A SIMULATION: `Follower`, `Terms` and `Roster` of `g2d.service.cluster` run in simulated time;
network, loads and absences are drawn. With --vault, how long a replica loads, how many polls a
coordinator answers in a second, are measured first on `g2d serve --engine ray` on this machine;
without, what benchmarks/results/rollout.json holds is used. Writes that file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cluster.simulation import Case, simulate
from benchmarks.cluster.tables import table
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hardware, save
from g2d.service.cluster.lease import ReplicaReport, Terms

OUT = RESULTS / "rollout.json"
TOKEN = "benchmarks-of-the-rollout"


def measure(vault: Path, rotations: int = 20) -> dict[str, Any]:
    """Rotate `g2d serve --engine ray` with two replicas; read what they say of their loads."""
    command = [sys.executable, "-m", "g2d", "serve", str(vault), "--engine", "ray", "--port", "0"]
    env = os.environ | {"G2D_ADMIN_TOKEN": TOKEN}
    loads, rolled = [], []
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as served:
        assert served.stderr is not None
        address = ""
        while " is live at " not in address:
            address = served.stderr.readline()
        address = address.split(" is live at ")[1].split("/v2")[0]
        try:
            while len(loads) < 2 * rotations:
                try:
                    ask(address + "/admin/rotate", "POST")
                except urllib.error.HTTPError:  # 409: no candidate passed its gates
                    continue
                status = json.loads(ask(address + "/status"))["rotation"]["cluster"]
                loads += [one["load_seconds"] for one in status["replicas"]]
        finally:
            served.terminate()
        for line in served.stderr:
            if '"rolled out"' in line:
                rolled.append(json.loads(re.search(r"\{.*", line)[0])["seconds"])
    return {"load_seconds": statistics.median(loads), "loads": len(loads),
            "rolled_out_seconds_of_2": statistics.median(rolled), "rollouts": len(rolled),
            "poll_seconds": measure_polls(vault), "hardware": hardware()}  # fmt: skip


def ask(url: str, method: str = "GET") -> bytes:
    headers = {"authorization": f"Bearer {TOKEN}"} if "/admin/" in url else {}
    with urllib.request.urlopen(urllib.request.Request(url, None, headers, method=method)) as got:
        return bytes(got.read())


def measure_polls(vault: Path, polls: int = 3000) -> float:
    """A coordinator's CPU seconds for a poll: a thousand replicas known, each told one event."""
    from g2d.core.ray_cluster import joined, require

    require()
    import ray

    from g2d.service.cluster.coordinator import Plan
    from g2d.service.cluster.deployment import CoordinatorActor
    from g2d.service.http.options import Options

    class Measured(CoordinatorActor):
        async def cpu(self) -> float:
            return time.process_time()

    with joined():
        plan = Plan(vault.absolute(), Options(), Terms())
        actor = ray.remote(Measured).options(max_concurrency=10_000).remote(plan)
        assert ray.get(actor.start.remote())[0] == ""
        ray.get(actor.pause.remote(True))
        time.sleep(10.0)  # the worker has made its spare, or not: no more is asked of it
        answers = ray.get([actor.watch.remote(ReplicaReport(f"r{i}", live=1)) for i in range(1000)])
        last = answers[-1]
        known = last.term, last.sequence - 1, last.event - 1
        began = ray.get(actor.cpu.remote())
        ray.get(
            [actor.watch.remote(ReplicaReport(f"r{i % 1000}", *known, 1)) for i in range(polls)]
        )
        took = (ray.get(actor.cpu.remote()) - began) / polls
        ray.get(actor.stop.remote())
    return float(took)


def cases(load: float, poll: float) -> list[Case]:
    two = Case("two steps, lease 10 s", load=load, poll_cost=poll)
    slow = {"load": 2.0}
    pull = replace(two, name="pull when live, lease 10 s", ahead=False)
    careless = replace(pull, name="pull when live, no lease", lease=math.inf)
    return [
        replace(two, away=0.0), two, replace(two, name="two steps, lease 2 s", lease=2.0),
        replace(two, name="two steps, lease 30 s", lease=30.0),
        replace(two, name="two steps, no lease", lease=math.inf),
        pull, careless,
        replace(two, name="two steps, load 2 s", **slow),
        replace(pull, name="pull when live, load 2 s", **slow),
        replace(careless, name="pull when live, no lease, load 2 s", **slow),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vault", type=Path, help="measure loads and polls first; it is rotated")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    measured = measure(arguments.vault) if arguments.vault else kept.get("measured", {})
    load, poll = measured.get("load_seconds", 0.02), measured.get("poll_seconds", 0.0005)
    results: dict[str, Any] = {"simulation": True, "measured": measured, "cases": []}
    for case in cases(load, poll):
        began = time.perf_counter()
        results["cases"].append(simulate(case, arguments.seeds))
        took = time.perf_counter() - began
        print(f"{case.name}, away {case.away:.0%}: {took:.0f} s", file=sys.stderr)
    for row in results["cases"]:
        row["lease"] = None if row["lease"] == math.inf else row["lease"]
    save(OUT, results)
    print(table(results))


if __name__ == "__main__":
    main()
