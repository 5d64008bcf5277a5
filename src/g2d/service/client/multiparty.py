"""The multi-party way: shares of inputs go to parties, shares of answers come back.

What stands for a service's URL is the path of `parties.toml` (`protect.multiparty.config`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from g2d.core.exchange import Credentials
from g2d.core.types import Array, Progress, silent
from g2d.errors import SettingsError
from g2d.protect.asking import Answer, Described
from g2d.protect.multiparty.client import Client, check_inputs
from g2d.protect.multiparty.config import Config
from g2d.service.client.inputs import fitted


class MultipartyClient:
    """Asks the parties of a configuration, connections of its own for each call.

    `protect.multiparty.client.Client` keeps its connections.

    Args:
        file: `parties.toml`. model: ignored, parties have one. known: its certificate, where it is
            given, in place of the first client's that the file names. keys: of the certificate;
            None: beside it, as .key, or in the same file.
    """

    def __init__(
        self, file: str, model: str = "g2d", known: Credentials | None = None,
        keys: Path | None = None,
    ) -> None:  # fmt: skip
        config = Config.read(file)
        certificate = known.certificate if known is not None else None
        if certificate is not None:
            own = certificate, keys or certificate
        elif named := config.files.get("clients"):
            own = named[0], keys or named[0].with_suffix(".key")
        else:
            raise SettingsError(f"{file} names no clients: give a certificate of your own")
        self._client = Client(config, own)

    def describe(self) -> Described:
        """Ask what the parties compute.

        Raises:
            MultipartyError: one of them is gone, or refuses.
        """
        with self._client as client:
            program, batch = client.program, client.batch
        return Described("g2d", program.shape, "FP64", classes=program.classes, batch=batch)

    def infer(self, x: Array, progress: Progress = silent) -> Answer:
        """Ask about inputs (n, *shape), in as many requests as the parties' limit makes of them.

        Raises:
            DataError: they are of another shape, or out of range; nothing was sent.
            MultipartyError: a party is gone, refuses, or has computed something else.
        """
        values: list[Array] = []
        numbers: list[int] = []
        with self._client as client:
            program, size = client.program, client.batch
            x = check_inputs(program, fitted(x, program.shape))
            for start in range(0, len(x), size):
                progress("asking", start, len(x))
                answer = client.infer(x[start : start + size])
                values.append(answer.logits)
                numbers.append(answer.number)
        progress("asking", len(x), len(x))
        others = tuple(sorted(set(numbers[:-1]) - {numbers[-1]}))
        each = tuple(n for n, part in zip(numbers, values, strict=True) for _ in part)
        return Answer(np.concatenate(values), numbers[-1], others, each)
