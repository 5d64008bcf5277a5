"""Policies as clients meet them: whose answer, under which name, and what nobody is told."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import numpy as np
import pytest

from g2d.errors import SettingsError
from g2d.rotation.scheduler import Triggers
from g2d.rotation.snapshot import Live, Snapshot
from g2d.service.http.options import Options
from g2d.settings import ServeSettings
from stand_ins import ADMIN, INFER, Harness, body, numbered, run

PEOPLE = tuple(f"192.0.2.{k}" for k in range(1, 13))
TAG = re.compile(r"t[0-9a-f]{16}")


def served(policy: str, options: Options | None = None, **settings) -> Harness:
    now = settings.pop("now", lambda: 0.0)
    chosen = ServeSettings(**({"policy": policy, "period": 0.0} | settings))
    return Harness(options, serving=chosen, now=now)


def asking(harness: Harness, address: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(harness.service, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://g2d")


async def seen(harness: Harness, address: str, **changes) -> tuple[float, str]:
    """Which generation answers somebody, as only its scores betray here, and under what tag."""
    async with asking(harness, address) as client:
        told = (await client.post(INFER, json=body(**changes))).json()
    assert told["parameters"] == {"generation": told["model_version"]}
    return told["outputs"][0]["data"][0], told["model_version"]


async def rotate(client, times: int = 1) -> None:
    for _ in range(times):
        assert (await client.post("/admin/rotate", headers=ADMIN)).status_code == 200


def test_sticky_clients_keep_theirs_and_move_upwards_and_tags_change_when_they_move():
    harness = served("sticky")

    async def work(client):
        await rotate(client, 2)
        before = {who: await seen(harness, who) for who in PEOPLE}
        assert {number for number, _ in before.values()} == {1, 2, 3}
        for newest in (4, 5, 6):
            await rotate(client)
            for who, (number, tag) in before.items():
                again, name = await seen(harness, who)
                assert newest - 2 <= again <= newest
                assert again >= number
                assert (name == tag) == (again == number)
                assert TAG.fullmatch(name)
                before[who] = again, name
        assert len({tag for _, tag in before.values()}) == len(PEOPLE)

    run(harness, work)


def test_a_version_is_ones_own_tag_and_neither_a_number_nor_anothers():
    harness = served("sticky")

    async def work(client):
        await rotate(client, 2)
        (_, own), (_, other) = [await seen(harness, who) for who in PEOPLE[:2]]
        async with asking(harness, PEOPLE[0]) as ann:
            about = (await ann.get("/v2/models/g2d")).json()
            assert about["versions"] == [own]
            assert (await ann.get(f"/v2/models/g2d/versions/{own}")).json() == about
            asked = await ann.post(f"/v2/models/g2d/versions/{own}/infer", json=body())
            assert asked.json()["model_version"] == own
            for wrong in (other, "3", "2"):
                for refused in (
                    await ann.post(f"/v2/models/g2d/versions/{wrong}/infer", json=body()),
                    await ann.get(f"/v2/models/g2d/versions/{wrong}"),
                ):
                    assert refused.status_code == 404
                    said = f"version {wrong!r} is not live; {own} is"
                    assert refused.json() == {"error": said}
            index = (await ann.post("/v2/repository/index")).json()
            assert index[0]["version"] == own
            assert (await ann.get("/v2/models/g2d/stats")).json()["model_stats"][0]["version"] == (
                own
            )

    run(harness, work)


def test_an_alarm_pins_its_client_while_the_others_move_and_only_for_so_long():
    seconds = [0.0]
    harness = served("sticky", hold=100.0, now=lambda: seconds[0])
    mallory = PEOPLE[0]

    async def work(client):
        await rotate(client, 2)
        own = await seen(harness, mallory)
        harness.rotation.alarm("query_attack", "many alike", rotate=False, client=mallory)
        for _ in range(4):
            await rotate(client)
            assert await seen(harness, mallory) == own
        for who in PEOPLE[1:]:
            assert (await seen(harness, who))[0] >= 5
        assert [each.number for each in harness.live.snapshots] == [own[0], 5, 6, 7]
        told = (await client.get("/status", headers=ADMIN)).json()["serving"]
        assert told["live"] == [5, 6, 7]
        assert told["held"] == [own[0]]
        pin = {"why": "query_attack", "generation": own[0], "seconds": 100.0}
        assert told["pinned"] == [{"client": mallory} | pin]
        watched = (await client.get("/alarms", headers=ADMIN)).json()["pinned"]
        assert watched == told["pinned"]
        seconds[0] = 100.0
        assert (await seen(harness, mallory))[0] >= 5
        harness.live.tend(0.0)
        assert len(harness.live.snapshots) == 3

    run(harness, work)


def test_clients_are_told_nothing_of_rotations_and_operators_all():
    harness = served("sticky")

    async def work(client):
        empty = (await client.get("/status")).json()
        lines = (await client.get("/metrics")).text
        await rotate(client, 3)
        harness.rotation.alarm("integrity", "generation 4 changed in memory", rotate=False)
        told = (await client.get("/status")).json()
        moving = ("now", "traffic")
        assert {k: v for k, v in told.items() if k not in moving} == {
            k: v for k, v in empty.items() if k not in moving
        }
        assert told["hidden"] is True
        assert told["history"] == told["alarms"] == []
        names = {line.split("{")[0].split()[0] for line in (await client.get("/metrics")).text
                 .splitlines() if not line.startswith("#")}  # fmt: skip
        assert names >= {line.split("{")[0].split()[0] for line in lines.splitlines()
                         if not line.startswith("#")}  # fmt: skip
        assert not [name for name in names if "generation" in name or "swap" in name]
        assert "g2d_inputs_total" in names
        known = (await client.get("/status", headers=ADMIN)).json()
        assert known["rotation"]["generation"] == 4
        assert [record["generation"] for record in known["history"]] == [2, 3, 4]
        assert known["serving"]["policy"] == "sticky"
        assert "g2d_generation 4.0" in (await client.get("/metrics", headers=ADMIN)).text
        assert (
            await client.get("/status", headers={"authorization": "Bearer no"})
        ).status_code == (401)

    run(harness, work)


def test_a_stream_of_events_tells_clients_of_no_swap():
    harness = served("vote")

    async def work(client):
        loud, quiet = (
            harness.event_log.listen("a", True),
            harness.event_log.listen("b", False, True),
        )
        await rotate(client)
        heard = []
        while b"event: swap" not in (message := await loud.get()):
            heard.append(message)
        await asyncio.sleep(0)
        assert quiet.empty()
        harness.event_log.close()
        assert await quiet.get() is None, "it hears of the end"

    run(harness, work)


def test_why_it_is_not_ready_names_no_generation_to_clients():
    harness = served("sticky")

    async def work(client):
        harness.fake.committed = 9
        harness.fake.refuses = ["expired"]
        harness.rotation.watch()
        refused = await client.get("/v2/models/g2d/ready")
        assert refused.status_code == 503
        assert refused.json() == {"error": "it is not ready"}

    run(harness, work)


def one_hot(number: int) -> Snapshot:
    """Odd generations say class 1 a little, even ones class 2 loudly."""

    def predict(x: np.ndarray) -> np.ndarray:
        if (x == 666).any() and number == 2:
            raise ValueError("secret input")
        return np.float32([[0, 1, 0] if number % 2 else [0, 0, 9]] * len(x))

    return Snapshot(number, predict)


@pytest.mark.parametrize("answers", ["scores", "label"])
def test_a_vote_is_the_mean_of_softmaxes_or_the_majority(answers):
    harness = served("vote", answers=answers)
    harness.fake.load = lambda number, after: one_hot(number)
    harness.live.heal(one_hot(1))

    async def work(client):
        await rotate(client, 2)
        told = (await client.post(INFER, json=body(2))).json()
        (output,) = told["outputs"]
        if answers == "label":
            assert output == {"name": "label", "datatype": "INT64", "shape": [2, 1], "data": [1, 1]}
        else:
            found = np.exp(np.reshape(output["data"], (2, 3)))
            three = np.array([one_hot(n).predict(np.zeros(1))[0] for n in (1, 2, 3)], np.float64)
            right = (np.exp(three) / np.exp(three).sum(1, keepdims=True)).mean(0)
            assert np.allclose(found, right, atol=1e-6)
            assert found.argmax() == 2, "the loud one"
        before = told["model_version"]
        await rotate(client)
        assert (await client.post(INFER, json=body())).json()["model_version"] == before
        failed = await client.post(INFER, json=body(data=[666] * 4))
        assert (failed.status_code, "secret" in failed.text) == (500, False)

    run(harness, work)


def test_random_and_keyed_answer_wholly_from_one_under_a_tag_that_never_changes():
    async def work(harness, client, same):
        await rotate(client, 2)
        found = [await seen(harness, PEOPLE[0], data=[0.5] * 4) for _ in range(40)]
        assert {number for number, _ in found} <= {1, 2, 3}
        assert (len({number for number, _ in found}) == 1) is same
        assert len({tag for _, tag in found}) == 1
        other = await seen(harness, PEOPLE[1], data=[0.5] * 4)
        assert other[1] != found[0][1]
        assert not same or other[0] == found[0][0]

    for policy, same in (("random", False), ("keyed", True)):
        harness = served(policy)
        run(harness, lambda client, h=harness, s=same: work(h, client, s))


def test_batches_of_many_clients_mix_nothing():
    harness = served("sticky", Options(max_batch=64))

    async def work(client):
        await rotate(client, 2)
        alone = {who: (await seen(harness, who))[0] for who in PEOPLE}

        async def ask(who: str, k: int) -> None:
            rows, own = k % 4 + 1, (k + 1) / 64
            async with asking(harness, who) as one:
                told = (await one.post(INFER, json=body(rows, data=[own] * 4 * rows))).json()
            assert told["outputs"][0]["data"] == [2 * own * alone[who]] * 3 * rows

        await asyncio.gather(*(ask(who, k) for k, who in enumerate(PEOPLE * 5)))

    run(harness, work)


def test_no_client_goes_back_and_no_answer_mixes_while_it_rotates_all_the_time():
    chosen = ServeSettings(policy="sticky", period=0.0)
    harness = Harness(serving=chosen, triggers=Triggers(every=0.004, jitter=0.5))

    async def asks(who: str, place: int, answers: list[int]) -> None:
        rows, tags = place % 5 + 1, set()
        async with asking(harness, who) as one:
            while harness.live.number < 30:
                newest = harness.live.number
                told = (await one.post(INFER, json=body(rows))).json()
                (number,) = {*told["outputs"][0]["data"]}
                assert number >= newest - 2, "retired before it was asked"
                tags.add((told["model_version"], number))
                answers.append(number)
        assert len({tag for tag, _ in tags}) == len({number for _, number in tags}) == len(tags)

    async def work(_):
        seen = [[] for _ in PEOPLE]
        await asyncio.gather(*(asks(who, k, seen[k]) for k, who in enumerate(PEOPLE)))
        assert all(numbers == sorted(numbers) for numbers in seen), "a client went back"
        assert len({n for numbers in seen for n in numbers}) > 1

    run(harness, work)


def test_answers_are_labels_or_rounded_where_that_is_asked_for_under_any_policy():
    label = Harness(Options(answers="label"))

    async def work(client):
        about = (await client.get("/v2/models/g2d")).json()
        assert about["outputs"] == [{"name": "label", "datatype": "INT64", "shape": [-1, 1]}]
        config = (await client.get("/v2/models/g2d/config")).json()
        assert config["output"] == [{"name": "label", "data_type": "TYPE_INT64", "dims": [1]}]
        told = await client.post(INFER, json=body(2) | {"outputs": [{"name": "label",
                                 "parameters": {"binary_data": True}}]})  # fmt: skip
        head = told.content[: int(told.headers["inference-header-content-length"])]
        assert json.loads(head)["outputs"][0]["parameters"] == {"binary_data_size": 16}
        assert np.frombuffer(told.content[len(head) :], "<i8").tolist() == [0, 0]
        assert json.loads(head)["parameters"] == {"generation": 1}, "the policy is global"
        refused = await client.post(INFER, json=body() | {"outputs": [{"name": "logits"}]})
        assert (refused.status_code, refused.json()) == (
            400,
            {"error": "the one output is 'label'"},
        )

    run(label, work)
    rounds = Harness(serving=ServeSettings(answers="rounded", decimals=1))

    async def rounded(client):
        for rows in (1, 20):
            data = [0.123] * 4 * rows
            told = (await client.post(INFER, json=body(rows, data=data))).json()
            first = told["outputs"][0]["data"][:3]
            assert np.allclose(first, [0.3, 0.2, 0.2]), "the label is a step above its equals"

    run(rounds, rounded)


def test_what_cannot_be_served_is_refused_in_one_line():
    with pytest.raises(SettingsError, match=r"policy must be one of .*not 'stiky'"):
        Options(policy="stiky")
    with pytest.raises(SettingsError, match="answers must be one of"):
        Options(answers="logits")
    assert Options(policy="vote", live=5).serving(ServeSettings()).live == 5
    assert Options().serving(ServeSettings(policy="vote")).policy == "vote"
    with pytest.raises(SettingsError, match=r"only the newest generation is live: .*--policy"):
        Harness(Options(policy="sticky"))  # as a replica of a cluster has it
    assert Live(numbered(1)).snapshots[0].number == 1


def test_others_leave_a_suspects_generation_at_the_next_swap_and_their_tags_tell_no_other_moment():
    harness = served("sticky", live=3)
    for number in (2, 3):
        harness.live.swap(numbered(number))

    async def work(client):
        before = {who: await seen(harness, who) for who in PEOPLE}
        newest = [who for who in PEOPLE if before[who][0] == 3.0]
        suspect, *others = newest
        assert others, "somebody shares its generation"
        harness.rotation.alarm("query_attack", "t", rotate=False, client=suspect)
        assert {who: await seen(harness, who) for who in PEOPLE} == before
        harness.live.swap(numbered(4))
        after = {who: await seen(harness, who) for who in PEOPLE}
        assert after[suspect] == before[suspect]
        assert {after[who][0] for who in others} == {4.0}
        assert 3.0 not in {after[who][0] for who in PEOPLE if who != suspect}
        told = (await client.get("/status", headers=ADMIN)).json()["serving"]
        assert (told["live"], told["apart"]) == ([2, 3, 4], [3])
        assert "serving" not in (await client.get("/status")).json()

    run(harness, work)
