"""The engine of the next session, started before it is needed, and again where it fails."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.child import Child
from g2d.rotation.triggers import Backoff

_AGAIN = Backoff(first=1.0, most=60.0)


class Spare:
    """An engine that waits for a session: importing SPU takes a second.

    Args:
        say: told why one does not start. again: when it is tried again.

    Attributes:
        why: "", or why there is none, and when it is tried again.
    """

    def __init__(self, say: Callable[[str], None], again: Backoff | None = None) -> None:
        self._say, self._again, self.why = say, again or _AGAIN, ""
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._told = asyncio.Event()

    def begin(self) -> None:
        """Start one; it goes on until one has started."""
        self._told.clear()
        self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        failures = 0
        while True:
            try:
                self._child = child = await Child.start()
            except (MultipartyError, OSError) as error:
                failures += 1
                wait = self._again.seconds(failures, random.SystemRandom())
                times = "" if failures == 1 else f" ({failures} times)"
                self.why = f"the engine does not start{times}, tried again in {wait:.0f} s: {error}"
                self._say(self.why)
                self._told.set()
                await asyncio.sleep(wait)
                continue
            self.why = ""
            self._told.set()
            await child.ended()
            if self._child is not child:  # a session has it
                return
            self._child, failures = None, failures + 1
            self._told.clear()

    async def there(self) -> None:
        """Wait until there is one.

        Raises:
            MultipartyError: it does not start; the text says when it is tried again.
        """
        while self._child is None:
            await self._told.wait()
            if self.why:
                raise MultipartyError(self.why)

    async def take(self) -> Child:
        """The engine, which is its taker's now; see `there`."""
        await self.there()
        child, self._child = self._child, None
        assert child is not None
        return child

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()  # one that starts is killed
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._child is not None:
            self._child.kill()
