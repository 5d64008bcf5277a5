"""Time left: at the pace of this run, where an earlier one had begun, and without a terminal."""

import pytest

from g2d.cli import progress
from g2d.cli.progress import Stages, show_lines


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_time_left_follows_the_pace_of_this_run():
    clock = Clock()
    stages = Stages(clock)
    assert stages.report("population", 0, 10).left() is None
    clock.now += 20
    seen = stages.report("population", 2, 10)
    assert seen.left() == pytest.approx(80)
    assert seen.left(clock.now + 30) == pytest.approx(50)  # counts down between two reports
    assert stages.report("population", 10, 10).left() == 0


def test_what_an_earlier_run_did_has_no_pace():
    """90 of 100 were there; two more took 20 s: eight are left, at ten seconds each."""
    clock = Clock()
    stages = Stages(clock)
    stages.report("attacks", 90, 100)
    clock.now += 20
    assert stages.report("attacks", 92, 100).left() == pytest.approx(80)


def test_a_stage_that_starts_over_says_nothing_wrong():
    clock = Clock()
    stages = Stages(clock)
    stages.report("generating", 5, 10)
    clock.now += 5
    assert stages.report("generating", 1, 10).left() is None


def test_lines_say_the_time_left_where_there_is_no_terminal(monkeypatch):
    clock, said = Clock(), []
    monkeypatch.setattr(progress, "say", said.append)
    show = show_lines(Stages(clock))
    show("population", 4, 8)
    clock.now += 61
    show("population", 5, 8)
    clock.now += 183
    show("population", 8, 8)
    assert said == [
        "population: 4 of 8",
        "population: 5 of 8, 1 min 1 s, about 3 min 3 s left",
        "population: 8 of 8, 4 min 4 s",
    ]
