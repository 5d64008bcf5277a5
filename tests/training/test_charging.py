"""What private trainings are charged, and that each one is charged before it is handed out."""

from dataclasses import replace

import pytest

from g2d.core.engine import SerialEngine
from g2d.errors import PrivacyError
from g2d.settings import PopulationSettings, PrivacySettings
from g2d.training.charging import Charged, cost_of

PRIVACY = PrivacySettings(enabled=True, records=1000, batch=10)
FORKS = PopulationSettings(basins=1, early_steps=0)


def test_a_base_and_forks_are_charged_for_their_whole_runs():
    (base,) = cost_of("base", 0, PRIVACY, FORKS)
    (fork,) = cost_of("member", 3, PRIVACY, FORKS)
    assert (base.what, base.count, base.noise, base.rate) == ("base", 700, 1.5, 0.01)
    assert (fork.what, fork.count, fork.noise, fork.rate) == ("member 3", 30, 3.0, 0.01)
    assert {base.mechanism, fork.mechanism} == {"sampled_gaussian"}
    assert cost_of("early", 0, PRIVACY, FORKS) == []


def test_a_fork_of_a_refresh_is_charged_to_every_block_that_it_samples():
    found = cost_of("refreshing", 1, PRIVACY, FORKS, ("records", "refresh 1"))
    assert [one.block for one in found] == ["records", "refresh 1"]
    assert len({(one.noise, one.rate, one.count) for one in found}) == 1


def test_a_budget_that_is_used_up_on_the_way_keeps_what_is_paid_for():
    events = []

    def charge(job):
        if job == 2:
            raise PrivacyError("nothing is left")
        events.append(f"charged {job}")
        return {"job": job}

    jobs = Charged(iter(range(5)), charge)
    for position, done in SerialEngine().run(lambda job: events.append(f"run {job}") or job, jobs):
        assert jobs.notes[position] == {"job": done}
    assert events == ["charged 0", "run 0", "charged 1", "run 1"]
    with pytest.raises(PrivacyError, match="nothing is left"):
        jobs.check()


def test_what_is_spent_says_whose_records_count_as_one():
    (base,) = cost_of("base", 0, replace(PRIVACY, unit="person"), FORKS)
    assert base.note == {"unit": "person"}
