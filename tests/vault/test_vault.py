"""The vault: what is put comes back, numbers only rise, and what is damaged is named."""

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from g2d.errors import VaultError
from g2d.vault.vault import FORMAT, GenerationRecord, Vault
from vaults import WEIGHTS, digest, python

# -- round trips ---------------------------------------------------------------------------------


def test_create_makes_the_layout_and_reopens(folder):
    with Vault.create(folder, "[task]\nname = 'digits'\n") as vault:
        assert vault.path == folder
    with Vault.open(folder) as vault:
        assert vault.settings_text == "[task]\nname = 'digits'\n"
        assert (vault.entries("member"), vault.generations(), vault.live()) == ([], [], None)
        assert (vault.exposures(), vault.rejections(), vault.entry("base")) == ([], [], None)
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        assert ledger.execute("PRAGMA user_version").fetchone() == (FORMAT,)
        assert ledger.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_create_accepts_an_empty_folder_and_refuses_a_full_one(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    Vault.create(empty, "").close()
    with pytest.raises(VaultError, match=r"not an empty|already"):
        Vault.create(empty, "")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "task.toml").write_text("mine")
    with pytest.raises(VaultError, match="not an empty"):
        Vault.create(taken, "")
    assert [item.name for item in taken.iterdir()] == ["task.toml"]
    assert (taken / "task.toml").read_text() == "mine"
    with pytest.raises(VaultError, match="not an empty"):
        Vault.create(taken / "task.toml", "")


def test_settings_are_replaced(vault):
    vault.write_settings("[task]\nname = 'größer'\n")
    assert vault.settings_text == "[task]\nname = 'größer'\n"
    (vault.path / "task.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(VaultError, match="UTF-8"):
        _ = vault.settings_text


@pytest.mark.parametrize(
    ("kind", "index", "files"),
    [
        ("base", 0, ["base.safetensors", "base.attacks.safetensors"]),
        ("generator", 0, ["generator.safetensors", "generator.attacks.safetensors"]),
        ("early", 3, ["early/000003.safetensors", "early/000003.attacks.safetensors"]),
        ("member", 12, ["population/000012.safetensors", "population/000012.attacks.safetensors"]),
    ],
)
def test_entries_come_back_from_documented_paths(vault, kind, index, files):
    info = {"seed": 1, "pair": [1, 2], "loss": float("inf")}
    put = vault.put(kind, index, {"weights": b"w" * 1000, "attacks": b""}, info)
    assert put.files == {"weights": digest(b"w" * 1000), "attacks": digest(b"")}
    assert put.info == info
    with Vault.open(vault.path) as reader:
        assert reader.entries(kind) == [put] == [reader.entry(kind, index)]
        assert reader.read(put) == b"w" * 1000
        assert reader.read(put, "attacks") == b""
    assert all((vault.path / name).is_file() for name in files)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300),
    info=st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False)),
)
def test_whatever_is_put_comes_back(vault, data, info):
    entry = vault.put("member", 0, {"weights": data}, info)
    assert vault.entry("member", 0) == entry
    assert (vault.read(entry), entry.info) == (data, info)


def test_entries_are_sorted_and_deleted_by_kind(vault):
    for index in (10, 2, 0):
        vault.put("member", index, {"weights": bytes([index])}, {})
    vault.put("early", 1, WEIGHTS, {})
    assert [entry.index for entry in vault.entries("member")] == [0, 2, 10]
    vault.delete("member")
    assert vault.entries("member") == []
    assert list((vault.path / "population").iterdir()) == []
    assert [entry.index for entry in vault.entries("early")] == [1]


def test_a_replaced_entry_has_new_bytes_and_leaves_no_old_ones(vault):
    old = vault.put("generator", 0, {"weights": b"old", "extra": b"x"}, {})
    for turn in range(3):
        new = vault.put("generator", 0, {"weights": b"new%d" % turn}, {"turn": turn})
    assert vault.entries("generator") == [new]
    assert vault.read(new) == b"new2"
    assert [path.name for path in vault.path.glob("generator*")] == ["generator.v4.safetensors"]
    with pytest.raises(VaultError, match="replaced or deleted"):
        vault.read(old)


def test_bad_entries_are_refused(vault):
    for kind, index, files, info in [
        ("members", 0, WEIGHTS, {}),
        ("member", -1, WEIGHTS, {}),
        ("generator", 1, WEIGHTS, {}),
        ("member", 0, {"../escape": b""}, {}),
        ("member", 0, {"v2": b""}, {}),
        ("member", 0, WEIGHTS, {"set": {1, 2}}),
    ]:
        with pytest.raises(VaultError):
            vault.put(kind, index, files, info)
    assert vault.entries("member") == []
    with pytest.raises(VaultError, match="Did you mean 'weights'"):
        vault.read(vault.put("base", 0, WEIGHTS, {}), "weight")


# -- generations ---------------------------------------------------------------------------------


def test_generations_come_back_with_their_manifest(vault):
    first = vault.accept({"weights": b"1", "attacks": b"a"}, {"seed": 7, "gates": {"asr": 0.1}})
    second = vault.accept(WEIGHTS, {}, activate=True)
    assert (first.number, second.number) == (1, 2)
    written = json.loads((vault.path / "generations/000001/manifest.json").read_text())
    assert written == first.manifest
    assert written["number"] == 1
    assert (written["seed"], written["gates"]) == (7, {"asr": 0.1})
    assert written["files"] == {"weights": digest(b"1"), "attacks": digest(b"a")} == first.files
    with Vault.open(vault.path) as reader:
        assert reader.generations() == [first, second]
        assert reader.generation(1) == first
        assert isinstance(reader.generation(2), GenerationRecord)
        assert reader.read_generation(1) == b"1"
        assert reader.read_generation(1, "attacks") == b"a"
        assert json.loads(reader.read_generation(1, "manifest")) == written
        assert reader.live() == 2
        with pytest.raises(VaultError, match="no generation 3; its last one is 2"):
            reader.read_generation(3)
        with pytest.raises(VaultError, match="no file 'attacks'"):
            reader.read_generation(2, "attacks")


def test_bad_generations_are_refused(vault):
    for files, manifest in [
        ({"attacks": b""}, {}),
        ({**WEIGHTS, "manifest": b""}, {}),
        (WEIGHTS, {"number": 9}),
        (WEIGHTS, {"gate": float("nan")}),
    ]:
        with pytest.raises(VaultError):
            vault.accept(files, manifest)
    assert vault.generations() == []
    assert list((vault.path / "generations").iterdir()) == []


def test_replay_is_refused_and_numbers_only_rise(vault):
    for _ in range(4):
        vault.accept(WEIGHTS, {})
    for number in (1, 3, 3):
        vault.activate(number)
    assert (vault.live(), vault.exposures()) == (3, [1, 3])
    for number in (1, 2):
        with pytest.raises(VaultError, match="replay"):
            vault.activate(number)
    with pytest.raises(VaultError, match="no generation 9"):
        vault.activate(9)
    assert (vault.live(), vault.exposures()) == (3, [1, 3])
    vault.activate(4)
    assert vault.exposures() == [1, 3, 4]
    assert vault.exposures(2) == [3, 4]


def test_rejections_are_kept_in_order(vault):
    for reason in ("accuracy", "distance"):
        vault.reject({"reasons": [reason]})
    with Vault.open(vault.path) as reader:
        assert reader.rejections() == [{"reasons": ["accuracy"]}, {"reasons": ["distance"]}]


# -- what can be wrong with a vault ----------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named(vault, damage):
    entry = vault.put("member", 1, {"weights": b"w" * 100}, {})
    vault.accept({"weights": b"g" * 100}, {})
    for name, read in [
        ("population/000001.safetensors", lambda: vault.read(entry)),
        ("generations/000001/weights.safetensors", lambda: vault.read_generation(1)),
        ("generations/000001/manifest.json", lambda: vault.read_generation(1, "manifest")),
    ]:
        path = vault.path / name
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[50] ^= 1
            path.write_bytes(data)
        elif damage == "truncate":
            path.write_bytes(data[:-1])
        else:
            path.unlink()
        with pytest.raises(VaultError, match="restore it from a backup") as error:
            read()
        assert str(path) in str(error.value)


def test_what_is_not_a_vault_is_said_to_be_none(tmp_path):
    with pytest.raises(VaultError, match="no such folder"):
        Vault.open(tmp_path / "absent")
    with pytest.raises(VaultError, match="not a vault"):
        Vault.open(tmp_path, write=True)
    assert list(tmp_path.iterdir()) == []
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as other:
        other.execute("CREATE TABLE songs (title)")
    with pytest.raises(VaultError, match="not a vault"):
        Vault.open(tmp_path)


def test_a_newer_format_asks_for_an_upgrade(vault):
    vault.close()
    leftover = vault.path / "generations" / "000009"
    leftover.mkdir()
    with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger:
        ledger.execute("PRAGMA user_version = 7")
    for write in (False, True):
        with pytest.raises(VaultError, match=r"format 7.* format 1.*upgrade g2d"):
            Vault.open(vault.path, write=write)
    assert leftover.is_dir()  # nothing of a newer vault is touched


@pytest.mark.parametrize("where", [0, 4096])
def test_a_corrupt_ledger_is_said_to_be_corrupt(vault, where):
    for _ in range(20):
        vault.accept(WEIGHTS, {"x": "y" * 500})
    vault.close()
    with (vault.path / "ledger.sqlite").open("r+b") as file:
        file.seek(where)
        file.write(b"\xa5" * 3000)
    with pytest.raises(VaultError, match="ledger is corrupt"):
        Vault.open(vault.path)
    with pytest.raises(VaultError, match="ledger is corrupt"):
        Vault.open(vault.path, write=True)
    assert len(list((vault.path / "generations").iterdir())) == 20


def test_a_closed_or_reading_vault_refuses_to_write(vault):
    with Vault.open(vault.path) as reader, pytest.raises(VaultError, match="write=True"):
        reader.accept(WEIGHTS, {})
    vault.close()
    with pytest.raises(VaultError, match="write=True"):
        vault.put("base", 0, WEIGHTS, {})
    with pytest.raises(VaultError, match="cannot be read"):
        vault.generations()


# -- what it must not do ---------------------------------------------------------------------------


def test_it_imports_no_torch_and_no_pickle():
    code = "import sys, g2d.vault; print(sorted({'torch', 'numpy', 'pickle'} & set(sys.modules)))"
    assert python(code).stdout == "[]\n"
