"""The list of built-in monitors: each is a class in a folder of its own, and a line here."""

from __future__ import annotations

from g2d.errors import SettingsError, nearest
from g2d.service.monitors.builtin import BuiltIn, Watched
from g2d.service.monitors.drift.monitor import DriftMonitor
from g2d.service.monitors.queries.monitor import Queries

BUILT_IN: tuple[type[BuiltIn], ...] = (DriftMonitor, Queries)


def built_in(watched: Watched) -> dict[str, BuiltIn]:
    """Make the monitors that `[monitors] watch` or `--monitor` names, "all" for every one.

    Raises:
        SettingsError: there is none of a name, or what it needs is not installed.
    """
    known = {kind.name: kind for kind in BUILT_IN}
    names = watched.settings.watch
    for name in names:
        if name not in known and name != "all":
            raise SettingsError(
                f"there is no monitor {name!r}, only {', '.join(known)} and all."
                + nearest(name, known)
            )
    wanted = known if "all" in names else dict.fromkeys(names)
    return {name: known[name](watched) for name in wanted}
