"""Membership: likelihood ratios against shadows, and a second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.attacks.inference import (
    art_membership,
    halves,
    likelihood_ratio,
    logit_confidence,
    matched,
)
from g2d.redteam.context import AttackContext, Case
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import Rate, share
from g2d.redteam.threats.privacy.claim import beside, promised
from g2d.redteam.threats.privacy.networks import (
    COMPARED,
    CONTROL,
    COUNTS,
    MEMBERS,
    RATES,
    SECOND,
    many,
    metric_of,
    networks_of,
)
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.training.loop import Batches, clean_step, train

_LEAST_SHADOWS = {0.01: 8, 0.001: 16}
_LIRA, _SHADOW = "LiRA", "a shadow"
_GRID = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


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
    model = context.task.placed(context.task.model(context.seed("shadow", index)))
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
            metric = metric_of(rate)
            known = {"eps": None, "metric": metric, "extra": extra} | more
            why = why_not(others, rate, self.shadows)
            if why:
                chain = known.setdefault("chain", self.case.chain)
                target = str(known.pop("target", chain))
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


def membership_rows(case: Case, context: AttackContext) -> list[Row]:
    """LiRA on every chain, on a held-out shadow, and ART's attack as a second opinion."""
    lira = _Lira(case, context)
    points, attack = lira.points, f"{_LIRA} online, {lira.shadows} shadows"
    rows, logits = [], {}
    for name in ("generated", *COMPARED):
        if name not in context.spec.chains:
            continue
        counts = COUNTS if name == "generated" else (1 if name == "frozen" else 10,)
        networks = networks_of(context, name, counts[-1])
        answers = [predict(context.model(network), points.split.x) for network in networks]
        logits[name] = answers
        scores = torch.stack([lira.score(z) for z in answers])
        for count in counts:
            used = min(count, len(networks))
            threat = (
                f"membership from the answers of {many(count if name == 'generated' else used)}"
            )
            if name == "generated" and len(networks) < count:
                why = f"there are {len(networks)} networks, not {count}"
                extra = {"read": count}
                rows.append(
                    not_measured(case.family, MEMBERS, threat, name, attack, why, extra=extra)
                )
                continue
            own = _window(scores, context, name, used)
            rows += lira.rows(MEMBERS, own.mean(0), points.members, RATES, threat, attack,
                              chain=name, read=count, scored=used, queries=used)  # fmt: skip
    rows += _held_out(lira, attack) + _second_opinion(lira, logits)
    return beside(rows, promised(context))


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
    return lira.rows(CONTROL, scores, int(lira.spare.sum()), RATES,
                     "membership in a held-out shadow", attack, note, chain="shadow",
                     target=_SHADOW, queries=1)  # fmt: skip


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
            SECOND, score, lira.points.members, RATES[:1], "membership, a second opinion",
            "ART MembershipInferenceBlackBox, random forest on one shadow", chain=name, queries=1,
        )  # fmt: skip
    return rows
