"""Real parties whose set-up is a test's own: limits, silence, no weights, two of Cheetah."""

from __future__ import annotations

import secrets
import signal
from pathlib import Path

import numpy as np
import pytest

from g2d.protect.multiparty.client import Client
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.rings import from_ring, join, split, to_ring
from smpc_networks import NEAR, deal, expected, inputs, raw
from smpc_parties import Setup, short_folder, wait_for, why_absent

absent = why_absent()
pytestmark = [
    pytest.mark.skipif(bool(absent), reason=absent or "SPU is here"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


def test_parties_without_weights_say_so():
    with short_folder() as folder:
        setup = Setup(Path(folder))
        try:
            setup.start_all()
            for rank in range(3):
                wait_for(lambda r=rank: "no weights yet" in setup.status(r)["why"], setup)
            with setup.client() as asking, pytest.raises(MultipartyError, match="no weights yet"):
                asking.infer(inputs(1))
        finally:
            setup.stop()


def one_client_alone(setup: Setup, client: Client) -> None:
    """Whoever sends one party a share under another's name gets no answer, and takes none away."""
    session, name, x = setup.status()["session"], secrets.token_hex(16), inputs(1)
    shares = split(to_ring(x), "aby3")
    with Client(setup.config, setup.own("other")) as other:
        asked = {"kind": "infer", "id": name, "n": 1, "digest": other.program.digest}
        for rank in (1, 2):  # before it comes from whose it is
            other.lines[rank].send(asked, shares[rank])
        for line, share in zip(client.lines, shares, strict=True):
            line.send(asked, share)
        told = [line.receive(1 << 20) for line in client.lines]
        logits = from_ring(join([body for _, body in told], "aby3")).reshape(1, -1)
        assert np.abs(logits - expected(1, x)).max() < NEAR
        for rank in (1, 2):
            with pytest.raises(MultipartyError, match="have not got this request"):
                other.lines[rank].receive(1 << 20)
    assert setup.status()["session"] == session


def test_a_request_that_some_parties_lack_is_refused_and_the_next_is_not():
    with short_folder() as folder:
        setup = Setup(Path(folder), arrive=6.0)
        try:
            setup.start_all()
            setup.until_met()
            deal(setup, 1)
            with setup.client() as asking:
                asking.program  # noqa: B018 (connects)
                said = raw(asking, inputs(1), ranks=(0, 1))
                assert all("has not got" in one for one in said), said
                (one,) = raw(asking, inputs(1), ranks=(2,))
                assert "have not got this request" in one
                assert asking.infer(inputs(1)).number == 1
                one_client_alone(setup, asking)
        finally:
            setup.stop()


@pytest.mark.parametrize("rank", [1, 0])
def test_a_party_that_is_silent_is_gone_by_the_clock(rank):
    """Its sockets stay, so nothing but silence tells; the others say so in its place."""
    with short_folder() as folder:
        setup = Setup(Path(folder), silence=15.0)
        try:
            setup.start_all()
            setup.until_met()
            deal(setup, 1)
            with setup.client() as asking:
                asking.infer(inputs(1))
                setup.processes[rank].send_signal(signal.SIGSTOP)
                told = rf"refuses: party {rank} has said nothing for 15 seconds"
                with pytest.raises(MultipartyError, match=told):
                    asking.infer(inputs(1))
                setup.processes[rank].send_signal(signal.SIGCONT)
            setup.until_open()
            with setup.client() as asking:
                assert asking.infer(inputs(1)).number == 1
        finally:
            for process in setup.processes.values():
                process.send_signal(signal.SIGCONT)
            setup.stop()


def test_a_client_asks_in_measure():
    with short_folder() as folder:
        setup = Setup(Path(folder), per_minute=5)
        try:
            setup.start_all()
            setup.until_met()
            deal(setup, 1)
            with setup.client() as asking:
                asking.infer(inputs(5))
                with pytest.raises(MultipartyError, match="5 a minute for one client"):
                    asking.infer(inputs(5))
        finally:
            setup.stop()


def test_two_parties_compute_by_cheetah():
    with short_folder() as folder:
        setup = Setup(Path(folder), "cheetah")
        try:
            setup.start_all()
            setup.until_met()
            deal(setup, 1)
            x = inputs(10)
            with setup.client() as asking:
                answer = asking.infer(x)
                assert np.abs(answer.logits - expected(1, x)).max() < NEAR
                deal(setup, 2)
                answer = asking.infer(x)
            assert answer.number == 2
            assert np.abs(answer.logits - expected(2, x)).max() < NEAR
        finally:
            setup.stop()
