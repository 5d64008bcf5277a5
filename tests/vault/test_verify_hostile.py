"""`g2d verify` before a vault that somebody made to stop it: it ends, and says what is wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

import g2d
from commands import edit_ledger
from g2d.cli.main import app
from g2d.errors import VaultError
from g2d.vault import plain
from g2d.vault.vault import Vault
from sound import KEY, accept, make_vault
from vaults import SOURCES

EXTRA = '[task]\nname = "digits"\n[gates]\nextra = ["mine:gate"]\n'
DEEP = "[" * 200_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_vault(tmp_path_factory.mktemp("whole") / "vault")


@pytest.fixture
def vault(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "vault"))


def said(path: Path, key: object = None) -> list[str]:
    return [str(problem) for problem in g2d.verify(path, key, patience=0)]


# -- memory ----------------------------------------------------------------------------------------


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "small").write_bytes(b"small")
    tracemalloc.start()
    try:
        assert plain.read_plain(tmp_path / "small", 1 << 32) == b"small"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_vault_is_verified_within_little_address_space(vault):
    """The whole command: an ordinary machine has no 4 GiB to spare for each file."""
    done = subprocess.run(
        [sys.executable, "-m", "g2d", "verify", str(vault)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": SOURCES},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3_500_000 << 10,) * 2),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_is_too_large_or_grows_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert plain.read_plain(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        plain.read_plain(path, 4)
    real = os.fstat

    def grown(handle: int) -> os.stat_result:
        about = real(handle)
        with path.open("ab") as file:
            file.write(b"6")
        return about

    monkeypatch.setattr(plain.os, "fstat", grown)
    with pytest.raises(OSError, match="it grew"):
        plain.read_plain(path, 100)


def test_missing_numbers_are_told_as_ranges(vault):
    many, row = 2**40, "files, manifest, created FROM generations WHERE number = 1"
    edit_ledger(
        vault,
        "DELETE FROM generations WHERE number = 2",
        f"INSERT INTO generations SELECT {many}, {row}",
    )
    found = [line for line in said(vault) if "numbers rise" in line]
    assert found == [
        "ledger.sqlite: generation 2 has no row: numbers rise by one",
        f"ledger.sqlite: generations 5 to {many - 1} have no rows: numbers rise by one",
    ]


# -- nesting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE generations SET manifest = '{}' WHERE number = 2",
        "UPDATE generations SET files = '{}' WHERE number = 2",
        "UPDATE entries SET info = '{}' WHERE kind = 'base'",
        "UPDATE rejections SET info = '{}'",
    ],
)
def test_deep_json_is_one_problem(vault, change):
    edit_ledger(vault, change.format(DEEP))
    found = [line for line in said(vault, KEY.public) if "the row of" in line]
    assert len(found) == 1
    assert found[0].endswith("is damaged (it is nested too deeply)")


def test_deep_settings_are_one_problem(vault):
    (vault / "task.toml").write_text(f"x = {DEEP}")
    assert said(vault, KEY.public) == ["task.toml: task.toml is nested too deeply"]


def test_deep_json_does_not_end_a_reader(vault):
    edit_ledger(vault, f"UPDATE generations SET manifest = '{DEEP}' WHERE number = 2")
    with Vault.open(vault) as opened, pytest.raises(VaultError, match="row of generation 2"):
        opened.generation(2)


# -- what is no plain file -------------------------------------------------------------------------


def link(path: Path) -> None:
    aside = path.parents[1] / f"aside-{path.name}"
    if path.exists():
        path.rename(aside)
    else:
        aside.touch()
    path.symlink_to(aside)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("put", [link, pipe])
def test_settings_that_are_no_plain_file_are_read_by_nobody(vault, put):
    """Once told, and the signatures are checked all the same: they do not hang on a pipe."""
    put(vault / "task.toml")
    (line,) = said(vault, KEY.public)
    assert line.startswith("task.toml: it is ")
    (vault / "generations" / "000002" / "manifest.sig").write_bytes(bytes(64))
    assert len(said(vault, KEY.public)) == 2
    with Vault.open(vault) as opened, pytest.raises(VaultError, match=r"task\.toml"):
        assert opened.settings_text


def test_settings_of_a_sound_vault_are_read_as_before(vault):
    for data in (b"[task]\r\nname = 'digits'\r\n", "# größer\n[task]\n".encode()):
        (vault / "task.toml").write_bytes(data)
        with Vault.open(vault) as opened:
            assert opened.settings_text == (vault / "task.toml").read_text(encoding="utf-8")
        assert said(vault) == []


@pytest.mark.parametrize("put", [link, pipe])
@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_a_ledger_that_is_no_plain_file_is_not_opened(vault, put, end):
    put(vault / f"ledger.sqlite{end}")
    kinds = [(p.kind, p.where) for p in g2d.verify(vault, KEY.public, patience=0)]
    assert kinds == [("ledger", f"ledger.sqlite{end}")]
    assert said(vault) == [f"ledger.sqlite{end}: it is a link, or no plain file"]


# -- settings that changed -------------------------------------------------------------------------


def test_past_generations_stay_sound_when_the_settings_name_more(vault):
    with Vault.open(vault, write=True) as writer:
        writer.write_settings(EXTRA)
    assert [p.where for p in g2d.verify(vault, KEY.public, patience=0)] == [
        "generations/000003",  # the live one, and a kept one: loading them would import the gate
        "generations/000004",
    ]
    with Vault.open(vault, write=True) as writer:
        accept(writer, 5, source="digits gates=mine:gate")
    assert said(vault, KEY.public) == []
    folder = vault / "generations" / "000001"
    (folder / "manifest.sig").write_bytes(bytes(64))
    assert [line[:18] for line in said(vault, KEY.public)] == ["generations/000001"]


def test_a_past_generation_of_another_vault_is_found(vault):
    edit_ledger(vault, "UPDATE identity SET id = 'f00d'")
    assert len(said(vault, KEY.public)) == 4


# -- what to do ------------------------------------------------------------------------------------


def advice(vault: Path, *more: str) -> str:
    answer = CliRunner().invoke(app, ["verify", str(vault), *more])
    assert answer.exit_code == 1
    return answer.stderr


def test_a_newer_format_is_an_error_that_says_upgrade(vault):
    edit_ledger(vault, "PRAGMA user_version = 9")
    with pytest.raises(VaultError, match="has vault format 9"):
        g2d.verify(vault)
    line = advice(vault)
    assert "upgrade g2d" in line
    assert "backup" not in line
    assert line.count("\n") == 1


def test_advice_goes_with_what_is_wrong(vault, tmp_path):
    (vault / "task.toml").write_text("[nonsense")
    line = advice(vault)
    assert "1 problem: correct task.toml" in line
    assert "backup" not in line
    (vault / "notes.txt").write_text("mine")
    line = advice(vault)
    assert "correct task.toml; move what is unknown out of the vault" in line
    assert "backup" not in line
    (vault / "population" / "000001.safetensors").unlink()
    assert "restore what is damaged from a backup" in advice(vault)


def test_advice_for_a_signature_is_about_keys(vault, tmp_path):
    KEY.public.write(tmp_path / "key.pub")
    path = vault / "generations" / "000001"
    (path / "manifest.sig").write_bytes(bytes(64))
    line = advice(vault, "--key", str(tmp_path / "key.pub"))
    assert "check the key" in line
    assert "backup" not in line
    assert json.loads((path / "manifest.json").read_text())["number"] == 1
