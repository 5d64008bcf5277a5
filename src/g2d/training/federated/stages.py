"""What a stage asks of its clients: rounds and plan, which both sides read off their settings.

A server that asks for one step of one record, or for the same round of a hundred networks, is told
what no client agreed to: here is what a client holds it to. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from g2d.errors import FederatedError
from g2d.settings import Settings
from g2d.settings.federated import FederatedSettings
from g2d.training.federated.messages import Message

KINDS = ("base", "early", "member")
"""Kinds of stages in the order in which a population is made."""


@dataclass(frozen=True)
class Asked:
    """What a stage asks of its clients.

    Attributes:
        stage: its name, such as "member-12". rounds: how many. batch: examples a local step.
        repelled: stages of the networks whose attacks clients learn. rate: SGD's at first; None:
            `[federated] local_rate`. clean: rounds before they learn attacks; the rate falls to
            zero in these, and then from that of forks. From fresh weights, attacks from the first
            round on kept MNIST's networks at chance, at each of three rates.
    """

    stage: str
    rounds: int
    batch: int
    repelled: tuple[str, ...] = ()
    rate: float | None = None
    clean: int = 0

    def plan(self, settings: FederatedSettings, number: int) -> dict[str, Any]:
        """How clients train in a round, from 0 on: the rate falls to zero over the rounds."""
        first = settings.local_rate if self.rate is None else self.rate
        begun, end, repelled = 0, self.rounds, self.repelled
        if number < self.clean:
            end, repelled = self.clean, ()
        elif self.clean:
            first, begun = settings.fork_rate, self.clean
        rate = first * (1.0 - (number - begun) / (end - begun))
        return {
            "steps": settings.local_steps, "rate": float(rate),
            "momentum": float(settings.momentum), "batch": self.batch, "repelled": list(repelled),
        }  # fmt: skip


def rate_of(stage: str, settings: FederatedSettings) -> float:
    """SGD's first rate of a stage."""
    # At the base's rate a repelled fork of digits fell from 94 % to 10 % in four rounds.
    return settings.fork_rate if stage.startswith("member-") else settings.local_rate


def clean_rounds(stage: str, rounds: int, settings: Settings) -> int:
    """Rounds of a stage before its clients learn attacks: half of a repelled early checkpoint's."""
    repels = settings.population.recipe == "repelled" and stage.startswith("early-")
    return rounds // 2 if repels else 0


def agreed_rounds(stage: str, settings: Settings) -> int:
    """How many rounds a stage has by the settings; 0: it is trained by nobody."""
    s = settings.federated
    rounds = {"base": s.rounds, "early": s.early_rounds, "member": s.fork_rounds}
    return rounds[_parts(stage)[0]] if is_known(stage, settings) else 0


def is_known(stage: str, settings: Settings) -> bool:
    """Whether settings have a network of this name."""
    kind, index = _parts(stage)
    p = settings.population
    return index < {"base": 1, "early": p.basins, "member": p.members}.get(kind, 0)


def check_member(stage: str, settings: Settings) -> None:
    """Refuse a network whose attacks a client is to learn, if the settings have none of its name.

    Raises:
        FederatedError: they have not.
    """
    if not is_known(stage, settings):
        raise FederatedError(f"the server sends {stage!r}, {_unknown(settings)}")


def check_agreed(asked: Message, base: str, before: Message | None, settings: Settings) -> None:
    """Hold a server to what the client's own settings say, and to asking each round once.

    What one round tells of the records is bounded by its plan; what all of them tell, by their
    number. A server goes on from stage to stage and never back, also after a kill.

    Args:
        asked: a round. base: digest of its parameters. before: the client's last answer.

    Raises:
        FederatedError: it asks for something else.
    """
    rounds, s = agreed_rounds(asked.stage, settings), settings
    if not rounds:
        raise FederatedError(f"the server asks for {asked.stage!r}, {_unknown(settings)}")
    if asked.number >= rounds:
        raise FederatedError(
            f"the server asks for round {asked.number} of {asked.stage}, and the settings of this"
            f" client have {rounds} rounds of it, from 0 on"
        )
    repelled = asked.plan.get("repelled")
    names = tuple(repelled) if isinstance(repelled, list) else ()
    rate = rate_of(asked.stage, s.federated)
    clean = clean_rounds(asked.stage, rounds, s)
    known = Asked(asked.stage, rounds, s.population.batch, names, rate, clean)
    agreed = known.plan(s.federated, asked.number)
    if wrong := [name for name in sorted(agreed) if asked.plan.get(name) != agreed[name]]:
        name = wrong[0]
        raise FederatedError(
            f"the server's plan for round {asked.number} of {asked.stage} has {name}"
            f" {asked.plan.get(name)!r}, and by the settings of this client it is {agreed[name]!r}:"
            " one that asks for other training may want to read records out of the answer"
        )
    if before is not None:
        _check_order(asked, base, before)


def _check_order(asked: Message, base: str, before: Message) -> None:
    now, then = place_of(asked.stage, asked.number), place_of(before.stage, before.number)
    if now > then or (now == then and base == before.base):
        return
    again = "of another network" if now == then else f"after round {before.number} of"
    where = "" if now == then else f" {before.stage}"
    raise FederatedError(
        f"the server asks for round {asked.number} of {asked.stage} {again}{where}, which this"
        " client has answered: it has lost what it knew, or asks more of your records than was"
        " agreed. If a new run was agreed on, remove the last answer in KIT/state first"
    )


def place_of(stage: str, number: int) -> tuple[int, int, int]:
    """Where a round stands in a run: kind of its stage, index of the stage, number."""
    kind, index = _parts(stage)
    return KINDS.index(kind) if kind in KINDS else len(KINDS), index, number


def _parts(stage: str) -> tuple[str, int]:
    kind, _, index = stage.partition("-")  # messages' own check: letters, a dash, digits
    return kind, int(index)


def _unknown(settings: Settings) -> str:
    p = settings.population
    return (
        f"and the settings of this client have a base, {p.basins} early checkpoints and"
        f" {p.members} members ([population] in settings.toml of its kit)"
    )
