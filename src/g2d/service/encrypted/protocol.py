"""Bodies of encrypted requests and answers: a binary tensor of the Open Inference Protocol v2.

A ciphertext is bytes that only `protect.homomorphic` reads: a UINT8 tensor behind the JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from g2d.protect.asking import generation_of
from g2d.service.http.protocol import HEADER_LENGTH, LARGE, RequestError
from g2d.service.http.types import Headers

TENSOR, _DATATYPE = "ciphertext", "UINT8"
DRAWN = "drawn"
"""Parameter of an answer, true where its `generation` is a tag that stands for all that are live,
one of which was drawn for this request."""
KEY_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST = 256  # characters of a request's own id, and of a digest


@dataclass(frozen=True, slots=True)
class Query:
    """An encrypted request.

    Attributes:
        keys: the id of its client's keys. plan: digest of the plan that it was encrypted for.
    """

    ciphertext: bytes
    keys: str
    plan: str
    id: str | None = None


def write_query(query: Query) -> tuple[bytes, dict[str, str]]:
    """Write a request: its body and headers."""
    size = len(query.ciphertext)
    whole: dict[str, Any] = {
        "parameters": {"keys": query.keys, "plan": query.plan},
        "inputs": [_tensor(size)],
    }
    if query.id is not None:
        whole["id"] = query.id
    head = orjson.dumps(whole)
    return head + query.ciphertext, {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }


def read_query(body: bytes, header_length: bytes | None) -> Query:
    """Read a request.

    Args:
        header_length: value of Inference-Header-Content-Length; None without that header.

    Raises:
        RequestError: 400, it is none.
    """
    text = header_length or b""
    right = text.isdigit() and len(text) < 12 and int(text) <= min(len(body), LARGE)
    _expect(right, "Inference-Header-Content-Length must be the length of the JSON in the body")
    head, tail = body[: int(text)], body[int(text) :]
    try:
        request = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body does not begin with JSON: {error}") from None
    _expect(isinstance(request, dict), "the JSON must be an object")
    own = request.get("id")
    _expect(own is None or (isinstance(own, str) and len(own) <= _LONGEST), "id must be a text")
    about = request.get("parameters")
    _expect(isinstance(about, dict), "parameters must be an object with keys and plan")
    keys, plan = about.get("keys"), about.get("plan")
    _expect(
        isinstance(keys, str) and bool(KEY_ID.fullmatch(keys)),
        "parameters.keys must be the id that POST /encrypted/keys answered",
    )
    _expect(
        isinstance(plan, str) and len(plan) <= _LONGEST,
        "parameters.plan must be the digest of the plan",
    )
    _expect(
        request.get("inputs") == [_tensor(len(tail))] and bool(tail),
        f"inputs must be one tensor {TENSOR!r}, {_DATATYPE}, of the {len(tail)} bytes behind the"
        " JSON",
    )
    return Query(tail, keys, plan, own)


def write_answer(
    query: Query, ciphertext: bytes, model: str, version: int | str, about: dict[str, Any]
) -> tuple[bytes, Headers]:
    """Write an answer: its body and headers.

    Args:
        version: the number of the generation that answered all of the query, or what stands for
            it. about: what is said of it.
    """
    whole = {
        "model_name": model,
        "model_version": str(version),
        "parameters": about,
        "outputs": [_tensor(len(ciphertext))],
    }
    if query.id is not None:
        whole["id"] = query.id
    head = orjson.dumps(whole)
    return head + ciphertext, [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH, b"%d" % len(head)),
        (b"content-length", b"%d" % (len(head) + len(ciphertext))),
    ]


def read_answer(body: bytes, header_length: str) -> tuple[bytes, int | str | None]:
    """Read an answer: its ciphertext, and what names the generation that all of it is of.

    None: it may be any that is live, and the service does not say which.

    Raises:
        ValueError, LookupError, TypeError: it is none.
    """
    size = int(header_length)
    if not 0 < size < len(body):
        raise ValueError(size)
    told = orjson.loads(body[:size])
    if told["outputs"] != [_tensor(len(body) - size)]:
        raise ValueError("no ciphertext")
    named = generation_of(told["parameters"]["generation"])
    if named is None:
        raise ValueError("no generation")
    return body[size:], None if told["parameters"].get(DRAWN) else named


def _tensor(size: int) -> dict[str, Any]:
    return {
        "name": TENSOR, "datatype": _DATATYPE, "shape": [size],
        "parameters": {"binary_data_size": size},
    }  # fmt: skip


def _expect(right: bool, text: str) -> None:
    if not right:
        raise RequestError(400, text)
