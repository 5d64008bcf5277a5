"""What users can do wrong, and what the outside world can do to them: one root, no torch.

Every message says what was given, what was expected and what to do. `assert` is for our own bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class G2DError(Exception):
    """Root of every error that a user can cause or has to act on."""


class SettingsError(G2DError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(G2DError):
    """A data folder, file, shape or label is not what the task needs."""


class DataWarning(UserWarning):
    """Data can be used and is not what it should be, such as examples that two splits share."""


class TaskError(G2DError):
    """A task cannot be found or does not fit its own data."""


class DeviceError(G2DError):
    """A device is not there, or its memory is too small."""


class CheckpointError(G2DError):
    """A checkpoint is corrupt, foreign, of another architecture or not finite."""


class PopulationError(G2DError):
    """A population is too small or its members cannot be connected."""


class GenerationError(G2DError):
    """No candidate passed the gates; the live generation stays as it is."""


class VaultError(G2DError):
    """A vault cannot be opened, read or written; nothing was changed."""


class RefusedError(VaultError):
    """A generation is not what a trusted key signed, or may not be served now; the live one stays.

    Attributes:
        reason: one of `g2d.vault.signing.REASONS`. number: the generation's.
    """

    def __init__(self, message: str, reason: str = "", number: int = 0) -> None:
        super().__init__(message)
        self.reason, self.number = reason, number

    def record(self) -> dict[str, object]:
        """Return what a structured log keeps of it."""
        return {
            "event": "generation_refused",
            "generation": self.number,
            "reason": self.reason,
            "detail": str(self),
        }


class UnavailableError(VaultError):
    """A file cannot be read at this moment (no free descriptor or memory); it may be sound."""


class SealingError(VaultError):
    """Something sealed cannot be opened, or a custodian cannot be used; nothing was changed."""


class BrokenSealError(SealingError):
    """A sealed file is not what was written there: cut off, changed, swapped, or of another key."""


class KeyFileError(G2DError):
    """A key file is absent, of another kind, or open to others."""


class ClaimError(G2DError):
    """A claim of ownership, or the commitment that it rests on, is not what it says it is."""


class FederatedError(G2DError):
    """What came from a client, or from a server, is not taken; nothing was changed.

    Attributes:
        reason: one of `g2d.training.federated.checks.REASONS`.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class PrivacyError(G2DError):
    """What was asked for has no guarantee, is not in the budget, or is not what was recorded."""


class SuspectError(G2DError):
    """A suspect cannot be asked, or is not of the form that was committed to."""


DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What comes of reading values that somebody else wrote, whatever they are."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known name nearest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
