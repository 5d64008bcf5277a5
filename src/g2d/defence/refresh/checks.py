"""What new data, and networks that learned from them, are looked at for: wrong labels, poison.

Every check says its number and its limit in one line; whether to go on all the same is its
caller's to decide. The search for triggers is in `backdoor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from g2d.core.shares import highest_share, largest_drop, shown_drop, wilson
from g2d.core.types import Logits
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split

CONFIDENCE = 0.95
_FEW = 16  # records of a class, below which nothing is said of its shape
_LEAST_PART = 0.05  # of a class; fewer are outliers, which every class has
_MOST_PART = 0.4  # of a class; more is what the class has become, and no poison hidden in it,
_MOST_OF_ALL = 0.15  # unless it is less than this of all records: of ten classes one is a tenth
_UNLIKELY = 1 / 4
"""Of a class's mean probability: a label that gets less is no hard example, but a wrong label. On
digits turned by 25 degrees, networks that are right on 72 % of them counted 10 % wrong labels in
sound data without this, and about 1 % with it."""


@dataclass(frozen=True)
class Check:
    """What one check measured. `text` says number and limit in a line."""

    name: str
    passed: bool
    value: float
    limit: float
    text: str

    def entry(self) -> dict[str, Any]:
        """Plain values, as a vault keeps them."""
        return asdict(self)


def probabilities(models: Sequence[Logits], x: Tensor) -> Tensor:
    """Mean softmax (n, classes) of networks: what they say together."""
    return torch.stack([predict(model, x).softmax(1) for model in models]).mean(0)


def agreement_check(p: Tensor, split: Split, classes: int, limit: float) -> Check:
    """How often the live networks give a record the label that it came with, beyond chance.

    A shift lowers it, of single classes to nothing; labels that belong to other records, or were
    numbered otherwise, leave nothing of it anywhere. The upper bound of the share (exact, Clopper
    and Pearson 1934) is taken, less what the two columns of labels share by chance (Cohen 1960).

    Args:
        p: probabilities (n, classes) of the live networks on the records.
    """
    guess, n = p.argmax(1), len(split)
    right = guess == split.y
    agreed = int(right.sum())
    shares = (torch.bincount(labels, minlength=classes) / n for labels in (guess, split.y))
    chance = float(torch.stack(list(shares)).prod(0).sum())
    low, high = 1 - highest_share(n - agreed, n, 0.975), highest_share(agreed, n, 0.975)
    beyond = (high - chance) / max(1e-9, 1 - chance)
    by_class = {c: right[split.y == c] for c in range(classes) if bool((split.y == c).any())}
    worst = min(by_class, key=lambda c: float(by_class[c].double().mean()))
    text = (
        f"labels agree with the live networks on {agreed} of {n} ({agreed / n:.1%}, exact 95 % "
        f"interval {low:.1%} to {high:.1%}), least in class {worst} "
        f"({int(by_class[worst].sum())} of {len(by_class[worst])}): {beyond:.1%} beyond chance; at "
        f"least {limit:.1%} is asked for"
    )
    return Check("agreement", beyond >= limit, beyond, limit, text)


def confident_errors(p: Tensor, y: Tensor) -> Tensor:
    """Labels that are probably wrong, (n,) bool: off the diagonal of the confident joint.

    A record labelled i counts as class j where p_j reaches the mean p_j of the records labelled j;
    of several such classes the most probable one (Northcutt et al. 2021, arXiv 1911.00068, eq. 1).
    Besides, p_i has to be far below the mean p_i of its class: networks that have just begun to
    learn a shift take hard records for wrong ones otherwise.

    Args:
        p: probabilities (n, classes) of networks that have not seen the records. y: labels (n,).
    """
    classes = p.shape[1]
    limits = torch.full((classes,), torch.inf, dtype=p.dtype)
    for label in range(classes):
        if bool((of := y == label).any()):
            limits[label] = p[of, label].mean()
    sure = p >= limits
    counted = torch.where(sure, p, torch.zeros(())).argmax(1)
    own = p.gather(1, y[:, None])[:, 0]
    return sure.any(1) & (counted != y) & (own < _UNLIKELY * limits[y])


def noise_check(p: Tensor, y: Tensor, limit: float) -> Check:
    """The estimated share of wrong labels among records that the new networks have not seen."""
    wrong, n = int(confident_errors(p, y).sum()), len(y)
    share = wrong / max(1, n)
    low, high = 1 - highest_share(n - wrong, n, 0.975), highest_share(wrong, n, 0.975)
    text = (
        f"wrong labels, by networks that learned the new data, of what they have not seen: "
        f"{wrong} of {n} ({share:.1%}, exact 95 % interval {low:.1%} to {high:.1%}); at most "
        f"{limit:.1%} is allowed"
    )
    return Check("label_noise", share <= limit, share, limit, text)


def features(model: nn.Module, x: Tensor) -> Tensor:
    """Penultimate features (n, width): what goes into the last linear layer, else the logits."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        return predict(model, x).flatten(1)
    kept: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, given: kept.append(given[0].detach()))
    try:
        logits = predict(model, x)
    finally:
        hook.remove()
    found = torch.cat([part.flatten(1) for part in kept]) if kept else logits
    return found if len(found) == len(x) else logits.flatten(1)


def parted(h: Tensor) -> Tensor:
    """Which of a class's records stand apart in their features, (n,) bool: the smaller part.

    Records are scored along the top right singular vector of the centred features (Tran et al.
    2018, arXiv 1811.00636, algorithm 1), and cut in two where the parts' means explain most of the
    scores' variance.

    Args:
        h: features (n, width) of records with one label.
    """
    n = len(h)
    centred = (h - h.mean(0)).double()
    scores = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]
    order = scores.argsort()
    below = torch.arange(1, n, dtype=scores.dtype)
    # The mean of all scores is zero, so that this is the variance between the parts, times n.
    between = scores[order].cumsum(0)[:-1].square() / (below * (n - below))
    cut = int(between.argmax()) + 1
    apart = torch.zeros(n, dtype=torch.bool)
    apart[order[:cut] if cut <= n - cut else order[cut:]] = True
    return apart


def spectral_check(
    model: nn.Module, p: Tensor, split: Split, classes: int, limit: float
) -> Check | None:
    """Spectral signatures: records that stand apart in their class, and that others name otherwise.

    A class of sound data has parts, too; what betrays poison is that the live networks, which have
    not learned it, give the records of one part other labels and not those of the rest. A part that
    is nearly half of its class, and many of all records, says that the class has changed, as
    attacks of new kinds did on NSL-KDD, and that was refused in one clean refresh of three:
    `agreement_check` tells of it. Poison that is more than half of a class is not seen here.

    Args:
        model: a network that has learned the records. p: probabilities (n, classes) of the live
            networks on them.

    Returns:
        None where no class has enough records to say anything.
    """
    h, other = features(model, split.x), p.argmax(1) != split.y
    found = []
    for label in range(classes):
        at = (split.y == label).nonzero()[:, 0]
        if len(at) < _FEW:
            continue
        apart = parted(h[at])
        most = max(_MOST_PART * len(at), _MOST_OF_ALL * len(split))
        if not max(2, _LEAST_PART * len(at)) <= int(apart.sum()) <= most:
            continue
        named = [(int(other[at][part].sum()), int(part.sum())) for part in (apart, ~apart)]
        found.append((least_gap(*named[0], *named[1]), label, named))
    if not found:
        return None
    gap, label, ((inside, count), (outside, rest)) = max(found, key=lambda one: one[0])
    text = (
        f"spectral signature: {count} of {count + rest} records of class {label} stand apart in "
        f"the features; the live networks name {inside} of these otherwise, and {outside} of the "
        f"{rest} others: {gap:.0%} apart at least; {limit:.0%} is allowed"
    )
    return Check("spectral", gap <= limit, gap, limit, text)


def least_gap(k: int, n: int, j: int, m: int) -> float:
    """One-sided 95 % lower bound of k / n - j / m (Newcombe 1998, method 10, of Wilson's)."""
    p, q = k / n, j / m
    low, high = wilson(k, n, 0.9)[0], wilson(j, m, 0.9)[1]
    return p - q - math.hypot(p - low, high - q)


def influence_checks(
    before: Logits, after: Logits, former: Split, new: Split, limit: float
) -> list[Check]:
    """What the new data did to the base: on former gate data, and on the new gate data.

    Both are held by the exact bound of the gates; where `limit` cannot be shown on so few examples
    even if none differs, against what they could show at best. On new data nothing may be lost.

    Args:
        before, after: the base, and the same network refreshed. former, new: gate examples.
    """
    least = shown_drop(len(former), limit, CONFIDENCE)
    was, now, drop = _paired(before, after, former)
    kept = Check(
        "former_data", drop <= least, drop, least,
        f"former gate data: {was:.2%} right before, {now:.2%} after, of {len(former)} (a drop of "
        f"{drop:.2%} at most"
        + (f"; so few show none below {least:.2%}, which counts as {limit:.2%}" if least > limit
           else "")
        + f"); {least:.2%} is allowed",
    )  # fmt: skip
    was, now, drop = _paired(before, after, new)
    none = largest_drop(0, 0, len(new), CONFIDENCE)
    won = Check(
        "new_data", now >= was, now - was, 0.0,
        f"new gate data: {was:.2%} right before, {now:.2%} after, of {len(new)} (a drop of "
        f"{drop:.2%} at most; so many show none below {none:.2%}); no less is asked for",
    )  # fmt: skip
    return [kept, won]


def _paired(before: Logits, after: Logits, split: Split) -> tuple[float, float, float]:
    """Accuracy before and after, and the upper bound of the paired drop."""
    old, own = (predict(m, split.x).argmax(1) == split.y for m in (before, after))
    worse, better = int((old & ~own).sum()), int((~old & own).sum())
    bound = largest_drop(worse, better, len(split), CONFIDENCE)
    return float(old.double().mean()), float(own.double().mean()), bound


def class_check(before: Logits, after: Logits, former: Split, classes: int, limit: float) -> Check:
    """The class that lost most on former gate data: what all of them together could hide.

    Labels of one class that were all changed alike agree with each other, and no network that
    learned them finds them wrong. Held by the lower bound of the paired drop: classes have few
    examples.

    Args:
        before, after: the base, and the same network refreshed. former: gate examples.
    """
    old, own = (predict(m, former.x).argmax(1) == former.y for m in (before, after))
    found = []
    for label in range(classes):
        of = former.y == label
        n, worse, better = (int(p.sum()) for p in (of, of & old & ~own, of & ~old & own))
        if n:
            lost = worse - better
            found.append((_least_drop(worse, better, n), lost / n, label, lost, n))
    least, _, label, lost, n = max(found)
    text = (
        f"former class {label}: {lost} of {n} gate examples fewer are right, more than of any other"
        f" class (a drop of {least:.2%} at least); {limit:.2%} is allowed"
    )
    return Check("former_class", least <= limit, least, limit, text)


def _least_drop(worse: int, better: int, n: int) -> float:
    """One-sided lower bound of a paired drop, 0 at least: see `largest_drop`, of the upper one."""
    drop = (worse - better) / n
    spread = math.sqrt((worse + better) / n - drop * drop)
    normal = drop - NormalDist().inv_cdf(CONFIDENCE) * spread / math.sqrt(n)
    exact = 1 - highest_share(n - max(0, worse - better), n, CONFIDENCE)
    return max(0.0, min(normal, exact))


def canary_check(
    before: Sequence[Logits], after: Sequence[Logits], x: Tensor, labels: Tensor
) -> Check:
    """The live generation's canaries: how often former and new networks answer as it does.

    They lie where answers change easily, so other sound networks answer many of them otherwise;
    only a fall by more than half says something.
    """
    was, now = (
        float((probabilities(models, x).argmax(1) == labels).double().mean())
        for models in (before, after)
    )
    text = (
        f"canaries answered as the live generation does: {was:.0%} by the former networks, "
        f"{now:.0%} by the new ones, of {len(x)}; a fall by at most half is allowed"
    )
    return Check("canaries", now >= was / 2, now, was / 2, text)
