"""Generations are encoded as they are loaded: a spare is ready for ciphertexts before its time.

What is encoded is what was signed, not the secret layout that answers plain inputs: that leaves
the function the same (`protect.layout`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from g2d.errors import SettingsError
from g2d.rotation.snapshot import Snapshot
from g2d.service.encrypted.evaluators import Evaluators
from g2d.service.encrypted.offer import Offer
from g2d.service.http.startup import ENCRYPTED_ONLY, NOT_ENCRYPTED, check_encrypted
from g2d.service.loader import VaultLoader
from g2d.tasks.building import build_model

if TYPE_CHECKING:
    from g2d.protect.homomorphic import Plan
    from g2d.service.http.options import Options
    from g2d.service.loader import _Verified
    from g2d.settings import ServeSettings


Encrypted = tuple[Offer, Evaluators] | None
"""What ciphertexts are of, and what evaluates them."""


class EncodingLoader(VaultLoader):
    """A `VaultLoader` whose snapshots answer ciphertexts, too, once `encrypt` was called."""

    _evaluators: Evaluators | None = None

    def encrypt(self, options: Options, serving: ServeSettings) -> Encrypted:
        """Make what evaluates ciphertexts, before a generation is loaded; None: nothing is to.

        Raises:
            G2DError: it cannot be done as it is set, or the network cannot be compiled.
        """
        check_encrypted(serving)
        if serving.encrypted == NOT_ENCRYPTED:
            return None
        offer = Offer.of(self.plan(), serving.encrypted == ENCRYPTED_ONLY)
        self._evaluators = Evaluators(
            offer.text, options.encrypted_processes, options.encrypted_waiting,
            options.encrypted_timeout,
        )  # fmt: skip
        return offer, self._evaluators

    def close(self) -> None:
        """Close the vault, and end what evaluates ciphertexts."""
        super().close()
        if self._evaluators is not None:
            self._evaluators.close()

    def plan(self) -> Plan:
        """Compile the task's network for ciphertexts.

        Raises:
            Unsupported: it cannot be; the message names the layer and says what would do.
            SettingsError: inputs are no float32.
        """
        if self.model.dtype != "float32":
            raise SettingsError(
                f"inputs of this task are {self.model.dtype}, and ciphertexts hold float32 alone:"
                " serve without --encrypted"
            )
        from g2d.protect.homomorphic import Plan

        with self._building:
            network = build_model(self._blueprint.factory)
        return Plan.of(network.eval(), self.model.shape)

    def _build(self, number: int, verified: _Verified) -> Snapshot:
        snapshot = super()._build(number, verified)
        if self._evaluators is None:
            return snapshot
        return replace(snapshot, encrypted=self._evaluators.encode(verified.weights))
