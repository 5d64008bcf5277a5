"""Messages between server and clients: bytes that are safetensors with a small JSON header.

Nothing is unpickled, and no room is taken before the header says what was expected. What a message
may say at this moment is judged in `checks`. Knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy

from g2d.core.types import Array
from g2d.errors import FederatedError
from g2d.training.federated.form import Form

FORMAT = 1
ANSWER, ROUND, MEMBER = "answer", "round", "member"
_KEY = "g2d"  # of the header, in safetensors' metadata; one key, for its order is not kept
_FIELDS = {
    ANSWER: {"format", "kind", "stage", "round", "identity", "base"},
    ROUND: {"format", "kind", "stage", "round", "plan"},
    MEMBER: {"format", "kind", "stage"},
}
_WEIGHTS = re.compile(r"weight|example|sample|count|size|records|num_", re.IGNORECASE)
_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STAGE = re.compile(r"[a-z]{1,20}-[0-9]{1,9}")
_MOST_HEADER = 1 << 16  # bytes, beside what the names of the tensors take
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True)
class Message:
    """What was sent.

    Attributes:
        kind: ANSWER (of a client), ROUND (what clients are to train) or MEMBER (a network that
            attacks are crafted on). stage: such as "base-0" or "member-12". number: of the round.
        identity: who answers. base: digest of the round's parameters, which an answer is about.
        vector: (P,) float32: parameters, or of an answer their change. plan: how to train.
    """

    kind: str
    stage: str
    vector: Array = field(repr=False)
    number: int = 0
    identity: str = ""
    base: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)


def digest_of(vector: Array) -> str:
    """SHA-256 of a vector's bytes, float32, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").tobytes()).hexdigest()


def most_bytes(form: Form) -> int:
    """The longest message of a form."""
    return 8 + _most_header(form) + 4 * form.size


def _most_header(form: Form) -> int:
    return _MOST_HEADER + form.described


def encode(message: Message, form: Form) -> bytes:
    """The bytes of a message; equal messages give equal bytes."""
    header: dict[str, Any] = {"format": FORMAT, "kind": message.kind, "stage": message.stage}
    if message.kind != MEMBER:
        header["round"] = message.number
    if message.kind == ANSWER:
        header |= {"identity": message.identity, "base": message.base}
    if message.kind == ROUND:
        header["plan"] = dict(message.plan)
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    tensors = {n: np.array(t, np.float32, order="C") for n, t in form.split(message.vector).items()}
    return safetensors.numpy.save(tensors, {_KEY: text})


def decode(data: bytes, form: Form, kind: str) -> Message:
    """Read a message of one kind.

    Raises:
        FederatedError: it is too long, no safetensors, of other tensors, not finite, or says what
            no such message says. `reason` is one of `checks.REASONS`.
    """
    entries, start = _entries(data, form)
    header = _header(entries.pop("__metadata__", None), kind)
    _check_tensors(entries, form)
    vector = _joined(data, start, entries, form)
    if not np.isfinite(vector).all():
        bad = int((~np.isfinite(vector)).sum())
        raise FederatedError(
            f"{bad} of its {form.size} values are NaN or infinite; expected finite ones", "values"
        )
    return Message(
        kind, header["stage"], vector, header.get("round", 0), header.get("identity", ""),
        header.get("base", ""), header.get("plan", {}),
    )  # fmt: skip


def _entries(data: bytes, form: Form) -> tuple[dict[str, Any], int]:
    """The JSON header of safetensors bytes, read within bounds, and where values begin."""
    if not data:
        raise FederatedError("it is empty", "empty")
    if len(data) > most_bytes(form):
        raise FederatedError(
            f"it has {len(data)} bytes, and one of this model has {most_bytes(form)} at most",
            "size",
        )
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, _most_header(form)):
        if data.startswith(_PICKLES):  # so does the length of a sound header of 640 bytes
            raise FederatedError(
                "it is a pickle or a PyTorch file, which is never loaded; send safetensors",
                "format",
            )
        raise FederatedError(
            f"it is no safetensors message: a header of {length} bytes does not fit", "format"
        )
    try:
        entries = json.loads(str(data[8 : 8 + length], "utf-8"), object_pairs_hook=_once)
    except (RecursionError, ValueError) as error:
        raise FederatedError(f"its header cannot be read: {error}", "format") from None
    if not isinstance(entries, dict):
        raise FederatedError("its header is no JSON object", "format")
    return entries, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _check_tensors(entries: Mapping[str, Any], form: Form) -> None:
    """Compare what a header says of its tensors with the form, before room is taken for any."""
    if foreign := sorted(entries.keys() - form.shapes.keys()):
        raise FederatedError(f"it has a tensor {_shown(foreign[0])} that the model lacks", "names")
    if missing := [name for name in form.shapes if name not in entries]:
        raise FederatedError(f"tensor {missing[0]!r} is missing", "names")
    for name, shape in form.shapes.items():
        about = entries[name] if isinstance(entries[name], dict) else {}
        if about.get("dtype") != "F32":
            raise FederatedError(
                f"tensor {name!r} is {_shown(about.get('dtype'))}, expected F32", "type"
            )
        if about.get("shape") != list(shape) or not all(type(n) is int for n in about["shape"]):
            raise FederatedError(
                f"tensor {name!r} has shape {_shown(about.get('shape'))}, expected {list(shape)}",
                "shape",
            )


def _joined(data: bytes, start: int, entries: Mapping[str, Any], form: Form) -> Array:
    """The values of all tensors (P,), which lie side by side to the end, as safetensors demands.

    Read in place: `safetensors` itself takes each tensor into an array of its own, and those had to
    be joined again, which took half of the time of reading an answer.
    """
    spans = {name: _span(entries[name].get("data_offsets")) for name in form.shapes}
    order, end = sorted(spans, key=spans.__getitem__), 0
    for name in order:
        length = 4 * math.prod(form.shapes[name])
        if spans[name] != (end, end + length):
            raise FederatedError(
                f"it is no complete safetensors file: tensor {name!r} takes bytes"
                f" {_shown(entries[name].get('data_offsets'))}, expected {[end, end + length]}",
                "format",
            )
        end += length
    if end != len(data) - start:
        raise FederatedError(
            f"it is no complete safetensors file: {len(data) - start} bytes of values, expected"
            f" {end}",
            "format",
        )
    values = np.frombuffer(data, "<f4", offset=start)
    if order != list(form.shapes):
        parts = (
            values[begin // 4 : end // 4] for begin, end in (spans[name] for name in form.shapes)
        )
        values = np.concatenate(list(parts))
    return np.require(values, np.float32, "A")  # a header of odd length puts them anywhere


def _span(found: object) -> tuple[int, int]:
    """First byte of a tensor and the one after its last; what is none lies nowhere."""
    if isinstance(found, list) and len(found) == 2 and all(type(n) is int for n in found):
        return found[0], found[1]
    return -1, -1


def _header(metadata: Any, kind: str) -> dict[str, Any]:
    """What a message says of itself, each field checked."""
    text = metadata.get(_KEY) if isinstance(metadata, dict) else None
    try:
        found = json.loads(text, object_pairs_hook=_once) if isinstance(text, str) else None
    except (RecursionError, ValueError) as error:
        raise FederatedError(f"its header cannot be read: {error}", "header") from None
    if not isinstance(found, dict) or len(metadata) != 1:
        raise FederatedError("it has no header of G2D's, or more than that one", "header")
    if found.get("format") != FORMAT or found.get("kind") != kind:
        raise FederatedError(
            f"it is {_shown(found.get('kind'))} of format {_shown(found.get('format'))}, expected "
            f"{kind!r} of format {FORMAT}; use the same release of G2D on both sides",
            "header",
        )
    for name in sorted(found.keys() - _FIELDS[kind]):
        if _WEIGHTS.search(name):
            raise FederatedError(
                f"it reports a weight of its own ({_shown(name)}); every client counts alike",
                "weight",
            )
        raise FederatedError(f"its header has a foreign key {_shown(name)}", "header")
    for name, sound in _SOUND.items():
        if name in _FIELDS[kind] and not sound(found.get(name)):
            raise FederatedError(
                f"its {name} is {_shown(found.get(name))}, which is none", "header"
            )
    return found


def is_identity(value: object) -> bool:
    """Whether a value can name a client: letters, digits, dots, dashes; 64 at most."""
    return isinstance(value, str) and _IDENTITY.fullmatch(value) is not None


_SOUND: dict[str, Callable[[Any], bool]] = {
    "stage": lambda v: isinstance(v, str) and _STAGE.fullmatch(v) is not None,
    "round": lambda v: type(v) is int and 0 <= v < 1 << 31,
    "identity": is_identity,
    "base": lambda v: isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v) is not None,
    "plan": lambda v: isinstance(v, dict),
}


def _shown(value: object) -> str:
    """What a stranger wrote, short enough for a line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
