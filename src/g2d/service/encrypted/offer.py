"""What a service answers encrypted, as the side that answers knows it: text and bounds alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from g2d.protect.homomorphic import Plan


@dataclass(frozen=True)
class Offer:
    """A plan in JSON and its digest.

    Attributes:
        upload_bytes, query_bytes: of keys, and of a ciphertext, at most. batch: inputs of one
            ciphertext, at most. only: plain inputs are refused.
    """

    text: str
    digest: str
    upload_bytes: int
    query_bytes: int
    batch: int = 1
    only: bool = False

    def told(self, address: str) -> str:
        """One line for the operator, when it is served."""
        plain = "plain inputs are refused" if self.only else "plain inputs are answered as well"
        return (
            f"ciphertexts are answered at {address}/encrypted (plan {self.digest[:12]}, keys of up"
            f" to {self.upload_bytes / 1e6:.0f} MB); {plain}, and monitors of queries see none"
        )

    @classmethod
    def of(cls, plan: Plan, only: bool = False) -> Self:
        """Offer what a plan says."""
        limits = plan.limits
        text, digest = plan.to_json(), plan.digest
        return cls(text, digest, limits.upload_bytes, limits.query_bytes, plan.batch, only)
