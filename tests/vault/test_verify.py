"""`g2d verify`: what is damaged is found, what is sound is not blamed, and nothing is changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import g2d
from benchmarks.hostile.damages import DAMAGES, restore, with_ledger_in_step
from g2d.cli.main import app
from g2d.errors import KeyFileError, VaultError
from g2d.vault import verify as verifying
from g2d.vault.ledger import sha256
from g2d.vault.signing import SigningKey
from g2d.vault.vault import SIGNATURE, Vault
from g2d.vault.verify import Problem
from g2d.weights.checkpoints import pack
from sound import KEY, accept, make_vault, network, pool


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = make_vault(tmp_path_factory.mktemp("whole") / "vault")
    (path / "redteam").mkdir()
    (path / "redteam" / "results.json").write_text("{}")
    return path


@pytest.fixture
def vault(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "vault"))


def look(path: Path, key: object = None) -> list[Problem]:
    return g2d.verify(path, key, patience=0)


def kinds(path: Path, key: object = None) -> list[str]:
    return [problem.kind for problem in look(path, key)]


def contents(folder: Path) -> dict[str, bytes]:
    sqlite_s = {".sqlite-shm", ".sqlite-wal"}  # a reader makes them, empty
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in sqlite_s]
    return {str(path): path.read_bytes() for path in files}


# -- what is sound ---------------------------------------------------------------------------------


def test_a_sound_vault_has_no_problem_and_stays_as_it_is(vault, tmp_path):
    before = contents(vault)
    assert g2d.verify(vault) == []
    KEY.public.write(tmp_path / "key.pub")
    for key in (KEY.public, tmp_path / "key.pub", str(tmp_path / "key.pub")):
        assert g2d.verify(vault, key) == []
    assert contents(vault) == before


def test_a_defence_s_own_vault_has_no_problem(tiny_vault):
    assert g2d.verify(tiny_vault) == []


def test_an_old_vault_without_an_identity_and_an_empty_one_have_none(vault, tmp_path):
    execute(vault, "DROP TABLE identity")
    assert g2d.verify(vault) == []
    Vault.create(tmp_path / "empty", "").close()
    assert g2d.verify(tmp_path / "empty") == []


def test_a_vault_in_use_has_no_problem(vault):
    """A writer commits, replaces and rejects all the while: nothing of it is taken for damage."""
    stop = threading.Event()

    def write() -> None:
        with Vault.open(vault, write=True) as writer:
            turn = 0
            while not stop.is_set():
                turn += 1
                accept(writer, turn)
                writer.put("generator", 0, {"weights": network(turn, size=5)}, {})
                writer.put("member", 1, {"weights": network(turn), "attacks": pool()}, {})
                writer.reject({"reasons": []})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(8):
            assert g2d.verify(vault, KEY.public) == []
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("times", [1, 99])
def test_an_entry_that_is_replaced_meanwhile_is_no_problem(vault, monkeypatch, times):
    """Once, or again and again: its old file is gone by the time that it is looked for."""
    real, seen = verifying.read_rows, []

    def read_rows(path: Path) -> object:
        rows = real(path)
        seen.append(rows)
        if len(seen) <= times:
            with Vault.open(path, write=True) as writer:
                writer.put("member", 1, {"weights": network(len(seen)), "attacks": pool()}, {})
        return rows

    monkeypatch.setattr(verifying, "read_rows", read_rows)
    assert look(vault) == []
    (vault / "population" / "000000.safetensors").unlink()
    seen.clear()
    assert [problem.where for problem in look(vault)] == ["population/000000.safetensors"]


# -- what is not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", dict.fromkeys(DAMAGES), ids=lambda damage: damage.__name__)
def test_every_damage_of_a_signed_generation_is_found(vault, damage):
    """With the key even where the ledger was forged to match; without it, all but signatures."""
    chance, folder = random.Random(damage.__name__), vault / "generations" / "000004"
    spare = {path: path.read_bytes() for path in (vault / "generations").rglob("*.*")}
    with closing(sqlite3.connect(vault / "ledger.sqlite")) as ledger:
        rows = ledger.execute("SELECT * FROM generations").fetchall()
        for turn in range(8):
            damage(folder, chance, KEY)
            changed = {p for p, d in spare.items() if not p.is_file() or p.read_bytes() != d}
            if not changed:
                continue  # a list of one reversed, say
            if changed != {folder / SIGNATURE}:
                assert any(p.where.startswith("generations/") for p in look(vault)), turn
            assert look(vault, KEY.public), turn
            with_ledger_in_step(ledger, folder)
            assert look(vault, KEY.public), turn
            restore(ledger, spare, rows)
            assert look(vault, KEY.public) == []


def test_a_bit_anywhere_is_found(vault):
    chance = random.Random(1)
    kept = {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "vault.lock"}
    files = [path for path in sorted(vault.rglob("*")) if path.is_file() and path.name not in kept]
    for path in files:
        if "redteam" in path.parts or path.name == "task.toml":
            continue
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        before = path.read_bytes()
        path.write_bytes(data)
        found = look(vault, KEY.public)
        assert len(found) == 1, path
        where = found[0].where
        assert str(path.relative_to(vault)).startswith(where), (path, where)
        path.write_bytes(before)


def execute(vault: Path, *statements: str) -> None:
    with closing(sqlite3.connect(vault / "ledger.sqlite")) as ledger, ledger:
        for statement in statements:
            ledger.execute(statement)


def put_member(vault: Path, data: bytes) -> None:
    """Member 1's file and its digest in the ledger: what a faulty writer would leave."""
    path = vault / "population" / "000001.safetensors"
    old = sha256(path.read_bytes())
    path.write_bytes(data)
    execute(vault, f"UPDATE entries SET files = replace(files, '{old}', '{sha256(data)}')")


def link(path: Path) -> None:
    """The very same bytes, behind a link."""
    aside = path.parents[1].with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def manifest(vault: Path, **changes: object) -> None:
    """Generation 2's manifest changed, its row with it."""
    path = vault / "generations" / "000002" / "manifest.json"
    text = json.dumps(json.loads(path.read_text()) | changes)
    path.write_text(text)
    with closing(sqlite3.connect(vault / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE generations SET manifest = ? WHERE number = 2", (text,))


MEMBER = "population/000001.safetensors"
CASES = {
    "no file": ("absent", MEMBER, lambda v: (v / MEMBER).unlink()),
    "a link": ("unreadable", MEMBER, lambda v: link(v / MEMBER)),
    "a folder that is a link": ("unreadable", "population", lambda v: link(v / "population")),
    "a generation that is a link": (
        "unreadable", "generations/000003", lambda v: link(v / "generations" / "000003")
    ),
    "a pipe": (
        "unreadable", MEMBER, lambda v: ((v / MEMBER).unlink(), os.mkfifo(v / MEMBER))
    ),
    "a folder for a file": (
        "unreadable", MEMBER, lambda v: ((v / MEMBER).unlink(), (v / MEMBER).mkdir())
    ),
    "cut": ("digest", MEMBER, lambda v: os.truncate(v / MEMBER, 40)),
    "no safetensors": ("tensors", MEMBER, lambda v: put_member(v, b"weights")),
    "NaN": ("tensors", MEMBER, lambda v: put_member(v, network(float("nan")))),
    "infinity": ("tensors", MEMBER, lambda v: put_member(v, network(float("inf")))),
    "NaN of 16 bits": (
        "tensors", MEMBER,
        lambda v: put_member(v, pack({"w": torch.tensor([0.0, torch.nan]).bfloat16()})),
    ),
    "another shape": ("architecture", MEMBER, lambda v: put_member(v, network(size=4))),
    "another tensor": (
        "architecture", MEMBER,
        lambda v: put_member(v, pack({"w": torch.ones(3), "c": torch.ones(1)})),
    ),
    "integers": (
        "architecture", MEMBER,
        lambda v: put_member(v, pack({"w": torch.ones(3).int(), "b": torch.ones(1)})),
    ),
    "indices": ("tensors", MEMBER, lambda v: put_member(v, pool(indices=1))),
    "no generation": (
        "absent", "generations/000003", lambda v: shutil.rmtree(v / "generations" / "000003")
    ),
    "no manifest": (
        "absent", "generations/000003/manifest.json",
        lambda v: (v / "generations" / "000003" / "manifest.json").unlink(),
    ),
    "a short signature": (
        "signature", "generations/000003/manifest.sig",
        lambda v: os.truncate(v / "generations" / "000003" / "manifest.sig", 63),
    ),
    "a stray file": ("unknown", "notes.txt", lambda v: (v / "notes.txt").write_text("mine")),
    "a stray member": (
        "unknown", "population/000009.safetensors",
        lambda v: (v / "population" / "000009.safetensors").write_bytes(network()),
    ),
    "an old generator": (
        "unknown", "generator.safetensors",
        lambda v: (v / "generator.safetensors").write_bytes(network()),
    ),
    "a stray generation": (
        "unknown", "generations/000005", lambda v: (v / "generations" / "000005").mkdir()
    ),
    "half a generation": (
        "unknown", "generations/.tmp-000005", lambda v: (v / "generations" / ".tmp-000005").mkdir()
    ),
    "a stray file of a generation": (
        "unknown", "generations/000001/x.py",
        lambda v: (v / "generations" / "000001" / "x.py").write_text("import os"),
    ),
    "settings gone": ("absent", "task.toml", lambda v: (v / "task.toml").unlink()),
    "settings wrong": ("settings", "task.toml", lambda v: replace(v / "task.toml", "name", "nam")),
    "settings not text": (
        "settings", "task.toml", lambda v: (v / "task.toml").write_bytes(b"\xff")
    ),
    "a row gone": (
        "number", "ledger.sqlite", lambda v: execute(v, "DELETE FROM generations WHERE number = 2")
    ),
    "the live row gone": (
        "exposure", "ledger.sqlite",
        lambda v: execute(v, "DELETE FROM generations WHERE number >= 3"),
    ),
    "digests that are none": (
        "row", "ledger.sqlite",
        lambda v: execute(v, "UPDATE generations SET files = '{}' WHERE number = 2"),
    ),
    "a manifest that is none": (
        "row", "ledger.sqlite",
        lambda v: execute(v, "UPDATE generations SET manifest = 'null' WHERE number = 2"),
    ),
    "a path for a name": (
        "row", "ledger.sqlite",
        lambda v: execute(v, "UPDATE entries SET files = replace(files, 'weights', '../x')"),
    ),
    "a kind that is none": (
        "row", "ledger.sqlite",
        lambda v: execute(v, "UPDATE entries SET kind = 'stranger' WHERE kind = 'base'"),
    ),
    "a time that is none": (
        "row", "ledger.sqlite", lambda v: execute(v, "UPDATE entries SET created = 'noon'")
    ),
    "a rejection that is none": (
        "row", "ledger.sqlite", lambda v: execute(v, "UPDATE rejections SET info = '[' ")
    ),
    "an exposure's time": (
        "row", "ledger.sqlite", lambda v: execute(v, "UPDATE exposures SET created = NULL")
    ),
    "another time": (
        "manifest", "generations/000002/manifest.json",
        lambda v: execute(v, "UPDATE generations SET created = created + 1 WHERE number = 2"),
    ),
    "another number": (
        "manifest", "generations/000002/manifest.json", lambda v: manifest(v, number=3)
    ),
    "exposed to a later one": (
        "manifest", "generations/000002/manifest.json", lambda v: manifest(v, exposed=[3])
    ),
    "a gate not passed": (
        "manifest", "generations/000002/manifest.json",
        lambda v: manifest(v, gates=[{"gate": "distance", "passed": False}]),
    ),
    "a table gone": ("ledger", "ledger.sqlite", lambda v: execute(v, "DROP TABLE exposures")),
    "no database": (
        "ledger", "ledger.sqlite", lambda v: (v / "ledger.sqlite").write_bytes(b"songs" * 999)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_named(vault, name):
    kind, where, damage = CASES[name]
    damage(vault)
    found = g2d.verify(vault, patience=0)
    assert (kind, where) in [(problem.kind, problem.where) for problem in found], found
    assert all("\n" not in str(problem) and str(vault) not in str(problem) for problem in found)


def test_an_unsigned_or_foreign_generation_is_found_by_its_key(vault):
    assert kinds(vault, SigningKey.generate().public) == ["signature"] * 4
    (vault / "generations" / "000002" / "manifest.sig").unlink()
    assert kinds(vault) == []
    assert kinds(vault, KEY.public) == ["signature"]


def test_a_corrupt_page_of_the_ledger_is_found(vault):
    with Vault.open(vault, write=True) as writer:
        for _ in range(20):
            writer.reject({"x": "y" * 3000})
    with (vault / "ledger.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 3000)
    assert set(kinds(vault)) == {"ledger"}


def test_what_is_no_vault_and_a_bad_key_are_errors(vault, tmp_path):
    with pytest.raises(VaultError, match="no such folder"):
        g2d.verify(tmp_path / "absent")
    with pytest.raises(VaultError, match="not a vault"):
        g2d.verify(tmp_path)
    with pytest.raises(KeyFileError, match="cannot read the key"):
        g2d.verify(vault, tmp_path / "absent.pub")


def test_an_endless_file_is_not_read_to_its_end(vault):
    os.truncate(vault / "task.toml", 1 << 40)  # sparse: it takes no room
    (problem,) = g2d.verify(vault, patience=0)
    assert (problem.kind, problem.where) == ("unreadable", "task.toml")
    assert "larger than" in problem.what


# -- the command -----------------------------------------------------------------------------------


def run(*arguments: object, code: int) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_the_command_prints_a_line_for_each_problem(vault, tmp_path):
    assert run(vault, code=0) == (f"{vault} is sound.\n", "")
    assert run(vault, "--json", code=0) == ("[]\n", "")
    os.truncate(vault / MEMBER, 10)
    (vault / "early" / "000000.safetensors").unlink()
    said, error = run(vault, code=1)
    assert said.splitlines() == [
        "early/000000.safetensors: it is missing",
        f"{MEMBER}: it is corrupt: its SHA-256 differs from the ledger's",
    ]
    assert error == f"error: {vault} has 2 problems: restore what is damaged from a backup\n"
    said, _ = run(vault, "--json", code=1)
    assert [row["kind"] for row in json.loads(said)] == ["absent", "digest"]
    KEY.public.write(tmp_path / "key.pub")
    assert run(vault, "--key", tmp_path / "key.pub", code=1)[0].count("\n") == 2
    assert "there is no vault" in run(tmp_path / "absent", code=1)[1]
