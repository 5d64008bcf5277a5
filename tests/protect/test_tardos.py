"""Codewords of replicas: whoever takes part is found, whoever does not is left alone."""

import numpy as np
import pytest

from g2d.protect.fingerprint import Code, accuse, design
from g2d.protect.fingerprint.tardos import worst_case

COLLUDERS, INNOCENTS = 3, 500
LENGTH, CUTOFF = design(COLLUDERS)


@pytest.fixture(scope="module")
def words():
    code = Code(b"a key of the tests", LENGTH, CUTOFF)
    return code, np.stack([code.word(slot) for slot in range(COLLUDERS + INNOCENTS)])


STRATEGIES = {
    "majority": lambda theirs, draws: theirs.sum(0) * 2 > COLLUDERS,
    "minority": lambda theirs, draws: np.where(
        theirs.all(0) | ~theirs.any(0), theirs[0], theirs.sum(0) * 2 < COLLUDERS
    ),
    "any of them": lambda theirs, draws: theirs[
        draws.integers(COLLUDERS, size=LENGTH), np.arange(LENGTH)
    ],
    "ones": lambda theirs, draws: theirs.any(0),
    "zeros": lambda theirs, draws: theirs.all(0),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_coalition_of_three_is_found_and_no_innocent_of_2500_is_accused(words, strategy):
    code, all_words = words
    theirs = all_words[:COLLUDERS]
    made = STRATEGIES[strategy](theirs, np.random.default_rng(0))
    agreed = theirs.all(0) | ~theirs.any(0)
    assert (made[agreed] == theirs[0][agreed]).all()  # the marking assumption
    found = accuse(code, 2.0 * made - 1.0, COLLUDERS + INNOCENTS)
    assert found
    assert {one.slot for one in found} <= set(range(COLLUDERS))
    assert all(one.p <= 1e-6 for one in found)


def test_an_average_names_all_three_and_noise_alone_nobody(words):
    code, all_words = words
    draws = np.random.default_rng(1)
    mean = (2.0 * all_words[:COLLUDERS] - 1.0).mean(0)
    noisy = np.clip(mean + 0.3 * draws.normal(size=LENGTH), -1, 1)
    slots = {one.slot for one in accuse(code, noisy, COLLUDERS + INNOCENTS)}
    assert slots == set(range(COLLUDERS))
    for _ in range(5):
        noise = np.clip(draws.normal(size=LENGTH), -1, 1)
        assert accuse(code, noise, COLLUDERS + INNOCENTS) == []
    assert accuse(code, np.zeros(LENGTH), 10) == []


def test_innocents_scores_have_mean_zero_and_unit_variance(words):
    code, all_words = words
    heard = 2.0 * all_words[0] - 1.0
    scores = code.scores(heard, COLLUDERS + INNOCENTS)[1:] / LENGTH**0.5
    assert abs(scores.mean()) < 0.2
    assert 0.85 < scores.std() < 1.15


def test_a_code_is_a_function_of_its_key():
    first, again, other = (Code(key, LENGTH, CUTOFF) for key in (b"one", b"one", b"two"))
    assert np.array_equal(first.word(7), again.word(7))
    assert not np.array_equal(first.word(7), first.word(8))
    assert not np.array_equal(first.word(7), other.word(7))
    assert first.biases.min() >= CUTOFF - 1e-12
    assert first.biases.max() <= 1 - CUTOFF + 1e-12
    assert "one" not in repr(first)


def test_lengths_grow_with_the_square_of_the_coalition():
    lengths = [design(c)[0] for c in (2, 4, 8)]
    assert 3 < lengths[1] / lengths[0] < 8
    assert 3 < lengths[2] / lengths[1] < 8
    # Škorić et al. 2008: without a cutoff a coalition's total score has mean 2/π whatever it does.
    assert worst_case(3, 1e-9) == pytest.approx(2 / np.pi, rel=1e-3)
