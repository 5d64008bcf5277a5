"""Sharing weights: from whoever makes generations, once each rotation, to all parties.

Shares are made here, so no party ever has the weights; they go to all parties before any of them
answers by them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from g2d.core.types import Array
from g2d.protect.multiparty.config import Config
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.program import Program
from g2d.protect.multiparty.rings import split, to_ring
from g2d.protect.multiparty.wire import Line

_SECONDS = 60.0


class Shared(NamedTuple):
    """A generation that all parties hold now, and how many bytes went to each of them."""

    number: int
    sharing: str
    size: int


def share(
    config: Config,
    own: tuple[Path, Path],
    number: int,
    program: Program,
    parameters: Sequence[Array],
    activate: bool = True,
) -> Shared:
    """Share a generation's weights among all parties, and have them answer by it from now on.

    Args:
        own: files of the dealer's certificate and key. parameters: as `program.parameters` names
            them. activate: False: parties keep the shares, and go on answering by the former.

    Raises:
        MultipartyError: a party is not there, or refuses; what was live stays live.
    """
    expected = [shape for _, shape in program.parameters]
    if [tuple(one.shape) for one in parameters] != expected:
        raise MultipartyError(
            f"parameters of shapes {[one.shape for one in parameters]}, expected {expected}"
        )
    shares = [split(to_ring(one), config.protocol) for one in parameters]
    sharing = secrets.token_hex(16)
    about = {"number": number, "sharing": sharing}
    size = 0
    with ExitStack() as stack:
        lines: list[Line] = []
        for rank in config.ranks:
            line = stack.enter_context(Line(config, rank, own, _SECONDS))
            told, _ = line.ask({"kind": "dealer"})
            if told.get("protocol") != config.protocol:
                raise MultipartyError(f"{line.name} computes by {told.get('protocol')}")
            lines.append(line)
        for rank, line in enumerate(lines):
            body = b"".join(one[rank] for one in shares)
            size = len(body)
            told, _ = line.ask({"kind": "weights", **about, "program": program.to_json()}, body)
            if told.get("digest") != program.digest:
                raise MultipartyError(f"{line.name} has understood another program")
        if activate:
            lines[0].ask({"kind": "activate", **about})
    return Shared(number, sharing, size)
