"""Adaptive: the attacker owns the generator, or fits one, and attacks what it will draw next."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from g2d.attacks.crafting import craft_drawn
from g2d.attacks.eot import LOSSES, eot_pgd
from g2d.core.engine import SerialEngine
from g2d.core.types import Logits
from g2d.defence.defence import Defence
from g2d.errors import G2DError
from g2d.generator import Generator
from g2d.redteam.context import AttackContext, Case, Network, RunSpec
from g2d.redteam.rows import Identifiers, Row, not_measured
from g2d.redteam.scoring import Rate
from g2d.redteam.threat import CONTROLS, CurveStyle, Threat
from g2d.redteam.threats.adaptive import inversion
from g2d.tasks.attack import BALL
from g2d.tasks.inference import load_model
from g2d.tasks.source import named_by

Options = tuple[tuple[str, int | float | str], ...]
_ORDER = ("own generator", "samples", "proposals", "everything")  # who knows more comes later
_WORDS = {
    "samples": "owns the generator: averages over its unguided samples, fresh at every step",
    "proposals": "owns generator, exposed set and procedure: averages over guided proposals",
    "everything": "owns all of that and every exposed generation, averages over all",
    "own generator": "fits a generator of their own on a population of their own",
    "recipe": "owns the recipe: averages over other networks that it made",
}


def plan(spec: RunSpec) -> list[Case]:
    """One case for each number of draws a step, and for each other attacker and loss."""
    n, steps = (60, 10) if spec.quick else (300, 30)
    base: Options = (("n", n), ("steps", steps))
    cases = []
    if "draws" in spec.chains:
        for draws in (1, 5) if spec.quick else (1, 10, 50, 100):
            options: Options = (*base, ("draws", draws))
            cost = 0.02 * draws * steps
            cases.append(Case("adaptive", "samples", "generated", options, ("draws",), True, cost))
        last = (*base, ("draws", 3 if spec.quick else 20))
        reads = ("draws", "attacker", "generated")
        cases.append(Case("adaptive", "own generator", "generated", last, reads, True, 100.0))
        for name, cost in (("proposals", 20.0), ("everything", 60.0)):
            for loss in LOSSES if spec.attack == BALL else LOSSES[:1]:
                options = (*last, ("loss", loss))
                cases.append(Case("adaptive", name, "generated", options, reads, True, cost))
    for name in ("frozen", "permuted", "retrained", "soup", "noise"):
        if name in spec.chains:
            options = (*base, ("draws", 3 if spec.quick else 10), ("loss", LOSSES[0]))
            cases.append(Case("adaptive", "recipe", name, options, (name,), cost=10.0))
    return [*cases, *inversion.plan(spec)]


def run(case: Case, context: AttackContext) -> list[Row]:
    """Craft by EOT, score on networks that the attacker has never seen; or by inversion."""
    if case.name == inversion.NAME:
        return inversion.run(case, context)
    examples, draws = context.examples(case.number("n")), case.number("draws")
    if case.name == "recipe":
        known, unseen = context.chain(case.chain).split(draws, 100)
        what = _Knowledge(_all_of(context.models(known)), f"known networks, {len(known)} of them")
    else:
        unseen = context.chain("draws").networks
        what = _attackers(case, context, draws)
    if what.draw is None:
        return [
            not_measured(
                "adaptive",
                _kind(case),
                _WORDS[case.name],
                case.chain,
                f"EOT over {what.pool}",
                what.note,
            )
        ]
    steps, loss, sizes = case.number("steps"), str(case.option("loss", "")), list[int]()
    source = context.source("adaptive", case.name, draws)
    if context.spec.attack == BALL:
        proposed = eot_pgd(
            _counted(what.draw, sizes), examples.x, examples.y, eps=context.eps, steps=steps,
            generator=source, bounds=context.bounds, loss=loss or LOSSES[0],
        )  # fmt: skip
    else:
        proposed = craft_drawn(
            context.task, _counted(what.draw, sizes), examples.x, examples.y, generator=source
        )
    mean, worst, clean = context.score_all(context.models(unseen), proposed, examples)
    rounds = f"{steps} steps" if context.spec.attack == BALL else context.task.attack_words
    label = f"EOT over {what.pool}, {rounds} of {max(sizes)}"
    row = context.row(
        case, _kind(case), _WORDS[case.name],
        f"{label}, {loss} loss" if loss else f"{label} draws", mean,
        worst=worst, clean_accuracy=clean, scored=len(unseen), gradient_steps=sum(sizes),
        note=what.note, extra={"attacker": case.name, "draws": max(sizes)} | _loss(loss),
    )  # fmt: skip
    return [row]


def _kind(case: Case) -> str:
    return f"adaptive-{case.name.replace(' ', '-')}"


def _loss(loss: str) -> dict[str, str]:
    return {"loss": loss} if loss else {}


def merge(rows: Sequence[Row]) -> list[Row]:
    """Fold the numbers of draws into one row: the most successful one, with the curve.

    Rows of attackers who know more than a more successful one say so.
    """
    swept = [row for row in rows if row.extra.get("attacker") == "samples" and row.value]
    rest = [row for row in rows if row not in swept]
    if not swept:
        return _remarked(rest, rest)
    curve = sorted(
        ({"draws": row.extra["draws"], **_plain(row.value)} for row in swept if row.value),
        key=lambda point: point["draws"],
    )
    best = max(swept, key=lambda row: row.value.value if row.value else 0.0)
    note = f"best of {', '.join(str(p['draws']) for p in curve)} draws a step; " + (
        "more draws no longer help, within the interval"
        if _flat(curve)
        else "still rising with more draws"
    )
    folded = replace(best, note=note, extra={"attacker": "samples", "curve": curve})
    return _remarked([folded, *rest], [best, *rest])


def _remarked(rows: Sequence[Row], compared: Sequence[Row]) -> list[Row]:
    """Add to each row's note where one who knows less wins more; `compared` hold the draws."""
    known = [row for row in compared if row.value and row.extra.get("attacker") in _ORDER]
    remarks = [_remark(row, known) if row in known else "" for row in compared]
    return [
        replace(row, note="; ".join(words for words in (row.note, remark) if words))
        for row, remark in zip(rows, remarks, strict=True)
    ]


def _remark(row: Row, known: Sequence[Row]) -> str:
    """What a reader must know of a row that wins less than one of an attacker who knows less."""
    assert row.value is not None
    place = _ORDER.index(row.extra["attacker"])
    fewer = [other for other in known if _ORDER.index(other.extra["attacker"]) < place]
    best = max(fewer, key=lambda other: other.value.value if other.value else 0.0, default=None)
    if best is None or best.value is None or best.value.value <= row.value.value:
        return ""
    more = row.extra["draws"] > best.extra["draws"]
    chance = best.value.value <= row.value.high
    return (
        f"knows more than whoever {_WORDS[best.extra['attacker']].partition(':')[0]} "
        f"({100 * best.value.value:.1f} %), yet wins less{' (within the interval)' * chance}: "
        + ("averaging over more networks weakens each" if more else "averages over fewer networks")
    )


def _flat(curve: Sequence[dict[str, float]]) -> bool:
    """Whether the last number of draws gained nothing beyond chance on the one before."""
    return len(curve) > 1 and curve[-1]["value"] <= curve[-2]["high"]


def _plain(rate: Rate | None) -> dict[str, float]:
    assert rate is not None
    return {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}


Draw = Callable[[], Sequence[Logits]]


@dataclass(frozen=True)
class _Knowledge:
    """What an attacker draws from at each step (None: nothing, `note` says why), in words too."""

    draw: Draw | None
    pool: str = "fresh samples"
    note: str = ""


def _attackers(case: Case, context: AttackContext, draws: int) -> _Knowledge:
    """What the attacker draws from at each step, and what a reader must know of it."""
    source = context.source("adaptive", case.name, "networks", draws)
    if case.name == "samples":
        return _Knowledge(_samples(context, context.defence.generator, draws, source))
    if case.name == "own generator":
        try:
            generator, note = _own_generator(context)
        except G2DError as error:
            why = f"the attacker's own generator could not be fitted: {error}"
            return _Knowledge(None, note=why)
        return _Knowledge(_samples(context, generator, draws, source), note=note)
    own = context.spec.chains.get("attacker")
    if own is None:
        return _Knowledge(None, "own proposals", "no proposal of the attacker passed the gates")
    guided = context.models(own.networks)
    if case.name == "proposals":
        pool = f"a pool of {len(guided)} own proposals"
        return _Knowledge(_some_of(guided, draws, source), pool)
    exposed = context.models(_last(context.chain("generated").networks, 20))
    fresh = _samples(context, context.defence.generator, max(1, draws // 2), source)
    pool = f"a pool of {len(guided)} own proposals and {len(exposed)} exposed generations, "
    return _Knowledge(
        lambda: [*_pick([*guided, *exposed], draws, source), *fresh()],
        f"{pool}and {max(1, draws // 2)} fresh samples a step",
    )


def _counted(draw: Draw, sizes: list[int]) -> Draw:
    """Draw, and note how many networks came."""

    def counted() -> Sequence[Logits]:
        models = draw()
        sizes.append(len(models))
        return models

    return counted


def _last(networks: Sequence[Network], count: int) -> Sequence[Network]:
    return networks[-count:]


def _all_of(models: Sequence[Logits]) -> Draw:
    return lambda: models


def _some_of(models: Sequence[Logits], count: int, source: torch.Generator) -> Draw:
    return lambda: _pick(models, count, source)


def _pick(models: Sequence[Logits], count: int, source: torch.Generator) -> list[Logits]:
    order = torch.randperm(len(models), generator=source)[:count]
    return [models[i] for i in order.tolist()]


def _samples(
    context: AttackContext, generator: Generator, count: int, source: torch.Generator
) -> Draw:
    """Fresh unguided samples of a generator, `count` at each step, loaded one at a time."""

    def lazily() -> Iterator[Logits]:
        for v in generator.sample(count, source):
            yield load_model(context.task, generator.to_state(v))

    return lambda: list(lazily())


def _own_generator(context: AttackContext) -> tuple[Generator, str]:
    """Fit a generator on a population that the attacker trains with other seeds.

    Smaller than the defender's, to keep within a red team's time; the row says so.
    """
    settings = context.spec.settings
    p, quick = settings.population, context.spec.quick
    reduce = 10 if quick else 6
    mine = settings.override(
        population__seed=(p.seed + 7_919) % 2**31,
        population__members=min(p.members, 4 if quick else 8),
        population__basins=min(p.basins, 2),
        population__base_steps=max(1, p.base_steps // reduce),
        population__early_steps=max(1, p.early_steps // 2),
        population__fork_steps=max(1, p.fork_steps // (4 if quick else 2)),
        autoencoder__steps=settings.autoencoder.steps // reduce,
        diffusion__steps=max(1, settings.diffusion.steps // reduce),
        privacy__enabled=False,  # an attacker keeps nobody's secret
    )
    source = named_by(context.spec.source)
    task = settings.task.name if isinstance(source, tuple) else source
    if isinstance(source, tuple):
        mine = mine.override(task__data=source[1] or None)
    with tempfile.TemporaryDirectory() as folder, SerialEngine() as engine:
        path = Path(folder) / "vault"
        with Defence.build(task, path, mine, engine=engine) as theirs:
            count = len(theirs.vault.entries("member"))
            return theirs.generator, f"a population of {count}, of shorter trainings and fits"


THREAT = Threat(
    name="adaptive",
    title="Adaptive: the attacker owns the generator",
    question="Does an attack that averages over many possible generations work on the next one?",
    ids=Identifiers(
        atlas="AML.T0043.000 Craft Adversarial Data: White-Box Optimization",
        nist="NISTAML.022 Evasion",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    fits=frozenset({"tokens", "own"}),
    merge=merge,
    chains=CONTROLS | {"draws", "attacker"},
    curve=CurveStyle(
        x="draws",
        by=("threat",),
        across="networks averaged at each step",
        title="The attacker owns the generator",
        reads=(
            "The attacker averages over many possible next generations before one of them is "
            "live. Where the line is flat, more of them would not help; where it still rises, "
            "they would."
        ),
        hides=(
            "The best such attack: this is one way of averaging, and what it reaches is a lower "
            "bound."
        ),
    ),
)
