"""Query attacks on the API: how far an attacker comes who sees nothing but answers.

Every image is an attacker of its own: budget and clock count the queries of one image. `QueryLog`
logs them, so that one run gives the ASR at every smaller budget and no attack grades itself.
"""

from __future__ import annotations

from g2d.attacks.tables import is_region
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Identifiers, Row, not_measured
from g2d.redteam.threat import CONTROLS, CurveStyle, Threat
from g2d.redteam.threats.query.rotating import Attackers
from g2d.redteam.threats.query.search import ATTACKS, kind_of, label_of
from g2d.redteam.threats.query.service import service_row

_SQUARES = ("square", "square-clock")


def plan(spec: RunSpec) -> list[Case]:
    """Every attack on the vault's generations, the two Squares on every control.

    Searches are equally long: one planned for more shrinks its squares later, so wins later.
    """
    cases = []
    for chain, periods, names in (
        ("generated", "0 1000 100", (*_SQUARES, "hop-skip-jump")),
        ("generated", "0 1000", ("square-stale", "square-margin")),
        ("generated", "0", ("square-long",)),
        ("frozen", "0", (*_SQUARES, "square-margin", "hop-skip-jump")),
        ("permuted", "1000", _SQUARES),
        ("retrained", "0 1000", _SQUARES),
        ("soup", "0 1000", (*_SQUARES, "square-margin")),
        ("noise", "0 1000", (*_SQUARES, "square-margin")),
    ):
        if chain in spec.chains and spec.chains[chain].networks:
            cases += [_case(spec, chain, name, periods) for name in names]
    return [case for case in cases if not spec.quick or _is_quick(case)]


def _is_quick(case: Case) -> bool:
    if case.chain == "generated":
        return case.name != "square-long"
    return case.chain == "frozen" and case.name != "hop-skip-jump"


def _case(spec: RunSpec, chain: str, name: str, periods: str) -> Case:
    generated, labels = chain == "generated", name == "hop-skip-jump"
    reads = (chain, "draws") if generated and "draws" in spec.chains else (chain,)
    images, budget = (60, 10_000) if name == "square-long" else (30 if labels else 80, 5_000)
    if spec.quick:
        images, budget = (8, 200) if labels else (24, 300)
        periods = "0 100" if generated else "0"
    options = (
        ("images", images), ("budget", budget), ("at", budget), ("periods", periods),
    )  # fmt: skip
    cost = images * budget / (16_000 if labels else 40_000) * len(periods.split())
    return Case("query", name, chain, options, reads, cost=1.0 if chain == "frozen" else cost)


def plan_service(spec: RunSpec, url: str, model: str) -> list[Case]:
    """The two Squares on a live service; it has its own clock, which the attacker does not know."""
    images, budget = (16, 200) if spec.quick else (50, 2_000)
    options = (
        ("url", url), ("model", model), ("images", images), ("budget", budget), ("at", budget),
    )  # fmt: skip
    cost = images * budget / 2_000
    return [Case("query", name, "service", options, cost=cost) for name in _SQUARES]


def run(case: Case, context: AttackContext) -> list[Row]:
    """Attack a chain once for every period of its clock, or a live service."""
    label, threat = label_of(case), ATTACKS[case.name][1]
    why = _unfit(case, context)
    if why:
        seed = context.spec.seed
        return [not_measured("query", kind_of(case), threat, case.chain, label, why, seed=seed)]
    if case.option("url"):
        return [service_row(case, context)]
    return Attackers(case, context).rows()


def _unfit(case: Case, context: AttackContext) -> str:
    """Why ART's attacks do not apply; ours asks for neither images nor a range."""
    if case.name not in ("square", "hop-skip-jump"):
        return ""
    if is_region(context.bounds):
        return (
            "ART's attacks know one eps for all features and go on from points that a table's "
            "budget forbids; our own Square is run inside the budget"
        )
    shape = tuple(context.examples(1).x.shape[1:])
    if len(shape) != 3 or min(shape[1:]) < 3:
        return f"ART's attacks are set up for images (channels, H, W), not for {shape}"
    return "" if context.bounds else "these attacks need the range of the data, and it has none"


THREAT = Threat(
    name="query",
    title="Query attacks on the API",
    question="How often does who only sees answers win, and do the finds outlive a rotation?",
    ids=Identifiers(
        atlas="AML.T0043.001 Craft Adversarial Data: Black-Box Optimization",
        nist="NISTAML.025 Black-box Evasion",
        owasp="ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
    on_service=plan_service,
    chains=CONTROLS | {"draws"},
    curve=CurveStyle(
        x="queries",
        by=("attack", "control"),
        across="queries spent on one example",
        title="Attacks that only ask questions",
        reads=(
            "One panel for each attack, one line for each clock. The attacker sees answers and "
            "never parameters, and adapts as they come. Rotation helps where a line lies under "
            "the one without rotation; where it lies above, every rotation gave the attacker one "
            "more network to try."
        ),
        hides=(
            "What a win is worth: it counts once any network that answered was fooled, even if "
            "the next one reads the example right again (“durable” in the rows counts finds that "
            "also fool the next, “after five rotations” those that still fool the fifth). More "
            "queries can only help the attacker."
        ),
    ),
)
