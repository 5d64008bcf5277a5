"""Model extraction: a surrogate from the API's answers, and what attacks on it do to the victim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from torch import Tensor, nn

from g2d.attacks.extraction import extract
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Identifiers, Row, Status, not_measured
from g2d.redteam.scoring import accuracy_rate, pooled
from g2d.redteam.targets import HttpTarget, Rotating, Target, TargetError
from g2d.redteam.threat import CONTROLS, Threat
from g2d.redteam.threats.extraction import warm
from g2d.redteam.threats.extraction.copying import (
    NEXT,
    STEPS,
    agreement_of,
    attack_on,
    place_of,
    request_of,
    turns_of,
)

AGREES, FOOLS = "extraction-agreement", "extraction-transfer"
_GENERATED = 10  # live generations that are asked; fresh draws follow when they are used up
_NAMES = {"copycat": "Copycat CNN (ART)", "knockoff": "Knockoff Nets (ART, random)"}


def plan(spec: RunSpec) -> list[Case]:
    """Both attacks on the generations under three clocks, Copycat on every control without one."""
    cases = []
    for chain in ("generated", "frozen", "retrained", "soup", "noise", "permuted"):
        if chain not in spec.chains or not spec.chains[chain].networks:
            continue
        if spec.quick and chain not in ("generated", "frozen"):
            continue
        generated = chain == "generated"
        periods: tuple[int, ...] = (1000,) if chain == "permuted" else (0,)
        if generated:
            periods = (0, 100) if spec.quick else (0, 1000, 100)
        names = tuple(_NAMES) if generated and not spec.quick else ("copycat",)
        cases += [_case(spec, chain, name, every) for name in names for every in periods]
    return [*cases, *warm.plan(spec)]


def _case(spec: RunSpec, chain: str, name: str, every: int) -> Case:
    reads = (chain, "draws") if chain == "generated" and "draws" in spec.chains else (chain,)
    queries, epochs = (300, 30) if spec.quick else (5_000, 10)
    options = (("every", every), ("queries", queries), ("epochs", epochs), ("steps", STEPS))
    return Case("extraction", name, chain, options, reads, cost=queries / 800)


def plan_service(spec: RunSpec, url: str, model: str) -> list[Case]:
    """Copycat on a live service."""
    queries, epochs = (300, 30) if spec.quick else (5_000, 10)
    options = (("url", url), ("model", model), ("queries", queries), ("epochs", epochs))
    return [Case("extraction", "copycat", "service", options, cost=queries / 500)]


def run(case: Case, context: AttackContext) -> list[Row]:
    """Copy what answers; then score agreement, and attacks that were crafted on the copy."""
    if case.name == warm.NAME:
        return warm.run(case, context)
    return _service(case, context) if case.option("url") else _chain(case, context)


def _threat(case: Case) -> str:
    answers = "probabilities" if case.name == "knockoff" else "labels"
    return f"API, {answers}; trains a copy of the same architecture"


def _label(case: Case) -> str:
    return f"{_NAMES[case.name]}, {case.number('queries'):,} queries"


def _steal(case: Case, context: AttackContext, target: Target) -> nn.Module:
    """Train a copy. The attacker's images are the guide split's, whose labels nobody reads."""
    seed = context.seed("extraction", case.name, case.number("every"))
    return extract(
        target.predict, context.task.model(seed), context.task.splits.guide.x,
        attack=case.name, queries=case.number("queries"), classes=context.task.classes,
        bounds=context.task.bounds, seed=seed, epochs=case.number("epochs"),
        request=request_of(case),
    )  # fmt: skip


def _chain(case: Case, context: AttackContext) -> list[Row]:
    every, where = case.number("every"), place_of(case)
    models = _models(case, context)
    turns = turns_of(case, context)
    if every and len(models) == 1:
        why = "one network cannot rotate; generate more"
        words, extra = (_threat(case), where, _label(case), why), {"every": every}
        return [not_measured("extraction", AGREES, *words, chain=case.chain, extra=extra)]
    shape = tuple(context.task.splits.guide.x.shape[1:])
    target = Rotating(models, shape, context.task.classes, every=every or None)
    copy = _steal(case, context, target)
    live = models[(turns - 1) % len(models)]
    following = [] if context.chain(case.chain).fixed else models[turns : turns + NEXT]
    notes = ["scored on the network that is live when the last query is answered"]
    if following:
        notes.append(f"`next`: mean of the {len(following)} that follow")
    if turns > len(models):
        notes.append(f"only {len(models)} networks, so some answered twice")
    return _score(case, context, copy, live, following, where, "; ".join(notes))


def _models(case: Case, context: AttackContext) -> list[nn.Module]:
    """The networks that answer, in their order, and those that follow."""
    chain = context.chain(case.chain)
    networks = chain.networks
    if chain.name == "generated":
        # The first may be the base, which nothing generated.
        networks = (networks[1:] or networks)[-_GENERATED:]
        if "draws" in context.spec.chains:
            networks += context.chain("draws").networks
    return context.models(networks[: turns_of(case, context) + NEXT])


def _score(
    case: Case,
    context: AttackContext,
    copy: nn.Module,
    live: nn.Module,
    following: Sequence[nn.Module],
    where: str,
    note: str,
) -> list[Row]:
    """Two rows: agreement with what is live on test examples, ASR of attacks on the copy."""
    split, asked = context.examples(), case.number("queries")
    agreement, clean = agreement_of(copy, live, split), accuracy_rate(live, split)
    same = {"algorithm": case.name, "every": case.number("every") or None}
    extra = same | {"copy_accuracy": asdict(accuracy_rate(copy, split))}
    proposed = attack_on(copy, split, context, case.name)
    asr = context.score(live, proposed, split)
    transfer = same | {"copy": asdict(context.score(copy, proposed, split))}
    if following:
        later = pooled([agreement_of(copy, model, split) for model in following])
        extra["next"] = asdict(later)
        transfer["next"] = asdict(context.score_all(following, proposed, split)[0])
    agreed = context.row(
        case, AGREES, _threat(case), _label(case), agreement, target=where, metric="agreement",
        eps=None, harm=agreement.value, clean_accuracy=clean, queries=asked, note=note, extra=extra,
    )  # fmt: skip
    fooled = context.row(
        case, FOOLS, _threat(case) + ", then attacks it",
        f"{_label(case)}, then PGD-{STEPS} on the copy", asr, target=where,
        clean_accuracy=clean, queries=asked, gradient_steps=STEPS, note=note, extra=transfer,
    )  # fmt: skip
    return [agreed, fooled]


def _service(case: Case, context: AttackContext) -> list[Row]:
    """Copy a live service and attack it with what was crafted on the copy."""
    url = str(case.option("url"))
    service: HttpTarget | None = None
    try:
        service = HttpTarget(url, str(case.option("model")))
        expected = (tuple(context.task.splits.guide.x.shape[1:]), context.task.classes)
        if (service.shape, service.classes) != expected:
            why = f"it maps {service.shape} to {service.classes} classes, the task {expected}"
            words = (_threat(case), url, _label(case), why)
            return [not_measured("extraction", AGREES, *words, chain=case.chain)]
        copy = _steal(case, context, service)
        return _score(case, context, copy, _Api(service), [], url, "the judge asks the service too")
    except TargetError as error:
        spent = 0 if service is None else service.queries
        note = f"died after {spent:,} queries: {error}"
        row = context.row(case, AGREES, _threat(case), _label(case), None, target=url, note=note)
        return [replace(row, status=Status.DIED, queries=spent)]


class _Api(nn.Module):
    """A target as a model: answers without gradients."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target

    def forward(self, x: Tensor) -> Tensor:
        return self._target.predict(x)


THREAT = Threat(
    name="extraction",
    title="Model extraction",
    question="How well can the API be copied, and do attacks on the copy fool what is live?",
    ids=Identifiers(
        atlas="AML.T0024.002 Exfiltration via AI Inference API: Extract AI Model",
        nist="NISTAML.031 Model Extraction",
        owasp="ML05:2023 Model Theft",
    ),
    plan=plan,
    run=run,
    on_service=plan_service,
    chains=CONTROLS | {"draws"},
)
