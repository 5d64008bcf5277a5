"""Leases, rollout and replicas without Ray: scripted coordinators, real vaults."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import g2d
from g2d.errors import RefusedError, VaultError
from g2d.service.cluster.coordinator import Coordinator, Plan
from g2d.service.cluster.lease import (
    AnnouncedGeneration,
    CoordinatorUpdate,
    Follower,
    ReplicaReport,
    Terms,
)
from g2d.service.cluster.mirror import GenerationBytes, Mirror, MirrorLoader, identify, pack
from g2d.service.cluster.replica import AwayError, LeasedApp, ReplicaSpec, assemble
from g2d.service.cluster.rollout import RolloutLoader, Roster
from g2d.service.http.limits import AdminToken
from g2d.service.http.options import Options
from g2d.settings import Settings
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault
from stand_ins import Fake, into, wait_for

# --- terms and leases ----------------------------------------------------------------------------


@pytest.mark.parametrize("every", [4.0, 10.0, 60.0, 86_400.0])
def test_within_a_period_all_have_followed_or_answer_nobody(every):
    terms = Terms.of(every)
    assert terms.prepare + terms.lease <= 0.8 * every
    assert terms.beat < terms.lease / 2
    assert Terms.of(every, 3.0).lease == 3.0


numbers = st.integers(1, 6)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("hear"), numbers, numbers, st.floats(0.0, 5.0)),
        st.tuples(st.just("load"), numbers, numbers, st.floats(0.0, 5.0)),
    ),
    max_size=40,
)


@given(steps)
def test_a_follower_never_goes_back_and_answers_only_with_a_lease(script):
    follower, now, asked_last = Follower(Terms(lease=4.0), 1), 0.0, -9.0
    follower.loaded = 1
    wanted: set[int] = set()
    for what, live, spare, waited in script:
        before = (follower.live, follower.known)
        asked, now = now, now + waited
        if what == "hear":
            wanted.add(follower.hear(live, spare, asked))
            asked_last = asked if live >= before[1] else asked_last
        elif live in wanted:  # only what was asked for is loaded
            follower.load(live)
        assert (follower.live, follower.known) >= before
        assert follower.live <= follower.known
        if follower.may_answer(now):
            assert follower.live == follower.known
            assert now < asked_last + 4.0


def test_news_over_a_vault_that_was_put_back_extend_nothing():
    follower = Follower(Terms(lease=4.0), 3)
    assert follower.hear(3, 0, 0.0) == 0
    assert follower.may_answer(3.9)
    assert follower.hear(2, 0, 3.0) == 0
    assert not follower.may_answer(4.0)


def test_a_refused_spare_is_not_fetched_again_unless_it_is_live():
    follower = Follower(Terms(), 1)
    assert follower.hear(1, 2, 0.0) == 2
    follower.refuse(2, "no")
    assert follower.hear(1, 2, 0.1) == 0
    assert follower.hear(2, 0, 0.2) == 2
    assert not follower.may_answer(0.3)
    follower.load(2)
    assert follower.may_answer(0.3)


def test_a_spare_that_was_given_up_does_not_bar_an_older_one():
    """A coordinator that starts again may judge anew what is kept, and take a lower number."""
    follower = Follower(Terms(), 1)
    assert follower.hear(1, 5, 0.0) == 5
    follower.load(5)
    assert follower.hear(1, 4, 0.1) == 4
    follower.load(4)
    assert follower.hear(4, 0, 0.2) == 0
    assert follower.may_answer(0.3)
    made, _ = roster(Terms())
    made.greet(ReplicaReport("a", live=1, loaded=5))
    assert made.pending(4) == ["a"]


# --- the rollout ---------------------------------------------------------------------------------


def roster(terms: Terms) -> tuple[Roster, list[tuple[str, dict]]]:
    told: list[tuple[str, dict]] = []
    return Roster(terms, into(told)), told


def test_a_commit_waits_until_all_have_loaded():
    made, told = roster(Terms(prepare=20.0))
    announced: list[int] = []
    loader = RolloutLoader(Fake(), made, announced.append, lambda: False)
    for name in "ab":
        made.greet(ReplicaReport(name, live=1))
    assert loader.load(2, 1).number == 2
    assert announced == [2]
    done = threading.Thread(target=loader.verify, args=(2, 1))
    done.start()
    made.greet(ReplicaReport("a", live=1, loaded=2))
    time.sleep(0.05)
    assert done.is_alive()
    made.greet(ReplicaReport("b", live=1, loaded=2))
    done.join(10)
    assert not done.is_alive()
    made.roll(2)
    made.greet(ReplicaReport("a", live=2))
    assert not any(event == "rolled out" for event, _ in told)
    made.greet(ReplicaReport("b", live=2))
    assert told[-1][1]["replicas"] == 2
    assert made.await_rolled(2)


def test_one_that_is_late_or_refuses_holds_nobody_up_but_all_do():
    made, told = roster(Terms(prepare=0.1))
    made.greet(ReplicaReport("a", live=1, loaded=2))
    made.greet(ReplicaReport("late", live=1))
    made.greet(ReplicaReport("bad", live=1, refused={2: "digest"}))
    made.await_loaded(2, lambda: False)
    texts = " ".join(facts.get("text", "") for _, facts in told)
    assert "bad refused: digest" in texts
    assert "not loaded by 1 of 3" in texts
    for name in ("a", "late"):
        made.leave(name)
    with pytest.raises(RefusedError, match="every replica refused generation 2: digest"):
        made.await_loaded(2, lambda: False)


def test_one_that_is_away_is_forgotten_after_its_lease():
    now = [0.0]
    made = Roster(Terms(lease=4.0, beat=1.0), lambda *_: None, lambda: now[0])
    made.greet(ReplicaReport("a", live=1))
    assert made.summary()["count"] == 1
    now[0] = 5.1
    made.await_loaded(2, lambda: False)
    assert made.summary()["count"] == 0


# --- the mirror ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def signed(tiny_vault: Path, key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault of three generations; 2 and 3 are signed, 2 is live."""
    folder = tmp_path_factory.mktemp("signed")
    vault = Path(shutil.copytree(tiny_vault, folder / "vault"))
    key.write(folder / "k.key")
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text)
        opened.write_settings(settings.override(signing__key=str(folder / "k.key")).to_toml())
    with g2d.Defence.open(vault) as defence:
        defence.generate()
        defence.generate(activate=False)
    return vault


def parcels(vault: Path) -> dict[int, GenerationBytes]:
    with Vault.open(vault) as opened:
        return {number: pack(opened, number) for number in (1, 2, 3)}


def mirrored(vault: Path, parcel: GenerationBytes) -> Mirror:
    with Vault.open(vault) as opened:
        mirror = Mirror.make(identify(opened))
    mirror.take(parcel, parcel.digest)
    mirror.activate(parcel.number)
    return mirror


def taken(mirror: Mirror, loader: MirrorLoader, parcel: GenerationBytes) -> None:
    mirror.take(parcel, parcel.digest)
    loader.load(3, 2)


def test_trusted_keys_travel(key):
    there = pickle.loads(pickle.dumps(key.public))
    assert there.fingerprints == key.public.fingerprints


@pytest.mark.parametrize("trusting", [False, True])
def test_a_mirror_serves_what_the_vault_does_and_refuses_the_rest(signed, key, trusting):
    made = parcels(signed)
    mirror = mirrored(signed, made[2])
    folder = mirror.path.parent
    try:
        loader = MirrorLoader(mirror.path, "g2d", key=key.public if trusting else None)
        assert loader.first()[0].number == 2
        for spoilt in (
            replace(made[3], weights=made[3].weights[:-1] + b"\0"),
            replace(made[3], weights=made[2].weights),
            replace(made[3], manifest=made[3].manifest.replace(b'"number": 3', b'"number": 4')),
            replace(made[2], number=3),
            *([replace(made[3], signature=bytes(64)), replace(made[3], signature=b"")] * trusting),
        ):
            with pytest.raises(VaultError):
                taken(mirror, loader, spoilt)
        with pytest.raises(RefusedError, match="changed on its way"):
            mirror.take(made[3], made[2].digest)
        mirror.take(made[3], made[3].digest)
        assert loader.load(3, 2).number == 3
        mirror.retire(3)
        assert [g.number for g in mirror.generations()] == [3]
        assert [p.name for p in (mirror.path / "generations").iterdir()] == ["000003"]
        assert loader.again(3).number == 3
        loader.close()
    finally:
        mirror.remove()
    assert not folder.exists()


# --- the coordinator -----------------------------------------------------------------------------


def test_a_coordinator_announces_what_is_live_where_its_store_put_it(signed, key, monkeypatch):
    monkeypatch.setattr("g2d.service.assembly.Worker", lambda *_: Fake(live=2))
    stored: list[GenerationBytes] = []

    def store(parcel: GenerationBytes) -> str:
        stored.append(parcel)
        return f"at {len(stored)}"

    coordinator = Coordinator(Plan(signed, Options(), Terms(beat=0.1), key=key.public), store)
    try:
        assert asyncio.run(coordinator.start()) == ("", 2)
        news = asyncio.run(coordinator.watch(ReplicaReport("a replica")))
    finally:
        asyncio.run(coordinator.stop())
    assert stored[0].number == 2
    assert news.live == AnnouncedGeneration(2, stored[0].digest, "at 1")


def test_a_coordinator_whose_clock_was_put_back_alarms_of_the_future(signed, key, monkeypatch):
    monkeypatch.setattr("g2d.service.assembly.Worker", lambda *_: Fake(live=2))
    monkeypatch.setattr("time.time", lambda now=time.time(): now - 7 * 86_400)  # noqa: B008
    coordinator = Coordinator(Plan(signed, Options(), Terms(beat=0.1), key=key.public), id)
    try:
        news = asyncio.run(coordinator.watch(ReplicaReport("a replica")))
    finally:
        asyncio.run(coordinator.stop())
    assert ("alarm", "future") in [
        (told.event.name, told.event.facts().get("kind")) for told in news.events
    ]


# --- a replica -----------------------------------------------------------------------------------

TERMS = Terms(lease=0.6, beat=0.05, retry=0.02, prepare=0.2)


class Script:
    """A line to a coordinator that says what the test wants it to say."""

    def __init__(self, vault: Path) -> None:
        self.parcels = parcels(vault)
        with Vault.open(vault) as opened:
            self.of = identify(opened)
        self.live, self.spare, self.away, self.lost = 1, 0, False, False
        self.hello = ReplicaReport("")
        self.sent: list[tuple] = []

    def identity(self):
        return self.of

    def watch(self, hello: ReplicaReport, patience: float) -> CoordinatorUpdate:
        self.hello = hello if hello.replica else self.hello
        time.sleep(0.01)
        if self.away:
            raise AwayError("away")
        spare = self.announced(self.spare) if self.spare else None
        return CoordinatorUpdate("t", 0, 0, self.announced(self.live), spare)

    def announced(self, number: int) -> AnnouncedGeneration:
        return AnnouncedGeneration(number, self.parcels[number].digest, number)

    def fetch(self, announced: AnnouncedGeneration, patience: float) -> GenerationBytes:
        if self.lost:
            raise AwayError("lost")
        return self.parcels[announced.place]

    def send(self, call: str, *arguments) -> Future:
        self.sent.append((call, *arguments))
        if call == "note":
            self.hello = arguments[0]
        answer: Future = Future()
        answer.set_result(7 if call == "rotate" else None)
        return answer


@contextlib.asynccontextmanager
async def client(app: LeasedApp):
    said: asyncio.Queue = asyncio.Queue()
    heard: asyncio.Queue = asyncio.Queue()
    life = asyncio.ensure_future(app({"type": "lifespan"}, said.get, heard.put))
    said.put_nowait({})
    await heard.get()
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as made:
            yield made
    finally:
        said.put_nowait({})
        await life


def drive(script: Script, work: Callable, token: bytes | None = None) -> None:
    async def run() -> None:
        app = assemble(
            script, ReplicaSpec(Options(allow_host=("g2d",)), TERMS, AdminToken(token)), "r1"
        )
        async with client(app) as made:
            await work(made)

    asyncio.run(run())


async def until(what, seconds: float = 20.0) -> None:
    await asyncio.to_thread(wait_for, what, seconds)


async def infer(client: httpx.AsyncClient, x: np.ndarray) -> httpx.Response:
    tensor = {"name": "input", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    return await client.post("/v2/models/g2d/infer", json={"inputs": [tensor]})


@pytest.fixture
def x(digits: g2d.Task) -> np.ndarray:
    return digits.splits.test.x[:3].numpy()


def test_a_replica_loads_ahead_swaps_when_told_and_says_so(signed, x):
    script = Script(signed)

    async def work(client) -> None:
        first = await infer(client, x)
        assert first.headers["g2d-replica"] == "r1"
        assert first.json()["parameters"] == {"generation": 1}
        script.spare = 2
        await until(lambda: script.hello.loaded == 2)
        assert (await infer(client, x)).json()["parameters"] == {"generation": 1}
        script.live, script.spare = 2, 0
        await until(lambda: script.hello.live == 2)
        second = await infer(client, x)
        assert second.json()["parameters"] == {"generation": 2}
        with g2d.Defence.open(signed, write=False) as defence:
            logits = defence.generation(2).model()(torch.from_numpy(x))
        assert np.allclose(second.json()["outputs"][0]["data"], logits.detach().ravel(), atol=1e-5)
        assert (await client.get("/v2/models/g2d/versions/1")).status_code == 404
        status = (await client.get("/status")).json()["rotation"]
        assert status["replica"]["answers"]
        assert b"g2d_generation 2.0" in (await client.get("/metrics")).content

    drive(script, work)
    assert ("leave", "r1") in script.sent


def test_a_replica_that_was_away_refuses_what_is_retired_and_comes_back(signed, x):
    script = Script(signed)

    async def work(client) -> None:
        assert (await infer(client, x)).status_code == 200
        began, script.away = time.monotonic(), True
        while (await infer(client, x)).status_code == 200:
            assert time.monotonic() - began < TERMS.lease + 5
            await asyncio.sleep(0.01)
        refused = await infer(client, x)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/health/live")).status_code == 200
        script.live, script.lost, script.away = 2, True, False  # retired meanwhile; 2 is not here
        await asyncio.sleep(0.3)
        assert (await infer(client, x)).status_code == 503
        script.lost = False
        await until(lambda: script.hello.live == 2)
        assert (await infer(client, x)).json()["parameters"] == {"generation": 2}
        script.live = 1  # a coordinator over a vault that was put back
        await asyncio.sleep(TERMS.lease + 0.2)
        assert (await infer(client, x)).status_code == 503

    drive(script, work)


def test_an_answer_that_outlives_the_lease_does_not_leave(signed):
    class Slow:
        async def __call__(self, scope, receive, send) -> None:
            await asyncio.sleep(0.05)
            link.answers = False
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"stale"})

    class GenerationSync:
        answers = True

        def may_answer(self) -> bool:
            return self.answers

    link = GenerationSync()

    async def run() -> None:
        transport = httpx.ASGITransport(LeasedApp(Slow(), link, "r"))
        async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as client:
            answer = await client.get("/v2/models/g2d")
            assert answer.status_code == 503
            assert b"stale" not in answer.content

    asyncio.run(run())


def test_a_spare_that_was_changed_on_its_way_is_refused_and_the_live_one_stays(signed, x):
    script = Script(signed)
    sound = script.parcels[2]
    script.parcels[2] = replace(sound, weights=sound.weights[:-1] + b"\1")

    async def work(client) -> None:
        script.spare = 2
        await until(lambda: 2 in script.hello.refused)
        assert (await infer(client, x)).json()["parameters"] == {"generation": 1}
        alarms = (await client.get("/status")).json()["alarms"]
        assert [alarm["kind"] for alarm in alarms] == ["refused"]
        script.parcels[2], script.live = sound, 2
        await until(lambda: script.hello.live == 2)
        assert not script.hello.refused

    drive(script, work)


def test_admin_calls_reach_the_coordinator(signed):
    script = Script(signed)
    token = b"a-token-of-the-tests"

    async def work(client) -> None:
        assert (await client.post("/admin/rotate")).status_code == 401
        headers = {"authorization": f"Bearer {token.decode()}"}
        answer = await client.post("/admin/rotate", headers=headers)
        assert answer.json() == {"generation": 7}
        await client.post("/admin/pause", headers=headers)
        assert ("pause", True) in script.sent

    drive(script, work, token)
