"""Requests that wait in a party: each is one client's, comes once, and in measure."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from g2d.protect.multiparty.config import WIDTH, Limits
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.program import Program

_ID = re.compile("[0-9a-f]{32}")
_REMEMBERED = 1 << 17
Answer = tuple[Mapping[str, Any], bytes]
Key = tuple[str, str]
"""A client's certificate, and the name that it gave a request."""


@dataclass(eq=False)
class Pending:
    """A request whose share has come.

    Attributes:
        id: its name. client: whose it is: the certificate's fingerprint. n: its inputs. digest: of
            the program as the client knows it.
    """

    id: str
    client: str
    n: int
    digest: str
    body: bytes = field(repr=False)
    answer: asyncio.Future[Answer] = field(repr=False)
    announced: bool = False

    def refuse(self, why: str) -> None:
        """Say that there will be no answer."""
        if not self.answer.done():
            self.answer.set_exception(MultipartyError(why))


class Requests:
    """All that wait, by client and name: no client takes another's names, or answers.

    A name that a client has given before is refused.
    """

    def __init__(self, protocol: str, limits: Limits) -> None:
        self._width, self._limits = WIDTH[protocol], limits
        self._waiting: dict[Key, Pending] = {}
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._left: dict[str, tuple[float, float]] = {}
        self._came = asyncio.Condition()

    async def take(
        self, asked: Mapping[str, Any], body: bytes, program: Program, client: str
    ) -> Pending:
        """Let a request wait.

        Args:
            client: whose it is, by the certificate.

        Raises:
            MultipartyError: it is not one, or came before, or there were too many.
        """
        name, n, digest = asked.get("id"), asked.get("n"), asked.get("digest")
        if not (isinstance(name, str) and _ID.fullmatch(name) and type(n) is int):
            raise MultipartyError("a request without a name or a number of inputs")
        if not 1 <= n <= self._limits.batch:
            raise MultipartyError(f"{n} inputs, at most {self._limits.batch} a request")
        if digest != program.digest:
            raise MultipartyError("the request is for another program: connect anew")
        if len(body) != n * math.prod(program.shape) * self._width:
            raise MultipartyError(f"{len(body)} bytes are no share of {n} inputs {program.shape}")
        key = client, name
        if key in self._seen:
            raise MultipartyError("this request came before: every request has a name of its own")
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self._charge(client, n)
        made = Pending(name, client, n, digest, body, asyncio.get_running_loop().create_future())
        async with self._came:
            self._waiting[key] = made
            self._came.notify_all()
        return made

    def _charge(self, client: str, n: int) -> None:
        now, full = time.monotonic(), float(self._limits.per_minute)
        left, at = self._left.get(client, (full, now))
        left = min(full, left + (now - at) * full / 60) - n
        if left < 0:
            raise MultipartyError(
                f"too many inputs: {self._limits.per_minute} a minute for one client"
            )
        self._left[client] = left, now

    async def find(self, client: str, name: str, seconds: float) -> Pending | None:
        """A client's request, as soon as it is there; None: it did not come."""
        key = client, name
        async with self._came:
            try:
                async with asyncio.timeout(seconds):
                    await self._came.wait_for(lambda: key in self._waiting)
            except TimeoutError:
                return None
            return self._waiting.get(key)

    def waiting(self, client: str, name: str) -> Pending | None:
        """A client's request that is there."""
        return self._waiting.get((client, name))

    def forget(self, pending: Pending) -> None:
        """Drop a request that is answered or refused."""
        self._waiting.pop((pending.client, pending.id), None)

    def refuse_all(self, why: str) -> None:
        """Refuse all that wait."""
        for pending in list(self._waiting.values()):
            pending.refuse(why)
