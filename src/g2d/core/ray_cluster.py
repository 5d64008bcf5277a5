"""Joining a Ray cluster, or starting one of this machine; Ray is imported here when asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from g2d.core.platforms import cores
from g2d.errors import G2DError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end must not start a cluster of its own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray starts workers at nice 15: beside one busy process replicas got no time to answer.
    "RAY_worker_niceness": "0",
}
_REACH = 5.0  # seconds to reach a cluster's address; Ray itself would try for a minute


def require(extra: bool = False) -> None:
    """Raise a `G2DError` unless Ray is installed; `extra`: with what serving needs.

    Also sets what Ray reads from the environment as it is imported: call it before that.
    """
    for name in ("ray", *(("aiohttp",) if extra else ())):
        if importlib.util.find_spec(name) is None:
            raise G2DError(f"--engine ray needs {name}: pip install 'g2d[ray]'")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)


def found(address: str) -> str:
    """Return the address of the cluster to join; "": one of this machine is to be started."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


@contextmanager
def joined(address: str = "", cpus: int = 0) -> Iterator[bool]:
    """Be part of a cluster for the block; True: it is of this machine alone, and ends with it.

    Args:
        address: HOST:PORT or "auto"; "" takes $RAY_ADDRESS, and without it a cluster of this
            machine is started, on loopback, without dashboard. cpus: of that one; 0: all.

    Raises:
        G2DError: Ray is not installed, or no cluster answers at the address.
    """
    require()
    address = found(address)
    own = not address
    import ray

    if own and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on every address: who knows no token must not run code here. It asks for one
        # by default; drawn for this cluster alone, for Ray would keep one in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if own:
            cpus = cpus or cores()
            ray.init("local", num_cpus=cpus, include_dashboard=False,
                     _node_ip_address="127.0.0.1", **options)  # fmt: skip
        else:
            _reach(address)
            ray.init(address, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        what = "cannot be started" if own else f"does not answer at {address}"
        told = " ".join(str(error).split())[:300]
        advice = (
            "check that there is memory for it" if own else "start one with `ray start"
            " --head`, check the address, and if it asks for a token set RAY_AUTH_MODE=token and"
            " RAY_AUTH_TOKEN_PATH"
        )  # fmt: skip
        raise G2DError(f"a Ray cluster {what} ({told}); {advice}") from error
    try:
        yield own
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    if "://" in address:
        raise G2DError(
            f"{address} is a Ray Client's address: run g2d on a node of the cluster, and"
            " give HOST:PORT or auto"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _REACH).close()
