"""Which networks answer the attacker, and what kinds of rows come of it."""

from __future__ import annotations

from g2d.redteam.context import AttackContext, Network, RunSpec

MEMBERS, CONTROL = "privacy-membership", "privacy-membership-control"
SECOND, CLASSES = "privacy-membership-second", "privacy-inversion"
COUNTS = (1, 10, 100)  # how many networks the attacker averages over
COMPARED = ("frozen", "retrained", "soup", "noise")
RATES = (0.01, 0.001)


def filled_from(spec: RunSpec, count: int) -> tuple[str, ...]:
    """Fresh draws stand for rotations to come where there were fewer generations than `count`."""
    short = len(spec.chains["generated"].networks) < count
    return ("draws",) if short and "draws" in spec.chains else ()


def metric_of(rate: float) -> str:
    """What a row at a rate of false positives measures."""
    return f"TPR at {100 * rate:g} % FPR"


def networks_of(context: AttackContext, chain: str, count: int) -> tuple[Network, ...]:
    """The last `count` networks of a chain, or fewer; generations are filled up with draws."""
    networks = context.chain(chain).networks[-count:]
    if chain == "generated":
        for other in filled_from(context.spec, count):
            networks += context.chain(other).networks[: count - len(networks)]
    return networks


def many(count: int) -> str:
    """How many networks, in words."""
    return "1 network" if count == 1 else f"{count} networks"
