"""Searches and copying raise alarms; retries, bursts, crowds and what is no number do not."""

from __future__ import annotations

import numpy as np
import pytest

from g2d.service.http.options import Options
from g2d.service.http.protocol import Model
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.listed import built_in
from g2d.service.monitors.queries.copying import Copiers, Copying, abnormal, usual_rate
from g2d.service.monitors.queries.monitor import Queries
from g2d.settings import MonitorSettings
from stand_ins import Harness

IMAGES = Model("g2d", (1, 16, 16), "float32", 3)


class World:
    """A monitor of images that a linear network answers; alarms are kept."""

    def __init__(self, warm: int = 100, **settings) -> None:
        self.draws, self.alarms, self.seconds = np.random.default_rng(0), [], 1000.0
        made = MonitorSettings(**settings)
        watched = Watched(IMAGES, made, self._alarm, lambda: self.seconds)
        self.monitor = Queries(watched, bytes(32))
        self.weights = self.draws.normal(size=(256, 3))
        for image in self.images(warm):
            self.ask(image, f"benign-{self.draws.integers(5)}")

    def _alarm(self, kind, text, rotate=True, **about) -> None:
        self.alarms.append((kind, about["client"], about["evidence"]["rule"], rotate))

    def images(self, count: int) -> np.ndarray:
        shape = (count, 1, 16, 16)
        return (self.draws.random(shape) * (self.draws.random(shape) < 0.5)).astype(np.float32)

    def logits(self, x: np.ndarray) -> np.ndarray:
        return (x.reshape(len(x), -1) @ self.weights).astype(np.float32)

    def ask(self, image: np.ndarray, client: str, logits: np.ndarray | None = None) -> np.ndarray:
        x = image.reshape(-1, 1, 16, 16).astype(np.float32)
        logits = self.logits(x) if logits is None else logits
        self.monitor.observe(x, logits, client)
        return logits

    def variant(self, image: np.ndarray, by: float = 0.1) -> np.ndarray:
        return np.clip(image + self.draws.uniform(-by, by, image.shape), 0, 1)

    def search(self, clients: list[str], queries: int = 300) -> int:
        """Random search around one image, the clients taking turns; queries until an alarm."""
        least, label, images = np.inf, 0, self.images(50)
        sure = np.ptp(np.sort(self.logits(images))[:, -2:], axis=1)
        best = clean = images[sure.argmax()]
        label = int(self.logits(clean[None])[0].argmax())
        for query in range(queries):
            tried = best.copy()
            row, column = self.draws.integers(0, 13, 2)
            tried[:, row : row + 3, column : column + 3] = self.variant(clean, 0.2)[
                :, row : row + 3, column : column + 3
            ]
            said = self.ask(tried, clients[query % len(clients)])[0].astype(float)
            margin = said[label] - np.delete(said, label).max()
            if margin < least:
                best, least = tried, margin
            if self.alarms:
                return query + 1
        return queries


def test_a_search_is_told_with_its_client_and_rotates():
    world = World()
    assert world.search(["attacker"]) < 100
    assert world.alarms == [("query_attack", "attacker", "descent", True)]
    assert world.monitor.status()["alarms_descent"] == 1


@pytest.mark.parametrize("crowd", [{"query_clients": 1}, {"query_window": 16}])
def test_a_search_is_told_though_much_else_drives_its_inputs_out_of_its_window(crowd, monkeypatch):
    world = World(**crowd)
    ask = world.ask

    def among_others(image, client, logits=None):
        said = ask(image, client, logits)
        if "query_clients" in crowd:
            ask(world.images(1)[0], f"other-{world.draws.integers(50)}")
        else:
            ask(world.images(17), client)
        return said

    monkeypatch.setattr(world, "ask", among_others)
    assert world.search(["attacker"]) < 200
    assert world.alarms[0] == ("query_attack", "attacker", "descent", True)


def test_a_search_by_many_accounts_is_told_of_each_and_each_asks_for_a_rotation():
    world = World()
    world.search([f"account-{n}" for n in range(30)], queries=260)  # none has nine variants
    assert {kind for kind, *_ in world.alarms} == {"query_attack"}
    assert {rule for *_, rule, _ in world.alarms} == {"together"}
    assert all(client.startswith("account-") for _, client, *_ in world.alarms)
    # All: the first may be held back for its cool-down, and what is due together is one rotation.
    assert len(world.alarms) > 1
    assert all(rotate for *_, rotate in world.alarms)


def test_asking_about_one_boundary_after_the_other_is_told_an_ambiguous_scene_is_not():
    world = World()
    scene, *others = world.images(3)

    def ask(image: np.ndarray, client: str, count: int) -> None:
        for _ in range(count):
            flip = world.draws.choice([-0.1, 0.1])
            world.ask(world.variant(image), client, np.array([[flip, 0, -9]], np.float32))

    ask(scene, "camera", 300)
    assert world.alarms == []
    for image in others:
        ask(image, "hops", 40)
    assert world.alarms == [("query_attack", "hops", "boundary", True)]


@pytest.mark.parametrize("client", ["one", "crowd"])
def test_bursts_retries_and_cameras_raise_no_alarm(client):
    world = World()
    for image in world.images(6):
        for burst in (3, 60):
            for _ in range(burst):
                name = client if client == "one" else f"crowd-{world.draws.integers(20)}"
                world.ask(world.variant(image, 0.05), name)
        for _ in range(30):
            world.ask(image, client)
    scene = world.images(1)[0]
    for _ in range(200):
        world.ask(world.variant(scene, 0.02), "camera")
    assert world.alarms == []
    told = world.monitor.status()
    assert told["near"] > 300
    assert told["repeated"] >= 6 * 28


def test_a_camera_that_turns_to_a_scene_of_which_the_network_is_less_sure_raises_no_alarm():
    """Scenes have a background in common: half of the hashes are the same."""
    world = World()
    scenes = np.repeat(world.images(1), 6, 0)
    scenes[:, 0, 5:9, 5:9] = world.draws.random((6, 4, 4))
    for n, scene in enumerate(scenes):
        for _ in range(120):
            said = np.array([[30 - 5 * n + world.draws.normal(), 0, 0]], np.float32)
            world.ask(world.variant(scene, 0.01), "camera", said)
    assert world.alarms == []
    assert world.monitor.status()["near"] > 600


def test_a_constant_stream_and_what_is_no_number_are_not_judged():
    world = World(warm=0)
    for _ in range(300):
        world.ask(np.zeros((1, 16, 16)), "constant")
    image, bad = world.images(1)[0], np.full((1, 3), np.nan, np.float32)
    world.ask(image, "bad", bad)
    world.ask(np.full((1, 16, 16), np.inf), "bad", np.zeros((1, 3), np.float32))
    told = world.monitor.status()
    assert world.alarms == []
    assert told["repeated"] == 299
    assert told["near"] == 0
    assert told["not_judged"] >= 2


def test_nothing_is_lost_while_scales_are_learned_and_an_exempt_client_is_not_judged():
    world = World(warm=0, query_exempt=["trusted"])
    world.ask(world.images(63), "a")
    assert world.monitor.status()["waiting"] == 63
    world.ask(world.images(5), "trusted")
    assert world.monitor.status()["judged"] == 0
    world.ask(world.images(2), "b")
    told = world.monitor.status()
    assert (told["judged"], told["waiting"], told["exempt"]) == (65, 0, 5)


def test_more_near_duplicates_than_an_identity_may_have_are_a_notice_that_does_not_rotate():
    world = World(query_budget=50)
    for image in world.images(20):
        for _ in range(6):
            world.ask(world.variant(image, 0.05), "busy")
    assert world.alarms == [("query_attack", "busy", "budget", False)]


def test_many_users_behind_one_address_raise_no_alarm_and_hide_no_search():
    world = World()
    for image in world.images(400):
        for _ in range(world.draws.integers(1, 4)):
            world.ask(world.variant(image, 0.05), "many-users")
    assert world.alarms == []
    assert world.search(["many-users"]) < 200
    assert {client for _, client, *_ in world.alarms} == {"many-users"}


def test_answers_of_one_class_alone_are_no_alarm():
    world = World()
    for image in world.images(30):
        for _ in range(12):
            said = np.array([[9 + world.draws.normal(), 0, 0]], np.float32)
            world.ask(world.variant(image, 0.05), "one-class", said)
    assert world.alarms == []


def test_a_clock_that_jumps_neither_wipes_out_near_duplicates_nor_counts_them_twice():
    world = World(query_budget=20)
    image = world.images(1)[0]
    for n in range(60):
        world.seconds = 0.0 if n % 2 else 1000.0 + n  # put back, and forth again by minutes
        world.ask(world.variant(image, 0.05), "busy")
    account = world.monitor._accounts.of("busy")
    assert 0 <= account.near <= 59
    assert [one for one in world.alarms if one[2] == "budget"] in (
        [], [("query_attack", "busy", "budget", False)]
    )  # fmt: skip
    world.seconds += 10**9
    assert world.monitor._accounts.of("busy").near == 0


def test_an_evicted_client_has_its_evidence_when_it_comes_back():
    world = World(query_clients=1)
    image = world.images(1)[0]
    for n in range(14):
        world.ask(world.variant(image, 0.05), "slow", np.array([[9.0 - n / 2, 0, 0]], np.float32))
    before = world.monitor._windows["slow"].evidence
    assert before
    world.ask(world.images(1)[0], "other")
    assert list(world.monitor._windows) == ["other"]
    assert world.monitor._accounts.of("slow").evidence == before


def test_after_a_swap_margins_begin_anew():
    world = World()
    image = world.images(1)[0]
    for generation in range(60):
        world.monitor.swapped(generation)
        for _ in range(4):
            noise = world.draws.normal()
            said = np.array([[90 - generation + 0.1 * noise, 0, 0]], np.float32)
            world.ask(world.variant(image), "client", said)
    assert world.alarms == []


def values(draws, count: int) -> np.ndarray:
    return draws.integers(0, 256, size=(count, 32)).astype(np.uint8)


def test_inputs_made_from_each_other_fail_where_those_of_others_do_not():
    draws, copiers = np.random.default_rng(0), Copiers()
    for n, value in enumerate(values(draws, 4000)):
        copiers.add(f"benign-{n % 4}", value, 0)
    assert copiers.failed <= 0.1 * copiers.tests
    seeds, factors = values(draws, 30), []
    for n in range(1000):
        near = np.clip(seeds[n % 30].astype(int) + draws.integers(-9, 10, 32), 0, 255)
        value = near if n % 3 else values(draws, 1)[0]
        tested = copiers.add("copier", value.astype(np.uint8), 0)
        factors += [tested[1]] if tested else []
    assert np.prod(factors) > 10
    assert abnormal(np.full(100, 3.0)) is None
    assert abnormal(np.array([3.0] * 99 + [9.0])) is None  # but for an outlier


def test_a_client_that_asks_for_long_costs_no_more_than_one_that_has_just_come():
    copiers, place = Copiers(), np.arange(128)
    copiers.add("busy", np.zeros(128, np.uint8), 0)
    copiers.add("busy", (10 * (place == 0)).astype(np.uint8), 0)
    for first in range(8):  # sparse inputs: all are as far from the nearest
        for second in range(first + 1, 128):
            sparse = 200 * ((place == first) | (place == second))
            copiers.add("busy", sparse.astype(np.uint8), 0)
    kept = copiers._kept["busy"]
    assert len(kept._growing[0]) == 64
    assert len(kept._far[0]) < 64


def test_a_test_that_others_fail_too_or_that_nobody_has_made_says_nothing():
    assert usual_rate(29, 0) == 1.0
    assert usual_rate(100, 80) > 0.5
    assert 0.15 < usual_rate(100, 0) < 0.2


def test_a_client_is_compared_with_the_one_whose_tests_fail_most():
    copiers, factors = Copiers(), []
    copiers.tests = 1000  # of many who pass
    viewer = copiers._kept["viewer"] = Copying()
    viewer.tests, viewer.failed = 12, 6
    seeds = values(np.random.default_rng(1), 30)
    for n in range(1000):
        spread = 1 + 60 * (n % 5 == 0)
        near = np.clip(seeds[n % 30].astype(int) + spread * (n % 3), 0, 255)
        tested = copiers.add("another", near.astype(np.uint8), 0)
        factors += [tested[1]] if tested else []
    assert factors
    assert set(factors) == {1.0}


def test_copying_is_an_alarm_of_its_own_kind_and_does_not_rotate():
    world = World()
    world.monitor._copiers.tests = 1000
    world.monitor._purses["copying"].held = 1.0
    seeds = world.images(10)
    for n in range(2000):
        image = seeds[n % 10] if n % 3 else world.images(1)[0]
        world.ask(world.variant(image, 0.01), "copier")
        if world.alarms:
            break
    assert world.alarms == [("extraction", "copier", "copying", False)]


def test_it_is_turned_on_by_its_name():
    watched = Watched(IMAGES, MonitorSettings(watch=["queries"]), lambda *_, **__: None)
    assert isinstance(built_in(watched)["queries"], Queries)


def test_a_service_shows_it_requests_and_tells_what_it_counts_to_operators_alone():
    harness = Harness(Options(monitor=("queries",)))
    observers = harness.service._observers
    assert observers is not None
    observers.start()
    inputs = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    observers.offer(inputs, np.ones((2, 3), np.float32), "client")
    harness.tell("swap", {"generation": 2, "before": 1, "reasons": [], "seconds": 0.1})
    observers.stop(60)
    shown = harness.metrics.render(exact=True).decode()
    assert 'g2d_monitor{monitor="queries",value="waiting"} 2.0' in shown
    assert b"g2d_monitor" not in harness.metrics.render()
