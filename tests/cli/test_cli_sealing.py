"""A sealed vault by its commands: sealed, generated in, served, verified, exported, unsealed."""

import shutil

import pytest
from safetensors import safe_open

from benchmarks.sealing.scan import blocks_of, found_in, tensors_of
from commands import edit_ledger, fail, invoke, succeed
from g2d.cli.shared import seal_from_now
from g2d.errors import SealingError
from g2d.protect.privacy.canary_key import CanaryKey
from g2d.protect.sealing.paper import _asked
from g2d.protect.watermark.key import WatermarkKey
from g2d.service.loader import VaultLoader
from g2d.vault.keys import SigningKey
from g2d.vault.vault import Vault

pytest.importorskip("cryptography")


@pytest.fixture
def vault(tiny_vault, tmp_path):
    return shutil.copytree(tiny_vault, tmp_path / "vault")


@pytest.fixture
def url(tmp_path):
    return f"file:{tmp_path / 'custodian.key'}"


def blocks(paths):
    return blocks_of(tensors_of(path.read_bytes() for path in paths))


def test_a_vault_is_sealed_used_and_unsealed(vault, url, tmp_path):
    first = blocks(vault.rglob("*.safetensors"))
    assert len(first) > 1000
    said = succeed("vault", "seal", vault, "--custodian", url).output
    assert "is sealed" in said
    assert "old blocks" in said
    assert "--add paper" in said
    succeed("generate", vault)
    succeed("export", vault, tmp_path / "out.safetensors")
    fresh = blocks([tmp_path / "out.safetensors"])
    assert found_in(vault, first | fresh) == {}
    assert "sealed, key" in succeed("show", vault).output
    assert "is sound" in succeed("verify", vault).output
    for inside in (vault / "out.safetensors", f"mlflow:{vault}/s", f"mlflow:{vault.as_uri()}/%73"):
        assert "lies in a sealed vault" in fail("export", vault, "--to", inside)
    assert "use --engine local" in fail("generate", vault, "--engine", "ray")
    loader = VaultLoader(vault, "g2d")
    assert loader.first()[0].number == 2
    loader.close()
    assert "rewritten" in succeed("vault", "unseal", vault).output
    with safe_open(vault / "generations" / "000002" / "weights.safetensors", "np") as plain:
        assert plain.keys()
    assert "is sound" in succeed("verify", vault).output


def test_a_cluster_serves_no_plaintext_where_a_custodian_is_named(vault, url, monkeypatch):
    monkeypatch.setenv("G2D_CUSTODIAN", url)
    assert "plaintext is not served" in fail("serve", vault, "--engine", "ray", "--port", "0")


def test_who_opens_it_is_said_by_flag_variable_or_once(vault, url, tmp_path, monkeypatch):
    assert "no custodian is named" in fail("vault", "seal", vault)
    assert "is not sealed" in fail("vault", "custodians", vault)
    succeed("vault", "seal", vault, "--custodian", url)
    out = tmp_path / "out.safetensors"
    moved = vault.rename(tmp_path / "moved")
    assert "nobody here has said" in fail("export", moved, out)
    assert "was not looked at" in invoke("verify", moved).output
    succeed("--custodian", url, "export", moved, out)
    assert "nobody here has said" in fail("export", moved, out, "--force")  # that once alone
    monkeypatch.setenv("G2D_CUSTODIAN", url)
    succeed("export", moved, out, "--force")
    monkeypatch.delenv("G2D_CUSTODIAN")
    succeed("vault", "custodians", moved, "--use", url)
    succeed("export", moved, out, "--force")


def test_a_paper_key_is_shown_once_and_brings_a_lost_vault_back(vault, url, tmp_path, monkeypatch):
    succeed("vault", "seal", vault, "--custodian", url)
    said = succeed("vault", "custodians", vault, "--add", "paper").output
    (key,) = (line.strip() for line in said.splitlines() if line.startswith("    "))
    assert key not in succeed("vault", "custodians", vault).output
    (tmp_path / "custodian.key").unlink()
    assert "there is no custodian" in fail("export", vault, tmp_path / "out.safetensors")
    _asked.cache_clear()
    monkeypatch.setenv("G2D_PAPER_KEY", key)
    other = f"file:{tmp_path / 'new.key'}"
    succeed("vault", "custodians", vault, "--add", other, "--custodian", "paper")
    succeed("vault", "custodians", vault, "--use", other)
    succeed("vault", "custodians", vault, "--remove", "1")
    _asked.cache_clear()
    monkeypatch.delenv("G2D_PAPER_KEY")
    succeed("export", vault, tmp_path / "out.safetensors")
    with Vault.open(vault) as opened:
        assert [one.number for one in opened.sealing.record.held] == [2, 3]


def test_a_new_vault_is_sealed_from_its_first_file_on(url, tmp_path):
    with Vault.create(tmp_path / "new", "[task]\n") as made:
        seal_from_now(made, "")
        assert made.sealing.record is None
        seal_from_now(made, url)
        made.accept({"weights": bytes(range(256))}, {}, activate=True)
        assert bytes(range(64)) not in made.generation_file(1).read_bytes()
        seal_from_now(made, url)  # the same command again
        assert made.sealing.record.state == "sealed"


def test_unsealing_that_fails_leaves_it_known_that_the_vault_is_sealed(url, tmp_path):
    path = tmp_path / "new"
    with Vault.create(path, "[task]\n") as made:
        seal_from_now(made, url)
    (tmp_path / "custodian.key").rename(tmp_path / "gone.key")
    assert "there is no custodian" in fail("vault", "unseal", path)
    edit_ledger(path, "DROP TABLE sealing")
    with pytest.raises(SealingError, match="was sealed here"):
        Vault.open(path, write=True)


def test_two_changes_at_a_time_are_none(vault):
    result = invoke("vault", "custodians", vault, "--add", "paper", "--remove", "1")
    assert result.exit_code == 2
    assert "one of --add" in result.output


def test_a_signing_key_is_opened_by_a_custodian(url, tmp_path):
    private = tmp_path / "signing.key"
    said = succeed("keys", "new", "--key", private, "--custodian", url).output
    assert url in said
    assert b"BEGIN PRIVATE KEY" not in private.read_bytes()
    made = SigningKey.read(private)
    assert made.fingerprint in said
    assert made.fingerprint in succeed("keys", "show", private).output
    (tmp_path / "custodian.key").rename(tmp_path / "gone.key")
    assert "there is no custodian" in fail("keys", "show", private)
    (tmp_path / "gone.key").rename(tmp_path / "custodian.key")
    text = private.read_text().splitlines()
    private.write_text("\n".join([text[0], text[1][::-1], *text[2:]]))
    assert "is damaged" in fail("keys", "show", private)


def test_keys_of_watermarks_and_audits_are_opened_by_a_custodian_from_the_start(url, tmp_path):
    mark, coins = tmp_path / "mark.key", tmp_path / "coins.key"
    new = ("--task", "digits", "--set", "population.members=2")
    succeed("watermark", "new", tmp_path / "marked", *new, "--key", mark, "--custodian", url)
    succeed("privacy", "plant", tmp_path / "planted", *new, "--key", coins, "--canaries", "100",
            "--custodian", url)  # fmt: skip
    for path, read in ((mark, WatermarkKey.read), (coins, CanaryKey.read)):
        secret = read(path).secret
        assert secret.hex().encode() not in path.read_bytes()
        assert b"SEALED PRIVATE KEY" in path.read_bytes()
    (tmp_path / "custodian.key").unlink()
    with pytest.raises(SealingError, match="there is no custodian"):
        WatermarkKey.read(mark)
