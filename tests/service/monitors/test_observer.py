"""Observers see what was answered, hold up nobody, and what they raise stays with the operator."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from types import ModuleType

import httpx
import numpy as np
import pytest

from g2d.errors import SettingsError
from g2d.service.http.options import Options
from g2d.service.monitors.observer import ObserverQueue, Observers, load_observers
from places import example
from stand_ins import ADMIN, Harness, body, wait_for

INFER = "/v2/models/g2d/infer"


class Recorder:
    """Keeps what it is shown; looks at nothing until `go` is set."""

    def __init__(self, alarm: Callable | None = None) -> None:
        self.alarm, self.seen = alarm, []
        self.go, self.entered = threading.Event(), threading.Event()

    def observe(self, inputs, logits, client) -> None:
        self.entered.set()
        assert self.go.wait(120)
        self.seen.append((inputs, logits, client))


class Raising:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def observe(self, inputs, logits, client) -> None:
        raise self.kind(f"a secret input: {inputs}")


def name_them(monkeypatch, **factories) -> tuple[str, ...]:
    """Put factories into a module that can be named as an operator would."""
    module = ModuleType("my_observers")
    vars(module).update(factories)
    monkeypatch.setitem(sys.modules, "my_observers", module)
    return tuple(f"my_observers:{name}" for name in factories)


def run(harness: Harness, work) -> None:
    async def go() -> None:
        async with harness.client() as client:
            await work(client)

    asyncio.run(go())


def rows(n: int) -> np.ndarray:
    return np.zeros((n, 1, 2, 2), np.float32)


def test_what_does_not_fit_is_dropped_and_counted_and_room_comes_back():
    slow, dropped = Recorder(), []
    shown = ObserverQueue({"slow": slow}, dropped.append, pytest.fail, waiting=4)
    shown.start()
    for n in (1, 2, 2, 1, 1):  # the first is being looked at, and still takes its room
        shown.offer(rows(n), rows(n), "c")
    assert dropped == [2, 1]
    slow.go.set()
    wait_for(lambda: len(slow.seen) == 3)
    wait_for(lambda: shown._room == 4)
    shown.offer(rows(4), rows(4), "c")
    shown.stop()
    assert [len(inputs) for inputs, _, _ in slow.seen] == [1, 2, 1, 4]
    assert dropped == [2, 1]


def test_answers_do_not_wait_for_an_observer(monkeypatch):
    slow = Recorder()
    harness = Harness(
        Options(observer=name_them(monkeypatch, slow=lambda alarm: slow), max_waiting=4)
    )

    async def work(client):
        for _ in range(300):  # 256: what one request may hold always fits
            answer = await client.post(INFER, json=body())
            assert answer.status_code == 200
        assert slow.entered.wait(120)
        assert not slow.seen
        scraped = (await client.get("/metrics", headers=ADMIN)).text
        assert "g2d_observer_dropped_inputs_total 44.0" in scraped
        assert "g2d_observer" not in (await client.get("/metrics")).text, "when nobody looks"
        slow.go.set()
        await asyncio.to_thread(wait_for, lambda: len(slow.seen) == 256)

    run(harness, work)


def test_an_observer_sees_inputs_answer_and_client_and_can_change_none(monkeypatch):
    seeing = Recorder()
    seeing.go.set()
    harness = Harness(Options(observer=name_them(monkeypatch, seeing=lambda alarm: seeing)))

    async def work(client):
        answer = (await client.post(INFER, json=body(2))).json()
        transport = httpx.ASGITransport(harness.service, client=("2001:db8::7", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as other:
            await other.post(INFER, json=body())
        await client.post(INFER, json={})  # refused: nothing was answered
        await asyncio.to_thread(wait_for, lambda: len(seeing.seen) == 2)
        (inputs, logits, who), (_, _, network) = seeing.seen
        assert (who, network) == ("127.0.0.1", "2001:db8::/64")
        assert np.array_equal(inputs, np.full((2, 1, 2, 2), 0.5, np.float32))
        assert logits.ravel().tolist() == answer["outputs"][0]["data"]
        for values in (inputs, logits):
            with pytest.raises(ValueError, match="read-only"):
                values[0] = 1

    run(harness, work)
    assert len(seeing.seen) == 2


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_an_observer_raises_is_logged_and_counted_and_others_go_on_looking(monkeypatch, kind):
    seeing = Recorder()
    seeing.go.set()
    names = name_them(monkeypatch, bad=lambda alarm: Raising(kind), good=lambda alarm: seeing)
    harness = Harness(Options(observer=names))

    async def work(client):
        listener = harness.event_log.listen()
        for _ in range(2):
            assert (await client.post(INFER, json=body())).status_code == 200
        await asyncio.to_thread(wait_for, lambda: len(seeing.seen) == 2)
        scraped = (await client.get("/metrics", headers=ADMIN)).text
        assert "g2d_observer_errors_total 2.0" in scraped
        # No client hears of it: neither what watches him, nor which input broke it.
        assert listener.empty()
        for told in (scraped, (await client.get("/status")).text):
            assert "my_observers" not in told

    run(harness, work)
    told = [line for line in harness.lines() if line["event"] == "observer"]
    assert {(line["observer"], line["text"], line["level"]) for line in told} == {
        ("my_observers:bad", f"it raised {kind.__name__}", "warning")
    }
    assert "secret" not in harness.log.getvalue()


def test_an_observer_that_fails_on_every_input_does_not_crowd_out_a_swap(monkeypatch):
    harness = Harness(Options(observer=name_them(monkeypatch, bad=lambda _: Raising(ValueError))))

    async def work(client):
        listener = harness.event_log.listen()
        for _ in range(400):
            await client.post(INFER, json=body())
        await asyncio.to_thread(wait_for, lambda: failures() == 400)
        assert (await client.post("/admin/rotate", headers=ADMIN)).json() == {"generation": 2}
        await asyncio.sleep(0.05)
        told = [listener.get_nowait() for _ in range(listener.qsize())]
        assert any(message.startswith(b"event: swap") for message in told)

    def failures() -> float:
        return harness.metrics.observer_errors.collect()[0].samples[0].value

    run(harness, work)


def test_what_waits_keeps_no_larger_memory_alive_and_what_is_whole_is_not_copied():
    seeing = Recorder()
    seeing.go.set()
    shown = ObserverQueue({"seeing": seeing}, pytest.fail, pytest.fail)
    shown.start()
    whole, batch, body = rows(2), np.zeros((512, 3), np.float32), bytes(4 * 8)
    shown.offer(whole.reshape(2, 4), batch[3:5], "c")
    shown.offer(np.frombuffer(body, np.float32).reshape(2, 4), batch, "c")
    shown.stop()
    (first, part, _), (buffer, all_of_it, _) = seeing.seen
    assert np.shares_memory(first, whole)
    assert np.shares_memory(all_of_it, batch)
    for values in (part, buffer):
        assert owner(values).nbytes == values.nbytes
        assert owner(values).base is None


def owner(values: np.ndarray) -> np.ndarray:
    """The array whose memory it is."""
    return owner(values.base) if isinstance(values.base, np.ndarray) else values


def test_what_is_alarmed_of_before_there_is_a_rotation_is_told_once_there_is(monkeypatch):
    raised: list[tuple] = []

    def early(alarm):
        alarm("drift", "seen while it was made", rotate=False)
        return Recorder(alarm)

    made = Observers(name_them(monkeypatch, early=early))
    made.connect(lambda kind, text, rotate, **_: raised.append((kind, text, rotate)))
    assert raised == [("drift", "seen while it was made", False)]
    made.made["my_observers:early"].alarm("drift", "later")
    assert raised[1:] == [("drift", "later", True)]


def test_without_observers_there_is_no_thread_and_nothing_is_kept():
    harness = Harness()
    assert harness.service._observers is None

    async def work(client):
        assert (await client.post(INFER, json=body())).status_code == 200
        assert "observers" not in {thread.name for thread in threading.enumerate()}
        told = (await client.get("/metrics", headers=ADMIN)).text
        assert "g2d_observer_dropped_inputs_total 0.0" in told

    run(harness, work)


def test_the_end_waits_for_an_observer_only_so_long():
    slow = Recorder()
    shown = ObserverQueue({"slow": slow}, pytest.fail, pytest.fail)
    shown.start()
    shown.offer(rows(1), rows(1), "c")
    shown.stop(seconds=0.05)
    assert not slow.seen
    slow.go.set()
    wait_for(lambda: len(slow.seen) == 1)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my_observers", "expected 'module:factory'"),
        ("no_such_module:x", "no module 'no_such_module'"),
        ("my_observers:lost", "has no 'lost'"),
        ("my_observers:fails", "making it raised KeyError"),
        ("my_observers:ends", "making it raised SystemExit"),
        ("my_observers:other", "made a int, which has no method observe"),
    ],
)
def test_an_observer_that_cannot_be_made_is_refused_before_anything_is_served(
    monkeypatch, name, why
):
    def fails(alarm):
        raise KeyError("no settings")

    name_them(monkeypatch, fails=fails, ends=sys.exit, other=lambda alarm: 3)
    with pytest.raises(SettingsError, match=why):
        load_observers([name], lambda kind, text, rotate=True: None)
    with pytest.raises(SettingsError, match=why):
        Harness(Options(observer=(name,)))


def test_the_example_of_the_docs_rotates_away_from_a_query_attack(monkeypatch):
    module = ModuleType("query_watch")
    monkeypatch.setitem(sys.modules, "query_watch", module)
    exec(compile(example("An observer"), "docs/extending.md", "exec"), vars(module))
    harness = Harness(Options(observer=("query_watch:QueryWatch",)))

    async def work(client):
        for _ in range(4):  # the stand-in's classes are all alike: every answer is unsure
            await client.post(INFER, json=body(250))
        await asyncio.to_thread(wait_for, lambda: harness.live.number > 1)

    run(harness, work)
    status = harness.event_log.snapshot()
    assert status["alarms"] == []  # whoever attacks reads it
    assert status["history"][0]["reasons"] == ["demand"]
    assert [alarm["kind"] for alarm in harness.event_log.alarms()] == ["query_attack"]
    swaps = [line["reasons"] for line in harness.lines() if line["event"] == "swap"]
    assert swaps[0] == ["monitor: query_attack"]
