"""The child process that computes with SPU: commands on stdin, answers on stdout, one at a time.

It alone imports SPU and jax, as it starts. Its parent kills it when a session is over, with any
computation that waits for a party which is gone. Shares come as `rings` lays them out.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import math
import os
import secrets
import signal
import struct
import sys
import time
from typing import Any, BinaryIO

import numpy as np

from g2d.core.types import Array
from g2d.errors import DAMAGE
from g2d.protect.multiparty.config import WIDTH
from g2d.protect.multiparty.party.networks import function
from g2d.protect.multiparty.party.ranges import NARROW, WIDE, Ranges
from g2d.protect.multiparty.program import FRACTION, Program
from g2d.protect.multiparty.wire import VERSION, pack, unpack_head, unpack_header

_HEAD = struct.Struct(">IQ")
_MOST = 1 << 33
_COMPILED = 24  # codes that are kept: of a size of batch the network's, and those of its ranges
_TYPES = {WIDE: "<u8", NARROW: "<u4"}


def runtime_config(protocol: str, width: int = WIDE) -> Any:
    """Fixed point of `FRACTION` bits modulo 2^64; no party is trusted with anything.

    ABY3 draws correlated randomness from pairwise seeds, Cheetah by oblivious transfer: neither
    makes use of Beaver triples, of which SPU's default lets the first party know all.
    """
    from spu import libspu

    kinds = {"aby3": libspu.ProtocolKind.ABY3, "cheetah": libspu.ProtocolKind.CHEETAH}
    made = libspu.RuntimeConfig(
        protocol=kinds[protocol],
        field=libspu.FieldType.FM64 if width == WIDE else libspu.FieldType.FM32,
        fxp_fraction_bits=FRACTION if width == WIDE else 8,  # integers alone are compared
    )
    made.beaver_type = libspu.RuntimeConfig.BeaverType.MultiParty
    return made


class Engine:
    """SPU's runtime of one session, the weights that it holds, and what it has compiled."""

    def __init__(self) -> None:
        import jax.numpy  # noqa: F401 (a second, which no request should wait for)
        import spu
        from spu import libspu

        self._spu, self._libspu = spu, libspu
        self._link: Any = None
        self._runtime: Any = None
        self._protocol, self._bounds = "", True
        self._programs: dict[str, Program] = {}
        self._codes: dict[tuple[str, int], tuple[Any, str]] = {}
        self._narrow: Any = None

    def link(self, asked: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Join the others: blocks until all are there."""
        described = self._libspu.link.Desc()
        described.id = asked["session"]
        for rank, endpoint in enumerate(asked["endpoints"]):
            described.add_party(f"party{rank}", endpoint)
        described.connect_retry_interval_ms = 50
        described.connect_retry_times = int(20 * asked["seconds"])
        described.recv_timeout_ms = described.http_timeout_ms = int(1000 * asked["run"])
        self._link = self._libspu.link.create_brpc(described, asked["rank"])
        self._protocol, self._bounds = asked["protocol"], asked["bounds"]
        self._runtime = self._spu.Runtime(self._link, runtime_config(self._protocol))
        if self._protocol == "aby3":
            self._narrow = self._spu.Runtime(self._link, runtime_config(self._protocol, NARROW))
        return {}, b""

    def load(self, asked: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Take one generation's shares under the name `slot`."""
        program = Program.from_json(asked["program"])
        slot, width, at = asked["slot"], WIDTH[self._protocol], 0
        if len(body) != program.size * width:
            raise ValueError(f"{len(body)} bytes of weights, expected {program.size * width}")
        for name, shape in program.parameters:
            end = at + math.prod(shape) * width
            self._set(f"{slot}/{name}", shape, body[at:end])
            at = end
        self._programs[slot] = program
        return {}, b""

    def drop(self, asked: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Forget a generation."""
        program = self._programs.pop(asked["slot"], None)
        for name, _ in program.parameters if program else ():
            self._runtime.del_var(f"{asked['slot']}/{name}")
        return {}, b""

    def prepare(self, asked: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Compile for a size of batch; tell the digest of the code."""
        program, n = self._programs[asked["slot"]], asked["n"]
        if self._bounds and program.least:
            for width, count in Ranges(program, self._protocol).compared(n):
                self._sign(width, count)
        return {"code": self._code(program, n)[1]}, b""

    def run(self, asked: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Compute one request, if all parties mean the same one; give the share of the answer.

        Where its shares do not belong together, or inputs are out of range, `apart` says so, at all
        parties alike.
        """
        slot, n, session = asked["slot"], asked["n"], asked["agree"]
        program = self._programs[slot]
        code, digest = self._code(program, n)
        mean = hashlib.sha256(f"{session} {slot} {n} {digest}".encode()).hexdigest()
        same = self._neighbours_same(session, body)
        told = [_text(one).split() for one in self._link.all_gather(f"{mean} {int(same)}")]
        if {one[0] for one in told} != {mean}:
            raise ValueError("the parties do not mean the same request: nothing was computed")
        if any(one[1] != "1" for one in told):  # as all parties see it: none waits for another
            return {"apart": "the shares of this request do not belong together: nothing was"
                    " computed"}, b""  # fmt: skip
        began, spent = time.perf_counter(), time.process_time()
        if self._bounds and program.least and not self._in_range(session, program, body):
            return {"apart": "inputs of this request are out of the task's range: nothing was"
                    " computed"}, b""  # fmt: skip
        self._set("x", (n, *program.shape), body)
        names = [f"{slot}/{name}" for name, _ in program.parameters]
        self._runtime.run(
            self._libspu.Executable(
                name="network", input_names=[*names, "x"], output_names=["y"], code=code
            )
        )
        share = self._runtime.get_var("y")
        self._runtime.del_var("x")
        self._runtime.del_var("y")
        took = {
            "seconds": time.perf_counter() - began, "cpu": time.process_time() - spent,
        }  # fmt: skip
        return took, self._content(share, n * program.classes)

    def _neighbours_same(self, session: str, body: bytes) -> bool:
        """Whether the party before holds the part that this one holds, too (ABY3).

        Party i holds (x_i, x_{i+1}), and whoever dealt them may have dealt party i + 1 another
        x_{i+1}. Its digest goes to that party alone, which has these bytes itself; the third, who
        has not, could try values by it.
        """
        if self._protocol != "aby3":
            return True
        first, second = np.frombuffer(body, "<u8").reshape(-1, 2).T
        link, rank = self._link, self._link.rank
        after, before = (rank + 1) % 3, (rank - 1) % 3
        link.send(after, _digest(session, after, second))
        return hmac.compare_digest(_text(link.recv(before)), _digest(session, rank, first))

    def _in_range(self, session: str, program: Program, body: bytes) -> bool:
        """Whether all inputs are in the program's range (`ranges`); all parties find the same."""
        ranges, about = Ranges(program, self._protocol), (body, self._link.rank)
        if not ranges.narrow:
            return not self._negative(self._runtime, WIDE, ranges.values(*about))
        drawn = self._link.all_gather(secrets.token_hex(16))
        seed = " ".join([session, *(_text(one) for one in drawn)])
        return not (
            self._negative(self._runtime, WIDE, ranges.sums(*about, seed))
            or self._negative(self._narrow, NARROW, ranges.values(*about))
        )

    def _negative(self, runtime: Any, width: int, shares: Array) -> bool:
        """Whether any of these shared integers is negative; that one bit is opened."""
        count = math.prod(shares.shape[:-1])
        code = self._sign(width, count)
        self._put(runtime, "v", (count,), shares.astype(_TYPES[width]).tobytes(), width, False)
        runtime.run(
            self._libspu.Executable(name="signs", input_names=["v"], output_names=["s"], code=code)
        )
        own = self._chunks(runtime.get_var("s"), "BShr<")[0] & 1
        runtime.del_var("v")
        runtime.del_var("s")
        told = self._link.all_gather(str(own))
        return bool(sum(_text(one) == "1" for one in told) % 2)

    def _sign(self, width: int, count: int) -> Any:
        # One bit of all: a party that adds to its shares could compare with each number opened.
        return self._compiled(
            (f"signs of {width}", count),
            lambda v: (v < 0).any(), {"v": np.zeros((count,), np.int32)}, "s",
        )[0]  # fmt: skip

    def _code(self, program: Program, n: int) -> tuple[Any, str]:
        given = {name: np.zeros(shape, np.float32) for name, shape in program.parameters}
        given["x"] = np.zeros((n, *program.shape), np.float32)
        return self._compiled((program.digest, n), function(program), given, "y")

    def _compiled(
        self, key: tuple[str, int], what: Any, given: dict[str, Array], out: str
    ) -> tuple[Any, str]:
        """Code for SPU and its digest."""
        if key not in self._codes:
            while len(self._codes) >= _COMPILED:
                self._codes.pop(next(iter(self._codes)))
            from spu.utils import frontend

            secret = self._libspu.Visibility.VIS_SECRET
            made, _ = frontend.compile(
                frontend.Kind.JAX, what, [*given.values()], {}, [*given], [secret] * len(given),
                lambda leaves: [out] * len(leaves),
            )  # fmt: skip
            code = made.code
            self._codes[key] = code, hashlib.sha256(_bytes(code)).hexdigest()
        return self._codes[key]

    def _set(self, name: str, shape: tuple[int, ...], body: bytes) -> None:
        self._put(self._runtime, name, shape, body, WIDE, True)

    def _put(
        self, runtime: Any, name: str, shape: tuple[int, ...], body: bytes, width: int, real: bool
    ) -> None:
        if len(body) != math.prod(shape) * WIDTH[self._protocol] * width // WIDE:
            raise ValueError(f"{len(body)} bytes for {name} of shape {shape}")
        libspu = self._libspu
        meta, chunk, share = libspu.ValueMeta(), libspu.ValueChunk(), libspu.Share()
        meta.data_type = libspu.DataType.DT_F32 if real else libspu.DataType.DT_I32
        meta.visibility = libspu.Visibility.VIS_SECRET
        meta.storage_type = f"{self._protocol}.AShr<FM{width}>"
        meta.shape.dims = list(shape)
        chunk.total_bytes, chunk.chunk_offset, chunk.content = len(body), 0, body
        share.meta, share.share_chunks = meta.SerializeToString(), [chunk.SerializeToString()]
        runtime.set_var(name, share)

    def _content(self, share: Any, values: int) -> bytes:
        body = self._chunks(share, f"AShr<FM{WIDE}>")
        if len(body) != values * WIDTH[self._protocol]:
            raise ValueError(f"an answer of {len(body)} bytes, for {values} logits")
        return body

    def _chunks(self, share: Any, stored: str) -> bytes:
        """The bytes of a value; raises `ValueError` unless it is stored like this, and secret."""
        libspu = self._libspu
        meta, secret = libspu.ValueMeta(), libspu.Visibility.VIS_SECRET
        meta.ParseFromString(share.meta)
        kind = f"{self._protocol}.{stored}"
        if not meta.storage_type.startswith(kind) or meta.visibility != secret:
            raise ValueError(f"a result is {meta.storage_type}, which is no share of ours")
        parts: dict[int, bytes] = {}
        for text in share.share_chunks:
            chunk = libspu.ValueChunk()
            chunk.ParseFromString(text)
            parts[chunk.chunk_offset] = bytes(chunk.content)
        return b"".join(parts[at] for at in sorted(parts))


def _digest(session: str, part: int, values: Array) -> str:
    """SHA-256 of one part of a request's inputs, of this session and request alone."""
    return hashlib.sha256(f"{session} {part} ".encode() + values.tobytes()).hexdigest()


def _text(told: str | bytes) -> str:
    return told if isinstance(told, str) else bytes(told).decode()


def _bytes(code: str | bytes) -> bytes:
    return code.encode() if isinstance(code, str) else bytes(code)


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Carry out commands until there are no more."""
    engine = Engine()
    known = {name: getattr(engine, name) for name in ("link", "load", "drop", "prepare", "run")}
    answers.write(pack({"kind": "ready", "version": VERSION}))
    answers.flush()
    while head := commands.read(_HEAD.size):
        length, size = unpack_head(head, _MOST)
        asked, body = unpack_header(commands.read(length)), commands.read(size)
        try:
            told, found = known[asked["kind"]](asked, body)
            answers.write(pack({"kind": "done", **told}, found) + found)
        except (RuntimeError, *DAMAGE) as error:
            # SPU's messages hold a stack of C++; its first line says what happened.
            why = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
            answers.write(pack({"kind": "failed", "why": why}))
        answers.flush()


def main() -> None:
    """Run as a child of `server`; what libraries print goes to stderr."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: with the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
