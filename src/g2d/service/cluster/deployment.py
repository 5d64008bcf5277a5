"""`g2d serve --engine ray`: the coordinator as an actor, replicas as a Ray Serve deployment.

The process that is started here is the operator's: it ends all with SIGTERM or Ctrl-C, and writes
what happens as structured lines. Ray is known here and in `core` alone.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from g2d.core.ray_cluster import found, joined, on_loopback
from g2d.errors import G2DError, SettingsError
from g2d.protect.fingerprint import secret_for
from g2d.service.auditing import TellAt, audited, configured
from g2d.service.cluster.coordinator import Coordinator, Plan
from g2d.service.cluster.lease import AnnouncedGeneration, CoordinatorUpdate, ReplicaReport, Terms
from g2d.service.cluster.mirror import GenerationBytes, VaultIdentity
from g2d.service.cluster.replica import AwayError, LeasedApp, ReplicaSpec, assemble
from g2d.service.http.events import Started, Stopped
from g2d.service.http.limits import AdminToken
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.http.server import listen, read_public_key, warn
from g2d.service.http.startup import refuse_on_ray
from g2d.service.loader import CodeHolder
from g2d.service.monitors.observer import find_observers
from g2d.settings import Settings
from g2d.vault.vault import Vault

_SPACE = "g2d"  # the namespace of our actors
_POLLS = 100_000  # calls that may wait at the coordinator: one for each replica, and some
_START = 120.0  # seconds that the coordinator may take to start
_SHARE = 0.5  # of a CPU: what the coordinator reserves, besides its worker's low priority


class CoordinatorActor(Coordinator):
    """The coordinator, with bytes in Ray's object store."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, ray.put)


class RayClient:
    """A `CoordinatorClient` of the actor, found by its name each time that it was lost."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: Any = None

    def identity(self) -> VaultIdentity:
        """Describe the vault."""
        return self._get(lambda actor: actor.identity.remote(), _START)

    def watch(self, report: ReplicaReport, patience: float) -> CoordinatorUpdate:
        """Long-poll for an update."""
        return self._get(lambda actor: actor.watch.remote(report), patience)

    def fetch(self, announced: AnnouncedGeneration, patience: float) -> GenerationBytes:
        """Get a generation's bytes from the object store."""
        return self._get(lambda _: announced.place, patience)

    def send(self, call: str, *arguments: Any) -> Future[Any]:
        """Call a method of the coordinator."""
        try:
            found: Future[Any] = getattr(self._actor(), call).remote(*arguments).future()
        except (AwayError, RayError) as error:
            found = Future()
            found.set_exception(AwayError(f"the coordinator is away: {error}"))
        return found

    def _actor(self) -> Any:
        if self._known is None:
            try:
                self._known = ray.get_actor(self._name, _SPACE)
            except ValueError:
                raise AwayError(f"there is no actor {self._name}") from None
        return self._known

    def _get(self, ask: Callable[[Any], Any], patience: float) -> Any:
        try:
            return ray.get(ask(self._actor()), timeout=patience)
        except GetTimeoutError:
            raise AwayError(f"no answer within {patience:g} s") from None
        except RayError as error:
            self._known = None
            raise AwayError(f"{type(error).__name__}: {str(error).strip()[-300:]}") from error


class Replica:
    """What Ray Serve runs N times; its application is `replica.assemble`'s."""

    def __init__(self, coordinator: str, spec: ReplicaSpec) -> None:
        import torch

        torch.set_num_threads(1)
        _bind_replicas_to_loopback()
        name = ray_serve.get_replica_context().replica_id.unique_id
        self._application = assemble(RayClient(coordinator), spec, name)

    def __serve_build_asgi_app__(self) -> LeasedApp:
        """Give Ray Serve the application, once it is ready to answer."""
        return self._application


def serve(
    vault: Path,
    options: Options,
    *,
    replicas: int = 2,
    address: str = "",
    lease: float = 0.0,
    token: bytes | None = None,
    key: Path | None = None,
    served: Path | None = None,
    data: str = "",
    audit: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a vault from many replicas until SIGTERM or Ctrl-C; the coordinator runs on this node.

    Args:
        replicas: how many. address: see `ray_cluster.joined`. lease: seconds; 0: chosen from
            `options.every`. Others as in `server.serve`.

    Raises:
        G2DError: there is nothing that may be served, no such observer, no cluster, or no room in
            it.
    """
    refuse_on_ray(options)
    trusted = read_public_key(key)
    if options.observer:
        CodeHolder(vault, options.name, data, trusted, served).close()
        find_observers(options.observer)  # replicas make them, too late to refuse a wrong name
    log, options = Log(), _with_port(options, found(address))
    terms = Terms.of(options.every, lease)
    plan = Plan(vault.absolute(), options, terms, data, trusted,
                served.absolute() if served else None)  # fmt: skip
    spec = ReplicaSpec(options, terms, AdminToken(token), data, trusted, _marks(vault))
    with joined(address) as own, _until_signal() as ended, audited(audit, vault, log, say) as tell:
        tell(configured(options, vault, token is not None, trusted))
        actor, number = _coordinator(plan)
        relay = _Relay(options.name, log, tell)
        try:
            try:
                _deploy(options, replicas, spec, own, say)
                ended.raises = False
                scheme = "https" if options.tls_cert else "http"
                where = f"{scheme}://{options.host}:{options.port}"
                say(f"generation {number} is live at {where}/v2/models/{options.name}")
                warn(options, token, key, log, say)
                started = Started(number, where, os.getpid(), replicas, terms.lease)
                log(started.name, **started.facts())
                tell(started)
                relay.follow(ended)
            finally:
                _end(actor, relay)
                tell(Stopped())
        except RayError as error:
            raise G2DError(f"Ray gave up: {' '.join(str(error).split())[-400:]}") from error
    log("stop")
    log.close()


def _bind_replicas_to_loopback() -> None:
    """On a cluster of one machine, bind what Serve binds to all addresses whatever the node's is.

    It is a gRPC server of each replica's, made after this, for calls of other deployments.
    """
    replica: Any = importlib.import_module("ray.serve._private.replica")
    if on_loopback():
        bind = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, _: bind(server, "127.0.0.1:0")


def _marks(vault: Path) -> bytes:
    """The secret of replicas' marks, b"" where they carry none; the key itself stays here."""
    with Vault.open(vault) as opened:
        text = opened.settings_text
    return secret_for(Settings.from_vault(text, str(vault / "task.toml")))


def actor_name(model: str) -> str:
    """Name of the actor that coordinates a served model, in the namespace "g2d"."""
    return f"coordinator-{model}"


def _coordinator(plan: Plan) -> tuple[Any, int]:
    """Start the coordinator on this node, where the vault is."""
    name = actor_name(plan.options.name)
    node = ray.get_runtime_context().get_node_id()
    kind: Any = ray.remote(CoordinatorActor)
    made = kind.options(
        name=name, namespace=_SPACE, num_cpus=_SHARE, max_restarts=-1, max_concurrency=_POLLS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )  # fmt: skip
    try:
        actor = made.remote(plan)
        failed, number = ray.get(actor.start.remote(), timeout=_START)
    except ValueError:
        raise G2DError(
            f"this cluster serves a model {plan.options.name!r} already; give another --name"
        ) from None
    except (RayError, GetTimeoutError) as error:
        told = " ".join(str(error).split())[-400:]
        raise G2DError(f"the coordinator could not be started: {told}") from error
    if failed:
        ray.kill(actor)
        raise G2DError(failed)
    return actor, number


def _with_port(options: Options, address: str) -> Options:
    """Settle the port: on this machine a free one, said before anything is started if it is not.

    In a cluster the proxies of an earlier run may hold it already, and go on.
    """
    if address and not options.port:
        raise SettingsError("in a cluster the port must be the same on all nodes: give --port")
    if not address:
        with listen(options) as bound:
            return replace(options, port=bound.getsockname()[1])
    return options


def _deploy(
    options: Options, replicas: int, spec: ReplicaSpec, own: bool, say: Callable[[str], None]
) -> None:
    cpus = 1.0
    free = float(ray.available_resources().get("CPU", 0.0))
    if not own and free < replicas:
        say(f"waiting for {replicas} CPUs, of which the cluster has {free:g} free")
    if own:  # all of this machine's cores are shared out: replicas that wait need none
        cores = float(ray.cluster_resources().get("CPU", 1.0))
        cpus = min(1.0, max(0.01, round((cores - _SHARE) / replicas - 0.005, 2)))
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    http = {
        "host": options.host, "port": options.port, "keep_alive_timeout_s": 30,
        "request_timeout_s": options.timeout + 5.0,
        "ssl_certfile": options.tls_cert or None, "ssl_keyfile": options.tls_key or None,
    }  # fmt: skip
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray_serve.start(http_options=http, logging_config=quiet,
                    proxy_location="HeadOnly" if own else "EveryNode")  # fmt: skip
    made: Any = ray_serve.deployment(
        ray_serve.ingress()(Replica), name="replica", num_replicas=replicas, logging_config=quiet,
        ray_actor_options={"num_cpus": cpus}, max_ongoing_requests=2000,
        graceful_shutdown_timeout_s=max(1.0, options.drain), graceful_shutdown_wait_loop_s=0.2,
    )  # fmt: skip
    try:
        ray_serve.run(made.bind(actor_name(options.name), spec), name=f"g2d-{options.name}")
    except RuntimeError as error:
        told = " ".join(str(error).split())[-400:]
        raise G2DError(f"the replicas could not be started: {told}") from error


class _Relay:
    """Writes what the coordinator tells, like a service of one machine."""

    def __init__(self, name: str, log: Log, tell: TellAt) -> None:
        self._coordinator, self._log, self._tell = RayClient(actor_name(name)), log, tell
        self._term, self._sequence, self._event = "", -1, 0

    def follow(self, ended: threading.Event) -> None:
        """Write what happens until the end."""
        while not ended.is_set():
            asked = self._ask()
            while not asked.done() and not ended.wait(0.1):
                pass
            if asked.done() and not self._write(asked):
                ended.wait(1.0)

    def last(self) -> None:
        """Write what was told since."""
        asked = self._ask()
        with suppress(TimeoutError, AwayError, RayError):
            asked.result(5.0)
            self._write(asked)

    def _ask(self) -> Future[Any]:
        return self._coordinator.send(
            "watch", ReplicaReport("", self._term, self._sequence, self._event)
        )

    def _write(self, asked: Future[Any]) -> bool:
        if (error := asked.exception()) is not None:
            text = " ".join(str(error).split())[-300:]
            self._log("alarm", kind="coordinator", text=text)
            return False
        update: CoordinatorUpdate = asked.result()
        self._term, self._sequence, self._event = update.term, update.sequence, update.event
        for happened in update.events:
            self._log(happened.event.name, **happened.event.facts())
            self._tell(happened.event, happened.at)
        return True


def _end(actor: Any, relay: _Relay) -> None:
    """Stop rotation, let answers under way go out, and end the replicas."""
    with suppress(RayError, GetTimeoutError):
        ray.get(actor.stop.remote(), timeout=20.0)
    relay.last()
    with suppress(Exception):  # whatever Serve says, the cluster or at least our part of it ends
        ray_serve.shutdown()
    ray.kill(actor)


class _Ended(threading.Event):
    """Set by a signal; while `raises`, a signal also interrupts what is waited for."""

    raises = True

    def hear(self, *_: object) -> None:
        """Take a signal."""
        self.set()
        if self.raises:
            self.raises = False
            raise KeyboardInterrupt


@contextmanager
def _until_signal() -> Iterator[_Ended]:
    """An event that SIGTERM and Ctrl-C set, instead of what Ray makes of them."""
    ended = _Ended()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, ended.hear) for number in numbers]
    try:
        yield ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
