"""Targets answer alike whatever they are; lanes count exactly; a service may die or babble."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from g2d.attacks.query import SpentError, clock_square
from g2d.errors import G2DError, SettingsError
from g2d.redteam.query_log import QueryLog, by_count, by_target
from g2d.redteam.targets import (
    Fixed,
    HttpTarget,
    Rotating,
    TargetError,
    as_logits,
    check_logits,
    describe_scores,
)
from g2d.tasks.splits import Split

SHAPE = (1, 2, 3)


class Constant(nn.Module):
    """Always answers one class."""

    def __init__(self, label, classes=3):
        super().__init__()
        self.scores = torch.eye(classes)[label]

    def forward(self, x):
        return self.scores.repeat(len(x), 1)


def linear(seed, sides=SHAPE, classes=3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(sides).numel(), classes))
    return model.eval().requires_grad_(False)


def images(n, seed=0, sides=SHAPE):
    return torch.rand((n, *sides), generator=torch.Generator().manual_seed(seed))


class Handler(BaseHTTPRequestHandler):
    """A service of the Open Inference Protocol over `server.target`, or over `server.rubbish`."""

    def log_message(self, *_):
        pass

    def reply(self, body, status=200):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        target = self.server.target
        shape = [-1, *target.shape]
        self.reply(
            getattr(self.server, "metadata", None)
            or {
                "name": "victim",
                "inputs": [{"name": "pixels", "datatype": "FP32", "shape": shape}],
                "outputs": [{"name": "s", "datatype": "FP32", "shape": [-1, target.classes]}],
            }
        )

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
        self.server.requests.append((self.path, sent["name"], sent["datatype"]))
        if (
            self.server.dies_after is not None
            and len(self.server.requests) > self.server.dies_after
        ):
            self.connection.close()
            return
        if self.server.rubbish is not None:
            self.reply(*self.server.rubbish)
            return
        scores = self.server.target.predict(torch.tensor(sent["data"]).reshape(sent["shape"]))
        output = {"name": "s", "shape": list(scores.shape), "data": scores.flatten().tolist()}
        self.reply({"model_version": str(self.server.target.number), "outputs": [output]})


@pytest.fixture
def serve():
    """Start services in threads; hands out (address, server)."""
    started = []

    def start(target, rubbish=None, dies_after=None):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None
        server.target, server.rubbish, server.dies_after = target, rubbish, dies_after
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}", server

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


# --- targets ---


def test_the_same_attack_runs_on_every_target(serve):
    """Square finds the same points on one function, however it is reached."""
    sides = (1, 6, 6)
    model = linear(3, sides)
    x = images(8, sides=sides)
    y = model(x).argmax(1)
    rotating = Rotating([model, model], sides, 3, every=40)
    url, _ = serve(Rotating([model, model], sides, 3, every=40))
    service = HttpTarget(url, "victim")
    results = []
    for target in (Fixed(model, sides, 3), Fixed(model, sides, 3, number=7), rotating, service):
        assert (target.shape, target.classes) == (sides, 3)
        lanes = QueryLog(by_target(target), Split(x, y), eps=0.3, budget=60, bounds=(0.0, 1.0))
        clock_square(lanes, x, y, eps=0.3, budget=60, generator=torch.Generator().manual_seed(0))
        results.append(lanes)
        assert target.queries == int(lanes.spent.sum())
    for lanes in results[1:]:
        assert torch.equal(lanes.first, results[0].first)
        torch.testing.assert_close(lanes.found, results[0].found)
    assert results[0].asr(60).value > 0
    assert results[1].network.max() == 7
    assert {0, 1} >= set(results[3].network.tolist()) - {-1}


def test_white_box_access_is_to_what_answers_now():
    a, b = linear(1), linear(2)
    target = Rotating([a, b], SHAPE, 3, every=5)
    assert target.open() is a
    target.predict(images(5))
    assert target.open() is b
    assert Fixed(a, SHAPE, 3).open() is a


def test_a_request_sees_one_network_and_rotation_comes_between_requests():
    target = Rotating([Constant(0), Constant(1)], SHAPE, 3, every=4)
    assert target.number is None
    assert target.predict(images(6)).argmax(1).tolist() == [0] * 6
    assert target.predict(images(1)).argmax(1).tolist() == [1]
    assert (target.queries, target.number) == (7, 1)
    assert target.predict(images(1)).argmax(1).tolist() == [1]
    assert target.predict(images(1)).argmax(1).tolist() == [0], "after the last comes the first"


def test_rotation_by_time_follows_the_clock():
    now = [100.0]
    target = Rotating([Constant(k) for k in range(3)], SHAPE, 3, seconds=10, clock=lambda: now[0])
    seen = []
    for moment in (100.0, 109.9, 110.0, 125.0, 131.0):
        now[0] = moment
        seen.append(int(target.predict(images(2)).argmax(1)[0]))
    assert seen == [0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("models", "more"),
    [([], {}), ([1], {"every": 0}), ([1], {"seconds": -1.0}), ([1], {"every": 1, "seconds": 1.0})],
)
def test_a_senseless_clock_is_refused(models, more):
    with pytest.raises(SettingsError):
        Rotating(models, SHAPE, 3, **more)


# --- services ---


def test_a_service_is_asked_in_the_protocols_words(serve):
    model = linear(0)
    url, server = serve(Fixed(model, SHAPE, 3, number=42))
    service = HttpTarget(url + "/", "my model", batch=4)
    x = images(6)
    torch.testing.assert_close(service.predict(x), model(x))
    assert server.requests == [("/v2/models/my%20model/infer", "pixels", "FP32")] * 2
    assert (service.number, service.queries, service.open()) == (42, 6, None)


def test_nested_data_and_a_generation_among_the_parameters_are_read(serve):
    output = {"shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}
    url, _ = serve(
        Fixed(linear(0), SHAPE, 3), ({"parameters": {"generation": 9}, "outputs": [output]},)
    )
    service = HttpTarget(url, "m")
    assert service.predict(images(2)).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert service.number == 9


@pytest.mark.parametrize(
    ("rubbish", "words"),
    [
        ((b"<html>busy</html>",), "did not answer in JSON"),
        ((b"\xff\xfe{",), "did not answer in JSON"),
        ((b"[" * 100_000,), "did not answer in JSON"),
        (([1, 2],), "not an object"),
        (({"outputs": []},), "outputs"),
        (({"outputs": [{"shape": [2, 3], "data": ["a"] * 6}]},), "outputs"),
        (({"outputs": [{"shape": [2, 3], "data": None}]},), "outputs"),
        (({"outputs": [{"shape": [2, 3], "data": [1.0] * 5}]},), "expected"),
        (({"outputs": [{"shape": [3, 2], "data": [1.0] * 6}]},), "expected"),
        ((b'{"outputs": [{"shape": [2, 3], "data": [NaN, 1, 1, 1, 1, 1]}]}',), "not finite"),
        (({"error": "no such model"}, 404), "404.*no such model"),
    ],
)
def test_rubbish_from_a_service_is_told(serve, rubbish, words):
    url, _ = serve(Fixed(linear(0), SHAPE, 3), rubbish)
    service = HttpTarget(url, "m")
    with pytest.raises(TargetError, match=words):
        service.predict(images(2))
    assert service.queries == 2, "what was sent counts"


def test_a_service_that_dies_is_told(serve):
    url, _ = serve(Fixed(linear(0), SHAPE, 3), dies_after=1)
    service = HttpTarget(url, "m", batch=2)
    service.predict(images(2))
    with pytest.raises(TargetError, match="does not answer"):
        service.predict(images(2))
    assert issubclass(TargetError, G2DError)


@pytest.mark.parametrize("url", ["ftp://x", "localhost:1", "", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(TargetError, match="not the address"):
        HttpTarget(url, "m")


def test_nobody_there_is_told():
    with pytest.raises(TargetError, match="does not answer"):
        HttpTarget("http://127.0.0.1:9", "m", timeout=2.0)


@pytest.mark.parametrize(
    "metadata",
    [{"inputs": []}, {"inputs": [{"name": "x", "shape": [-1, -1]}], "outputs": [{"shape": [3]}]}],
)
def test_metadata_without_shapes_are_refused(serve, metadata):
    url, server = serve(Fixed(linear(0), SHAPE, 3))
    server.metadata = metadata
    with pytest.raises(TargetError):
        HttpTarget(url, "m")


# --- scores ---


def test_probabilities_are_detected_and_become_logits():
    model = linear(5)
    x = images(30)
    soft = nn.Sequential(model, nn.Softmax(1))
    assert describe_scores(model(x)) == "logits"
    assert describe_scores(soft(x)) == "probabilities"
    assert check_logits(model, x) == ""
    assert "probabilities" in check_logits(soft, x)
    torch.testing.assert_close(as_logits(soft)(x), model(x).log_softmax(1))
    assert torch.isfinite(as_logits(lambda _: torch.tensor([[1.0, 0.0]]))(x)).all()


# --- lanes ---


class Tape:
    """Answers from networks of one class each, and remembers who was asked what."""

    def __init__(self, labels, every):
        self.calls, self.every, self.labels = [], every, labels

    def __call__(self, x, lanes, numbers):
        place = (numbers - 1) // self.every
        self.calls += list(zip(lanes.tolist(), numbers.tolist(), strict=True))
        labels = torch.tensor(self.labels)[place % len(self.labels)]
        return torch.eye(3)[labels], place


@settings(max_examples=80, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=12),
    budget=st.integers(1, 9),
    every=st.integers(1, 4),
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_lanes_count_like_a_naive_ledger(batches, budget, every, labels):
    """Property: against a loop over single inputs that is obviously right."""
    x, y = images(4), torch.tensor([0, 1, 2, 0])
    tape = Tape(labels, every)
    log = QueryLog(tape, Split(x, y), eps=0.1, budget=budget, bounds=(0.0, 1.0))
    spent, first, network, asked = [0] * 4, [0] * 4, [-1] * 4, []
    for batch in batches:
        open_before = [first[k] == 0 for k in range(4)]
        expected = []
        for lane in batch:
            if not open_before[lane] or spent[lane] >= budget:
                continue
            spent[lane] += 1
            expected.append((lane, spent[lane]))
            place = (spent[lane] - 1) // every
            if first[lane] == 0 and labels[place % len(labels)] != y[lane]:
                first[lane], network[lane] = spent[lane], place
        lanes = torch.tensor(batch, dtype=torch.long)
        if expected:
            assert log(x[lanes], lanes).shape == (len(batch), 3)
        else:
            with pytest.raises(SpentError):
                log(x[lanes], lanes)
        asked += expected
    assert log.spent.tolist() == spent
    assert log.first.tolist() == first
    assert log.network.tolist() == network
    assert tape.calls == asked
    assert int(log.spent.max()) <= budget
    for queries in range(budget + 1):
        assert log.asr(queries).value == sum(0 < f <= queries for f in first) / 4


def test_only_inputs_inside_ball_and_range_win():
    x = torch.full((4, *SHAPE), 0.05)
    log = QueryLog(
        by_count([Constant(1)], None),
        Split(x, torch.zeros(4, dtype=torch.long)), eps=0.1, budget=9, bounds=(0.0, 1.0),
    )  # fmt: skip
    point = x.clone()
    point[0] += 0.1  # on the border, whatever rounding makes of it
    point[1] += 0.11
    point[2] -= 0.06
    point[3] = float("nan")
    log(point, torch.arange(4))
    assert log.first.tolist() == [1, 0, 0, 0]
    assert torch.equal(log.found[0], point[0])
    assert torch.equal(log.found[1], x[1])


def test_a_lane_that_is_won_hears_its_last_answer_and_pays_nothing():
    x = images(2)
    log = QueryLog(
        by_count([Constant(1), Constant(0)], 1),
        Split(x, torch.tensor([0, 1])), eps=0.1, budget=5, bounds=None,
    )  # fmt: skip
    both = torch.arange(2)
    assert log(x, both).argmax(1).tolist() == [1, 1]
    assert log(x, both).argmax(1).tolist() == [1, 0]
    assert (log.spent.tolist(), log.first.tolist()) == ([1, 2], [1, 2])
    with pytest.raises(SpentError):
        log(x, both)


def test_networks_are_chosen_by_each_lanes_own_count():
    models = [Constant(k) for k in range(3)]
    answer = by_count(models, 10, torch.tensor([0, 0, 2]))
    lanes = torch.tensor([2, 0, 1, 0, 2])
    numbers = torch.tensor([1, 10, 11, 25, 11])
    scores, place = answer(images(5), lanes, numbers)
    assert place.tolist() == [2, 0, 1, 2, 3]
    assert scores.argmax(1).tolist() == [2, 0, 1, 2, 0]
    assert by_count(models, None)(images(2), lanes[:2], numbers[:2])[1].tolist() == [0, 0]


def test_a_budget_of_nothing_is_refused():
    split = Split(images(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(SettingsError, match="at least one query"):
        QueryLog(by_count([Constant(0)], None), split, eps=0.1, budget=0, bounds=None)
