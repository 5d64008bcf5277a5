"""Bit flips: positions found on one generation, flipped in it and in those that follow.

Weights are stored in 8 bits; every network is quantised with its own scales. "Accuracy lost" is
the share of test images that were classified correctly before the flips and wrongly after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from g2d.attacks.bitflip import Flip, quantise, random_flips
from g2d.errors import SettingsError
from g2d.redteam.context import AttackContext, Case, Chain, Network, RunSpec
from g2d.redteam.rows import Identifiers, Row
from g2d.redteam.threat import CONTROLS, CurveStyle, Threat
from g2d.redteam.threats.bitflips.layout import served
from g2d.redteam.threats.bitflips.scoring import RESAMPLES, Bench, Curve, Pair, points, unmeasured
from g2d.redteam.threats.bitflips.storage import hardened

_CONTROLS = ("frozen", "unrotated", "permuted", "retrained", "soup", "noise")
# CPU seconds of one exposed network: 50 iterations of the search, and the curves on 1,000 images.
_SEARCH = 1.5


def plan(spec: RunSpec) -> list[Case]:
    """Search on every chain; on the generations also as served, jointly, at random, …, healed."""
    most, batch = (12, 128) if spec.quick else (50, 256)
    exposed, later, draws = (1, 1, 5) if spec.quick else (3, 11, 10)
    read = 1 if spec.quick else 6  # generations whose successors are flipped
    shared = (("most", most), ("batch", batch), ("resamples", RESAMPLES))
    cases = []

    def add(name: str, chain: str, searches: float, **options: int) -> None:
        known = (*shared, *options.items())
        cases.append(Case("bit-flips", name, chain, known, (chain,), cost=_SEARCH * searches))

    for name in ("generated", *_CONTROLS):
        if name in spec.chains:
            count = read if name == "generated" else exposed
            searches = 1 if spec.chains[name].fixed else count
            add("search", name, searches, exposed=count, later=later)
    for name in {"generated", "frozen", "unrotated"} & set(spec.chains):
        add("random", name, 1, draws=2 * draws)
    if "generated" in spec.chains:
        add("joint", "generated", 6, exposed=2 if spec.quick else 5, later=later)
        add("hardened", "generated", 2 * exposed, exposed=exposed, later=1, draws=draws)
        add("layout", "generated", 2 * exposed, exposed=exposed, later=1, draws=draws)
        add("healing", "generated", 1)
    return sorted(cases, key=lambda case: (case.name, case.chain))


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run one case."""
    bench = Bench(case, context)
    chain = context.chain(case.chain)
    try:
        quantise(context.state(chain.networks[0]))
    except SettingsError as error:
        return [unmeasured(case, "own", "bit flips", str(error))]
    parts: dict[str, Callable[[Bench, Chain], list[Row]]] = {
        "search": _search,
        "random": _random,
        "joint": _joint,
        "hardened": hardened,
        "layout": served,
        "healing": _healing,
    }
    return parts[case.name](bench, chain)


@dataclass(frozen=True)
class _Found:
    """Flips found on one network, what they do to it, and how many of them ruin it."""

    network: Network
    flips: list[Flip]
    curve: Curve
    at: int
    reached: bool
    following: tuple[Network, ...]


def _find(bench: Bench, exposed: Sequence[Network], later: Sequence[Network]) -> list[_Found]:
    """Search on every exposed network; each with those that were live after it."""
    found = []
    for place, network in enumerate(exposed):
        stored = bench.stored(network)
        flips = bench.search(stored)
        curve = bench.curve(stored, flips)
        fallen = [i for i, right in enumerate(curve.after) if bench.at_chance(right)]
        at = fallen[0] if fallen else len(flips)
        found.append(
            _Found(network, flips, curve, at, bool(fallen), (*exposed[place + 1 :], *later))
        )
    return found


def _search(bench: Bench, chain: Chain) -> list[Row]:
    """Flips found on t: on t itself, on t + 1, and on those after it; all flips of the list."""
    exposed, later = chain.split(bench.case.number("exposed"), bench.case.number("later"))
    alone = len(chain.networks) < 2 and not chain.fixed
    found = _find(bench, exposed, () if alone else later)
    note = f"{', '.join(str(one.at) for one in found)} of {_lengths(found)} flips"
    note += (
        " bring it to chance"
        if all(one.reached for one in found)
        else "; chance is not always reached"
    )
    own = [(one, one.network) for one in found]
    rows = [_row(bench, "own", "flips on the network they were found on", own, note,
                 [one.curve for one in found])]  # fmt: skip
    # Of a fixed chain all are next: copies of one function, none of which comes after another.
    near = [(one, n) for one in found for n in one.following[: None if chain.fixed else 1]]
    name = "the same flips on the next network"
    if near:
        curves = [bench.curve(bench.stored(network), one.flips) for one, network in near]
        note = f"all flips of the list{_NOTES.get(chain.name, '')}"
        rows.append(_row(bench, "next", name, near, note, curves))
    else:
        why = f"{chain.name} holds one network: there is no next one; generate more"
        rows.append(unmeasured(bench.case, "next", name, why))
    far = [(o, n) for o in found for n in o.following[1:] if not chain.fixed]
    if far:
        curves = [bench.sparse(bench.stored(n), o.flips, o.at) for o, n in far]
        name = "the same flips two and more networks later"
        rows.append(_row(bench, "later", name, far, "all flips of the list", curves, whole=False))
    return rows


def _lengths(found: Sequence[_Found]) -> str:
    return ", ".join(str(len(one.flips)) for one in found)


def _row(
    bench: Bench,
    kind: str,
    threat: str,
    hit: Sequence[tuple[_Found, Network]],
    note: str,
    curves: Sequence[Curve],
    whole: bool = True,
) -> Row:
    """All flips of each list; beside it what is lost where the searched network has fallen.

    Args:
        whole: the curves hold every prefix; otherwise nothing, enough and all.
    """
    pairs: list[Pair] = [(one.network, network) for one, network in hit]
    every = [len(one.flips) if whole else 2 for one, _ in hit]
    enough = [one.at if whole else 1 for one, _ in hit]
    after = bench.average(curves, every)
    fewer = bench.average(curves, enough)
    found = list({id(one): one for one, _ in hit}.values())
    extra = {
        "flips_used": [len(one.flips) for one in found],
        "flips_enough": [one.at for one in found],
        "reached": [one.reached for one in found],
        "chance": bench.chance,
        "lost_after_all_flips": after,
        "lost_after_enough_flips": fewer,
    }
    if whole:
        extra["curve"] = points(curves)
    note = (
        f"{note}; after all of them {after:.1%} is lost, after as many as ruin the network they "
        f"were found on {fewer:.1%}"
    )
    return bench.row(kind, threat, pairs, curves, every, note=note, extra=extra)


_NOTES = {
    "permuted": ". Permutation moves the positions and leaves the function as it is",
    "frozen": ". The same network: nothing is rotated",
    "unrotated": ". The same network: nothing is rotated any more",
}


def _joint(bench: Bench, chain: Chain) -> list[Row]:
    """Positions that hurt several exposed networks at once, flipped in later ones."""
    exposed, later = chain.split(bench.case.number("exposed"), bench.case.number("later"))
    if len(exposed) < 2:
        return [
            unmeasured(bench.case, "joint", "flips found jointly", "only one network was exposed")
        ]
    flips = bench.search(*[bench.stored(network) for network in exposed])
    curves = [bench.curve(bench.stored(network), flips) for network in later]
    note = "all flips are used: the attacker cannot see when the unseen network has fallen"
    return [bench.row(
        "joint", f"flips found jointly on the last {len(exposed)}, on unseen networks",
        [(None, network) for network in later], curves,
        [len(flips)] * len(curves), note=note,
        extra={"exposed": len(exposed), "curve": points(curves)},
    )]  # fmt: skip


def _random(bench: Bench, chain: Chain) -> list[Row]:
    """As many flips as the search uses, at random: of any bit, and of sign bits alone."""
    live = chain.networks[-1]
    stored = bench.stored(live)
    flips = bench.search(stored)
    count, draws = max(1, bench.count(stored, flips)), bench.case.number("draws")
    rows = []
    for kind, bit, name in (
        ("random", None, "random flips"), ("random-top", 7, "random most significant bits"),
    ):  # fmt: skip
        source = bench.context.source("bit flips", name)
        curves = [
            bench.ends(stored, random_flips(stored, count, source, bit)) for _ in range(draws)
        ]
        note = f"control: {count} flips, as many as the search needs; {draws} draws"
        rows.append(bench.row(kind, name, [(live, live)] * draws, curves, [1] * draws,
                              note=note, attack=f"{count} flips, drawn evenly",
                              gradient_steps=0))  # fmt: skip
    return rows


def _healing(bench: Bench, chain: Chain) -> list[Row]:
    """Flips in the live network's memory, and what the next rotation leaves of them."""
    threat = "flips in memory, after the next rotation"
    if len(chain.networks) < 2:
        return [unmeasured(bench.case, "healing", threat, "nothing has been rotated yet")]
    live, following = chain.networks[-2:]
    (found,) = _find(bench, [live], [following])
    curve, at = found.curve, found.at
    healed = bench.right(bench.stored(following).state())
    cost = chain.cost
    seconds = "unknown" if cost is None else f"{cost:.1f} CPU s"
    extra = {
        "accuracy_before": curve.accuracy(0),
        "accuracy_flipped": curve.accuracy(at),
        "accuracy_after_rotation": float(healed.double().mean()),
        "flips": at,
        "rotation_cpu_seconds": cost,
    }
    note = (
        f"accuracy {curve.accuracy(0):.1%}, after {at} flips {curve.accuracy(at):.1%}, after the "
        f"rotation {extra['accuracy_after_rotation']:.1%}. Making the next one takes {seconds}; "
        "rotated every T seconds, a flip lives T/2 plus that in the mean"
    )
    pair, kept = (live, following), Curve(curve.before, (healed,))
    return [bench.row("healing", threat, [pair], [kept], [0], note=note, extra=extra)]


THREAT = Threat(
    name="bit-flips",
    title="Bit flips in the stored weights",
    question="Do the bits that ruin one generation ruin the next one too?",
    ids=Identifiers(
        atlas="nearest: AML.T0018 Manipulate AI Model",
        nist="nearest: NISTAML.011 Model Poisoning (availability)",
        owasp="nearest: ML10:2023 Model Poisoning",
    ),
    plan=plan,
    run=run,
    fits=frozenset({"tokens", "own", "none"}),
    chains=CONTROLS,
    curve=CurveStyle(
        x="flips",
        by=("threat",),
        across="bits flipped",
        upwards="accuracy",
        title="Flipped bits in the weights",
        reads=(
            "An attacker flips the worst bits of one network's 8-bit weights, and then the same "
            "bits of another network. A line that hardly moves says that bits found on the one do"
            " nothing to the other; random flips show what any damage costs. Lines are of networks "
            "as files have them; rows of the secret layout are of networks as they are served."
        ),
        hides=(
            "How an attacker gets to flip bits; one who searches anew after every rotation; and one"
            " who reads the live memory before he flips, whom no layout stops."
        ),
    ),
)
