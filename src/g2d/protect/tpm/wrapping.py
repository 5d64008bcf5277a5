"""What is encrypted for a TPM without having one: credentials, and objects to import.

TPM 2.0 Library, Part 1: section 24 (credentials), 23.3 (duplication), 11.4.10 (KDFa, KDFe),
annexes B.10 and C.6 (shared secrets). The ciphers and derivations are those of `cryptography`.
"""

from __future__ import annotations

import importlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2d.errors import SealingError
from g2d.protect.tpm.publics import (
    ENDORSEMENT_EC,
    ENDORSEMENT_RSA,
    KEYED_HASH,
    STORAGE,
    key_of,
    name_of,
    point_of,
    sealed_public,
)
from g2d.protect.tpm.wire import sha256, sized, u16

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = ["Wrapped", "make_credential", "wrap_sealed"]

_MOST_SEALED = 128  # bytes that a TPM seals at most


@dataclass(frozen=True)
class Wrapped:
    """A sealed object on its way to one storage key.

    Attributes:
        public: its public area. duplicate: its sensitive area, encrypted, with its HMAC before it.
        seed: what the storage key alone finds the keys of that with.
    """

    public: bytes
    duplicate: bytes
    seed: bytes


def make_credential(endorsement: bytes, name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Encrypt a secret that a TPM decrypts if it holds both keys: TPM2_MakeCredential.

    Args:
        endorsement: public area of the endorsement key. name: of the key that signs quotes.

    Returns:
        The credential (TPM2B_ID_OBJECT) and its seed (TPM2B_ENCRYPTED_SECRET), without sizes.
    """
    seed, encrypted = _shared_seed(endorsement, b"IDENTITY")
    return _protect(seed, name, sized(secret)), encrypted


def wrap_sealed(storage: bytes, policy: bytes, data: bytes) -> Wrapped:
    """Make a sealed object and encrypt it for a storage key, as TPM2_Duplicate would.

    Args:
        storage: public area of the storage key. policy: digest of who may unseal. data: at most 128
            bytes.
    """
    if len(data) > _MOST_SEALED:
        raise SealingError(f"a TPM seals {_MOST_SEALED} bytes at most, not {len(data)}")
    hidden = secrets.token_bytes(32)
    public = sealed_public(policy, sha256(hidden, data), travels=True)
    sensitive = u16(KEYED_HASH) + sized(b"") + sized(hidden) + sized(data)
    seed, encrypted = _shared_seed(storage, b"DUPLICATE")
    return Wrapped(public, _protect(seed, name_of(public), sized(sensitive)), encrypted)


def _shared_seed(area: bytes, label: bytes) -> tuple[bytes, bytes]:
    """A seed that the private half of a key finds again, and what it finds that with."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

    kinds = (STORAGE,) if label == b"DUPLICATE" else (ENDORSEMENT_EC, ENDORSEMENT_RSA)
    key = key_of(area, *kinds)
    if isinstance(key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(32)
        mask = padding.MGF1(hashes.SHA256())
        return seed, key.encrypt(seed, padding.OAEP(mask, hashes.SHA256(), label + b"\0"))
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    ours, theirs = point_of(_public(ephemeral)), point_of(key)
    shared = ephemeral.exchange(ec.ECDH(), key)
    derive = ConcatKDFHash(hashes.SHA256(), 32, label + b"\0" + ours[0] + theirs[0])  # KDFe
    return derive.derive(shared), sized(ours[0]) + sized(ours[1])


def _public(key: object) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    assert isinstance(key, EllipticCurvePrivateKey)
    return key.public_key()


def _protect(seed: bytes, name: bytes, plain: bytes) -> bytes:
    """Encrypt under a seed, and put an HMAC before it that covers a name, too."""
    from cryptography.hazmat.primitives import hashes, hmac
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    key = _derive(seed, b"STORAGE", name, 16)
    encryptor = Cipher(algorithms.AES(key), _cfb()).encryptor()
    encrypted = encryptor.update(plain) + encryptor.finalize()
    outer = hmac.HMAC(_derive(seed, b"INTEGRITY", b"", 32), hashes.SHA256())
    outer.update(encrypted + name)
    return sized(outer.finalize()) + encrypted


def _cfb() -> Any:
    """The mode that TPMs encrypt in, with an initial vector of zeros; its place moves."""
    for place in ("decrepit", "primitives"):
        with suppress(ImportError, AttributeError):
            module = importlib.import_module(f"cryptography.hazmat.{place}.ciphers.modes")
            return module.CFB(bytes(16))
    raise SealingError("the package cryptography has no AES-CFB: pip install 'g2d[sealing]'")


def _derive(seed: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa: NIST SP 800-108 in counter mode, the counter first, with HMAC-SHA-256."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

    return KBKDFHMAC(
        hashes.SHA256(), Mode.CounterMode, size, 4, 4, CounterLocation.BeforeFixed, label, context,
        None,
    ).derive(seed)  # fmt: skip
