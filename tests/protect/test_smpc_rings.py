"""Shares of values: together they are the value, fewer are random numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from g2d.errors import DataError
from g2d.protect.multiparty.client import Client, check_inputs
from g2d.protect.multiparty.config import PARTIES, WIDTH, Config
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.program import FRACTION, Program
from g2d.protect.multiparty.rings import from_ring, join, split, to_ring

LINEAR = {"kind": "linear", "weight": [2, 3], "bias": True}


@pytest.mark.parametrize("protocol", PARTIES)
@given(values=st.lists(st.floats(-(2.0**20), 2.0**20), max_size=20))
def test_shares_together_are_the_values(protocol, values):
    shares = split(to_ring(np.array(values)), protocol)
    assert [len(share) for share in shares] == [WIDTH[protocol] * len(values)] * PARTIES[protocol]
    np.testing.assert_allclose(from_ring(join(shares, protocol)), values, atol=2.0**-FRACTION)


@pytest.mark.parametrize("protocol", PARTIES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.75])
def test_what_one_party_holds_is_uniform_whatever_the_value_is(protocol, value):
    for share in split(to_ring(np.full(20_000, value)), protocol):
        counts = np.bincount(np.frombuffer(share, np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_what_one_party_holds_never_comes_again():
    whole = to_ring(np.arange(4.0))
    assert all(a != b for a, b in zip(split(whole, "aby3"), split(whole, "aby3"), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_values_that_no_ring_holds_are_refused(value):
    with pytest.raises(MultipartyError, match="finite and below"):
        to_ring(np.array([value]))


def test_parties_that_hold_other_parts_of_one_value_are_told_apart():
    shares = split(to_ring(np.arange(5.0)), "aby3")
    changed = bytearray(shares[1])
    changed[0] ^= 1
    with pytest.raises(MultipartyError, match="sent different ones"):
        join([shares[0], bytes(changed), shares[2]], "aby3")


@pytest.mark.parametrize(("count", "cut"), [(2, 0), (3, 1), (3, 16), (4, 0)])
def test_shares_that_are_missing_or_cut_are_refused(count, cut):
    shares = [*split(to_ring(np.arange(5.0)), "aby3"), b""][:count]
    shares[0] = shares[0][: len(shares[0]) - cut]
    with pytest.raises(MultipartyError, match="expected 3 of one length"):
        join(shares, "aby3")


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.zeros((2, 4)), "expected numbers of shape"),
        (np.zeros((0, 3)), "expected numbers of shape"),
        (np.zeros((1, 3), complex), "expected numbers of shape"),
        (np.array([["a", "b", "c"]]), "expected numbers of shape"),
        (np.array([[0.0, 0.5, 1.1]]), "expected 0 to 1"),
        (np.array([[0.0, 0.5, -0.1]]), "expected 0 to 1"),
        (np.array([[0.0, 0.5, math.nan]]), "expected 0 to 1"),
    ],
)
def test_inputs_are_checked_before_they_are_shared(x, expected):
    with pytest.raises(DataError, match=expected):
        check_inputs(Program((3,), 2, (LINEAR,), (0.0,), (1.0,)), x)


def test_inputs_of_a_task_without_a_range_have_one_all_the_same():
    with pytest.raises(DataError, match="expected -32768 to 32768"):
        check_inputs(Program((3,), 2, (LINEAR,)), np.array([[1e6, 0, 0]]))


def test_each_feature_has_its_own_range():
    program = Program((3,), 2, (LINEAR,), (0.0, -5.0, 0.0), (1.0, 5.0, 100.0))
    check_inputs(program, np.array([[1.0, -5.0, 100.0]]))
    with pytest.raises(DataError):
        check_inputs(program, np.array([[1.5, -5.0, 100.0]]))


def test_a_client_takes_no_generation_below_its_last():
    """Party 0 says which generation answers, and could go on with one that all others had left."""
    program = Program((3,), 2, (LINEAR,))
    config = Config("aby3", (), (), ())
    client = Client(config, (Path("none.pem"), Path("none.key")))

    def answered(number: Any) -> int:
        told = {"kind": "answer", "id": "x", "digest": program.digest, "number": number,
                "sharing": "y", "seconds": 0.0, "cpu": 0.0, "sent": 0}  # fmt: skip
        return client._answer("x", program, [told] * 3, split(to_ring(np.zeros(2)), "aby3")).number

    assert [answered(number) for number in (2, 2, 5)] == [2, 2, 5]
    with pytest.raises(MultipartyError, match="by generation 4 after 5: numbers only rise"):
        answered(4)
    client.close()
    with pytest.raises(MultipartyError, match="by generation 2 after 5"):
        answered(2)
    assert answered(6) == 6
