"""What has moved is told within a thousand requests; what has not, or is no number, is not."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from g2d.errors import SettingsError
from g2d.service.http.options import Options
from g2d.service.http.protocol import Model
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.drift.figures import Answers, InputFigures, Repeats, means
from g2d.service.monitors.drift.labels import LabelShift, likelihood_ratio
from g2d.service.monitors.listed import built_in
from g2d.settings import MonitorSettings
from stand_ins import MODEL, Harness

pytest.importorskip("river", reason="what drifts is told by river: the extra `monitor`")
from g2d.service.monitors.drift.monitor import DriftMonitor
from g2d.service.monitors.drift.streams import Ranks, Streams

CLASSES = 10
IMAGES = Model("g2d", (1, 4, 4), "float32", CLASSES)
EVEN = np.full(CLASSES, 1 / CLASSES)


class World:
    """Requests of one input; what it draws may change, and alarms are kept."""

    def __init__(self, seed: int = 0, model: Model = IMAGES, **settings) -> None:
        self.chance, self.model = np.random.default_rng(seed), model
        self.alarms: list[tuple] = []
        made = MonitorSettings(**settings)
        self.monitor = DriftMonitor(
            Watched(model, made, lambda *a, **k: self.alarms.append((a, k)))
        )

    def ask(self, count: int, shares=EVEN, change=lambda x: x, until_alarm: bool = True) -> int:
        """Ask so often; return how many requests it took until there was another alarm."""
        before = len(self.alarms)
        y = self.chance.choice(CLASSES, count, p=shares)
        x = change(self.chance.random((count, *self.model.shape))).astype(self.model.dtype)
        logits = self.chance.normal(size=(count, CLASSES)).astype("float32")
        logits[np.arange(count), y] += 5
        for n in range(count):
            self.monitor.observe(x[n : n + 1], logits[n : n + 1], "client")
            if until_alarm and len(self.alarms) > before:
                return n + 1
        return count


def shares(**changed) -> np.ndarray:
    found = EVEN.copy()
    for name, value in changed.items():
        found[int(name[1:])] = value
    return found / found.sum()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("answers", {"shares": shares(c3=1.0)}),
        ("answers", {"shares": shares(c7=0.0)}),
        ("inputs", {"change": lambda x: (x + np.roll(x, 1, 2) + np.roll(x, 1, 3)) / 3}),
        ("inputs", {"change": lambda x: x + 0.2}),
    ],
)
def test_what_moves_is_told_within_a_thousand_requests_and_does_not_rotate(what, change):
    world = World()
    assert world.ask(1300) == 1300
    assert world.alarms == []
    assert world.ask(1000, **change) < 1000
    ((kind, text, rotate), more) = world.alarms[0]
    assert (kind, rotate) == ("drift", False)
    assert text.startswith(f"{what} have moved")
    assert "g2d refresh" in text
    assert more["evidence"]["what"] == what
    assert more["evidence"]["before"] != more["evidence"]["after"]
    # What is usual is learned anew: the same world is no news.
    assert world.ask(800, **change) == 800


def test_a_class_that_loses_half_is_told_by_its_share():
    test, chance = LabelShift(CLASSES, 1e-6 / 3, 500), np.random.default_rng(1)
    one_hot = np.eye(CLASSES)
    assert test.add(one_hot[chance.choice(CLASSES, 20_000, p=EVEN)]) is None
    moved = test.add(one_hot[chance.choice(CLASSES, 1500, p=shares(c2=0.045))])
    assert moved is not None
    assert moved.name == "class 2"
    assert moved.after < 0.08 < moved.before


def test_a_swap_forgets_what_was_usual_of_answers_and_not_of_inputs():
    world = World()
    world.ask(1500)
    world.monitor.swapped(2)
    assert world.monitor.status()["usual_answers"] == 0
    assert world.monitor.status()["usual_inputs"] == 1500  # the unfinished block, too
    assert world.ask(1000, shares=shares(c3=1.0)) == 1000  # another network's own shares
    assert world.ask(1000, change=lambda x: x + 0.2) < 1000


def test_the_same_inputs_again_are_no_news():
    world = World()
    world.ask(1500)
    x = world.chance.random((1, *IMAGES.shape)).astype("float32")
    logits = np.eye(CLASSES, dtype="float32")[:1] * 9
    for _ in range(3000):
        world.monitor.observe(x, logits, "retries")
    assert world.alarms == []
    assert world.monitor.status()["repeated_inputs"] == 2999
    seen = Repeats(IMAGES, most=2)
    assert seen.fresh(x, "a").all()
    assert seen.fresh(x, "b").all()  # another client's is its own
    assert not seen.fresh(np.concatenate([x, x]), "a").any()
    seen.fresh(x + 1, "c")
    seen.fresh(x + 2, "c")
    assert seen.fresh(x, "a").all()  # bounded: long ago is forgotten


def test_what_is_no_number_blinds_nothing():
    world = World()
    world.ask(1500)
    bad = np.full((1, *IMAGES.shape), np.nan, "float32")
    for value in (np.nan, np.inf, -np.inf):
        logits = np.full((1, CLASSES), value, "float32")
        world.monitor.observe(bad * 1, logits, str(value))
    for n in range(40):  # finite answers to inputs that are not
        answer = 4 * np.eye(CLASSES, dtype="float32")[[n % CLASSES]]
        world.monitor.observe(bad, answer, f"client {n}")
    world.ask(48)
    assert world.monitor.status()["not_finite"] == 43
    assert world.alarms == []
    assert world.ask(1000, change=lambda x: x + 0.2) < 1000
    streams = Streams(["one"], 1e-6)
    assert streams.add(np.array([[0.5], [np.nan], [np.inf], [0.5]])) is None
    assert (streams.not_finite, streams.requests) == (2, 2)


def test_constant_streams_one_class_and_little_traffic_are_no_alarms():
    world = World()
    only = {"shares": shares(**{f"c{k}": 0.0 for k in range(1, CLASSES)})}
    assert world.ask(2000, change=lambda x: x * 0 + 0.5, **only) == 2000
    assert world.monitor.status()["repeated_inputs"] == 1999
    ranks = Ranks(np.full((500, 1), 0.1))
    assert ranks(np.array([[0.1], [0.1 + 1e-9], [0.2], [0.0], [np.nan]]))[:, 0] == pytest.approx(
        [0.5, 0.5, 1.0, 0.0, np.nan], nan_ok=True
    )
    few = World()
    few.ask(400)
    assert few.ask(90, shares=shares(c3=9.0)) == 90  # nothing is usual yet


def test_requests_count_once_however_many_inputs_they_have():
    logits = np.array([[9, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], "float32")
    found = Answers.of(logits, np.array([0, 3]))
    assert found.shares == pytest.approx(np.array([[2 / 3, 1 / 3, 0], [0, 0, 1]]))
    assert found.scores.shape == (2, 4)
    assert found.scores[:, :3].sum(1) == pytest.approx([1, 1])
    assert means(np.arange(4.0)[:, None], np.array([0, 3])).tolist() == [[1.0], [3.0]]
    many = Answers.of(np.zeros((2, 1000), "float32"), np.array([0, 1]))
    assert many.shares.shape == (2, 64)  # classes share streams


def test_what_is_made_of_inputs_depends_on_their_shape():
    x = np.stack([np.zeros((2, 3, 3)), np.ones((2, 3, 3))]).astype("float32")
    figures = InputFigures(Model("g2d", (2, 3, 3), "float32", 3))
    assert figures(x, np.array([0])).tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert figures.names[-1] == "spread of channel 1"
    columns = InputFigures(Model("g2d", (100,), "float64", 3))
    assert columns(np.ones((3, 100)), np.array([0])).tolist() == [[1.0] * 64]
    assert InputFigures(Model("g2d", (7,), "int64", 3, vocabulary=50)).names == ()


def test_large_requests_are_looked_at_a_part_at_a_time(monkeypatch):
    draws, starts = np.random.default_rng(0), np.array([0, 3])
    x = draws.random((7, 2, 3, 3))
    figures = InputFigures(Model("g2d", (2, 3, 3), "float32", 3))
    whole, sizes = figures(x, starts), []
    monkeypatch.setattr("g2d.service.monitors.drift.figures._AT_ONCE", 40)
    spreads = figures._spreads
    monkeypatch.setattr(figures, "_spreads", lambda x: (sizes.append(len(x)), spreads(x))[1])
    assert figures(x, starts) == pytest.approx(whole)
    assert sizes == [2, 2, 2, 1]
    world = World()
    monkeypatch.setattr("g2d.service.monitors.drift.monitor._BYTES", 1000)
    world.ask(12)
    held = sum(each.nbytes for pair in world.monitor._block for each in pair)
    assert held < 1000
    assert world.monitor.status()["usual_answers"] > 0


def test_the_likelihood_ratio_is_that_of_two_binomials():
    first, second = np.array([10.0, 0.0, 50.0]), np.array([30.0, 0.0, 100.0])
    found = likelihood_ratio(first, 50, second, 100)
    p, q, r = 0.2, 0.3, 40 / 150
    by_hand = 2 * (
        10 * np.log(p / r) + 40 * np.log((1 - p) / (1 - r))
        + 30 * np.log(q / r) + 70 * np.log((1 - q) / (1 - r))
    )  # fmt: skip
    assert found == pytest.approx([by_hand, 0.0, 0.0])


def test_evidence_is_one_a_request_in_the_mean_over_all_orders():
    """That bounds alarms, whatever the classes' shares are, if requests come in no order."""
    given = np.eye(3)[[0, 0, 1, 2, 0]]
    given[4] = [0.5, 0.5, 0.0]  # a request of two inputs
    found = []
    for order in itertools.permutations(range(5)):
        test = LabelShift(3, 1e-9, 0)
        assert test.add(given[list(order)]) is None
        found.append(test._evidence)
    assert np.mean(found, 0) == pytest.approx(np.full(found[0].shape, 5.0))


@pytest.mark.parametrize("classes", [2, 10, 64])
def test_alarms_without_cause_are_no_more_frequent_than_they_may_be(classes):
    draws, alarms = np.random.default_rng(classes), 0
    test = LabelShift(classes, 1e-3, 100)
    given = np.eye(classes)[draws.choice(classes, 20_000, p=draws.dirichlet(np.ones(classes)))]
    for some in given.reshape(-1, 50, classes):
        if test.add(some) is not None:
            alarms += 1
            test.reset()
    assert alarms <= 20


def test_what_never_comes_is_no_change_however_long_one_waits():
    test = LabelShift(4, 1e-3, 100)
    assert test.add(np.tile(np.eye(4)[:1], (10_000, 1))) is None
    moved = test.add(np.tile(np.eye(4)[1:2], (200, 1)))  # and hides nothing
    assert moved is not None
    assert (moved.before, moved.after) == (1.0, 0.0) or (moved.before, moved.after) == (0.0, 1.0)


def test_half_a_class_is_told_by_half_of_all_draws_within_a_thousand():
    """Whoever knows class, amount and shares would tell it in 84 of 100; windows told 33."""
    draws, one_hot, soon = np.random.default_rng(20), np.eye(CLASSES), 0
    for n in range(40):
        test = LabelShift(CLASSES, 1.6e-7, 500)
        assert test.add(one_hot[draws.choice(CLASSES, 5000)]) is None
        less = shares(**{f"c{n % CLASSES}": 0.05})
        soon += test.add(one_hot[draws.choice(CLASSES, 1000, p=less)]) is not None
    assert soon >= 18


def test_settings_turn_it_on_by_name_and_say_what_is_missing(monkeypatch):
    def made(*watch: str):
        return built_in(Watched(MODEL, MonitorSettings(watch=watch), print))

    assert made() == {}
    assert set(made("drift")) == {"drift"} <= set(made("all"))
    with pytest.raises(SettingsError, match=r"no monitor 'drfit'.*drift"):
        made("drfit")
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(SettingsError, match=r"pip install 'g2d\[monitor\]'"):
        made("drift")


def test_a_service_shows_its_monitors_what_it_answers():
    harness = Harness(Options(monitor=("drift",)))
    observers = harness.service._observers
    assert observers is not None
    observers.start()
    inputs, logits = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 3), np.float32)
    observers.offer(inputs, logits, "client")
    harness.tell("swap", {"generation": 2, "before": 1, "reasons": [], "seconds": 0.1})
    observers.stop(60)
    shown = harness.metrics.render(exact=True).decode()
    assert 'g2d_monitor{monitor="drift",value="requests"} 1.0' in shown
    assert b"g2d_monitor" not in harness.metrics.render()
