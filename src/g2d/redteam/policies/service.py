"""A service with a serving policy, for many attackers side by side, each with a clock of its own.

Policies are the very classes that `g2d serve` asks (`rotation.policy`), answers are told as it
tells them; only network, clock and generations that come next are not the real ones: they are
networks of a chain, which rotate by the queries of one attacker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from g2d.core.seeds import seed_of
from g2d.core.types import Array, Logits
from g2d.protect.answers import LABEL, answers_of, combined
from g2d.redteam.policies.guarding import Guard
from g2d.rotation.policy import Policy, policy_of, quantised
from g2d.rotation.triggers import AlarmBudget
from g2d.rotation.window import left_at
from g2d.settings import MonitorSettings, ServeSettings
from g2d.tasks.inference import predict

_ACCOUNT = "account "  # and its number: clients of the attacker
PERIOD = 1000  # queries that count as a period where the service never rotates


@dataclass(frozen=True)
class Scheme:
    """How a service answers and rotates.

    An attacker asks once a second, so that a clock by queries and one by time are the same.

    Attributes:
        name: a key. every: queries of an attacker between two rotations; None: it never rotates.
        pin: after so many queries of an account an alarm pins it, and rotates the others if the
            alarms' token bucket of a service as it comes allows; 0: nobody is ever under suspicion.
        apart: at the next rotation all others leave what a suspect is pinned to, as of `g2d serve`;
            False: they stay until it retires, to see what that would cost.
    """

    name: str
    settings: ServeSettings = field(default_factory=ServeSettings)
    every: int | None = None
    pin: int = 0
    apart: bool = True

    @property
    def live(self) -> int:
        """Generations that are live at once."""
        return 1 if self.settings.policy == "global" else self.settings.live

    @property
    def passes(self) -> int:
        """Forward passes of one answer."""
        return self.live if self.settings.policy == "vote" else 1


class Service:
    """What answers n attackers, each in a lane of its own.

    Generation `number` is the network at place `(number - 1) % len(models)`. Where an attacker
    comes the live ones are those of `width` places from its start, or the newest of these; each
    rotation moves on by one.

    Args:
        models: networks in the order in which they become live. start: place at which each lane's
            window begins (n,). width: places of a window, at least `scheme.live`. seed: of the
            secrets, one a lane. guards: what watches each lane; whom it sees is pinned, and the
            others rotate as by `Scheme.pin`.

    Attributes:
        speaking: the account that each lane asks as (n,). passes: forward passes so far. seen:
            number of the query at which a lane came under suspicion first (n,), 0: never.
    """

    def __init__(
        self, models: Sequence[Logits], scheme: Scheme, start: Tensor, width: int, seed: int,
        guards: Sequence[Guard] = (),
    ) -> None:  # fmt: skip
        assert width >= scheme.live, "a window holds all that is live"
        self.scheme, self._models = scheme, list(models)
        # The newest of the window that all schemes share.
        self._first = (start + (width - scheme.live) + 1).tolist()
        n = len(start)
        self.speaking = torch.zeros(n, dtype=torch.long)
        self.passes = 0
        self.seen = torch.zeros(n, dtype=torch.long)
        self._guards, self._turns = list(guards), [0] * n
        self._seconds = [0.0] * n
        self._alarms = [0] * n  # rotations that alarms brought
        self._rotated = [0] * n  # so many times so far
        self._left: list[tuple[int, ...]] = [()] * n  # what nobody but suspects sees
        clocks = [partial(self._seconds.__getitem__, lane) for lane in range(n)]
        self._budgets = [AlarmBudget(MonitorSettings().rotations, clock) for clock in clocks]
        self._asked: list[dict[str, int]] = [{} for _ in range(n)]
        self._policies = [self._policy(lane, seed) for lane in range(n)]

    def _policy(self, lane: int, seed: int) -> Policy:
        secret = seed_of(seed, "secret", lane).to_bytes(16, "big")
        now = partial(self._seconds.__getitem__, lane)
        return policy_of(self.scheme.settings, secret, now, fresh=b"red team")

    def speak(self, lanes: Tensor, accounts: Tensor) -> None:
        """Let lanes (m,) ask as these accounts (m,) from now."""
        self.speaking[lanes] = accounts

    def answer(self, x: Tensor, lanes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Answer the attackers: a `query_log.Answer`. The network is -1 where several answer."""
        chosen = []
        for row, (lane, number, client) in enumerate(self._asking(lanes, numbers)):
            chosen.append(self._choose(client, x, row, lane, number, 0))
            if self.scheme.pin:
                self._count(lane, client, number)
        places = [one[0] - 1 if len(one) == 1 else -1 for one in chosen]
        scores = self._combined(x, chosen)
        if self._guards:
            for row, (lane, number, client) in enumerate(self._asking(lanes, numbers)):
                self._watch(x, scores, row, lane, number, client)
        return self._told(scores), torch.tensor(places)

    def ask(
        self, x: Tensor, lanes: Tensor, numbers: Tensor, *, rotations: int = 0, client: str = ""
    ) -> Tensor:
        """Answer inputs (m, ...) as lanes' services would, with scores (m, classes).

        Args:
            numbers: queries of each lane so far (m,): when it is. rotations: so many periods later.
            client: who asks; "": the account that speaks. Nobody comes under suspicion by it.
        """
        chosen = [
            self._choose(client or own, x, row, lane, number, rotations)
            for row, (lane, number, own) in enumerate(self._asking(lanes, numbers))
        ]
        return self._told(self._combined(x, chosen))

    def _asking(self, lanes: Tensor, numbers: Tensor) -> Iterator[tuple[int, int, str]]:
        """Lane, number and account of each query."""
        accounts = [f"{_ACCOUNT}{account}" for account in self.speaking[lanes].tolist()]
        return zip(lanes.tolist(), numbers.tolist(), accounts, strict=True)

    def _choose(
        self, client: str, x: Tensor, row: int, lane: int, number: int, rotations: int
    ) -> tuple[int, ...]:
        """Whose answers a client of a lane hears about an input, so many periods later."""
        every = self.scheme.every
        self._seconds[lane] = float(number + rotations * (every or PERIOD))
        turn = self._alarms[lane]
        if every:
            turn += (number - 1) // every + rotations
        first = self._first[lane] + turn
        policy, live = self._policies[lane], range(first, first + self.scheme.live)
        left = self._left_by(lane, turn)
        text = b""
        if policy.reads:
            text = quantised(x[row : row + 1].numpy(), self.scheme.settings.quantum)
        return policy.choose(client, text, live, None, left)

    def _left_by(self, lane: int, turn: int) -> Sequence[int]:
        """What nobody but suspects sees after so many rotations, each as a window makes it."""
        while self.scheme.apart and self._rotated[lane] < turn:
            self._rotated[lane] += 1
            first = self._first[lane] + self._rotated[lane]
            live = range(first, first + self.scheme.live)
            self._left[lane] = left_at(self._policies[lane], live, self._left[lane])
        return self._left[lane]

    def _count(self, lane: int, client: str, number: int) -> None:
        """Count a query; an account that has asked too often comes under suspicion."""
        asked = self._asked[lane]
        asked[client] = asked.get(client, 0) + 1
        if asked[client] == self.scheme.pin:
            self._suspect(lane, client, number)

    def _watch(
        self, x: Tensor, scores: Array, row: int, lane: int, number: int, client: str
    ) -> None:
        """Show a guard one request; whom it sees first comes under suspicion."""
        guard, asked, one = self._guards[lane], self._asked[lane], slice(row, row + 1)
        turn = self._alarms[lane] + ((number - 1) // self.scheme.every if self.scheme.every else 0)
        if turn != self._turns[lane]:
            self._turns[lane] = turn
            guard.swapped()
        if client in asked:  # it is pinned, and nothing that it does changes that
            return
        alarms = guard.look(x[one].numpy(), scores[one], client, float(number))
        for name, rotates in alarms.items():
            if name not in asked:
                asked[name] = number
                self._suspect(lane, name, number, rotates)

    def _suspect(self, lane: int, client: str, number: int, rotates: bool = True) -> None:
        """Pin a client, and rotate the others as often as a service would."""
        self._policies[lane].pin(client)
        self._alarms[lane] += rotates and self._budgets[lane].take()
        if client.startswith(_ACCOUNT):  # an alarm about who is honest has not seen the attacker
            self.seen[lane] = self.seen[lane] or number

    def _combined(self, x: Tensor, chosen: Sequence[tuple[int, ...]]) -> Array:
        """Run every network on the inputs that it answers, and combine those that vote."""
        table = torch.tensor(chosen) - 1  # (m, k)
        table %= len(self._models)
        self.passes += table.numel()
        logits: Tensor | None = None
        for place in table.unique().tolist():
            rows, column = (table == place).nonzero(as_tuple=True)
            scores = predict(self._models[place], x[rows])
            if logits is None:
                logits = scores.new_empty(*table.shape, scores.shape[1])
            logits[rows, column] = scores
        assert logits is not None, "somebody asked"
        each = [logits[:, k].numpy() for k in range(table.shape[1])]
        return combined(each, self.scheme.settings.answers == LABEL)

    def _told(self, scores: Array) -> Tensor:
        """Scores (m, classes) in the form in which they are told."""
        if (form := answers_of(self.scheme.settings)) is not None:
            scores = _as_scores(form(scores), scores.shape[1])
        return torch.from_numpy(np.ascontiguousarray(scores))


def _as_scores(told: Array, classes: int) -> Array:
    """An answer as scores (m, classes): a label alone is 1 for its class and 0 for the others."""
    return np.eye(classes, dtype=np.float32)[told] if told.ndim == 1 else told
