"""Stale evasion: attacks made on networks that the attacker has read, scored on those that follow.

This is what rotation is for. Fixed chains (frozen, unrotated, permuted) show what the same attacker
gets where nothing changes; what would follow next (rival, hardened, draws) compares retrainings
with a generation against the same attacks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from g2d.attacks import apgd, box, pgd
from g2d.attacks.crafting import craft, label_of
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case, Network, RunSpec
from g2d.redteam.rows import Identifiers, Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, any_of, pooled
from g2d.redteam.threat import CONTROLS, CurveStyle, Threat
from g2d.tasks.attack import BALL, TOKENS
from g2d.tasks.splits import Split

CHAINS = ("generated", "frozen", "unrotated", "retrained", "soup", "noise", "permuted")
NEXT = (
    "rival",
    "hardened",
    "draws",
)  # no chains in time: what could follow the vault's exposed generations
EXPOSED = (1, 5, 20)
LATER = 11
# Kind of the row that says why a case was not measured.
_KINDS = {"transfer": "stale-single", "worst": "stale-worst", "age": "stale-age"}
SECOND = 55e-6  # CPU seconds of one gradient of one MNIST image, measured on one core


def plan(spec: RunSpec) -> list[Case]:
    """Cases by chain, number of exposed networks and attack; then the worst single, and age."""
    following = [case for name in NEXT if name in spec.chains for case in _transfers(spec, name)]
    return [
        case
        for name in CHAINS
        if name in spec.chains
        for case in [*_transfers(spec, name), *_worst(spec, name), *_ages(spec, name)]
    ] + following


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run one case."""
    chain = context.chain(case.chain)
    if len(chain.networks) < 2 and not chain.fixed and case.chain not in NEXT:
        why = f"{case.chain} holds one network: nothing is stale yet; generate more"
        kind = _KINDS[case.name]
        return [not_measured("stale", kind, f"stale, {case.name}", case.chain, "transfer", why)]
    if case.name == "worst":
        return _several(case, context)
    return [{"transfer": _transfer, "age": _age}[case.name](case, context)]


def _transfers(spec: RunSpec, name: str) -> list[Case]:
    source = "generated" if name in NEXT else name
    if source not in spec.chains:
        return []
    chain = spec.chains[source]
    most = 1 if chain.fixed else max(1, len(chain.networks) - (source == name))
    wanted = EXPOSED[:2] if spec.quick else EXPOSED
    n = 100 if spec.quick else 1000 if name == "generated" else 250
    cases = []
    for asked in wanted:
        k = min(asked, most)
        if k != asked and (chain.fixed or k in wanted):
            continue  # the largest k that is possible has its own case already
        attacks: tuple[tuple[str, int], ...] = (("apgd", 100 if k == 1 else 50), ("momentum", 20))
        if spec.attack != BALL:
            attacks = tuple((how, 1) for how in hows(spec))
        for attack, steps in attacks[:1] if name in NEXT else attacks:
            steps = min(steps, 20) if spec.quick else steps  # noqa: PLW2901
            options = (("k", k), ("asked", asked), ("attack", attack), ("steps", steps), ("n", n),
                       ("later", LATER))  # fmt: skip
            cost = 1 + k * steps * n * SECOND
            reads = tuple(dict.fromkeys((name, source)))
            cases.append(Case("stale", "transfer", name, options, reads, cost=cost))
        if k != asked:
            break
    return cases


def _worst(spec: RunSpec, name: str) -> list[Case]:
    if spec.chains[name].fixed or len(spec.chains[name].networks) < 3:
        return []
    n, last = (100, 5) if spec.quick else (250, 20)
    options = (("n", n), ("last", last), ("steps", 20), ("later", LATER))
    cost = 2 + (last + LATER) * 20 * n * SECOND
    return [Case("stale", "worst", name, options, (name,), cost=cost)]


def _ages(spec: RunSpec, name: str) -> list[Case]:
    n, steps = (100, 20) if spec.quick else (500 if name == "generated" else 250, 100)
    reads = (name, "generated") if spec.chains[name].fixed else (name,)
    options = (("n", n), ("steps", steps), ("sources", 3))
    present = tuple(read for read in reads if read in spec.chains)
    return [Case("stale", "age", name, options, present, cost=12.0)]


def hows(spec: RunSpec) -> tuple[str, ...]:
    """How a task that has no ball is attacked: by beam and greedily, or in its own one way."""
    return ("beam", "greedy") if spec.attack == TOKENS else ("own",)


def _craft(
    attack: str,
    networks: Sequence[Network],
    context: AttackContext,
    split: Split,
    steps: int,
    name: object,
) -> Tensor:
    """Propose by APGD, keeping the highest joint loss, by momentum, or as the task is attacked."""
    models, seed = context.models(networks), context.seed("stale", attack, name)
    if context.spec.attack != BALL:
        source = context.source("stale", attack, name)
        return craft(context.task, models, split.x, split.y, generator=source, how=attack)
    if attack == "momentum":
        # On MNIST's gate split a step of eps / 4 transferred better than 2.5 eps / steps.
        return pgd(
            models,
            split.x,
            split.y,
            eps=context.eps,
            steps=steps,
            bounds=context.bounds,
            decay=1.0,
            step_size=context.eps / 4,
            generator=context.source("stale", attack, name),
        )
    return apgd(
        models, split.x, split.y, eps=context.eps, steps=steps, seed=seed,
        bounds=box(split.x, context.eps, context.bounds),
    )  # fmt: skip


def _transfer(case: Case, context: AttackContext) -> Row:
    """Craft once on the exposed networks together, score on every later one."""
    k, steps, attack = case.number("k"), case.number("steps"), str(case.option("attack"))
    exposed, later = context.chain(case.chain).split(k, case.number("later"))
    if case.chain in NEXT:
        exposed = context.chain("generated").networks[-k:]
        later = context.chain(case.chain).networks[: case.number("later")]
    split = context.examples(case.number("n"))
    kind = "stale-single" if k == 1 else "stale-joint"
    threat = "stale, single" if k == 1 else f"stale, joint over the last {k}"
    label = f"APGD-CE {steps} steps" if attack == "apgd" else f"MI-FGSM {steps} steps, decay 1"
    label = label if context.spec.attack == BALL else label_of(context.task, steps, attack)
    proposed = _craft(attack, exposed, context, split, steps, k)
    mean, worst, clean = context.score_all(context.models(later), proposed, split)
    return context.row(
        case, kind, threat, label, mean, worst=worst, clean_accuracy=clean, scored=len(later),
        gradient_steps=steps * len(exposed), note=_remark(case, context, len(exposed)),
        extra={"exposed": k, "algorithm": attack},
    )  # fmt: skip


def _remark(case: Case, context: AttackContext, exposed: int) -> str:
    chain, asked, n = context.chain(case.chain), case.number("asked"), case.number("n")
    words = [f"{n} images"] if n < context.spec.n else []
    if case.chain in NEXT:
        words.append(f"crafted on the vault's last {exposed} generations; what would follow next")
        chain = context.chain("generated")
    elif len(chain.networks) == 1:
        words.append("the exposed network is the scored one: nothing was rotated")
    elif chain.fixed:
        words.append("the exposed network and the scored ones are the same function")
    if not chain.fixed and exposed < asked:
        count = len(chain.networks)
        words.append(f"{asked} exposed were asked for; the chain is {count} networks long")
    return "; ".join(words)


def _several(case: Case, context: AttackContext) -> list[Row]:
    """One attack on each exposed network: the best for the newest, and all as several tries."""
    steps, last, networks = (
        case.number("steps"),
        case.number("last"),
        context.chain(case.chain).networks,
    )
    read, later = context.chain(case.chain).split(last, case.number("later"))
    split, first = context.examples(case.number("n")), len(networks) - len(later) - len(read)
    made = [
        craft(
            context.task, context.model(network), split.x, split.y, eps=context.eps, steps=steps,
            generator=context.source("stale", "worst", place),
        )
        for place, network in enumerate(networks[first:-1], start=first)
    ]  # fmt: skip
    return [
        _hindsight(case, context, split, made[-last:]),
        _tries(case, context, split, made[: len(read)], context.models(later)),
    ]


def _hindsight(case: Case, context: AttackContext, split: Split, made: Sequence[Tensor]) -> Row:
    """The single exposed network whose attack hurts the newest most, chosen with hindsight."""
    steps, live = case.number("steps"), context.model(context.chain(case.chain).networks[-1])
    rates = [context.score(live, proposed, split) for proposed in made]
    best = max(range(len(rates)), key=lambda place: rates[place].value)
    age = len(made) - best
    return context.row(
        case, "stale-worst", f"stale, worst single of the last {len(made)}",
        label_of(context.task, steps),
        rates[best], clean_accuracy=accuracy_rate(live, split), gradient_steps=steps * len(made),
        note=f"exposed {age} rotation(s) before; chosen on the {len(split)} images that score it",
        extra={
            "exposed": len(made),
            "each": [_point(len(made) - place, rate) for place, rate in enumerate(rates)],
        },
    )  # fmt: skip


def _tries(
    case: Case,
    context: AttackContext,
    split: Split,
    made: Sequence[Tensor],
    later: Sequence[Logits],
) -> Row:
    """Submit every stored attack in turn: an image falls to any of them."""
    steps, k = case.number("steps"), len(made)
    rates = [context.score(model, any_of(model, made, split), split) for model in later]
    return context.row(
        case, "stale-tries", f"stale, best of {k} tries",
        f"{label_of(context.task, steps)} on each exposed network",
        pooled(rates), worst=max(rates, key=lambda rate: rate.value), scored=len(later), queries=k,
        clean_accuracy=pooled([accuracy_rate(model, split) for model in later]),
        gradient_steps=steps * k,
        note=f"{len(split)} images; one attack on each of the last {k} exposed networks, any of "
        f"which flips the image: {k} submissions, no scores needed",
        extra={"exposed": k},
    )  # fmt: skip


def _sources(count: int, wanted: int, skip: int) -> list[int]:
    """Places to craft on: up to `wanted`, evenly apart in the first half of the chain."""
    half = (count - 1 - skip) // 2
    gap = max(1, half // max(1, wanted - 1))
    return [skip + i * gap for i in range(wanted) if i * gap <= half]


def _reach(context: AttackContext) -> int:
    """How far the generated chain's curve goes, so that a fixed chain's goes as far."""
    chain = context.spec.chains.get("generated")
    if chain is None or len(chain.networks) < 2:
        return 1
    count = len(chain.networks)
    return count - 1 - _sources(count, 3, int(count > 4))[-1]


def _age(case: Case, context: AttackContext) -> Row:
    """ASR against age, the mean over attacks crafted on several networks of the chain."""
    chain, steps = context.chain(case.chain), case.number("steps")
    split, count = context.examples(case.number("n")), len(chain.networks)
    # The base is no generation: with enough of them, their chain is measured without it.
    skip = int(case.chain == "generated" and count > 4)
    sources = [0] if chain.fixed else _sources(count, case.number("sources"), skip)
    reach = _reach(context) if chain.fixed else count - 1 - sources[-1]
    how = "apgd" if context.spec.attack == BALL else hows(context.spec)[0]
    label = f"APGD-CE {steps} steps" if how == "apgd" else label_of(context.task, steps, how)
    found: dict[int, list[Rate]] = {age: [] for age in range(reach + 1)}
    for place in sources:
        proposed = _craft(how, [chain.networks[place]], context, split, steps, ("age", place))
        for age, scores in found.items():
            network = chain.networks[(place + age) % count if chain.fixed else place + age]
            scores.append(context.score(context.model(network), proposed, split))
    rates = {age: pooled(scores) for age, scores in found.items()}
    after = [rate for age, rate in rates.items() if age]
    return context.row(
        case, "stale-age", "stale, by age", label, pooled(after),
        worst=max(after, key=lambda rate: rate.value), scored=len(after), gradient_steps=steps,
        clean_accuracy=pooled([accuracy_rate(m, split) for m in context.models(chain.networks)]),
        note=f"{len(split)} images, crafted on {len(sources)} network(s); mean of ages 1–{reach}, "
        f"{100 * rates[0].value:.1f} % on the crafted network itself",
        extra={"curve": [_point(age, rate) for age, rate in rates.items()]},
    )  # fmt: skip


def _point(age: int, rate: Rate) -> dict[str, float]:
    return {"age": age, "value": rate.value, "low": rate.low, "high": rate.high}


THREAT = Threat(
    name="stale",
    title="Stale weights",
    question="How well does an attack that was made on exposed generations work on later ones?",
    ids=Identifiers(
        atlas="nearest: AML.T0043.002 Craft Adversarial Data: Black-Box Transfer",
        nist="nearest: NISTAML.025 Black-box Evasion (transferability of attacks)",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    fits=frozenset({"tokens", "own"}),
    chains=CONTROLS | {"draws", "rival", "hardened"},
    curve=CurveStyle(
        x="age",
        by=("threat", "attack"),
        across="rotations since the attack was crafted",
        title="How an attack decays over rotations",
        reads=(
            "At 0 an attack is scored on the network that it was crafted on, to the right on "
            "those that were live one, two, … rotations later. Low is good for the defender; a "
            "flat line means that age does not matter. The model that never changes is the line "
            "to compare with, retraining the rival to beat. Bands are 95 % intervals."
        ),
        hides=(
            "An attacker who reads the live parameters, or who owns the generator: for those see "
            "the matrix."
        ),
    ),
)
