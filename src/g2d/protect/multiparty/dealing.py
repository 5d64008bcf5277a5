"""Sharing weights: from whoever makes generations, once each rotation, to all parties.

Shares are made here, so no party ever has the weights; they go to all parties before any of them
answers by them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
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
        MultipartyError: a party is not there, or refuses. What was live stays live, and the shares
            are given up; or, where it failed after all parties had agreed, this generation is live
            as soon as they are all there.
    """
    expected = [shape for _, shape in program.parameters]
    if [tuple(one.shape) for one in parameters] != expected:
        raise MultipartyError(
            f"parameters of shapes {[one.shape for one in parameters]}, expected {expected}"
        )
    shares = [split(to_ring(one), config.protocol) for one in parameters]
    sharing = secrets.token_hex(16)
    about = {"number": number, "sharing": sharing}
    with ExitStack() as stack:
        lines: list[Line] = []
        for rank in config.ranks:
            line = stack.enter_context(Line(config, rank, own, _SECONDS))
            if (told := line.greet("dealer")).get("protocol") != config.protocol:
                raise MultipartyError(f"{line.name} computes by {told.get('protocol')}")
            lines.append(line)
        try:
            for line in lines:
                _send(line, {**about, "program": program.to_json()}, shares, program.digest)
            for line in reversed(lines if activate else ()):  # party 0 then has all of them switch
                line.ask({"kind": "activate", **about})
        except BaseException:
            for line in lines:
                with suppress(MultipartyError):  # a party that is gone keeps what is bounded
                    line.ask({"kind": "discard", **about})
            raise
    return Shared(number, sharing, sum(len(one[0]) for one in shares))


def _send(line: Line, about: dict[str, object], shares: Sequence[list[bytes]], digest: str) -> None:
    body = b"".join(one[line.rank] for one in shares)
    told, _ = line.ask({"kind": "weights", **about}, body)
    if told.get("digest") != digest:
        raise MultipartyError(f"{line.name} has understood another program")
