"""One door: the ways to ask a service about inputs, by name. What a way costs is in the docs.

A way of your own is a class with `describe` and `infer`, and one line in `WAYS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from g2d.core.exchange import Credentials
from g2d.core.types import Array, Progress, silent
from g2d.errors import SettingsError, nearest
from g2d.protect.asking import Answer, Described
from g2d.service.client.encrypted import EncryptedClient
from g2d.service.client.multiparty import MultipartyClient
from g2d.service.client.plain import PlainClient


class Way(Protocol):
    """A way to ask a service."""

    def describe(self) -> Described:
        """Ask what is served.

        Raises:
            ExchangeError: it cannot be reached, or refuses.
        """
        ...

    def infer(self, x: Array, progress: Progress = silent) -> Answer:
        """Ask about inputs (n, ...), n > 0; the answer has a row for each.

        Raises:
            ExchangeError: it does not answer, or refuses.
            DataError: these are no inputs of the model.
        """
        ...


_BOUNDED = "encrypted"

WAYS: dict[str, Callable[[str, str, Credentials, Path | None], Way]] = {
    "plain": lambda url, model, known, keys: PlainClient(url, model, known),
    _BOUNDED: EncryptedClient,
    "multiparty": MultipartyClient,
}
"""Ways by their names: of a URL (of parties: their file), a model's name there, who asks, and a
file of keys."""


def connect(
    url: str,
    way: str = "plain",
    *,
    model: str = "g2d",
    known: Credentials | None = None,
    keys: Path | str | None = None,
    bounds: tuple[float, float] | None = None,
) -> Way:
    """Return what asks a service; nothing is asked yet.

    Args:
        url: root of the service. way: one of `WAYS`. model: its name there. known: who asks.
        keys: file of this client's secret keys, where the way needs some; None: in the state
            folder, by the URL. bounds: see `EncryptedClient`; for that way alone.

    Raises:
        SettingsError: there is no such way, or it checks no bounds.
    """
    if way not in WAYS:
        raise SettingsError(f"there is no way {way!r}, only {', '.join(WAYS)}.{nearest(way, WAYS)}")
    file = None if keys is None else Path(keys)
    if bounds is None:
        return WAYS[way](url, model, known or Credentials(), file)
    if way != _BOUNDED:
        raise SettingsError(
            f"bounds are checked by the way {_BOUNDED!r}, not by {way!r}: leave them out"
        )
    return EncryptedClient(url, model, known or Credentials(), file, bounds=bounds)
