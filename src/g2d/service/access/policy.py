"""The access file: which identities have which roles, and how much each may ask.

    [default]                  # of every identity; an entry's own values go before
    queries = 100

    [[allow]]
    identity = "spiffe://example.org/ns/prod/*"
    roles = ["infer"]

The first entry that fits an identity counts. `*` stands for anything, at the end and after a `/` or
a `:` alone, so that no name that merely begins alike fits.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from g2d.errors import SettingsError, nearest
from g2d.service.access.identity import ROLES
from g2d.settings.fields import Checked, build, free, within

KINDS = ("spiffe://", "dns:", "email:", "cn:", "jwt:")
_KEPT = 10_000  # identities whose entry is remembered


@dataclass(frozen=True)
class Quota(Checked):
    """How much one identity may ask, over all its addresses; 0: any."""

    queries: float = within(0.0, 1e9, 0.0, "requests and inputs in a second")
    burst: float = within(1.0, 1e9, 1000.0, "how many of them may come at once")
    bytes: float = within(0.0, 1e12, 0.0, "bytes of bodies in a second, and as many at once")
    under_way: int = within(0, 1 << 40, 0, "bytes of bodies that are being answered")
    connections: int = within(0, 100_000, 0, "connections at once")


@dataclass(frozen=True)
class Entry(Quota):
    """What the identities that fit may do."""

    identity: str = free("", "an identity, or the beginning of several and *")
    roles: tuple[str, ...] = free((), "of infer, observe, operate, label")

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.identity
        if not name.startswith(KINDS) or name in KINDS:
            raise SettingsError(
                f"identity is {name!r}, expected one that begins with {', '.join(KINDS)}"
            )
        star = name.find("*")
        if star >= 0 and (star != len(name) - 1 or name[-2] not in "/:"):
            raise SettingsError(f"identity is {name!r}, but * may only follow a / or : and end it")
        if name == "spiffe://*":
            raise SettingsError(f"identity is {name!r}, which names no trust domain")
        for role in self.roles:
            if role not in ROLES:
                raise SettingsError(
                    f"{name}: there is no role {role!r}, only {', '.join(ROLES)}."
                    + nearest(role, ROLES)
                )

    def fits(self, name: str) -> bool:
        """Whether an identity is the one, or one of those, that the entry names."""
        if self.identity.endswith("*"):
            return name.startswith(self.identity[:-1])
        return name == self.identity


class Policy:
    """Which entry counts for an identity; without an access file, none does.

    Args:
        given: whether there is an access file. default: the quota of whoever has no entry.
    """

    def __init__(
        self, entries: tuple[Entry, ...] = (), default: Quota | None = None, given: bool = False
    ) -> None:
        self.given, self._entries, self.default = given, entries, default or Quota()
        self._known: dict[str, Entry | None] = {}

    def entry(self, name: str) -> Entry | None:
        """Return the first entry that fits an identity."""
        try:
            return self._known[name]
        except KeyError:
            found = next((entry for entry in self._entries if entry.fits(name)), None)
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[name] = found
        return found

    def quota(self, name: str) -> Quota:
        """Return how much an identity may ask."""
        return self.entry(name) or self.default


def read_policy(data: bytes, where: str, default: Quota) -> Policy:
    """Read an access file.

    Args:
        where: names the file in errors. default: where the file gives no default.

    Raises:
        SettingsError: it is no TOML, or something in it is unknown or does not fit.
    """
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{where} is not TOML: {error}") from None
    for key in table:
        if key not in ("default", "allow"):
            raise SettingsError(
                f"{where}: unknown key {key!r}, expected [default] and [[allow]]."
                + nearest(key, ("default", "allow"))
            )
    common, rows = table.get("default", {}), table.get("allow", [])
    if not isinstance(common, dict):
        raise SettingsError(f"{where}: 'default' is a section, write [default]")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f"{where}: 'allow' is a list of sections, write [[allow]]")
    own = {name: getattr(default, name) for name in ("queries", "burst")} | common
    quota = build(Quota, own, f"{where} [default]")
    return Policy(_entries(rows, own, where), quota, given=True)


def _entries(rows: list[Any], own: dict[str, Any], where: str) -> tuple[Entry, ...]:
    entries: dict[str, Entry] = {}
    for place, row in enumerate(rows, 1):
        entry = build(Entry, own | row, f"{where} [[allow]] {place}")
        if entry.identity in entries:
            raise SettingsError(f"{where} [[allow]] {place}: {entry.identity!r} has an entry above")
        entries[entry.identity] = entry
    return tuple(entries.values())
