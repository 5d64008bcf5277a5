"""What is taken of an answer before any rule sees it, and what was refused, counted by reason.

Each refusal is one line. Whoever carries messages says who sent one (by mTLS, say): what a message
says of its sender has to be the same. Knows no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from g2d.core.types import Array, Say, unsaid
from g2d.errors import FederatedError
from g2d.training.federated.form import Form
from g2d.training.federated.messages import ANSWER, Message, decode, is_identity

REASONS = (
    "empty", "size", "format", "header", "weight", "names", "type", "shape", "values", "zero",
    "identity", "unknown", "stage", "late", "future", "base", "twice",
)  # fmt: skip
"""Why an answer is refused."""
MOST_SAID = 20
"""Refusals of one client that are said, in a stage; more are only counted."""


@dataclass
class Refusals:
    """How many answers were refused, by reason, and whose; `last`: why the last one was.

    `say` hears a line of each. Whoever floods the server with what it refuses does not fill a log:
    see `MOST_SAID`.
    """

    say: Say = unsaid
    counts: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def note(self, sender: str, error: FederatedError) -> None:
        """Count a refusal and say why."""
        assert error.reason in REASONS, f"a reason that is listed, not {error.reason!r}"
        self.counts[error.reason] += 1
        self.clients[sender] += 1
        self.last = str(error)
        told = self.clients[sender]
        if told <= MOST_SAID:
            self.say(f"the answer of {sender} is refused: {error}")
        if told == MOST_SAID:
            self.say(f"{told} answers of {sender} were refused: only counted from now on")


@dataclass
class Inbox:
    """The answers to one round, at most one of each client.

    Attributes:
        form: of the model. clients: who may answer. stage, number: what is asked now. bases:
            digests of the parameters of this round, and of those whose answers may be late.
        counted: of these rounds, whose answers were aggregated already.
        taken: what has come and is sound, by identity. late: whose is of which earlier round.
    """

    form: Form
    clients: frozenset[str]
    stage: str
    number: int
    bases: Mapping[int, str]
    counted: Mapping[int, Collection[str]] = field(default_factory=dict)
    taken: dict[str, Array] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)

    def take(self, data: bytes, sender: str, keep: Callable[[Message], None] | None = None) -> None:
        """Take an answer.

        Args:
            sender: who sent it, as the transport knows. keep: called with what is sound before it
                counts, so that it is on disk when the client hears that it was taken.

        Raises:
            FederatedError: it is refused; nothing was changed.
        """
        if not is_identity(sender) or sender not in self.clients:
            raise FederatedError(
                f"{ascii(sender)[:60]} is none of the {len(self.clients)} clients of this run",
                "unknown",
            )
        found = decode(data, self.form, ANSWER)
        if self._is_again(found, sender):
            return
        self._check(found, sender)
        if keep is not None:
            keep(found)
        self.taken[sender] = found.vector
        if found.number < self.number:
            self.late[sender] = found.number

    def note_counted(self, counted: dict[int, list[str]]) -> None:
        """Note whose answers to which rounds were aggregated, so that none of them is again."""
        for name in sorted(self.taken):
            counted.setdefault(self.late.get(name, self.number), []).append(name)

    def _is_again(self, found: Message, sender: str) -> bool:
        """Whether it is what was taken already, sent once more because nobody had said so."""
        known = self.taken.get(sender)
        if known is None or found.identity != sender or not np.array_equal(known, found.vector):
            return False
        return found.stage == self.stage and self.bases.get(found.number) == found.base

    def _check(self, found: Message, sender: str) -> None:
        if found.identity != sender:
            raise FederatedError(
                f"it says that it is of {found.identity!r}, and {sender!r} has sent it", "identity"
            )
        if found.stage != self.stage:
            raise FederatedError(
                f"it is of {found.stage!r}, and {self.stage!r} is trained", "stage"
            )
        if found.number > self.number:
            raise FederatedError(
                f"it is of round {found.number}, and round {self.number} is the last that was"
                " asked",
                "future",
            )
        if found.number not in self.bases:
            raise FederatedError(
                f"it is of round {found.number}, and round {self.number} is asked: it is too late",
                "late",
            )
        if found.base != self.bases[found.number]:
            raise FederatedError(
                f"it begins at {found.base[:12]}, not at what round {found.number} sent,"
                f" {self.bases[found.number][:12]}",
                "base",
            )
        if sender in self.counted.get(found.number, ()):
            raise FederatedError(f"its answer to round {found.number} has counted already", "twice")
        if sender in self.taken:
            raise FederatedError("it has answered already, and the first answer counts", "twice")
        if not found.vector.any():
            raise FederatedError("it changes nothing: every value is zero", "zero")
