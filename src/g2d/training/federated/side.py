"""What the server's side of federated training has, wherever its clients are: in one process
(`simulate`) or in processes of their own (`processes.remote`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from g2d.core.files import make_folder
from g2d.core.seeds import seed_of
from g2d.core.types import Array, Progress, Say, State, silent, unsaid
from g2d.errors import PopulationError, SettingsError
from g2d.settings import Settings
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.federated.checks import Refusals
from g2d.training.federated.client import Client
from g2d.training.federated.ledgers import ClientLedger
from g2d.training.federated.messages import ANSWER, decode
from g2d.training.federated.networks import Networks
from g2d.training.federated.server import Server
from g2d.training.federated.stages import Asked, clean_rounds, rate_of

ROOT = "server-root"
"""What the server's own training is called where a rule asks for it."""


@dataclass
class ServerSide(ABC):
    """A task, its settings, and how a stage is trained.

    Attributes:
        task: whose guide and gate split are the server's. like: the state whose tensors stay as
            they are. folder: where is kept what is known; None: in memory. say: hears refusals, and
            rounds that were skipped.
    """

    task: Task
    settings: Settings
    like: State
    folder: Path | None = None
    say: Say = unsaid

    simulated = False
    """Whether all records are in this process."""

    @property
    @abstractmethod
    def identities(self) -> list[str]:
        """The clients' names."""

    @abstractmethod
    def send(self, stage: str, vector: Array) -> None:
        """Send a member to every client, for attacks on it."""

    @abstractmethod
    def train(
        self,
        stage: str,
        start: Array,
        rounds: int,
        repelled: Sequence[str] = (),
        progress: Progress = silent,
    ) -> Server:
        """Run a stage to its end, or go on where it was killed; its server holds the network.

        Raises:
            SettingsError: the rule does not bear f of so many clients.
            PopulationError: not one round had answers enough.
        """

    @property
    def spent(self) -> float | None:
        """The greatest epsilon that a client of this process has spent; None: there is none."""
        return None

    @cached_property
    def networks(self) -> Networks:
        """How networks are sent."""
        return Networks.of(self.task)

    @cached_property
    def root(self) -> Split:
        """The server's own records: of the guide split, as many as `root` says."""
        s, source = self.settings, torch.Generator()
        source.manual_seed(seed_of(s.population.seed, "root"))
        return self.task.splits.guide.sample(s.federated.root, source)

    def make_client(self, identity: str, records: Split) -> Client:
        """A client of this process, and where it keeps its last answer."""
        file = place = ledger = None
        if self.folder is not None:
            file = make_folder(self.folder / "clients", 0o700) / f"{identity}.safetensors"
            place = self.folder / "ledgers" / identity
        if self.settings.federated.private and identity != ROOT:  # of clients' records alone
            ledger = ClientLedger(self.settings, place)
        return Client(
            identity, self.task, records, self.settings, self.networks, self.like, file,
            held=False, ledger=ledger,
        )  # fmt: skip

    def open_stage(
        self, stage: str, start: Array, rounds: int, repelled: Sequence[str] = ()
    ) -> Server:
        """The server of a stage, as it was left."""
        s = self.settings
        rate = rate_of(stage, s.federated)
        clean = clean_rounds(stage, rounds, s)
        asked = Asked(stage, rounds, s.population.batch, tuple(repelled), rate, clean)
        folder = None if self.folder is None else make_folder(self.folder, 0o700) / stage
        return Server(
            self.networks.form, start, asked, s.federated, self.identities, folder,
            Refusals(self.say),
        )  # fmt: skip

    def root_update(self, server: Server, message: bytes) -> Array | None:
        """The update of the server's own records, where the rule asks for it."""
        if not server.aggregation.rule.rooted:
            return None
        data = self._own.answer(message)
        if data is None:
            raise SettingsError("the server has no records of its own; raise [federated] root")
        return decode(data, self.networks.form, ANSWER).vector

    @cached_property
    def _own(self) -> Client:
        return self.make_client(ROOT, self.root)


def check_trained(server: Server, advice: str = "Ask more clients, or lower f") -> None:
    """Refuse a stage of which no round was aggregated; the error ends with what to do.

    Raises:
        PopulationError: there is nothing but its start.
    """
    if all(closed.skipped for closed in server.closed):
        raise PopulationError(
            f"{server.asked.stage}: not one of {server.asked.rounds} rounds was aggregated, because"
            f" {server.closed[-1].skipped}. {advice}"
        )
