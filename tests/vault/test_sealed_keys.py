"""Keys of every kind in files that a custodian opens, and whose word it takes to ask that one."""

from __future__ import annotations

import json

import pytest

from g2d.errors import KeyFileError, SealingError
from g2d.protect.privacy.canary_key import CanaryKey
from g2d.protect.sealing import make_custodian
from g2d.protect.watermark.key import WatermarkKey
from g2d.vault import held
from g2d.vault.held import HeldKey
from g2d.vault.keys import SigningKey, write_secret
from g2d.vault.sealing import keyfile, remembered
from g2d.vault.sealing.keyfile import reseal
from signed import run


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    found = f"file:{tmp_path / 'custodian.key'}"
    make_custodian(found)
    return found


def canaries():
    return CanaryKey.generate("ab" * 16, 100, 20, "mislabelled")


KINDS = {
    "signing": (SigningKey.generate, SigningKey.read, lambda key: key._key.private_bytes_raw()),
    "watermark": (WatermarkKey.generate, WatermarkKey.read, lambda key: key.secret),
    "canaries": (canaries, CanaryKey.read, lambda key: key.secret),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_opens_by_its_custodian_alone(kind, url, tmp_path):
    make, read, secret = KINDS[kind]
    key, file, later = make(), tmp_path / "new", tmp_path / "later"
    key.write(file, url)
    key.write(later)
    assert reseal(later, url) == ""
    assert "is opened by" in run("keys", "seal", later, "--custodian", url)  # once more
    for path in (file, later):
        assert secret(read(path)) == secret(key)
        assert path.stat().st_mode & 0o777 == 0o600
        for form in (secret(key), secret(key).hex().encode()):
            assert form not in path.read_bytes()
    other = f"file:{tmp_path / 'other.key'}"
    assert run("keys", "seal", file, "--custodian", other)
    (tmp_path / "custodian.key").unlink()
    assert secret(read(file)) == secret(key)
    with pytest.raises(SealingError, match="there is no custodian"):
        read(later)
    with pytest.raises(SealingError, match="there is no custodian"):
        reseal(later, other)


def test_a_secret_of_one_kind_opens_as_no_other(url, tmp_path):
    for kind, (make, _, _) in KINDS.items():
        make().write(tmp_path / kind, url)
        for other, (_, read, _) in KINDS.items():
            if other != kind:
                with pytest.raises(KeyFileError, match=r"was sealed as key 0"):
                    read(tmp_path / kind)


def test_a_custodian_that_a_file_alone_names_is_not_asked(url, tmp_path, monkeypatch):
    """PKCS#11's module and a TPM's TCTI are libraries: a claim or a vault may name the file."""
    asked = []

    class Evil:
        kind = "pkcs11"

        def wrap(self, key, context):
            return key

        def unwrap(self, blob, context):
            asked.append(blob)
            return blob

    real = remembered.new_custodian

    def custodian(named):
        return Evil() if named.startswith(("pkcs11:", "tpm:")) else real(named)

    monkeypatch.setattr(keyfile, "new_custodian", custodian)
    evil = "pkcs11:token=t;object=o?module-path=/tmp/evil.so"
    for number, named in enumerate((evil, "tpm:cmd:/tmp/evil", "tpm:/tmp/evil.so:")):
        for kind, (make, read, _) in KINDS.items():
            path = tmp_path / f"{kind}{number}"
            make().write(tmp_path / "plain")
            data = (tmp_path / "plain").read_bytes()
            (tmp_path / "plain").unlink()
            purpose = {"signing": "private"}.get(kind, kind)
            write_secret(path, keyfile.shut_key(data, named, purpose))
            with pytest.raises(SealingError, match="as it says itself"):
                read(path)
            with pytest.raises(SealingError, match="as it says itself"):
                reseal(path, url)
            assert not asked
            monkeypatch.setenv("G2D_CUSTODIAN", named)
            read(path)
            monkeypatch.delenv("G2D_CUSTODIAN")
            with pytest.raises(SealingError, match="as it says itself"):
                read(path)
            assert reseal(path, named) == named  # the user's word
            read(path)
            path.rename(tmp_path / "moved")  # and of this path alone
            with pytest.raises(SealingError, match="as it says itself"):
                read(tmp_path / "moved")
            (tmp_path / "moved").unlink()
            asked.clear()


def test_a_key_that_is_held_signs_where_its_holder_was_named_by_hand(url, tmp_path, monkeypatch):
    asked, path, named = [], tmp_path / "held", "tpm:cmd:/tmp/evil"
    point = b"\2" + bytes.fromhex(
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    )

    class Holder:
        def sign(self, blob, message):
            asked.append(blob)
            return 1, 1

    monkeypatch.setattr(held, "_holder", lambda url: Holder())
    path.write_bytes(HeldKey(named, b"blob", point).encode())
    path.chmod(0o600)
    key = SigningKey.read(path)
    with pytest.raises(SealingError, match="as it says itself"):
        key.sign(b"message")
    with pytest.raises(SealingError, match="holds no secret"):
        reseal(path, url)
    assert not asked
    assert reseal(path, named) == named
    with pytest.raises(SealingError, match="is not of the key"):
        key.sign(b"message")
    assert asked == [b"blob"]


def test_what_is_no_key_or_open_to_others_is_left_as_it_is(url, tmp_path):
    path = tmp_path / "file"
    for text in ("", "words", "-----BEGIN PUBLIC KEY-----\n"):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(KeyFileError, match="is no key that G2D reads"):
            reseal(path, url)
        assert path.read_text() == text
    WatermarkKey.generate().write(tmp_path / "open")
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        reseal(tmp_path / "open", url)
    with pytest.raises(KeyFileError, match="cannot read"):
        reseal(tmp_path / "absent", url)
    key = canaries()
    key.write(tmp_path / "canaries", url)
    assert json.loads(key._text())["secret"] == CanaryKey.read(tmp_path / "canaries").secret.hex()
