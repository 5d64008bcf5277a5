"""Addresses: what each under `/v2` asks, and by which method; a proxy's prefix. Knows no service.

Source: KServe, "Open Inference Protocol"; Triton's extensions model configuration, statistics and
model repository, as its clients and `perf_analyzer` ask for them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from g2d.service.http.protocol import RequestError
from g2d.service.http.types import Scope

EXTENSIONS = [
    "binary_tensor_data", "model_configuration", "model_repository", "statistics",
]  # fmt: skip
_MODEL = re.compile(
    r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready|config|stats))?/?", re.DOTALL
)
_SERVER = {
    "/v2": "server", "/v2/health/live": "live", "/v2/health/ready": "ready",
    "/v2/models/stats": "all stats", "/v2/repository/index": "index",
}  # fmt: skip
_POSTED = ("infer", "index")


class Call(NamedTuple):
    """What is asked; of a model, if it has a `name`, and of one version of it, if that is said."""

    what: str
    name: str | None = None
    version: str | None = None


def call_of(path: str, method: str, model: str) -> Call:
    """Read an address.

    Raises:
        RequestError: 404, there is no such address or model; 405, it takes another method.
    """
    call = None
    found = _MODEL.fullmatch(path)
    if found is not None and found[1] == model:
        call = Call(found[3] or "metadata", model, found[2])
    elif (what := _SERVER.get(path.removesuffix("/"))) is not None:
        call = Call(what)
    elif found is not None:
        raise RequestError(404, f"there is no model {found[1][:64]!r}, only {model!r}")
    else:
        raise RequestError(404, "there is no such address; see /docs")
    allowed = ("POST",) if call.what in _POSTED else ("GET", "HEAD")
    if method not in allowed:
        text = f"this address takes {' and '.join(allowed)}"
        raise RequestError(405, text, (b"allow", ", ".join(allowed).encode()))
    return call


def without(prefix: str, scope: Scope) -> Scope:
    """Take a proxy's prefix off an address; what has none of it stays as it is."""
    path: str = scope["path"]
    if path == prefix or path.startswith(f"{prefix}/"):
        return {**scope, "path": path[len(prefix) :]}
    return scope
