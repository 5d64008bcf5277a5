"""The addresses under `/encrypted`: the plan, clients' keys, and answers to ciphertexts.

The same gate, rates and budgets as plain requests pass; what they are charged is decided there.
Observers of queries are shown nothing, for nothing here can be read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from g2d.rotation.events import Tell
from g2d.service.access.identity import CALLER, INFER, Caller
from g2d.service.access.quotas import retry_after
from g2d.service.encrypted.arriving import save
from g2d.service.encrypted.evaluators import (
    BrokenError,
    BusyError,
    Evaluators,
    GoneError,
    RefusedError,
)
from g2d.service.encrypted.keyring import KeyRing, Keys
from g2d.service.encrypted.offer import Offer
from g2d.service.encrypted.protocol import DRAWN, KEY_ID, Query, read_query, write_answer
from g2d.service.http.bodies import Bodies, Body, OverBudgetError
from g2d.service.http.events import Broken, KeysTaken
from g2d.service.http.headers import Told
from g2d.service.http.metrics import Metrics
from g2d.service.http.protocol import HEADER_LENGTH, LARGE, RequestError
from g2d.service.http.reading import (
    check_head,
    over_budget,
    read_body,
)
from g2d.service.http.types import Headers, Receive, Scope
from g2d.service.http.versions import Versions

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "/encrypted"
_PLAN, _KEYS, _INFER = f"{PREFIX}/plan", f"{PREFIX}/keys", f"{PREFIX}/infer"
_ALLOWED = {_PLAN: ("GET", "HEAD"), _KEYS: ("POST", "PUT"), _INFER: ("POST",)}
_READS = 2  # of an upload, where an evaluator dies: it may have been of something else
_AGAIN = 1.0  # seconds until an evaluator that died may be asked again
_JSON = (b"content-type", b"application/json")
_INTERRUPTED = "the evaluation was interrupted, and the keys are still here: send again"
_UNKNOWN = (
    "these keys are not known here (any more): upload them again, as `g2d client encrypted keys`"
    " does"
)


class Answered(NamedTuple):
    """An answer: its status, body and headers."""

    status: int
    body: bytes
    headers: Headers


class EncryptedCalls:
    """Answers what is asked under `/encrypted`. Belongs to one event loop.

    Args:
        name: of the model. seconds: for a body to arrive and be answered. charge: takes inputs from
            who asks, or refuses them. tell: takes what operators and the audit should know.
    """

    def __init__(
        self,
        offer: Offer,
        evaluators: Evaluators,
        keyring: KeyRing,
        name: str,
        seconds: float,
        max_bodies: int,
        metrics: Metrics,
        versions: Versions,
        charge: Callable[[Caller, float], None],
        tell: Tell,
    ) -> None:
        self._offer, self._evaluators, self._keyring = offer, evaluators, keyring
        self._name, self._seconds, self._metrics = name, seconds, metrics
        self._versions, self._charge, self._tell = versions, charge, tell
        self._most = offer.query_bytes + LARGE
        self._bodies = Bodies(max_bodies, self._most)

    async def answer(self, scope: Scope, told: Told, receive: Receive) -> Answered:
        """Answer one request, whose caller the gate has found.

        Raises:
            RequestError: it gets no answer.
        """
        path, method, caller = scope["path"].rstrip("/"), scope["method"], scope[CALLER]
        if path != _PLAN and INFER not in caller.roles:  # the gate took it for another address
            raise RequestError(403, f"{caller.name} has not the role {INFER}")
        place, _, own = path.rpartition("/")
        if place == _KEYS and KEY_ID.fullmatch(own):
            _check_method(method, ("DELETE",))
            with _refusals():
                self._keyring.drop(own, caller)
            return Answered(204, b"", [])
        if path not in _ALLOWED:
            raise RequestError(404, f"there is no such address; {PREFIX} has plan, keys and infer")
        _check_method(method, _ALLOWED[path])
        if path == _PLAN:
            return _json(200, self._offer.text.encode())
        work = self._take_keys if path == _KEYS else self._infer
        with _refusals():
            return await work(told, receive, caller)

    # --- keys ------------------------------------------------------------------------------------

    async def _take_keys(self, told: Told, receive: Receive, caller: Caller) -> Answered:
        """Take a client's keys: onto the disk as they come, then read once by an evaluator."""
        most = self._offer.upload_bytes
        check_head(told, most)
        with self._keyring.upload(caller) as upload:
            await save(receive, upload, most, self._seconds)
            await self._read(upload.id, upload.file)
            keys = self._keyring.keep(upload.id, upload.file, upload.size, caller)
        self._tell(KeysTaken(caller.client, keys.size, **caller.facts()))
        about = {"keys": keys.id, "bytes": keys.size, "idle_seconds": self._keyring.idle,
                 "plan": self._offer.digest}  # fmt: skip
        return _json(201, orjson.dumps(about))

    async def _read(self, own: str, file: Path) -> None:
        """Have an evaluator find keys right."""
        try:
            async with asyncio.timeout(self._seconds):
                for left in reversed(range(_READS)):
                    try:
                        await self._evaluators.read(own, file)
                        return
                    except BrokenError as error:
                        self._tell(Broken(str(error)))
                        if not left:
                            text = "the keys could not be read; see the service's log"
                            raise RequestError(500, text) from None
        except TimeoutError:
            raise self._late(True) from None

    # --- answers ---------------------------------------------------------------------------------

    async def _infer(self, told: Told, receive: Receive, caller: Caller) -> Answered:
        began = time.perf_counter()
        check_head(told, self._most)
        self._metrics.in_flight.inc()
        body: Body | None = None
        try:
            async with asyncio.timeout(self._seconds) as limit:
                body = self._bodies.open(caller.client, limit)
                with body:
                    data = await read_body(receive, body, self._most)
                query = read_query(data, told.get(HEADER_LENGTH))
                keys = self._checked(query, caller)
                self._charge(caller, self._offer.batch - 1.0)
                ciphertext, numbers = await self._evaluate(query, keys, caller)
        except TimeoutError:
            if body is not None and body.over:
                raise over_budget(body.over) from None
            raise self._late(body is not None and body.whole) from None
        except OverBudgetError as error:
            raise over_budget(error) from None
        finally:
            self._metrics.in_flight.dec()
        version = self._versions.of(caller, numbers)
        about = self._versions.parameters(caller, numbers) or {"generation": version}
        if not self._versions.tells(caller):
            about |= {DRAWN: True}
        content, headers = write_answer(query, ciphertext, self._name, version, about)
        self._metrics.answered_encrypted(began, self._offer.batch)
        return Answered(200, content, headers)

    def _checked(self, query: Query, caller: Caller) -> Keys:
        """The keys of a query, if both are for what is served."""
        if query.plan != self._offer.digest:
            raise RequestError(
                409,
                "the network behind this service has another plan than these keys were made for:"
                " make and upload new ones, as `g2d client encrypted keys` does",
            )
        return self._keyring.find(query.keys, caller)

    async def _evaluate(
        self, query: Query, keys: Keys, caller: Caller
    ) -> tuple[bytes, tuple[int, ...]]:
        try:
            submit = self._evaluators.submit
            return await submit(keys.id, keys.file, query.ciphertext, caller.client)
        except BrokenError as error:
            self._tell(Broken(str(error)))
            if self._keyring.failed(keys.id):  # another evaluator reads them from their file
                raise RequestError(503, _INTERRUPTED, retry_after(_AGAIN)) from None
            raise RequestError(
                500, "the evaluation failed; upload the keys again, or see the service's log"
            ) from None
        except GoneError:
            self._keyring.lose(keys.id)
            raise

    def _late(self, whole: bool) -> RequestError:
        if not whole:
            return RequestError(408, f"the body did not arrive within {self._seconds:g} s")
        return RequestError(503, f"no answer within {self._seconds:g} s; send again later")


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what is wrong with keys or a ciphertext into a status and a line."""
    try:
        yield
    except GoneError:
        raise RequestError(404, _UNKNOWN) from None
    except RefusedError as error:
        raise RequestError(400, str(error)) from None
    except BusyError as error:
        status, whose = (429, "of this client's ") if error.own else (503, "")
        when = retry_after(error.wait)
        text = f"too many requests {whose}are under way; send again in {when[1].decode()} s"
        raise RequestError(status, text, when) from None


def _check_method(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        text = f"this address takes {' and '.join(allowed)}"
        raise RequestError(405, text, (b"allow", ", ".join(allowed).encode()))


def _json(status: int, body: bytes) -> Answered:
    return Answered(status, body, [_JSON, (b"content-length", b"%d" % len(body))])
