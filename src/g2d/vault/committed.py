"""What a vault itself can tell of the commitment to its watermark: whose it is, and who signed it.

What it commits to, and how it is dated, is in `protect.watermark`. Knows no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from g2d.errors import DAMAGE
from g2d.vault.keys import VerifyKey
from g2d.vault.ledger import COMMITMENT, sha256

COMMITTED = "commitment"
"""In the manifest of a generation that carries the mark: SHA-256 of the vault's commitment."""
CONTEXT = b"g2d watermark commitment 1\0"
"""Of its signature: one that was made for anything else is worth nothing."""


def canonical(commitment: Mapping[str, Any]) -> bytes:
    """The one way in which a commitment is written to be signed and dated."""
    return json.dumps(commitment, sort_keys=True, separators=(",", ":")).encode()


def signer_of(signer: str, text: bytes, signature: bytes) -> str | None:
    """Who signed a commitment: the key's fingerprint; "": nobody, and nobody is said to have.

    None: it is not what `signer` signed, or it is signed though it names nobody.

    Args:
        signer: the public key (hex) that it names; "": none. text: its canonical form.

    Raises:
        ValueError: `signer` is no public key.
    """
    if not signer:
        return None if signature else ""
    key = VerifyKey.of(bytes.fromhex(signer))
    return key.signer(text, signature, CONTEXT) if len(signature) == 64 else None


def faults(data: bytes, identity: str, manifests: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with a vault's commitment, in words.

    Args:
        data: of its file; b"": there is none. manifests: of the vault's generations, by number.
    """
    for number, manifest in manifests.items():
        if COMMITTED in manifest and manifest[COMMITTED] != sha256(data):
            yield (
                f"generation {number} was made under another commitment: restore {COMMITMENT} from"
                " a backup (a copy lies beside the watermark key)"
            )
            break
    if not data:
        return
    try:
        record = json.loads(data)
        made, signature = record["commitment"], bytes.fromhex(record["signature"])
        text = canonical(made)
        of, signer = made["vault"], made["signer"]
        signed = signer_of(signer, text, signature) is not None
    except DAMAGE:
        yield "it is no commitment to a watermark"
        return
    if of != identity:
        yield f"it is the commitment of vault {str(of)[:40]!r}, not of this one, {identity!r}"
    if not signed:
        yield "it is not what its key signed: it was changed, or its signature was"
