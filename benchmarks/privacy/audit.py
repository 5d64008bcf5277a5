"""An audit of private vaults, sound and with planted faults: which claims does it refute?

    python -m benchmarks.privacy.audit --data FOLDER --seeds 0 1 2 3 4        # MNIST, hours
    python -m benchmarks.privacy.audit --data FOLDER --seeds 0 --cases sound "no clipping"

For each seed and each case (`faults`) canaries are planted in a vault of its own
(runs/privacy-audit-TASK-SEED-CASE), the population is trained under the fault, and the sound vault
makes --generations generations; then `redteam.privacy_audit` guesses from everything that was
released. Cases are kept one by one in benchmarks/results/privacy-audit-TASK-seedN.json: an
interrupted run goes on where it stopped. Two cases are made otherwise: where members are claimed as
one, each is a whole training of --member-steps, for short forks of one base cost little beside it;
and where the seed is known, the auditor makes the base again without any canary, for he knows all
its noise, and compares weights.
The non-private population is the control: it claims nothing, and its lower bound stands beside.
"""

from __future__ import annotations

import json
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.common.command import Result
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import NOTHING, TARGETS, markdown, ranged
from benchmarks.privacy.faults import FAULTS
from benchmarks.privacy.vaults import SIZES, People, calibrated, flags, made, settings_of
from g2d import Defence, Settings
from g2d.core.seeds import seed_of
from g2d.core.types import Array, State
from g2d.defence.planting import plant_canaries
from g2d.protect.privacy.canary_key import CanaryKey
from g2d.redteam.privacy_audit import Audit, audit, claim_of_vault, judged
from g2d.tasks.inference import load_model
from g2d.tasks.planted import KINDS, MISLABELLED, Planting, draw
from g2d.tasks.source import data_digest
from g2d.tasks.task import Task
from g2d.training.recipes.private_gradients import by_vmap
from g2d.vault.ledger import LEDGER
from g2d.vault.records import PLANTED
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack

SOUND, SEED, MEMBERS, CONTROL = "sound", "a seed that is known", "members claimed as one", "plain"
CASES = (*FAULTS, CONTROL)
RIDGE = 0.03
OWN = (
    "epsilon",
    "canaries",
    "guesses",
    "kind",
    "generations",
    "member_steps",
    "references",
    "alpha",
    "stale_asr",
)
NEEDED = 4  # of 5 seeds: planted faults that are to be refuted


class Audits:
    """The cases of one seed."""

    name, own = "privacy-audit", OWN

    def __init__(self, given: Namespace, seed: int) -> None:
        self.given, self.seed = given, seed
        self.path = given.out / f"{self.name}-{given.task}-seed{seed}.json"
        self.record: Result = {"seed": seed, "cases": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text("utf-8"))
        sizes = {name: getattr(given, name) for name in (*SIZES, *self.own)}
        hold_to(self.record, sizes, self.path)
        self.people = People.of(given)

    def run(self) -> None:
        """Measure what is missing."""
        for case in self.given.cases:
            if case in self.record["cases"]:
                continue
            began = time.process_time()
            found = self.measured(case)
            found["cpu_seconds"] = round(time.process_time() - began, 1)
            self.record["cases"][case] = found
            self.record["run"] = record(self.given)
            save(self.path, self.record)
            print(f"seed {self.seed}, {case}: {_line(found)}", flush=True)

    def settings(self, case: str) -> Settings:
        """What a case is trained by; its noise is what keeps the claim within --epsilon."""
        given = self.given
        s = settings_of(self.people, given, self.seed, given.epsilon)
        s = s.override(gates__stale_asr=given.stale_asr)
        if case == MEMBERS:
            s = s.override(population__recipe="seeds", privacy__steps=given.member_steps)
        if case == CONTROL:
            return s.override(privacy__enabled=False, population__members=2,
                              population__pool=100)  # fmt: skip
        return calibrated(s, given.noise_ratio)

    def measured(self, case: str) -> Result:
        """Plant, train under the fault, guess."""
        path, key = self.folder(case), self.given.runs / f"{self.folder(case).name}.key"
        fault = FAULTS.get(case, FAULTS[SOUND])
        if not has_canaries(path):  # or a kill came between: nothing was trained then
            with fault():
                settings = self.settings(case)
            with Defence.create(self.people.task, path, settings) as defence:
                key.unlink(missing_ok=True)
                self.planted(defence, key)
        with Defence.open(path, self.people.task) as defence:
            settings = defence.settings
        with fault(), made(self.people, path, settings, self.count(case), self.seed):
            pass
        known = CanaryKey.read(key)
        if case == SEED:
            found = self.made_again(path, known)
        else:
            found = audit(path, known, task=self.people.task, alpha=self.given.alpha,
                          references=self.given.references)  # fmt: skip
        noise = {"noise": settings.privacy.noise, "fork_noise": settings.privacy.fork_noise}
        return found.as_json() | noise

    def planted(self, defence: Defence, key: Path) -> None:
        """Plant the seed's canaries."""
        g = self.given
        plant_canaries(defence, key, g.canaries, g.guesses, g.kind, self.people.task)

    def folder(self, case: str) -> Path:
        """Where a case's vault lies."""
        name = "-".join(case.replace("'", "").split())
        return Path(self.given.runs, f"privacy-audit-{self.given.task}-{self.seed}-{name}")

    def count(self, case: str) -> int:
        """How many generations a case's vault makes."""
        return int(self.given.generations) if case == SOUND else 0

    def made_again(self, path: Path, key: CanaryKey) -> Audit:
        """Guess from the base alone, beside the same training of all records but the canaries."""
        task = self.people.task
        planting = draw(task, key.secret, key.canaries, key.kind)
        nobody = replace(planting, coins=torch.zeros_like(planting.coins))
        twin = path.with_name(f"{path.name}-again")
        if not has_canaries(twin):
            with Defence.create(task, twin, self.settings(SEED)) as defence:
                about = {"canaries": 0, "data": data_digest(task)}
                defence.vault.put(PLANTED, 0, {"weights": nobody.pack()}, about)
        with Defence.open(twin, task) as defence:
            settings = defence.settings
        with FAULTS[SEED](), made(self.people, twin, settings, 0, self.seed):
            pass
        begun = task.model(seed_of(settings.population.seed, "base", 0)).state_dict()
        found = unmixed(task, planting, begun, base_of(path), base_of(twin))
        return judged(
            planting, {"trained": found[None]}, None, key.guesses, claim_of_vault(path),
            task.classes, self.given.alpha,
        )  # fmt: skip


def has_canaries(path: Path) -> bool:
    """Whether a vault is there, and canaries in it."""
    if not (path / LEDGER).exists():
        return False
    with Vault.open(path) as vault:
        return vault.entry(PLANTED) is not None


def base_of(path: Path) -> State:
    """The state of a vault's base."""
    with Vault.open(path) as vault:
        entry = vault.entry("base")
        assert entry is not None, "it is trained"
        return unpack(vault.read(entry))


def unmixed(task: Task, planting: Planting, begun: State, own: State, again: State) -> Array:
    """How much of each canary's gradient is in what parts two trainings of the same noise, (m,).

    Ridge regression of the difference of the weights on the canaries' unit gradients, which are the
    means at the start, half way and at the end of the training without canaries.
    """
    x, y = planting.canaries.x[:, None], planting.canaries.y
    G = torch.zeros(())
    for share in (0.0, 0.5, 1.0):
        state = {name: begun[name] + share * (again[name] - begun[name]) for name in again}
        model = load_model(task, state).requires_grad_(True)
        rows = [
            by_vmap(task)(model, *part) for part in zip(x.split(100), y.split(100), strict=True)
        ]
        flat = [torch.cat([r.flatten(1) for r in row], 1).double() for row in rows]
        each = torch.cat(flat)
        G = G + each / each.norm(dim=1, keepdim=True).clamp_min(1e-12) / 3
    names = [name for name, _ in task.model(0).named_parameters()]
    apart = torch.cat([(own[name] - again[name]).flatten() for name in names]).double()
    gram = G @ G.T + RIDGE * torch.eye(len(G), dtype=torch.float64)
    found: Array = -torch.linalg.solve(gram, G @ apart).numpy()
    return found


def _line(found: Mapping[str, Any]) -> str:
    told = found["guesses"]
    claim = "none" if found["claim"] is None else f"{found['claim']:.2f}"
    p = "" if found["p"] is None else f", p = {found['p']:.2g}"
    verdict = "refuted" if found["refuted"] else "not refuted"
    return (
        f"{told['right']} of {told['made']} right, epsilon > {found['bound']:.2f}"
        f" (Gaussian {found['gaussian']:.2f}), claim {claim}{p}: {verdict}"
    )


def rows(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """The table: every case over all seeds that have it."""
    lines = []
    for case in CASES:
        cases = [result["cases"][case] for result in results if case in result["cases"]]
        if cases:
            lines += _rows_of(case, cases)
    if lines:
        first = next(iter(results[0]["cases"].values()))
        told = first["guesses"]
        text = f"{first['most']:.1f} by {told['made']} guesses, {first['most_canaries']:.1f} by all"
        lines.append((f"most that {told['canaries']} canaries could certify", "", text))
    return lines


def _rows_of(case: str, cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    bound = ranged([one["bound"] for one in cases], 2, 1.0)
    gaussian = ranged([one["gaussian"] for one in cases], 2, 1.0)
    bounds = f"{bound}; {gaussian} if Gaussian"
    if case == CONTROL:
        return [("lower bound on epsilon, population without privacy", "", bounds)]
    refuted = sum(one["refuted"] for one in cases)
    claim = ranged([one["claim"] for one in cases], 2, 1.0)
    if case == SOUND:
        below = sum(one["bound"] <= one["claim"] for one in cases)
        networks = {sum(one["networks"].values()) for one in cases}
        return [
            ("lower bound at most the claim", "5 of 5", f"{below} of {len(cases)}"),
            ("refuted although sound", "0", f"{refuted} of {len(cases)}"),
            ("lower bound; claim", "", f"{bounds}; claim {claim}"),
            ("networks that were guessed from", "", ", ".join(map(str, sorted(networks)))),
        ]
    return [(f"refuted: {case}", f">= {NEEDED} of 5", f"{refuted} of {len(cases)}; {bounds}")]


def audit_flags(made: ArgumentParser) -> None:
    """What every audit is told."""
    made.add_argument("--epsilon", type=float, default=1.0, help="what is claimed")
    made.add_argument("--canaries", type=int, default=1000)
    made.add_argument("--guesses", type=int, default=200)
    made.add_argument("--kind", choices=KINDS, default=MISLABELLED)
    made.add_argument("--alpha", type=float, default=0.05)
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")


def parser() -> ArgumentParser:
    """The flags."""
    made = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags(made)
    # Gates judge on public records: what passes them is not what an audit asks, and a small
    # population's generations stand for as many whether old attacks win of them or not.
    made.set_defaults(seeds=[0, 1, 2, 3, 4], light_eps=0.0, accuracy_drop=0.3, class_drop=0.9)
    made.add_argument("--stale-asr", type=float, default=1.0, help="[gates]")
    audit_flags(made)
    made.add_argument("--generations", type=int, default=120, help="of the sound vault")
    made.add_argument("--member-steps", type=int, default=150)
    made.add_argument("--references", type=int, default=2)
    made.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    return made


def measure(given: Namespace, kind: type[Audits]) -> list[Result]:
    """Measure what is missing of all seeds."""
    torch.set_num_threads(1)
    results = []
    for seed in given.seeds:
        one = kind(given, seed)
        one.run()
        results.append(one.record)
    return results


def main() -> None:
    """Measure what is missing, and print the table."""
    results = measure(parser().parse_args(), Audits)
    print(markdown(TARGETS, rows(results) or [(NOTHING, NOTHING, NOTHING)]))


if __name__ == "__main__":
    main()
