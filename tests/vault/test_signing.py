"""Signed generations: whatever is not exactly what a trusted key signed is refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

import g2d
from benchmarks.hostile.damages import DAMAGES, restore, with_ledger_in_step
from g2d.errors import KeyFileError, RefusedError, VaultError
from g2d.vault.signing import SigningKey, VerifyKey, sign_generation
from g2d.vault.vault import SIGNATURE, Vault
from places import DATA
from signed import MANIFEST, accept, refused, run, signed_vault, verify

GOLDEN = DATA / "signed"
DAY = 86_400.0
MUTATIONS = 240


@pytest.fixture
def vault(tmp_path, key):
    """Generations 1 to 4, signed; 2 is live."""
    with signed_vault(tmp_path / "vault", key) as made:
        yield made


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".sqlite-shm"]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# -- what is signed verifies -----------------------------------------------------------------------


def test_a_signed_generation_verifies_and_gives_the_verified_bytes(vault, key):
    with Vault.open(vault.path) as reader:
        found = verify(reader, 3, key.public)
    assert found.weights == b"weights 2 " * 20
    assert found.number == found.manifest["number"] == 3
    assert found.signer == found.manifest["signer"] == key.fingerprint
    assert found.manifest["vault"] == vault.identity
    assert found.expires - found.manifest["created"] == pytest.approx(DAY, abs=10)
    assert "weights" not in repr(found).replace("'weights'", "")


def test_golden_signature_of_this_format_still_verifies(tmp_path):
    """Files made once by this code (key, manifest, signature, weights): formats do not drift."""
    with Vault.create(tmp_path / "v", '[task]\nname = "digits"\n') as vault:
        shutil.copytree(GOLDEN / "000001", vault.path / "generations" / "000001")
        text = (GOLDEN / "000001" / "manifest.json").read_text()
        signed = json.loads(text)
        row = (1, json.dumps(signed["files"]), text, signed["created"])
        with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger, ledger:
            ledger.execute("UPDATE identity SET id = ?", (signed["vault"],))
            ledger.execute("INSERT INTO generations VALUES (?, ?, ?, ?)", row)
        shutil.copy(GOLDEN / "trusted.pub", tmp_path / "trusted.pub")
        (tmp_path / "trusted.pub").chmod(0o644)
        trusted = VerifyKey.read(tmp_path / "trusted.pub")
        assert trusted.vaults == {signed["vault"]}
        found = verify(vault, 1, trusted, after=0, now=signed["created"] + 1)
    assert found.weights == b"golden weights\n"
    assert found.signer == (
        "sha256:c35c8708307410f45aef76e69df58ffbf907857fe5699e267f90bf1981c0c3d9"
    )


def test_two_keys_are_trusted_while_keys_change(vault, key, tmp_path):
    fresh = SigningKey.generate()
    accept(vault, fresh)
    both = VerifyKey(fresh.public.keys + key.public.keys)
    both.write(tmp_path / "both.pub")
    both = VerifyKey.read(tmp_path / "both.pub")
    assert verify(vault, 5, both).signer == fresh.fingerprint
    assert verify(vault, 4, both).signer == key.fingerprint
    assert refused(vault, 4, fresh.public) == "signature"
    assert refused(vault, 5, key.public) == "signature"


def test_what_is_signed_has_to_bind_everything(vault, key):
    for name in MANIFEST:
        rest = {other: value for other, value in MANIFEST.items() if other != name}
        with pytest.raises(VaultError, match=name):
            sign_generation(vault, {"weights": b""}, rest, key, source="digits", lifetime=1.0)
    assert vault.last_number() == 4


# -- tampering -------------------------------------------------------------------------------------


def test_hundreds_of_mutations_are_all_refused(vault, key):
    """Seeded ones of generation 4, every second with the ledger forged to match.

    Ten times as many are benchmarks/tampering.py.
    """
    chance, seen = random.Random(4), Counter()
    folder = vault.path / "generations" / "000004"
    spare = {path: path.read_bytes() for path in (vault.path / "generations").rglob("*.*")}
    with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger:
        ledger.execute("PRAGMA synchronous = OFF")  # thousands of commits on a busy disk
        rows = ledger.execute("SELECT * FROM generations").fetchall()
        for case in range(MUTATIONS):
            DAMAGES[case % len(DAMAGES)](folder, chance, key)
            if case // len(DAMAGES) % 2:
                with_ledger_in_step(ledger, folder)
            before = contents(vault.path) if case % 20 < len(DAMAGES) else None
            seen[refused(vault, 4, key.public)] += 1
            assert vault.live() == 2
            assert before is None or contents(vault.path) == before
            restore(ledger, spare, rows)
        assert verify(vault, 4, key.public).number == 4
    assert seen.total() == MUTATIONS
    assert set(seen) == {"absent", "unsigned", "signature", "number", "digest"}


def test_every_single_bit_of_signature_and_manifest_counts(vault, key):
    folder = vault.path / "generations" / "000003"
    manifest, signature = (folder / "manifest.json").read_bytes(), (folder / SIGNATURE).read_bytes()
    assert key.public.signer(manifest, signature) == key.fingerprint
    for data, other in ((bytearray(signature), manifest), (bytearray(manifest), signature)):
        for bit in range(0, 8 * len(data), 1 if data == signature else 5):
            data[bit // 8] ^= 1 << bit % 8
            pair = (bytes(data), other) if other is signature else (other, bytes(data))
            assert key.public.signer(*pair) is None
            data[bit // 8] ^= 1 << bit % 8


def test_a_pipe_or_a_device_is_refused_and_does_not_block(vault, key):
    folder = vault.path / "generations" / "000004"
    for name, reason in (("weights.safetensors", "digest"), ("manifest.json", "absent")):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert refused(vault, 4, key.public) == reason
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        assert refused(vault, 4, key.public) == reason


@pytest.mark.parametrize("number", [1, 2])
def test_an_older_valid_generation_is_a_replay(vault, key, number):
    assert verify(vault, number, key.public, after=number - 1).number == number
    assert refused(vault, number, key.public, after=2) == "replay"


def test_an_old_one_under_a_new_number_is_refused(vault, key):
    generations = vault.path / "generations"
    shutil.copytree(generations / "000001", generations / "000009")
    with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger, ledger:
        ledger.execute(
            "INSERT INTO generations SELECT 9, files, manifest, created FROM generations"
            " WHERE number = 1"
        )
    assert refused(vault, 9, key.public) == "number"


def test_times_are_judged_by_the_clock_given(vault, key):
    signed = vault.generation(3).manifest
    assert verify(vault, 3, key.public, now=signed["expires"] - 1).number == 3
    assert refused(vault, 3, key.public, now=signed["expires"]) == "expired"
    assert refused(vault, 3, key.public, now=signed["created"] - 2 * 3600) == "future"
    accept(vault, key, lifetime=-1.0)
    assert refused(vault, 5, key.public) == "expired"


def test_a_generation_of_another_vault_is_refused(vault, key, tmp_path):
    with Vault.create(tmp_path / "other", '[task]\nname = "digits"\n') as other:
        for turn in range(5):
            accept(other, key, turn)
        assert verify(other, 3, key.public).number == 3
        bound = VerifyKey(key.public.keys, frozenset({vault.identity}))
        assert verify(vault, 3, bound).number == 3
        assert refused(other, 3, bound) == "vault"  # even if the whole folder was exchanged
        theirs = other.generation_file(5).parent
        shutil.copytree(theirs, vault.generation_file(5).parent)
        row = [5, *sqlite_row(other, 5)]
        with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger, ledger:
            ledger.execute("INSERT INTO generations VALUES (?, ?, ?, ?)", row)
    assert refused(vault, 5, key.public) == "vault"


def sqlite_row(vault: Vault, number: int) -> list:
    with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger:
        query = "SELECT files, manifest, created FROM generations WHERE number = ?"
        return list(ledger.execute(query, (number,)).fetchone())


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE generations SET files = '{}' WHERE number = 3", "ledger"),
        ("UPDATE generations SET files = 'not json' WHERE number = 3", "ledger"),
        ("UPDATE generations SET manifest = 'null' WHERE number = 3", "ledger"),
        ("UPDATE generations SET created = created + 1 WHERE number = 3", "ledger"),
        ("DELETE FROM generations WHERE number = 3", "absent"),
        ("UPDATE identity SET id = 'f00d'", "vault"),
        ("DROP TABLE identity", "vault"),
        ("DROP TABLE generations", "absent"),
    ],
)
def test_a_forged_ledger_is_refused(vault, key, statement, reason):
    with closing(sqlite3.connect(vault.path / "ledger.sqlite")) as ledger, ledger:
        ledger.execute(statement)
    assert refused(vault, 3, key.public) == reason


@pytest.mark.parametrize("text", ['[task]\nname = "evil:factory"\n', "[nonsense", "[task]\nnam=1"])
def test_settings_that_name_another_task_are_refused(vault, key, text):
    vault.write_settings(text)
    assert refused(vault, 3, key.public) == "task"


def test_only_our_format_counts_even_if_the_key_is_right(vault, key):
    folder = vault.path / "generations" / "000003"
    signed = json.loads((folder / "manifest.json").read_text())
    foreign = [
        b"", b"[]", b"\xff", b"{", json.dumps(signed | {"format": "g2d-generation-2"}).encode(),
        json.dumps(signed | {"signer": "sha256:00"}).encode(),
        json.dumps(signed | {"files": {}, "sizes": {}}).encode(),
        json.dumps(signed | {"sizes": {"weights": 1}}).encode(),
        *(json.dumps({n: v for n, v in signed.items() if n != name}).encode()
              for name in signed.keys() - {"marked", "code"}),
    ]  # fmt: skip
    for manifest in foreign:
        (folder / "manifest.json").write_bytes(manifest)
        (folder / SIGNATURE).write_bytes(key.sign(manifest))
        assert refused(vault, 3, key.public) == "format"


def test_refusals_travel_between_processes():
    error = RefusedError("no", "expired", 7)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason, again.number) == ("no", "expired", 7)


# -- crash safety ----------------------------------------------------------------------------------


def test_a_kill_leaves_no_committed_generation_without_its_signature(tmp_path, key):
    path, chance = tmp_path / "vault", random.Random(0)
    Vault.create(path, '[task]\nname = "digits"\n').close()
    for _ in range(12):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with Vault.open(path, write=True) as opened:
                    while True:
                        os.write(writer, b"%d\n" % accept(opened, key, activate=True).number)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as said:
            told = int(said.readline())
            time.sleep(chance.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told = int((said.read().splitlines() or [told])[-1])
        with Vault.open(path) as vault:
            live = vault.live() or 0
            assert live == vault.last_number() >= told
            for number in range(1, live + 1):
                verify(vault, number, key.public, after=0)
    assert live >= 12
    with Vault.open(path, write=True):
        assert len(list((path / "generations").iterdir())) == live


# -- vaults of before, and the whole defence -------------------------------------------------------


def test_a_vault_of_before_gets_an_identity_when_it_is_written(tmp_path, key, monkeypatch):
    path = tmp_path / "old"
    with Vault.create(path, '[task]\nname = "digits"\n') as old:
        old.accept({"weights": b"w"}, {}, activate=True)
    with closing(sqlite3.connect(path / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("DROP TABLE identity")
        ledger.execute("DROP TABLE marked")
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))  # nor was there a mark
    with Vault.open(path) as reader:
        assert reader.identity == ""
        assert reader.read_generation(1) == b"w"
        assert refused(reader, 1, key.public, after=0) == "unsigned"
    with Vault.open(path, write=True) as vault:
        identity = vault.identity
        assert len(identity) == 32
        accept(vault, key)
        assert verify(vault, 2, key.public, after=1).number == 2
    with Vault.open(path, write=True) as again:
        assert again.identity == identity


def test_a_defence_without_a_key_works_unsigned(defence, key):
    (made,) = defence.generate(seed=1)
    assert "signer" not in made.manifest
    assert not (defence.vault.generation_file(2).parent / SIGNATURE).exists()
    assert refused(defence.vault, 2, key.public, after=1) == "unsigned"


def test_a_defence_with_a_key_signs_what_it_accepts(defence, key, tmp_path):
    key.write(tmp_path / "signing.key")
    path = defence.vault.path
    defence.close()
    run("keys", "use", path, "--key", tmp_path / "signing.key")
    with g2d.Defence.open(path) as opened:
        (made,) = opened.generate(seed=1)
        found = verify(opened.vault, made.number, key.public, after=1)
        assert found.manifest == made.manifest
        assert found.manifest["generator"] == opened.vault.entry("generator").files["weights"]
        assert found.weights == opened.vault.read_generation(made.number)
        (tmp_path / "signing.key").chmod(0o644)
        with pytest.raises(KeyFileError, match="chmod 600"):
            opened.generate(seed=1)
        assert opened.vault.live() == made.number
        assert opened.vault.rejections() == []
