"""Suspects: a network in a file, or a service of which nothing but answers is known.

A service speaks the Open Inference Protocol v2, and may answer scores (rounded or not) or labels.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import quote, unquote

import numpy as np
import torch
from torch import Tensor, nn

from g2d.core.files import MOST_WEIGHTS, read_plain
from g2d.errors import DAMAGE, SettingsError, SuspectError
from g2d.protect.watermark.exchange import ExchangeError, Reply, ask
from g2d.tasks.building import build_model, seeded
from g2d.tasks.builtin import Blueprint
from g2d.tasks.inference import predict
from g2d.weights.checkpoints import load_checkpoint, pack
from g2d.weights.foreign import fit_state
from g2d.weights.layout import ties_of, whole_state

_BATCH = 16  # inputs a request, where a service does not say how many it takes
_TRIES, _LONGEST = 5, 30.0  # of a service that is busy; seconds between them
_MODELS = "/v2/models/"
_ADDRESS = re.compile(r"(.+?)(?:/v2(?:/models/([^/]+))?)?/?")


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
        fitted = fit_state(whole_state(model), load_checkpoint(path), path.name, ties_of(model))
        model.load_state_dict(fitted.state)
        model.eval().requires_grad_(False)
        data = pack(fitted.state) if path.is_dir() else read_plain(path, MOST_WEIGHTS, follow=True)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return cls(path.name, digest, task.shape, task.classes, model, task.dtype, fitted.notes)

    def labels(self, x: Tensor) -> Tensor:
        """Its label for each input."""
        return predict(self.model, x if self.dtype is None else x.to(self.dtype)).argmax(1)


class ServiceSuspect:
    """A service. What it maps is asked for when this is made.

    Args:
        url: root of the service, or of its model. model: its name there. token: for
            `Authorization: Bearer`. ca: as in `ask`. names: the classes' names in order, where
            answers are names and the service does not number them.

    Raises:
        SuspectError: it cannot be reached, or describes no classifier.
    """

    digest = ""

    def __init__(
        self,
        url: str,
        model: str = "g2d",
        *,
        token: str = "",
        ca: str = "",
        names: Sequence[str] = (),
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise SettingsError("the token holds what no header may: expected ASCII without spaces")
        root, named = _parts(url)
        self.name = url
        self._model = f"{root}{_MODELS}{quote(named or model, safe='')}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ca, self._wait = ca, wait
        told = self._get(self._model)
        try:
            source = told["inputs"][0]
            self._input, self._datatype = str(source["name"]), str(source["datatype"])
            self.shape = tuple(int(side) for side in source["shape"][1:])
            self._output, self.classes = _output_of(told["outputs"])
            self._names = tuple(names) or _names_in(told)
        except DAMAGE as error:
            raise SuspectError(
                f"{url} describes no model of one input and outputs, each with name and shape:"
                f" {str(told)[:200]}"
            ) from error
        self.classes = self.classes or len(self._names)
        self._batch = self._largest()

    def labels(self, x: Tensor) -> Tensor:
        """Its label for each input, in requests as large as it takes."""
        return torch.cat([self._infer(part) for part in x.split(self._batch)])

    def _infer(self, x: Tensor) -> Tensor:
        tensor = {
            "name": self._input, "shape": list(x.shape), "datatype": self._datatype,
            "data": x.flatten().tolist(),
        }  # fmt: skip
        reply = self._ask("POST", f"{self._model}/infer", {"inputs": [tensor]})
        if reply.status == 413 and len(x) > 1:  # its body is too large, whatever it promised
            half = len(x) // 2
            return torch.cat([self._infer(x[:half]), self._infer(x[half:])])
        answer = self._json(reply)
        try:
            outputs = {output["name"]: output for output in answer["outputs"]}
            output = outputs.get(self._output) or answer["outputs"][0]
            found = _labels_in(output, len(x), self.classes, self._names)
        except DAMAGE:
            self._refuse(f"answers neither scores nor a label for each input: {str(answer)[:200]}")
        return torch.from_numpy(found)

    def _largest(self) -> int:
        """How many inputs a request may hold."""
        reply = self._ask("GET", f"{self._model}/config")
        try:
            most = json.loads(reply.body)["max_batch_size"] if reply.status == 200 else _BATCH
            return most if type(most) is int and most >= 1 else 1
        except DAMAGE:
            return _BATCH

    def _get(self, url: str) -> Any:
        return self._json(self._ask("GET", url))

    def _json(self, reply: Reply) -> Any:
        if reply.status in (401, 403):
            self._refuse(f"answered {reply.status}: give a token that it takes, with --token")
        if reply.status != 200:
            self._refuse(f"answered {reply.said}")
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError):
            self._refuse("did not answer in JSON")

    def _ask(self, method: str, url: str, body: Any = None) -> Reply:
        """Ask, and again after a while where it is busy."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | self._headers
        for left in reversed(range(_TRIES)):
            try:
                reply = ask(method, url, data, headers, ca=self._ca)
            except ExchangeError as error:
                raise SuspectError(str(error)) from error
            if reply.status not in (429, 503) or not left:
                break
            self._wait(_pause(reply))
        return reply

    def _refuse(self, what: str) -> NoReturn:
        raise SuspectError(f"{self.name} {what}")


def _parts(url: str) -> tuple[str, str]:
    """A service's root, and the model's name where the address goes on to it."""
    found = _ADDRESS.fullmatch(url)
    return (found[1], unquote(found[2] or "")) if found else (url, "")


def _pause(reply: Reply) -> float:
    """Seconds until a busy service is asked again."""
    try:
        pause = float(reply.headers.get("retry-after", "1"))
    except ValueError:
        pause = 1.0
    return min(max(pause, 0.1), _LONGEST) if math.isfinite(pause) else 1.0


def _output_of(outputs: Any) -> tuple[str, int]:
    """The output to read, and how many classes it scores; 0: it answers labels."""
    for output in outputs:
        shape, scores = output["shape"], str(output["datatype"]).startswith(("FP", "BF"))
        if scores and len(shape) >= 2 and int(shape[-1]) > 1:
            return str(output["name"]), int(shape[-1])
    return str(outputs[0]["name"]), 0


def _names_in(told: Any) -> tuple[str, ...]:
    """The classes' names in a model's metadata, as g2d's own service gives them."""
    text = (told.get("parameters") or {}).get("labels", "[]")
    names = json.loads(text) if isinstance(text, str) else text
    return tuple(str(name) for name in names)


def _labels_in(output: Any, count: int, classes: int, names: Sequence[str]) -> np.ndarray[Any, Any]:
    """The labels (count,) int64 in an output of scores, of numbers of classes, or of names."""
    data = np.array(output["data"])
    flat = data.reshape(-1)
    if data.dtype.kind == "U":
        return np.array([_number_of(str(text), names) for text in _first(flat, count)], np.int64)
    if data.dtype.kind not in "iuf" or not np.isfinite(flat).all():
        raise ValueError
    width = classes or int(output["shape"][-1])
    if width > 1 and len(flat) == count * width:  # a single score would be a label
        return flat.reshape(count, width).argmax(1).astype(np.int64)
    labels = _first(flat, count).astype(np.int64)
    if (labels != _first(flat, count)).any():
        raise ValueError
    return labels


def _first(flat: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """The first of each input's answers, best first as Triton's classification has them."""
    if len(flat) % count or not len(flat):
        raise ValueError
    return flat.reshape(count, -1)[:, 0]


def _number_of(text: str, names: Sequence[str]) -> int:
    """The class that a text names: by name, number, or Triton's "score:number:name"."""
    if text in names:
        return names.index(text)
    parts = text.split(":")
    return int(parts[1] if len(parts) > 1 else text)
