"""Keys on disk, and the commands that make, show, use and gather them."""

from __future__ import annotations

import errno
import os
import pickle
import stat

import pytest

import g2d
from g2d.errors import G2DError, KeyFileError
from g2d.vault.signing import SigningKey, VerifyKey
from g2d.vault.vault import Vault
from signed import run, signed_vault, verify


@pytest.fixture
def vault(tmp_path, key):
    """Generations 1 to 4, signed; 2 is live."""
    with signed_vault(tmp_path / "vault", key) as made:
        yield made


# -- keys on disk ----------------------------------------------------------------------------------


def test_half_a_key_on_a_full_disk_does_not_stand_in_the_way(tmp_path, key, monkeypatch):
    path = tmp_path / "signing.key"

    def full(path, data, mode):
        path.write_bytes(data[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("g2d.vault.keys.fill_file", full)
        with pytest.raises(KeyFileError, match="No space left"):
            key.write(path)
    key.write(path)
    assert SigningKey.read(path).public == key.public


def test_a_key_comes_back_and_is_private(tmp_path, key):
    path = tmp_path / "new" / "signing.key"
    key.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert SigningKey.read(path).public == key.public
    assert SigningKey.read(path).sign(b"x") == key.sign(b"x")
    with pytest.raises(KeyFileError, match="never overwritten"):
        SigningKey.generate().write(path)
    secret = path.read_text().splitlines()[1]
    for text in (repr(key), str(key), repr(key.public), str(vars(key))):
        assert secret[20:] not in text
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_private_key_open_to_others_is_refused(tmp_path, key, mode):
    path = tmp_path / "signing.key"
    key.write(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        SigningKey.read(path)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_public_key_that_others_may_write_is_refused(tmp_path, key, mode):
    key.public.write(tmp_path / "key.pub")
    assert VerifyKey.read(tmp_path / "key.pub") == key.public
    (tmp_path / "key.pub").chmod(mode)
    with pytest.raises(KeyFileError, match="others may write"):
        VerifyKey.read(tmp_path / "key.pub")


def test_other_files_are_no_keys_and_are_not_quoted(tmp_path, key):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    pem, pkcs8 = s.Encoding.PEM, s.PrivateFormat.PKCS8
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        pem, pkcs8, s.BestAvailableEncryption(b"passphrase")
    )
    curve = ec.generate_private_key(ec.SECP256R1())
    public = curve.public_key().public_bytes(pem, s.PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path / "file"
    for data in (b"", b"secret words", locked, curve.private_bytes(pem, pkcs8, s.NoEncryption())):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(KeyFileError, match="not an Ed25519 private key") as error:
            SigningKey.read(path)
        assert "secret" not in str(error.value)
        with pytest.raises(KeyFileError):
            VerifyKey.read(path)
    key.public.write(path)
    good = path.read_bytes()
    for data in (public, good + public, good + b"vault: short\n", good + b"trust me\n"):
        path.write_bytes(data)
        with pytest.raises(KeyFileError):
            VerifyKey.read(path)
    for missing in (tmp_path / "absent", tmp_path):
        with pytest.raises(KeyFileError, match="cannot read the key"):
            SigningKey.read(missing)


def test_keys_and_vaults_stay_apart(vault, key, tmp_path):
    inside = vault.path / "generations" / "signing.key"
    for act in (key.write, key.public.write, SigningKey.read, VerifyKey.read):
        with pytest.raises(KeyFileError, match="lies in the vault"):
            act(inside)
    (tmp_path / "link").symlink_to(vault.path / "generations")
    with pytest.raises(KeyFileError, match="lies in the vault"):
        key.write(tmp_path / "link" / "signing.key")


# -- commands --------------------------------------------------------------------------------------


def test_keys_new_and_show_print_fingerprints_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    said = run("keys", "new")
    private = tmp_path / "config" / "g2d" / "signing.key"
    made = SigningKey.read(private)
    secret = private.read_text().splitlines()[1]
    assert made.fingerprint in said
    for shown in (said, run("keys", "show"), run("keys", "show", private.with_suffix(".pub"))):
        assert made.fingerprint in shown
        assert secret not in shown
    before = private.read_bytes()
    assert "exists already" in run("keys", "new", code=1)
    assert private.read_bytes() == before
    assert "name another file with --public" in run("keys", "new", "--key", "x.pub", code=1)
    named = tmp_path / "named"
    run("keys", "new", "--key", named, "--public", tmp_path / "other.pub")
    assert VerifyKey.read(tmp_path / "other.pub") == SigningKey.read(named).public


def test_keys_trust_gathers_keys_and_binds_them_to_vaults(vault, key, tmp_path):
    key.write(tmp_path / "old.key")
    fresh = SigningKey.generate()
    fresh.public.write(tmp_path / "new.pub")
    out = tmp_path / "trusted.pub"
    sources = (tmp_path / "old.key", tmp_path / "new.pub")
    said = run("keys", "trust", out, *sources, "--vault", vault.path)
    trusted = VerifyKey.read(out)
    assert trusted.fingerprints == (key.fingerprint, fresh.fingerprint)
    assert trusted.vaults == {vault.identity}
    assert vault.identity in said
    assert vault.identity in run("keys", "show", out)
    assert verify(vault, 3, trusted).number == 3
    assert "exists already" in run("keys", "trust", out, *sources, code=1)
    run("keys", "trust", out, *sources, "--force")
    assert b"PRIVATE" not in out.read_bytes()


def test_keys_use_needs_a_key_that_can_sign(vault, key, tmp_path):
    vault.close()
    assert "cannot read the key" in run("keys", "use", vault.path, "--key", "absent", code=1)
    key.write(tmp_path / "signing.key")
    said = run("keys", "use", vault.path, "--key", tmp_path / "signing.key")
    assert key.fingerprint in said
    assert "up to 4 stay as they are" in said
    with Vault.open(vault.path) as again:
        settings = g2d.Settings.from_toml(again.settings_text)
    assert settings.signing.key == str(tmp_path / "signing.key")


def test_without_the_library_signing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "cryptography.hazmat.primitives.asymmetric", None
    )
    with pytest.raises(G2DError, match=r"pip install 'g2d\[signing\]'"):
        SigningKey.generate()
