"""What a client's process does: ask what there is to do, train, answer, until it is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from g2d.core.types import Say
from g2d.errors import FederatedError, PopulationError, PrivacyError
from g2d.training.federated.client import Client
from g2d.training.federated.messages import MEMBER, ROUND, Message, decode
from g2d.training.federated.processes import words
from g2d.training.federated.processes.cells import Unreachable
from g2d.training.federated.processes.words import Note, Reply, digest_of_bytes

_SHORT, _LONG = 0.2, 3.0  # seconds between two questions, at first and at last


class Line(Protocol):
    """The way to the server."""

    def ask(self, topic: str, data: bytes) -> Reply:
        """Ask; raises `Unreachable`, or a FederatedError of what is no reply."""


class Worker:
    """One client at work.

    Args:
        settings: digest of what it trains by. line: the way to the server. stop: set to end it.
        say: hears a line of what an operator should know.
    """

    def __init__(
        self, client: Client, settings: str, line: Line, stop: threading.Event, say: Say
    ) -> None:
        self.client, self.settings, self.line = client, settings, line
        self.stop, self.say = stop, say
        self._have: dict[str, str] = {}
        self._away = False

    def run(self) -> bool:
        """Work until it is over; False: it was stopped before.

        Raises:
            FederatedError: the server refuses this client, or sends what it should not.
            PrivacyError: its ledger covers no further round; the server was told to go on.
        """
        pause = _SHORT
        while not self.stop.is_set():
            reply = self._ask(words.NEXT, Note(self.settings, self._have).encode())
            if reply is None or reply.kind == words.WAIT:
                self.stop.wait(pause)
                pause = min(2 * pause, _LONG)
                continue
            pause = _SHORT
            if reply.kind == words.END:
                return True
            self._do(reply)
        self._leave()
        return False

    def _leave(self) -> None:
        """Say that nobody has to wait for this client, if anybody hears it."""
        with suppress(Unreachable):
            self.line.ask(words.LEAVE, Note(self.settings).encode())

    def _do(self, reply: Reply) -> None:
        if reply.kind == words.REFUSED:
            raise FederatedError(f"the server refuses {self.client.identity}: {reply.text}")
        todo: dict[str, Callable[[bytes], None]] = {
            words.MEMBER: self._receive, words.ROUND: self._train,
        }  # fmt: skip
        if reply.kind not in todo:
            raise FederatedError(f"the server replied {reply.kind!r} to what there is to do")
        todo[reply.kind](reply.data)

    def _receive(self, data: bytes) -> None:
        found = decode(data, self.client.networks.form, MEMBER)
        if found.stage in self._have:  # another run has begun at the server
            self._have.clear()
            self.client.forget()
        self.client.receive(data)
        self._have[found.stage] = digest_of_bytes(data)

    def _train(self, data: bytes) -> None:
        asked = decode(data, self.client.networks.form, ROUND)
        why = f"{self.client.identity} has no records"
        try:
            answer = self.client.answer(data)
        except PopulationError as error:
            answer, why = None, str(error)
        except PrivacyError:
            self._pass(asked, "its privacy ledger covers no further round, and it leaves")
            self._leave()
            raise
        if answer is None:
            self.say(f"round {asked.number} of {asked.stage} is not answered: {why}")
            self._pass(asked, why)
            return
        self._deliver(words.ANSWER, answer, f"the answer to round {asked.number} of {asked.stage}")

    def _pass(self, asked: Message, why: str) -> None:
        note = Note(self.settings, {}, asked.stage, asked.number, why)
        self._deliver(words.PASS, note.encode())

    def _deliver(self, topic: str, data: bytes, what: str = "") -> None:
        """Send what was made until the server has it, or refuses it."""
        pause = _SHORT
        while not self.stop.is_set():
            reply = self._ask(topic, data)
            if reply is not None:
                if reply.kind == words.REFUSED:
                    self._do(reply)
                if reply.kind == words.UNTAKEN:
                    self.say(f"{what} is not taken: {reply.text}")
                return
            self.stop.wait(pause)
            pause = min(2 * pause, _LONG)

    def _ask(self, topic: str, data: bytes) -> Reply | None:
        """None: nobody replied, which is said once."""
        try:
            reply = self.line.ask(topic, data)
        except Unreachable as error:
            if not self._away:
                self.say(f"{error}; it is asked again until it does")
            self._away = True
            return None
        if self._away:
            self.say("the server replies again")
        self._away = False
        return reply
