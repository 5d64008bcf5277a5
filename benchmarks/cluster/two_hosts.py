"""Two hosts, one replica each: the coordinator dies, the network parts, an old disk comes back.

    python -m benchmarks.cluster.two_hosts [--part 30] [--lease 4]

Hosts are namespaces of Linux (`hosts`): each has its own network, disk and processes; needs root.
Ray runs with TLS between the nodes and a token; the vault is signed, on host "a" alone. A client on
each host asks its own node ten times a second. Writes benchmarks/results/two_hosts.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cluster.answers import stale, summary
from benchmarks.cluster.hosts import hosts, why_not
from benchmarks.cluster.service import Service
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, hardware, save

OUT = RESULTS / "two_hosts.json"
PHASES = ("coordinator_dies", "network_parts", "old_disk")


def wait_for(what: Callable[[], object], seconds: float, why: str) -> None:
    """Look twice a second until it is so."""
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            raise TimeoutError(f"{why}: not within {seconds:g} s")
        time.sleep(0.5)


def coordinator_dies(service: Service) -> dict[str, Any]:
    """SIGKILL; Ray starts it again, and it reads the ledger."""
    before, killed = service.live(), time.time()
    service.coordinator().kill()

    def back() -> bool:
        return all(any(a.status == 200 for a in service.since(host, killed + service.lease))
                   for host in service.hosts)  # fmt: skip

    wait_for(back, 180, "answers after the coordinator's death")
    after, rotated = service.live(), service.rotate()
    service.await_generation(rotated)
    return {"generation": before, "generation_after": after, "rotated_to": rotated,
            **service.gaps(killed)}  # fmt: skip


def network_parts(service: Service, seconds: float) -> dict[str, Any]:
    """Host b is cut off; a rotates meanwhile; b comes back."""
    a, b = service.hosts
    before, cut = service.live(), time.time()
    b.set_network(False)
    try:
        time.sleep(1.0)
        rotated = service.rotate()
        time.sleep(max(0.0, seconds - (time.time() - cut)))
    finally:
        b.set_network(True)
    up = time.time()
    service.await_generation(rotated)
    during = [one for one in service.since(b, cut) if one.got < up]
    answered = [one for one in during if one.status == 200]
    last = max((one.got for one in answered), default=cut)
    first = next(one.got for one in service.since(b, up) if one.status == 200)
    return {
        "seconds": round(up - cut, 1), "generation": before, "rotated_to": rotated,
        "b_answered_after_the_cut_for_s": round(last - cut, 2),
        "b_answered_from": sorted({one.generation for one in answered}),
        "b_refused": sum(one.status == 503 for one in during),
        "b_answers_again_after_s": round(first - up, 2),
        "a_failed": sum(one.status != 200 for one in service.since(a, cut) if one.got < up),
    }  # fmt: skip


def old_disk(service: Service, folder: Path) -> dict[str, Any]:
    """Host b loses power, and comes back with the disk that it had two rotations ago."""
    _, b = service.hosts
    saved = folder / "saved"
    service.await_generation(old := service.live())
    shutil.copytree(b.disk, saved, symlinks=True, ignore=_no_sockets)
    for _ in range(2):
        service.await_generation(service.rotate())
    live = service.live()
    b.cut_power()
    shutil.rmtree(b.disk)
    shutil.copytree(saved, b.disk, symlinks=True)
    mirrors = [str(p.relative_to(b.disk)) for p in b.disk.glob("g2d-replica-*/vault/generations/*")]
    booted = time.time()
    b.boot()
    service.join(b)

    def back() -> bool:
        return any(one.status == 200 for one in service.since(b, booted))

    wait_for(back, 240, "answers of host b after its power came back")
    again = service.rotate()
    service.await_generation(again)
    answers = [one for one in service.since(b, booted) if one.status == 200]
    left = sum((b.disk / name).exists() for name in mirrors)
    return {"old_generation": old, "live": live, "rotated_to": again, "found_on_its_disk": mirrors,
            "b_answers_again_after_s": round(answers[0].got - booted, 1),
            "b_answered_from": sorted({one.generation for one in answers}),
            "left_of_the_old_mirror": left}  # fmt: skip


def _no_sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]


Keep = Callable[[dict[str, Any]], None]


def run(
    folder: Path, part: float, lease: float, phases: Sequence[str], keep: Keep = lambda _: None
) -> dict[str, Any]:
    """Both hosts up, the phases that are named, and every answer judged; `keep` after each."""
    began = time.time()
    with hosts(("a", "b"), folder) as made, Service(made, folder, lease) as service:
        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            "coordinator_dies": lambda: coordinator_dies(service),
            "network_parts": lambda: network_parts(service, part),
            "old_disk": lambda: old_disk(service, folder),
        }
        result: dict[str, Any] = {
            "start_seconds": round(time.time() - began, 1), "lease": lease,
            "where": service.where(), "strangers": service.strangers(),
            "secrets_on_b": service.secrets_on(made[1]),
            "listeners": {host.name: service.listeners(host) for host in made},
        }  # fmt: skip
        service.await_generation(service.rotate())
        for phase in phases:
            result[phase] = kinds[phase]()
            answers = {host.name: service.since(host, 0.0) for host in made}
            swaps = service.swaps()
            result |= {
                "answers": {name: summary(its) for name, its in answers.items()},
                "stale": stale([one for its in answers.values() for one in its], swaps, lease),
                "seconds": round(time.time() - began, 1),
            }  # fmt: skip
            keep(result)
    return result


def _end(*_: object) -> None:
    """Take the hosts away, and do not be interrupted at it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("ended by SIGTERM")


def main() -> None:
    """Run all, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--part", type=float, default=30.0, help="seconds without network")
    parser.add_argument("--lease", type=float, default=4.0, help="seconds")
    parser.add_argument("--phases", nargs="*", default=list(PHASES), choices=PHASES)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    if why := why_not():
        raise SystemExit(f"two hosts cannot be made here: {why}")
    about = {"commit": commit(), "hardware": hardware()}
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="g2d-hosts-") as folder:
        result = run(Path(folder), given.part, given.lease, given.phases,
                     lambda done: save(given.out, about | done))  # fmt: skip
    json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
