"""The server's desk: what it replies to whom at this moment, and when a round is over.

It is asked in threads of the transport, and trains nothing. Knows neither torch nor NVFlare.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from g2d.core.types import Array, Say
from g2d.errors import FederatedError
from g2d.training.federated.processes import words
from g2d.training.federated.processes.away import AwayFile
from g2d.training.federated.processes.words import Note, Reply, decode_note, digest_of_bytes
from g2d.training.federated.server import Server

_TICK = 0.5  # seconds between looks at the clock
_SAID = 30.0  # seconds between lines about a round that waits
_MOST_SAID = 5  # lines about one client's notes
_GRACE = 30.0  # seconds for the last f clients, at least; else
_TIMES = 2.0  # as often as long as all but f have taken


class Desk:
    """What clients talk to.

    Args:
        clients: who may. settings: digest of what all train by. patience: seconds that a round
            waits for clients who are missing. say: hears a line of what an operator should know.
        away: where it is kept who is not waited for; None: nowhere.

    Attributes:
        tick: is called every now and then while a round is open. grace: seconds that the last f
            clients are waited for, at least, when all others have spoken.
    """

    def __init__(
        self,
        clients: Sequence[str],
        settings: str,
        patience: float,
        say: Say,
        away: Path | None = None,
    ) -> None:
        self.clients, self.settings = frozenset(clients), settings
        self.patience, self.say = patience, say
        self.tick: Callable[[], None] = lambda: None
        self.grace = _GRACE
        self.members: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._server: Server | None = None
        self._message = b""
        self._opened = self._told = 0.0
        self._enough: float | None = None  # when no more than f were awaited
        self._away = AwayFile(away, say)
        self._present = set(self.clients - self._away.read())
        self._left: set[str] = set()
        self._heard: set[str] = set()
        self._passed: set[str] = set()
        self._ended = False
        self._ever: set[str] = set()
        self._told_end: set[str] = set()
        self._said: Counter[str] = Counter()

    # --- of the server's own thread --------------------------------------------------------------

    def run_round(self, server: Server, root: Callable[[bytes], Array | None]) -> None:
        """Ask a round and close it as soon as nobody has to be waited for any more.

        Args:
            root: of the round's message the update of the server's own records.
        """
        with self._changed:
            self._server, self._message = server, server.ask()
            self._heard, self._passed = set(), set()
            self._opened = self._told = time.monotonic()
            self._enough = None
        own = root(self._message)  # while clients train
        with self._changed:
            while not self._is_over(server):
                self._changed.wait(_TICK)
                self.tick()
                self._tell_waiting(server)
            missing = sorted(self.clients - server.taken.keys())
            self._present = self._heard | self._passed | server.taken.keys()
            closed = server.close(own)
            self._server = None
            self._note_away()
        name = f"round {closed.number} of {server.asked.stage}"
        if missing:
            there = len(self.clients) - len(missing)
            self.say(f"{name}: {there} of {len(self.clients)} answered, without {_some(missing)}")
        if closed.skipped:
            self.say(f"{name} is skipped: {closed.skipped}")

    def end(self, seconds: float, least: float = 5.0) -> None:
        """Tell everybody that it is over; who was heard of is waited for so many seconds.

        Args:
            least: seconds for those who were not, if there are any.
        """
        began = time.monotonic()
        with self._changed:
            self._ended, self._server = True, None
            while self._told_end < self.clients:
                waited = time.monotonic() - began
                if waited >= (seconds if self._ever - self._told_end else least):
                    return
                self._changed.wait(_TICK)

    def _is_over(self, server: Server) -> bool:
        answered = server.taken.keys()
        spoken = answered | self._passed
        if spoken >= self.clients:
            return True
        if len(answered) < least(server):
            return False  # whoever is away may come back: nothing is skipped for want of them
        awaited = self._expected - spoken
        now, f = time.monotonic(), server.aggregation.f
        if len(awaited) > f:
            self._enough = None
        elif self._enough is None:
            self._enough = now
        if not awaited or now - self._opened >= self.patience:
            return True
        # f clients who ask again and again and never answer would hold up each round for all of
        # the patience.
        if self._enough is None:
            return False
        return now - self._enough >= max(self.grace, _TIMES * (self._enough - self._opened))

    @property
    def _expected(self) -> set[str]:
        """Who is there, as far as is known."""
        return (self._present | self._heard) - self._left

    def _note_away(self) -> None:
        self._away.write(self.clients - self._expected)

    def _tell_waiting(self, server: Server) -> None:
        now = time.monotonic()
        if now - self._told < _SAID:
            return
        self._told = now
        away = sorted(self.clients - server.taken.keys() - self._passed)
        self.say(
            f"round {server.number} of {server.asked.stage} waits: {len(server.taken)} of"
            f" {len(self.clients)} have answered, {least(server)} are needed; not {_some(away)}"
        )

    # --- of the transport's threads --------------------------------------------------------------

    def handle(self, sender: str, topic: str, data: bytes) -> Reply:
        """Reply to a client; `sender` is who its certificate says it is."""
        with self._changed:
            try:
                if sender not in self.clients:
                    raise FederatedError(f"{ascii(sender)[:60]} is no client of this run")
                if topic == words.ANSWER:
                    reply = self._take(sender, data)
                else:
                    reply = self._note(sender, topic, decode_note(data))
            except FederatedError as error:
                self._refuse(sender, error)
                return Reply(words.REFUSED, str(error).encode())
            except Exception as error:  # of a full disk, say: the client asks again, and says it
                self._tell_failure(sender, error)
                raise
            finally:
                self._changed.notify_all()
            if topic != words.LEAVE:
                self._heard.add(sender)
                self._left.discard(sender)
            self._note_away()
            return reply

    def _take(self, sender: str, data: bytes) -> Reply:
        if self._server is None:
            return Reply(words.UNTAKEN, b"no round is open")
        if self._server.take(data, sender):
            return Reply(words.TAKEN)
        return Reply(words.UNTAKEN, self._server.refusals.last.encode())

    def _note(self, sender: str, topic: str, note: Note) -> Reply:
        if note.settings != self.settings:
            raise FederatedError(
                "it trains by other settings, or another model, than the server: give both the"
                " settings.toml of their kits, and the same model"
            )
        if self._ended:
            self._told_end.add(sender)
            return Reply(words.END)
        self._ever.add(sender)
        server = self._server
        if topic == words.LEAVE:  # it is waited for when it is heard of again
            self._left.add(sender)  # also in the next rounds: its answer to this one may be here
            self._told_end.add(sender)
            return Reply(words.TAKEN)
        self._told_end.discard(sender)
        if topic == words.PASS:
            self._pass(sender, note, server)
            return Reply(words.TAKEN)
        if server is None or sender in server.taken or sender in self._passed:
            return Reply(words.WAIT)
        for name in server.asked.repelled:
            if note.have.get(name) != digest_of_bytes(self.members[name]):
                return Reply(words.MEMBER, self.members[name])
        return Reply(words.ROUND, self._message)

    def _pass(self, sender: str, note: Note, server: Server | None) -> None:
        if server is not None and (note.stage, note.number) == (server.asked.stage, server.number):
            if sender not in self._passed:
                self.say(f"{sender} does not answer round {note.number}: {note.why or 'no reason'}")
            self._passed.add(sender)

    def _tell_failure(self, sender: str, error: Exception) -> None:
        """Say what the transport keeps to itself."""
        self._said["failures"] += 1
        if self._said["failures"] <= _MOST_SAID:
            self.say(
                f"what {sender} sent could not be taken ({type(error).__name__}: {error}); it is"
                " sent again until it can be"
            )

    def _refuse(self, sender: str, error: FederatedError) -> None:
        who = sender if sender in self.clients else "a stranger"
        self._said[who] += 1
        if self._said[who] <= _MOST_SAID:
            self.say(f"{who} is refused: {error}")


def least(server: Server) -> int:
    """How many answers a round needs."""
    rule = server.aggregation
    mixing = 2 * rule.f + 1 if rule.mix and rule.f else 1
    return max(rule.rule.least(rule.f), mixing)


def _some(names: Sequence[str]) -> str:
    """Names for a line, the first ten."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
