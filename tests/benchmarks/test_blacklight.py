"""Blacklight finds the same matches as counting all shared hashes does."""

import numpy as np

from benchmarks.monitoring.blacklight import MATCHES, Blacklight


def test_it_finds_what_comparing_with_every_earlier_input_finds():
    draws, found, wanted, earlier = np.random.default_rng(0), [], [], []
    rival = Blacklight(b"salt")
    first = draws.random((1, 16, 16)).astype(np.float32)
    for n in range(120):
        x = first if n % 3 else np.zeros_like(first)
        x = np.where(draws.random(x.shape) < draws.choice([0.01, 0.05, 0.3]), draws.random(), x)
        hashes = rival.hashes(x)
        wanted.append(any(len(hashes & other) >= MATCHES for other in earlier))
        earlier.append(hashes)
        found.append(rival.attacked(x))
    assert found == wanted
    assert 10 < sum(wanted) < 110


def test_one_and_the_same_input_is_an_attack_unless_it_is_blank():
    x = np.random.default_rng(1).random((1, 12, 12)).astype(np.float32)
    rival = Blacklight(b"salt")
    assert [rival.attacked(x), rival.attacked(x)] == [False, True]
    assert not any(rival.attacked(np.zeros_like(x)) for _ in range(3))
