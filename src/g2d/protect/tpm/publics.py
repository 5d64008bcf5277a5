"""Public areas of TPM keys (TPMT_PUBLIC): which kinds there are here, names, and reading them.

Seven kinds and no more: an endorsement key (RSA-2048 or P-256), the key that signs quotes, the
storage key, the key that signs policies, one that signs manifests, and a sealed object. Whatever
differs in one attribute is refused. Numbers are of TPM 2.0 Library, Part 2; templates of TCG EK
Credential Profile 2.5, B.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from g2d.errors import SealingError
from g2d.protect.tpm.wire import Reader, sha256, sized, u16, u32

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

__all__ = [
    "ENDORSEMENT_EC",
    "ENDORSEMENT_RSA",
    "POLICY",
    "SIGNING",
    "STORAGE",
    "Kind",
    "is_sealed",
    "key_of",
    "manifest_key",
    "name_of",
    "on_curve",
    "point_of",
    "public_of",
    "sealed_public",
]

RSA, KEYED_HASH, AES, SHA256, NULL, ECDSA, ECC, CFB = 1, 8, 6, 0xB, 0x10, 0x18, 0x23, 0x43
P256 = 3
_AES_128_CFB = u16(AES) + u16(128) + u16(CFB)
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
# Attributes (TPMA_OBJECT): fixedTPM 2, fixedParent 10, sensitiveDataOrigin 20, userWithAuth 40,
# adminWithPolicy 80, noDA 400, restricted 10000, decrypt 20000, sign 40000.


@dataclass(frozen=True)
class Kind:
    """What a public area holds before its key, which is the rest of it.

    Attributes:
        said: what it is, for messages. template: its bytes up to `unique`. rsa: else P-256.
    """

    said: str
    template: bytes
    rsa: bool = False


def _ecc(said: str, attributes: int, policy: bytes, symmetric: bytes, scheme: bytes) -> Kind:
    head = u16(ECC) + u16(SHA256) + u32(attributes) + sized(policy)
    return Kind(said, head + symmetric + scheme + u16(P256) + u16(NULL))


ENDORSEMENT_EC = _ecc(
    "an endorsement key (P-256)", 0x300B2, _EK_POLICY, _AES_128_CFB, u16(NULL)
)  # fmt: skip
ENDORSEMENT_RSA = Kind(
    "an endorsement key (RSA-2048)",
    u16(RSA) + u16(SHA256) + u32(0x300B2) + sized(_EK_POLICY) + _AES_128_CFB + u16(NULL)
    + u16(2048) + u32(0),
    rsa=True,
)  # fmt: skip
STORAGE = _ecc("a storage key", 0x30472, b"", _AES_128_CFB, u16(NULL))
SIGNING = _ecc("a key for quotes", 0x50472, b"", u16(NULL), u16(ECDSA) + u16(SHA256))
POLICY = _ecc("a key for policies", 0x40040, b"", u16(NULL), u16(ECDSA) + u16(SHA256))


def manifest_key(policy: bytes) -> Kind:
    """The kind of a key that signs manifests: this policy has to be met each time."""
    return _ecc("a signing key", 0x404B2, policy, u16(NULL), u16(ECDSA) + u16(SHA256))


def key_of(area: bytes, *kinds: Kind) -> EllipticCurvePublicKey | RSAPublicKey:
    """The key in a public area that has to be of one of these kinds.

    Raises:
        SealingError: it is of none of them, or its point is not on the curve.
    """
    from cryptography.hazmat.primitives.asymmetric import rsa

    kind = next((kind for kind in kinds if area.startswith(kind.template)), None)
    if kind is None:
        told = " or ".join(kind.said for kind in kinds)
        raise SealingError(f"a public area is not that of {told}, with its attributes: refused")
    reader = Reader(area, f"the public area of {kind.said}")
    reader.take(len(kind.template))
    if kind.rsa:
        modulus = reader.sized(256)
        reader.end()
        if len(modulus) != 256 or not modulus[0] & 0x80:
            raise SealingError(f"{kind.said} has a modulus of other than 2,048 bits: refused")
        return rsa.RSAPublicNumbers(65537, int.from_bytes(modulus, "big")).public_key()
    x, y = reader.sized(32), reader.sized(32)
    reader.end()
    if len(x) != 32 or len(y) != 32:
        raise SealingError(f"{kind.said} has a coordinate that is not of 32 bytes: refused")
    return on_curve(x, y, kind.said)


def on_curve(x: bytes, y: bytes, said: str) -> EllipticCurvePublicKey:
    """The P-256 key at a point; raises `SealingError` where it is not on the curve."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

    try:
        return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), b"\x04" + x + y)
    except ValueError:
        raise SealingError(f"{said} has a point that is not on the curve P-256: refused") from None


def public_of(kind: Kind, key: EllipticCurvePublicKey) -> bytes:
    """The public area of a P-256 key."""
    x, y = point_of(key)
    return kind.template + sized(x) + sized(y)


def point_of(key: EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    """A P-256 key's coordinates, 32 bytes each."""
    numbers = key.public_numbers()
    return numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")


def sealed_public(policy: bytes, digest: bytes, travels: bool) -> bytes:
    """The public area of sealed data, which nothing but a session of its policy can unseal.

    Args:
        policy: digest that a session has to reach. digest: SHA-256 of its seed and its data; b"":
            the TPM that makes it puts it there. travels: made elsewhere, to be imported.
    """
    attributes = 0x480 if travels else 0x492
    head = u16(KEYED_HASH) + u16(SHA256) + u32(attributes) + sized(policy)
    return head + u16(NULL) + sized(digest)


def is_sealed(area: bytes, policy: bytes, travels: bool) -> bool:
    """Whether a public area is that of sealed data under this policy."""
    return area[:-32] == sealed_public(policy, bytes(32), travels)[:-32] and len(area) > 32


def name_of(area: bytes) -> bytes:
    """A key's name: the algorithm and the SHA-256 of its public area; 34 bytes."""
    return u16(SHA256) + sha256(area)
