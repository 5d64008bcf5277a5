"""A server and three clients as real processes under mutual TLS; killed, slow, gone; same bytes."""

from __future__ import annotations

import re
import signal

import pytest

import g2d
from commands import succeed
from federated_processes import NAMES, Group, Replayed, free_port, settings
from g2d.core.types import silent, unsaid
from g2d.defence.federating import begin_at, federate
from g2d.vault.vault import Vault
from stand_ins import wait_for

pytest.importorskip("nvflare", reason="g2d[federated] is not installed")
LONG = 900  # seconds: a machine may be busy


@pytest.fixture
def group(tmp_path):
    made = Group(tmp_path, free_port())
    yield made
    made.end()


def until(group, condition):
    """Wait for a condition; a process that ended by itself before is an error."""

    def seen():
        for name, process in group.running.items():
            assert process.poll() in (None, 0, -signal.SIGKILL), group.log(name)
        return condition()

    wait_for(seen, LONG)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_processes_that_are_killed_end_with_the_bytes_of_a_simulation(group, digits, tmp_path):
    succeed(*group.provision)
    for name in ("server", *NAMES):
        group.start(name)
    group.signal("client-02", signal.SIGSTOP)  # the slow one: nothing goes on without it
    until(group, lambda: all(group.answered(0, name) for name in NAMES[:2]))
    group.kill("client-01")
    group.kill("server")
    group.start("client-01")
    group.start("server")
    group.signal("client-02", signal.SIGCONT)
    until(group, lambda: group.round() >= 1)
    group.signal("client-02", signal.SIGTERM)  # gone for good
    until(group, lambda: group.running["server"].poll() == 0)
    until(group, lambda: all(p.poll() == 0 for p in group.running.values()))
    for name in NAMES[:2]:
        assert "the population is complete" in group.log(name)
    assert "Stopped." in group.log("client-02")

    lines = re.findall(
        r"round (\d+) of ([a-z0-9-]+): \d of 3 answered, without (.+)", group.log("server")
    )
    missing = {(stage, int(n)): set(names.split(", ")) for n, stage, names in lines}
    assert missing
    assert all(names == {"client-02"} for names in missing.values())
    assert ("base-0", 0) not in missing
    with g2d.Defence.create("digits", tmp_path / "same", settings()) as defence:
        s = defence.settings
        sim = Replayed(defence.task, s, begin_at(defence.task, s), tmp_path / "same.federated")
        sim.missing = missing
        federate(defence.task, defence.vault, s, None, silent, unsaid, sim)
        with Vault.open(group.vault) as real:
            for kind, count in (("base", 1), ("early", 1), ("member", 2)):
                theirs, own = real.entries(kind), defence.vault.entries(kind)
                assert len(theirs) == len(own) == count
                for one, other in zip(theirs, own, strict=True):
                    assert real.read(one) == defence.vault.read(other)
            assert real.entry("base").info["federated"]["simulated"] is False
