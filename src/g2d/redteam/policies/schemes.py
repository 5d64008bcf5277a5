"""Which schemes are attacked: every policy and form of answers, beside never rotating."""

from __future__ import annotations

from collections.abc import Mapping

from g2d.redteam.context import Case
from g2d.redteam.policies.service import Scheme
from g2d.settings import ServeSettings

EVERY = 1000  # queries of an attacker between two rotations
LIVE = 5  # generations that are live at once, where a policy has several
PINNED_AFTER = 100  # queries after which an alarm pins an account, where one does
FOREVER = 1e7  # seconds that a pin holds: longer than any search

_POLICIES: dict[str, tuple[str, int, bool, int]] = {
    # name: policy, live, rotates, pinned after
    "never": ("global", 1, False, 0),
    "global": ("global", 1, True, 0),
    "sticky": ("sticky", LIVE, True, 0),
    "sticky-pinned": ("sticky", LIVE, True, PINNED_AFTER),
    "sticky-together": ("sticky", LIVE, True, PINNED_AFTER),
    "sticky-watched": ("sticky", LIVE, True, 0),
    "vote-3": ("vote", 3, True, 0),
    "vote-5": ("vote", 5, True, 0),
    "random": ("random", LIVE, True, 0),
    "keyed": ("keyed", LIVE, True, 0),
}
WATCHED = "sticky-watched"  # needs guards: see `guarding`
NAMES = tuple(name for name in _POLICIES if name != WATCHED)
TOGETHER = "sticky-together"  # what was served before others left a suspect's generation
_WORDS = {
    "never": "never rotating",
    "global": "global: the newest answers all",
    "sticky": "sticky, nobody suspected",
    "sticky-pinned": "sticky, the attacker pinned",
    "sticky-together": "sticky, the attacker pinned among others",
    "sticky-watched": "sticky, the attacker pinned when it is seen",
    "vote-3": "vote of 3",
    "vote-5": "vote of 5",
    "random": "random for each request",
    "keyed": "keyed by the input",
}
_ANSWERS = {"scores": "", "rounded": ", rounded scores", "label": ", labels only", "aaa": ", AAA"}


def options_of(
    name: str, answers: str = "scores", every: int = EVERY, live: int = LIVE
) -> tuple[tuple[str, int | str], ...]:
    """A scheme as options of a case.

    Args:
        every: queries between rotations, where it rotates. live: at most so many at once.
    """
    policy, wanted, rotates, pin = _POLICIES[name]
    return (
        ("scheme", name), ("policy", policy), ("live", min(wanted, live)), ("answers", answers),
        ("every", every if rotates else 0), ("pin", min(pin, max(1, every // 10)) if pin else 0),
    )  # fmt: skip


def scheme_of(case: Case) -> Scheme:
    """The scheme that a case's options say."""
    every = case.number("every")
    settings = ServeSettings(
        policy=str(case.option("policy")),
        live=case.number("live", 1),
        period=float(every),
        hold=FOREVER,
        answers=str(case.option("answers")),
    )
    name = str(case.option("scheme"))
    return Scheme(name, settings, every or None, case.number("pin"), name != TOGETHER)


def words_of(scheme: Scheme) -> str:
    """A scheme in words, as rows tell their target."""
    clock = f", a rotation every {scheme.every:,} queries" if scheme.every else ""
    return f"{_WORDS[scheme.name]}{_ANSWERS[scheme.settings.answers]}{clock}"


def told_of(scheme: Scheme) -> Mapping[str, int | str | None]:
    """What tells rows of one kind apart, as plain values."""
    s = scheme.settings
    return {
        "scheme": scheme.name, "policy": s.policy, "live": scheme.live, "told": s.answers,
        "every": scheme.every, "pinned_after": scheme.pin or None, "forward_passes": scheme.passes,
    }  # fmt: skip
