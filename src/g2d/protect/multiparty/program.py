"""What parties compute: the structure of a network, without its weights. Standard library alone.

Layers run in order. Those of kind `conv`, `linear` and `scale` have parameters, which are secret
and come as shares; everything here is public, and every party computes the same digest of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from g2d.errors import DAMAGE
from g2d.protect.multiparty.errors import MultipartyError

FORMAT = 1
FRACTION = 18
"""Bits after the point: values are x · 2^18 in the ring of integers modulo 2^64."""
LARGEST = float(1 << 15)
"""Inputs of a task without a range are at most this: products of theirs stay far from 2^63."""
MOST_LAYERS, MOST_VALUES = 200, 1 << 24
_PAIRS = ("stride", "padding", "dilation", "kernel")
_OWN: Mapping[str, frozenset[str]] = {
    "conv": frozenset({"weight", "bias", "stride", "padding", "dilation", "groups"}),
    "linear": frozenset({"weight", "bias"}),
    "scale": frozenset({"channels"}),
    "relu": frozenset(),
    "flatten": frozenset(),
    "maxpool": frozenset({"kernel", "stride", "padding"}),
    "avgpool": frozenset({"kernel", "stride", "padding"}),
    "pair": frozenset(),
}
"""Kinds of layers and what each says of itself: `scale` multiplies and shifts each channel (a batch
norm in evaluation mode), `pair` makes one logit z the two classes [0, z]."""

Layer = Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """A network's structure.

    Attributes:
        shape: of one input. classes: number of logits. layers: what is done, in order. least, most:
            range of each input value, one of all or one of each (features,); (): none.

    Raises:
        MultipartyError: it is not one that parties compute.
    """

    shape: tuple[int, ...]
    classes: int
    layers: tuple[Layer, ...]
    least: tuple[float, ...] = ()
    most: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        try:
            self._check()
        except DAMAGE as error:
            raise MultipartyError(f"this is no program that parties compute: {error}") from error

    def _check(self) -> None:
        if not 1 <= len(self.shape) <= 3 or not _naturals(self.shape):
            raise ValueError(f"inputs of shape {self.shape}")
        if not 0 < len(self.layers) <= MOST_LAYERS or not _naturals((self.classes,)):
            raise ValueError(f"{len(self.layers)} layers, {self.classes} classes")
        for place, layer in enumerate(self.layers):
            _check_layer(place, layer)
        if self.size > MOST_VALUES or math.prod(self.shape) > MOST_VALUES:
            raise ValueError(f"{self.size} parameters, at most {MOST_VALUES}")
        if len(self.least) != len(self.most) or len(self.least) not in (0, 1, *self.shape[-1:]):
            raise ValueError("a range that is not one of each value")
        if not all(low < high for low, high in zip(self.least, self.most, strict=True)):
            raise ValueError("a range without inside")
        if not all(abs(v) <= LARGEST for v in (*self.least, *self.most)):
            raise ValueError(
                f"a range beyond {LARGEST:g}; let inputs be scaled before they are sent"
            )

    @property
    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of what is secret, in the order in which shares lie."""
        for place, layer in enumerate(self.layers):
            if layer["kind"] == "scale":
                yield f"{place}.weight", (layer["channels"],)
                yield f"{place}.bias", (layer["channels"],)
            elif "weight" in layer:
                yield f"{place}.weight", tuple(layer["weight"])
                if layer["bias"]:
                    yield f"{place}.bias", (layer["weight"][0],)

    @cached_property
    def size(self) -> int:
        """How many values are secret."""
        return sum(math.prod(shape) for _, shape in self.parameters)

    def to_json(self) -> str:
        """The one text of this program."""
        told = {
            "format": FORMAT, "fraction": FRACTION, "shape": self.shape, "classes": self.classes,
            "layers": [dict(layer) for layer in self.layers], "least": self.least,
            "most": self.most,
        }  # fmt: skip
        return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Read what `to_json` wrote.

        Raises:
            MultipartyError: it is something else, or of another format.
        """
        try:
            told = json.loads(text)
            if (told["format"], told["fraction"]) != (FORMAT, FRACTION):
                raise ValueError(f"format {told['format']} with {told['fraction']} bits")
            layers = tuple(dict(layer) for layer in told["layers"])
            least, most = (tuple(map(float, told[name])) for name in ("least", "most"))
            made = cls(tuple(told["shape"]), told["classes"], layers, least, most)
        except DAMAGE as error:
            raise MultipartyError(f"this is no program that parties compute: {error}") from error
        if made.to_json() != text:
            raise MultipartyError("this is no program as it is written: its text would be another")
        return made

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _check_layer(place: int, layer: Layer) -> None:
    kind = str(layer.get("kind"))
    if kind not in _OWN or layer.keys() != {"kind", *_OWN[kind]}:
        raise ValueError(f"layer {place} is {kind!r} with {sorted(layer)}")
    for name in _PAIRS:
        least = 0 if name == "padding" else 1
        if name in layer and not (len(layer[name]) == 2 and _naturals(layer[name], least)):
            raise ValueError(f"layer {place} has {name} {layer[name]!r}")
    for name in ("groups", "channels"):
        if name in layer and not _naturals((layer[name],)):
            raise ValueError(f"layer {place} has {name} {layer[name]!r}")
    if "weight" in layer:
        width = {"conv": 4, "linear": 2}[kind]
        if len(layer["weight"]) != width or not _naturals(layer["weight"]):
            raise ValueError(f"layer {place} has weights of shape {layer['weight']!r}")
        if not isinstance(layer["bias"], bool):
            raise ValueError(f"layer {place} has bias {layer['bias']!r}")


def _naturals(values: Any, least: int = 1) -> bool:
    return all(type(v) is int and least <= v <= MOST_VALUES for v in values)
