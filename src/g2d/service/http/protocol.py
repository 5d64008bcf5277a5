"""Open Inference Protocol v2: bodies to arrays and back, JSON and the binary tensor extension.

Pure functions over bytes and numpy, no HTTP and no torch. What does not fit is a `RequestError`
that says what was expected. Source: KServe, "Open Inference Protocol", and Triton's "Binary Tensor
Data Extension".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from g2d.core.types import Array

HEADER_LENGTH = b"inference-header-content-length"
LARGE = 1 << 16
"""Bytes from which on a body is counted before it is parsed, and parsed beside the loop."""

_VALUE = 32  # bytes of a value in JSON: 17 digits, sign, point, exponent, comma; and room
_MOST = 8 << 20  # bytes of a body, unless one input alone needs more
_MARKS = b",[{"  # each begins at most one value
_JSON = b"application/json"
_OCTETS = b"application/octet-stream"
_INPUT = "input"
SCORES, _LABEL = "logits", "label"
"""Names of the output: scores (n, classes) FP32; or "label": the class alone, (n, 1) INT64."""
_SHARED = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
DATATYPES = {"float32": "FP32", "float64": "FP64", "float16": "FP16", "int32": "INT32",
             "int64": "INT64"}  # fmt: skip


class RequestError(Exception):
    """A request that gets no answer: the HTTP status and one line that says why.

    `headers` belong to the status: with 405, which method is allowed; with 429 and 503, in how many
    seconds to ask again: 1, unless given.
    """

    def __init__(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        if status in (429, 503) and b"retry-after" not in dict(headers):
            headers = (*headers, (b"retry-after", b"1"))
        self.status, self.text, self.headers = status, text, headers


def _named(labels: Sequence[str]) -> dict[str, str]:
    """Names of classes as a parameter: a JSON text, since the protocol takes no lists there."""
    return {"labels": orjson.dumps(labels).decode()}


@dataclass(frozen=True)
class Model:
    """What is served under a name: one input's shape and dtype (numpy's), how many classes.

    `labels` are the classes' names in the order of the logits, where they have some.
    `vocabulary`: where inputs are token ids, how many there are; 0: nobody said. `output`: what is
    answered, "logits" or "label".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    classes: int
    labels: tuple[str, ...] = ()
    vocabulary: int = 0
    output: str = SCORES

    @property
    def scored(self) -> bool:
        """Whether scores are answered, not the label alone."""
        return self.output == SCORES

    @property
    def datatype(self) -> str:
        """The protocol's word for the input's dtype."""
        return DATATYPES[self.dtype]

    def largest(self, most: int) -> int:
        """Bytes that a body of `most` inputs may need, within reason; one input always fits."""
        one = _VALUE * math.prod(self.shape)
        return LARGE + max(one, min(one * most, _MOST - LARGE))

    def metadata(self, number: int | str) -> dict[str, Any]:
        """Describe the model; its one version is the live generation, or what stands for it."""
        scores = {"name": SCORES, "datatype": "FP32", "shape": [-1, self.classes]}
        label = {"name": _LABEL, "datatype": "INT64", "shape": [-1, 1]}
        return {
            "name": self.name,
            "versions": [str(number)],
            "platform": "g2d_pytorch",
            "inputs": [
                {"name": _INPUT, "datatype": self.datatype, "shape": [-1, *self.shape]},
            ],
            "outputs": [scores if self.scored else label],
            **({"parameters": _named(self.labels)} if self.labels else {}),
        }

    def config(self, most: int) -> dict[str, Any]:
        """Describe the model as Triton's model configuration does; `most`: inputs of a request."""
        kind = f"TYPE_{self.datatype}"
        scores = {"name": SCORES, "data_type": "TYPE_FP32", "dims": [self.classes]}
        label = {"name": _LABEL, "data_type": "TYPE_INT64", "dims": [1]}
        return {
            "name": self.name,
            "platform": "g2d_pytorch",
            "backend": "g2d",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": most,
            "input": [{"name": _INPUT, "data_type": kind, "dims": list(self.shape)}],
            "output": [scores if self.scored else label],
        }


@dataclass(frozen=True, slots=True)
class Query:
    """A request's inputs, shape (n, ...), and how it wants the answer."""

    x: Array
    id: str | None
    binary: bool


def parse(body: bytes, header_length: bytes | None, model: Model, most: int) -> Query:
    """Read the body of an infer request.

    Args:
        header_length: value of Inference-Header-Content-Length, None without that header.
        most: inputs that one request may hold.

    Raises:
        RequestError: 400, or 413 for too many inputs.
    """
    head, tail = _split(body, header_length)
    if len(head) > LARGE:
        _count(head, model, most)
    try:
        request = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    _expect(isinstance(request, dict), "the body must be a JSON object")
    identifier = request.get("id")
    _expect(identifier is None or isinstance(identifier, str), "id must be a text")
    inputs = request.get("inputs")
    _expect(isinstance(inputs, list) and len(inputs) == 1, "inputs must be a list of one tensor")
    _expect(isinstance(inputs[0], dict), "inputs[0] must be an object")
    x = _tensor(inputs[0], tail, model, most)
    return Query(x, identifier, _wants_binary(request, model.output))


def answer(
    query: Query,
    model: Model,
    told: Array,
    version: int | str,
    parameters: dict[str, Any] | None = None,
) -> tuple[bytes, list[Any]]:
    """Write the answer of one generation, or of several together: the body and its headers.

    Args:
        told: scores (n, classes) or labels (n,), as the model's output is. version: the
            generation's number, or what stands for it. parameters: what is said of the generation;
            None: the version.
    """
    kind = "FP32" if model.scored else "INT64"
    shape = list(told.shape) if model.scored else [len(told), 1]
    output: dict[str, Any] = {"name": model.output, "datatype": kind, "shape": shape}
    whole = {
        "model_name": model.name,
        "model_version": str(version),
        "parameters": {"generation": version} if parameters is None else parameters,
        "outputs": [output],
    }
    if model.labels:
        classes = told.argmax(1) if model.scored else told
        output["parameters"] = _named([model.labels[k] for k in classes.tolist()])
    if query.id is not None:
        whole["id"] = query.id
    if not query.binary:
        output["data"] = told.ravel()
        head = orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY)
        return head, [(b"content-type", _JSON), (b"content-length", b"%d" % len(head))]
    tail = told.astype("<f4" if model.scored else "<i8", copy=False).tobytes()
    output["parameters"] = output.get("parameters", {}) | {"binary_data_size": len(tail)}
    head = orjson.dumps(whole)
    return head + tail, [
        (b"content-type", _OCTETS),
        (HEADER_LENGTH, b"%d" % len(head)),
        (b"content-length", b"%d" % (len(head) + len(tail))),
    ]


def _expect(right: bool, text: str) -> None:
    if not right:
        raise RequestError(400, text)


def _split(body: bytes, header_length: bytes | None) -> tuple[bytes, bytes]:
    """Cut a body into its JSON and what follows it."""
    if header_length is None:
        return body, b""
    right = header_length.isdigit() and len(header_length) < 12 and int(header_length) <= len(body)
    _expect(right, "Inference-Header-Content-Length must be the length of the JSON in the body")
    return body[: int(header_length)], body[int(header_length) :]


def _count(head: bytes, model: Model, most: int) -> None:
    """Refuse JSON of more values than could fit: parsed, each "0," is 8 bytes, each "[]" is 64."""
    room = most * math.prod(model.shape) * (1 + len(model.shape)) + 1024
    if sum(head.count(mark) for mark in _MARKS) > room:
        raise RequestError(413, f"the body holds more values than {most} inputs have")


def _tensor(given: dict[str, Any], tail: bytes, model: Model, most: int) -> Array:
    """Read the one input tensor, from its JSON or from the bytes behind it."""
    _expect(given.get("name") == _INPUT, f"the input's name is {_INPUT!r}")
    _expect(given.get("datatype") == model.datatype, f"the input's datatype is {model.datatype}")
    shape = _shape(given.get("shape"), model, most)
    parameters = given.get("parameters", {})
    _expect(isinstance(parameters, dict), "parameters must be an object")
    _expect(not any(name in parameters for name in _SHARED), "shared memory is not offered")
    size = parameters.get("binary_data_size")
    if size is None:
        _expect(not tail, "bytes follow the JSON, and binary_data_size does not say what they are")
        x = _from_json(given.get("data"), shape, model.dtype)
    else:
        _expect("data" not in given, "a tensor has data or binary_data_size, not both")
        dtype = np.dtype(model.dtype).newbyteorder("<")
        right = math.prod(shape) * dtype.itemsize
        _expect(
            type(size) is int and size == right == len(tail),
            f"a binary tensor of shape {list(shape)} has {right} bytes behind the JSON, here"
            f" {len(tail)}",
        )
        x = np.frombuffer(tail, dtype).astype(model.dtype).reshape(shape)
    if x.dtype.kind == "f":
        _expect(bool(np.isfinite(x).all()), f"every value must be a finite {model.datatype}")
    elif model.vocabulary:
        right = bool((x >= 0).all()) and bool((x < model.vocabulary).all())
        _expect(right, f"every token id must lie in 0 to {model.vocabulary - 1}")
    return x


def _shape(given: Any, model: Model, most: int) -> tuple[int, ...]:
    right = (
        isinstance(given, list)
        and all(type(side) is int for side in given)
        and tuple(given[1:]) == model.shape
        and given[0] >= 1
    )
    _expect(right, f"the input's shape is [n, {', '.join(map(str, model.shape))}], n at least 1")
    if given[0] > most:
        raise RequestError(413, f"a request may hold {most} inputs, not {given[0]}; send several")
    return tuple(given)


def _from_json(data: Any, shape: tuple[int, ...], dtype: str) -> Array:
    """Take data flat or nested as the shape is; numpy sees numbers alone, as many as fit.

    A list of texts would become an array whose every place is as long as the longest.
    """
    values = _flat(data, shape)
    whole = np.dtype(dtype).kind == "i"
    kinds = {*map(type, values)}
    _expect(kinds <= {int, float}, "data must be numbers, flat or nested as the shape")
    _expect(not (whole and float in kinds), "data must be whole numbers")
    try:
        found = np.array(values, dtype if whole else np.float64)
    except OverflowError:
        bits = 8 * np.dtype(dtype).itemsize
        raise RequestError(400, f"data must be whole numbers of {bits} bits") from None
    with np.errstate(over="ignore"):  # too large for the dtype: not finite, which is refused
        return found.astype(dtype, copy=False).reshape(shape)


def _flat(data: Any, shape: tuple[int, ...]) -> Sequence[Any]:
    """Flatten data that is nested as the shape is, level by level: never more than fit."""
    count = math.prod(shape)
    wrong = f"data must hold {count} numbers, flat or nested as the shape"
    _expect(type(data) is list, "data must be a list, flat or nested as the shape")
    if data and type(data[0]) is list:
        _expect(len(data) == shape[0], wrong)
        for side in shape[1:]:
            _expect({*map(type, data)} == {list} and {*map(len, data)} == {side}, wrong)
            data = list(chain.from_iterable(data))
    _expect(len(data) == count, wrong)
    assert isinstance(data, list)
    return data


def _wants_binary(request: dict[str, Any], name: str) -> bool:
    """Whether the answer's tensor is wanted in binary; checks the outputs that are asked for."""
    parameters = request.get("parameters", {})
    _expect(isinstance(parameters, dict), "parameters must be an object")
    wanted = parameters.get("binary_data_output", False)
    outputs = request.get("outputs", [])
    right = isinstance(outputs, list) and len(outputs) <= 1
    _expect(right, f"outputs may name {name!r} alone")
    for output in outputs:
        _expect(isinstance(output, dict) and output.get("name") == name,
                f"the one output is {name!r}")  # fmt: skip
        own = output.get("parameters", {})
        _expect(isinstance(own, dict), "an output's parameters must be an object")
        unknown = own.get("classification") or any(name in own for name in _SHARED)
        _expect(not unknown, "classification and shared memory are not offered")
        wanted = own.get("binary_data", wanted)
    _expect(isinstance(wanted, bool), "binary_data and binary_data_output must be true or false")
    return bool(wanted)
