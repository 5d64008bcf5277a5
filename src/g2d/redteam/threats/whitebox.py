"""White-box evasion: the attacker reads the very network that answers. Rotation cannot help here.

Each network is judged by AutoAttack standard; the budget is then swept until accuracy is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from g2d.attacks import apgd, autoattack, box
from g2d.attacks.autoattack import NO_BUDGET
from g2d.attacks.crafting import craft, label_of
from g2d.attacks.tables import is_region
from g2d.core.types import Bounds, Logits
from g2d.redteam.context import AttackContext, Case, Chain, RunSpec
from g2d.redteam.rows import Identifiers, Row, Status, not_measured
from g2d.redteam.scoring import Rate, accuracy_rate, pooled
from g2d.redteam.threat import CONTROLS, CurveStyle, Threat
from g2d.redteam.threats.stale import hows
from g2d.tasks.attack import BALL

_CONTROLS = {"frozen": 1, "retrained": 2, "soup": 1, "noise": 1, "permuted": 1}
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def plan(spec: RunSpec) -> list[Case]:
    """One case of AutoAttack for each network, and one sweep for the live and the frozen one."""
    judged = {"generated": 1, "frozen": 1} if spec.quick else {"generated": 10, **_CONTROLS}
    n, steps = (24, 20) if spec.quick else (150, 100)
    cases = []
    if spec.attack != BALL:
        return [
            Case("white-box", "task", name, (("wanted", wanted), ("n", n), ("how", hows(spec)[0])),
                 (name,), cost=10.0)
            for name, wanted in judged.items() if name in spec.chains
        ]  # fmt: skip
    for name, wanted in judged.items():
        chain = spec.chains.get(name)
        if chain is None:
            continue
        count = len(chain.networks)
        for number in range(count - min(wanted, count), count):
            options = (("number", number), ("n", n))
            cases.append(Case("white-box", "autoattack", name, options, (name,), cost=29.0))
    for name in ("generated", "frozen"):
        if name in spec.chains:
            options = (("n", n), ("steps", steps))
            cases.append(Case("white-box", "sweep", name, options, (name,), cost=16.0))
    return cases


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run AutoAttack on one network, or the sweep of budgets."""
    if case.name == "task":
        return [_as_the_task_is(case, context)]
    if case.name == "sweep":
        return [_sweep(case, context)]
    if not is_region(context.bounds):
        return [_autoattack(case, context)]
    if case.number("number") < len(context.chain(case.chain).networks) - 1:
        return []  # one row says it for the whole chain
    words = ("white-box-autoattack", "white-box", case.chain, "AutoAttack standard", NO_BUDGET)
    return [not_measured("white-box", *words, seed=context.spec.seed)]


def merge(rows: Sequence[Row]) -> list[Row]:
    """Fold the rows of single networks into one for each chain: mean and worst."""
    folded: list[Row] = []
    for row in rows:
        if "number" not in row.extra or row.status != Status.OK:
            folded.append(row)
            continue
        same = [
            r for r in rows
            if r.chain == row.chain and "number" in r.extra and r.status == Status.OK
        ]  # fmt: skip
        if same[0] is row:
            folded.append(_fold(same))
    return folded


def _fold(rows: Sequence[Row]) -> Row:
    values = [row.value for row in rows if row.value is not None]
    clean = [row.clean_accuracy for row in rows if row.clean_accuracy is not None]
    networks = [
        {"number": row.extra["number"], "label": row.extra["label"], "value": rate.value,
         "low": rate.low, "high": rate.high}
        for row, rate in zip(rows, values, strict=True)
    ]  # fmt: skip
    count = f", mean and worst over {len(rows)} networks" if len(rows) > 1 else ""
    return dataclasses.replace(
        rows[0],
        attack=f"AutoAttack standard{count}",
        value=pooled(values),
        worst=max(values, key=lambda rate: rate.value),
        clean_accuracy=pooled(clean),
        scored=len(rows),
        seconds=sum(row.seconds for row in rows),
        extra={"networks": networks},
    )


def strongest(
    model: Logits,
    x: Tensor,
    y: Tensor,
    context: AttackContext,
    *,
    eps: float,
    steps: int,
    name: object,
) -> Tensor:
    """Propose with APGD, the strongest attack by gradients alone.

    On a generated MNIST network it finds 48 % where PGD finds 40 %, whatever PGD's step size.
    """
    return apgd(
        model, x, y, eps=eps, steps=steps, seed=context.seed("apgd", name),
        bounds=box(x, eps, context.bounds), keep="flip", restarts=starts(x),
    )  # fmt: skip


def starts(x: Tensor) -> int:
    """Random starts of an attack: 64 over the number of features, at least one.

    With six features one start of APGD found two thirds of the adversarial examples that the unit
    test had planted: in few dimensions signed steps stop at the nearest corner.
    """
    return max(1, 64 // max(1, x[:1].numel()))


def budgets(site_eps: float, bounds: Bounds) -> list[float]:
    """Budgets of a sweep: multiples of the task's, then half of the data's range and all of it.

    Data without a range, or with a budget for each feature, get 4 and 16 times the task's at the
    end.
    """
    closed = isinstance(bounds, tuple)
    width = bounds[1] - bounds[0] if isinstance(bounds, tuple) else 16 * site_eps
    far = [width / 2 if closed else width / 4, width]
    return sorted({eps for eps in [*(m * site_eps for m in MULTIPLES), *far] if eps <= width})


def point(eps: float, rate: Rate) -> dict[str, float]:
    """One point of a curve over budgets."""
    return {"eps": eps, "value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}


def _label(chain: Chain, number: int) -> str:
    return chain.networks[number].label or f"{chain.name} {number + 1}"


def _autoattack(case: Case, context: AttackContext) -> Row:
    chain, number = context.chain(case.chain), case.number("number")
    split = context.examples(case.number("n"))
    model = context.model(chain.networks[number])
    proposed = autoattack(
        model, split.x, split.y, eps=context.eps, seed=context.seed("autoattack"),
        bounds=box(split.x, context.eps, context.bounds),
    )  # fmt: skip
    targets = min(9, context.task.classes - 1)
    return context.row(
        case,
        "white-box-autoattack",
        "white-box",
        "AutoAttack standard",
        context.score(model, proposed, split),
        clean_accuracy=accuracy_rate(model, split),
        gradient_steps=100 * (1 + targets * (1 if context.task.classes < 4 else 2)),
        queries=5000,
        note=f"{len(split)} images; steps and queries are upper limits, for one that never flips",
        extra={"number": number, "label": _label(chain, number)},
    )


def _as_the_task_is(case: Case, context: AttackContext) -> Row:
    """Each of a chain's last networks under the task's own attack, or substitution of tokens."""
    how, split = str(case.option("how")), context.examples(case.number("n"))
    models = context.models(context.chain(case.chain).networks[-case.number("wanted") :])
    rates = [
        context.score(
            model,
            craft(
                context.task, model, split.x, split.y, generator=context.source("white-box", i),
                how=how,
            ),
            split,
        )
        for i, model in enumerate(models)
    ]  # fmt: skip
    return context.row(
        case, "white-box-task", "white-box", label_of(context.task, 0, how), pooled(rates),
        worst=max(rates, key=lambda rate: rate.value), scored=len(rates),
        clean_accuracy=pooled([accuracy_rate(model, split) for model in models]),
        note=f"{len(split)} inputs; AutoAttack searches in the ball of eps and is not measured",
    )  # fmt: skip


def _sweep(case: Case, context: AttackContext) -> Row:
    """ASR against the budget on the newest network, until nothing is classified any more."""
    split, steps = context.examples(case.number("n")), case.number("steps")
    model = context.model(context.chain(case.chain).networks[-1])
    curve, value = [], None
    for eps in budgets(context.eps, context.bounds):
        proposed = strongest(model, split.x, split.y, context, eps=eps, steps=steps, name=eps)
        rate = context.score(model, proposed, split, eps)
        curve.append(point(eps, rate))
        value = rate if eps == context.eps else value
    zero = next((p["eps"] for p in curve if p["value"] == 1), None)
    return context.row(
        case,
        "white-box-sweep",
        "white-box, budget swept",
        f"APGD-CE {steps} steps",
        value,
        clean_accuracy=accuracy_rate(model, split),
        gradient_steps=steps,
        note="accuracy is never 0" if zero is None else f"accuracy is 0 from eps {zero:g} on",
        extra={"curve": curve},
    )


THREAT = Threat(
    name="white-box",
    title="White-box, this generation",
    question="How often does an attacker win who holds the weights that are live right now?",
    ids=Identifiers(
        atlas="AML.T0043.000 Craft Adversarial Data: White-Box Optimization",
        nist="NISTAML.022 Evasion",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    fits=frozenset({"tokens", "own"}),
    merge=merge,
    chains=CONTROLS,
    curve=CurveStyle(
        x="eps",
        by=("threat", "attack"),
        across="attack budget ε",
        title="Larger and larger budgets",
        reads=(
            "An attack worth its name reaches every example once ε is large enough. A curve that "
            "stays flat would mean that the attack is broken, not that the model is strong."
        ),
        hides=(
            "Rotation: here the attacker reads the very parameters that are attacked, and "
            "rotating them changes nothing."
        ),
    ),
)
