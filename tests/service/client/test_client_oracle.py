"""A server that makes answers up learns as little as can be from what the client does then."""

import os

import numpy as np
import orjson
import pytest

pytest.importorskip("tenseal", reason="homomorphic inference needs TenSEAL: pip install 'g2d[he]'")

from g2d.core.exchange import ExchangeError, Reply
from g2d.protect.homomorphic import EvaluationKeys, HomomorphicError, Plan, encode, evaluate
from g2d.protect.homomorphic.wire import HEADER, pack
from g2d.service.client import encrypted
from g2d.service.client.encrypted import EncryptedClient, UnknownKeysError
from g2d.service.client.keyfile import Note
from g2d.service.encrypted.protocol import TENSOR, read_query
from he_networks import tiny

PLAN = Plan.of(tiny(), (6,))
OWN = "0123456789abcdef" * 2
INPUTS = np.random.default_rng(0).random((4, 6), dtype=np.float32)


class Server:
    """Answers in a service's stead: soundly, or as `forge` makes it."""

    def __init__(self):
        self.asked, self.forge, self.own = 0, {}, OWN
        self.drawn = False
        self.says = {}  # of which generation an answer says it is; else 7
        self._keys = None
        self._encoded = encode(PLAN, tiny().state_dict())

    def ask(self, method, url, body=None, headers=None, *, known=None, timeout=0.0):
        if url.endswith("/plan"):
            return Reply(200, {}, PLAN.to_json().encode())
        if url.endswith("/keys"):
            self._keys = EvaluationKeys.read(b"".join(body), PLAN)
            return Reply(201, {}, orjson.dumps({"keys": self.own}))
        query = read_query(body, headers["Inference-Header-Content-Length"].encode())
        self.asked += 1
        answer = evaluate(PLAN, self._encoded, self._keys, query.ciphertext)
        if self.asked in self.forge:
            answer = self.forge[self.asked](answer)
        size, said = len(answer), self.says.get(self.asked, 7)
        tensor = {"name": TENSOR, "datatype": "UINT8", "shape": [size],
                  "parameters": {"binary_data_size": size}}  # fmt: skip
        head = orjson.dumps(
            {
                "outputs": [tensor],
                "parameters": {"generation": said} | ({"drawn": True} if self.drawn else {}),
            }
        )
        told = {"inference-header-content-length": str(len(head))}
        return Reply(200, told, head + answer)


def made_up(answer):
    """Sound residues, of a ciphertext that nobody encrypted: (c0, c1) below the prime."""
    words = np.frombuffer(answer[HEADER:], "<u8").copy()
    words[: len(words) // 2] = words[len(words) // 2 :]
    return pack("answer", PLAN.digest, [words.tobytes()])


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(encrypted, "ask", made.ask)
    return made


@pytest.fixture
def client(server, tmp_path):
    made = EncryptedClient("http://far", keys=tmp_path / "my.keys")
    made.make_keys()
    made.upload()
    return made


def test_every_answer_is_there_before_any_is_decrypted(server, client):
    right = client.infer(INPUTS)
    assert (right.values.shape, right.number, server.asked) == ((4, 3), 7, 4)
    for place in (5, 7):  # the first of the next four, and the third of the four after them
        server.asked, server.forge = 4, {place: made_up}
        with pytest.raises(HomomorphicError, match="the answer is noise"):
            client.infer(INPUTS)
        assert server.asked == 8, "which answer was made up cannot be told by the questions"


def test_noise_is_said_to_need_fresh_keys(server, client):
    server.forge = {1: made_up}
    with pytest.raises(
        HomomorphicError, match=r"new keys .*`g2d client encrypted keys .*--out"
    ) as told:
        client.infer(INPUTS[:1])
    assert "\n" not in str(told.value)


def test_answers_of_another_size_are_refused_before_any_is_decrypted(server, client, monkeypatch):
    server.forge = {2: lambda answer: answer + os.urandom(8)}
    monkeypatch.setattr(client._secret, "decrypt", None)
    with pytest.raises(ExchangeError, match="no ciphertext"):
        client.infer(INPUTS)


@pytest.mark.parametrize("own", ["x", "0" * 33, "0" * 31 + "G", "٣" * 32, ["0" * 32], None])
def test_only_ids_that_a_service_makes_are_taken(server, client, own):
    server.own = own
    with pytest.raises(ExchangeError, match="no id"):
        client.upload()
    assert Note.read(client.file).keys == OWN
    if isinstance(own, str):
        Note(PLAN.digest, client.url, own).write(client.file)
        with pytest.raises(UnknownKeysError):
            client.infer(INPUTS[:1])
    assert server.asked == 0


def test_an_answer_says_by_which_generation_each_input_was_answered(server, client):
    one, other = "t0123456789abcdef", "tfedcba9876543210"
    server.says = {3: 8, 6: one, 7: one, 8: one, 5: one, 9: one, 10: other, 11: one, 12: one}
    answer = client.infer(INPUTS)
    assert (answer.each, answer.number, answer.others) == ((7, 7, 8, 7), 7, (8,))
    assert answer.mixed
    answer = client.infer(INPUTS)
    assert (answer.each, answer.number, answer.others) == ((one,) * 4, None, ())
    assert not answer.mixed
    answer = client.infer(INPUTS)  # tags of two hide no more that there were two
    assert answer.each == (one, other, one, one)
    assert answer.mixed
    server.asked, server.drawn = 4, True  # one tag for all that are live: several may have answered
    answer = client.infer(INPUTS)
    assert (answer.each, answer.number, answer.mixed) == ((None,) * 4, None, None)
    assert client.infer(INPUTS[:1]).mixed is False


@pytest.mark.parametrize(
    "said", [None, True, -1, 7.0, "7", "t" + "0" * 17, "t" + "G" * 16, "x\n", [7], {"a": 7}]
)
def test_an_answer_that_names_no_generation_is_refused(server, client, said, monkeypatch):
    server.says = {2: said}
    monkeypatch.setattr(client._secret, "decrypt", None)
    with pytest.raises(ExchangeError, match="generation"):
        client.infer(INPUTS)


@pytest.mark.parametrize(
    ("told", "slept"), [("nan", 1.0), ("-inf", 0.1), ("inf", 30.0), ("soon", 1.0), ("7", 7.0)]
)
def test_a_busy_server_decides_neither_for_how_long_nor_that_the_client_fails(
    server, client, told, slept, monkeypatch
):
    pauses, sound = [], server.ask

    def busy(method, url, *rest, **more):
        if url.endswith("/infer") and not pauses:
            return Reply(503, {"retry-after": told}, b"")
        return sound(method, url, *rest, **more)

    monkeypatch.setattr(encrypted, "ask", busy)
    client._wait = pauses.append
    assert client.infer(INPUTS[:1]).number == 7
    assert pauses == pytest.approx([slept])


def test_an_upload_waits_for_a_place_and_not_for_a_full_disk(server, client, monkeypatch):
    pauses, sound, refused = [], server.ask, []

    def busy(method, url, body=None, *rest, **more):
        if not refused:
            return sound(method, url, body, *rest, **more)
        next(iter(body))
        return refused.pop()

    monkeypatch.setattr(encrypted, "ask", busy)
    client._wait = pauses.append
    refused[:] = [Reply(429, {"retry-after": "3"}, b""), Reply(503, {"retry-after": "5"}, b"")]
    assert client.upload() > 0
    assert pauses == [5.0, 3.0]
    refused[:] = [Reply(503, {}, b"the keys cannot be kept here")]
    with pytest.raises(ExchangeError, match="cannot be kept"):
        client.upload()
    refused[:] = [Reply(503, {"retry-after": "5"}, b"others wait")] * 9
    with pytest.raises(ExchangeError, match="others wait"):
        client.upload()
    assert len(refused) == 4
