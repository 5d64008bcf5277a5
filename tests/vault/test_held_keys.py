"""A signing key in a TPM: it signs manifests, everybody verifies, and no algorithm is another's."""

from __future__ import annotations

import base64
import json
import pickle

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from g2d.errors import G2DError, KeyFileError, SealingError
from g2d.protect.watermark.commitment import commit
from g2d.vault import algorithms
from g2d.vault.algorithms import joined, verifies
from g2d.vault.committed import signer_of
from g2d.vault.held import HeldKey
from g2d.vault.keys import SigningKey, VerifyKey, read_public
from g2d.vault.vault import Vault
from marked import FORM, KEY
from signed import accept, refused, run, signed_vault, verify
from software_tpm import extend, running


class Curve:
    """Stands for a holder: a key of P-256 in this process."""

    def __init__(self, curve=None):
        self._key = ec.generate_private_key(curve or ec.SECP256R1())

    def public_key(self):
        return self._key.public_key()

    def sign(self, message):
        return joined(*self.both(message))

    def both(self, message):
        return decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))


@pytest.fixture
def curve():
    return SigningKey(Curve())


def test_manifests_are_signed_by_a_key_that_never_leaves_its_tpm(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    private = tmp_path / "signing.key"
    with running(tmp_path / "tpm") as address:
        run("keys", "new", "--key", private, "--custodian", f"tpm:{address}")
        key, trusted = SigningKey.read(private), VerifyKey.read(private.with_suffix(".pub"))
        assert key.fingerprint == trusted.fingerprint
        assert key.fingerprint.startswith("p256-sha256:")
        assert read_public(private) == trusted
        with signed_vault(tmp_path / "vault", key) as vault:
            assert verify(vault, 3, trusted).signer == key.fingerprint
            said = run("verify", vault.path, "--key", private.with_suffix(".pub"), code=1)
            assert "signature" not in said  # its networks are none, and all is signed
            extend(address, 14, bytes(32))
            with pytest.raises(SealingError, match="booted something else"):
                accept(vault, key, 9)
            assert vault.last_number() == 4  # nothing unsigned in its place
            assert verify(vault, 4, trusted).number == 4  # and what was signed is
    with pytest.raises(SealingError, match="no TPM answers"):
        key.sign(b"x")
    with running(tmp_path / "other") as address:
        elsewhere = HeldKey(f"tpm:{address}", key._key._blob, key._key._point)
        with pytest.raises(SealingError, match="another TPM"):
            elsewhere.sign(b"x")
        mine = HeldKey.make(f"tpm:{address}")
        stranger = HeldKey(mine.url, mine._blob, key._key._point)
        with pytest.raises(SealingError, match="not of the key whose public half"):
            stranger.sign(b"x")
        said = json.loads(mine._blob)
        said["pcrs"]["14"] = "11" * 32
        changed = json.dumps(said, indent=1, sort_keys=True).encode() + b"\n"
        with pytest.raises(SealingError, match="is not that of a signing key"):
            HeldKey(mine.url, changed, mine._point).sign(b"x")


def test_a_key_of_one_algorithm_is_none_of_the_other(curve, key, tmp_path):
    with signed_vault(tmp_path / "vault", curve) as vault:
        accept(vault, key, 5)
        assert verify(vault, 4, curve.public).signer == curve.fingerprint
        assert refused(vault, 5, curve.public) == "signature"
        assert refused(vault, 4, key.public) == "signature"
        both = VerifyKey((*key.public.keys, *curve.public.keys))
        assert {verify(vault, n, both).signer for n in (4, 5)} == {*both.fingerprints}
        both.write(tmp_path / "both")
        assert VerifyKey.read(tmp_path / "both") == both
        assert pickle.loads(pickle.dumps(both)) == both
        assert [VerifyKey.of(raw).keys[0] for raw in both.raw] == [*both.keys]
        # The manifest names the key, and with it the algorithm: another one's is no signature.
        folder = vault.generation_file(4).parent
        named = folder.joinpath("manifest.json").read_bytes()
        claimed = named.replace(curve.fingerprint.encode(), key.fingerprint.encode())
        assert claimed != named
        folder.joinpath("manifest.json").write_bytes(claimed)
        folder.joinpath("manifest.sig").write_bytes(curve.sign(claimed))
        assert refused(vault, 4, both) == "format"


def test_one_signature_is_taken_of_two_and_none_of_none(curve):
    (public,), holder = curve.public.keys, curve._key
    r, low = holder.both(b"message")
    low = min(low, algorithms._ORDER - low)
    high = algorithms._ORDER - low
    assert verifies(public, joined(r, high), b"message")  # it is kept with the lower one
    bad = [(r, high), (0, low), (r, 0), (0, 0), (algorithms._ORDER, low), (r, algorithms._ORDER)]
    for one, two in bad:
        assert not verifies(public, one.to_bytes(32, "big") + two.to_bytes(32, "big"), b"message")
    good = joined(r, low)
    for data in (b"", good[:-1], good + b"\0", good[::-1]):
        assert not verifies(public, data, b"message")
    assert not verifies(public, good, b"another")


def test_a_public_file_says_its_algorithm(curve, key, tmp_path):
    path = tmp_path / "public"
    curve.public.write(path)
    text = path.read_text()
    assert "algorithm: ecdsa-p256-sha256\n" in text
    bare = "".join(line for line in text.splitlines(True) if not line.startswith("algorithm"))
    other = Curve(ec.SECP384R1()).public_key().public_bytes(
        s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo
    ).decode()  # fmt: skip
    key.public.write(tmp_path / "ed")
    named = "algorithm: ecdsa-p256-sha256\n"
    ed25519 = (tmp_path / "ed").read_text()
    for wrong in (bare, text.replace("p256", "p384"), named + other, text + other, named + ed25519,
                  bare + ed25519, "algorithm: none\n" + text):  # fmt: skip
        path.write_text(wrong)
        with pytest.raises(KeyFileError):
            VerifyKey.read(path)
    run("keys", "new", "--export", "--key", tmp_path / "export.key")
    with pytest.raises(KeyFileError, match="another kind"):  # it signs exports alone
        VerifyKey.read(tmp_path / "export.pub")
    for raw in (bytes(33), b"\2" + b"\xff" * 32, b"\4" + bytes(32), bytes(31), bytes(34)):
        with pytest.raises(ValueError, match=r"."):
            VerifyKey.of(raw)


def test_a_damaged_file_of_a_held_key_is_one_line(curve, tmp_path):
    path = tmp_path / "signing.key"
    for said in ({}, [], {"custodian": "tpm:", "key": "", "public": ""},
                 {"custodian": "tpm:", "key": "eA==", "public": "AAAA" * 11}):  # fmt: skip
        text = base64.b64encode(json.dumps(said).encode()).decode()
        path.write_text(f"-----BEGIN G2D HELD PRIVATE KEY-----\n{text}\n"
                        "-----END G2D HELD PRIVATE KEY-----\n")  # fmt: skip
        path.chmod(0o600)
        with pytest.raises(KeyFileError, match="is damaged"):
            SigningKey.read(path)
    with pytest.raises(G2DError, match="names no custodian"):
        HeldKey.make("file:/key")


def test_a_commitment_to_a_watermark_is_signed_by_it_too(curve, tmp_path):
    with Vault.create(tmp_path / "vault", '[task]\nname = "digits"\n') as vault:
        made = commit(KEY, FORM, "digits", vault, n=100, sets=4, signing=curve)
    again = type(made).from_record(json.loads(json.dumps(made.record())))
    assert again.verify(made.commitment.created, curve.public).signer == curve.fingerprint
    other = SigningKey(Curve())
    with pytest.raises(G2DError, match="none of the keys that you trust"):
        again.verify(made.commitment.created, other.public)
    assert signer_of(other.public.raw[0].hex(), made.commitment.text(), made.signature) is None
