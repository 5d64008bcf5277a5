"""`[serve]`: who is answered by which live generation, and what of its scores. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from g2d.settings.fields import Checked, one_of, within

STICKY = "sticky"
POLICIES = ("global", STICKY, "vote", "random", "keyed")
ANSWERS = ("scores", "rounded", "label", "aaa")
ENCRYPTED = ("no", "also", "only")


@dataclass(frozen=True)
class ServeSettings(Checked):
    """Which of the live generations answers whom, and what an answer tells (docs/serving.md)."""

    policy: str = one_of(
        POLICIES, "global", "who is answered by which live generation: the newest all, or see docs",
        since="0.2",
    )  # fmt: skip
    live: int = within(1, 16, 3, "generations live at once, by all but global", since="0.2")
    period: float = within(
        0.0, 3.2e7, 60.0, "least seconds between two moves of a client, by sticky, while what it"
        " sees is live", since="0.2",
    )  # fmt: skip
    hold: float = within(
        0.0, 3.2e7, 3600.0, "seconds that an alarm keeps a client where it is, by sticky",
        since="0.2",
    )  # fmt: skip
    quantum: float = within(
        1e-9, 1e9, 0.1, "step to which inputs are rounded before their choice, by keyed",
        since="0.2",
    )  # fmt: skip
    answers: str = one_of(
        ANSWERS, "scores", "what an answer tells: scores, rounded ones, the label, or as AAA says",
        since="0.2",
    )  # fmt: skip
    decimals: int = within(0, 6, 2, "decimals of rounded scores", since="0.2")
    aaa: str = one_of(
        ("linear", "sine"), "linear", "how AAA misleads: its linear or its sine design", since="0.2"
    )
    encrypted: str = one_of(
        ENCRYPTED, "no", "whether ciphertexts are answered: also, beside plain inputs, or only",
        since="0.2",
    )  # fmt: skip
