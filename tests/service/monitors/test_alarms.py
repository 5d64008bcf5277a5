"""How often monitors' alarms are told and what they may cause, and who hears of them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from g2d.protect.audit.ocsf import to_ocsf
from g2d.protect.audit.records import Record
from g2d.rotation.events import Alarm
from g2d.rotation.scheduler import Rotation
from g2d.rotation.snapshot import Live
from g2d.rotation.triggers import AlarmBudget, Triggers
from g2d.service.cluster.replica import RemoteRotation
from g2d.service.monitors.alarms import AlarmLine, Cooldown
from stand_ins import ADMIN, Fake, Harness, into, numbered, run

ATTACK = ("query_attack", "many near-duplicates")


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def test_one_client_is_told_once_a_cooldown_and_the_others_are_counted():
    clock = Clock()
    cooldown = Cooldown(60.0, clock)
    assert cooldown.take("query_attack", "jwt:a") == 0
    assert [cooldown.take("query_attack", "jwt:a") for _ in range(9)] == [None] * 9
    assert cooldown.take("query_attack", "jwt:b") == 0  # another client's is its own
    assert cooldown.take("drift", "jwt:a") == 0  # and another kind's
    clock.at -= 1e6  # nothing that goes back lets one through
    assert cooldown.take("query_attack", "jwt:a") is None
    clock.at += 1e6 + 60.0
    assert cooldown.take("query_attack", "jwt:a") == 10
    assert cooldown.suppressed == 10


def test_a_notice_holds_no_alarm_back():
    told = []
    line = AlarmLine()
    line.connect(lambda *_, **more: told.append(more["level"]), 60.0)
    for level in ("notice", "notice", "warning", "critical", "warning", "critical"):
        line("query_attack", "t", level=level, client="jwt:a")
    assert told == ["notice", "warning", "critical"]
    assert line.suppressed == 3


def test_many_accounts_buy_no_more_alarms_than_are_tracked():
    clock = Clock()
    cooldown = Cooldown(60.0, clock, most=100)
    told = [n for n in range(10_000) if cooldown.take("query_attack", f"jwt:{n}") is not None]
    assert len(told) == 101  # those that are tracked, and all others as one
    # They silence neither another kind nor what is about nobody.
    assert cooldown.take("extraction", "jwt:new") == 0
    assert cooldown.take("query_attack", "") == 0
    assert cooldown.take("drift", "") == 0
    assert cooldown.take("drift", "") is None
    assert cooldown.take("query_attack", "jwt:0") is None  # nothing was forgotten for them
    clock.at += 61.0
    assert cooldown.take("query_attack", "jwt:new") == 0
    assert len(cooldown._told) == 1


def test_what_is_worse_is_told_at_once_and_what_is_not_waits():
    told: list[tuple[str, bool]] = []
    line = AlarmLine()
    line.connect(lambda kind, text, rotate, **more: told.append((more["level"], rotate)), 600.0)
    for level, rotate in (
        ("notice", False), ("notice", False), ("warning", False), ("warning", True),
        ("critical", True), ("warning", True), ("critical", False), ("critical", True),
    ):  # fmt: skip
        line(*ATTACK, rotate, level=level, client="jwt:a")
    assert told == [("notice", False), ("warning", False), ("warning", True), ("critical", True)]
    assert line.suppressed == 4
    line("of_mine", "a level that there is not", level="error", client="jwt:a")
    assert told[-1] == ("warning", True)


def test_a_flood_of_new_accounts_costs_no_walk_through_the_table_each():
    looked = [0]

    class Counted(dict):
        def items(self):
            looked[0] += len(self)
            return super().items()

    cooldown = Cooldown(60.0, Clock(), most=100)
    cooldown.__dict__ |= {k: Counted(v) for k, v in vars(cooldown).items() if isinstance(v, dict)}
    for n in range(1000):
        cooldown.take("query_attack", f"jwt:{n}")
    assert looked[0] < 1000


def test_what_an_observer_raises_is_about_queries_and_short():
    told: list[dict] = []
    line = AlarmLine()
    measured = {"share": np.float32(0.5), "count": 3, "none": math.nan, "why": "x" * 500}
    line(*ATTACK, client="jwt:a", evidence=measured)
    line.connect(lambda kind, text, rotate, **more: told.append(more), 60.0)
    line("of_mine", "the old call, of three arguments", False)
    assert told[0]["client"] == "jwt:a"
    kept = told[0]["evidence"]
    assert kept == {"share": 0.5, "count": 3, "none": "nan", "why": "x" * 80}
    assert {type(value) for value in kept.values()} == {int, float, str}  # as the audit writes it
    assert told[1] == {"level": "warning", "client": "", "evidence": {}}
    assert Alarm("of_mine", "t", evidence={}).closed


def test_ten_thousand_alarms_a_minute_buy_one_rotation():
    told: list[tuple[str, dict]] = []
    clock, live, fake = Clock(), Live(numbered(1)), Fake()
    made = Rotation(live, fake, fake, Triggers(), into(told), budget=AlarmBudget(1.0, clock))

    def attack(count: int, every: float = 0.006) -> list[str]:
        for _ in range(count):
            made.alarm(*ATTACK, client="jwt:a")
            clock.at += every
        due, made._due = made._due, []  # as a swap does
        return due

    assert attack(10_000) == ["monitor: query_attack"]
    # And no other in that hour, nor for hours: it is the same attack, if it goes slower.
    assert [due for _ in range(58) if (due := attack(100, 0.6))] == []
    assert attack(100 * 60 * 2, 0.6) == []
    assert attack(1) == []
    made.alarm(*ATTACK, client="jwt:b")  # another one's
    assert made._due == ["monitor: query_attack"]
    made._due = []
    # Whoever spends the budget does not hold up what must not stay live.
    assert attack(1) == []
    made.alarm("integrity", "generation 1 changed in memory")
    made.alarm(*ATTACK, client="jwt:a")  # one rotation with what is due: no token is spent
    assert made._due == ["alarm: integrity", "monitor: query_attack"]


def test_whoever_was_quiet_for_as_long_as_a_token_takes_may_have_another():
    clock = Clock()
    budget = AlarmBudget(2.0, clock)  # one in half an hour
    assert [budget.take("jwt:a"), budget.take("jwt:b"), budget.take()] == [True, False, False]
    clock.at += 1799.0
    assert not budget.take("jwt:a")  # not quiet: it begins anew
    clock.at += 1.0
    assert not budget.take("jwt:a")
    assert budget.take("jwt:b")
    clock.at += 1800.0
    assert budget.take("jwt:a")
    clock.at += 1800.0
    assert [budget.take(), budget.take()] == [True, False]  # nobody's: by the hour alone
    clock.at += 1800.0
    assert budget.take()


def test_a_budget_of_none_lets_alarms_be_told_alone():
    budget = AlarmBudget(0.0)
    assert [budget.take() for _ in range(3)] == [False] * 3
    assert budget.withheld == 3


def test_clients_learn_nothing_of_alarms_of_queries_and_operators_all():
    harness = Harness()

    async def work(client):
        more = {"level": "critical", "client": "10.0.0.7", "evidence": {"near": 0.97}}
        harness.rotation.alarm(*ATTACK, rotate=False, **more)
        harness.rotation.alarm("integrity", "generation 1 changed in memory", rotate=False)
        for path in ("/status", "/metrics"):
            shown = (await client.get(path)).text
            assert "integrity" in shown
            for secret in ("query_attack", "10.0.0.7", "near", "withheld", "g2d_monitor"):
                assert secret not in shown, (path, secret)
        assert (await client.get("/alarms")).status_code == 401
        found = (await client.get("/alarms", headers=ADMIN)).json()
        attack, damage = found["alarms"]
        assert attack | more == attack
        assert damage["kind"] == "integrity"
        assert (found["withheld"], found["suppressed"], found["pinned"]) == (0, 0, [])
        exact = (await client.get("/metrics", headers=ADMIN)).text
        samples = [s for f in text_string_to_metric_families(exact) for s in f.samples]
        labels = {"kind": "query_attack", "level": "critical"}
        assert 1.0 in [s.value for s in samples if s.labels == labels]

    run(harness, work)
    (line,) = [line for line in harness.lines() if line.get("kind") == "query_attack"]
    assert (line["level"], line["client"]) == ("critical", "10.0.0.7")
    assert line["evidence"] == {"near": 0.97}


def test_a_flood_of_alarms_of_queries_does_not_drive_out_the_services_own():
    harness = Harness()
    harness.rotation.alarm("integrity", "generation 1 changed in memory", rotate=False)
    for n in range(300):
        harness.rotation.alarm(*ATTACK, rotate=False, client=f"jwt:{n}")
    assert [alarm["kind"] for alarm in harness.event_log.snapshot()["alarms"]] == ["integrity"]
    assert harness.event_log.alarms()[0]["kind"] == "integrity"


def test_a_siem_gets_the_level_the_client_and_the_evidence():
    facts = Alarm("query_attack", "t", "critical", "jwt:a", {"near": 0.97}).facts()
    found = to_ocsf(Record(1, "2026-11-30T08:00:00.000000Z", "0" * 64, "alarm", facts))
    assert found["severity_id"] == 5
    assert found["evidences"] == [{"actor": {"user": {"name": "jwt:a"}}, "data": {"near": 0.97}}]
    network = Alarm("query_attack", "t", client="2001:db8::/64").facts()
    found = to_ocsf(Record(1, "2026-11-30T08:00:00.000000Z", "0" * 64, "alarm", network))
    assert (found["severity_id"], found["evidences"]) == (
        4,
        [{"src_endpoint": {"name": "2001:db8::/64"}}],
    )


def test_a_replica_passes_the_level_the_client_and_the_evidence_on():
    sent: list[tuple] = []
    sync = SimpleNamespace(about=lambda: {"replica": "r1"}, send=lambda *a: sent.append(a))
    more = {"level": "critical", "client": "jwt:a", "evidence": {"near": 0.97}}
    RemoteRotation(sync).alarm(*ATTACK, **more)
    assert sent == [("alarm", "query_attack", "r1: many near-duplicates", True, more)]
