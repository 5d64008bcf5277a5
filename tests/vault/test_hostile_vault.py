"""A vault that somebody else has prepared: nothing is followed, opened to others, or waited for."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from g2d.core import folders
from g2d.core.files import read_plain, read_text
from g2d.core.folders import Folder
from g2d.errors import G2DError, VaultError
from g2d.report.results import read_results
from g2d.service.http.redteam_summary import Findings
from g2d.settings import Settings
from g2d.vault.signing import SigningKey, verify_generation
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from signed import run
from vaults import WEIGHTS, content

SETTINGS = '[task]\nname = "digits"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A vault of three generations, 2 live, and what its folder is not to touch beside it."""
    with Vault.create(tmp_path / "vault", SETTINGS) as vault:
        vault.put("member", 0, WEIGHTS, {"accuracy": 0.5, "basin": 0})
        for number in (1, 2, 3):
            vault.accept({"weights": content(number), "attacks": b"a"}, {}, activate=number < 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000009").mkdir()
    (tmp_path / "mine" / "000009" / "weights.safetensors").write_bytes(b"mine")
    (tmp_path / "mine" / "file").write_bytes(b"my own words")
    return tmp_path / "vault"


@pytest.fixture(params=["by descriptor", "by path"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As it is here, and as where folders cannot be opened."""
    if request.param == "by path":
        monkeypatch.setattr(folders, "_by_handle", lambda: False)
    return request.param


# --- whom it is open to -------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everything_in_a_vault_is_its_owners_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "vault").mkdir()  # it was there, open to all
        with Vault.create(tmp_path / "vault", SETTINGS) as vault, Vault.open(vault.path) as reader:
            vault.put("generator", 0, WEIGHTS, {})
            vault.put("member", 3, WEIGHTS, {})
            vault.accept(WEIGHTS, {}, activate=True, sign=lambda _: bytes(64))
            vault.write_settings(SETTINGS + "\n")
            assert reader.live() == 1
            found = {item: item.stat().st_mode & 0o777 for item in vault.path.rglob("*")}
    finally:
        os.umask(before)
    names = {item.name for item in found}
    assert {"ledger.sqlite-wal", "ledger.sqlite-shm", "vault.lock", "manifest.sig"} <= names
    assert (tmp_path / "vault").stat().st_mode & 0o777 == 0o700
    wrong = {item for item, mode in found.items() if mode != (0o700 if item.is_dir() else 0o600)}
    assert not wrong


@pytest.mark.parametrize("name", ["", "generations", "ledger.sqlite", "task.toml"])
def test_a_vault_that_is_open_to_others_is_refused_with_the_command_that_closes_it(path, name):
    (path / name).chmod(0o755 if (path / name).is_dir() else 0o644)
    with pytest.raises(VaultError, match="other users may read or write") as refused:
        Vault.open(path, write=True)
    command = str(refused.value).split("run `")[1].removesuffix("`")
    assert command == f"chmod -R go-rwx {path}"
    assert os.system(command) == 0
    Vault.open(path, write=True).close()


# --- links --------------------------------------------------------------------------------------


def link(place: Path, target: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(target)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize(
    "name",
    ["vault.lock", "ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm",
     "ledger.sqlite-journal", "generations", "population", "early"],
)  # fmt: skip
def test_no_link_is_followed_when_a_vault_is_opened_for_writing(path, tmp_path, name):
    target = tmp_path / "mine" / ("" if (path / name).is_dir() else "file")
    if name == "ledger.sqlite":
        target = Path(shutil.copy(path / name, tmp_path / "mine" / "ledger"))
    link(path / name, target)
    before = {item: item.read_bytes() for item in (tmp_path / "mine").rglob("*") if item.is_file()}
    with pytest.raises(VaultError, match="remove it"):
        Vault.open(path, write=True)
    after = {item: item.read_bytes() for item in (tmp_path / "mine").rglob("*") if item.is_file()}
    assert after == before


@pytest.mark.usefixtures("system")
def test_no_link_is_followed_when_a_vault_is_written(path, tmp_path):
    mine = tmp_path / "mine" / "file"
    with Vault.open(path, write=True) as vault:
        for name in (".tmp-task.toml", "population/.tmp-000001.safetensors", "task.toml"):
            link(path / name, mine)
        (path / "generations" / "000004").symlink_to(tmp_path / "mine")
        (path / "generations" / ".tmp-000004").symlink_to(tmp_path / "mine")
        vault.write_settings("[task]\n")
        vault.put("member", 1, WEIGHTS, {})
        assert vault.accept(WEIGHTS, {}).number == 4
        link(path / "population", tmp_path / "mine")
        with pytest.raises(VaultError, match="cannot be written"):
            vault.put("member", 2, WEIGHTS, {})
    assert mine.read_bytes() == b"my own words"
    assert sorted(item.name for item in (tmp_path / "mine").iterdir()) == ["000009", "file"]
    assert not (path / "task.toml").is_symlink()


@pytest.mark.parametrize("name", ["generations", "generations/000002", "population"])
def test_no_link_is_followed_when_a_vault_is_read(path, name):
    (path / name).rename(path.parent / "aside")
    (path / name).symlink_to(path.parent / "aside")
    with Vault.open(path) as vault:
        (member,) = vault.entries("member")
        with pytest.raises(VaultError, match="a link or a file"):
            vault.read(member) if name == "population" else vault.read_generation(2)
        key = SigningKey.generate().public
        with pytest.raises(VaultError):
            verify_generation(vault, 2, key, after=1, now=0.0)


def test_a_file_with_a_second_name_elsewhere_is_not_written(path, tmp_path):
    for name in ("vault.lock", "ledger.sqlite"):
        os.link(path / name, tmp_path / "mine" / "second")
        with pytest.raises(VaultError, match="second name"):
            Vault.open(path, write=True)
        (tmp_path / "mine" / "second").unlink()
    Vault.open(path, write=True).close()


@pytest.mark.usefixtures("system")
def test_a_folder_removes_what_is_in_it_and_never_what_a_link_leads_to(tmp_path):
    (tmp_path / "at" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "at" / "deep" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "at" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    with Folder(tmp_path / "at") as folder:
        for name in (*folder.names(), "absent"):
            folder.remove(name)
        assert folder.names() == []
    assert (tmp_path / "kept" / "file").read_text() == "x"
    link(tmp_path / "at", tmp_path / "kept")
    with Folder(tmp_path) as top, pytest.raises(OSError, match=r"[Nn]ot a directory|link"):
        Folder(tmp_path / "at", top)


# --- what is no plain file ----------------------------------------------------------------------


def fifo(place: Path) -> None:
    os.mkfifo(place)


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def huge(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(1 << 40)


def nested(place: Path) -> None:
    place.write_text("[" * 100_000)


def unix_socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(place.name)
    finally:
        os.chdir(here)


ODD = [fifo, device, huge, nested, unix_socket]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", ODD)
def test_odd_things_in_place_of_files_neither_hang_nor_fill_memory(path, make):
    (path / "redteam").mkdir()
    for name in ("redteam/results.json", "task.toml", "generations/000003/manifest.json",
                 "generations/000003/weights.safetensors"):  # fmt: skip
        (path / name).unlink(missing_ok=True)
        make(path / name)
    with pytest.raises(G2DError, match="cannot read"):
        read_results(path / "redteam" / "results.json")
    found = Findings(path / "redteam" / "results.json").read()  # what /redteam answers from
    assert set(found) == {"error"}
    with Vault.open(path) as vault:
        for read in (lambda: vault.read_generation(3), lambda: vault.read_generation(3, "manifest"),
                     lambda: Settings.from_vault(vault.settings_text)):  # fmt: skip
            with pytest.raises(G2DError):
                read()
    assert verify(path, patience=0)
    with pytest.raises(G2DError):
        Settings.from_file(path / "task.toml")


def test_a_plain_file_is_read_to_its_bound_and_by_a_link_only_where_that_is_meant(tmp_path):
    (tmp_path / "plain").write_bytes(b"a\r\nb")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    assert read_plain(tmp_path / "plain", 4) == b"a\r\nb"
    assert read_text(tmp_path / "link", follow=True) == "a\nb"
    for attempt in (lambda: read_plain(tmp_path / "plain", 3), lambda: read_text(tmp_path / "link"),
                    lambda: read_plain(tmp_path, 9)):  # fmt: skip
        with pytest.raises(OSError, match=str(tmp_path)):
            attempt()


# --- odd rows -----------------------------------------------------------------------------------


def rows(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path / "ledger.sqlite")) as ledger, ledger:
        for statement in statements:
            ledger.execute(statement)


DEEP = "[" * 100_000
ODD_ROWS: dict[str, str] = {
    "nested": f"UPDATE generations SET manifest = '{DEEP}' WHERE number = 3",
    "nested digests": f"UPDATE generations SET files = '{DEEP}' WHERE number = 3",
    "no object": "UPDATE generations SET manifest = 'null' WHERE number = 3",
    "not a number": "UPDATE generations SET manifest = '{\"figures\": NaN}' WHERE number = 3",
    "null": "UPDATE generations SET manifest = NULL WHERE number = 3",
    "bytes": "UPDATE generations SET files = x'00ff' WHERE number = 3",
    "text for time": "UPDATE generations SET created = 'today' WHERE number = 3",
    "huge integer": f"UPDATE generations SET manifest = '{{\"a\": {'9' * 5000}}}' WHERE number = 3",
}


@pytest.mark.parametrize("what", ODD_ROWS)
def test_odd_rows_are_told_and_left_out(path, what):
    rows(path, ODD_ROWS[what], f"INSERT INTO rejections VALUES (7, '{DEEP}', 1.0)")
    told: list[str] = []
    with Vault.open(path) as vault:
        assert [made.number for made in vault.generations(told.append)] == [1, 2]
        assert vault.rejections(told.append) == []
        with pytest.raises(VaultError, match="row of generation 3 is damaged"):
            vault.generation(3)
        with pytest.raises(VaultError, match="is damaged"):
            vault.generations()
    assert len(told) == 2
    assert all("\n" not in text and len(text) < 300 for text in told)
    with Vault.open(path, write=True) as vault:  # its folder stays, and numbers go on
        assert vault.accept(WEIGHTS, {}).number == 4
    assert (path / "generations" / "000003").is_dir()
    assert "row of generation 3 is damaged" in run("show", path)


def test_numbers_that_nobody_issued_do_not_stop_the_next(path):
    rows(
        path,
        "DROP TABLE exposures",
        "CREATE TABLE exposures (number, created REAL)",
        *(f"INSERT INTO exposures VALUES ({n}, 1.0)" for n in (1, 2, 1 << 62, "'x'", "NULL", 77)),
        f"INSERT INTO generations VALUES ({(1 << 63) - 1}, '{{}}', '{{}}', 1.0)",
    )
    with Vault.open(path, write=True) as vault:
        assert (vault.live(), vault.exposures(), vault.last_number()) == (2, [1, 2], 3)
        assert vault.accept(WEIGHTS, {}, activate=True).number == 4
        assert vault.numbers(2) == [3, 4]


def test_a_damaged_row_of_an_entry_loses_no_file(path):
    rows(path, "UPDATE entries SET info = 'x' WHERE kind = 'member'")
    with Vault.open(path, write=True) as vault:
        with pytest.raises(VaultError, match="row of an entry is damaged"):
            vault.entries("member")
        assert vault.entries("member", lambda _: None) == []
    assert (path / "population" / "000000.safetensors").is_file()


def test_an_identity_leads_nowhere(path, tmp_path):
    rows(path, "UPDATE identity SET id = '../../../mine/evil'")
    with Vault.open(path) as vault:
        assert vault.identity == ""
    with pytest.raises(VaultError, match="without an identity"):
        Vault.open(path, write=True)
    assert not (tmp_path / "mine" / "evil").exists()
