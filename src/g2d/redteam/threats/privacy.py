"""Privacy: who was in the training data, and what a class looks like, from 1, 10, 100 networks.

Members are train examples; non-members are test examples, which no target has ever seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from g2d.attacks.inference import (
    art_membership,
    halves,
    invert,
    likelihood_ratio,
    logit_confidence,
    matched,
)
from g2d.redteam.context import AttackContext, Case, Network, RunSpec
from g2d.redteam.rows import Identifiers, Row, Status, not_measured
from g2d.redteam.scoring import Rate, share
from g2d.redteam.threat import CONTROLS, Threat
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.loop import Batches, clean_step, train

MEMBERS, CONTROL = "privacy-membership", "privacy-membership-control"
SECOND, CLASSES = "privacy-membership-second", "privacy-inversion"
_COUNTS = (1, 10, 100)  # how many networks the attacker averages over
_CONTROLS = ("frozen", "retrained", "soup", "noise")
_RATES = (0.01, 0.001)
_LEAST_SHADOWS = {0.01: 8, 0.001: 16}
_LEVELS = (0.25, 0.5, 0.75)  # even greys that an inversion climbs from, as shares of the range
_LIRA, _SHADOW, _RECOGNISED = "LiRA", "a shadow", "class recognised"
_GRID = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def plan(spec: RunSpec) -> list[Case]:
    """One case for membership, since its shadows serve every chain; one for each inversion."""
    if "generated" not in spec.chains:
        return []
    present = [name for name in ("generated", "draws", *_CONTROLS) if name in spec.chains]
    options = (
        (("members", 200), ("others", 200), ("shadows", 2), ("steps", 60))
        if spec.quick
        else (("members", 5000), ("others", 10_000), ("shadows", 16), ("steps", 600))
    )
    cases = [Case("privacy", "membership", "generated", options, tuple(present), cost=140)]
    inversion = ("steps", 10 if spec.quick else 40)
    judge = ("retrained",) if "retrained" in spec.chains else ()
    for count in _COUNTS:
        reads = tuple(dict.fromkeys(("generated", *_also(spec, count), *judge)))
        known = (("networks", count), inversion)
        cases.append(Case("privacy", "inversion", "generated", known, reads, cost=0.25 * count))
    for name in _CONTROLS:
        if name in spec.chains:
            known = (("networks", 1 if name == "frozen" else 10), inversion)
            reads = tuple(dict.fromkeys((name, *judge)))
            cases.append(Case("privacy", "inversion", name, known, reads, cost=3))
    return cases


def _also(spec: RunSpec, count: int) -> tuple[str, ...]:
    """Fresh draws stand for rotations to come where there were fewer generations than `count`."""
    short = len(spec.chains["generated"].networks) < count
    return ("draws",) if short and "draws" in spec.chains else ()


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run one case."""
    return _membership(case, context) if case.name == "membership" else _inversion(case, context)


def merge(rows: Sequence[Row]) -> list[Row]:
    """Say where LiRA had no power, and count an inversion's classes rather than its starts."""
    return [_per_class(_with_power(row, rows)) for row in rows]


def _with_power(row: Row, rows: Sequence[Row]) -> Row:
    """Take the harm from a row of LiRA whose positive control does not show that it works."""
    if row.kind not in (MEMBERS, CONTROL) or row.status != Status.OK:
        return row
    rates = {_metric(rate): rate for rate in _RATES}
    control = [r.value for r in rows if (r.kind, r.metric) == (CONTROL, row.metric)]
    found = control[0] if control else None
    if found is not None and found.low > rates[row.metric]:
        return row
    why = "no power: the positive control is at chance"
    if found is None:
        why = "power unknown: the positive control is not measured"
    return replace(row, harm=None, note=f"{why}; {row.note}")


def _metric(rate: float) -> str:
    return f"TPR at {100 * rate:g} % FPR"


def _per_class(row: Row) -> Row:
    """Starts that climb to one class are no trials of their own: as many trials as classes."""
    value, starts = row.value, int(row.extra.get("starts", 1))
    if row.kind != CLASSES or value is None or "images" in row.extra:
        return row
    classes = value.n // starts
    note = (
        f"{row.note}; mean over {starts} starts a class, the interval is that of {classes} classes"
    )
    extra = {**row.extra, "images": value.n}
    return replace(row, value=share(value.value * classes, classes), note=note, extra=extra)


def _networks(context: AttackContext, chain: str, count: int) -> tuple[Network, ...]:
    """The last `count` networks of a chain, or fewer; generations are filled up with draws."""
    networks = context.chain(chain).networks[-count:]
    if chain == "generated":
        for other in _also(context.spec, count):
            networks += context.chain(other).networks[: count - len(networks)]
    return networks


def _many(count: int) -> str:
    return "1 network" if count == 1 else f"{count} networks"


# --- membership ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Examples that the attacker asks about, the members first."""

    split: Split
    members: int


def why_not(others: int, rate: float, shadows: int) -> str:
    """Why a rate of false positives cannot be measured, or "" where it can.

    At least ten non-members must lie above the threshold, and the Gaussians of LiRA need shadows:
    at least 8 for 1 %, 16 for 0.1 %.
    """
    reasons = []
    if others * rate < 10:
        reasons.append(
            f"{others} non-members give {others * rate:g} false positives, fewer than 10"
        )
    if shadows < _LEAST_SHADOWS[rate]:
        reasons.append(f"{shadows} shadow models, fewer than {_LEAST_SHADOWS[rate]}")
    return f"not measured at {rate:.1%} false positives: {'; '.join(reasons)}" if reasons else ""


def true_positives(scores: Tensor, members: int, rate: float) -> Rate:
    """Share of members above the threshold that at most `rate` of the non-members exceed.

    Scores (n,), members first. Ties count for nobody.
    """
    outside = scores[members:].sort(descending=True).values
    allowed = int(rate * len(outside) + 1e-9)
    least = outside[allowed] if allowed < len(outside) else -torch.inf
    return share(int((scores[:members] > least).sum()), members)


def area(scores: Tensor, members: int) -> float:
    """Area under the ROC curve: how often a random member scores above a random non-member."""
    outside = scores[members:].sort().values
    below = torch.searchsorted(outside, scores[:members].contiguous())
    up_to = torch.searchsorted(outside, scores[:members].contiguous(), right=True)
    return float((below + up_to).double().mean()) / 2 / len(outside)


def _points(case: Case, context: AttackContext) -> Points:
    """Members and non-members, at random."""
    splits = context.task.splits
    members = splits.train.sample(case.number("members"), context.source("membership", "members"))
    others = splits.test.sample(case.number("others"), context.source("membership", "others"))
    both = Split(torch.cat([members.x, others.x]), torch.cat([members.y, others.y]))
    return Points(both, len(members))


def _shadow(
    context: AttackContext, points: Points, inside: Tensor, index: int, steps: int
) -> Tensor:
    """Train a shadow on the points inside, by the task's recipe; its logits on all of them."""
    s = context.spec.settings.population
    model = context.task.model(context.seed("shadow", index))
    batches = Batches(
        context.task, points.split.take(inside.nonzero().flatten()), s.batch,
        context.source("shadow", index),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context.seed("shadow", index))  # dropout draws from it
        train(model, clean_step(context.task, batches), steps=steps, rate=s.rate)
    return predict(model, points.split.x)


class _Lira:
    """Shadows, trained once, and the scores that they give to any target's answers."""

    def __init__(self, case: Case, context: AttackContext) -> None:
        self.case, self.context, self.points = case, context, _points(case, context)
        self.shadows, steps = case.number("shadows"), case.number("steps")
        source, n = context.source("membership", "halves"), len(self.points.split)
        self.inside = halves(self.shadows, n, source)
        # One more, which the attack has not seen: shows what it does to a target of its own kind.
        self.spare = halves(2, n, source)[0]
        logits = [
            _shadow(context, self.points, chosen, index, steps)
            for index, chosen in enumerate([*self.inside, self.spare])
        ]
        self.first, self.spare_logits = logits[0], logits[-1]
        self.phi = torch.stack([self._phi(z) for z in logits[:-1]])

    def _phi(self, logits: Tensor) -> Tensor:
        return logit_confidence(logits, self.points.split.y)

    def score(self, logits: Tensor) -> Tensor:
        """Score of membership for every point."""
        return likelihood_ratio(matched(self._phi(logits), self.phi), self.phi, self.inside)

    def rows(
        self, kind: str, scores: Tensor, members: int, rates: Sequence[float], threat: str,
        attack: str, note: str = "", read: int = 1, **more: object,
    ) -> list[Row]:  # fmt: skip
        """Judge scores (members first) at every rate of false positives."""
        others = len(scores) - members
        rows = []
        for rate in rates:
            roc = [{"false": x, "true": true_positives(scores, members, x).value} for x in _GRID]
            extra = {"read": read, "auc": area(scores, members), "roc": roc, "members": members,
                     "others": others, "shadows": self.shadows}  # fmt: skip
            metric = _metric(rate)
            known = {"eps": None, "metric": metric, "extra": extra} | more
            why = why_not(others, rate, self.shadows)
            if why:
                target = str(known.pop("target", self.case.chain))
                rows.append(not_measured(self.case.family, kind, threat, target, attack, why,
                                         seed=self.context.spec.seed, **known))  # fmt: skip
                continue
            found = true_positives(scores, members, rate)
            harm = max(0.0, (found.value - rate) / (1 - rate))
            told = f"AUC {extra['auc']:.3f}{'; ' if note else ''}{note}"
            rows.append(
                self.context.row(
                    self.case, kind, threat, attack, found, harm=harm, note=told, **known
                )
            )
        return rows


def _membership(case: Case, context: AttackContext) -> list[Row]:
    """LiRA on every chain, on a held-out shadow, and ART's attack as a second opinion."""
    lira = _Lira(case, context)
    points, attack = lira.points, f"{_LIRA} online, {lira.shadows} shadows"
    rows, logits = [], {}
    for name in ("generated", *_CONTROLS):
        if name not in context.spec.chains:
            continue
        counts = _COUNTS if name == "generated" else (1 if name == "frozen" else 10,)
        networks = _networks(context, name, counts[-1])
        answers = [predict(context.model(network), points.split.x) for network in networks]
        logits[name] = answers
        scores = torch.stack([lira.score(z) for z in answers])
        for count in counts:
            used = min(count, len(networks))
            threat = (
                f"membership from the answers of {_many(count if name == 'generated' else used)}"
            )
            if name == "generated" and len(networks) < count:
                why = f"there are {len(networks)} networks, not {count}"
                extra = {"read": count}
                rows.append(
                    not_measured(case.family, MEMBERS, threat, name, attack, why, extra=extra)
                )
                continue
            own = _window(scores, context, name, used)
            rows += lira.rows(MEMBERS, own.mean(0), points.members, _RATES, threat, attack,
                              target=name, read=count, scored=used, queries=used)  # fmt: skip
    rows += _held_out(lira, attack)
    return rows + _second_opinion(lira, logits)


def _window(scores: Tensor, context: AttackContext, name: str, count: int) -> Tensor:
    """The scores of the last `count` networks that were live, filled up with draws."""
    live = min(len(context.chain(name).networks), len(scores))
    first = max(0, live - count)
    return scores[first : first + count]


def _held_out(lira: _Lira, attack: str) -> list[Row]:
    """The attack on a network of its own kind: what it can do where its assumptions hold."""
    order = torch.cat([lira.spare.nonzero().flatten(), (~lira.spare).nonzero().flatten()])
    scores = lira.score(lira.spare_logits)[order]
    note = "positive control: a further shadow, trained as the attack's own shadows are"
    return lira.rows(CONTROL, scores, int(lira.spare.sum()), _RATES,
                     "membership in a held-out shadow", attack, note, target=_SHADOW,
                     queries=1)  # fmt: skip


def _second_opinion(lira: _Lira, logits: dict[str, list[Tensor]]) -> list[Row]:
    """ART's attack: a random forest, trained on one shadow's answers, asked about each chain."""
    inside, y = lira.inside[0], lira.points.split.y
    live = lira.context.chain("generated").networks
    targets = {
        name: answers[min(len(live), len(answers)) - 1 if name == "generated" else -1]
        for name, answers in logits.items()
    }
    scores = art_membership(
        lira.context.task, (lira.first[inside], lira.first[~inside]), (y[inside], y[~inside]),
        list(targets.values()), y, lira.context.seed("membership", "forest"),
    )  # fmt: skip
    rows = []
    for name, score in zip(targets, scores, strict=True):
        rows += lira.rows(
            SECOND, score, lira.points.members, _RATES[:1], "membership, a second opinion",
            "ART MembershipInferenceBlackBox, random forest on one shadow", target=name, queries=1,
        )  # fmt: skip
    return rows


# --- inversion -----------------------------------------------------------------------------------


def _inversion(case: Case, context: AttackContext) -> list[Row]:
    """Reconstruct every class from the mean logits of a chain's networks."""
    count, steps = case.number("networks"), case.number("steps")
    attack = f"ART MIFace, {steps} steps"

    def unmeasured(why: str) -> list[Row]:
        threat = f"a class from the weights of {_many(count)}"
        extra = {"read": count}
        return [not_measured(case.family, CLASSES, threat, case.chain, attack, why, extra=extra)]

    task, networks = context.task, _networks(context, case.chain, count)
    if task.splits.train.x.dim() != 4 or task.bounds is None:
        return unmeasured("reconstructing a class is judged on images in a known range")
    if "retrained" not in context.spec.chains:
        return unmeasured("needs an independent network, the first of the chain 'retrained'")
    judge, *_ = context.chain("retrained").networks
    networks = tuple(network for network in networks if network != judge)
    if not networks:
        return unmeasured("the chain holds no network but the judge")
    if case.chain == "generated" and len(networks) < count:
        return unmeasured(f"there are {len(networks)} networks, not {count}")
    images = _reconstruct(context.models(networks), task, steps, context.seed("inversion", count))
    threat = f"a class from the weights of {_many(len(networks))}"
    return [_judged(case, context, images, threat, attack, context.model(judge), len(networks))]


def _reconstruct(models: Sequence[nn.Module], task: Task, steps: int, seed: int) -> Tensor:
    """Climb from every level of grey to every class, (classes, levels, ...)."""
    assert task.bounds is not None  # checked by the caller
    low, high = task.bounds
    shape = task.splits.train.x.shape[1:]
    start = torch.stack([torch.full(shape, low + level * (high - low)) for level in _LEVELS])
    # A confident network's probability is flat: with a rate of 0.1 it climbed half as far.
    return torch.stack(
        [
            invert(models, start, label, task, steps=steps, rate=1.0, seed=seed)
            for label in range(task.classes)
        ]
    )


def _judged(
    case: Case,
    context: AttackContext,
    images: Tensor,
    threat: str,
    attack: str,
    judge: nn.Module,
    used: int,
) -> Row:
    """Ask an independent network what it sees, and compare with the class's mean image."""
    classes, levels = images.shape[:2]
    seen = predict(judge, images.flatten(0, 1)).argmax(1)
    right = seen == torch.arange(classes).repeat_interleave(levels)
    value = share(int(right.sum()), len(right))
    split = context.task.splits.train
    means = torch.stack([split.x[split.y == label].mean(0) for label in range(classes)])
    matrix = correlations(images.flatten(0, 1), means).view(classes, levels, classes).mean(1)
    own = float(matrix.diagonal().nanmean())
    other = float(matrix[~torch.eye(classes, dtype=torch.bool)].nanmean())
    note = (
        f"correlation with the class's mean train image {own:.2f}, with other classes' "
        f"{other:.2f}; chance recognises {1 / classes:.0%}"
    )
    return context.row(
        case, CLASSES, threat, attack, value, eps=None, metric=_RECOGNISED, harm=value.value,
        scored=used, gradient_steps=case.number("steps"), note=note,
        extra={"read": case.number("networks"), "correlation": own,
               "correlation_other_classes": other, "starts": levels},
    )  # fmt: skip


def correlations(images: Tensor, means: Tensor) -> Tensor:
    """Pearson correlation of images (n, ...) with mean images (classes, ...): (n, classes).

    NaN where an image or a class's mean is even.
    """
    a, b = (t.double().flatten(1) for t in (images, means))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None, :])


THREAT = Threat(
    name="privacy",
    title="Membership and reconstruction of training data",
    question="Do more generations tell more about the training data than one network does?",
    ids=Identifiers(
        atlas=(
            "AML.T0024.000 Exfiltration via AI Inference API: Infer Training Data Membership; "
            "AML.T0024.001 Exfiltration via AI Inference API: Invert AI Model"
        ),
        nist="NISTAML.033 Membership Inference; NISTAML.032 Data Reconstruction",
        owasp="ML04:2023 Membership Inference Attack; ML03:2023 Model Inversion Attack",
    ),
    plan=plan,
    run=run,
    merge=merge,
    chains=CONTROLS | {"draws"},
)
