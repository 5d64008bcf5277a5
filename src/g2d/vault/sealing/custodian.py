"""What keeps keys for vaults: the one seam between sealed files and whatever hardware there is.

Custodians themselves (a file, PKCS#11, a TPM) are in `g2d.protect.sealing`. Knows no torch.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["KEY_SIZE", "Custodian"]

KEY_SIZE = 32
"""Bytes of a key that a custodian wraps: AES-256."""


class Custodian(Protocol):
    """Wraps 32-byte keys so that nobody without it unwraps them.

    Attributes:
        kind: what it is, as users name it: "file", "pkcs11", "tpm".
    """

    kind: str

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a key.

        Args:
            key: 32 bytes: a key-encryption key, or a data key. context: binds it to a vault and a
                purpose, as associated data; it is not secret.

        Returns:
            Opaque bytes.

        Raises:
            SealingError: the custodian is not there, or refuses; in one line.
        """
        ...

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        """Return the key that `wrap` was given with the same context.

        Raises:
            SealingError: the custodian is not there or refuses, the blob is damaged or another
                custodian's, or the context is another; in one line.
        """
        ...
