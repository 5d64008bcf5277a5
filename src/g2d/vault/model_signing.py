"""Signatures of exported files as OpenSSF's `model_signing` verifies them, by its key method.

A Sigstore bundle: an in-toto statement of the file's SHA-256 in a DSSE envelope, signed by ECDSA on
P-256 (that tool takes no Ed25519). Written here, with `cryptography` alone; that its own command
line accepts it, and refuses what was changed, is tested. Knows no torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from g2d.core.files import write_bytes
from g2d.errors import KeyFileError
from g2d.vault.keys import load_private, store_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_IGNORED = (".git", ".gitattributes", ".github", ".gitignore")  # as the tool itself leaves out
_ITSELF = "."  # how it names the one file of a model that is a file


class ExportKey:
    """A private ECDSA key on P-256 that signs exported files. No representation shows the key."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Draw a new key from the system's randomness."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a private key: PEM, without a passphrase.

        Raises:
            KeyFileError: it is absent, inside a vault, not such a key, or others may read it.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        key = load_private(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise KeyFileError(
                f"{path} is not an ECDSA P-256 private key (PEM, no passphrase), which"
                " model_signing needs: make one with `g2d keys new --export`"
            )
        return cls(key)

    def write(self, path: Path | str, custodian: str = "") -> None:
        """Write the key into a new file, mode 600; see `SigningKey.write`.

        Raises:
            KeyFileError: a file is there already, it lies in a vault, or it cannot be written.
            SealingError: the custodian is not there, or refuses.
        """
        store_private(path, self._key, custodian)

    @property
    def public(self) -> bytes:
        """The public key in PEM: what `model_signing verify key --public_key` reads."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self._key.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `public`, as bundles name the key."""
        return hashlib.sha256(self.public).hexdigest()

    def write_public(self, path: Path) -> None:
        """Write the public key into a file.

        Raises:
            G2DError: it cannot be written.
        """
        write_bytes(path, self.public)

    def sign(self, name: str, data: bytes, about: Mapping[str, Any]) -> bytes:
        """Sign a file; return the bundle, as JSON.

        Args:
            name: the file's name, for who reads it. data: its bytes. about: what else is signed:
                verifiers pass over it, readers learn where the file comes from.
        """
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        payload = json.dumps(_statement(name, data, about), sort_keys=True).encode()
        signature = self._key.sign(_encoded(payload), ec.ECDSA(hashes.SHA256()))
        bundle = {
            "mediaType": _BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": self.fingerprint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": _base64(payload),
                "payloadType": _PAYLOAD,
                "signatures": [{"sig": _base64(signature), "keyid": ""}],
            },
        }
        return json.dumps(bundle).encode()

    def __repr__(self) -> str:
        return f"ExportKey({self.fingerprint})"


def _statement(name: str, data: bytes, about: Mapping[str, Any]) -> dict[str, Any]:
    """What is signed; the subject's digest is that of all resources' digests, here of the one."""
    file = hashlib.sha256(data)
    root = hashlib.sha256(file.digest()).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": [{"name": _ITSELF, "algorithm": "sha256", "digest": file.hexdigest()}],
            "g2d": dict(about),
        },
    }


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol 1.0)."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
