"""What generations come from: renewals beside what was made first, and the way back."""

from __future__ import annotations

import json
import time

import pytest

from g2d.errors import UnavailableError, VaultError
from g2d.settings import Settings
from g2d.vault.ledger import sha256
from g2d.vault.mark import FileMark
from g2d.vault.records import RENEWAL
from g2d.vault.signing import SigningKey, sign_generation, verify_generation
from g2d.vault.sources import ORDER, obey, order_back, ordered, put_back, source_of
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from vaults import WEIGHTS

MANIFEST = {
    "task": "digits", "population": "p", "generator": "g", "gates": [], "exposed": [],
    "origin": "generated",
}  # fmt: skip


def entries(number: int):
    first, files = number * RENEWAL, {"weights": b"renewed %d" % number}
    yield "records", first, files, {"parent": number - 1, "key": "00"}
    yield "base", first, files | {"attacks": b"a"}, {"accuracy": 0.5}
    for k in range(3):
        yield "member", first + k, files | {"attacks": b"a"}, {"basin": 0}
    yield "generator", first, files, {}


def renew(vault: Vault, number: int) -> None:
    info = {"why": "refresh", "parent": vault.source}
    vault.renew(number, info, entries(number))


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", Settings().to_toml()) as made:
        for kind in ("base", "generator"):
            made.put(kind, 0, {"weights": b"first"}, {"data": "d"})
        for k in range(5):
            made.put("member", k, {"weights": b"first"}, {"basin": 0})
        made.accept({"weights": b"one", "attacks": b"x"}, MANIFEST, activate=True)
        yield made


def test_a_renewal_counts_once_it_is_committed_and_what_was_first_stays(vault):
    assert (vault.source, vault.sources()) == (0, [])
    renew(vault, 1)
    assert vault.source == 1
    assert [e.index for e in vault.entries("member")] == [RENEWAL, RENEWAL + 1, RENEWAL + 2]
    assert [e.index for e in vault.entries("member", source=0)] == [0, 1, 2, 3, 4]
    for kind in ("base", "generator", "records"):
        assert vault.read(vault.entry(kind)) == b"renewed 1"
    assert vault.read(vault.entry("base"), "attacks") == b"a"
    assert vault.read(vault.entry("base", source=0)) == b"first"
    assert vault.entry("records", source=0) is None
    replaced = vault.put("generator", 0, {"weights": b"fitted again"}, {})
    assert (replaced.index, replaced.version) == (RENEWAL, 2)
    with Vault.open(vault.path) as reader:
        assert reader.read(reader.entry("generator")) == b"fitted again"
        assert [row["why"] for row in reader.sources()] == ["refresh"]
    with pytest.raises(VaultError, match="no generator of renewal 7"):
        vault.renew(7, {})
    assert vault.source == 1
    vault.close()
    with Vault.open(vault.path, write=True) as again:  # what tidies up takes nothing away
        assert again.read(again.entry("base"), "attacks") == b"a"


def test_going_back_issues_the_last_generation_of_the_former_source_under_a_new_number(vault):
    renew(vault, 1)
    for _ in range(2):
        vault.accept({"weights": b"bad"}, MANIFEST | {"renewal": 1}, activate=True)
    began = time.monotonic()
    back = put_back(vault, Settings())
    assert time.monotonic() - began < 1
    assert (back.left, back.source, back.number, back.of) == (1, 0, 4, 1)
    assert (vault.live(), vault.source) == (4, 0)
    record = vault.generation(4)
    assert (record.manifest["origin"], record.manifest["of"]) == ("reissued", 1)
    assert vault.read_generation(4, "attacks") == b"x"
    assert source_of(record.manifest) == 0
    mark = FileMark(vault.path, vault.identity).read()
    assert mark is not None
    assert (mark.live, mark.issued) == (4, 4)  # numbers only rise, and that is remembered
    with pytest.raises(VaultError, match="never refreshed, or is back already"):
        put_back(vault, Settings())
    renew(vault, 2)  # a later refresh has a number of its own, and knows what it was made from
    assert put_back(vault, Settings()).source == 0


def test_a_kill_between_the_two_steps_is_made_good_by_the_same_command(vault):
    renew(vault, 1)
    vault.accept({"weights": b"bad"}, MANIFEST | {"renewal": 1}, activate=True)
    vault.renew(0, {"why": "rollback", "left": 1})
    back = put_back(vault, Settings())
    assert (back.left, back.source, back.number) == (1, 0, 3)
    assert vault.read_generation(3) == b"one"
    assert len(vault.sources()) == 2


def test_where_nothing_of_the_former_source_is_left_the_live_one_stays(vault):
    vault.accept(WEIGHTS, MANIFEST | {"renewal": 1}, activate=True)
    renew(vault, 1)
    vault.retire_old(1, 1)
    assert put_back(vault, Settings()).number is None
    assert (vault.source, vault.live()) == (0, 2)


def test_a_signed_vault_signs_what_it_issues_anew(vault, tmp_path):
    key = SigningKey.generate()
    key.write(tmp_path / "signing.key")
    settings = Settings().override(signing__key=str(tmp_path / "signing.key"))
    vault.write_settings(settings.to_toml())
    one = sign_generation(
        vault, WEIGHTS, MANIFEST, key, source=settings.source, lifetime=1.0, activate=True
    )
    renew(vault, 1)
    back = put_back(vault, settings)
    assert (back.number, back.of) == (3, one.number)
    found = verify_generation(vault, 3, key.public, after=2, now=time.time())
    assert found.weights == WEIGHTS["weights"]


def test_beside_a_service_an_order_waits_for_the_writer(vault):
    with pytest.raises(VaultError, match="never refreshed"), Vault.open(vault.path) as reader:
        order_back(reader)
    assert obey(vault) is None
    renew(vault, 1)
    with Vault.open(vault.path) as reader:
        assert order_back(reader).source == 0
        assert ordered(reader)
    assert obey(vault).source == 0
    assert (vault.source, vault.live()) == (0, 1)
    assert not (vault.path / ORDER).exists()
    (vault.path / ORDER).write_text("[]")
    with pytest.raises(UnavailableError, match="not what `g2d rollback` writes"):
        ordered(vault)


def test_rows_that_make_no_sense_are_refused(vault):
    renew(vault, 1)
    vault._ledger.execute("UPDATE sources SET source = -3")
    with pytest.raises(VaultError, match="a change of the source"):
        vault.entries("member")
    assert vault.entries("member", source=0)
    with pytest.raises(VaultError, match="has no index"):
        vault.put("teacher", RENEWAL, WEIGHTS, {})


@pytest.fixture
def signed(vault, tmp_path):
    """A vault whose key is confirmed, with generation 2 signed, then refreshed."""
    key = SigningKey.generate()
    key.write(tmp_path / "signing.key")
    settings = Settings().override(signing__key=str(tmp_path / "signing.key"))
    vault.write_settings(settings.to_toml())
    how = {"source": settings.source, "lifetime": 1.0, "activate": True}
    sign_generation(vault, WEIGHTS, MANIFEST | {"code": {"task": {"a": "old"}}}, key, **how)
    renew(vault, 1)
    later = MANIFEST | {"renewal": 1, "code": {"task": {"a": "new"}}}
    sign_generation(vault, WEIGHTS, later, key, **how)
    return vault, settings


def test_going_back_signs_nothing_that_was_not_signed_before(signed):
    vault, settings = signed
    files = json.dumps({"weights": sha256(b"foreign")})
    manifest = vault.generation(2).manifest | {"files": json.loads(files)}
    folder = vault.path / "generations" / "000002"
    (folder / "weights.safetensors").write_bytes(b"foreign")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    row = (files, json.dumps(manifest), 2)
    vault._ledger.execute("UPDATE generations SET files = ?, manifest = ? WHERE number = ?", row)
    assert vault.read_generation(2) == b"foreign"  # by the ledger's word, which anybody writes
    back = put_back(vault, settings)
    assert (back.source, back.number, vault.live()) == (0, None, 3)
    assert "generation 2 refused (signature)" in back.refused


def test_going_back_does_not_sign_for_a_task_that_somebody_wrote_into_the_settings(signed):
    vault, settings = signed
    other = settings.override(task__name="evil:task")
    (vault.path / "task.toml").write_text(other.to_toml())
    back = put_back(vault, other)
    assert back.number is None
    assert "refused (task)" in back.refused


def test_going_back_binds_the_code_of_today_only_if_that_was_signed(signed):
    vault, settings = signed
    forged = vault.generation(3).manifest | {"code": {"task": {"a": "forged"}}}
    row = (json.dumps(forged), 3)
    vault._ledger.execute("UPDATE generations SET manifest = ? WHERE number = ?", row)
    back = put_back(vault, settings)
    assert back.of == 2
    assert vault.generation(back.number).manifest["code"] == {"task": {"a": "old"}}


def test_going_back_binds_the_code_that_is_loaded_today(signed):
    vault, settings = signed
    back = put_back(vault, settings)
    assert vault.generation(back.number).manifest["code"] == {"task": {"a": "new"}}


def test_a_ledger_whose_changes_were_emptied_has_its_first_source(vault):
    renew(vault, 1)
    vault._ledger.execute("DELETE FROM sources")
    assert (vault.source, vault.read(vault.entry("generator"))) == (0, b"first")


def test_verify_tells_of_a_source_that_is_not_there(vault):
    renew(vault, 1)
    assert not [found for found in verify(vault.path, patience=0) if "renewal" in found.what]
    vault._ledger.execute("UPDATE sources SET source = 7")
    (found,) = [found for found in verify(vault.path, patience=0) if "renewal" in found.what]
    assert "renewal 7" in found.what
