"""Who asks: shares inputs among the parties and puts the shares of their answers together.

    client = Client(Config.read("parties.toml"), (Path("client.pem"), Path("client.key")))
    answer = client.infer(images)       # (n, *shape), values in the task's range
    print(answer.logits.argmax(1), answer.number)

Knows neither torch nor SPU. No party sees an input or an answer; all of them together would.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from g2d.core.types import Array
from g2d.errors import DataError
from g2d.protect.multiparty.config import WIDTH, Config
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.program import LARGEST, Program
from g2d.protect.multiparty.rings import from_ring, join, split, to_ring
from g2d.protect.multiparty.wire import Line, receive_all

_CONNECT = 5.0  # seconds


@dataclass(frozen=True)
class Answer:
    """What the parties have computed.

    Attributes:
        logits: (n, classes), float64. number: of the generation that gave all of them. seconds:
            that the slowest party has computed. sent: bytes that all parties have sent to one
            another. cpu: seconds of all parties' engines together.
    """

    logits: Array
    number: int
    seconds: float
    sent: int
    cpu: float


class Client:
    """A client of one set-up of parties; connections are kept, and made anew after a failure.

    Args:
        own: files of its certificate and key. seconds: for which an answer is waited for; None: as
            long as parties may compute.
    """

    def __init__(
        self, config: Config, own: tuple[Path, Path], seconds: float | None = None
    ) -> None:
        limits = config.limits
        self._config, self._own = config, own
        self._seconds = seconds or limits.run + limits.arrive + limits.silence
        self._lines: list[Line] = []
        self._program: Program | None = None
        self._most = self._last = 0

    @property
    def program(self) -> Program:
        """What the parties compute; connects."""
        if self._program is None:
            self._connect()
        assert self._program is not None
        return self._program

    @property
    def batch(self) -> int:
        """Inputs of one request, at most; connects."""
        _ = self.program
        return self._most

    @property
    def lines(self) -> list[Line]:
        """Connections with the parties, by rank; connects."""
        _ = self.program
        return self._lines

    def infer(self, x: Array) -> Answer:
        """Logits of inputs (n, *shape), by one generation.

        Raises:
            DataError: they are of another shape, not finite or out of range; nothing was sent.
            MultipartyError: a party is gone, refuses, or has computed something else.
        """
        program = self.program
        x = check_inputs(program, x)
        if len(x) > self._most:
            raise DataError(f"{len(x)} inputs, at most {self._most} a request")
        shares, name = split(to_ring(x), self._config.protocol), secrets.token_hex(16)
        asked = {"kind": "infer", "id": name, "n": len(x), "digest": program.digest}
        try:
            for line, share in zip(self._lines, shares, strict=True):
                line.send(asked, share)
            most = len(x) * program.classes * WIDTH[self._config.protocol]
            told = receive_all(self._lines, most, self._seconds)
            return self._answer(name, program, [t for t, _ in told], [body for _, body in told])
        except BaseException:
            self.close()  # what the others still say belongs to this request
            raise

    def _answer(
        self, name: str, program: Program, told: list[dict[str, Any]], shares: list[bytes]
    ) -> Answer:
        names = [(t.get("kind"), t.get("id"), t.get("digest")) for t in told]
        if names != [("answer", name, program.digest)] * len(told):
            raise MultipartyError("the parties have answered another request, or program")
        if len({(t.get("number"), t.get("sharing")) for t in told}) != 1:
            raise MultipartyError("the parties have answered by different generations")
        values = from_ring(join(shares, self._config.protocol))
        if len(values) % program.classes:
            raise MultipartyError(
                f"an answer of {len(values)} values for {program.classes} classes"
            )
        number = int(told[0]["number"])
        if number < self._last:
            raise MultipartyError(
                f"the parties have answered by generation {number} after {self._last}: numbers only"
                " rise"
            )
        self._last = number
        return Answer(
            values.reshape(-1, program.classes), number,
            max(float(t["seconds"]) for t in told), sum(int(t["sent"]) for t in told),
            sum(float(t["cpu"]) for t in told),
        )  # fmt: skip

    def _connect(self) -> None:
        self.close()
        try:
            told: list[Mapping[str, Any]] = []
            for rank in self._config.ranks:
                line = Line(self._config, rank, self._own, _CONNECT)
                self._lines.append(line)
                told.append(line.greet("client"))
                line.patience(self._seconds)
            texts = {str(t["program"]) for t in told}
            if len(texts) != 1 or {t["protocol"] for t in told} != {self._config.protocol}:
                raise MultipartyError("the parties have different programs: share weights anew")
            self._program, self._most = Program.from_json(texts.pop()), int(told[0]["batch"])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        for line in self._lines:
            line.close()
        self._lines, self._program = [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_inputs(program: Program, x: Array) -> Array:
    """Inputs as float64, if a program takes them; what float32 rounded out of range is held in it.

    Raises:
        DataError: they are of another shape, none, not finite or out of range.
    """
    found = np.asarray(x)
    if found.dtype.kind not in "fiub" or found.shape[1:] != program.shape or not len(found):
        raise DataError(
            f"inputs are {found.dtype} {found.shape}, expected numbers of shape (n, "
            f"{', '.join(map(str, program.shape))})"
        )
    values = found.astype(np.float64)
    least, most = np.array(program.least or (-LARGEST,)), np.array(program.most or (LARGEST,))
    slack = 1e-6 * (most - least)  # float32 rounds what is at the border
    if not ((values >= least - slack) & (values <= most + slack)).all():  # false for nan, too
        low, high = (float(f(values)) for f in (np.min, np.max))
        raise DataError(
            f"inputs go from {low:g} to {high:g} (or are no numbers), expected {least.min():g} to"
            f" {most.max():g}"
        )
    return np.clip(values, least, most)


def share_size(program: Program, n: int, protocol: str) -> int:
    """Bytes that a client sends to each party for n inputs."""
    return n * math.prod(program.shape) * WIDTH[protocol]
