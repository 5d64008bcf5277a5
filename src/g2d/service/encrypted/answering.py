"""Encrypted answers as one part of a service: made, started, drained."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from g2d.rotation.control import RotationControl
from g2d.rotation.events import Tell
from g2d.rotation.snapshot import Live
from g2d.service.access.identity import Caller
from g2d.service.encrypted.calls import Answered, EncryptedCalls
from g2d.service.encrypted.evaluators import Evaluators
from g2d.service.encrypted.keyring import KeyRing
from g2d.service.encrypted.offer import Offer
from g2d.service.http.headers import Told
from g2d.service.http.metrics import Metrics
from g2d.service.http.options import Options
from g2d.service.http.types import Receive, Scope
from g2d.service.http.versions import Versions


class Answering:
    """What answers `/encrypted`, from the live generation.

    Args:
        charge: takes inputs from who asks; see `gate.Access.charge`.
    """

    def __init__(
        self,
        offer: Offer,
        evaluators: Evaluators,
        live: Live,
        rotation: RotationControl,
        options: Options,
        metrics: Metrics,
        versions: Versions,
        charge: Callable[[Caller, float], None],
        tell: Tell,
    ) -> None:
        self.only, self._live, self._evaluators = offer.only, live, evaluators
        evaluators.count = rotation.count
        keyring = KeyRing(
            evaluators.spool, options.encrypted_keys, options.encrypted_idle, evaluators.forget,
            patience=options.encrypted_timeout / 4,
        )  # fmt: skip
        metrics.count_encrypted(lambda: evaluators.waiting, lambda: len(keyring))
        self._keyring = keyring
        self._calls = EncryptedCalls(
            offer, evaluators, keyring, options.name, options.encrypted_timeout,
            options.max_bodies, metrics, versions, charge, tell,
        )  # fmt: skip

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer."""
        self._evaluators.start(loop, self._live)

    def stop(self) -> None:
        """End once everything submitted is answered."""
        self._evaluators.stop()

    def tidy(self) -> None:
        """Delete keys that nobody uses."""
        self._keyring.tidy()

    async def answer(self, scope: Scope, told: Told, receive: Receive) -> Answered:
        """Answer one request; see `EncryptedCalls.answer`."""
        return await self._calls.answer(scope, told, receive)
