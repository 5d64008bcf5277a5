"""Federated training in one process, by the same messages: the embedded default, and experiments.

Malicious clients know the rule and every honest answer of the round. What a transport between
processes does, calls the same `Server` and `Client`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from g2d.attacks.byzantine import Byzantine, Seen, replaced
from g2d.core.seeds import seed_of
from g2d.core.types import Array, Progress, silent
from g2d.errors import PopulationError, PrivacyError, SettingsError
from g2d.settings import Settings
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.federated.aggregation import Around
from g2d.training.federated.client import Client, LocalSgd
from g2d.training.federated.messages import ANSWER, MEMBER, Message, decode, digest_of, encode
from g2d.training.federated.records import Turn, shares, timetable
from g2d.training.federated.server import Server
from g2d.training.federated.side import ServerSide, check_trained
from g2d.training.federated.stages import Asked
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining

_ALONE_RATES = (1.0, 0.25, 0.0625)
"""Parts of the clients' rate that one owner tries. MNIST's 200 root records gave 82 % (all of them
known) or 10 %, by the seed, at the clients' rate, and 92 % at a quarter of it."""
_LOOKED_AT = 500  # records by which attackers judge what they are about to send


@dataclass(frozen=True)
class Hostile:
    """Which attack how many of the clients run; `count` may differ from the f that is borne."""

    attack: Byzantine
    count: int


@dataclass
class Simulation(ServerSide):
    """Clients and their records, made of a task's train split, which is spread over them.

    Attributes:
        hostile: malicious clients; None: none.
    """

    hostile: Hostile | None = None

    simulated = True
    _stopped: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        count, most = self.hostile.count if self.hostile else 0, self.settings.federated.clients
        if count >= most:
            raise SettingsError(
                f"{count} of {most} clients are to be malicious: leave one honest client at least"
            )

    @property
    def identities(self) -> list[str]:
        """The clients' names; the last ones are malicious."""
        return [f"client-{k:02d}" for k in range(self.settings.federated.clients)]

    @property
    def _malicious(self) -> list[str]:
        count = self.hostile.count if self.hostile else 0
        return self.identities[len(self.identities) - count :]

    @property
    def spent(self) -> float | None:
        """See `ServerSide`."""
        ledgers = [client.ledger for client in self.clients.values() if client.ledger is not None]
        return max((ledger.epsilon() for ledger in ledgers), default=None)

    @cached_property
    def clients(self) -> dict[str, Client]:
        """Every client with its records; the malicious with what they make of theirs."""
        s, train = self.settings.federated, self.task.splits.train
        seed = self.settings.population.seed
        parts = shares(train.y.numpy(), s.clients, s.alpha, seed)
        found = {}
        for identity, part in zip(self.identities, parts, strict=True):
            records = train.take(torch.from_numpy(part))
            poison = self.hostile.attack.poison if self.hostile else None
            if identity in self._malicious and poison is not None and len(records):
                source = torch.Generator().manual_seed(seed_of(seed, "poison", identity))
                records = poison(records, self.task, source)
            found[identity] = self.make_client(identity, records)
        return found

    def send(self, stage: str, vector: Array) -> None:
        """Send a member to every client, for attacks on it."""
        data = encode(Message(MEMBER, stage, vector), self.networks.form)
        for client in self.clients.values():
            client.receive(data)

    def train(
        self,
        stage: str,
        start: Array,
        rounds: int,
        repelled: Sequence[str] = (),
        progress: Progress = silent,
    ) -> Server:
        """See `ServerSide`."""
        server = self.open_stage(stage, start, rounds, repelled)
        turns = {name: self._turns(server.asked, name) for name in self.identities}
        while not server.done:
            progress(stage, server.number, rounds)
            self._round(server, {name: turn[server.number] for name, turn in turns.items()})
        progress(stage, rounds, rounds)
        if self._stopped:
            check_trained(server, self._budget_advice)
        check_trained(server)
        return server

    @property
    def _budget_advice(self) -> str:
        stopped = f"{len(self._stopped)} of {len(self.identities)} clients"
        return (
            f"{stopped} have used up their privacy budget: begin a new vault with fewer rounds, "
            "members or basins, more [privacy] noise, or a larger epsilon"
        )

    # --- a round ---------------------------------------------------------------------------------

    def _turns(self, asked: Asked, identity: str) -> list[Turn]:
        if identity in self._malicious:  # always in time: the stronger attacker
            return [Turn(True, number) for number in range(asked.rounds)]
        s = self.settings.federated
        seed = self.settings.population.seed
        return timetable(asked.rounds, s.dropout, s.stragglers, seed, asked.stage, identity)

    def _round(self, server: Server, turns: dict[str, Turn]) -> None:
        """Ask everybody once, let the malicious see what the others sent, and close."""
        message, there = server.ask(), server.taken
        own: dict[str, bytes] = {}
        for name, turn in turns.items():
            if self._crafts(name) or (name in there and name not in self._malicious):
                continue  # it needs no training for what it sends, or had answered before a kill
            client = self.clients[name]
            late = client.kept if turn.arrives is not None and not turn.trains else None
            answer = self._answer(client, message) if turn.trains else late
            if answer is None:
                continue
            if name in self._malicious:
                own[name] = answer
            elif turn.arrives is not None:
                server.take(answer, name)
        root = self.root_update(server, message)
        for name, data in self._hostile_answers(server, own, root):
            server.take(data, name)
        closed = server.close(root)
        if closed.skipped:
            self.say(f"round {closed.number} of {server.asked.stage} is skipped: {closed.skipped}")

    def _crafts(self, identity: str) -> bool:
        crafted = self.hostile is not None and self.hostile.attack.craft is not None
        return crafted and identity in self._malicious

    def _answer(self, client: Client, message: bytes) -> bytes | None:
        """What a client answers; None where its own training diverges, or where its ledger does not
        cover the round, which it says."""
        try:
            return client.answer(message)
        except PopulationError as error:
            self.say(f"{client.identity} does not answer: {error}")
            return None
        except PrivacyError as error:  # a process of its own would end here
            if client.identity not in self._stopped:
                self.say(f"{client.identity} stops: {error}")
            self._stopped.add(client.identity)
            return None

    def _hostile_answers(
        self, server: Server, own: dict[str, bytes], root: Array | None
    ) -> list[tuple[str, bytes]]:
        """What malicious clients send: as they were trained, or crafted of all that others sent."""
        if self.hostile is None:
            return []
        attack, form = self.hostile.attack, self.networks.form
        names = [name for name in self._malicious if name not in server.taken]
        honest = [v for name, v in sorted(server.taken.items()) if name not in self._malicious]
        if not honest or (attack.craft is None and not attack.replaces):
            return [(name, own[name]) for name in names if name in own]
        around = Around(server.aggregation.f, server.last, root)

        def rule(X: Array) -> Array:
            try:
                return server.aggregation(X, around)
            except SettingsError:  # too few answers: nothing moves anything
                return np.zeros(X.shape[1], np.float32)

        seen = Seen(np.stack(honest), self.hostile.count, rule)
        if attack.craft is not None:
            vector = attack.craft(seen)
            return [(name, self._forged(server, name, vector)) for name in names]
        trained = [decode(data, form, ANSWER).vector for _, data in sorted(own.items())]
        if not trained:
            return []
        mean = np.stack(trained).mean(0)
        worth = partial(self._success, server.vector)
        vector = replaced(mean, len(self.identities), self.hostile.count, seen, worth)
        return [(name, self._forged(server, name, vector)) for name in names]

    def _success(self, vector: Array, aggregate: Array) -> float:
        """How right a network is on the attackers' records, poisoned ones and others alike: so it
        has their backdoor, and nobody sees it in its accuracy."""
        with np.errstate(over="ignore", invalid="ignore"):
            moved = vector + aggregate
        if not np.isfinite(moved).all():
            return -1.0
        return accuracy(load_model(self.task, self.networks.state(moved, self.like)), self._poison)

    @cached_property
    def _poison(self) -> Split:
        """The malicious clients' records, a few hundred of all of them."""
        parts = [self.clients[name].records for name in self._malicious]
        split = Split(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
        source = torch.Generator().manual_seed(seed_of(self.settings.population.seed, "worth"))
        return split.sample(_LOOKED_AT, source)

    def _forged(self, server: Server, identity: str, vector: Array) -> bytes:
        base, stage = digest_of(server.vector), server.asked.stage
        message = Message(ANSWER, stage, vector, server.number, identity, base)
        return encode(message, self.networks.form)


def trained_alone(
    task: Task, records: Split, settings: Settings, steps: int, seed: int
) -> dict[str, Tensor]:
    """The control: a network of one owner's records alone, by as many steps as the rounds have.

    A rate that averaging over clients bears can be too high for one owner: of lower ones, too, that
    is taken by which four fifths of the records teach most of the rest (the least loss, where some
    teach as much), so that the control is no straw man; then all of them are learned.

    Raises:
        PopulationError: training diverged at every rate, or there are no records.
    """
    if not len(records):
        raise PopulationError("there are no records to train on alone; raise [federated] root")
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed))
    held = len(records) // 5
    rest, own = records.take(order[:held]), records.take(order[held:])
    rated: dict[float, tuple[float, float]] = {}
    for part in _ALONE_RATES:
        with suppress(PopulationError):
            model = _alone(task, own, settings, steps, seed, part)
            rated[part] = _wrong(task, model.eval(), rest if held else own)
    failed: PopulationError | None = None
    for part in sorted(rated, key=rated.__getitem__):
        try:
            model = _alone(task, records, settings, steps, seed, part).eval()
        except PopulationError as error:  # what a few records bore, all may not
            failed = error
            continue
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    raise failed or PopulationError(
        "training on the server's own records alone diverged at every rate: lower [federated]"
        " local_rate"
    )


def _wrong(task: Task, model: torch.nn.Module, split: Split) -> tuple[float, float]:
    """The share that a network is wrong on, and its loss: of few records the share often ties."""
    loss = float(task.loss_of(predict(model, split.x), split.y))
    return 1.0 - accuracy(model, split), loss if math.isfinite(loss) else math.inf


def _alone(
    task: Task, records: Split, settings: Settings, steps: int, seed: int, part: float
) -> torch.nn.Module:
    """One such training, at a part of the clients' rate."""
    source = torch.Generator().manual_seed(seed)
    model = task.placed(task.model(seed))
    training = HardenedTraining(
        task, replace(settings.harden, checks=0, patience=0, ramp=0.0),
        Batches(task, records, settings.population.batch, source), steps, seed=seed,
        begun=True, extra=(LocalSgd(),),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training.run(model, part * settings.federated.local_rate)
    return model
