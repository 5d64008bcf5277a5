"""Targets: what an attacker reaches, from a frozen model to a live service.

The same attack runs on each. How an attack searches does not live here, nor does what it won: that
is logged by `query_log`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import torch
from torch import Tensor, nn

from g2d.core.exchange import ExchangeError, ask
from g2d.core.types import Logits
from g2d.errors import G2DError, SettingsError
from g2d.tasks.inference import predict


class TargetError(G2DError):
    """A target died, answered with an error or sent what is not an answer."""


class Target(Protocol):
    """Something that answers inputs with scores."""

    @property
    def classes(self) -> int:
        """Number of scores an input."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        ...

    @property
    def queries(self) -> int:
        """Inputs asked about so far."""
        ...

    @property
    def number(self) -> int | None:
        """Which generation or network answered last; None where that is not known."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Answer inputs (n, *shape) with scores (n, classes); counts n queries."""
        ...

    def open(self) -> nn.Module | None:
        """White-box access to what answers now; None where there is an API alone."""
        ...


class Fixed:
    """A frozen model, or one generation with its number."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], classes: int, number: int | None = None
    ) -> None:
        self.classes, self.shape, self.queries, self.number = classes, shape, 0, number
        self._model = model

    def predict(self, x: Tensor) -> Tensor:
        """Answer inputs."""
        self.queries += len(x)
        return predict(self._model, x)

    def open(self) -> nn.Module:
        """The model."""
        return self._model


class Rotating:
    """A rotating defence: networks that are live one after another, by a clock.

    A request (one call of `predict`) sees one network from start to end. After the last network the
    first one follows: give enough of them.

    Args:
        every: rotate before the request that follows so many queries. seconds: rotate by time.
            Neither: never.
        clock: seconds that only rise.

    Raises:
        SettingsError: there are no models, both clocks, or a period that is not positive.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        shape: tuple[int, ...],
        classes: int,
        *,
        every: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not models:
            raise SettingsError("a rotating target needs at least one network")
        if every is not None and seconds is not None:
            raise SettingsError("rotate by queries (`every`) or by `seconds`, not both")
        if (every is not None and every < 1) or (seconds is not None and seconds <= 0):
            raise SettingsError(f"a period must be positive, not {every or seconds}")
        self.classes, self.shape, self.queries = classes, shape, 0
        self.number: int | None = None
        self._models, self._every, self._seconds = list(models), every, seconds
        self._clock, self._began = clock, clock()

    def turns(self) -> int:
        """Rotations so far."""
        if self._every is not None:
            return self.queries // self._every
        if self._seconds is not None:
            return int((self._clock() - self._began) / self._seconds)
        return 0

    def predict(self, x: Tensor) -> Tensor:
        """Answer a request from the network that is live when it arrives."""
        self.number = self.turns() % len(self._models)
        self.queries += len(x)
        return predict(self._models[self.number], x)

    def open(self) -> nn.Module:
        """The network that is live now."""
        return self._models[self.turns() % len(self._models)]


class HttpTarget:
    """A live HTTP service that speaks the Open Inference Protocol v2 with JSON bodies.

    Args:
        url: root of the service. model: its name there. timeout: seconds until an answer has come
            whole. batch: inputs a request. Shape and classes are asked for when it is made.

    Raises:
        TargetError: it cannot be reached, answers with an error, or with what is not an answer.
    """

    def __init__(self, url: str, model: str, *, timeout: float = 10.0, batch: int = 128) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TargetError(f"{url!r} is not the address of a service; give http://host:port")
        self.url, self.queries = url, 0
        self.number: int | None = None
        self._root, self._timeout, self._batch = f"{parts.scheme}://{parts.netloc}", timeout, batch
        self._path = f"{parts.path.rstrip('/')}/v2/models/{quote(model, safe='')}"
        metadata = self._ask("GET", self._path)
        try:
            source, output = metadata["inputs"][0], metadata["outputs"][0]
            self._name = str(source["name"])
            self.shape = tuple(int(side) for side in source["shape"][1:])
            self.classes = int(output["shape"][-1])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TargetError(
                f"{url} describes model {model!r} without inputs[0] and outputs[0] of name and "
                f"shape: {str(metadata)[:200]}"
            ) from error
        if self.classes < 2 or any(side < 1 for side in self.shape):
            raise TargetError(
                f"{url}: model {model!r} maps {self.shape} to {self.classes} classes; an attack "
                "needs every side of an input and at least 2 classes"
            )

    def predict(self, x: Tensor) -> Tensor:
        """Ask the service; what was sent counts, answered or not."""
        return torch.cat([self._infer(part) for part in x.split(self._batch)])

    def open(self) -> None:
        """There is an API alone."""

    def _infer(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        values = x.detach().float().flatten().tolist()
        inputs = {"name": self._name, "shape": list(x.shape), "datatype": "FP32", "data": values}
        answer = self._ask("POST", f"{self._path}/infer", json.dumps({"inputs": [inputs]}))
        try:
            output = answer["outputs"][0]
            shape = [int(side) for side in output["shape"]]
            scores = torch.tensor(output["data"], dtype=torch.float32).flatten()
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise TargetError(f"{self.url} answered without outputs[0] of numbers") from error
        expected = [len(x), self.classes]
        if shape != expected or len(scores) != len(x) * self.classes:
            raise TargetError(
                f"{self.url} answered {len(scores)} numbers of shape {shape}, expected {expected}"
            )
        if not bool(scores.isfinite().all()):
            raise TargetError(f"{self.url} answered scores that are not finite")
        self.number = _number(answer)
        return scores.reshape(len(x), self.classes)

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        sent = None if body is None else body.encode()
        address = f"{self._root}{path}"
        headers = {"Content-Type": "application/json"}
        try:
            reply = ask(method, address, sent, headers, timeout=self._timeout)
        except ExchangeError as error:
            raise TargetError(str(error)) from error
        if reply.status != 200:
            raise TargetError(f"{address} answered {reply.said}")
        try:
            answer = json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise TargetError(f"{address} did not answer in JSON") from error
        if not isinstance(answer, dict):
            raise TargetError(f"{address} answered JSON that is not an object")
        return answer


def _number(answer: dict[str, Any]) -> int | None:
    """The generation in an answer's parameters, or its model version where that is a number."""
    parameters = answer.get("parameters")
    told = parameters.get("generation") if isinstance(parameters, dict) else None
    text = str(answer.get("model_version") if told is None else told)
    return int(text) if text.isdecimal() else None


# --- scores --------------------------------------------------------------------------------------


def describe_scores(scores: Tensor) -> str:
    """Say whether scores (n, classes) are "logits" or "probabilities" (rows >= 0 that sum to 1)."""
    whole = (scores.sum(1) - 1).abs() <= 1e-3
    probable = len(scores) > 0 and bool((scores >= 0).all()) and bool(whole.all())
    return "probabilities" if probable else "logits"


def check_logits(model: Logits, x: Tensor) -> str:
    """Return a note where a model answers probabilities; an empty string where it is logits."""
    if describe_scores(predict(model, x)) == "logits":
        return ""
    return (
        "the model answers probabilities, not logits: gradient attacks take their logarithm, which "
        "undoes the softmax up to a constant"
    )


class _LogProbabilities(nn.Module):
    """The logarithm of a model's probabilities: logits up to a constant for every input."""

    def __init__(self, model: Logits) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Tensor:
        probabilities = self.inner(x)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def as_logits(model: Logits) -> nn.Module:
    """Wrap a model of probabilities so that it answers their logarithm."""
    return _LogProbabilities(model)
