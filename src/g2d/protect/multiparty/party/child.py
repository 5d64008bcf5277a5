"""The engine's process as a party sees it: asked one thing at a time, killed when it is no use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.wire import WireError, pack, unpack_head, unpack_header

_HEAD = 12
_MOST = 1 << 33
_START = 120.0  # seconds in which SPU and jax are imported, on a busy machine


class Child:
    """A process with an engine; `start` it, then `ask`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process, self._turn = process, asyncio.Lock()

    @classmethod
    async def start(cls) -> Child:
        """Start one; it imports SPU while others go on.

        Raises:
            MultipartyError: SPU cannot be imported here.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "g2d.protect.multiparty.party.engine",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        made = cls(process)
        try:
            async with asyncio.timeout(_START):
                await made._hear()
        except (MultipartyError, TimeoutError) as error:
            made.kill()
            raise MultipartyError("SPU does not start here: run `make smpc`") from error
        except BaseException:
            made.kill()
            raise
        return made

    async def ask(
        self, kind: str, body: bytes = b"", **asked: Any
    ) -> tuple[Mapping[str, Any], bytes]:
        """Have something done.

        Raises:
            MultipartyError: it failed, or the process is gone.
        """
        async with self._turn:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(pack({"kind": kind, **asked}, body) + body)
                await self._process.stdin.drain()
            except OSError as error:
                raise MultipartyError(f"the engine is gone: {error}") from error
            return await self._hear()

    async def _hear(self) -> tuple[Mapping[str, Any], bytes]:
        assert self._process.stdout is not None
        try:
            length, size = unpack_head(await self._process.stdout.readexactly(_HEAD), _MOST)
            told = unpack_header(await self._process.stdout.readexactly(length))
            body = await self._process.stdout.readexactly(size)
        except (EOFError, OSError, WireError) as error:
            raise MultipartyError("the engine is gone") from error
        if told["kind"] == "failed":
            raise MultipartyError(str(told["why"]))
        return told, body

    def kill(self) -> None:
        """End it, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> None:
        """Wait until it is gone."""
        await self._process.wait()
