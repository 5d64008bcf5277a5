"""Removing the watermark: attacks on the mark, with an owner's and a thief's view of each.

"Triggers hit" is the owner's: of the triggers of one set, those that the network answers as the key
says. "Accuracy lost" is the thief's: test examples that the stolen network got right and his copy
does not. Networks from fresh seeds, which nobody marked, stand beside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from g2d.core.files import read_text
from g2d.errors import ClaimError, KeyFileError, SettingsError, TaskError, VaultError
from g2d.protect.watermark import WatermarkKey
from g2d.redteam.context import AttackContext, Case, RunSpec
from g2d.redteam.rows import Identifiers, Row, not_measured
from g2d.redteam.threat import Threat
from g2d.redteam.threats.ownership.filtering import FILTERS, filtered
from g2d.redteam.threats.ownership.forging import chosen, forged
from g2d.redteam.threats.ownership.removing import COPIED, REMOVALS, removed
from g2d.redteam.threats.ownership.stolen import MARKED, UNMARKED, Stolen
from g2d.vault.ledger import COMMITMENT

_TITLE = "Removing the watermark"
_ABSENT = "absent"  # name of the case of a vault without a mark
_NOTHING = "not-measured"  # kind of the row that says why
_FULL = {"networks": 10, "trained": 3, "control": 2, "tune": 500, "known": 2000,
         "keys": 10_000, "own": 200, "search": 200}  # fmt: skip
_QUICK = {"networks": 2, "trained": 1, "control": 1, "tune": 20, "known": 300,
          "keys": 200, "own": 5, "search": 20}  # fmt: skip
_STEP = 0.01  # CPU seconds of a gradient step, roughly

Options = tuple[tuple[str, int | float | str], ...]


def plan(spec: RunSpec) -> list[Case]:
    """Every removal on stolen generations and on unmarked networks; filters; forged claims."""
    if MARKED not in spec.chains:
        return []
    why, mark = _mark(spec)
    if why:
        return [Case("ownership", _ABSENT, MARKED, (("why", why), *mark), cost=0.0)]
    size, cases = _QUICK if spec.quick else _FULL, []
    copy = size["tune"] if spec.quick else spec.settings.population.base_steps

    def add(name: str, chain: str, cost: float, **options: int) -> None:
        reads = (MARKED, UNMARKED) if name == "chosen" else (chain,)
        cases.append(Case("ownership", name, chain, (*options.items(), *mark), reads, False, cost))

    for chain in (name for name in (MARKED, UNMARKED) if name in spec.chains):
        few = size["networks"] if chain == MARKED else size["control"]
        for name, way in REMOVALS.items():
            if name == "soup" and chain == UNMARKED:
                continue  # the mean of networks of different basins is no network
            trained = size["trained"] if chain == MARKED else 1
            count = trained if way.takes else few
            steps = (copy if way.takes == COPIED else size["tune"]) if way.takes else 0
            add(name, chain, 1 + count * steps * _STEP, networks=count, steps=steps)
        for name in FILTERS:
            add(name, chain, 5.0, networks=few, known=size["known"])
        add("chosen", chain, size["search"] * _STEP, networks=few, steps=size["search"])
    add("forged", MARKED, 5.0, networks=1, keys=size["keys"], own=size["own"])
    return cases


def _mark(spec: RunSpec) -> tuple[str, Options]:
    """Why nothing can be proven of a vault ("": it can), and what tells its mark from others.

    The digest tells nothing of the key. Without it rows of another mark would be taken for its own.
    """
    settings = spec.settings.watermark
    try:
        committed = read_text(Path(spec.vault) / COMMITMENT)
    except (OSError, UnicodeDecodeError):
        committed = ""
    told: dict[str, int | float | str] = {
        "commitment": hashlib.sha256(committed.encode()).hexdigest(),
        "sets": settings.sets, "triggers": settings.triggers, "least": settings.hits,
    }  # fmt: skip
    if not settings.key:
        why = (
            "the vault has no watermark, so nothing can be removed: `g2d watermark new` makes its"
            " key, before the population is trained"
        )
        return why, tuple(told.items())
    try:
        key = WatermarkKey.read(settings.key)
    except KeyFileError as error:
        return str(error), tuple(told.items())
    told["mark"] = hashlib.sha256(b"g2d red team" + key.of_set(settings.sets)).hexdigest()
    return "", tuple(told.items())


def run(case: Case, context: AttackContext) -> list[Row]:
    """Run one case."""
    if case.name == _ABSENT:
        return [_nothing(case, context, str(case.option("why")))]
    try:
        stolen = Stolen(case, context)
    except (ClaimError, KeyFileError, SettingsError, TaskError, VaultError) as error:
        return [_nothing(case, context, str(error))]
    if case.name in FILTERS:
        return filtered(stolen)
    if case.name in ("forged", "chosen"):
        return forged(stolen) if case.name == "forged" else chosen(stolen)
    return removed(stolen)


def _nothing(case: Case, context: AttackContext, why: str) -> Row:
    seed = context.spec.seed
    return not_measured(case.family, _NOTHING, _TITLE, case.chain, "", why, seed=seed)


def merge(rows: Sequence[Row]) -> list[Row]:
    """One row where there is no mark to remove: every case found that."""
    return [row for row in rows if row.kind == _NOTHING][:1] or list(rows)


THREAT = Threat(
    name="ownership",
    title=_TITLE,
    question="What is left of the owner's proof, and what does the thief pay for it?",
    ids=Identifiers(
        atlas="nearest: AML.T0018 Manipulate AI Model",
        nist="nearest: NISTAML.031 Model Extraction",
        owasp="nearest: ML05:2023 Model Theft",
    ),
    plan=plan,
    run=run,
    merge=merge,
    fits=frozenset({"tokens", "own", "none"}),
    chains=frozenset({UNMARKED}),
)
