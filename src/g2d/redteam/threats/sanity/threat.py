"""Sanity: is the attack suite itself to be trusted? Checks that are printed with every evaluation.

Checks of Athalye et al. 2018 (arXiv 1802.00420) and Carlini et al. 2019 (arXiv 1902.06705), planted
masking that must be found, and the unit test of attacks of Zimmermann et al. 2022 (2206.13991).
"""

from __future__ import annotations

from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Identifiers, Row
from g2d.redteam.threat import Threat
from g2d.redteam.threats.sanity.masking import boxes, masking
from g2d.redteam.threats.sanity.strength import grows, more_steps
from g2d.redteam.threats.sanity.unit import unit_test

TARGETS = ("generated", "frozen")


def plan(spec: RunSpec) -> list[Case]:
    """Every check on the live network, and all but the planted masking on the frozen one."""
    n, steps, queries = (40, 20, 200) if spec.quick else (200, 100, 1000)
    options = (("n", n), ("steps", steps), ("queries", queries))
    costs = {"grows": 8.0, "boxes": 8.0, "steps": 4.0, "unit": 3.0}
    cases = [
        Case("sanity", name, chain, options, tuple({chain, "generated"} & set(spec.chains)),
             cost=cost)
        for chain in TARGETS
        if chain in spec.chains
        for name, cost in costs.items()
    ]  # fmt: skip
    if "generated" in spec.chains:
        cases.append(Case("sanity", "masking", "generated", options, ("generated",), cost=14.0))
    return cases


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run one check."""
    checks = {
        "grows": grows,
        "boxes": boxes,
        "steps": more_steps,
        "masking": masking,
        "unit": unit_test,
    }
    return checks[case.name](case, context)


THREAT = Threat(
    name="sanity",
    title="Sanity of the attacks",
    question=(
        "Would this suite notice if a defence only hid its gradients, or if an attack were weak?"
    ),
    ids=Identifiers(
        atlas="nearest: AML.T0042 Verify Attack",
        nist="nearest: NISTAML.022 Evasion",
        owasp="nearest: ML01:2023 Input Manipulation Attack",
    ),
    plan=plan,
    run=run,
)
