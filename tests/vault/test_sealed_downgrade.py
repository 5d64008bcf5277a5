"""A vault that was read sealed here is never read in plaintext again, whatever its folder says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save

from commands import edit_ledger
from g2d.errors import BrokenSealError, SealingError
from g2d.protect import sealing
from g2d.vault.ledger import FORMAT, sha256
from g2d.vault.sealing import changing
from g2d.vault.sealing.remembered import remembered
from g2d.vault.vault import Vault
from g2d.vault.verify import verify

pytest.importorskip("cryptography")


def network(seed: int) -> bytes:
    return save({"weight": np.random.default_rng(seed).normal(size=60).astype("f4")})


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    return f"file:{tmp_path / 'c.key'}"


@pytest.fixture
def made(tmp_path, url):
    """A sealed vault, where it was made."""
    path = tmp_path / "made"
    with Vault.create(path, "[task]\n") as vault:
        vault.put("base", 0, {"weights": network(0)}, {})
        vault.accept({"weights": network(1)}, {}, activate=True)
        changing.seal(vault, sealing.make_custodian(url)[0], url)
    return path


@pytest.fixture
def copy(made, tmp_path, url, monkeypatch):
    """A copy of it on a host with a state of its own, which reads alone and has read it once."""
    path = shutil.copytree(made, tmp_path / "host" / "vault")
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "host" / "state"))
    monkeypatch.setenv("G2D_CUSTODIAN", url)
    assert read(path) == network(1)
    monkeypatch.delenv("G2D_CUSTODIAN")
    return path


def read(path, number=1):
    with Vault.open(path) as vault:
        return vault.read_generation(number)


def put_plaintext(path, state: str) -> None:
    """What one who writes a folder does: his weights, a digest that fits, another record."""
    (path / "generations" / "000001" / "weights.safetensors").write_bytes(network(9))
    change = "DROP TABLE sealing"
    if state:
        change = f"UPDATE sealing SET record = json_set(record, '$.state', '{state}')"
    files = json.dumps({"weights": sha256(network(9))})
    edit_ledger(path, change, f"UPDATE generations SET files = '{files}' WHERE number = 1",
                *([] if state else [f"PRAGMA user_version = {FORMAT}"]))  # fmt: skip


@pytest.mark.parametrize("state", ["", "sealing", "unsealing", "sealed"])
def test_who_writes_the_folder_of_a_host_gets_no_plaintext_read(copy, state):
    put_plaintext(copy, state)
    with pytest.raises(BrokenSealError, match="is not sealed, ") as caught:
        read(copy)
    assert "\n" not in str(caught.value)
    assert any("it is not sealed" in problem.what for problem in verify(copy))


def test_where_it_was_meant_plaintext_is_read_again(made, url):
    assert read(made) == network(1)
    with Vault.open(made, write=True) as vault:
        changing.unseal(vault, None)
    assert read(made) == network(1)
    with Vault.open(made, write=True) as vault:
        changing.seal(vault, sealing.custodian(url), url)
    assert read(made) == network(1)


@pytest.mark.parametrize("again", [False, True])
def test_a_seal_that_was_interrupted_is_read_as_it_is(made, url, again):
    """Its own user began it, where it was sealed before, too."""
    with Vault.open(made, write=True) as vault:
        if not again:
            changing.unseal(vault, None)
        changing.begin(vault, sealing.custodian(url), url)
        record = vault.sealing.record
        edit_ledger(made, "UPDATE sealing SET record = json_set(record, '$.state', 'sealing')")
        path = vault.generation_file(1)
        path.write_bytes(network(1))
    assert record.state in ("sealing", "sealed")
    assert read(made) == network(1)
    with Vault.open(made, write=True) as vault:
        changing.seal(vault, sealing.custodian(url), url)
        assert remembered(vault).whole


def test_who_demands_sealed_files_reads_no_plaintext_at_the_first_start(made, tmp_path, url):
    other = shutil.copytree(made, tmp_path / "elsewhere")
    for state in ("sealing", ""):
        put_plaintext(other, state)
        with Vault.open(other) as vault:
            vault.sealing.demand()
            with pytest.raises(BrokenSealError, match="plaintext is not read"):
                vault.read_generation(1)


def test_what_an_older_g2d_remembered_is_all_of_it(made, tmp_path):
    (place,) = (tmp_path / "state" / "custodians").iterdir()
    said = json.loads(place.read_text())
    del said["whole"]
    place.write_text(json.dumps(said))
    put_plaintext(made, "sealing")
    with pytest.raises(BrokenSealError, match="plaintext is not read"):
        read(made)


def test_a_damaged_memory_of_it_counts_as_sealed(made, tmp_path):
    (place,) = (tmp_path / "state" / "custodians").iterdir()
    place.write_text("{")
    put_plaintext(made, "sealing")
    with pytest.raises((BrokenSealError, SealingError), match="is not sealed, "):
        read(made)


@pytest.mark.parametrize("kept", [True, False])
def test_a_ledger_that_changes_under_a_service_gets_no_plaintext_read(made, kept, tmp_path):
    """With a state folder and without one; by another identity, nothing that is known is found."""
    with Vault.open(made) as vault:
        assert vault.read_generation(1) == network(1)
        if not kept:
            shutil.rmtree(tmp_path / "state")
            vault.sealing._note_opened(vault.sealing.record)
            assert remembered(vault).whole  # it lasts as long as this process at least
        put_plaintext(made, "sealing")
        with pytest.raises(BrokenSealError, match="plaintext is not read"):
            vault.read_generation(1)
        edit_ledger(made, f"UPDATE identity SET id = '{'0' * 32}'")
        with pytest.raises(BrokenSealError, match="plaintext is not read"):
            vault.read_generation(1)


def test_where_nothing_can_be_remembered_a_process_itself_does(made, monkeypatch, tmp_path, url):
    monkeypatch.setenv("G2D_CUSTODIAN", url)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "file" / "state"))
    with Vault.open(made) as vault:
        assert vault.read_generation(1) == network(1)
        put_plaintext(made, "sealing")
        with pytest.raises(BrokenSealError, match="plaintext is not read"):
            vault.read_generation(1)


def test_a_custodian_that_is_named_means_that_plaintext_is_not_served(made, url, monkeypatch):
    """At its first start a host remembers nothing, and may have no folder for it either."""
    from g2d.service.released import holds_releases_alone

    monkeypatch.setenv("G2D_STATE", str(made.parent / "fresh"))
    monkeypatch.setenv("G2D_CUSTODIAN", url)
    assert not holds_releases_alone(made)
    for state, told in (("sealing", "only half sealed"), ("", "plaintext is not served")):
        put_plaintext(made, state)
        with pytest.raises(SealingError, match=told) as caught:
            holds_releases_alone(made)
        assert "\n" not in str(caught.value)
    monkeypatch.delenv("G2D_CUSTODIAN")
    assert not holds_releases_alone(made)
