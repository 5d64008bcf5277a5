"""What Prometheus scrapes, in a registry of its own, and latency quantiles around a swap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.samples import Sample

from g2d.core.types import Values
from g2d.rotation.scheduler import GRACE

__all__ = ["CONTENT_TYPE_LATEST", "Latencies", "Metrics", "blurred", "open_reasons", "public"]

_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_SLOW = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0, 50.0, 100.0)
_SECRET = ("schedule", "queries")  # what is due at a moment that nobody asked for
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


_QUERIES = frozenset(
    {
        "g2d_requests", "g2d_inputs", "g2d_request_seconds", "g2d_rate_limited",
        "g2d_encrypted_seconds", "g2d_encrypted_waiting", "g2d_encrypted_keys",
    }
)  # fmt: skip
"""Metrics that tell how many queries there were: `--queries` rotates by that number."""

_OPEN = _QUERIES | {
    "g2d_in_flight", "g2d_connections", "g2d_connections_ended", "g2d_wrong_tokens", "g2d_denied",
}  # fmt: skip
"""Metrics that tell of no generation: all that there are for who may not know when it rotates."""

CLOSED = frozenset({"g2d_monitor_alarms", "g2d_monitor", "g2d_alarms_suppressed",
                    "g2d_alarms_withheld", "g2d_observer_dropped_inputs",
                    "g2d_observer_errors", "g2d_unseen_basins"})  # fmt: skip
"""Metrics of what monitors of queries see, and of when they see nothing, and of whether what comes
next is new to an attacker: told to nobody who does not say who he is."""

MONITOR, DEMAND = "monitor: ", "demand"  # how a rotation names a reason, and what clients are told


def blurred(count: float) -> int:
    """Round a count down to two digits: what is told of growing counts grows too."""
    unit = 10 ** max(0, len(str(int(count))) - 2)
    return int(count) // unit * unit


def _coarse(value: float) -> float:
    """Round a rate, or a time, to two digits."""
    return float(f"{value:.2g}")


def public(status: dict[str, Any]) -> dict[str, Any]:
    """Return a rotation's status without what would betray the moment of the next one.

    Counts of two digits, what is due unasked, by jitter or by answers, only once it is late, and
    nothing of what monitors of queries saw.
    """
    told = dict(status)
    if "answered" in told:
        told["answered"] = blurred(told["answered"])
    if told.get("late", 0.0) < GRACE:
        told["late"] = 0.0
        if "due" in told:
            told["due"] = [reason for reason in told["due"] if reason not in _SECRET]
    if "due" in told:
        told["due"] = open_reasons(told["due"])
    for closed in ("withheld", "growth"):
        told.pop(closed, None)
    return told


def open_reasons(reasons: Iterable[str]) -> list[str]:
    """Return why it rotates as clients may know it: what a monitor of queries saw is a demand.

    Else whoever attacks would learn from it what is noticed.
    """
    return sorted({DEMAND if reason.startswith(MONITOR) else reason for reason in reasons})


class Latencies:
    """The last answers' latencies, for quantiles over a span of time; one thread writes."""

    def __init__(self, size: int = 1 << 16) -> None:
        self._at = np.full(size, -np.inf)
        self._seconds = np.zeros(size)
        self._next = 0

    def add(self, at: float, seconds: float) -> None:
        """Note an answer that was sent at `at`, a `time.perf_counter()`."""
        place = self._next % len(self._at)
        self._at[place], self._seconds[place] = at, seconds
        self._next += 1

    def quantiles(self, begin: float, end: float) -> dict[str, float] | None:
        """Quantiles in seconds, and the count, of answers sent in [begin, end); None: none were.

        The count has two digits: it is public.
        """
        inside = self._seconds[(self._at >= begin) & (self._at < end)]
        if not len(inside):
            return None
        values = np.quantile(inside, list(_QUANTILES.values()))
        named = {name: float(value) for name, value in zip(_QUANTILES, values, strict=True)}
        return named | {"answers": blurred(len(inside))}

    def recent(self, seconds: float) -> dict[str, Any]:
        """Say how many answers there were, how many a second lately, and how quick.

        Numbers have two digits: they are public.
        """
        now = time.perf_counter()
        found = self.quantiles(now - seconds, now) or dict.fromkeys(("answers", *_QUANTILES), 0)
        # Where more came than are remembered, the oldest one says since when.
        kept = min(seconds, now - float(self._at.min())) if found["answers"] else seconds
        rate = found["answers"] / max(kept, 1e-9)
        quick = {name: found[name] if found["answers"] else None for name in ("p50", "p99")}
        return {"answers": blurred(self._next), "per_second": _coarse(rate), **quick}


class Metrics:
    """Counters of one service. Labels hold words of ours alone, never what a client sent.

    Args:
        status: `Rotation.status`, asked at every scrape.
    """

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self.registry = registry = CollectorRegistry()
        self.latencies = Latencies()
        self.latency = Histogram(
            "g2d_request_seconds", "Seconds from an infer request's first byte of body to its"
            " answer.", buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        self.requests = Counter("g2d_requests", "Requests by call and HTTP status.",
                                ["call", "status"], registry=registry)  # fmt: skip
        self.inputs = Counter("g2d_inputs", "Inputs answered.", registry=registry)
        self.in_flight = Gauge("g2d_in_flight", "Infer requests under way.", registry=registry)
        self.swaps = Counter("g2d_swaps", "Rotations.", registry=registry)
        self.rejected = Counter("g2d_rejected_candidates", "Candidates that failed a gate, by"
                                " gate.", ["gate"], registry=registry)  # fmt: skip
        self.refused = Counter("g2d_refused_generations", "Generations that were not served, by"
                               " reason.", ["reason"], registry=registry)  # fmt: skip
        self.failures = Counter("g2d_spare_failures", "Times that no spare could be made.",
                                registry=registry)  # fmt: skip
        self.alarms = Counter("g2d_alarms", "Alarms by kind.", ["kind"], registry=registry)
        self.monitor_alarms = Counter("g2d_monitor_alarms", "Alarms of monitors of queries.",
                                      ["kind", "level"], registry=registry)  # fmt: skip
        self.checks = Counter("g2d_integrity_checks", "Checks of the live weights by outcome.",
                              ["outcome"], registry=registry)  # fmt: skip
        self.canaries = Counter("g2d_canary_checks", "Checks of the live answers to canaries, by"
                                " outcome.", ["outcome"], registry=registry)  # fmt: skip
        self.wrong_tokens = Counter("g2d_wrong_tokens", "Admin calls with a wrong token.",
                                    registry=registry)  # fmt: skip
        self.denied = Counter("g2d_denied", "Requests of who may not ask, by reason.", ["reason"],
                              registry=registry)  # fmt: skip
        self.limited = Counter("g2d_rate_limited", "Requests over a client's rate.",
                               registry=registry)  # fmt: skip
        self.unobserved = Counter("g2d_observer_dropped_inputs", "Inputs that observers were not"
                                  " shown: too many waited.", registry=registry)  # fmt: skip
        self.observer_errors = Counter("g2d_observer_errors", "Times that an observer raised; the"
                                       " log says which.", registry=registry)  # fmt: skip
        self.connections = Gauge("g2d_connections", "Connections, TLS handshakes included.",
                                 registry=registry)  # fmt: skip
        self.ended = Counter("g2d_connections_ended", "Connections that gave way to new ones or"
                             " were refused, by reason.", ["why"], registry=registry)  # fmt: skip
        self.audit_dropped = Counter("g2d_audit_dropped_records", "Events that the audit log"
                                     " lost.", registry=registry)  # fmt: skip
        self._ok = self.requests.labels("infer", "200")
        self._gauge("g2d_generation", "Number of the live generation.", status, "generation")
        self._gauge("g2d_generation_age_seconds", "Since it is live here.", status, "age")
        self._gauge(
            "g2d_rotation_late_seconds",
            "Since a rotation is overdue.",
            lambda: public(status()),
            "late",
        )
        self._gauge(
            "g2d_alarms_withheld",
            "Rotations that alarms of queries did not get.",
            lambda: {"withheld": 0.0} | status(),
            "withheld",
        )
        paused = Gauge("g2d_paused", "1 while rotation is paused.", registry=registry)
        paused.set_function(lambda: float(status()["paused"]))

    def count_basins(self, status: Callable[[], dict[str, Any]]) -> None:
        """Tell how many basins there are that nobody has seen, if any are grown."""
        if "growth" in status():
            self._gauge(
                "g2d_unseen_basins",
                "Basins in stock that nobody has seen.",
                lambda: status()["growth"],
                "unseen",
            )

    def count_encrypted(self, waiting: Callable[[], int], keys: Callable[[], int]) -> None:
        """Tell of encrypted answers, where there are any: apart, for they take a thousandfold."""
        self._encrypted = Histogram(
            "g2d_encrypted_seconds", "Seconds from an encrypted request's head to its answer.",
            buckets=_SLOW, registry=self.registry,
        )  # fmt: skip
        for name, text, said in (
            ("g2d_encrypted_waiting", "Ciphertexts that wait or are evaluated.", waiting),
            ("g2d_encrypted_keys", "Clients' evaluation keys that are kept.", keys),
        ):
            Gauge(name, text, registry=self.registry).set_function(
                lambda said=said: float(said())  # type: ignore[misc]
            )

    def answered_encrypted(self, began: float, inputs: int) -> None:
        """Note a good answer to an encrypted request; see `answered`."""
        self._encrypted.observe(time.perf_counter() - began)
        self.requests.labels("encrypted", "200").inc()
        self.inputs.inc(inputs)

    def answered(self, began: float, inputs: int) -> None:
        """Note a good answer to an infer request that began at `began` (`perf_counter`)."""
        now = time.perf_counter()
        self.latency.observe(now - began)
        self.latencies.add(now, now - began)
        self._ok.inc()
        self.inputs.inc(inputs)

    def traffic(self) -> dict[str, Any]:
        """Say what was answered since the start and in the last 5 seconds, for the page."""
        return self.latencies.recent(5.0) | {
            "in_flight": _value(self.in_flight),
            "wrong_tokens": _value(self.wrong_tokens),
            "limited": blurred(_value(self.limited)),
        }

    def render(self, exact: bool = False, hidden: bool = False) -> bytes:
        """Write everything in Prometheus' text format.

        Args:
            exact: for whoever is admitted; others are told of queries in numbers of two digits,
                for the exact one would betray when `--queries` rotates. hidden: for whoever may
                not know that it rotates: what tells of generations is left out.
        """
        plain = exact and not hidden
        return generate_latest(self.registry if plain else _Blurred(self.registry, hidden))

    def statistics(
        self, model: str, number: int | str, batches: int, exact: bool = False
    ) -> Values:
        """Return the statistics of Triton's protocol, counts as `render` tells them.

        Time is not told apart into waiting and computing, nor when the last query came.
        """
        told = {sample.name: sample.value for sample in next(iter(self.latency.collect())).samples}
        answers, seconds = (told[f"g2d_request_seconds_{each}"] for each in ("count", "sum"))
        values = (answers, seconds * 1e9, _value(self.inputs), batches)
        count, ns, inputs, batches = (int(v) if exact else blurred(v) for v in values)
        none = {"count": 0, "ns": 0}
        parts = ("fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit",
                 "cache_miss")  # fmt: skip
        return {
            "name": model, "version": str(number), "last_inference": 0, "inference_count": inputs,
            "execution_count": batches, "batch_stats": [], "memory_usage": [],
            "inference_stats": {"success": {"count": count, "ns": ns}} | dict.fromkeys(parts, none),
        }  # fmt: skip

    def _gauge(self, name: str, text: str, status: Callable[[], dict[str, Any]], key: str) -> None:
        gauge = Gauge(name, text, registry=self.registry)
        gauge.set_function(lambda: float(status()[key]))


class _Blurred:
    """A registry as those see it who are not admitted."""

    def __init__(self, registry: CollectorRegistry, hidden: bool = False) -> None:
        self._registry, self._hidden = registry, hidden

    def collect(self) -> Iterator[Metric]:
        """Yield its metrics."""
        for metric in self._registry.collect():
            if metric.name in CLOSED or (self._hidden and metric.name not in _OPEN):
                continue
            if metric.name in _QUERIES:
                metric.samples = [_told(sample) for sample in metric.samples]
            yield metric


def _told(sample: Sample) -> Sample:
    if sample.name.endswith("_created"):
        return sample
    blur = _coarse if sample.name.endswith("_sum") else blurred
    return sample._replace(value=float(blur(sample.value)))


def _value(metric: Counter | Gauge) -> int:
    return int(next(iter(metric.collect())).samples[0].value)
