"""Malformed requests by kind, drawn from a seed: what a hostile or broken client sends.

Knows nothing of what a right answer is; `fuzz` sends them and judges.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.load import PATH

TENSOR = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32"}
GOOD = {"inputs": [TENSOR | {"data": [0.5] * 64}]}
WORDS = ("input", "FP32", "data", "shape", "", "\x00", "é", "\ud800", "g2d", "__proto__", "NaN")
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, -1e308, 1e-320, 0.1)


@dataclass(frozen=True)
class Case:
    """What is sent, piece by piece, each with seconds to wait after it.

    Attributes:
        ends: the sender closes its side afterwards. answers: how many it waits for. unread: seconds
            that it waits without reading anything, and goes; 0: it reads.
    """

    kind: str
    parts: tuple[tuple[bytes, float], ...]
    ends: bool = False
    answers: int = 1
    unread: float = 0.0


def _request(body: bytes, extra: str = "", length: int | None = None, path: str = PATH) -> bytes:
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{extra}"
        f"content-length: {size}\r\n\r\n"
    ).encode() + body  # fmt: skip


def _one(kind: str, data: bytes, **options: Any) -> Case:
    return Case(kind, ((data, 0.0),), **options)


def _good(**changes: Any) -> bytes:
    return json.dumps({"inputs": [TENSOR | {"data": [0.5] * 64} | changes]}).encode()


def _binary(chance: random.Random, rows: int = 1) -> tuple[bytes, bytes]:
    """JSON and tail of a right binary request."""
    tail = chance.randbytes(rows * 256)
    tensor = TENSOR | {"shape": [rows, 1, 8, 8], "parameters": {"binary_data_size": len(tail)}}
    return json.dumps({"inputs": [tensor]}).encode(), tail


def random_bytes(chance: random.Random) -> Case:
    return _one("random bytes", _request(chance.randbytes(chance.randint(0, 3000))))


def truncated_json(chance: random.Random) -> Case:
    body = _good()
    return _one("truncated JSON", _request(body[: chance.randrange(len(body))]))


def mutated_json(chance: random.Random) -> Case:
    body = bytearray(_good())
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(body))
        if chance.random() < 0.5:
            body[at] = chance.randrange(256)
        else:
            del body[at : at + chance.randint(1, 30)]
    return _one("mutated JSON", _request(bytes(body)))


def wrong_values(chance: random.Random) -> Case:
    """Right JSON whose members are of any type and size."""

    def value(depth: int = 0) -> Any:
        draw = chance.randrange(7 if depth < 3 else 5)
        if draw == 0:
            return chance.choice(NUMBERS)
        if draw == 1:
            return chance.choice(WORDS)
        if draw in (2, 3, 4):
            return chance.choice((None, True, False, math.nan, math.inf, -math.inf))
        if draw == 5:
            return [value(depth + 1) for _ in range(chance.randrange(5))]
        return {chance.choice(WORDS): value(depth + 1) for _ in range(chance.randrange(4))}

    whole = json.loads(_good())
    place = chance.choice((whole, whole["inputs"][0]))
    for key in chance.sample(sorted(place), chance.randint(1, len(place))):
        place[key] = value()
    if chance.random() < 0.3:
        place[chance.choice(("parameters", "outputs", "id"))] = value()
    return _one("wrong values", _request(json.dumps(whole).encode()))


def huge_numbers(chance: random.Random) -> Case:
    """In data, the shape or a length: beyond every integer and float."""
    draw = chance.randrange(3)
    number = chance.choice(NUMBERS)
    if draw == 0:
        data = [0.5] * 64
        data[chance.randrange(64)] = number
        body = _good(data=data)
    elif draw == 1:
        body = _good(shape=[number, 1, 8, 8])
    else:
        digits = b"9" * chance.randint(1, 5000)
        body = _good().replace(b"0.5", digits, chance.randint(1, 5))
    return _one("huge numbers", _request(body))


def deep_json(chance: random.Random) -> Case:
    depth = chance.choice((10, 100, 1000, 1100, 10_000, 100_000))
    inner = b"[" * depth + b"]" * chance.choice((0, depth))
    if chance.random() < 0.3:
        inner = b'{"a":' * depth + b"1" + b"}" * depth
    body = inner if chance.random() < 0.5 else _good().replace(b"[0.5,", b"[" + inner + b",", 1)
    return _one("nested JSON", _request(body))


def texts(chance: random.Random) -> Case:
    """Many short texts and a long one: as an array of texts each would be as wide as that one."""
    shape = chance.choice(([1, 1, 8, 8], [16, 1, 8, 8], [16, 1, 8, 8], [1001, 1, 1, 1], [1001]))
    count = math.prod(shape) + chance.choice((0, 0, 0, -1, 1, 900))
    data = ["1"] * count
    data[chance.randrange(count)] = chance.choice("1x") * chance.choice((1000, 100_000, 1_000_000))
    kind = chance.choice(("FP32", "FP32", "BYTES", "INT64"))
    return _one("texts for numbers", _request(_good(data=data, shape=shape, datatype=kind)))


def many_values(chance: random.Random) -> Case:
    """Up to a million values of any kind for a shape of few."""
    value = chance.choice(("0", "1.5", "null", '""', "[]", "[0]", "{}", "1e400", "true"))
    data = "[" + ",".join([value] * chance.choice((65, 10_000, 300_000, 1_000_000))) + "]"
    shape = chance.choice(([1, 1, 8, 8], [1, 1, 8, 8], [0, 1, 8, 8], [1] * 1000, [2**31] * 4))
    body = _good(data="here", shape=shape).replace(b'"here"', data.encode())
    return _one("many values for a small shape", _request(body))


def wrong_lengths(chance: random.Random) -> Case:
    """A content-length that is not the body's; the sender closes its side then."""
    body = _good()
    length = chance.choice((0, 1, len(body) - 1, len(body) + 1, len(body) + 500, 9 << 20, 10**18))
    return _one("wrong content-length", _request(body, length=length), ends=True)


def no_length(chance: random.Random) -> Case:
    """A content-length that is no number, or two of them."""
    text = chance.choice(("-1", "+5", "abc", "", "5, 6", "0x10", "9" * 40, "1e3", " ", "5\r\n"
                          "content-length: 7", "5\r\ntransfer-encoding: chunked"))  # fmt: skip
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {text}\r\n\r\n"
    return _one("malformed content-length", head.encode() + _good(), ends=True)


def binary_header(chance: random.Random) -> Case:
    """A binary tensor whose header length, sizes or bytes are wrong."""
    head, tail = _binary(chance, chance.choice((1, 1, 3)))
    length = chance.choice(("0", "-1", "x", "", "9" * 30, "1e2", str(len(head) + len(tail) + 1),
                            str(len(head) - 1), str(len(head) + 1), str(len(head))))  # fmt: skip
    tail = chance.choice((tail[:-1], tail + b"x", b"", tail[:4], tail * 2, tail))
    if chance.random() < 0.3:
        size = str(chance.choice(NUMBERS)).encode()
        head = head.replace(b'_size": 256', b'_size": ' + size)
    extra = f"inference-header-content-length: {length}\r\n"
    return _one("wrong binary header", _request(head + tail, extra))


def chunked(chance: random.Random) -> Case:
    """Chunked bodies: cut, with wrong sizes, without an end, or right."""
    body, sizes = _good(), chance.choice(("%x", "%x", "-%x", "%xg", "ffffffffffffffff%x", "0x%x"))
    parts = []
    while body:
        piece, body = body[: (size := chance.randint(1, 200))], body[size:]
        parts.append((sizes % len(piece)).encode() + b"\r\n" + piece + b"\r\n")
    whole = b"".join(parts) + chance.choice((b"0\r\n\r\n", b"0\r\n", b"", b"0\r\nx: y\r\n\r\n"))
    cut = chance.choice((len(whole), chance.randrange(len(whole))))
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    return _one("chunked, cut or wrong", head.encode() + whole[:cut], ends=True)


def garbage(chance: random.Random) -> Case:
    """No HTTP, or almost: request lines, versions, header lines."""
    line = chance.choice((
        chance.randbytes(chance.randint(1, 500)), b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(200),
        b"GET / HTTP/1.1\r\nhost\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"GET /" + b"a" * chance.choice((100, 9000, 70_000)) + b" HTTP/1.1\r\nhost: ::1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n", b"\r\n" * 500, b"PRI * HTTP/2.0\r\n"
        b"\r\nSM\r\n\r\n", b"GET /v2/%00%ff/\x80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ))  # fmt: skip
    return _one("HTTP garbage", line, ends=True)


def hosts(chance: random.Random) -> Case:
    """Host, Origin and their like: absent, twice, or of any bytes; at the pages and at admin."""
    junk = chance.choice((b"", b"\xff\xfe", b"a" * 8000, b"localhost:99999", b"[::1", b"null",
                          b"http://evil.example", b"localhost\x00", b"a, b", b"%0d%0aset-cookie: a",
                          chance.randbytes(30).translate(None, b"\r\n")))  # fmt: skip
    names = [
        b"host",
        b"origin",
        b"referer",
        b"x-forwarded-for",
        b"authorization",
        b"sec-fetch-site",
    ]
    lines = [name + b": " + junk for name in chance.choices(names, k=chance.randrange(5))]
    line = chance.choice(
        (
            b"GET /",
            b"GET /metrics",
            b"GET /status",
            b"GET /docs",
            b"POST /admin/rotate",
            b"POST /admin/pause",
            b"POST " + PATH.encode(),
        )
    )
    size = b"content-length: 0"
    data = b"\r\n".join([line + b" HTTP/1.1", *lines, size, b"", b""])
    return _one("wrong hosts and origins", data, ends=True)


def addresses(chance: random.Random) -> Case:
    """Addresses and methods that there are not, with bodies."""
    piece = chance.choice(("..", "%2e%2e", "%00", "a" * 5000, "g2d", "infer", "%ff", "versions/-1",
                           "versions/" + "9" * 400, "é", "{name}", ""))  # fmt: skip
    path = "/" + "/".join([*chance.sample(("v2", "models", "g2d", "admin", "status"), 2), piece])
    method = chance.choice(("POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "FOO"))
    data = _request(_good(), path=path).replace(b"POST", method.encode(), 1)
    return _one("wrong addresses", data, ends=True)


def pipelined(chance: random.Random) -> Case:
    """Five requests in one piece, good and bad, perhaps a part of a sixth: five answers."""
    bodies = [_request(chance.choice((_good(), _good(shape=[9]), b"{"))) for _ in range(6)]
    cut = chance.choice((0, 0, chance.randrange(len(bodies[5]))))
    return _one("pipelined", b"".join(bodies[:5]) + bodies[5][:cut], answers=5)


def unread(chance: random.Random) -> Case:
    """Requests in one piece whose answers nobody reads; the sender goes then."""
    path = chance.choice(("/", "/metrics", "/docs", "/openapi.json", "/status", "/v2/models/g2d"))
    one = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    return _one("pipelined, never read", one * chance.choice((20, 200, 2000)), unread=0.5)


def twice(chance: random.Random) -> Case:
    """Two headers of which there may be one, alike or not, together or apart."""
    name = chance.choice(("Content-Encoding", "Content-Length", "Host", "Authorization", "Origin",
                          "Inference-Header-Content-Length", "Content-Type",
                          "Transfer-Encoding"))  # fmt: skip
    values = chance.choices(("identity", "gzip", "5", "localhost", "Bearer x", "chunked", ""), k=2)
    lines = [f"{name}: {values[0]}", *(["x: y"] * chance.randrange(3)),
             f"{chance.choice((name, name.lower(), name.upper()))}: {values[1]}"]  # fmt: skip
    return _one("headers twice", _request(_good(), "\r\n".join(lines) + "\r\n"), ends=True)


def heads(chance: random.Random) -> Case:
    """Heads and trailers around the limit of 65,536 bytes: one line or many, perhaps cut in two."""
    size = chance.choice((65_000, 65_536, 65_537, 66_000, 70_000, 300_000))
    many = b"x: " + b"y" * chance.choice((1, 50)) + b"\r\n"
    filling = chance.choice((b"x: " + b"a" * size, many * (size // len(many)), b"x:" + b" " * size))
    start = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\n".encode()
    if chance.random() < 0.3:
        start += b"transfer-encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\n"
    elif chance.random() < 0.3:
        start = _request(_good()) + start
    whole = start + filling + chance.choice((b"\r\n\r\n", b"\r\n", b""))
    cut = chance.randrange(len(whole))
    return Case("large heads", ((whole[:cut], chance.choice((0.0, 0.01))), (whole[cut:], 0.0)),
                ends=True)  # fmt: skip


def triton(chance: random.Random) -> Case:
    """What Triton's clients ask for, of wrong models and versions, with bodies, by any method."""
    model = "/".join(("models", chance.choice(("g2d", "stats", "other", "%00", "a" * 300))))
    version = chance.choice(("", "", "/versions/1", "/versions/-1", "/versions/" + "9" * 500))
    what = chance.choice(("config", "stats", "ready", "load", "unload", "trace/setting", "infer"))
    path = chance.choice((f"/v2/{model}{version}/{what}", "/v2/repository/index", "/v2/logging",
                          "/v2/models/stats", "/v2/systemsharedmemory/status"))  # fmt: skip
    method = chance.choice(("GET", "HEAD", "POST", "PUT", "DELETE"))
    data = _request(chance.choice((b"", b"{", _good())), path=path)
    return _one("Triton's addresses", data.replace(b"POST", method.encode(), 1), ends=True)


def tokens(chance: random.Random) -> Case:
    """Guesses of the admin's token, and what is no token at all."""
    given = chance.choice(("Bearer " + "x" * chance.choice((1, 16, 8000)), "Bearer", "Basic eDp4",
                           "bearer a b c", "Bearer \x80\xff", "Bearer eyJhbGciOiJub25lIn0.e30.",
                           ",", ""))  # fmt: skip
    path = chance.choice(("/admin/rotate", "/admin/pause", "/metrics", "/status", "/admin/alarm"))
    data = _request(_good(), f"authorization: {given}\r\n", path=path)
    method = b"GET" if chance.random() < 0.3 else b"POST"
    return _one("wrong tokens", data.replace(b"POST", method, 1), ends=True)


def gone(chance: random.Random) -> Case:
    """The sender closes before the answer can come."""
    data = _request(_good())
    return _one("gone early", data[: chance.randrange(1, len(data))], ends=True)


KINDS: dict[str, Callable[[random.Random], Case]] = {
    make.__name__: make
    for make in (
        random_bytes, truncated_json, mutated_json, wrong_values, huge_numbers, deep_json,
        texts, many_values, wrong_lengths, no_length, binary_header, chunked, garbage, hosts,
        addresses, pipelined, unread, gone, twice, heads, triton, tokens,
    )
}  # fmt: skip


def slow_body(chance: random.Random) -> Case:
    """The body never ends; a 408 has to come."""
    return _one("slow body: never sent whole", _request(_good(), length=5000))


def dripping_body(chance: random.Random) -> Case:
    """A byte of the body every tenth of a second."""
    data = _request(_good())
    parts = [(data[:-90], 0.1), *((data[i : i + 1], 0.1) for i in range(len(data) - 90, len(data)))]
    return Case("slow body: a byte at a time", tuple(parts))


def slow_header(chance: random.Random) -> Case:
    """The head never ends."""
    data = _request(_good())
    return _one("slow header: never sent whole", data[: chance.randrange(10, 60)])


SLOW: dict[str, Callable[[random.Random], Case]] = {
    make.__name__: make for make in (slow_body, dripping_body, slow_header)
}
