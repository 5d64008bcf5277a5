"""What goes wrong between parties, their clients and who shares weights."""

from __future__ import annotations

from g2d.errors import G2DError


class MultipartyError(G2DError):
    """Parties do not answer, do not agree, or refuse; no answer was given."""


class InconsistentError(MultipartyError):
    """A request's shares do not belong together: all parties refuse it, and no more than it."""


class UnsupportedError(MultipartyError):
    """A network has a layer that cannot be computed on shares here; the text says which."""
