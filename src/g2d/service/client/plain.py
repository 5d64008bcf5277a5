"""The plain way: inputs and answers as they are; the service sees both."""

from __future__ import annotations

from g2d.core.exchange import Credentials
from g2d.core.types import Array, Progress, silent
from g2d.protect.asking import Answer, Client, Described
from g2d.service.client.inputs import fitted


class PlainClient:
    """Asks a model of a service by the Open Inference Protocol v2; see `protect.asking.Client`."""

    def __init__(self, url: str, model: str = "g2d", known: Credentials | None = None) -> None:
        self._client = Client(url, model, known)
        self._described: Described | None = None

    def describe(self) -> Described:
        """Ask what is served, once."""
        if self._described is None:
            self._described = self._client.describe()
        return self._described

    def infer(self, x: Array, progress: Progress = silent) -> Answer:
        """Ask about inputs (n, *shape).

        Raises:
            ExchangeError: it does not answer, or refuses.
            DataError: they are of another shape, or not finite.
        """
        described = self.describe()
        return self._client.ask(described, fitted(x, described.shape))
