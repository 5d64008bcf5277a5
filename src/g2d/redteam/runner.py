"""Runs the red team: plan, worker processes, rows that are kept as they come, one results file.

Interrupted, it goes on where it stopped; run again, it reuses every case whose inputs are the same.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from g2d.attacks.art import require
from g2d.core.engine import Engine, LocalEngine
from g2d.core.files import write_bytes
from g2d.core.platforms import cores
from g2d.core.sources import Digests
from g2d.core.types import Progress, silent
from g2d.defence.defence import Defence
from g2d.errors import SettingsError
from g2d.redteam.cache import RowCache, code_version, key_of, own_code
from g2d.redteam.chains import build_chains, task_identity
from g2d.redteam.context import Case, RunSpec, enter
from g2d.redteam.overview_json import glance, hardware, versions
from g2d.redteam.rows import VERSIONS, Row, Status, not_measured
from g2d.redteam.scoring import Rate
from g2d.redteam.threat import Threat
from g2d.redteam.threats import threat
from g2d.redteam.threats import threats as every_threat
from g2d.report.results import FORMAT, results_path
from g2d.tasks.attack import BALL, NONE

UNFIT = "unfit"  # name of the case of a threat that cannot be tried on the task
FAILED = "failed"  # kind of the row of a case that broke: it would have had several
OVERVIEW = "overview"  # the vault at a glance, for the page's pictures of rotations


@dataclass(frozen=True)
class ServiceAddress:
    """A live HTTP service to attack (Open Inference Protocol v2): its address and model name."""

    url: str
    model: str


def attack(
    vault: Path | str,
    *,
    threats: Sequence[str | Threat] = (),
    quick: bool = False,
    eps: float | None = None,
    n: int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    data: str = "",
    service: ServiceAddress | None = None,
    engine: Engine | None = None,
    workers: int = 0,
    progress: Progress = silent,
    code: Digests | None = None,
) -> dict[str, Any]:
    """Run the red team against a vault, or against a service that serves its task.

    Args:
        threats: what to run, by name or as objects of your own; by default all of ours that fit
            the target. quick: a smoke test of two minutes.
        eps: L-infinity budget in units of the data; the task's own by default.
        n: test examples; 1,000, or 200 if quick. out: folder for rows, networks and results.
        data: where the task's data lies now. service: attack this instead of the vault's chains.
        code: see `Defence.open`; what is loaded here is then all that worker processes load.

    Returns:
        what was written to `results.json` (schema: docs/results.md).

    Raises:
        G2DError: attack libraries are missing, or the folder cannot be written.
        SettingsError: no generation yet, an unknown threat, or eps or n out of range.
    """
    require()
    chosen = _chosen(threats, service)
    with Defence.open(vault, write=False, data=data, code=code) as defence:
        spec = _spec_of(defence, eps, n, seed, quick)
        spec = replace(spec, code=None if code is None else defence.code)
        folder = results_path(vault, out).parent
        own = engine is None
        engine = engine or LocalEngine(workers)
        try:
            run = _Run(defence, spec, folder, engine, progress, chosen, service)
            return run.finish()
        finally:
            if own:
                engine.close()


def _chosen(threats: Sequence[str | Threat], service: ServiceAddress | None) -> list[Threat]:
    """The threats asked for, each once; by default all that fit the target."""
    if not threats:
        return [t for t in every_threat().values() if service is None or t.on_service is not None]
    found = [threat(one) if isinstance(one, str) else one for one in threats]
    names = {one.name: one for one in reversed(found)}
    if twice := [one.name for one in found if names[one.name] != one]:
        raise SettingsError(f"two threats are called {twice[0]!r}; give one another name")
    return list(dict.fromkeys(found))


def _spec_of(defence: Defence, eps: float | None, n: int | None, seed: int, quick: bool) -> RunSpec:
    if not defence.vault.exposures():
        raise SettingsError(
            f"{defence.vault.path} has no generation to attack yet; run `g2d fit`, then "
            "`g2d generate`"
        )
    task = defence.task
    if eps is not None and task.attack_kind != BALL:
        raise SettingsError(
            f"eps {eps:g} is of a ball, and task {task.name!r} has none: {task.attack_words}; "
            "leave it out"
        )
    eps = task.eps if eps is None else eps
    widest = task.bounds[1] - task.bounds[0] if task.bounds else float("inf")
    if not 0 < eps <= widest or eps == float("inf"):
        span = "any positive number" if task.bounds is None else f"above 0, at most {widest:g}"
        raise SettingsError(f"eps is {eps:g}; expected {span}, in the units of the data")
    if n is not None and n < 10:
        raise SettingsError(f"{n} test examples say nothing; give at least 10")
    return RunSpec(
        source=defence.source,
        vault=str(Path(defence.vault.path).absolute()),
        settings=defence.settings,
        n=n or (200 if quick else 1000),
        eps=float(eps),
        seed=seed,
        quick=quick,
        attack=task.attack_kind,
    )


class _Run:
    """One run of the red team."""

    def __init__(
        self, defence: Defence, spec: RunSpec, folder: Path, engine: Engine, progress: Progress,
        chosen: Sequence[Threat], service: ServiceAddress | None,
    ) -> None:  # fmt: skip
        self.defence, self.folder, self.engine = defence, folder, engine
        self.progress, self.chosen, self.service = progress, chosen, service
        self._threats = {one.name: one for one in chosen}
        self.began, self.reused, self.failed = time.perf_counter(), 0, False
        self.cache = RowCache(folder / "rows")
        self.identity = task_identity(defence)
        if service is None:
            fitting = [one for one in chosen if not one.unfit(defence.task)]
            names = set[str]().union(*(one.chains for one in fitting))
            chains = build_chains(defence, spec, folder / "networks", engine, names, progress)
            spec = replace(spec, chains=chains)
        self.spec = spec

    def finish(self) -> dict[str, Any]:
        """Run every case that is not known yet, and write the results."""
        cases = self._plan()
        found = self._run(cases)
        results = self._gather(cases, found)
        text = json.dumps(results, indent=1, allow_nan=False)
        write_bytes(self.folder / "results.json", (text + "\n").encode(), 0o600)
        kept: dict[str, Any] = json.loads(text)
        return kept

    @property
    def whole(self) -> bool:
        """Whether every threat of the list is run."""
        return self.service is None and set(self.chosen) >= set(every_threat().values())

    def _plan(self) -> list[Case]:
        cases: list[Case] = []
        for one in self.chosen:
            if why := one.unfit(self.defence.task):
                chain = "generated" if self.service is None else "service"
                planned = [Case(one.name, UNFIT, chain, (("why", why),), cost=0.0)]
            elif self.service is None:
                planned = one.plan(self.spec)
            else:
                planned = one.plan_service(self.spec, self.service.url, self.service.model)
            if other := {case.family for case in planned} - {one.name}:
                raise SettingsError(f"threat {one.name!r} plans cases of {', '.join(other)}")
            cases += planned
        attacked = self.spec.attack != NONE
        if self.whole and attacked and len(self.defence.vault.exposures()) > 1:
            reads = ("generated", "retrained")
            cases.append(Case(OVERVIEW, OVERVIEW, "generated", (), reads, True, 60.0))
        # Long work first: what is left at the end is short, and both workers stay busy.
        return sorted(cases, key=lambda case: -case.cost)

    def _run(self, cases: Sequence[Case]) -> dict[Case, dict[str, Any]]:
        keys = {case: self._key(case) for case in cases}
        found: dict[Case, dict[str, Any]] = {}
        for case in cases:
            kept = None if self.service else self.cache.get(keys[case])
            if kept is not None:
                found[case] = kept
        self.reused = len(found)
        self.progress("attacks", len(found), len(cases))
        waiting = [case for case in cases if case not in found]
        for position, piece in self.engine.run(work, self._payloads(waiting)):
            case = waiting[position]
            found[case] = piece
            if not any(row["status"] in ("failed", "died") for row in piece["rows"]):
                self.cache.put(keys[case], piece)
            self.progress("attacks", len(found), len(cases))
        return found

    def _payloads(self, cases: Iterable[Case]) -> Iterable[Payload]:
        networks = {name: [n.digest for n in c.networks] for name, c in self.spec.chains.items()}
        everything = key_of(
            spec=self._outline(), chains=networks, vault=self._vault(),
            settings=asdict(self.defence.settings),
        )  # fmt: skip
        return [(self.spec, everything, case, self._threats.get(case.family)) for case in cases]

    def _outline(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "task": self.defence.task.name, "identity": self.identity, "n": spec.n,
            "eps": spec.eps, "seed": spec.seed, "quick": spec.quick, "vault": spec.vault,
        } | self._attack()  # fmt: skip

    def _attack(self) -> dict[str, str]:
        """How the task is attacked, where that is not the ball that results speak of."""
        words = self.defence.task.attack_words
        return {"attack": words} if words else {}

    def _key(self, case: Case) -> str:
        chains = self.spec.chains
        reads = sorted({case.chain, *case.reads} & set(chains))
        settings = asdict(self.defence.settings) | {"task": ""}
        outline = {k: v for k, v in self._outline().items() if k != "vault"}
        own = self._threats.get(case.family)
        return key_of(
            case=asdict(case) | {"cost": 0},
            spec=outline,
            networks={name: [n.digest for n in chains[name].networks] for name in reads},
            vault=self._vault() if case.generator else "",
            settings=settings if case.generator else settings["population"],
            own=own_code(self.defence.settings) if case.generator else {},
            code=code_version(own.module if own else "g2d.redteam.overview_json"),
        )

    def _vault(self) -> dict[str, Any]:
        vault = self.defence.vault
        entry = vault.entry("generator")
        members = [e.files["weights"] for e in vault.entries("member")]
        return {
            "path": str(vault.path),
            "live": vault.live(),
            "generations": {
                str(k): vault.generation(k).files["weights"] for k in vault.exposures()
            },
            "generator": entry.files["weights"] if entry else "",
            "population": key_of(members=members),
        }

    def _gather(self, cases: Sequence[Case], found: Mapping[Case, Any]) -> dict[str, Any]:
        families, rows, summary = [], [], None
        for one in self.chosen:
            own = [case for case in cases if case.family == one.name]
            made = one.merge([_row(row) for case in own for row in found[case]["rows"]])
            rows += [row.as_json(one.ids) for row in made]
            seconds = round(sum(found[case]["seconds"] for case in own), 2)
            families.append(one.as_json() | {"seconds": seconds})
        for case in cases:
            if case.family == OVERVIEW:
                summary = found[case].get("summary")
                broken = [_row(row) for row in found[case]["rows"]]
                rows += [row.as_json(threat("stale").ids) for row in broken]
        return self._head() | {
            "families": families,
            "whole": self.whole,
            "rows": rows,
            "summary": summary,
            "seconds": {
                "wall": round(time.perf_counter() - self.began, 1),
                "cpu": round(sum(piece["seconds"] for piece in found.values()), 1),
            },
            "cases": len(cases),
            "reused": self.reused,
        }

    def _head(self) -> dict[str, Any]:
        spec, task = self.spec, self.defence.task
        return {
            "format": FORMAT,
            "task": task.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": spec.quick,
            "eps": spec.eps,
            "norm": "Linf",
            "bounds": list(task.bounds) if task.bounds else None,
            "n": min(spec.n, len(task.splits.test)),
            "seed": spec.seed,
            "service": asdict(self.service) if self.service else None,
            "code": code_version("g2d.redteam"),
            "catalogues": VERSIONS,
            "vault": self._vault(),
            "chains": {
                name: {"networks": len(c.networks), "cost": c.cost, "note": c.note}
                for name, c in spec.chains.items()
            },
            "settings_toml": self.defence.settings.to_toml(),
            "versions": versions(),
            "hardware": hardware() | {"cpu_affinity": cores()},
        } | self._attack()


def _row(values: Mapping[str, Any]) -> Row:
    """Rebuild a row from plain values."""
    rates = {
        name: Rate(**values[name]) if values[name] else None
        for name in ("value", "worst", "clean_accuracy")
    }
    return Row(**dict(values) | rates | {"status": Status(values["status"])})


Payload = tuple[RunSpec, str, Case, Threat | None]  # no threat: the overview


def work(payload: Payload) -> dict[str, Any]:
    """Run one case in a worker: its rows as plain values, and CPU seconds. Never raises.

    What breaks becomes a row that says so, and the other cases go on.
    """
    spec, key, case, one = payload
    began = time.process_time()
    summary = None
    try:
        context = enter(spec, key)
        if one is not None and case.name == UNFIT:
            why, seed = str(case.option("why")), spec.seed
            rows = [
                not_measured(one.name, "not-measured", one.title, case.chain, "", why, seed=seed)
            ]
        elif one is None:
            summary, rows = glance(context), []
        else:
            rows = one.run(case, context)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        rows = [
            Row(
                case.family,
                FAILED,
                case.name,
                case.chain,
                "",
                None,
                chain=case.chain,
                note=reason,
                status=Status.FAILED,
            )
        ]
    seconds = round(time.process_time() - began, 3)
    each = round(seconds / max(1, len(rows)), 3)
    plain = [asdict(replace(row, seconds=each)) for row in rows]
    for row in plain:
        row["status"] = str(row["status"])
    return {"rows": plain, "seconds": seconds, "summary": summary}
