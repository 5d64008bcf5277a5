"""What Prometheus scrapes, in a registry of its own, and latency quantiles around a swap."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from g2d.rotation.scheduler import GRACE

__all__ = ["CONTENT_TYPE_LATEST", "Latencies", "Metrics", "public"]

_BUCKETS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_SECRET = ("schedule", "queries")  # what is due at a moment that nobody asked for
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def public(status: dict[str, Any]) -> dict[str, Any]:
    """Return a rotation's status without what would betray the moment of the next one.

    Counts of two digits, and what is due unasked, by jitter or by answers, only once it is late.
    """
    told = dict(status)
    if "answered" in told:
        unit = 10 ** max(0, len(str(told["answered"])) - 2)
        told["answered"] = told["answered"] // unit * unit
    if told.get("late", 0.0) < GRACE:
        told["late"] = 0.0
        if "due" in told:
            told["due"] = [reason for reason in told["due"] if reason not in _SECRET]
    return told


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
        """Quantiles in seconds, and the count, of answers sent in [begin, end); None: none were."""
        inside = self._seconds[(self._at >= begin) & (self._at < end)]
        if not len(inside):
            return None
        values = np.quantile(inside, list(_QUANTILES.values()))
        named = {name: float(value) for name, value in zip(_QUANTILES, values, strict=True)}
        return named | {"answers": len(inside)}

    def recent(self, seconds: float) -> dict[str, Any]:
        """Count all answers, and say how many a second, and how quick, in the last seconds."""
        now = time.perf_counter()
        found = self.quantiles(now - seconds, now) or dict.fromkeys(("answers", *_QUANTILES), 0)
        # Where more came than are remembered, the oldest one says since when.
        kept = min(seconds, now - float(self._at.min())) if found["answers"] else seconds
        rate = found["answers"] / max(kept, 1e-9)
        quick = {name: found[name] if found["answers"] else None for name in ("p50", "p99")}
        return {"answers": self._next, "per_second": rate, **quick}


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
        self.checks = Counter("g2d_integrity_checks", "Checks of the live weights by outcome.",
                              ["outcome"], registry=registry)  # fmt: skip
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
        self._ok = self.requests.labels("infer", "200")
        self._gauge("g2d_generation", "Number of the live generation.", status, "generation")
        self._gauge("g2d_generation_age_seconds", "Since it is live here.", status, "age")
        self._gauge(
            "g2d_rotation_late_seconds",
            "Since a rotation is overdue.",
            lambda: public(status()),
            "late",
        )
        paused = Gauge("g2d_paused", "1 while rotation is paused.", registry=registry)
        paused.set_function(lambda: float(status()["paused"]))

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
            "limited": _value(self.limited),
        }

    def render(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, status: Callable[[], dict[str, Any]], key: str) -> None:
        gauge = Gauge(name, text, registry=self.registry)
        gauge.set_function(lambda: float(status()[key]))


def _value(metric: Counter | Gauge) -> int:
    return int(next(iter(metric.collect())).samples[0].value)
