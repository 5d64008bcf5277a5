"""A client of the Open Inference Protocol v2, for commands that look at a service from outside.

Knows no torch. How a request travels is in `core.exchange`. What is asked, and what answers tell,
is decided by whoever uses it: watermarks ask suspects, canaries ask services of one's own.

KServe, Open Inference Protocol v2; the answers of Triton's classification extension are read, too.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote, unquote

import numpy as np

from g2d.core.exchange import TOKEN_VARIABLE, Credentials, ExchangeError, Reply, ask
from g2d.core.types import Array
from g2d.errors import DAMAGE

_KINDS = {"f": "FP", "i": "INT", "u": "UINT"}
_BATCH = 16  # inputs a request, where a service does not say how many it takes
_TRIES, _LONGEST = 5, 30.0  # of a service that is busy; seconds between them
_ADDRESS = re.compile(r"(.+?)(?:/v2(?:/models/([^/]+))?)?/?")
_TAG = re.compile(r"t[0-9a-f]{16}")  # what g2d's own service says in place of a number
_WHOLE = 2.0**53  # below it a float tells whole numbers apart


@dataclass(frozen=True)
class Described:
    """What a service says of its model.

    Attributes:
        name, shape, datatype: of its input, without the batch. number: of its live version, where
            that is a number. output: the one to read; "": the first. classes: how many it scores,
            or names; 0: it does not say. names: of the classes, in order. batch: inputs a request.
            tagged: several generations are live; only who may observe is told which answered.
    """

    name: str
    shape: tuple[int, ...]
    datatype: str
    number: int | None = None
    output: str = ""
    classes: int = 0
    names: tuple[str, ...] = ()
    batch: int = _BATCH
    tagged: bool = False


@dataclass(frozen=True, eq=False)
class Answer:
    """Scores (n, classes), or classes alone (n,) int64.

    Attributes:
        number: the generation that says so, if any does. others: further ones that answered parts
            of what was asked, where the service rotated in between. each: for each input what
            names the generation that answered it, its number, or a tag that stands for it alone;
            None: that is not told; (): it was not kept.
    """

    values: Array
    number: int | None
    others: tuple[int, ...] = ()
    each: tuple[int | str | None, ...] = ()

    @property
    def mixed(self) -> bool | None:
        """Whether several generations answered; None: who answered does not tell."""
        if len({name for name in self.each if name is not None}) > 1 or self.others:
            return True
        return None if None in self.each and len(self.each) > 1 else False

    @property
    def labels_only(self) -> bool:
        """Whether only classes came."""
        return self.values.ndim == 1

    @property
    def labels(self) -> Array:
        """The class of each input, (n,) int64."""
        return self.values if self.labels_only else self.values.argmax(1).astype(np.int64)


class Client:
    """Asks one model of a service, a connection a question.

    Args:
        url: root of the service, or of its model. model: its name there. known: who asks. names:
            the classes' names in order, where answers are names and the service does not number
            them. timeout: seconds an answer may take. wait: sleeps, while a service is busy.
    """

    def __init__(
        self,
        url: str,
        model: str = "g2d",
        known: Credentials | None = None,
        *,
        names: Sequence[str] = (),
        timeout: float = 30.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        found = _ADDRESS.fullmatch(url)
        root, named = (found[1], unquote(found[2] or "")) if found else (url, "")
        self.url, self._known, self._names = url, known or Credentials(), tuple(names)
        self._timeout, self._wait = timeout, wait
        self._model = f"{root}/v2/models/{quote(named or model, safe='')}"

    def describe(self) -> Described:
        """Ask what is served.

        Raises:
            ExchangeError: it cannot be reached, refuses, or is no such service.
            SettingsError: a certificate of ours cannot be used.
        """
        told = self._json(self._ask("GET", self._model))
        try:
            source, versions = told["inputs"][0], told.get("versions") or [None]
            shape = tuple(int(side) for side in source["shape"][1:])
            name, datatype = str(source["name"]), str(source["datatype"])
            output, classes = _output_of(told.get("outputs") or [])
            names = self._names or _names_in(told)
            number, tagged = _number(versions[-1]), bool(_TAG.fullmatch(str(versions[-1])))
        except DAMAGE as error:
            raise ExchangeError(
                f"{self.url} describes no model of one input and outputs, each with name, datatype"
                f" and shape, as the Open Inference Protocol v2 does: {str(told)[:200]}"
            ) from error
        most = self._largest()
        classes = classes or len(names)
        return Described(name, shape, datatype, number, output, classes, names, most, tagged)

    def ask(self, described: Described, x: Array) -> Answer:
        """Send inputs (n, ...), n > 0, in requests as large as the service takes.

        Raises:
            ExchangeError: it does not answer, refuses, or answers neither scores nor classes.
        """
        size = described.batch
        parts = [self._infer(described, x[i : i + size]) for i in range(0, len(x), size)]
        return self._joined(parts)

    def _infer(self, described: Described, x: Array) -> Answer:
        tensor = {
            "name": described.name, "shape": list(x.shape), "datatype": described.datatype,
            "data": x.ravel().tolist(),
        }  # fmt: skip
        reply = self._ask("POST", f"{self._model}/infer", {"inputs": [tensor]})
        if reply.status == 413 and len(x) > 1:  # its body is too large, whatever it promised
            half = len(x) // 2
            return self._joined([self._infer(described, part) for part in (x[:half], x[half:])])
        told = self._json(reply)
        try:
            outputs = {output.get("name"): output for output in told["outputs"]}
            output = outputs.get(described.output) or told["outputs"][0]
            values = _values_in(output, len(x), described.classes, described.names)
            about = told.get("parameters")
            number = about.get("generation") if isinstance(about, dict) else None
            said = _number(told.get("model_version") if number is None else number)
            return Answer(values, said, (), (said,) * len(x))
        except DAMAGE:
            self._refuse(
                f"answers neither scores nor a label for each of {len(x)} inputs: {str(told)[:200]}"
            )

    def _joined(self, parts: Sequence[Answer]) -> Answer:
        labels_only = any(part.labels_only for part in parts)
        try:
            values = np.concatenate([p.labels if labels_only else p.values for p in parts])
        except ValueError:
            self._refuse("answers some inputs with more scores than others")
        number = parts[0].number
        heard = (k for part in parts for k in (part.number, *part.others))
        others = tuple(k for k in heard if k is not None and k != number)
        return Answer(values, number, others, tuple(name for part in parts for name in part.each))

    def _largest(self) -> int:
        """How many inputs a request may hold."""
        reply = self._ask("GET", f"{self._model}/config")
        try:
            most = json.loads(reply.body)["max_batch_size"] if reply.status == 200 else _BATCH
            return most if type(most) is int and most >= 1 else 1
        except DAMAGE:
            return _BATCH

    def _json(self, reply: Reply) -> dict[str, Any]:
        if reply.status in (401, 403):
            self._refuse(
                f"answered {reply.said}; give a token that it takes, with --token-file or"
                f" ${TOKEN_VARIABLE}, or a certificate, with --client-cert"
            )
        if reply.status != 200:
            self._refuse(f"answered {reply.said}")
        try:
            told = json.loads(reply.body)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            self._refuse("did not answer with an object in JSON")
        return told

    def _ask(self, method: str, url: str, body: Any = None) -> Reply:
        """Ask, and again after a while where it is busy."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        for left in reversed(range(_TRIES)):
            reply = ask(method, url, data, headers, known=self._known, timeout=self._timeout)
            if reply.status not in (429, 503) or not left:
                break
            self._wait(_pause(reply))
        return reply

    def _refuse(self, what: str) -> NoReturn:
        raise ExchangeError(f"{self.url} {what}")


def generation_of(told: Any) -> int | str | None:
    """What names a generation: its number, or the tag of one client's; None: it is neither."""
    if type(told) is int:
        return told if 0 <= told < _WHOLE else None
    return told if isinstance(told, str) and _TAG.fullmatch(told) else None


def datatype_of(x: Array) -> str:
    """The protocol's word for the dtype of an array."""
    return f"{_KINDS.get(x.dtype.kind, x.dtype.kind)}{8 * x.dtype.itemsize}"


def _pause(reply: Reply) -> float:
    """Seconds until a busy service is asked again."""
    try:
        pause = float(reply.headers.get("retry-after", "1"))
    except ValueError:
        pause = 1.0
    return min(max(pause, 0.1), _LONGEST) if math.isfinite(pause) else 1.0


# --- what is told --------------------------------------------------------------------------------


def _output_of(outputs: Any) -> tuple[str, int]:
    """The output to read, and how many classes it scores; 0: it answers labels, or says nothing."""
    for output in outputs:
        shape, scores = output["shape"], str(output["datatype"]).startswith(("FP", "BF"))
        if scores and len(shape) >= 2 and int(shape[-1]) > 1:
            return str(output["name"]), int(shape[-1])
    return (str(outputs[0]["name"]) if outputs else ""), 0


def _names_in(told: Any) -> tuple[str, ...]:
    """The classes' names in a model's metadata, as g2d's own service gives them."""
    text = (told.get("parameters") or {}).get("labels", "[]")
    names = json.loads(text) if isinstance(text, str) else text
    return tuple(str(name) for name in names)


def _number(told: Any) -> int | None:
    """A generation's number, as g2d's own service says it."""
    text = str(told)
    return int(text) if text.isdecimal() and len(text) < 17 else None


# --- what is answered ----------------------------------------------------------------------------


def _values_in(output: Any, count: int, classes: int, names: Sequence[str]) -> Array:
    """Scores (count, classes), or the labels (count,) int64 that numbers or names tell."""
    data = np.array(output["data"])
    flat = data.reshape(-1)
    if data.dtype.kind == "U":
        return np.array([_number_of(str(text), names) for text in _first(flat, count)], np.int64)
    if data.dtype.kind not in "iuf":
        raise ValueError
    width = classes or int((output.get("shape") or [len(flat) // count])[-1])
    if width > 1 and len(flat) == count * width:  # a single score would be a label
        return flat.reshape(count, width)
    first = _first(flat, count)
    if not (np.abs(first) < _WHOLE).all() or (first != np.rint(first)).any():  # NaN is refused
        raise ValueError
    return first.astype(np.int64)


def _first(flat: Array, count: int) -> Array:
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
