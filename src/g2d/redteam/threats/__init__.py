"""Threat families: one module each, with `TITLE`, `QUESTION`, `IDENTIFIERS`, `plan` and `run`.

`plan(site)` returns the family's cases; `run(case, room)` returns a case's rows. Both are pure: the
same site, case and seed give the same rows.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from g2d.errors import SettingsError, nearest
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Identifiers, Row

FAMILIES = {
    "white-box": "whitebox",
    "stale": "stale",
    "adaptive": "adaptive",
    "query": "query",
    "extraction": "extraction",
    "privacy": "privacy",
    "poisoning": "poisoning",
    "bit-flips": "bitflips.threat",
    "universal": "universal",
    "sanity": "sanity",
}


CONTROLS = {"retrained", "soup", "noise", "permuted"}
# Chains that a family reads beside the generated, the frozen and the unrotated, which cost nothing.
CHAINS = {
    "white-box": CONTROLS,
    "stale": CONTROLS | {"draws", "rival"},
    "adaptive": CONTROLS | {"draws", "attacker"},
    "query": CONTROLS | {"draws"},
    "extraction": CONTROLS | {"draws"},
    "privacy": CONTROLS | {"draws"},
    "poisoning": set[str](),
    "bit-flips": CONTROLS,
    "universal": CONTROLS,
    "sanity": set[str](),
}


class Family(Protocol):
    """What a family's module offers.

    Attributes:
        TITLE: name for people. QUESTION: what the family asks, one sentence.
        IDENTIFIERS: names of the threat in other catalogues.
    """

    TITLE: str
    QUESTION: str
    IDENTIFIERS: Identifiers

    def plan(self, spec: RunSpec) -> list[Case]:
        """Return the cases that this family runs on a site."""
        ...

    def run(self, case: Case, context: AttackContext) -> list[Row]:
        """Run one case."""
        ...


def family(name: str) -> Family:
    """Return a family by its name.

    Raises:
        SettingsError: there is none of that name.
    """
    if name not in FAMILIES:
        raise SettingsError(
            f"unknown threat {name!r}{nearest(name, FAMILIES)}; known: {', '.join(FAMILIES)}"
        )
    module: Any = importlib.import_module(f"g2d.redteam.threats.{FAMILIES[name]}")
    found: Family = module
    return found
