"""Sealing and unsealing, killed: the vault opens, all of it is there, and the command goes on.

A storm of a hundred: python -m benchmarks.sealing.kills
"""

import os

import pytest

from benchmarks.sealing.kills import storm

pytest.importorskip("cryptography")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_lose_nothing_and_leave_no_plaintext_in_the_end(tmp_path):
    told = storm(tmp_path, kills=6, size=2000)
    assert told["blocks"] == 0
    assert told["left"]["sealing"] + told["left"]["unsealing"] > 0  # it came in between
