"""A client of the Open Inference Protocol v2, for commands that look at a service from outside.

JSON over HTTP(S), with a bearer token or a certificate of one's own; follows no redirect. Knows no
torch. What is asked, and what answers tell, is decided by whoever uses it.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from g2d.core.files import MOST_TEXT, read_text
from g2d.core.platforms import others_may_read
from g2d.core.types import Array
from g2d.errors import DAMAGE, G2DError, SettingsError

TOKEN_VARIABLE = "G2D_TOKEN"  # noqa: S105 (its name, not a token)
_KINDS = {"f": "FP", "i": "INT", "u": "UINT"}


@dataclass(frozen=True)
class Credentials:
    """How a client says who it is, and whom it trusts.

    Attributes:
        token: sent as `Authorization: Bearer`. ca: file of certificates that the service's is
            verified by; None: the system's. certificate: file of a certificate with its key (PEM).
    """

    token: str = ""
    ca: Path | None = None
    certificate: Path | None = None

    @classmethod
    def read(cls, token: Path | None, ca: Path | None, certificate: Path | None) -> Credentials:
        """Read the token from a file, or else from $G2D_TOKEN.

        Raises:
            SettingsError: the file cannot be read, is open to others, or holds no token.
        """
        text = os.environ.get(TOKEN_VARIABLE, "")
        if token is not None:
            try:
                if others_may_read(stat.S_IMODE(token.stat().st_mode)):
                    raise SettingsError(f"{token} is open to others: run `chmod 600 {token}` first")
                text = read_text(token, MOST_TEXT, follow=True)
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"cannot read the token in {token}: {error}") from error
        text = text.strip()
        if not (text.isascii() and text.isprintable()) or " " in text or (token and not text):
            raise SettingsError(f"{token or TOKEN_VARIABLE} holds no token, which is one line")
        return cls(text, ca, certificate)

    def context(self) -> ssl.SSLContext:
        """What a connection is made with.

        Raises:
            SettingsError: a file holds no certificate, or no key that fits it.
        """
        try:
            made = ssl.create_default_context(cafile=self.ca)
            if self.certificate:
                made.load_cert_chain(self.certificate)
        except (OSError, ssl.SSLError) as error:
            names = " or ".join(str(file) for file in (self.ca, self.certificate) if file)
            raise SettingsError(f"{names} cannot be used for TLS: {error}") from error
        return made


@dataclass(frozen=True)
class Described:
    """What a service says of its model; `number` of its live version, where that is a number."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    number: int | None


@dataclass(frozen=True, eq=False)
class Answer:
    """Scores (n, classes), or classes alone (n,); and which generation says so, if any does."""

    values: Array
    number: int | None

    @property
    def labels_only(self) -> bool:
        """Whether only classes came."""
        return self.values.ndim == 1


class Client:
    """Asks one model of a service, a connection a question.

    Args:
        url: root of the service, http or https. model: its name there. timeout: seconds a read may
            take.

    Raises:
        SettingsError: the address is none.
    """

    def __init__(
        self, url: str, model: str = "g2d", known: Credentials | None = None, timeout: float = 30.0
    ) -> None:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            good = False
        if not good:
            raise SettingsError(f"{url!r} is not the address of a service; give http://host:port")
        self.url, self._model, self._timeout = url, model, timeout
        self._known = known or Credentials()
        self._context = self._known.context() if parts.scheme == "https" else None
        self._path = f"{parts.path.rstrip('/')}/v2/models/{quote(model, safe='')}"

    def describe(self) -> Described:
        """Ask what is served.

        Raises:
            G2DError: it cannot be reached, refuses, or is no such service.
        """
        told = self._ask("GET", self._path)
        try:
            source, versions = told["inputs"][0], told.get("versions") or [None]
            shape = tuple(int(side) for side in source["shape"][1:])
            datatype, name = str(source["datatype"]), str(source["name"])
            return Described(name, shape, datatype, _number(versions[-1]))
        except DAMAGE as error:
            raise G2DError(
                f"{self.url} describes model {self._model!r} without inputs[0] of name, shape and "
                "datatype: is it a service of the Open Inference Protocol v2?"
            ) from error

    def ask(self, described: Described, x: Array) -> Answer:
        """Send inputs (n, ...) in one request.

        Raises:
            G2DError: it does not answer, refuses, or answers neither scores nor classes.
        """
        sent = {"name": described.name, "shape": list(x.shape), "datatype": datatype_of(x)}
        body = json.dumps({"inputs": [sent | {"data": x.ravel().tolist()}]})
        told = self._ask("POST", f"{self._path}/infer", body)
        try:
            output = told["outputs"][0]
            values = np.array(output["data"])
            whole = values.dtype.kind in "iu" and values.size == len(x)
            numbers = values.dtype.kind in "iuf" and values.size and values.size % len(x) == 0
            if not (whole or (numbers and values.size >= 2 * len(x))):
                raise ValueError
            parameters = told.get("parameters")
            about = parameters.get("generation") if isinstance(parameters, dict) else None
            number = _number(told.get("model_version") if about is None else about)
        except DAMAGE as error:
            raise G2DError(
                f"{self.url} answers neither scores nor classes of {len(x)} inputs in outputs[0]"
            ) from error
        return Answer(values.reshape(-1) if whole else values.reshape(len(x), -1), number)

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._known.token:
            headers["Authorization"] = f"Bearer {self._known.token}"
        connection: http.client.HTTPConnection
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=self._context
            )
        try:
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                data, status = response.read(MOST_TEXT), response.status
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = str(error) or type(error).__name__
            raise G2DError(f"{self.url} does not answer: {words}") from error
        finally:
            connection.close()
        if status != 200:
            said = " ".join(data[:200].decode(errors="replace").split())
            raise G2DError(f"{self.url} answered {status}: {said}")
        try:
            told = json.loads(data)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise G2DError(f"{self.url} did not answer with an object in JSON")
        return told


def datatype_of(x: Array) -> str:
    """The protocol's word for the dtype of an array."""
    return f"{_KINDS.get(x.dtype.kind, x.dtype.kind)}{8 * x.dtype.itemsize}"


def _number(told: Any) -> int | None:
    text = str(told)
    return int(text) if text.isdecimal() and len(text) < 17 else None
