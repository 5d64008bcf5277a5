"""The threats that there are, each in a module of its own that holds one `Threat`.

They are imported when they are asked for: their attacks need heavy libraries.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

from g2d.errors import SettingsError, nearest
from g2d.redteam.threat import Threat

# In the order in which results tell them. One line a threat: a new one is added here.
_MODULES = (
    "whitebox",
    "stale",
    "basins.threat",
    "adaptive.threat",
    "query.threat",
    "policies.threat",
    "extraction.threat",
    "privacy.threat",
    "poisoning.threat",
    "bitflips.threat",
    "ownership.threat",
    "universal",
    "sanity.threat",
)


@functools.cache
def threats() -> Mapping[str, Threat]:
    """Every threat by its name, in the order of the list."""
    modules = [importlib.import_module(f"{__name__}.{module}") for module in _MODULES]
    found: list[Threat] = [module.THREAT for module in modules]
    return {threat.name: threat for threat in found}


def threat(name: str) -> Threat:
    """Return a threat by its name.

    Raises:
        SettingsError: there is none of that name.
    """
    if name not in threats():
        raise SettingsError(
            f"unknown threat {name!r}{nearest(name, threats())}; known: {', '.join(threats())}"
        )
    return threats()[name]
