"""Puts the parts of a service together: one way for one machine, for replicas and for tests.

`assemble` makes the side that answers, led by whatever `RotationControl` it is given;
`rotate_vault` makes the side that owns a vault's rotation, on the machine where the vault is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from g2d.core.types import Values
from g2d.errors import G2DError, SettingsError
from g2d.protect.answers import LABEL, answers_of
from g2d.rotation.control import RotationControl
from g2d.rotation.events import Alarm, Committed, Event, Swap, Tell
from g2d.rotation.scheduler import GenerationLoader, Rotation
from g2d.rotation.snapshot import Live
from g2d.rotation.triggers import AlarmBudget, Triggers
from g2d.rotation.window import Window
from g2d.service.access.gate import Access
from g2d.service.access.tls import ServerTls
from g2d.service.auditing import connect
from g2d.service.encrypted.answering import Answering
from g2d.service.encrypted.evaluators import Evaluators
from g2d.service.encrypted.offer import Offer
from g2d.service.growing import Grower, GrowingRotation
from g2d.service.http.app import Service
from g2d.service.http.batcher import Batcher
from g2d.service.http.event_log import EventLog
from g2d.service.http.limits import AdminToken
from g2d.service.http.log import Log
from g2d.service.http.metrics import Metrics
from g2d.service.http.options import Options
from g2d.service.http.policy_batcher import PolicyBatcher
from g2d.service.http.protocol import SCORES, Model
from g2d.service.http.types import Asgi
from g2d.service.http.versions import Tags, Versions
from g2d.service.monitors.builtin import Watched
from g2d.service.monitors.canaries import CanaryWatch, KeptCanaries
from g2d.service.monitors.desk import Desk
from g2d.service.monitors.feedback.judge import FeedbackJudge
from g2d.service.monitors.feedback.log import FeedbackLog, log_path
from g2d.service.monitors.given_up import GivenUp
from g2d.service.monitors.listed import built_in
from g2d.service.monitors.memory import Monitor
from g2d.service.monitors.observer import Observer, ObserverQueue, Observers
from g2d.service.opening import missed
from g2d.service.policy_state import GLOBAL
from g2d.service.released import ReleasedRotation
from g2d.service.suspects import Suspects
from g2d.service.worker import Worker
from g2d.settings import MonitorSettings, ServeSettings

if TYPE_CHECKING:
    from g2d.protect.audit.log import AuditLog
    from g2d.service.loader import VaultLoader


class ServedLoader(KeptCanaries, Protocol):
    """What answering needs of whoever loads generations; `loader.VaultLoader` is one."""

    @property
    def model(self) -> Model:
        """What is served: its name, one input's shape, how many classes."""
        ...

    @property
    def monitors(self) -> MonitorSettings:
        """What is watched, and what alarms may cause."""
        ...

    @property
    def serving(self) -> ServeSettings:
        """Who is answered by which live generation, and what an answer tells."""
        ...

    def describe(self, number: int) -> Values:
        """Return facts about a generation for the history."""
        ...


@dataclass(frozen=True)
class Parts:
    """A service that is put together; `monitor` is not started yet."""

    live: Live
    rotation: RotationControl
    metrics: Metrics
    event_log: EventLog
    service: Service
    monitor: Monitor
    desk: Desk


def assemble(
    loader: ServedLoader,
    live: Live,
    lead: Callable[[Tell], RotationControl],
    options: Options,
    admin_token: AdminToken,
    log: Log,
    observers: Observers,
    vault: Path | None = None,
    results: Path | None = None,
    now: Callable[[], float] = time.time,
    audit: AuditLog | None = None,
    tls: ServerTls | None = None,
    suspects: Suspects | None = None,
    encrypted: tuple[Offer, Evaluators] | None = None,
) -> Parts:
    """Make the side that answers: metrics, events, batches, HTTP, and the watch over memory.

    Args:
        lead: makes what controls rotation, given what takes its events. observers: made once
            the code is checked. vault: its folder, which only the log may name. results:
            what `g2d attack` wrote or will write, for the page. now: seconds since 1970, by which
            generations expire. audit: hears every event. tls: where it is agreed here. suspects:
            keeps who is pinned and what cools down, over a restart. encrypted: of ciphertexts.

    Raises:
        SettingsError: a file that says who may ask is not what it should be, a monitor that
            settings name cannot be made, or a policy needs more live generations than are here.
        G2DError: the log of feedback cannot be kept.
    """

    metrics = Metrics(lambda: rotation.status())  # noqa: PLW0108 (it is made below)
    desk = _desk(loader, live, options, observers, vault)
    desk.register(metrics.registry)
    watching = _observing({**desk.monitors, **observers.made}, options, metrics, log)
    heard = partial(_heard, audit, watching, live)
    event_log = EventLog(metrics, log, loader.describe, vault, heard)
    connect(audit, event_log.tell, metrics.audit_dropped.inc, log)
    rotation = lead(event_log.tell)
    metrics.count_basins(rotation.status)
    keeping = _connected(observers, rotation, loader.monitors, suspects)
    serving = options.serving(loader.serving)
    batcher, versions = _answering(live, serving, options, rotation)
    access = Access(
        options, admin_token, event_log.tell, lambda why: metrics.denied.labels(why).inc(),
        metrics.limited.inc, tls, ("/status",) if versions.hidden else (),
    )  # fmt: skip
    answering = encrypted and Answering(
        *encrypted, live, rotation, options, metrics, versions, access.charge, event_log.tell
    )
    service = Service(
        _told(loader.model, serving), options, rotation, batcher, metrics, event_log, access,
        partial(_pages, results, desk), watching, versions, answers_of(serving), answering,
    )  # fmt: skip
    # Suspects first: canaries that cannot be asked must not keep pins from being kept.
    others = GivenUp(live, loader.describe, rotation), CanaryWatch(live, loader, rotation, metrics)
    also = (*keeping, *(each.watch for each in others))
    monitor = Monitor(live, loader, rotation, metrics, options.check_every, now, also)
    return Parts(live, rotation, metrics, event_log, service, monitor, desk)


def _connected(
    observers: Observers,
    rotation: RotationControl,
    settings: MonitorSettings,
    suspects: Suspects | None,
) -> tuple[Callable[[], None], ...]:
    """Have alarms of observers told; return what keeps over a restart who is suspect."""
    observers.connect(rotation.alarm, settings.cooldown, suspects.told if suspects else ())
    if suspects is None:
        return ()
    suspects.watch(line=observers.line)
    return (suspects.look,)


def _desk(
    loader: ServedLoader, live: Live, options: Options, observers: Observers, vault: Path | None
) -> Desk:
    """Make the monitors that settings and options ask for, and what takes labels if they do."""
    settings, model = loader.monitors, loader.model
    settings = replace(settings, watch=(*settings.watch, *options.monitor))
    monitors = built_in(Watched(model, settings, observers.line))
    pinned = live.pins if isinstance(live, Window) else tuple
    if not settings.feedback or vault is None:  # a replica has no vault of its own
        return Desk(monitors, observers.line, pinned=pinned)

    def accuracy(number: int) -> float | None:
        found = loader.describe(number).get("accuracy")
        return float(found) if isinstance(found, int | float) else None

    path = log_path(vault)
    log = FeedbackLog(path, model, settings.feedback_rows, settings.feedback_days)
    judge = FeedbackJudge(
        live, model, settings, accuracy, observers.line, log,
        lambda number: loader.describe(number).get("renewal", 0),
    )  # fmt: skip
    return Desk(monitors, observers.line, judge, pinned)


def _answering(
    live: Live, serving: ServeSettings, options: Options, rotation: RotationControl
) -> tuple[Batcher, Versions]:
    """Make what answers under a policy, and what names the generations that did."""
    sizes = options.max_batch, options.max_waiting
    if isinstance(live, Window):
        batcher = PolicyBatcher(live, serving, *sizes, rotation.count)
        return batcher, Tags(rotation, live, serving.policy)
    if serving.policy != GLOBAL:
        raise SettingsError(
            f"[serve] policy is {serving.policy!r}, and here only the newest generation is live:"
            " serve on one machine (--engine local), or with --policy global"
        )
    return Batcher(live, *sizes, rotation.count), Versions(rotation)


def _told(model: Model, serving: ServeSettings) -> Model:
    """The model as its answers are."""
    return replace(model, output=LABEL if serving.answers == LABEL else SCORES)


def _observing(
    made: Mapping[str, Observer], options: Options, metrics: Metrics, log: Log
) -> ObserverQueue | None:
    def failed(name: str, error: BaseException) -> None:
        # Not an event: whoever listens would learn what watches him, and which input broke it.
        metrics.observer_errors.inc()
        log("observer", observer=name, text=f"it raised {type(error).__name__}")

    waiting = max(options.max_waiting, options.max_batch)
    return ObserverQueue(made, metrics.unobserved.inc, failed, waiting) if made else None


def _heard(
    audit: AuditLog | None,
    watching: ObserverQueue | None,
    live: Live,
    event: Event,
    at: float | None,
) -> None:
    """Hear every event before it is told: the audit log all, monitors swaps, a policy suspects."""
    if audit is not None:
        audit.tell(event, at)
    if watching is not None and isinstance(event, Swap):
        watching.swapped(event.generation)
    if isinstance(event, Alarm) and event.suspect and isinstance(live, Window):
        live.pin(event.suspect, event.kind)  # before it rotates: it stays, and the others move


def _pages(results: Path | None, desk: Desk, service: Service) -> Asgi:
    from g2d.service.http.status_api import build

    return build(service, results, desk)


def rotate_vault(
    vault: Path,
    loader: VaultLoader,
    live: Live,
    options: Options,
    tell: Tell,
    data: str = "",
    through: GenerationLoader | None = None,
    suspects: Suspects | None = None,
) -> Rotation:
    """Make the side that owns a vault's rotation: its worker, its triggers, its memory.

    Args:
        through: loads and verifies spares in the place of `loader`, which a cluster's rollout does.
        suspects: keeps the budget of alarms over a restart.
    """
    loader.hear(tell)
    tell = _remembering(loader, tell)
    if loader.unbound:
        tell(Alarm("code", loader.unbound))
    unready, budget = partial(_unready, loader, live), AlarmBudget(loader.monitors.rotations)
    if suspects is not None:
        suspects.watch(budget=budget)
    if loader.follows:
        return ReleasedRotation(live, loader, tell, unready, budget, partial(missed, loader, live))
    worker = Worker(vault, data, tell, options.patience, loader.task, loader.code)
    triggers = Triggers(options.every, options.jitter, options.queries)
    make: Callable[..., Rotation] = Rotation
    if wanted := loader.growth.unseen:
        grower = Grower(vault, wanted, tell, data, loader.task, loader.code)
        make = partial(GrowingRotation, grower=grower)
    return make(
        live, worker, through or loader, triggers, tell, unready=unready, budget=budget,
        missed=partial(missed, loader, live),
    )  # fmt: skip


def _unready(loader: VaultLoader, live: Live) -> str:
    """Why what is live is served, for there is nothing better, and is not what it should be."""
    snapshot = live.snapshot
    if loader.now() >= snapshot.expires:
        return f"generation {snapshot.number} has expired"
    return "the clock was set back" if loader.behind() else ""


def _remembering(loader: VaultLoader, tell: Tell) -> Tell:
    """Note outside the vault what is committed, before it answers: a kill must not forget it."""

    def told(event: Event) -> None:
        if isinstance(event, Committed):
            try:
                loader.served(event.generation)
            except G2DError as error:
                tell(Alarm("served", str(error)))
        tell(event)

    return told
