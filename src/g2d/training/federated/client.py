"""A client: trains on its own records from what it was sent, and sends its change, with momentum.

Its momentum is the change that it sent last (Karimireddy et al. 2021: worker momentum), so one file
is all of its state; asked once more for the same round, it answers the same bytes. Records never
leave: neither they nor attacks crafted on them are in any message. With a ledger it trains
privately, and pays for a round before it is trained (`private`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from g2d.attacks.pools import craft_pool
from g2d.core.files import read_plain, write_bytes
from g2d.core.seeds import seed_of
from g2d.core.types import Array, State
from g2d.errors import FederatedError, PopulationError
from g2d.settings import Settings
from g2d.tasks.attack import OWN
from g2d.tasks.inference import load_model
from g2d.tasks.placing import on_cpu
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.federated.balance import balanced
from g2d.training.federated.ledgers import ClientLedger
from g2d.training.federated.messages import (
    ANSWER,
    MEMBER,
    ROUND,
    Message,
    decode,
    digest_of,
    encode,
    most_bytes,
)
from g2d.training.federated.networks import Networks, check_plan
from g2d.training.federated.private import cost_of_round, plan_of, records_of
from g2d.training.federated.stages import check_agreed, check_member
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining, Private, fgsm_light, stale
from g2d.training.recipes.private_entropy import secret_generator
from g2d.training.recipes.recipe import ChangeStep, Recipe, Setup

LOCAL_MOMENTUM = 0.9
"""Of the steps within a round; `[federated] momentum` is of the changes that are sent."""


class LocalSgd(Recipe):
    """SGD with Nesterov's momentum, begun anew in each round.

    In a probe on digits 25 rounds of 6 steps came to 92 %, to 81 % without momentum, to 53 % by
    Adam, which knows nothing of the scale of gradients again in each round.
    """

    def prepare(self, setup: Setup) -> Setup:
        """Return the setup with this optimiser."""

        def made(model: nn.Module, rate: float) -> Optimizer:
            free = [p for p in model.parameters() if p.requires_grad]
            return SGD(free, rate, momentum=LOCAL_MOMENTUM, nesterov=True)

        return setup.replace(optimizer=made)


class Client:
    """One client.

    Args:
        identity: its name, as its certificate says. task: its model, loss and attack. records: its
            own. like: the state whose tensors stay as they are. file: where its last answer is
            kept; None: in memory. held: whether the server is held to the settings; it is not where
            it is of this process. ledger: what keeps count of its records' privacy; None: nothing
            does, and nothing is guaranteed.

    Raises:
        FederatedError: its last answer is damaged. PrivacyError: that was made without privacy, or
            `[privacy] unit` is no column of the records.
    """

    def __init__(
        self,
        identity: str,
        task: Task,
        records: Split,
        settings: Settings,
        networks: Networks,
        like: State,
        file: Path | None = None,
        *,
        held: bool = True,
        ledger: ClientLedger | None = None,
    ) -> None:
        self.held, self.ledger = held, ledger
        if ledger is not None:  # gradients of single records, and their noise, are the CPU's
            task, records = on_cpu(task), records_of(records, ledger.identity, settings)
        self.identity, self.task, self.records, self.settings = identity, task, records, settings
        # How often a label is there is private, too, where records have a ledger.
        balance = settings.federated.balance and ledger is None and len(records) > 0
        self._learned = balanced(task, records) if balance else task
        self.networks, self.like, self.file = networks, like, file
        self._pools: dict[str, Split] = {}
        self._released: dict[str, nn.Module] = {}
        self._last: bytes | None = None
        if file is not None and file.exists():
            self._last = self._read(file)
        if ledger is not None and (last := self.answered) is not None:
            ledger.check_paid(cost_of_round(last.stage, last.number, settings).what)

    def receive(self, data: bytes) -> None:
        """Take a member: attacks on it are crafted from the client's own records, and stay here.

        Of one that trains privately each record brings its own in each step, so none is made now.

        Raises:
            FederatedError: it is no member of the task's, or of no name that the settings have.
        """
        found, s = decode(data, self.networks.form, MEMBER), self.settings
        if self.held:
            check_member(found.stage, s)
        if self.ledger is not None:
            state = self.networks.state(found.vector, self.like)
            self._released.setdefault(found.stage, load_model(self.task, state))
            return
        if found.stage in self._pools or not len(self.records):
            return
        size = max(1, s.population.pool // max(1, s.federated.clients))
        model = load_model(self.task, self.networks.state(found.vector, self.like))
        seed = seed_of(s.population.seed, "client", self.identity, found.stage)
        x, index = craft_pool(self.task, model, self.records, size, s.population.pool_steps, seed)
        self._pools[found.stage] = Split(x, self.records.y[index])

    def forget(self) -> None:
        """Drop attacks on the members that were sent: another run begins."""
        self._pools.clear()
        self._released.clear()

    def answer(self, data: bytes) -> bytes | None:
        """Train for a round and return the answer; None: it has no records to learn from.

        Raises:
            FederatedError: what the server sent is no round, or asks for what no client does, or
                for what this one's settings do not say (`stages.check_agreed`).
            PopulationError: training diverged.
            PrivacyError: the ledger does not cover the round; no record was read for it.
        """
        asked = decode(data, self.networks.form, ROUND)
        if not check_plan(asked.plan):
            raise FederatedError(
                f"the server's plan is {dict(asked.plan)!r}, which no client follows"
            )
        if not len(self.records) and self.ledger is None:  # whether one is there is private, too
            return None
        base, last = digest_of(asked.vector), self.answered
        if self.held:
            check_agreed(asked, base, last, self.settings)
        before = last if last is not None and last.stage == asked.stage else None
        if before is not None and before.number == asked.number and before.base == base:
            return self._last
        if self.ledger is not None:
            self.ledger.spend(cost_of_round(asked.stage, asked.number, self.settings))
        change = self._trained(asked) - asked.vector
        if before is not None:
            m = np.float32(asked.plan["momentum"])
            change = m * before.vector + (np.float32(1) - m) * change
        if not np.isfinite(change).all():
            raise PopulationError(f"client {self.identity}: training diverged; lower the rate")
        message = Message(ANSWER, asked.stage, change, asked.number, self.identity, base)
        self._last = encode(message, self.networks.form)
        if self.file is not None:
            write_bytes(self.file, self._last, 0o600)
        return self._last

    def _read(self, file: Path) -> bytes:
        try:
            data = read_plain(file, most_bytes(self.networks.form))
            decode(data, self.networks.form, ANSWER)
        except (OSError, FederatedError) as error:
            raise FederatedError(
                f"{file}, the last answer of {self.identity}, is damaged: {error}. Remove it, and"
                " it goes on without momentum"
            ) from error
        return data

    @property
    def kept(self) -> bytes | None:
        """The last answer."""
        return self._last

    @property
    def answered(self) -> Message | None:
        """The last answer, of whichever stage, as it was sent."""
        return None if self._last is None else decode(self._last, self.networks.form, ANSWER)

    def _trained(self, asked: Message) -> Array:
        """The network after the local steps, (P,)."""
        s, plan = self.settings, asked.plan
        seed = seed_of(s.population.seed, "client", self.identity, asked.stage, asked.number)
        source = torch.Generator().manual_seed(seed)
        model = self.task.placed(self.task.model(seed))
        model.load_state_dict(self.networks.state(asked.vector, self.like))
        pools = [self._pools[name] for name in plan["repelled"] if name in self._pools]
        training = HardenedTraining(
            self._learned, replace(s.harden, checks=0, patience=0, ramp=0.0),
            Batches(self._learned, self.records, plan["batch"], source), plan["steps"],
            seed=seed, begun=True, extra=self._extra(pools), pools=pools,
            private=self._private(asked.stage, plan["repelled"]),
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.ledger is not None:  # dropout must not fall as anybody could tell
                torch.set_rng_state(secret_generator().get_state())
            training.run(model, plan["rate"])
        return self.networks.vector(model.state_dict())

    def _private(self, stage: str, repelled: Sequence[str]) -> Private | None:
        if self.ledger is None:
            return None
        released = [self._released[name] for name in repelled if name in self._released]
        return Private(plan_of(self.task, self.settings, stage, released))

    def _extra(self, pools: list[Split]) -> tuple[Recipe | ChangeStep, ...]:
        """SGD, and where networks are to be fled, attacks on these and a light FGSM."""
        eps = self.settings.population.light_eps * self.task.eps
        if not any(len(pool) for pool in pools):
            return (LocalSgd(),)
        if not eps or self.task.attack_kind == OWN:
            return (LocalSgd(), stale)
        return (LocalSgd(), stale, partial(fgsm_light, eps))
