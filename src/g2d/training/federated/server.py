"""The server of one stage: asks a round, takes answers, aggregates; killed at any moment, goes on.

A stage is one network: so many rounds from a start. All that the server knows is on disk before it
counts, so that whoever was killed ends with the same bytes. Knows no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from g2d.core.files import make_folder, read_plain, write_bytes
from g2d.core.types import Array
from g2d.errors import DAMAGE, FederatedError, SettingsError
from g2d.settings.federated import FederatedSettings
from g2d.training.federated.aggregation import Aggregation, Around
from g2d.training.federated.answers import ANSWERS, AnswerFile
from g2d.training.federated.checks import Inbox, Refusals
from g2d.training.federated.form import Form
from g2d.training.federated.messages import (
    ROUND,
    Message,
    digest_of,
    encode,
    is_identity,
    most_bytes,
)
from g2d.training.federated.stages import Asked

STATE = "state.safetensors"


@dataclass(frozen=True)
class Closed:
    """What became of a round: how many answered, how many of these late; why it was skipped."""

    number: int
    answered: int
    late: int
    skipped: str = ""


@dataclass
class _State:
    """What is kept between rounds; x, last: (P,) float32; counted: whose answer to which round."""

    x: Array
    last: Array
    number: int = 0
    bases: dict[int, str] = field(default_factory=dict)
    closed: list[Closed] = field(default_factory=list)
    counted: dict[int, list[str]] = field(default_factory=dict)


class Server:
    """One stage of federated training, from its start to its last round.

    Args:
        start: where the network begins (P,), float32. clients: who may answer. folder: where all is
            kept; None: in memory alone. refusals: counts what is refused, and says it.

    Raises:
        SettingsError: the rule does not bear so many malicious clients.
        FederatedError: the folder holds another stage, or is damaged.
    """

    def __init__(
        self,
        form: Form,
        start: Array,
        asked: Asked,
        settings: FederatedSettings,
        clients: Sequence[str],
        folder: Path | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        if odd := [name for name in clients if not is_identity(name)]:
            raise SettingsError(
                f"{odd[0]!r} can be no client's name: letters, digits, dots and dashes, 64 at most"
            )
        if len(set(clients)) != settings.clients:
            raise SettingsError(
                f"{len(set(clients))} clients are named, and [federated] clients is"
                f" {settings.clients}: f is judged by that number, so make them the same"
            )
        self.form, self.asked, self.settings = form, asked, settings
        self.clients, self.folder = tuple(clients), folder
        self.refusals = Refusals() if refusals is None else refusals
        self.aggregation = Aggregation.of(settings)
        zeros = np.zeros(form.size, np.float32)
        self._began = digest_of(start)
        self._answers: AnswerFile | None = None
        self._state = _State(np.asarray(start, np.float32), zeros)
        if folder is not None:
            make_folder(folder, 0o700)
            self._answers = AnswerFile(folder / ANSWERS, most_bytes(form))
            self._restore()
        self._open()

    # --- what a transport calls ------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether every round is closed."""
        return self._state.number >= self.asked.rounds

    @property
    def number(self) -> int:
        """Which round is asked now, from 0 on."""
        return self._state.number

    @property
    def vector(self) -> Array:
        """The network as it is now, (P,) float32."""
        return self._state.x

    @property
    def last(self) -> Array:
        """What the last round that was aggregated changed, (P,)."""
        return self._state.last

    @property
    def closed(self) -> Sequence[Closed]:
        """What became of each round."""
        return tuple(self._state.closed)

    @property
    def taken(self) -> dict[str, Array]:
        """The answers of this round, by identity."""
        return dict(self._inbox.taken)

    def ask(self) -> bytes:
        """The message of this round: parameters and plan; the same bytes until it is closed."""
        plan = self.asked.plan(self.settings, self.number)
        message = Message(ROUND, self.asked.stage, self.vector, self.number, plan=plan)
        return encode(message, self.form)

    def take(self, data: bytes, sender: str) -> bool:
        """Take an answer from whom the transport knows as `sender`; False: refused, and counted."""
        try:
            if self.done:
                raise FederatedError(f"stage {self.asked.stage!r} is complete", "late")
            self._inbox.take(data, sender, lambda _: self._keep(data, sender))
        except FederatedError as error:
            self.refusals.note(sender if sender in self.clients else "a stranger", error)
            return False
        return True

    def close(self, root: Array | None = None) -> Closed:
        """Aggregate what has come, and go on to the next round; too few answers change nothing.

        Args:
            root: the update of the server's own records (P,), for a rule that needs one.
        """
        taken, state = self._inbox.taken, self._state
        skipped = ""
        if not taken:
            skipped = "no client has answered"
        else:
            X = np.stack([taken[name] for name in sorted(taken)])
            skipped = self._aggregate(X, Around(self.aggregation.f, state.last, root))
            if not skipped:
                self._inbox.note_counted(state.counted)
        found = Closed(self.number, len(taken), len(self._inbox.late), skipped)
        state.closed.append(found)
        state.number += 1
        self._save()
        self._open()
        return found

    # --- inside ----------------------------------------------------------------------------------

    def _aggregate(self, X: Array, around: Around) -> str:
        """Move the network; why it was left alone where it was."""
        try:
            moved = self.aggregation(X, around)
        except SettingsError as error:
            return str(error)
        with np.errstate(over="ignore"):
            x = self._state.x + moved
        if not np.isfinite(x).all():
            return "the aggregate leaves the range of float32"
        self._state.x, self._state.last = x, moved
        return ""

    def _open(self) -> None:
        """Begin the round that is due, with the answers that were kept before a kill."""
        state = self._state
        state.bases[state.number] = digest_of(state.x)
        oldest = state.number - self.settings.deadline
        state.bases = {n: base for n, base in state.bases.items() if n >= oldest}
        state.counted = {n: names for n, names in state.counted.items() if n >= oldest}
        self._inbox = Inbox(
            self.form, frozenset(self.clients), self.asked.stage, state.number, state.bases,
            state.counted,
        )  # fmt: skip
        if self._answers is None:
            return
        if self.done:
            self._answers.remove()
            return
        for sender, data in self._answers.read(state.number):
            with suppress(FederatedError):  # whoever sent it is asked again
                self._inbox.take(data, sender)

    def _keep(self, data: bytes, sender: str) -> None:
        if self._answers is not None:
            self._answers.add(sender, data)

    def _save(self) -> None:
        """Put the state on disk; the answers that went into it are written over from now on."""
        if self.folder is None:
            return
        state = self._state
        notes = {
            "stage": self.asked.stage, "rounds": self.asked.rounds, "began": self._began,
            "settings": self.settings.of_training, "number": state.number,
            "bases": {str(n): base for n, base in state.bases.items()},
            "counted": {str(n): sorted(names) for n, names in state.counted.items()},
            "refused": dict(self.refusals.counts), "refused_of": dict(self.refusals.clients),
            "closed": [[c.number, c.answered, c.late, c.skipped] for c in state.closed],
        }  # fmt: skip
        tensors = {"x": state.x, "last": state.last}
        data = safetensors.numpy.save(tensors, {"g2d": json.dumps(notes, sort_keys=True)})
        write_bytes(self.folder / STATE, data, 0o600)

    def _restore(self) -> None:
        assert self.folder is not None, "there is a folder to read"
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            data = read_plain(path, self._most_state)
            length = int.from_bytes(data[:8], "little")
            notes = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["g2d"])
            self._of(notes, safetensors.numpy.load(data))
        except (OSError, SafetensorError, *DAMAGE) as error:
            raise FederatedError(
                f"{path} is damaged ({type(error).__name__}: {error}): remove {self.folder} to"
                " train this stage anew"
            ) from error

    @property
    def _most_state(self) -> int:
        """Bytes of the state, at most: of it, who has counted in each round that may be late."""
        counted = (self.settings.deadline + 2) * sum(len(name) + 4 for name in self.clients)
        return 8 * self.form.size + counted + 512 * self.asked.rounds + (1 << 24)

    def _of(self, notes: dict[str, Any], tensors: dict[str, Array]) -> None:
        told = (notes["stage"], notes["rounds"], notes["began"], notes["settings"])
        if told != (self.asked.stage, self.asked.rounds, self._began, self.settings.of_training):
            raise FederatedError(
                f"{self.folder} holds {notes['stage']!r} of {notes['rounds']} rounds with another"
                " start or other settings: go on with those, or remove it"
            )
        x, last = (np.asarray(tensors[name], np.float32) for name in ("x", "last"))
        if x.shape != (self.form.size,) or last.shape != x.shape:
            raise ValueError(f"{x.size} parameters, expected {self.form.size}")
        self._state = _State(
            x, last, int(notes["number"]), {int(n): base for n, base in notes["bases"].items()},
            [Closed(*one) for one in notes["closed"]],
            {int(n): list(names) for n, names in notes["counted"].items()},
        )  # fmt: skip
        self.refusals.counts.update(notes["refused"])
        self.refusals.clients.update(notes["refused_of"])
