"""The hosts of `benchmarks.cluster.two_hosts`, and how it judges answers; Ray itself runs there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.cluster.answers import Answer, stale, summary
from benchmarks.cluster.hosts import Host, hosts, why_not
from stand_ins import wait_for

_SERVER = "import http.server as s; s.test(s.SimpleHTTPRequestHandler, port=9999, bind='0.0.0.0')"
_CLIENT = "import urllib.request as u, sys; print(u.urlopen(sys.argv[1], timeout=1).status)"


def answer(asked: float, generation: int, replica: str = "r", status: int = 200) -> Answer:
    return Answer(asked, asked + 0.1, status, replica, generation)


def test_only_answers_beyond_the_lease_are_too_late():
    swaps = [(3, 100.0), (5, 110.0)]  # 4 was made, and never live
    good = [answer(99, 2), answer(101.5, 2), answer(104, 3), answer(113.9, 3), answer(500, 5)]
    refused = answer(200, 0, status=503)
    told = stale([*good, refused], swaps, 4.0)
    assert told == {"beyond_the_lease": 0, "examples": [], "latest_seconds": 4.0}
    told = stale([*good, answer(104.5, 2), answer(115, 3)], swaps, 4.0)
    assert told["beyond_the_lease"] == 2
    assert told["examples"] == [[2, 4.5], [3, 5.0]]
    assert stale([answer(115, 4)], swaps, 4.0)["beyond_the_lease"] == 1


def test_numbers_that_fall_at_one_replica_are_counted():
    told = summary([answer(1, 2), answer(2, 3, "s"), answer(3, 2), answer(4, 2, "s")])
    assert (told["fell"], told["replicas"], told["generations"]) == (1, 2, [2, 3])


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be made")
def test_hosts_have_their_own_network_disk_and_processes(tmp_path):
    def reaches(client: Host) -> bool:
        with (tmp_path / "told").open("wb") as told:
            url = f"http://{a.address}:9999/"
            asked = client.start([sys.executable, "-SE", "-c", _CLIENT, url], {}, told)
            return asked.wait(60) == 0

    with hosts(("a", "b"), tmp_path) as (a, b), (tmp_path / "log").open("wb") as log:
        a.start([sys.executable, "-SE", "-c", _SERVER], {}, log)
        wait_for(lambda: reaches(b))
        b.set_network(False)
        assert not reaches(b)
        assert reaches(a)  # its own address is there without a cable
        b.set_network(True)
        wait_for(lambda: reaches(b))

        b.start(["/bin/sh", "-c", "hostname > /tmp/name"], {}, log).wait(60)
        assert (b.disk / "name").read_text() == "b\n"
        assert not (a.disk / "name").exists()
        names = {process.name() for process in a.processes()}
        assert {"bash", "sleep"} < names
        assert not {p.pid for p in a.processes()} & {p.pid for p in b.processes()}
        spaces = {a.space, b.space}
        a.cut_power()
        assert not reaches(b)
        assert (b.disk / "name").exists()
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not spaces & set(listed.split())
