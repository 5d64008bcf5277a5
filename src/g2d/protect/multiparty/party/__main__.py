"""One party: `python -m g2d.protect.multiparty.party --rank R --config parties.toml`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import signal
import sys
from importlib import metadata
from pathlib import Path

from g2d.core.platforms import private_state
from g2d.errors import G2DError
from g2d.protect.multiparty.config import Config
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.party.coordinator import Coordinator
from g2d.protect.multiparty.party.follower import Follower
from g2d.protect.multiparty.party.server import Party
from g2d.protect.multiparty.party.store import Store


def versions() -> dict[str, str]:
    """What has to be the same at all parties: what compiles and what computes.

    Raises:
        MultipartyError: it is not installed here.
    """
    try:
        return {name: metadata.version(name) for name in ("spu", "jax", "jaxlib")}
    except metadata.PackageNotFoundError as error:
        raise MultipartyError(
            f"{error.name} is not installed for {sys.executable}: run `make smpc`, and start the"
            " party with `g2d smpc party` or .venv-smpc/bin/python"
        ) from error


def say(line: str) -> None:
    """Tell the operator; a full disk under a log stops no party."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def party(given: argparse.Namespace) -> Party:
    """The party that the flags describe."""
    config = Config.read(given.config)
    if given.rank not in config.ranks:
        raise MultipartyError(
            f"rank {given.rank} is none of {given.config}: 0 to {len(config.ranks) - 1}"
        )
    found = versions()
    place = config.parties[given.rank]
    certificate = given.certificate or place.file
    key = given.key or certificate.with_suffix(".key")
    # Of this set-up's own: another one's shares are none of ours.
    name = hashlib.sha256(str(given.config.absolute()).encode()).hexdigest()[:16]
    folder = given.state or private_state("smpc", f"{name}-{given.rank}")
    kind = Coordinator if given.rank == 0 else Follower
    return kind(config, given.rank, (certificate, key), Store(folder), found, say)


async def serve(made: Party) -> None:
    """Run until a signal asks for the end."""
    task = asyncio.ensure_future(made.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    made.store.close()


def main() -> int:
    """Read the flags and serve; what fails is one line."""
    flags = argparse.ArgumentParser(description="One party of a multi-party inference.")
    flags.add_argument("--rank", type=int, required=True)
    flags.add_argument("--config", type=Path, required=True, help="parties.toml")
    flags.add_argument("--certificate", type=Path, help="else that of parties.toml")
    flags.add_argument("--key", type=Path, help="else beside the certificate, as .key")
    flags.add_argument("--state", type=Path, help="folder for shares; else in the state folder")
    try:
        asyncio.run(serve(party(flags.parse_args())))
    except (G2DError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
