"""What a service sees of ciphertexts is measured on real ones, and told."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("psutil")
pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'g2d[he]'")

from benchmarks.confidential import ciphertexts


def test_what_is_seen_and_what_answers_give_away_is_measured(tmp_path):
    given = Namespace(task="digits", data="MNIST's folder", n=12, watched=12, steps=150, seed=0)
    result = ciphertexts.measure(given, Path())
    found = {(row["kind"], row["chain"]): row for row in result["rows"]}
    assert {kind for kind, _ in found} == {
        "encrypted-view", "encrypted-view-opened", "encrypted-copy", "encrypted-membership"
    }  # fmt: skip
    view = found["encrypted-view", "encrypted"]["extra"]
    for what in ("p_queries", "p_answers"):  # no chance decides: it is 1e-9 by accident
        assert 1e-9 < view[what] <= 1
    areas = [found["encrypted-membership", way]["extra"]["area"] for way in ("encrypted", "plain")]
    assert areas[0] == pytest.approx(areas[1], abs=0.1)
    (tmp_path / f"{ciphertexts.NAME}.json").write_text(json.dumps(result))
    (text,) = ciphertexts.made(tmp_path).values()
    assert "the service looks at all that it has of a request" in text
    assert "χ² against uniform: p = " in text
    assert "not measured yet" in ciphertexts.made(tmp_path / "absent")[ciphertexts.NAME]


def test_residues_that_are_none_are_found():
    """The test of uniformity sees what is no ciphertext: small numbers, as an encoded image has."""
    asked = object.__new__(ciphertexts.Asked)
    asked.plan = type("Plan", (), {"parameters": type("P", (), {"primes": (1 << 30, 1 << 31)})})
    asked.counts = {"queries": np.zeros(256, np.int64)}
    source = np.random.default_rng(0)
    words = source.integers(0, [[[1 << 30], [1 << 31]]], (1, 2, 4096), np.uint64)
    assert asked._known("queries", words).shape == (4096,)
    asked.seen = source.random((10, 20))
    y = np.arange(10) % 2
    even, _ = ciphertexts.watching(asked, source.random((10, 3)), y)
    asked._known("queries", words // np.uint64(2))
    odd, _ = ciphertexts.watching(asked, source.random((10, 3)), y)
    assert even.extra["p_queries"] > 1e-9 > odd.extra["p_queries"]
