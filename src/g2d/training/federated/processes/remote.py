"""The server's side of clients in processes of their own: what `simulate` is for those in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from g2d.core.types import Array, Progress, silent
from g2d.training.federated.messages import MEMBER, Message, encode
from g2d.training.federated.processes.desk import Desk
from g2d.training.federated.server import Server
from g2d.training.federated.side import ServerSide, check_trained


@dataclass(kw_only=True)
class Remote(ServerSide):
    """Clients that ask at a desk.

    Attributes:
        names: of the clients. desk: where they ask; what carries their messages calls it.
    """

    names: Sequence[str]
    desk: Desk = field(repr=False)

    @property
    def identities(self) -> list[str]:
        """The clients' names."""
        return list(self.names)

    def send(self, stage: str, vector: Array) -> None:
        """Keep a member for whoever has to know it; see `ServerSide`."""
        data = encode(Message(MEMBER, stage, vector), self.networks.form)
        self.desk.members[stage] = data

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
        while not server.done:
            progress(stage, server.number, rounds)
            self.desk.run_round(server, lambda message: self.root_update(server, message))
        progress(stage, rounds, rounds)
        check_trained(server)
        return server
