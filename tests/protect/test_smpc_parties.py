"""Real parties: three processes, or two, that compute on shares with SPU over mutual TLS."""

from __future__ import annotations

import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy import stats

from g2d.protect.multiparty.client import Client
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.rings import split, to_ring
from smpc_networks import NEAR, SHAPE, deal, expected, inputs, raw
from smpc_parties import LONG, Setup, short_folder, wait_for, why_absent

absent = why_absent()
pytestmark = [
    pytest.mark.skipif(bool(absent), reason=absent or "SPU is here"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def parties() -> Iterator[Setup]:
    """Three parties that answer by generation 1; tests raise the number, never lower it."""
    with short_folder() as folder:
        setup = Setup(Path(folder))
        try:
            setup.start_all()
            setup.until_met()
            deal(setup, 1)
            yield setup
        finally:
            setup.stop()


@pytest.fixture
def client(parties: Setup) -> Iterator[Client]:
    parties.until_open()
    with parties.client() as made:
        yield made


def live(setup: Setup) -> int:
    return int(setup.status()["number"])


# --- in order: each raises the number, and leaves parties that answer ----------------------------


def test_answers_are_those_of_the_network(client):
    """Truncation is probabilistic: the last bit is random, and nothing worse than that happens."""
    x = inputs(200)
    answer = client.infer(x)
    assert np.abs(answer.logits - expected(answer.number, x)).max() < NEAR
    assert (answer.logits.argmax(1) == expected(answer.number, x).argmax(1)).all()


def test_requests_of_all_sizes_go_over_links_that_stay(parties, client):
    session = parties.status()["session"]
    for n in (1, 3, 1, 2):
        answer = client.infer(inputs(n, n))
        assert np.abs(answer.logits - expected(answer.number, inputs(n, n))).max() < NEAR
    assert parties.status()["session"] == session


def test_no_party_has_anything_but_random_numbers(parties):
    for rank in range(3):
        for file in (parties.folder / f"state{rank}").glob("*.share"):
            body = file.read_bytes().partition(b"\n")[2]
            counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6


ENDS = np.iinfo(np.int64)
OUT = "refuses: inputs of this request are out of the task's range: nothing was computed"


@pytest.mark.parametrize("value", [-1, (1 << 18) + 1, 1 << 32, -(1 << 32), ENDS.max, ENDS.min])
def test_inputs_out_of_range_are_refused_by_every_party(parties, client, value):
    """Integers modulo 2^64 that no client of ours sends; the session goes on."""
    session, x = parties.status()["session"], to_ring(inputs(2))
    x[1, 0, 3, 3] = value % (1 << 64)
    said = raw(client, inputs(2), shares=split(x, "aby3"))
    assert [one.endswith(OUT) for one in said] == [True] * 3, said
    assert client.infer(inputs(1)).logits.shape == (1, 10)
    assert parties.status()["session"] == session


def test_inputs_at_the_borders_of_the_range_are_taken(client):
    x = np.stack([np.zeros(SHAPE), np.ones(SHAPE), np.full(SHAPE, 1 + 1e-7)])
    assert np.abs(client.infer(x).logits - expected(client._last, x)).max() < NEAR


@pytest.mark.parametrize("rank", range(3))
def test_shares_that_do_not_belong_together_are_refused_by_every_party(parties, client, rank):
    """ABY3's second half of one party is the first half of the next: a client that sends others
    would choose errors that a check of ranges does not see."""
    session, x = parties.status()["session"], inputs(2)
    shares = split(to_ring(x), "aby3")
    changed = bytearray(shares[rank])
    changed[8] ^= 1
    shares[rank] = bytes(changed)
    said = raw(client, x, shares=shares)
    why = "refuses: the shares of this request do not belong together: nothing was computed"
    assert [one.endswith(why) for one in said] == [True] * 3, said
    assert np.abs(client.infer(x).logits - expected(live(parties), x)).max() < NEAR
    assert parties.status()["session"] == session, "one request ended everybody's session"


def test_a_request_comes_once(client):
    name = secrets.token_hex(16)
    assert all(not isinstance(one, str) for one in raw(client, inputs(1), id=name))
    assert all("came before" in one for one in raw(client, inputs(1), id=name))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"n": 0}, "0 inputs, at most 256"),
        ({"n": 257}, "257 inputs, at most 256"),
        ({"n": 2}, "no share of 2 inputs"),
        ({"n": True}, "without a name or a number"),
        ({"id": "x"}, "without a name or a number"),
        ({"digest": "0" * 64}, "for another program"),
        ({"kind": "weights"}, "a client may not weights"),
    ],
)
def test_what_is_no_request_is_refused_by_every_party(client, changes, why):
    assert all(why in one for one in raw(client, inputs(1), **changes))
    assert client.infer(inputs(1)).logits.shape == (1, 10)


def test_parties_with_unequal_numbers_of_inputs_refuse(parties, client):
    name, x = secrets.token_hex(16), inputs(2)
    program = client.program
    asked = {"kind": "infer", "id": name, "digest": program.digest}
    for rank, n in ((0, 2), (1, 1), (2, 2)):
        client._lines[rank].send({**asked, "n": n}, split(to_ring(x[:n]), "aby3")[rank])
    for line in client._lines:
        with pytest.raises(MultipartyError, match="has 1 inputs, not 2"):
            line.receive(1 << 20)


def test_numbers_only_rise(parties):
    deal(parties, 2)
    with pytest.raises(MultipartyError, match="older than 2"):
        deal(parties, 1)
    assert live(parties) == 2


def test_shares_that_are_not_activated_change_nothing(parties, client):
    before = live(parties)
    deal(parties, before + 1, activate=False)
    assert client.infer(inputs(1)).number == before
    deal(parties, before + 1)
    assert client.infer(inputs(1)).number == before + 1


def test_every_answer_under_rotation_is_of_one_generation(parties, client):
    x, wrong, numbers = inputs(4), list[str](), list[int]()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answer = client.infer(x)
            numbers.append(answer.number)
            if np.abs(answer.logits - expected(answer.number, x)).max() > NEAR:
                wrong.append(f"{answer.number} is not what answered")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for number in range(live(parties) + 1, 9):
            deal(parties, number)
            wait_for(lambda n=number: bool(numbers) and numbers[-1] == n, parties)
    finally:
        done.set()
        thread.join(LONG)
    assert not wrong
    assert numbers == sorted(numbers)
    assert numbers[-1] == 8


@pytest.mark.parametrize("rank", [2, 0])
def test_a_party_that_dies_gives_a_refusal_and_comes_back(parties, client, rank):
    number, x = live(parties), inputs(200)
    failed: list[MultipartyError] = []

    def ask() -> None:
        try:
            while True:
                client.infer(x)
        except MultipartyError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    session = parties.status(1)["session"]
    time.sleep(0.5)
    parties.processes[rank].send_signal(signal.SIGKILL)
    began = time.monotonic()
    thread.join(LONG)
    took = time.monotonic() - began
    (error,) = failed
    assert "\n" not in str(error)
    assert f"party {rank}" in str(error)
    assert took < parties.config.limits.silence, "it was noticed by the clock alone"
    parties.processes[rank].wait()
    with pytest.raises(MultipartyError):
        client.infer(x[:1])
    parties.start(rank)
    parties.until_open()
    assert parties.status(1)["session"] != session
    answer = client.infer(x[:3])
    assert answer.number == number
    assert np.abs(answer.logits - expected(number, x[:3])).max() < NEAR


@pytest.mark.parametrize("rank", [0, 1])
def test_an_engine_that_ends_is_replaced(parties, client, rank):
    number = live(parties)
    session = parties.status()["session"]
    (engine,) = psutil.Process(parties.processes[rank].pid).children()
    engine.kill()
    wait_for(lambda: parties.status()["session"] not in ("", session), parties)
    parties.until_open()
    with parties.client() as asking:
        assert asking.infer(inputs(1)).number == number


def test_a_rank_is_taken_by_one_process(parties):
    first = parties.processes[1]
    try:
        other = parties.start(1, log="twice")  # with another state, on the same address
        assert other.wait(LONG) == 1
        assert "address already in use" in parties.said("twice").lower()
        flags = ("--state", str(parties.folder / "state1"))
        assert parties.start(1, *flags, log="again").wait(LONG) == 1
        assert "this rank is taken" in parties.said("again")
    finally:
        parties.processes[1] = first
    assert parties.status(1)["open"]


def test_a_process_with_anothers_certificate_is_refused(parties):
    """Party 2's own place is empty; party 1's certificate does not fill it."""
    before = live(parties)
    parties.processes[2].terminate()
    parties.processes[2].wait()
    wait_for(lambda: not parties.status()["open"], parties)
    flags = ["--certificate", str(parties.folder / "party1.pem")]
    false = parties.start(2, *flags, log="false")
    wait_for(lambda: "says that it is rank 2" in parties.said("false"), parties)
    assert not parties.status()["open"]
    false.terminate()
    false.wait()
    parties.start(2)
    parties.until_open()
    assert live(parties) == before


def test_parties_without_weights_in_common_refuse_until_they_are_shared_anew(parties, client):
    number = live(parties)
    parties.processes[1].terminate()
    parties.processes[1].wait()
    shutil.rmtree(parties.folder / "state1")
    parties.start(1)
    wait_for(lambda: bool(parties.status()["session"]), parties)
    wait_for(lambda: "no weights in common" in parties.status()["why"], parties)
    with pytest.raises(MultipartyError, match="no weights in common"):
        client.infer(inputs(1))
    deal(parties, number)
    answer = client.infer(inputs(1))
    assert np.abs(answer.logits - expected(number, inputs(1))).max() < NEAR


def test_a_party_with_another_program_is_refused(parties):
    """The same number and sharing, and a program that leaves out a layer: no answer is given."""
    (folder,) = [parties.folder / "state2"]
    number = live(parties)
    parties.processes[2].terminate()
    parties.processes[2].wait()
    for file in folder.glob("*.share"):
        text, _, body = file.read_bytes().partition(b"\n")
        other = text.replace(b'"padding":[1,1],"stride":[1,1]', b'"padding":[2,2],"stride":[2,2]')
        assert other != text
        file.write_bytes(other + b"\n" + body)
    parties.start(2)
    wait_for(lambda: "no weights in common" in parties.status()["why"], parties)
    deal(parties, number)
    parties.until_open()
