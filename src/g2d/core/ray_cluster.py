"""Joining a Ray cluster, or starting one of this machine; Ray is imported here when asked for.

One of this machine listens on loopback alone; `ray_tls` says why another cannot be joined.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from g2d.core import ray_tls
from g2d.core.platforms import cores
from g2d.errors import G2DError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end must not start a cluster of its own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray starts workers at nice 15: beside one busy process replicas got no time to answer.
    "RAY_worker_niceness": "0",
}
_LOOPBACK = "127.0.0.1"
_TRIES = 3  # to start a cluster of this machine
_PATIENCE = 5.0  # seconds for a cluster's head to say whether it knows our token
_HIDDEN = ("G2D_ADMIN_TOKEN",)  # what no process of Ray may find in its environment
# Ray then runs as if it were installed without what its dashboard needs: nobody listens for jobs
# and for readers of metrics, and agents that take two seconds of a core to start are not waited
# for, on a busy machine in vain.
_LEAN = "g2d runs Ray without its dashboard"


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
    ray_tls.check_files()
    import ray

    if own and "RAY_AUTH_MODE" not in os.environ:
        # Other users of this machine reach loopback too: who knows no token must not run code
        # here. Ray asks for one by default; drawn for this cluster alone, for Ray would keep one
        # in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR,
                               "job_config": _job_config()}  # fmt: skip
    try:
        if own:
            _start(cpus or cores(), options)
        else:
            _reach(address)
            ray.init(address, **options)
    except G2DError:
        raise
    except Exception as error:  # Ray has a bare one for a start that took too long
        what = "cannot be started" if own else f"does not answer at {address}"
        told = " ".join(str(error).split())[:300]
        advice = (
            "check that there is memory for it, and try again when the machine is less busy"
            if own else "start one with `ray start"
            " --head`, check the address, and if it asks for a token set RAY_AUTH_MODE=token and"
            " RAY_AUTH_TOKEN_PATH"
        )  # fmt: skip
        raise G2DError(f"a Ray cluster {what} ({told}); {advice}") from error
    try:
        yield own
    finally:
        ray.shutdown()


def on_loopback() -> bool:
    """Whether the node that this process is part of is known by loopback alone."""
    import ray

    return bool(ray.util.get_node_ip_address() == _LOOPBACK)


def _start(cpus: int, options: dict[str, Any]) -> None:
    """Start a cluster of this machine; its processes do not inherit what admits an admin."""
    import ray
    from ray._private import ray_constants, utils

    folder = _private_folder()
    # An empty part of PYTHONPATH is the current directory.
    parts = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = os.pathsep.join([str(folder / "lean"), *parts])
    environment = {"PYTHONPATH": path, **dict.fromkeys(_HIDDEN)}
    # Ray takes "127.0.0.1" to mean this machine's address, and listens on all addresses, unless
    # clusters are off, as on macOS. RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 says so, but is read as Ray
    # is imported, which may have been before, and would hold for a cluster that is joined later.
    with (
        _put(ray_constants, "ENABLE_RAY_CLUSTER", False),
        _put(utils, "get_dashboard_dependency_error", lambda: ImportError(_LEAN)),
        _environment(environment),
    ):
        for left in reversed(range(_TRIES)):
            try:
                ray.init("local", num_cpus=cpus, include_dashboard=False,
                         _temp_dir=str(folder / "ray"), _node_ip_address=_LOOPBACK,
                         **options)  # fmt: skip
                break
            except Exception as error:  # Ray waits 30 s, which is little beside other work
                if not left or "timed out during startup" not in str(error):
                    raise
                ray.shutdown()
    if not on_loopback():
        ray.shutdown()
        raise G2DError(
            f"Ray {ray.__version__} would listen on all addresses of this machine: install the"
            " release that constraints.txt names, or start a cluster yourself and give its address"
        )


@contextmanager
def _put(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Let a module have another value for the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for the block, or, with None, have none of that name."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _private_folder() -> Path:
    """Make a folder for logs, sockets and spilled objects: Ray's own is open to everybody.

    It is deleted as this process ends. Its name is short, for a socket's path has 107 bytes. What
    Ray is given it opens to everybody, too: that is inside, as `ray`. In `lean` is a module that
    cannot be imported, by which Ray's processes know that they are without its dashboard.
    """
    here = os.environ.get("RAY_TMPDIR") or ("/tmp" if os.path.isdir("/tmp") else None)  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="g2d-ray-", dir=here))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "lean").mkdir()
    missing = f"raise ModuleNotFoundError({_LEAN!r}, name=__name__)\n"
    (folder / "lean" / "opencensus.py").write_text(missing, "utf-8")
    return folder


def _job_config() -> Any:
    """What workers get of this process' `sys.path`: the script's own folder, not where it runs.

    Ray puts the current directory in front of every worker's `sys.path`, where any file that is
    named like a module replaces it.
    """
    from ray.job_config import JobConfig

    class OwnPath(JobConfig):  # type: ignore[misc]
        """Leaves `sys.path` to us: Ray adds nothing if it believes that a folder is shipped."""

        def _runtime_env_has_working_dir(self) -> bool:
            return True

    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    return OwnPath(_py_driver_sys_path=[script] if script in sys.path else [])


def _reach(address: str) -> None:
    if "://" in address:
        raise G2DError(
            f"{address} is a Ray Client's address: run g2d on a node of the cluster, and"
            " give HOST:PORT or auto"
        )
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        ray_tls.greet(host.strip("[]"), int(port))
        _check_token(address)


def _check_token(address: str) -> None:
    """Raise a `G2DError` if the cluster wants another token; Ray would ask and warn for 20 s."""
    from ray._private.grpc_utils import init_grpc_channel

    grpc: Any = importlib.import_module("grpc")  # it has no types
    channel = init_grpc_channel(address)
    try:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=_PATIENCE)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise G2DError(
                f"the Ray cluster at {address} asks for another token: set RAY_AUTH_MODE=token, and"
                " RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as on its nodes"
            ) from None
    finally:
        channel.close()
