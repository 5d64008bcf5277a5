"""The soak of a day: what it counts as lost, wrong or older, and that a stopped run goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("psutil")

from benchmarks.monitoring.day import Answer, Asking, Hour, Search, Tally, judged, plan
from benchmarks.monitoring.soak import Day, flags, rows


def test_a_day_has_everything_and_a_short_one_too():
    for hours in (24, 3, 1):
        made = plan(hours, 0)
        assert len(made) == hours
        assert {hour.renews for hour in made} >= {"refresh"}
        assert any(hour.drifts for hour in made)
        assert any(hour.attacks for hour in made)
        assert all(0 < share < 1 for hour in made for share, _ in hour.kills)
    assert made[0] == plan(1, 1)[0], "an hour without kills draws nothing"
    whole = plan(24, 0)
    assert [hour.renews for hour in whole].index("rollback") == 16
    assert len([kill for hour in whole for kill in hour.kills]) == 12
    assert plan(24, 0) == whole != plan(24, 1)


def test_answers_are_held_against_every_generation_and_a_client_never_goes_back():
    computed = {n: lambda x, n=n: np.stack([n * x.sum(1), x.sum(1)], 1) for n in (3, 4, 6)}

    def answer(client: str, number: float, value: float = 1.0) -> Answer:
        x = np.full(2, value)
        return Answer(client, x, np.array([number * x.sum(), x.sum()]))

    told = [answer("a", 3), answer("b", 6), answer("a", 4), answer("b", 4), answer("a", 5),
            answer("a", 4), answer("c", 3, 0.0), answer("b", 6)]  # fmt: skip
    counts, last = judged(told, computed, {"c": 4, "d": 9})
    assert counts == {"answers": 8, "wrong": 1, "fell": 1}
    assert last == {"a": 4, "b": 6, "c": 4, "d": 9}, "an answer that says nothing proves no fall"
    assert judged(told[:1], computed, last)[0]["fell"] == 1


@pytest.fixture
def flaky() -> Iterator[SimpleNamespace]:
    """A service that cuts connections and refuses as it is told, and else answers the mean."""
    does = SimpleNamespace(cuts=0, status=200, asked=[])

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            does.asked.append(self.client_address[0])
            if does.cuts:
                does.cuts -= 1
                self.close_connection = True
                return
            mean = float(np.mean(body["inputs"][0]["data"]))
            said = json.dumps({"outputs": [{"data": [mean, 0.0]}]}).encode()
            self.send_response(does.status)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    does.port = server.server_address[1]
    yield does
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_cut_is_asked_again_and_only_what_never_comes_is_lost(flaky):
    tally, x = Tally(), np.full((1, 2, 2), 0.5, np.float32)
    asking = Asking(flaky.port, "127.0.0.1", tally)
    flaky.cuts = 2
    assert asking(x).tolist() == [0.5, 0.0]
    assert tally.counts["retried"] == 2
    flaky.status = 503
    assert asking(x) is None
    assert tally.counts["failed 503"] == 1
    asking.close()
    late = Asking(flaky.port, "127.0.0.1", tally, patience=0.0)
    assert late(x) is None
    assert (tally.counts["lost"], len(tally.answers)) == (1, 1)


def test_the_attacker_keeps_what_lessens_the_margin():
    draws = np.random.default_rng(0)
    search = Search(np.full((1, 4, 4), 0.5, np.float32), 0, 0.2, draws)
    proposed = search.propose()
    assert np.abs(proposed - 0.5).max() == pytest.approx(0.2)
    search.hear(proposed, np.array([2.0, 1.0]))
    worse = search.propose()
    search.hear(worse, np.array([3.0, 1.0]))
    search.hear(worse, None)
    assert search.wins == 0
    search.hear(worse, np.array([0.0, 1.0]))
    assert search.wins == 1
    assert np.abs(search.propose() - 0.5).max() <= 0.2 + 1e-6


def test_a_stopped_run_goes_on_with_the_hour_that_it_stopped_in(tmp_path, monkeypatch):
    given = flags().parse_args(["--hours", "3", "--out", str(tmp_path / "day.json"), "--runs",
                                str(tmp_path)])  # fmt: skip
    monkeypatch.setattr("benchmarks.monitoring.soak.World", lambda: None)
    done: list[int] = []

    def hour(self: Day, number: int, of: Hour) -> dict:
        if len(done) == 2:
            done.append(-1)
            raise KeyboardInterrupt
        done.append(number)
        return {"answers": 10, "wrong": 0, "fell": 0, "retried": 2, "rotations": 6,
                "kills": [{"victim": "both", "seconds": 3.0}], "alarms": {"drift": 1},
                "renewed": ["refresh: ended with 0: fine"], "failed 503": 1}  # fmt: skip

    monkeypatch.setattr(Day, "hour", hour)
    with pytest.raises(KeyboardInterrupt):
        Day(given).run()
    day = Day(given)
    day.run()
    assert done == [0, 1, -1, 2]
    table = rows(day.result)
    assert table[0] == [
        "3 simulated hours, 30 answers: lost / failed / wrong / of an older generation than was"
        " seen", "no lost or wrong answer", "0 / 3 / 0 / 0",
    ]  # fmt: skip
    assert table[1][2] == "6; 3.0 s"
    assert table[2][2] == "18 of 18 due by the schedule; drift 3"
    other = flags().parse_args(["--hours", "4", "--out", str(tmp_path / "day.json")])
    with pytest.raises(SystemExit, match="give the same flags"):
        Day(other)
