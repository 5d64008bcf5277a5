"""`g2d refresh` and `g2d rollback`: what they say, and whom they leave the writing to."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import g2d.defence.refresh as refreshing
from commands import fail, succeed
from g2d.core.engine import SerialEngine
from g2d.defence.refresh import Told
from g2d.errors import DataError
from g2d.settings import Settings
from g2d.vault.sources import ordered
from g2d.vault.vault import Vault

MANIFEST = {"task": "digits", "population": "p", "generator": "g", "gates": [], "exposed": []}


@pytest.fixture
def renewed(tmp_path):
    """A vault of bytes that was refreshed once, with generation 2 of the new population live."""
    path = tmp_path / "vault"
    with Vault.create(path, Settings().to_toml()) as made:
        made.put("generator", 0, {"weights": b"first"}, {})
        made.accept({"weights": b"one"}, MANIFEST, activate=True)
        entries = [(kind, 1_000_000, {"weights": b"new"}, {}) for kind in ("records", "generator")]
        made.renew(1, {"why": "refresh", "parent": 0}, entries)
        made.accept({"weights": b"two"}, MANIFEST | {"renewal": 1}, activate=True)
    return path


def test_rollback_makes_the_former_population_the_source_and_its_generation_live(renewed):
    assert "source       renewal 1" in succeed("show", renewed).stdout
    said = succeed("rollback", renewed).stdout
    assert "Generations come from the first population again." in said
    assert "Generation 3 is live: the weights of generation 1." in said
    assert f"Next: g2d generate {renewed}" in said
    assert "is back already" in fail("rollback", renewed)


def test_rollback_beside_a_service_leaves_word_for_it(renewed):
    with Vault.open(renewed, write=True) as service:
        said = succeed("rollback", renewed).stdout
        assert "it goes back to the first population before it makes" in " ".join(said.split())
        assert ordered(service)
        assert service.source == 1


def test_rollback_knows_no_torch(renewed):
    code = (
        "import sys; sys.argv = ['g2d', 'rollback', sys.argv[1]]\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
        "from g2d.cli.main import main; main()"
    )

    command = [sys.executable, "-c", code, str(renewed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_refresh_says_what_it_does_and_whom_it_waits_for(vault, tmp_path, digits, monkeypatch):
    """The refresh itself is tested beside the defence: here is what is asked for and told."""
    np.savez(tmp_path / "new.npz", x=digits.splits.test.x[:40], y=digits.splits.test.y[:40])
    monkeypatch.setattr("g2d.cli.refresh.make_engine", lambda *_: SerialEngine())
    asked, told = [], [Told(), Told(known=True), DataError("the new data are refused: why")]

    def made(defence, given, how):
        asked.append((defence.vault.path, len(given), how.accept, how.anew))
        how.say("records: 40 new")
        if isinstance(found := told.pop(0), Exception):
            raise found
        return found

    monkeypatch.setattr(refreshing, "refresh", made)
    with Vault.open(vault, write=True):  # a service
        said = succeed("refresh", vault, "--data", tmp_path / "new.npz", "--accept-data").stdout
    assert "records: 40 new" in said
    assert "takes the new population up before it makes" in " ".join(said.split())
    said = succeed("refresh", vault, "--data", tmp_path / "new.npz", "--anew").stdout
    assert "knows these data already" in said
    assert f"g2d rollback {vault}" in said
    assert asked == [(vault, 40, True, False), (vault, 40, False, True)]
    assert "does not exist" in fail("refresh", vault, "--data", tmp_path / "absent")
