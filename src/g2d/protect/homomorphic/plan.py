"""The plan: what server and client must agree on before anything is encrypted; no weights in it.

It is compiled from shapes alone, the same everywhere. Its JSON holds the layers and, so that two
versions of g2d that compile differently notice, what came out: a reader compiles the layers again
and takes nothing else from the text. So a hostile server can choose neither weak parameters nor
how much a client allocates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from g2d.errors import DAMAGE
from g2d.protect.homomorphic.batch import SPARE, batch_steps
from g2d.protect.homomorphic.compiling import compile_steps
from g2d.protect.homomorphic.errors import HomomorphicError, Unsupported
from g2d.protect.homomorphic.layers import Layer, from_rows, to_rows
from g2d.protect.homomorphic.matrices import Step, steps_of
from g2d.protect.homomorphic.packing import Program
from g2d.protect.homomorphic.parameters import MOST_BITS, Parameters, choose
from g2d.protect.homomorphic.seal import seeded_size
from g2d.protect.homomorphic.wire import HEADER

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Limits", "Plan"]

PACKINGS = ("latency", "batch")

_FORMAT = "g2d-homomorphic-plan-2"
_MOST_JSON = 1 << 16

_MOST_BYTES = 1 << 30
"""Of a query, and of an upload: what a client makes in memory because a plan says so."""


@dataclass(frozen=True)
class Limits:
    """Bytes of what travels; each is exact, and nothing of another size is read."""

    query_bytes: int
    upload_bytes: int
    answer_bytes: int


@dataclass(frozen=True, eq=False)
class Plan:
    """How one architecture is evaluated under CKKS.

    Attributes:
        packing: "latency", one input a request, or "batch", one in each slot (`batch`).
        shape: of one input. layers: of the chain. parameters: degree, primes and scales.
        steps, programs: linear steps with a square between any two, and how each is computed;
            a batch needs no programs.
    """

    packing: str
    shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: Parameters
    steps: tuple[Step, ...]
    programs: tuple[Program, ...]

    @classmethod
    def of(cls, network: nn.Module, shape: Sequence[int], packing: str = "latency") -> Plan:
        """The plan of a network that is a chain.

        Args:
            shape: of one input, (C, H, W) or (F,).
            packing: "latency" answers one input soon; "batch" thousands at once, cheaply for each.

        Raises:
            Unsupported: a layer cannot be evaluated, does not fit, or is one too many.
        """
        from g2d.protect.homomorphic.reading import read_layers

        if packing not in PACKINGS:
            raise Unsupported(f"packing {packing!r}: {' or '.join(PACKINGS)} would do")
        return cls.compile(read_layers(network, shape), shape, packing)

    @classmethod
    def compile(
        cls, layers: Sequence[Layer], shape: Sequence[int], packing: str = "latency"
    ) -> Plan:
        """The plan of these layers: the smallest degree whose slots and primes suffice.

        Raises:
            Unsupported: as `of`; or a query or an upload would have more than 1 GiB.
        """
        plan = cls._compile(layers, shape, packing)
        query, upload = plan.limits.query_bytes, plan.limits.upload_bytes
        if max(query, upload) > _MOST_BYTES:
            raise Unsupported(
                f"it takes a query of {query >> 20} MB and keys of {upload >> 20} MB,"
                f" {_MOST_BYTES >> 20} MB at most: fewer inputs or layers, or the other packing,"
                " would do"
            )
        return plan

    @classmethod
    def _compile(cls, layers: Sequence[Layer], shape: Sequence[int], packing: str) -> Plan:
        steps = steps_of(layers, shape)
        wide: Unsupported | None = None
        for degree in sorted(MOST_BITS):
            parameters = choose(degree, len(steps))
            if parameters is None:
                continue
            if packing == "batch":
                known = batch_steps(steps)
                return cls(packing, tuple(shape), tuple(layers), parameters, known, ())
            try:
                known, programs = compile_steps(steps, parameters.slots)
            except Unsupported as error:
                wide = error
                continue
            assert programs[-1].clean, "the last step leaves partial sums in the answer"
            return cls(packing, tuple(shape), tuple(layers), parameters, known, tuple(programs))
        raise wide or _too_deep(steps)

    def to_json(self) -> str:
        """What a client downloads, in one canonical form."""
        parameters = self.parameters
        said = {
            "format": _FORMAT,
            "packing": self.packing,
            "shape": list(self.shape),
            "layers": to_rows(self.layers),
            "degree": parameters.degree,
            "primes": list(parameters.primes),
            "input_scale": parameters.input_scale,
            "ciphertexts": self.ciphertexts,
            "classes": self.classes,
            "rotations": {str(level): list(steps) for level, steps in self.rotations.items()},
            "products": [len(program.terms) for program in self.programs],
        }
        return json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what somebody else wrote, and compile it again.

        Raises:
            HomomorphicError: it is no plan, is out of bounds, or says anything else than what
                this version of g2d makes of its layers.
        """
        if len(text) > _MOST_JSON:
            raise HomomorphicError(f"a plan of {len(text)} characters: {_MOST_JSON} at most")
        try:
            said = json.loads(text, parse_constant=_no_constant)
            layers, shape = from_rows(said["layers"]), _shape(said["shape"])
            if said["packing"] not in PACKINGS:
                raise HomomorphicError("a plan's packing is none that is known here")
            plan = cls.compile(layers, shape, said["packing"])
        except Unsupported as error:
            raise HomomorphicError(f"the plan cannot be compiled: {error}") from error
        except DAMAGE as error:
            raise HomomorphicError("this is no plan of homomorphic inference") from error
        if json.loads(plan.to_json()) != said:
            raise HomomorphicError(
                "the plan's parameters are not what this version of g2d makes of its layers: use"
                " the server's version of g2d, and nothing below 128 bits is ever accepted"
            )
        return plan

    @cached_property
    def digest(self) -> str:
        """sha256 of the JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def batch(self) -> int:
        """Inputs in one request, at most."""
        return self.parameters.slots - SPARE if self.packing == "batch" else 1

    @property
    def classes(self) -> int:
        """Numbers in an answer."""
        return math.prod(self.steps[-1].output)

    @property
    def bound(self) -> float:
        """The magnitude of inputs and pre-activations that is safe: see `Parameters.bound`."""
        return self.parameters.bound

    @property
    def ciphertexts(self) -> int:
        """In a query."""
        if self.packing == "batch":
            return math.prod(self.shape)
        gathers = self.programs[0].gathers
        assert gathers is not None
        return len(gathers)

    @property
    def answers(self) -> int:
        """Ciphertexts in an answer."""
        return self.classes if self.packing == "batch" else 1

    @cached_property
    def rotations(self) -> dict[int, tuple[int, ...]]:
        """The rotations that a client gives keys for, by level, highest first."""
        found: dict[int, set[int]] = {}
        for i, program in enumerate(self.programs):
            level = self.level(i)
            found.setdefault(level, set()).update(program.rotations())
            found.setdefault(level - 1, set()).update(program.pools)
        return {
            level: tuple(sorted(steps))
            for level, steps in sorted(found.items(), reverse=True)
            if steps
        }

    @property
    def squares(self) -> tuple[int, ...]:
        """The levels at which a square is brought back to two polynomials."""
        return tuple(self.level(i) - 1 for i in range(len(self.steps) - 1))

    def level(self, step: int) -> int:
        """Primes of the ciphertexts that a step takes; it leaves one fewer."""
        return self.parameters.levels - step

    @cached_property
    def limits(self) -> Limits:
        """What a server has to be ready for."""
        degree = self.parameters.degree
        query = self.ciphertexts * seeded_size(self.parameters.levels, degree)
        return Limits(
            HEADER + query, HEADER + sum(self.key_sizes), HEADER + self.answers * 2 * degree * 8
        )  # fmt: skip

    @cached_property
    def key_sizes(self) -> tuple[int, ...]:
        """Bytes of each part of an upload: public key, then each digit of each other key."""
        degree = self.parameters.degree
        counts = [(level, 1) for level in self.squares]
        counts += [(level, len(steps)) for level, steps in self.rotations.items()]
        public = 2 * 2 * degree * 8
        digits = ([seeded_size(level + 1, degree)] * (level * count) for level, count in counts)
        return (public, *(size for sizes in digits for size in sizes))


def _too_deep(steps: Sequence[Step]) -> Unsupported:
    most = max(MOST_BITS)
    room = next(n for n in range(len(steps), 0, -1) if choose(most, n) is not None)
    return Unsupported(
        f"layer {steps[room].name!r} is linear step {room + 1}, and 128 bits of security leave room"
        f" for {room} at N = {most}: leave out activations, or layers"
    )


def _shape(value: Any) -> tuple[int, ...]:
    sound = isinstance(value, list) and len(value) in (1, 3)
    if not sound or not all(type(one) is int and 0 < one <= 1 << 16 for one in value):
        raise HomomorphicError("a plan's shape is one or three whole numbers")
    return tuple(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
