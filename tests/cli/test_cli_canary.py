"""`g2d canary check|show`: what a service tells whoever holds the vault and can only ask."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import orjson
import pytest
import torch

from commands import fail, invoke, succeed
from g2d.errors import G2DError
from g2d.protect.asking import Answer, Client, Described
from g2d.protect.canaries.kept import Canaries
from g2d.service import canaries as asking
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack
from sockets import serving
from stand_ins import numbered


def packed(number: int, off: float = 0.0) -> bytes:
    """Canaries of what `stand_ins.numbered` answers; `off`: of something else."""
    x = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2) / 8
    logits = torch.from_numpy(numbered(number).predict(x)) + off
    return pack({
        "x": torch.from_numpy(x), "logits": logits, "labels": logits.argmax(1),
        "tolerance": torch.tensor([1e-3]),
    })  # fmt: skip


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Canaries of generations 1 and 2, wrong ones of 3, none of 4, those of another model of 5."""
    path = tmp_path_factory.mktemp("canaries") / "vault"
    other = Canaries.from_bytes(packed(1))
    wide = {
        "x": torch.ones(1, 9), "logits": torch.ones(1, 3), "labels": torch.tensor([0]),
        "tolerance": torch.tensor([1.0]),
    }  # fmt: skip
    with Vault.create(path, '[task]\nname = "digits"\n') as made:
        for files in (packed(1), packed(2), packed(3, 0.5), None, pack(wide)):
            kept = {} if files is None else {"canaries": files}
            made.accept({"weights": b"w"} | kept, {})
    assert len(other) == 2
    return path


@pytest.fixture(scope="module")
def service():
    with serving(patience=60.0) as running:
        host, port = running.bound.getsockname()
        yield f"http://{host}:{port}"


def test_a_sound_service_answers_all_and_labels_alone_are_compared_if_wished(service, three):
    told = succeed("canary", "check", service, "--vault", three).stdout
    assert "generation   1\n" in told
    assert "All are answered as the sound generation does." in told
    told = fail("canary", "check", service, "--vault", three, "--labels")
    assert "nothing could be compared" in told  # all three scores of its answers tie
    scores = [3.0, 1.0, 1.0, 2.0, 0.0, 0.0]
    with answering(output(scores, model_version="3")) as (url, _):
        told = succeed("canary", "check", url, "--vault", three, "--labels").stdout
    assert "labels only of 2 canaries" in told
    told = succeed("canary", "show", three, "--generation", "2").stdout
    assert "generation   2: 2 canaries" in told
    assert "(1, 2, 2) float32" in told


def test_what_cannot_be_compared_is_one_line(service, three, tmp_path):
    with Vault.create(tmp_path / "other", '[task]\nname = "digits"\n'):
        pass
    told = fail("canary", "check", service, "--vault", tmp_path / "other")
    assert "no generation 1" in told
    told = fail("canary", "check", service, "--vault", three, "--generation", "2")
    assert "serves generation 1, not 2" in told
    told = fail("canary", "check", service, "--vault", three, "--generation", "4")
    assert "keeps no canaries" in told
    told = fail("canary", "check", service, "--vault", three, "--generation", "5")
    assert "it is another model" in told
    told = fail("canary", "check", service, "--vault", three, "--model", "wrong")
    assert "answered 404" in told
    for wrong in ("last", "0"):
        assert "from 1 on, or live" in fail(
            "canary", "check", service, "--vault", three, f"--generation={wrong}"
        )
    assert "no address" in fail("canary", "check", "ftp://x", "--vault", three)
    assert "does not answer" in fail("canary", "check", "http://127.0.0.1:9", "--vault", three)
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o644)
    options = ("--vault", three, "--token-file", tmp_path / "token")
    assert "chmod 600" in fail("canary", "check", service, *options)
    told = fail(
        "canary", "check", "https://localhost", "--vault", three, "--ca", tmp_path / "no.pem"
    )
    assert "cannot be used for TLS" in told
    assert "keeps no canaries" in fail("canary", "show", three, "--generation", "4")


# --- services that are not ours ------------------------------------------------------------------


@contextmanager
def answering(infer, number="3", status=200):
    """A service that describes generation `number` and answers `infer`."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def say(self, told, code=200):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(told if isinstance(told, bytes) else orjson.dumps(told))

        def do_GET(self):
            about = {"name": "x", "datatype": "FP32", "shape": [-1, 1, 2, 2]}
            self.say({"versions": [number], "inputs": [about]})

        def do_POST(self):
            length = int(self.headers["content-length"])
            heard.append((dict(self.headers), orjson.loads(self.rfile.read(length))))
            self.say(infer, status)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def output(data, **more):
    return {"outputs": [{"data": data}]} | more


def test_what_was_changed_is_told_with_exit_code_1(three, tmp_path, monkeypatch):
    answers = numbered(3).predict(Canaries.from_bytes(packed(3)).x).ravel().tolist()
    monkeypatch.setenv("G2D_TOKEN", "a.b.c")
    with answering(output(answers, model_version="3")) as (url, heard):
        result = invoke("canary", "check", url, "--vault", three)
    assert result.exit_code == 1
    assert "canary 0: class 0, expected 0, scores off by 0.5" in result.stdout
    assert "answers 2 of 2 canaries otherwise than generation 3" in result.stderr
    ((headers, sent),) = heard
    assert headers["Authorization"] == "Bearer a.b.c"
    assert sent["inputs"][0]["name"] == "x"
    assert sent["inputs"][0]["shape"] == [2, 1, 2, 2]


def test_classes_alone_and_a_service_that_does_not_say_which_it_serves(three):
    with answering(output([0, 0]), "newest") as (url, _):
        options = ("--vault", three, "--generation", "2")
        told = succeed("canary", "check", url, *options).stdout
        assert "labels only of 2 canaries" in told
        assert "does not say which it serves" in told
        assert "no generation yet" in fail("canary", "check", url, "--vault", three)


@pytest.mark.parametrize(
    ("infer", "status", "words"),
    [
        (output(["cat", "dog"]), 200, "neither scores nor a label"),
        ({"outputs": []}, 200, "neither scores nor a label"),
        (output([0.5]), 200, "neither scores nor a label"),
        (output([0.5] * 8), 200, "4 scores an input"),
        (b"no json", 200, "an object in JSON"),
        (b"go away", 307, "answered 307: go away"),
    ],
)
def test_answers_that_are_none_are_one_line(three, infer, status, words):
    with answering(infer, status=status) as (url, _):
        assert words in fail("canary", "check", url, "--vault", three)


class Rotating:
    """A client whose service names a newer generation with each answer."""

    url = "http://service"

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def describe(self) -> Described:
        return Described("x", (1, 2, 2), "FP32", 1)

    def ask(self, described: Described, x: np.ndarray) -> Answer:
        number = self.numbers.pop(0)
        return Answer(numbered(number).predict(x), number)


def test_a_generation_that_rotates_in_between_is_followed(three):
    with Vault.open(three) as opened:
        found = asking.ask_service(opened, Rotating(2, 2), None, False)
        assert (found.number, found.verdict.changed) == (2, ())
        with pytest.raises(G2DError, match="rotated in each"):
            asking.ask_service(opened, Rotating(*[2, 1] * 5), None, False)


def test_answers_of_two_generations_are_not_taken_for_one(three):
    class Between(Rotating):
        def ask(self, described: Described, x: np.ndarray) -> Answer:
            values = numbered(self.numbers[-1]).predict(x)
            return Answer(values, self.numbers.pop(0), tuple(self.numbers[:1]))

    with Vault.open(three) as opened:
        found = asking.ask_service(opened, Between(1, 2), None, False)
        assert (found.number, found.verdict.changed) == (2, ())
        with pytest.raises(G2DError, match="serves generation 2, not 1"):
            asking.ask_service(opened, Between(1, 2), 1, False)


class Behind:
    """A vault whose live generation is another than what is served."""

    def __init__(self, vault: Vault, live: int) -> None:
        self._vault, self._live = vault, live

    def live(self) -> int:
        return self._live

    def __getattr__(self, name: str):
        return getattr(self._vault, name)


def test_a_service_stuck_on_a_retired_generation_does_not_pass(three, monkeypatch):
    monkeypatch.setattr(asking.time, "sleep", lambda _: None)
    with Vault.open(three) as opened:
        behind = Behind(opened, 2)
        with pytest.raises(G2DError, match="serves generation 1, the vault's live one is 2"):
            asking.ask_service(behind, Rotating(1, 1, 1), None, False)
        found = asking.ask_service(behind, Rotating(1, 2, 2), None, False)  # it was on its way
        assert (found.number, found.verdict.changed) == (2, ())
        assert asking.ask_service(behind, Rotating(1), 1, False).number == 1  # as was wished


def test_answers_that_are_too_coarse_to_tell_anything_end_with_1(three, monkeypatch):
    class Coarse(Rotating):
        def ask(self, described: Described, x: np.ndarray) -> Answer:
            return Answer(np.zeros((2, 3)), 1)

    with Vault.open(three) as opened:
        made = Canaries.from_bytes(packed(1))
        small = replace(made, logits=made.logits / 10)
        monkeypatch.setattr(asking, "read_canaries", lambda *_: small)
        with pytest.raises(G2DError, match="nothing could be compared"):
            asking.ask_service(opened, Coarse(), None, False)
        with pytest.raises(G2DError, match="leave --labels out"):
            asking.ask_service(opened, Coarse(), None, True)


def test_an_address_with_a_path_and_credentials_of_a_client():
    client = Client("http://host:1/prefix/", "a b")
    assert client._model == "http://host:1/prefix/v2/models/a%20b"
    assert replace(Answer(np.zeros(2), 1), number=2).labels_only


def test_of_tags_it_is_said_who_may_ask_and_numbers_in_their_place_are_taken(three):
    class Tagged(Rotating):
        told = True

        def describe(self) -> Described:
            return Described("x", (1, 2, 2), "FP32", None, tagged=True)

        def ask(self, described: Described, x: np.ndarray) -> Answer:
            answer = super().ask(described, x)
            return answer if self.told else Answer(answer.values, None)

    with Vault.open(three) as opened:
        behind = Behind(opened, 2)  # under a policy an older one is live as well
        found = asking.ask_service(behind, Tagged(1, 1), None, False)
        assert (found.number, found.verdict.changed) == (1, ())
        outsider = Tagged(1)
        outsider.told = False
        with pytest.raises(G2DError, match=r"does not say which generation .*role observe"):
            asking.ask_service(behind, outsider, None, False)
