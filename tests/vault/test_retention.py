"""Old generations keep digests alone; nothing is lost that counts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from g2d.errors import VaultError
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from vaults import WEIGHTS, content

SETTINGS = '[task]\nname = "digits"\n'


@pytest.fixture
def long(tmp_path: Path) -> Iterator[Vault]:
    """Six generations, 5 live."""
    with Vault.create(tmp_path / "long", SETTINGS) as vault:
        for number in range(1, 7):
            files = {"weights": content(number), "attacks": b"a"}
            vault.accept(files, {}, activate=number < 6, sign=lambda _: bytes(64))
        yield vault


def held(vault: Vault) -> list[int]:
    return [int(f.parent.name) for f in sorted(vault.path.rglob("generations/*/weights.*"))]


def test_only_the_newest_keep_weights_and_the_rest_their_digests(long):
    assert long.retire_old(1000, needed=2) == 0
    assert held(long) == [1, 2, 3, 4, 5, 6]
    assert long.retire_old(3, needed=2) == 3
    assert held(long) == [4, 5, 6]
    assert long.retire_old(1, needed=3) == 3  # gates count the last three that were exposed
    assert long.retire_old(1, needed=0) == 4  # never what is live, nor what came after
    assert held(long) == [5, 6]
    for number in (1, 4):
        kept = {item.name for item in long.generation_file(number).parent.iterdir()}
        assert kept == {"manifest.json", "manifest.sig"}
        assert long.read_generation(number, "manifest")
        assert set(long.generation(number).files) == {"weights", "attacks"}
        with pytest.raises(VaultError, match=f"generation {number} is retired"):
            long.read_generation(number)
    assert long.read_generation(5) == content(5)
    assert long.accept(WEIGHTS, {}).number == 7
    missing = [p for p in verify(long.path, patience=0) if p.kind in ("absent", "number")]
    assert not missing


def test_a_kill_between_row_and_files_is_made_good_at_the_next_opening(long, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as kill:
        kill.setattr("g2d.vault.vault.remove_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            long.retire_old(3, needed=1)
    assert held(long) == [1, 2, 3, 4, 5, 6]
    long.close()
    with Vault.open(long.path, write=True) as vault:
        assert held(vault) == [4, 5, 6]
        assert vault.retired == 3


def test_a_ledger_that_retires_the_live_one_deletes_nothing(long):
    long.close()
    with closing(sqlite3.connect(long.path / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("CREATE TABLE retired (through INTEGER, removed INTEGER)")
        ledger.execute("INSERT INTO retired VALUES (99, 0)")
    Vault.open(long.path, write=True).close()
    assert held(long) == [1, 2, 3, 4, 5, 6]
    assert any("is live and retired" in p.what for p in verify(long.path, patience=0))
