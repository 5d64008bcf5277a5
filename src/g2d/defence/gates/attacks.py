"""Gates on what a candidate answers to attacks: stale ones, and cheap ones on itself."""

from __future__ import annotations

from g2d.core.types import Logits
from g2d.defence.gates.view import CandidateView, GateResult
from g2d.generator import Exposure
from g2d.tasks.inference import predict


def stale_gate(view: CandidateView) -> GateResult | None:
    """Stale ASR of every remembered exposure's gate-split attacks; nothing where there is none."""
    limit, exposures = view.settings.stale_asr, attacked(view)
    if not exposures:
        return None
    rates = [stale_asr(view.model, exposure) for exposure in exposures]
    worst = max(rates, default=0.0)
    passed = worst <= limit
    over = [
        f"{rate:.1%} (generation {exposure.number})"
        for rate, exposure in zip(rates, exposures, strict=True)
        if rate > limit
    ]
    reason = "" if passed else f"stale ASR over {limit:.0%}: " + ", ".join(over)
    n = attackable(view.model, view.exposures[rates.index(worst)]) if rates else 0
    return GateResult("stale_asr", passed, worst, limit, reason, n=n)


def stale_share_gate(view: CandidateView) -> GateResult | None:
    """Worst stale ASR of a remembered exposure, as a share of the ASR of PGD on the candidate.

    An absolute limit says nothing where the candidate falls to few attacks of any kind: at a share
    of one, a stored attack works as well as one made for it, and rotating has bought nothing.
    """
    limit = view.settings.stale_share
    if limit == 0 or not (exposures := attacked(view)):
        return None
    clean, right = view.under_pgd
    own = 1 - float(right.sum()) / max(1, int(clean.sum()))
    worst = max(stale_asr(view.model, exposure) for exposure in exposures)
    share = worst / own if own > 0 else float(worst > 0)
    passed = share <= limit
    reason = (
        ""
        if passed
        else f"the worst stored attack flips {worst:.1%}, which is {share:.0%} of what PGD on the "
        f"candidate itself flips ({own:.1%}); {limit:.0%} is allowed"
    )
    title = "stale ASR, as a share of its own"
    return GateResult("stale_share", passed, share, limit, reason, title=title, share=True)


def robust_gate(view: CandidateView) -> GateResult | None:
    """Accuracy under PGD on the candidate itself: cheap, so no more than an upper bound."""
    reference, settings = view.reference, view.settings
    if settings.robust == 0:
        return None
    _, right = view.under_pgd
    value = float(right.double().mean())
    passed = value >= settings.robust
    reason = (
        ""
        if passed
        else f"accuracy under PGD-{settings.pool_steps} at eps {reference.eps:g} is {value:.1%} on "
        f"{len(right)} gate examples; at least {settings.robust:.1%} is required"
    )
    return GateResult("robust", passed, value, settings.robust, reason, n=len(right))


def attackable(model: Logits, exposure: Exposure) -> int:
    """How many gate inputs of an exposure are classified correctly; `stale_asr` is a share."""
    clean = exposure.gate_clean
    return int((predict(model, clean.x).argmax(1) == clean.y).sum())


def attacked(view: CandidateView) -> list[Exposure]:
    """The remembered exposures that attacks were crafted on."""
    return [exposure for exposure in view.exposures if len(exposure.gate)]


def stale_asr(model: Logits, exposure: Exposure) -> float:
    """Share of correctly classified gate inputs that the exposure's attacks flip."""
    clean = predict(model, exposure.gate_clean.x).argmax(1) == exposure.gate_clean.y
    attacked = predict(model, exposure.gate.x).argmax(1) == exposure.gate.y
    return float((clean & ~attacked).sum()) / max(1, int(clean.sum()))
