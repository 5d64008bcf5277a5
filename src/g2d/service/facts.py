"""What a service shows of a generation's manifest, which somebody may have written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from g2d.vault.sources import RENEWED_BY, source_of

_SHOWN = ("gates", "created", "attempt", "cpu_seconds", "origin")


def facts_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Gates, times, cost and figures for the history, as far as they make sense."""
    facts = {key: manifest[key] for key in _SHOWN if key in manifest}
    gates, figures = facts.get("gates"), manifest.get("figures")
    gates = gates if isinstance(gates, list) else []
    facts["gates"] = [gate for gate in gates if isinstance(gate, dict)]
    figures = figures if isinstance(figures, dict) else {}
    if renewal := source_of(manifest):
        facts[RENEWED_BY] = renewal
    return facts | {
        "accuracy": figures.get("clean_accuracy"),
        "robust": figures.get("robust_accuracy"),
        "distance": figures.get("distance"),
    }
