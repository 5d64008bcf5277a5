"""A search is seen by the marks of its first queries; what only looks like one is told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from g2d.service.http.protocol import Model
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.queries.marks import NO, UNSURE, YES, Recent, Usual
from g2d.service.monitors.queries.monitor import Queries
from g2d.settings import MonitorSettings

SIDE, EPS = 16, 0.15


def images(count: int, seed: int) -> np.ndarray:
    """Grey strokes on black, (n, 16, 16)."""
    draws = np.random.default_rng(seed)
    x = draws.random((count, SIDE, SIDE)) * (draws.random((count, SIDE, SIDE)) < 0.4)
    return x.astype(np.float32)


def square(image: np.ndarray, eps: float, draws: np.random.Generator):
    """Queries of Square: stripes first, then squares of half of the image, each on the last."""
    best = np.clip(image + eps * draws.choice([-1, 1], size=(1, SIDE)), 0, 1)
    yield best
    while True:
        row, column = draws.integers(0, 6, 2)
        part = np.s_[row : row + 11, column : column + 11]
        best = best.copy()
        best[part] = np.clip(image + eps * draws.choice([-1, 1]), 0, 1)[part]
        yield best


def marks(queries, answers=None, count: int = 30) -> np.ndarray:
    """Which marks each query carries (n, 2), the first excepted."""
    recent, found = Recent(0.0, 1.0), []
    answers = itertools.repeat(0) if answers is None else answers
    for query, answer in itertools.islice(zip(queries, answers, strict=False), count):
        value = np.asarray(query, np.float32).ravel()
        found.append(recent.marks(value))
        recent.add(value, answer)
    return np.array(found[1:])


@pytest.mark.parametrize("eps", [0.03, EPS, 0.3])
def test_queries_of_random_search_are_some_earlier_one_but_for_a_patch(eps):
    found = np.concatenate([
        marks(square(image, eps, np.random.default_rng(n)), count=6)
        for n, image in enumerate(images(10, 1))
    ])  # fmt: skip
    assert (found[:, 0] == YES).mean() > 0.6
    assert not (found[:, 0] == NO).any()
    assert not found[:, 1].any()


def test_noise_on_every_query_takes_the_mark_away():
    draws = np.random.default_rng(0)
    queries = square(images(1, 1)[0], EPS, draws)
    noisy = (np.clip(one + draws.uniform(-0.04, 0.04, one.shape), 0, 1) for one in queries)
    assert not marks(noisy)[:, 0].any()


def bisection(image: np.ndarray, at: float, draws: np.random.Generator):
    """An image, noise, and the way between them halved again and again towards a boundary."""
    noise, low, high = draws.random(image.shape), 0.0, 1.0
    yield image, 0
    yield noise, 1
    while True:
        middle = (low + high) / 2
        yield image + middle * (noise - image), int(middle > at)
        low, high = (low, middle) if middle > at else (middle, high)


def test_a_way_that_is_halved_towards_a_boundary_is_marked_at_its_second_halving():
    for n, image in enumerate(images(5, 2)):
        draws = np.random.default_rng(n)
        queries, answers = zip(*itertools.islice(bisection(image, 0.3, draws), 6), strict=True)
        assert (marks(queries, answers)[1:, 1] == YES).all()
        assert not marks(queries).any()  # where all are answered alike nothing is searched


def covered(image: np.ndarray):
    """An occlusion map: a grey square at one place after the other."""
    for row, column in itertools.product(range(0, 13, 3), repeat=2):
        one = image.copy()
        one[row : row + 4, column : column + 4] = 0.3
        yield one


def resubmitted(image: np.ndarray, levels: int, draws: np.random.Generator):
    """An image with noise, in so many levels."""
    while True:
        noisy = image + 0.04 * draws.normal(size=image.shape)
        yield np.clip(np.rint(levels * noisy) / levels, 0, 1)


def exposed(image: np.ndarray, draws: np.random.Generator):
    """An image in exposures of even steps, in any order."""
    for step in draws.permutation(12):
        yield image * (1 - 0.06 * step)


def test_what_looks_like_a_search_and_is_none_carries_no_mark():
    draws = np.random.default_rng(3)
    for image in images(8, 3):
        for levels in (3, 15, 31, 63, 255, 10**6):
            assert not (marks(resubmitted(image, levels, draws))[:, 0] == YES).any()
        assert (marks(covered(image))[:, 0] != YES).all()
        assert not (marks(exposed(np.rint(image), draws))[:, 0] == YES).any()  # black and white
        others = images(30, int(draws.integers(10**6)))
        assert not marks(others, draws.integers(0, 2, 30)).any()
    box = image.copy()
    box[3:5, 3] = 0.4
    assert marks([image, box])[0, 0] == UNSURE  # too little to say


def test_what_a_mark_weighs_is_at_most_one_in_the_mean_however_usual_it_is():
    draws = np.random.default_rng(4)
    for rate in (0.0, 0.02, 0.5):
        weights = []
        for _ in range(300):
            usual, kinds = (
                Usual(),
                draws.choice(3, size=(60, 2), p=[1 - 1.5 * rate, rate / 2, rate]),
            )
            for kind in kinds[:-1].tolist():
                usual.add(tuple(kind))
            weights.append(usual.factors(tuple(kinds[-1].tolist())))
        assert np.mean(weights) <= 1.15
    usual = Usual()
    for _ in range(999):
        usual.add((NO, UNSURE))
    assert usual.factors((YES, UNSURE)) == pytest.approx((400.0, 0.3))


def darker(image: np.ndarray, by: float) -> np.ndarray:
    return np.clip(image - by, 0, 1)


def test_a_slider_of_brightness_or_levels_carries_no_mark():
    draws = np.random.default_rng(5)
    for image in images(8, 11):
        steps = draws.permutation([0.0, 0.06, 0.11, 0.2, 0.35])
        wide = np.clip(draws.normal(0.5, 0.6, image.shape), -1, 2)  # a window cuts both ends off
        for slid in (
            [darker(image, step) for step in steps],
            [1 - darker(image, step) for step in steps],
            [darker(wide, step) for step in steps],
        ):
            assert not (marks(slid)[:, 0] == YES).any()


def test_levels_may_begin_anywhere():
    draws = np.random.default_rng(6)
    for image in images(8, 12):
        noisy = (0.013 + 0.97 * one for one in resubmitted(image, 15, draws))
        assert not (marks(noisy, count=8)[:, 0] == YES).any()


def test_a_search_is_marked_though_its_client_has_asked_about_other_images():
    draws = np.random.default_rng(7)
    others = 0.2 + 0.5 * draws.random((12, SIDE, SIDE))  # far apart nowhere, as photographs
    queries = itertools.islice(square(others[0], 0.03, draws), 6)
    found = marks([*others[1:], *queries], count=17)[11:, 0]
    assert (found == YES).mean() > 0.6


class World:
    """A monitor that has seen plain use, on which nothing depends; alarms are kept."""

    def __init__(self, first: np.ndarray | None = None, **settings: int) -> None:
        self.alarms: list[tuple[str, str, str]] = []
        model = Model("g2d", (1, SIDE, SIDE), "float32", 2)
        self.monitor = Queries(
            Watched(model, MonitorSettings(**settings), self._alarm, lambda: 0.0), bytes(32)
        )
        for n, image in enumerate(images(80, 7) if first is None else first):
            self.ask(image, f"plain-{n % 5}")

    def _alarm(self, kind, text, rotate=True, **about) -> None:
        told = about["evidence"]
        self.alarms.append((kind, about["client"], told.get("mark", told["rule"])))

    def ask(self, image: np.ndarray, client: str, label: int = 0) -> None:
        answer = np.array([[3.0, 0.0]], np.float32)[:, :: -1 if label else 1]
        self.monitor.observe(image.reshape(1, 1, SIDE, SIDE).astype(np.float32), answer, client)


def test_searches_are_told_within_a_few_queries_though_no_answer_has_changed():
    world, draws = World(), np.random.default_rng(8)
    for n, query in enumerate(square(images(1, 8)[0], EPS, draws)):  # noqa: B007 - it is asked
        world.ask(query, "search")
        if world.alarms:
            break
    assert n < 8
    for n, (query, label) in enumerate(bisection(images(1, 9)[0], 0.2, draws)):  # noqa: B007
        world.ask(query, "boundary", label)
        if len(world.alarms) > 1:
            break
    assert n < 8
    assert world.alarms == [("query_attack", "search", "patch"),
                            ("query_attack", "boundary", "halving")]  # fmt: skip
    told = world.monitor.status()
    assert told["alarms_marks"] == 2
    assert told["variants_known"] >= 1024


def test_bursts_of_resubmissions_and_covers_raise_no_alarm():
    world, draws = World(), np.random.default_rng(9)
    for image in images(5, 10):
        for levels in (15, 255, 10**6):
            for one in itertools.islice(resubmitted(image, levels, draws), 25):
                world.ask(one, "burst", int(draws.integers(2)))
        for one in covered(image):
            world.ask(one, "explains", int(draws.integers(2)))
    assert world.alarms == []


@pytest.mark.parametrize(("shape", "dtype"), [((40,), "float32"), ((1, 12, 12), "int64")])
def test_rows_and_tokens_have_no_such_marks(shape, dtype):
    model = Model("g2d", shape, dtype, 2, vocabulary=99 if dtype == "int64" else None)
    monitor = Queries(Watched(model, MonitorSettings(), lambda *_, **__: None), bytes(32))
    x = (99 * np.random.default_rng(0).random((70, *shape))).astype(dtype)
    monitor.observe(x, np.zeros((70, 2), np.float32), "client")
    assert monitor.status()["judged"] == 70
    assert monitor.status()["variants_known"] == 0


def test_a_probe_that_asks_the_same_for_ever_does_not_say_what_the_scale_is():
    world = World(np.zeros((200, SIDE, SIDE)))
    told = world.monitor.status()
    assert (told["waiting"], told["repeated"], told["judged"]) == (1, 199, 0)
    for image in images(63, 13):
        world.ask(image, "client")
    told = world.monitor.status()
    assert (told["waiting"], told["judged"]) == (0, 64)
    for n, query in enumerate(square(images(1, 8)[0], EPS, np.random.default_rng(8))):  # noqa: B007
        world.ask(query, "search")
        if world.alarms:
            break
    assert n < 8


def test_odd_values_of_a_stranger_neither_blind_nor_break_it():
    first = images(80, 7)
    first[3] *= 1e5
    first[4, 0] = 3e38
    world = World(first)
    draws = np.random.default_rng(8)
    for scale in (3e38, -3e38, 1.0):
        image = images(1, 14)[0]
        image[2:9] = scale
        world.ask(image, "stranger")
    for n, query in enumerate(square(images(1, 8)[0], EPS, draws)):  # noqa: B007
        world.ask(query, "search")
        if world.alarms:
            break
    assert n < 8
    assert world.monitor.status()["not_judged"] == 0


def usual(world: World) -> tuple[int, int]:
    told = world.monitor.status()
    return told["variants_known"], told["variants_marked"]


def test_an_attackers_own_queries_become_usual_only_where_nobody_blames_him():
    world, draws = World(), np.random.default_rng(6)
    before = usual(world)
    for query in square(images(1, 6)[0], EPS, draws):
        world.ask(query, "search")
        if world.alarms:
            break
    assert usual(world) == before


def test_a_client_that_comes_again_and_again_counts_for_no_more():
    world, draws = World(query_clients=1), np.random.default_rng(10)
    known = usual(world)[0]
    for image in images(10, 15):
        for one in itertools.islice(resubmitted(image, 10**6, draws), 25):
            world.ask(one, "quiet")
        world.ask(image, "another")  # whose inputs take the place of the first client's
    assert usual(world)[0] == known + 64
