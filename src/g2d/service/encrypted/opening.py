"""Generations are encoded as they are loaded: a spare is ready for ciphertexts before its time.

What is encoded is what was signed, not the secret layout that answers plain inputs: that leaves
the function the same (`protect.layout`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from g2d.core.polynomial import PRE_ACTIVATIONS
from g2d.errors import SettingsError, VaultError
from g2d.rotation.events import Alarm
from g2d.rotation.snapshot import Snapshot
from g2d.service.encrypted.evaluators import Evaluators
from g2d.service.encrypted.offer import Offer
from g2d.service.http.startup import ENCRYPTED_ONLY, NOT_ENCRYPTED, check_encrypted
from g2d.service.loader import VaultLoader
from g2d.tasks.building import build_model
from g2d.weights.checkpoints import unpack

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
    _plan: Plan
    _unmeasured = False  # whether it was said that a generation's numbers are not known

    def encrypt(self, options: Options, serving: ServeSettings) -> Encrypted:
        """Make what evaluates ciphertexts, before a generation is loaded; None: nothing is to.

        Raises:
            G2DError: it cannot be done as it is set, or the network cannot be compiled.
        """
        check_encrypted(serving)
        if serving.encrypted == NOT_ENCRYPTED:
            return None
        self._plan = self.plan()
        offer = Offer.of(self._plan, serving.encrypted == ENCRYPTED_ONLY)
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
        self._check_ranges(number, verified)
        return replace(snapshot, encrypted=self._evaluators.encode(verified.weights))

    def _check_ranges(self, number: int, verified: _Verified) -> None:
        """Hold each layer's numbers, as the gate split had them, against what the plan keeps.

        Raises:
            VaultError: some are so large that answers would be noise.
        """
        from g2d.protect.homomorphic import ranges_of

        manifest = verified.manifest or self._vault.generation(number).manifest
        figures = manifest.get("figures")
        largest = figures.get(PRE_ACTIVATIONS) if isinstance(figures, dict) else None
        known = largest if isinstance(largest, dict) else {}
        found = ranges_of(self._plan, unpack(verified.weights), known)
        if found.wrapping:
            raise VaultError(
                f"generation {number} cannot answer ciphertexts: {found.told()}; lower [gates]"
                " pre_activation, or serve without --encrypted"
            )
        told = [f"answers lose precision, for {found.told()}"] if found.over else []
        if found.unknown and not self._unmeasured:
            self._unmeasured = True
            layers = ", ".join(map(repr, found.unknown))
            told += [f"its manifest does not say how large numbers get in {layers}, nor whether"
                     " ciphertexts keep them precise: make a new one"]  # fmt: skip
        if told:
            self._tell(Alarm("encrypted", f"generation {number}: {'; '.join(told)}"))
