"""The gate on people's held records: noisy counts, or a sparse vector that is paid for rejections.

It judges candidates that public gates have passed, and is the last one. What it counts is by how
many records fewer a candidate is right than the base; one record moves that by one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

from torch import Tensor

from g2d.core.files import MOST_TEXT, read_plain, replace_file
from g2d.core.platforms import sync_folder
from g2d.core.types import State
from g2d.defence.candidates import Candidate
from g2d.defence.gates.view import GateResult
from g2d.defence.members import read_base
from g2d.defence.privacy.charging import HELD
from g2d.errors import DAMAGE, PrivacyError
from g2d.protect.privacy.accounting import BUDGET, DELTA, UNIT, Spending
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.settings import Settings
from g2d.tasks.inference import load_model, predict
from g2d.tasks.splits import FRACTIONS, Split
from g2d.tasks.task import Task
from g2d.vault.ledger import explained
from g2d.vault.sealing.others import TEXTS
from g2d.vault.spendings import THRESHOLD
from g2d.vault.vault import Vault

GATE = "people"
"""The name of the gate in manifests."""


@dataclass(frozen=True)
class PeopleGate:
    """Judges candidates on people's records that nothing was trained on.

    Attributes:
        held: these records; a block of their own.
    """

    task: Task
    vault: Vault
    settings: Settings
    held: Split

    @classmethod
    def of(cls, task: Task, vault: Vault, settings: Settings) -> PeopleGate | None:
        """The gate of a private vault; None: its gates judge on public data alone.

        Raises:
            PrivacyError: it is asked for, and the task was given without held records.
        """
        if not settings.privacy.enabled or settings.privacy.gating == "public":
            return None
        held = getattr(task.splits, "held", None)
        if held is None:
            raise PrivacyError(
                f"[privacy] gating is {settings.privacy.gating!r}, and no records of the task are"
                " held for it: name the task, or give the object that the vault was made with"
            )
        return cls(task, vault, settings, held)

    def judged(self, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
        """Candidates with one verdict more, for those that have passed so far.

        Raises:
            PrivacyError: the budget covers no further look; what is live stays.
        """
        for candidate in candidates:
            if not candidate.passed:
                yield candidate
                continue
            yield replace(candidate, results=[*candidate.results, self(candidate.state)])

    def __call__(self, state: State) -> GateResult:
        """Judge one candidate; charged before its records are looked at."""
        noisy = self.settings.privacy.gating == "noisy"
        return self._noisy(state) if noisy else self._sparse(state)

    @property
    def size(self) -> int:
        """About how many records are held: a public number, never counted."""
        return max(1, round(self.settings.privacy.records * FRACTIONS[2]))

    @property
    def allowed(self) -> float:
        """How many records may be lost."""
        return self.settings.privacy.gate_drop * self.size

    def lost(self, state: State) -> int:
        """By how many held records fewer than the base a network is right; of sensitivity 1."""
        return int(self._base_right.sum()) - int(self._right(state).sum())

    @cached_property
    def _base_right(self) -> Tensor:
        return self._right(read_base(self.vault))

    def _right(self, state: State) -> Tensor:
        return predict(load_model(self.task, state), self.held.x).argmax(1) == self.held.y

    def _spend(self, what: str, mechanism: str, noise: float) -> int:
        s = self.settings.privacy
        # Answers decide how often this comes.
        note = {UNIT: s.unit, BUDGET: s.epsilon, DELTA: s.delta}
        spending = Spending(what, HELD, mechanism, noise, note=note)  # type: ignore[arg-type]
        return PrivacyLedger(self.vault, self.settings).spend(spending).number

    # --- noisy counts ----------------------------------------------------------------------------

    def _noisy(self, state: State) -> GateResult:
        """The Gaussian mechanism on the count (Dwork & Roth 2014, theorem A.1)."""
        s = self.settings.privacy
        self._spend("gate: a noisy count", "gaussian", s.gate_noise)
        found = round(self.lost(state) + secrets.SystemRandom().gauss(0.0, s.gate_noise))
        passed, share = found <= self.allowed, found / self.size
        reason = "" if passed else (
            f"{share:.2%} of people's held records may be lost against the base (counted with noise"
            f" of {s.gate_noise:g} records); {s.gate_drop:.2%} is allowed"
        )  # fmt: skip
        title = "people's held records lost, with noise"
        return GateResult(GATE, passed, share, s.gate_drop, reason, title, share=True)

    # --- sparse vector ---------------------------------------------------------------------------

    def _sparse(self, state: State) -> GateResult:
        """AboveThreshold (Dwork & Roth 2014, algorithm 1): passing costs nothing.

        One noisy limit serves until it is passed; then it is thrown away before anybody hears of
        the rejection, and the next one is charged.
        """
        limit, scale = self._limit(), self.settings.privacy.gate_scale
        above = self.lost(state) + laplace(2 * scale) >= limit
        if above:
            self._forget()
        reason = "" if not above else (
            "too many of people's held records are lost against the base (sparse vector; how many"
            " is not told)"
        )  # fmt: skip
        title = "people's held records: refused by a sparse vector"
        return GateResult(GATE, not above, float(above), 0.0, reason, title)

    def _limit(self) -> float:
        """The noisy limit that is in use, or a fresh one, which is charged first.

        One that is not of the ledger's last line for it was used up: a copy of it was put back.
        """
        path, s = self.vault.path / THRESHOLD, self.settings.privacy
        about = {"vault": self.vault.identity, "allowed": self.allowed, "scale": s.gate_scale}
        with suppress(OSError, *DAMAGE):
            text = self.vault.sealing.content(path) or read_plain(path, MOST_TEXT)
            kept = json.loads(text)
            if about.items() <= kept.items() and kept["line"] == self._last_limit():
                return float(kept["limit"])
        line = self._spend("gate: a sparse vector up to a rejection", "sparse_vector", s.gate_scale)
        limit = self.allowed + laplace(s.gate_scale)
        sealing = self.vault.sealing
        data = json.dumps({**about, "line": line, "limit": limit}).encode()
        data = sealing.shut(data, partial(sealing.other, TEXTS[THRESHOLD], THRESHOLD, data))
        with explained(self.vault.path, "written"):
            replace_file(path, data, path.with_name(f".tmp-{THRESHOLD}"))
        return limit

    def _last_limit(self) -> int:
        """The ledger's line of the last limit that was paid for; 0: there is none."""
        spent = PrivacyLedger(self.vault, self.settings).spendings()
        paid = (line for line, one in enumerate(spent, 1) if one.mechanism == "sparse_vector")
        return max(paid, default=0)

    def _forget(self) -> None:
        path = self.vault.path / THRESHOLD
        with explained(self.vault.path, "written"):
            os.unlink(path)
            sync_folder(path.parent)


def laplace(scale: float) -> float:
    """Noise of density exp(-|x| / scale) / (2 scale), from the system's entropy."""
    draw = secrets.SystemRandom()
    return scale * (draw.expovariate(1.0) - draw.expovariate(1.0))
