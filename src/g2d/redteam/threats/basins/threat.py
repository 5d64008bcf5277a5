"""Basin-aware stale evasion: the attacker knows that generations of one basin are alike.

Exposed networks are sorted into basins. For each basin one joint attack is crafted, on its exposed
networks and on means of them that are drawn anew at every step. The attacker submits all of them,
or the one whose basin the target answers like. Every figure stands beside "had it stayed": the same
proposals, scored on the last network that they were crafted on.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from g2d.attacks.crafting import craft_drawn, label_of
from g2d.attacks.eot import Tricks, eot_pgd
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext, Case, Network, RunSpec
from g2d.redteam.rows import Identifiers, Row, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, any_of, pooled
from g2d.redteam.threat import CONTROLS, CurveStyle, Threat
from g2d.redteam.threats.basins.knowledge import Basin, recognised, sort_into_basins
from g2d.tasks.attack import BALL

CHAINS = ("generated", "frozen", "unrotated", "retrained", "soup", "noise", "permuted")
MEMORY, LATER, QUERIES = 24, 5, 64
TRICKS = (
    Tricks("probability", 1.0),
    Tricks("margin", 1.0, hardest=0.5),
    Tricks("dlr", 1.0, diversity=0.5),
    Tricks("probability", 1.0, smooth=3),
)
"""What the patient attacker tries for each basin; the first is the one of every other row."""
DRAWS = 4  # networks and soups a step
_KINDS = {"known": "basin-fingerprint", "tries": "basin-tries", "rotations": "basin-rotations"}
SECOND = 55e-6  # CPU seconds of one gradient of one MNIST image, measured on one core


def plan(spec: RunSpec) -> list[Case]:
    """For each chain one attack a basin; for some also many tries, and the curve of rotations."""
    n, steps = (60, 20) if spec.quick else (250, 100)
    size = (("n", n), ("steps", steps))
    cost = 2 + 6 * DRAWS * n * steps * SECOND
    cases = [
        Case("basins", "known", name, size, (name,), cost=cost)
        for name in (CHAINS[:2] if spec.quick else CHAINS)
        if name in spec.chains
    ]
    for name in () if spec.quick else ("generated", "soup", "noise"):
        if name in spec.chains:
            cases.append(Case("basins", "tries", name, size, (name,), cost=cost * len(TRICKS)))
    # Every report shows the curve, a quick one too: it is what rotation is to be judged by.
    few = (("n", 150), ("steps", 20 if spec.quick else 30))
    for name in ("generated",) if spec.quick else ("generated", "soup", "retrained"):
        if name in spec.chains:
            cases.append(Case("basins", "rotations", name, few, (name,), cost=cost))
    return cases


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run one case."""
    chain = context.chain(case.chain)
    if len(chain.networks) < 2 and not chain.fixed:
        why = f"{case.chain} holds one network: nothing is stale yet; generate more"
        kind = _KINDS[case.name]
        return [not_measured("basins", kind, "stale, basin-aware", case.chain, "joint", why)]
    made = {"known": _known, "tries": _tries, "rotations": _rotations}[case.name]
    return made(case, context)


class _Attack:
    """One attacker at one moment: what is exposed, and an attack on each basin of it."""

    def __init__(
        self, case: Case, context: AttackContext, exposed: Sequence[Network], name: object,
        tricks: Sequence[Tricks] = TRICKS[:1],
    ) -> None:  # fmt: skip
        self.case, self.context = case, context
        self.split = context.examples(case.number("n"))
        self.basins = sort_into_basins(context, exposed)
        self.made = [
            [self._craft(basin, each, (name, place, i)) for i, each in enumerate(tricks)]
            for place, basin in enumerate(self.basins)
        ]

    def _craft(self, basin: Basin, tricks: Tricks, name: object) -> Tensor:
        source = self.context.source("basins", self.case.name, self.case.chain, name)
        if self.context.spec.attack != BALL:
            return craft_drawn(
                self.context.task, basin.drawing(DRAWS, source), self.split.x, self.split.y,
                generator=source,
            )  # fmt: skip
        return eot_pgd(
            basin.drawing(DRAWS, source), self.split.x, self.split.y, eps=self.context.eps,
            steps=self.case.number("steps"), generator=source, bounds=self.context.bounds,
            tricks=tricks,
        )  # fmt: skip

    def recognise(self, target: Logits) -> int:
        """The basin that a target is taken for, by `QUERIES` answers to the attacker's images."""
        return recognised(target, self.basins, self.context.task.splits.guide.x[:QUERIES])

    def picked(self, target: Logits) -> Rate:
        """ASR of the first attack on the basin that the target is taken for: one submission."""
        proposed = self.made[self.recognise(target)][0]
        return self.context.score(target, proposed, self.split)

    def any_of(self, target: Logits) -> Rate:
        """ASR of all attacks on all basins, submitted one after the other."""
        every = [proposed for of_basin in self.made for proposed in of_basin]
        return self.context.score(target, any_of(target, every, self.split), self.split)


def _known(case: Case, context: AttackContext) -> list[Row]:
    """One attack a basin: the one that fits the target, and all of them."""
    exposed, later = context.chain(case.chain).split(MEMORY, LATER)
    attack, models = _Attack(case, context, exposed, ""), context.models(later)
    stayed = context.model(exposed[-1])
    basins = len(attack.basins)
    same = {"exposed": len(exposed), "basins": basins, "images": len(attack.split)}
    one = _row(
        case, context, "basin-fingerprint", "stale, basin-aware, one submission", attack, models,
        [attack.picked(model) for model in models], attack.picked(stayed), same,
        note=f"the basin is told by {QUERIES} score queries", queries=QUERIES,
    )  # fmt: skip
    union = _row(
        case, context, "basin-union", "stale, basin-aware, a submission for each basin", attack,
        models, [attack.any_of(model) for model in models], attack.any_of(stayed), same,
        note=f"any of {basins} submissions flips the image", queries=basins,
    )  # fmt: skip
    return [one, union]


def _tries(case: Case, context: AttackContext) -> list[Row]:
    """Diverse attacks on every basin: an image falls to any of them."""
    exposed, later = context.chain(case.chain).split(MEMORY, LATER)
    images = context.examples(1).x.dim() == 4
    tricks = [one for one in TRICKS if images or not one.for_images]
    tricks = tricks if context.spec.attack == BALL else tricks[:1]  # of gradients in the ball
    attack = _Attack(case, context, exposed, "", tricks)
    models, stayed = context.models(later), context.model(exposed[-1])
    tries = sum(len(of_basin) for of_basin in attack.made)
    extra = {"exposed": len(exposed), "basins": len(attack.basins), "images": len(attack.split)}
    return [
        _row(
            case, context, "basin-tries", "stale, basin-aware, many tries", attack, models,
            [attack.any_of(model) for model in models], attack.any_of(stayed), extra,
            note=f"any of {tries} submissions: losses and tricks that transfer, basin by basin",
            queries=tries,
        )
    ]  # fmt: skip


def _rotations(case: Case, context: AttackContext) -> list[Row]:
    """The best stale attack against the number of rotations so far."""
    networks = context.chain(case.chain).networks
    curve, rates, models = [], [], []
    for count in counts(len(networks) - 1):
        attack = _Attack(case, context, networks[max(0, count - MEMORY) : count], count)
        target = context.model(networks[count])
        rate, stayed = attack.picked(target), attack.picked(context.model(networks[count - 1]))
        curve.append({"rotations": count, "value": rate.value, "low": rate.low, "high": rate.high,
                      "stayed": stayed.value})  # fmt: skip
        rates.append(rate)
        models.append(target)
    return [
        context.row(
            case, "basin-rotations", "stale, basin-aware, by rotations so far",
            _label(case, context), pooled(rates),
            worst=max(rates, key=lambda rate: rate.value), scored=len(rates),
            clean_accuracy=pooled([accuracy_rate(m, attack.split) for m in models]),
            note=f"{len(attack.split)} images; one submission, its basin told by {QUERIES} "
            "score queries",
            extra={"curve": curve},
        )
    ]  # fmt: skip


def counts(most: int) -> list[int]:
    """Numbers of rotations to look at, up to `most`: 1, 2, 3, 5, 8, 13, ..."""
    found, a, b = [], 1, 2
    while a <= most:
        found.append(a)
        a, b = b, a + b
    return found if not found or found[-1] == most else [*found, most]


def _row(
    case: Case, context: AttackContext, kind: str, threat: str, attack: _Attack,
    models: Sequence[Logits], rates: Sequence[Rate], stayed: Rate, extra: dict[str, int],
    note: str, queries: int,
) -> Row:  # fmt: skip
    clean = pooled([accuracy_rate(model, attack.split) for model in models])
    matched = {"value": stayed.value, "low": stayed.low, "high": stayed.high, "n": stayed.n}
    return context.row(
        case, kind, threat, _label(case, context), pooled(rates),
        worst=max(rates, key=lambda rate: rate.value), scored=len(models), clean_accuracy=clean,
        queries=queries, gradient_steps=case.number("steps") * DRAWS * len(attack.basins),
        note=f"{extra['exposed']} exposed in {extra['basins']} basin(s), {extra['images']} images; "
        f"{note}; had it stayed {100 * stayed.value:.1f} %",
        extra=extra | {"stayed": matched},
    )  # fmt: skip


def _label(case: Case, context: AttackContext) -> str:
    steps = case.number("steps")
    if context.spec.attack != BALL:
        return f"{label_of(context.task, steps)}, {DRAWS} exposed networks and soups, by basin"
    return f"MI-FGSM {steps} steps, {DRAWS} exposed networks and soups of them a step, by basin"


THREAT = Threat(
    name="basins",
    title="Stale weights, basin by basin",
    question="How well does an attack work whose author sorts exposed generations by basin?",
    ids=Identifiers(
        atlas="nearest: AML.T0043.002 Craft Adversarial Data: Black-Box Transfer",
        nist="nearest: NISTAML.025 Black-box Evasion (transferability of attacks)",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    fits=frozenset({"tokens", "own"}),
    chains=CONTROLS,
    curve=CurveStyle(
        x="rotations",
        by=("threat", "attack"),
        across="rotations so far",
        title="The best stale attack as rotations go on",
        reads=(
            "After so many rotations everything that was live is exposed, and the next generation "
            "is attacked. A flat line means that rotations do not run out of novelty; a rising one "
            "that the attacker has seen all basins there are."
        ),
        hides="An attacker who reads the live parameters: that is the white-box row of the matrix.",
    ),
)
