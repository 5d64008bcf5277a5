"""A base that clients train, and the control beside it: the server's own records alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from g2d.core.seeds import seed_of
from g2d.core.types import Progress
from g2d.errors import PopulationError
from g2d.tasks.inference import accuracy, load_model
from g2d.training.federated.server import Server
from g2d.training.federated.side import ServerSide
from g2d.training.federated.simulate import trained_alone


@dataclass(frozen=True, eq=False)
class FederatedBase:
    """A base that clients have trained.

    Attributes:
        accuracy: share of the gate split. alone: that of a network of the server's own records;
            None: it has none. server: whose last round this is.
    """

    state: dict[str, Tensor]
    accuracy: float
    alone: float | None
    server: Server


def train_base(sim: ServerSide, progress: Progress) -> FederatedBase:
    """Train a base with all clients, and beside it the control of the server's records alone."""
    s, task = sim.settings, sim.task
    start = sim.networks.vector(sim.like)
    server = sim.train("base-0", start, s.federated.rounds, progress=progress)
    state = sim.networks.state(server.vector, sim.like)
    alone = None
    if not s.federated.root:
        sim.say(
            "[federated] root = 0: the base is held against nothing, and kept also if it is no "
            "better than chance; with 200 records of the server's own it would be"
        )
    if len(sim.root) < s.federated.root:
        sim.say(
            f"[federated] root asks for {s.federated.root} records of the server's own, and its "
            f"guide split has {len(sim.root)}: those are taken"
        )
    if len(sim.root):
        steps = s.federated.rounds * s.federated.local_steps
        try:
            own = trained_alone(task, sim.root, s, steps, seed_of(s.population.seed, "alone"))
            alone = accuracy(load_model(task, own), task.splits.gate)
        except PopulationError as error:
            sim.say(f"the base is not held against the server's records alone: {error}")
    return FederatedBase(state, accuracy(load_model(task, state), task.splits.gate), alone, server)
