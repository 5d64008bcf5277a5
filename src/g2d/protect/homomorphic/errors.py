"""What can go wrong in homomorphic inference. Knows neither torch nor TenSEAL."""

from __future__ import annotations

from g2d.errors import G2DError


class HomomorphicError(G2DError):
    """A plan, key, ciphertext or answer is not what it should be; nothing was computed with it."""


class Unsupported(HomomorphicError):  # noqa: N818 the name says what the network is
    """A network cannot be evaluated under encryption: it says which layer, and what would do."""
