"""Exported generations as OpenSSF's `model_signing` verifies them, by its own command line."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from g2d.errors import KeyFileError
from g2d.vault.keys import SigningKey
from g2d.vault.model_signing import ExportKey
from g2d.vault.vault import Vault
from signed import run, signed_vault
from tools import tool


def verified(model: Path, public: Path) -> tuple[bool, str]:
    """What their command line says of a file and its signature."""
    told = subprocess.run(
        [tool("model_signing"), "verify", "key", str(model), "--signature", f"{model}.sig",
         "--public_key", str(public)],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return told.returncode == 0, told.stdout + told.stderr


@pytest.fixture
def exported(tmp_path):
    """Generation 2 of a signed vault, exported with a key for model_signing."""
    key = SigningKey.generate()
    key.public.write(tmp_path / "g2d.pub")
    with signed_vault(tmp_path / "vault", key):
        pass
    made = run("keys", "new", "--export", "--key", tmp_path / "export.key")
    assert "ECDSA" not in made
    assert "g2d export VAULT" in " ".join(made.split())
    out = tmp_path / "model.safetensors"
    run("export", tmp_path / "vault", out, "--sign", tmp_path / "export.key",
        "--key", tmp_path / "g2d.pub")  # fmt: skip
    return out


def test_their_command_line_accepts_what_we_export_and_refuses_what_was_changed(exported):
    public = exported.with_name("export.pub")
    sound, told = verified(exported, public)
    assert sound, told
    weights, signature = exported.read_bytes(), Path(f"{exported}.sig").read_bytes()
    exported.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    sound, told = verified(exported, public)
    assert not sound
    assert "Hash mismatch" in told
    exported.write_bytes(weights)
    bundle = json.loads(signature)
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    changed = base64.b64encode(payload.replace(b'"generation": 2', b'"generation": 3'))
    bundle["dsseEnvelope"]["payload"] = changed.decode()
    Path(f"{exported}.sig").write_text(json.dumps(bundle))
    assert not verified(exported, public)[0]


def test_the_bundle_says_where_the_file_comes_from(exported):
    bundle = json.loads(Path(f"{exported}.sig").read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    with Vault.open(exported.with_name("vault")) as vault:
        about = {"vault": vault.identity, "generation": 2}
    assert statement["predicate"]["g2d"] == about
    assert statement["subject"][0]["name"] == "model.safetensors"


def test_what_the_key_has_not_signed_is_not_exported(exported, tmp_path):
    stranger = SigningKey.generate()
    stranger.public.write(tmp_path / "stranger.pub")
    told = run("export", tmp_path / "vault", tmp_path / "x", "--key", tmp_path / "stranger.pub",
               code=1)  # fmt: skip
    assert "refused (signature)" in told
    assert not (tmp_path / "x").exists()
    told = run("export", tmp_path / "vault", exported, "--sign", tmp_path / "export.key", code=1)
    assert "exists; name another file" in " ".join(told.split())


def test_only_a_private_ecdsa_key_signs_exports(tmp_path):
    SigningKey.generate().write(tmp_path / "ed.key")
    with pytest.raises(KeyFileError, match="g2d keys new --export"):
        ExportKey.read(tmp_path / "ed.key")
    made = ExportKey.generate()
    made.write(tmp_path / "ec.key")
    assert ExportKey.read(tmp_path / "ec.key").fingerprint == made.fingerprint
    assert (tmp_path / "ec.key").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(made)
    with pytest.raises(KeyFileError, match="Ed25519"):
        SigningKey.read(tmp_path / "ec.key")
