"""Whoever claims a network that is not theirs: keys drawn at random, and triggers that are chosen.

The first is the control of the proof: none may be accepted. The second is why triggers follow from
a key that was committed to: chosen ones are hit by networks that nobody marked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g2d.core.adam import Adam
from g2d.protect.watermark import InputForm, make_labels, make_triggers, p_value
from g2d.protect.watermark.chance import LIKELY
from g2d.redteam.rows import Row, not_measured
from g2d.redteam.scoring import pooled, share
from g2d.redteam.threats.ownership.stolen import UNMARKED, Stolen
from g2d.tasks.inference import predict

_RATE = 0.05  # of the search for triggers, of the range of the data


def forged(stolen: Stolen) -> list[Row]:
    """Random keys against a network: of most the labels alone, of some their own triggers."""
    case, form, n = stolen.case, InputForm.of(stolen.task), stolen.mark.each
    model, draws = stolen.model(0), stolen.context.source("forged keys")
    fixed = predict(model, stolen.asked[0]).argmax(1)

    def key() -> bytes:
        return bytes(torch.randint(256, (32,), generator=draws, dtype=torch.uint8).tolist())

    hits = [int((make_labels(key(), form, n) == fixed).sum()) for _ in range(case.number("keys"))]
    for _ in range(case.number("own")):
        x, y = make_triggers(key(), form, n)
        hits.append(int((predict(model, x.to(stolen.mark.x.dtype)).argmax(1) == y).sum()))
    accepted = share(sum(stolen.p(count) < LIKELY for count in hits), len(hits))
    note = (
        f"control: the most hits of any is {max(hits)} of {n}; labels of {case.number('keys'):,}"
        f" keys beside fixed answers, and {case.number('own'):,} asked about their own triggers"
    )
    extra = {"algorithm": case.name, "most_hits": max(hits)}
    row = stolen.context.row(
        case, "ownership-forged", "forged keys", f"{len(hits):,} random keys", accepted,
        eps=None, metric="keys accepted", harm=accepted.value, note=note, extra=extra,
    )  # fmt: skip
    return [row]


def chosen(stolen: Stolen) -> list[Row]:
    """Triggers and labels that a claimant chose: optimised on a network of his own, then asked."""
    case, context, steps = stolen.case, stolen.context, stolen.case.number("steps")
    kind, threat = "ownership-chosen", "a claim with chosen triggers (rejected)"
    attack = f"inputs optimised on an independent network, Adam, {steps} steps"
    others, why = context.spec.chains.get(UNMARKED), ""
    if stolen.task.bounds is None or not stolen.mark.x.is_floating_point():
        why = "it searches inputs in a known range: this task has none, or token ids"
    elif others is None or (case.chain == UNMARKED and len(others.networks) < 2):
        why = "it needs an independent network, and one more to ask: there is no retraining"
    if why or others is None:
        return [
            not_measured(case.family, kind, threat, case.chain, attack, why,
                         seed=context.spec.seed, extra={"algorithm": case.name})
        ]  # fmt: skip
    # The oldest retraining is the claimant's; the newest ones are those that are asked.
    x, y = _searched(stolen, context.model(others.networks[0]), steps)
    asked = [context.model(network) for network in stolen.networks if network != others.networks[0]]
    hits = [int((predict(model, x).argmax(1) == y).sum()) for model in asked]
    worth = max(p_value(count, len(y), stolen.task.classes) for count in hits)
    extra = {"algorithm": case.name, "binomial_p": worth, "accepted": False, "hits": hits}
    rates = [share(count, len(y)) for count in hits]
    note = (
        f"a binomial p of chosen triggers means nothing, though it would read {worth:.1e};"
        " no claim may bring triggers: they follow from a key that was committed to"
    )
    row = context.row(
        case, kind, threat, attack, pooled(rates), eps=None, metric="chosen triggers hit",
        scored=len(asked), worst=max(rates, key=lambda rate: rate.value), note=note, extra=extra,
        gradient_steps=steps,
    )  # fmt: skip
    return [row]


def _searched(stolen: Stolen, model: nn.Module, steps: int) -> tuple[Tensor, Tensor]:
    """Inputs (n, ...) from noise that a network answers by labels (n,) drawn for them."""
    task, n, draws = stolen.task, stolen.mark.each, stolen.context.source("chosen triggers")
    assert task.bounds is not None  # said before
    low, high = task.bounds
    unit = torch.rand((n, *stolen.mark.x.shape[1:]), generator=draws, dtype=stolen.mark.x.dtype)
    x = (low + unit * (high - low)).requires_grad_(True)
    y = torch.randint(task.classes, (n,), generator=draws).to(stolen.mark.y.dtype)
    optimizer = Adam([x], _RATE * (high - low))
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss_of(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach(), y
