"""Which rules there are, which f each bears, and how a round's updates become one.

A rule is a function of a matrix of updates (`rules`) with its bound on f; norms are clipped, and
neighbours mixed, before it. Knows no torch. To add a rule: a function, and a line in `_LISTED`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from g2d.core.imports import import_attribute
from g2d.core.types import Array
from g2d.errors import SettingsError, nearest
from g2d.settings.federated import FederatedSettings
from g2d.training.federated import rules


@dataclass(frozen=True)
class Around:
    """What a rule may know beside the updates.

    Attributes:
        f: how many of the clients may be malicious. last: the aggregate of the last round (P,);
            zeros in the first. root: the update of the server's own records (P,); None: none.
    """

    f: int
    last: Array
    root: Array | None = None


@dataclass(frozen=True)
class Rule:
    """An aggregation rule.

    Attributes:
        apply: maps updates X (n, P) to one (P,). slope, more: n >= slope * f + more is needed, by
            the rule's own theorem. source: the paper. rooted: whether it needs the server's own
            update. most: the largest f whatever n is; None: no other limit.
    """

    name: str
    apply: Callable[[Array, Around], Array]
    slope: int
    more: int
    source: str
    rooted: bool = False
    most: int | None = None

    def least(self, f: int) -> int:
        """How many updates a round needs."""
        return self.slope * f + self.more


def _rooted(X: Array, around: Around) -> Array:
    assert around.root is not None, "a rooted rule is given the server's own update"
    return rules.fltrust(X, around.root)


_LISTED = (
    Rule("mean", lambda X, _: rules.mean(X), 1, 1, "McMahan et al. 2017", most=0),
    Rule("median", lambda X, _: rules.median(X), 2, 1, "Yin et al. 2018"),
    Rule("trimmed-mean", lambda X, a: rules.trimmed_mean(X, a.f), 2, 1, "Yin et al. 2018"),
    Rule("geometric-median", lambda X, _: rules.geometric_median(X), 2, 1, "Pillutla et al. 2022"),
    Rule("multi-krum", lambda X, a: rules.multi_krum(X, a.f), 2, 3, "Blanchard et al. 2017"),
    Rule(
        "centred-clipping",
        lambda X, a: rules.centred_clipping(X, a.last),
        2,
        1,
        "Karimireddy et al. 2021",
    ),
    Rule("bulyan", lambda X, a: rules.bulyan(X, a.f), 4, 3, "El Mhamdi et al. 2018"),
    Rule("fltrust", _rooted, 1, 1, "Cao et al. 2021", rooted=True),
)
RULES = {rule.name: rule for rule in _LISTED}
"""Every rule by its name."""


def find_rule(name: str) -> Rule:
    """Return a rule by its name, or the user's own, 'module:name' of a `Rule`.

    Raises:
        SettingsError: there is none.
    """
    if name in RULES:
        return RULES[name]
    if ":" not in name:
        raise SettingsError(
            f"there is no aggregation rule {name!r}.{nearest(name, RULES)} There are "
            f"{', '.join(RULES)}; your own is named 'module:name'"
        )
    found = import_attribute(name, "aggregation rule", SettingsError)
    if not isinstance(found, Rule):
        raise SettingsError(f"aggregation rule {name!r} is {type(found).__name__}, not a Rule")
    return found


@dataclass(frozen=True)
class Aggregation:
    """How the updates of a round become one; made by `of`, which checks it.

    Attributes:
        clip: norms above so many median norms are scaled down before anything else; 0: none, nor
            where half or more may be malicious, whose the median norm would be.
        mix: nearest-neighbour mixing before the rule.
    """

    rule: Rule
    f: int
    clip: float
    mix: bool

    @classmethod
    def of(cls, settings: FederatedSettings) -> Aggregation:
        """Check the rule that settings name, and its bound on f.

        Raises:
            SettingsError: there is no such rule; it does not bear so many malicious clients; or
                secure aggregation is asked for.
        """
        s = settings
        rule = find_rule(s.rule)
        check_secure(s, rule)
        if rule.most is not None and s.f > rule.most:
            raise SettingsError(
                f"f = {s.f}, but rule {rule.name!r} bears no malicious client at all: one is enough"
                " to move it anywhere. Set f = 0, or another rule, such as centred-clipping"
            )
        if rule.rooted and not s.root:
            raise SettingsError(
                f"rule {rule.name!r} compares clients with the server's own records: set"
                " [federated] root to how many of them it may use (200, say)"
            )
        made = cls(rule, s.f, s.clip, s.mix)
        made.check_count(s.clients, "there are {n} clients")
        return made

    def check_count(self, n: int, said: str = "{n} answered") -> None:
        """Refuse a round of fewer updates than the rule's theorem, or mixing, asks for.

        Raises:
            SettingsError: there are too few.
        """
        if self.mix and self.f and 2 * self.f >= n:
            raise SettingsError(
                f"{said.format(n=n)}, of whom f = {self.f} malicious ones may be half or more, and"
                " nearest-neighbour mixing needs an honest majority: lower f, or set [federated]"
                " mix = false"
            )
        if n < self.rule.least(self.f):
            needed = f"{self.rule.slope}f + {self.rule.more} = {self.rule.least(self.f)}"
            most = max(0, (n - self.rule.more) // self.rule.slope)
            raise SettingsError(
                f"rule {self.rule.name!r} needs n >= {needed} clients to bear f = {self.f}"
                f" malicious ones ({self.rule.source}), and {said.format(n=n)}: of so many it bears"
                f" f = {most}, if any"
            )

    def __call__(self, X: Array, around: Around) -> Array:
        """Aggregate updates X (n, P) to one (P,), float32.

        Raises:
            SettingsError: there are too few updates for the rule's bound on f.
        """
        assert bool(np.isfinite(X).all()), "what is not sound is refused before"
        self.check_count(len(X))
        if self.clip and 2 * self.f < len(X):
            X = rules.clip_norms(X, self.clip)
        if self.mix and self.f:
            X = rules.mixed(X, self.f)
        found = np.asarray(self.rule.apply(X, around), np.float32)
        if found.shape != X.shape[1:]:
            raise SettingsError(
                f"aggregation rule {self.rule.name!r} gave shape {found.shape} of updates "
                f"{X.shape}; it has to give one update, {X.shape[1:]}"
            )
        return found


def check_secure(settings: FederatedSettings, rule: Rule) -> None:
    """Refuse secure aggregation: beside a robust rule by reason, else because none is kept well.

    Raises:
        SettingsError: it is asked for.
    """
    if not settings.secure:
        return
    if settings.f or rule.name != "mean":
        raise SettingsError(
            f"secure aggregation shows the server the sum of all updates alone, and rule "
            f"{rule.name!r} with f = {settings.f} has to see each: whoever hides updates from the"
            " server hides malicious ones, too. Take secure = false, or rule = 'mean' with f = 0"
            " where every client is trusted"
        )
    raise SettingsError(
        "G2D has no secure aggregation of its own, and ships none that is not well kept; what its"
        " transport carries the server has to read. Set [federated] secure = false"
    )
