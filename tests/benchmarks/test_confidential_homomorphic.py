"""The benchmark of encrypted answers measures and tells."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("psutil")
pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'g2d[he]'")

from benchmarks.confidential.homomorphic import measure, rows


def test_a_network_of_digits_is_measured():
    given = Namespace(task="digits", data="MNIST's folder", images=2, steps=150, seed=0)
    result = measure(given, Path())
    assert result["agreement"] == {"same": 2, "of": 2}
    assert result["error"]["exact"] < 1e-3
    assert result["accuracy"] > 0.7
    told = {what: reached for what, _, reached in rows(result)}
    assert told["argmax as torch's"] == "2 of 2"
    assert told["N and bits of all primes"] == "16,384, 334"
    assert set(result["cpu_seconds"]) == {
        "plan", "encode", "upload", "read keys", "encrypt", "evaluate", "decrypt"
    }  # fmt: skip
