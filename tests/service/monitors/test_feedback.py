"""Labels that come late: what is kept of them, what they show, and who may give them."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
from scipy.stats import binom

from g2d.errors import G2DError
from g2d.rotation.snapshot import Live, Snapshot
from g2d.service.http.protocol import Model
from g2d.service.monitors.feedback.bound import log_evidence, upper_bound
from g2d.service.monitors.feedback.judge import FeedbackJudge
from g2d.service.monitors.feedback.log import FeedbackLog, log_path
from g2d.settings import MonitorSettings
from stand_ins import ADMIN, MODEL, Harness, body, run

PLAIN = Model("g2d", (2,), "float32", 2)


def inputs(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + 2 * count, dtype="float32").reshape(count, 2) / 7


def log(tmp_path, **more) -> FeedbackLog:
    given = {"rows": 100, "days": 30.0} | more
    return FeedbackLog(tmp_path / "log.jsonl", PLAIN, **given)


def lines(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


# --- the bound -----------------------------------------------------------------------------------


def test_the_evidence_against_the_truth_is_one_in_the_mean():
    for n, m in ((1, 0.3), (7, 0.9), (40, 0.99)):
        k = np.arange(n + 1)
        mean = sum(
            p * np.exp(log_evidence(int(i), n, m))
            for i, p in zip(k, binom.pmf(k, n, m), strict=True)
        )
        assert mean == pytest.approx(1.0)


def test_the_bound_holds_at_all_times_and_closes_in():
    chance, alpha, truth = np.random.default_rng(0), 0.05, 0.9
    fell = 0
    for _ in range(200):
        right = np.cumsum(chance.random(300) < truth)
        known = range(10, 300, 10)
        fell += any(upper_bound(int(right[n - 1]), n, alpha) < truth for n in known)
    assert fell <= 200 * alpha
    bounds = [upper_bound(int(0.9 * n), n, alpha) for n in (10, 100, 1000, 10_000)]
    assert bounds == sorted(bounds, reverse=True)
    assert 0.9 < bounds[-1] < 0.915
    assert upper_bound(0, 0, alpha) == upper_bound(5, 5, alpha) == 1.0
    assert upper_bound(0, 50, 1e-3) < 0.3


# --- the log -------------------------------------------------------------------------------------


def test_each_input_is_kept_once_for_its_owner_alone_and_nothing_of_who_sent_it(tmp_path):
    made = log(tmp_path, now=lambda: 1234.9)
    assert made.add(inputs(3), np.array([1, 0, 1])) == [0, 1, 2]
    assert made.add(inputs(2, first=4), np.array([0, 0])) == [1]  # the first was there
    head, *rows = lines(tmp_path)
    assert head == {"format": "g2d feedback 1", "shape": [2], "dtype": "float32", "classes": 2}
    assert [set(row) for row in rows] == [{"x", "y", "at"}] * 4
    kept = np.array([row["x"] for row in rows], "float32")
    assert kept.tobytes() == inputs(4).tobytes()  # to the bit
    assert [row["y"] for row in rows] == [1, 0, 1, 0]
    assert {row["at"] for row in rows} == {1234}
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "log.jsonl").stat().st_mode) == 0o600


def test_it_is_bounded_by_rows_and_by_days(tmp_path):
    clock = [0.0]
    made = log(tmp_path, rows=8, days=1.0, now=lambda: clock[0])
    for n in range(30):
        made.add(inputs(1, first=2 * n), np.array([0]))
        assert len(made) <= 8
    newest = lines(tmp_path)[-1]["x"]
    assert np.float32(newest[0]) == inputs(1, first=58)[0, 0]
    clock[0] = 90_000.0
    made.add(inputs(1, first=1000), np.array([1]))
    assert len(made) == 1
    assert len(lines(tmp_path)) == 2
    made.close()
    clock[0] = 900_000.0
    assert len(log(tmp_path, days=1.0, now=lambda: clock[0])) == 0  # a start forgets as well


def test_a_clock_that_jumps_loses_no_label_for_a_while_and_keeps_none_for_ever(tmp_path):
    clock = [1_000_000.0]
    made = log(tmp_path, days=10.0, now=lambda: clock[0])
    made.add(inputs(2), np.array([0, 1]))
    clock[0] -= 3600.0  # an hour back: no row is too old, none from too far ahead
    assert made.add(inputs(2, first=4), np.array([0, 1])) == [0, 1]
    assert len(made) == 4
    clock[0] += 86_400.0 * 3650  # ten years ahead: all is too old, and the next rows are of then
    assert made.add(inputs(1, first=20), np.array([0])) == [0]
    assert len(made) == 1
    clock[0] = 1_000_000.0  # and put right: those would else be kept for ten years
    assert made.add(inputs(1, first=30), np.array([1])) == [0]
    assert len(made) == len(lines(tmp_path)) - 1 == 1


def test_a_restart_in_the_middle_of_a_line_goes_on(tmp_path):
    made = log(tmp_path)
    made.add(inputs(3), np.array([0, 1, 0]))
    made.close()
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = log(tmp_path)
    assert len(again) == 2
    assert again.add(inputs(3), np.array([0, 1, 0])) == [2]
    assert len(lines(tmp_path)) == 4


def test_a_full_disk_leaves_no_half_line_for_the_next_to_join(tmp_path, monkeypatch):
    made, write = log(tmp_path), os.write
    made.add(inputs(1), np.array([0]))
    before = (tmp_path / "log.jsonl").read_bytes()

    def half(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: len(data) // 2])

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    monkeypatch.setattr("g2d.service.monitors.feedback.log.replace_file", full)
    with pytest.raises(G2DError, match="cannot be kept"):
        made.add(inputs(2, first=2), np.array([0, 1]))
    monkeypatch.undo()
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert len(made) == 1
    assert made.add(inputs(2, first=2), np.array([0, 1])) == [0, 1]
    assert [row["y"] for row in lines(tmp_path)[1:]] == [0, 0, 1]


def test_rows_grow_old_without_the_whole_log_being_written_for_each(tmp_path, monkeypatch):
    clock, written = [0.0], []
    made = log(tmp_path, rows=1000, days=1.0, now=lambda: clock[0])
    rewrite = made._rewrite
    monkeypatch.setattr(made, "_rewrite", lambda *a: (written.append(a), rewrite(*a)))
    for n in range(400):
        clock[0] = 864.0 * n  # a hundred a day
        made.add(inputs(1, first=2 * n), np.array([0]))
        oldest = min(row["at"] for row in lines(tmp_path)[1:])
        assert oldest >= clock[0] - 86_401
    assert len(written) < 60
    assert len(made) > 80  # what is young enough is there


def test_a_log_that_somebody_deletes_is_begun_anew_and_one_is_never_longer_than_allowed(tmp_path):
    made = log(tmp_path, rows=3)
    made.add(inputs(1), np.array([0]))
    (tmp_path / "log.jsonl").unlink()
    assert made.add(inputs(1), np.array([0])) == [0]
    assert len(lines(tmp_path)) == 2
    assert made.add(inputs(7, first=10), np.zeros(7, int)) == list(range(7))  # all are judged
    assert len(made) == len(lines(tmp_path)) - 1 == 3


def test_what_is_no_such_log_and_what_another_keeps_is_refused_in_a_line(tmp_path):
    made = log(tmp_path)
    with pytest.raises(G2DError, match="another service keeps"):
        log(tmp_path)
    made.close()
    (tmp_path / "log.jsonl").write_text('{"format": "of another model"}\n')
    with pytest.raises(G2DError, match="move it away"):
        log(tmp_path)


# --- the judge -----------------------------------------------------------------------------------


def judge(tmp_path, right=True, promised=0.99, **settings):
    """What is live answers class 0, or 1 where it is not right; all labels are 0."""
    told: list[tuple] = []
    answer = np.array([[1.0, 0.0]] if right else [[0.0, 1.0]], "float32")
    live = Live(Snapshot(3, lambda x: np.repeat(answer, len(x), 0)))
    made = FeedbackJudge(
        live, PLAIN, MonitorSettings(feedback=True, **settings), lambda number: promised,
        lambda *a, **k: told.append((a, k)), log(tmp_path, rows=10_000),
    )  # fmt: skip
    return made, told


def test_labels_that_agree_are_no_alarm_and_those_that_do_not_are_one(tmp_path):
    made, told = judge(tmp_path)
    made.take(inputs(500), np.zeros(500, int))
    assert told == []
    assert made.status()["accuracy"] == made.status()["upper"] == 1.0
    for n in range(40):  # from now on mislabelled, or wrongly answered
        made.take(inputs(1, first=2000 + 2 * n), np.ones(1, int))
    (((kind, text, rotate), more),) = told
    assert (kind, rotate, more["level"]) == ("accuracy", False, "critical")
    assert "g2d refresh" in text
    assert str(tmp_path) in text
    assert more["evidence"]["upper"] < more["evidence"]["least"] == 0.97
    assert made.status()["alarms"] == 1
    assert made.status()["judged"] < 40  # counted anew since


def test_what_a_former_population_answered_says_nothing_of_the_one_after_a_refresh(tmp_path):
    made, told = judge(tmp_path, right=False)
    made._population = lambda number: number // 10
    made.take(inputs(2), np.zeros(2, int))
    sound = np.array([[1.0, 0.0]], "float32")
    made._live = Live(Snapshot(11, lambda x: np.repeat(sound, len(x), 0)))
    made.take(inputs(1, first=50), np.zeros(1, int))
    assert (made.status()["judged"], made.status()["accuracy"]) == (1, 1.0)
    assert told == []


def test_one_label_many_times_is_one_label(tmp_path):
    made, told = judge(tmp_path, right=False)
    for _ in range(200):
        made.take(inputs(1), np.zeros(1, int))
    assert told == []
    assert made.status()["labels"] == 1
    assert made.status()["repeated"] == 199


def test_without_a_figure_of_the_gate_split_labels_are_kept_and_judge_nothing(tmp_path):
    made, told = judge(tmp_path, right=False, promised=None)
    assert made.take(inputs(100), np.zeros(100, int)) == {"kept": 100, "repeated": 0}
    assert told == []
    assert made.status()["judged"] == 0


def test_what_the_model_cannot_answer_is_not_kept_and_can_be_sent_again(tmp_path):
    made, _ = judge(tmp_path)
    good = made._live.snapshot.predict

    def fails(x):
        raise ValueError("a value of theirs")

    made._live = Live(Snapshot(3, fails))
    with pytest.raises(ValueError, match="theirs"):
        made.take(inputs(2), np.zeros(2, int))
    assert lines(tmp_path)[1:] == []
    made._live = Live(Snapshot(3, good))
    assert made.take(inputs(2), np.zeros(2, int)) == {"kept": 2, "repeated": 0}
    assert made.status()["judged"] == 2


def test_numbers_are_told_of_one_moment_while_labels_come(tmp_path, monkeypatch):
    made, told = judge(tmp_path, right=False)
    made.take(inputs(2), np.zeros(2, int))

    def meanwhile(right: int, n: int, alpha: float) -> float:
        monkeypatch.setattr("g2d.service.monitors.feedback.judge.upper_bound", upper_bound)
        made.take(inputs(40, first=10), np.zeros(40, int))  # an alarm: all is counted anew
        return upper_bound(right, n, alpha)

    monkeypatch.setattr("g2d.service.monitors.feedback.judge.upper_bound", meanwhile)
    shown = made.status()
    assert len(told) == 1
    assert (shown["judged"], shown["accuracy"]) == (2, 0.0)
    assert made.status()["judged"] == 0


# --- over HTTP -----------------------------------------------------------------------------------


@pytest.fixture
def taking(tmp_path, monkeypatch):
    """A service that takes feedback, and where it keeps it."""
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("stand_ins.Fake.monitors", MonitorSettings(feedback=True))
    harness = Harness(vault=tmp_path / "vault")
    yield harness, log_path(tmp_path / "vault")
    harness.desk.close()


def test_feedback_is_for_whoever_may_give_it_and_says_nothing_of_what_was_right(taking):
    harness, path = taking
    harness.facts[1] = {"accuracy": 0.9}

    async def work(client):
        sent = body(2) | {"labels": [0, 2]}
        sent["inputs"][0]["data"] = [0.5] * 4 + [0.25] * 4
        assert (await client.post("/feedback", json=sent)).status_code == 401
        answer = await client.post("/feedback", json=sent, headers=ADMIN)
        assert (answer.status_code, answer.json()) == (200, {"kept": 2, "repeated": 0})
        again = await client.post("/feedback", json=sent, headers=ADMIN)
        assert again.json() == {"kept": 0, "repeated": 2}
        for changed, status, word in (
            ({"labels": []}, 422, "list of 2"), ({"labels": [1]}, 422, "list of 2"),
            ({"labels": [0, 3]}, 422, "labels[1]"), ({"labels": [0, True]}, 422, "labels[1]"),
            ({"labels": ["secret", 1]}, 422, "labels[0]"), ({"labels": None}, 422, "list"),
            ({"inputs": []}, 400, "one tensor"),
            ({"inputs": [sent["inputs"][0] | {"data": [1e39] * 8}]}, 400, "finite"),
        ):  # fmt: skip
            wrong = await client.post("/feedback", json=sent | changed, headers=ADMIN)
            assert wrong.status_code == status, changed
            assert word in wrong.json()["error"]
            assert "secret" not in wrong.text
        plain = {"content-type": "text/plain"}
        assert (
            await client.post("/feedback", content=b"{", headers=ADMIN | plain)
        ).status_code == 415
        shown = (await client.get("/alarms", headers=ADMIN)).json()["monitors"]["feedback"]
        assert (shown["labels"], shown["judged"], shown["rows"]) == (2, 2, 2)
        assert "feedback" not in (await client.get("/metrics")).text

    run(harness, work)
    assert len(path.read_text().splitlines()) == 3
    assert str(path) not in harness.log.getvalue()


def test_feedback_that_is_off_says_how_it_is_turned_on():
    async def work(client):
        answer = await client.post("/feedback", json=body() | {"labels": [0]}, headers=ADMIN)
        assert answer.status_code == 409
        assert "[monitors] feedback" in answer.json()["error"]

    run(Harness(), work)
    assert MODEL.classes == 3
