"""Suspects: a network in a file, or a service of which nothing but answers is known.

A service speaks the Open Inference Protocol v2, and may answer scores (rounded or not) or labels:
see `protect.asking`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from g2d.core.exchange import Credentials, ExchangeError
from g2d.errors import SuspectError
from g2d.protect.asking import Client
from g2d.tasks.building import build_model, seeded
from g2d.tasks.builtin import Blueprint
from g2d.tasks.inference import predict
from g2d.weights.checkpoints import load_whole, pack
from g2d.weights.foreign import fit_state
from g2d.weights.layout import ties_of, whole_state


@dataclass(frozen=True)
class ModelSuspect:
    """A network in a file: whatever `load_checkpoint` reads, under the model's names or others.

    `dtype` is what it takes, if that is not what triggers are; `notes`: what was done to names.
    """

    name: str
    digest: str
    shape: tuple[int, ...]
    classes: int
    model: nn.Module = field(repr=False)
    dtype: torch.dtype | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, task: Blueprint) -> Self:
        """Load a file, or a folder of Hugging Face's, into a task's model.

        Raises:
            CheckpointError: it cannot be read, or does not fit the model.
        """
        with seeded(0):
            model = build_model(task.factory)
        state, data = load_whole(path)
        fitted = fit_state(whole_state(model), state, path.name, ties_of(model))
        model.load_state_dict(fitted.state)
        model.eval().requires_grad_(False)
        digest = f"sha256:{hashlib.sha256(data or pack(fitted.state)).hexdigest()}"
        return cls(path.name, digest, task.shape, task.classes, model, task.dtype, fitted.notes)

    def labels(self, x: Tensor) -> Tensor:
        """Its label for each input."""
        return predict(self.model, x if self.dtype is None else x.to(self.dtype)).argmax(1)


class ServiceSuspect:
    """A service. What it maps is asked for when this is made.

    Args:
        url: root of the service, or of its model. model: its name there. known: who asks. names:
            the classes' names in order, where answers are names and the service does not number
            them. wait: sleeps, while it is busy.

    Raises:
        SuspectError: it cannot be reached, or describes no classifier.
        SettingsError: a certificate of ours cannot be used.
    """

    digest = ""

    def __init__(
        self,
        url: str,
        model: str = "g2d",
        known: Credentials | None = None,
        *,
        names: Sequence[str] = (),
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name, self._client = url, Client(url, model, known, names=names, wait=wait)
        with _suspected():
            self._described = self._client.describe()
        self.shape, self.classes = self._described.shape, self._described.classes

    def labels(self, x: Tensor) -> Tensor:
        """Its label for each input, in requests as large as it takes."""
        with _suspected():
            answer = self._client.ask(self._described, x.numpy())
        if not np.isfinite(answer.values).all():
            raise SuspectError(
                f"{self.name} answers scores that are not finite: they name no class"
            )
        return torch.from_numpy(answer.labels)


@contextmanager
def _suspected() -> Iterator[None]:
    try:
        yield
    except ExchangeError as error:
        raise SuspectError(str(error)) from error
