"""What private members of a whole rotating system cost: epsilon, accuracy, stale attacks, CPU time.

    python -m benchmarks.privacy.whole --data FOLDER --seeds 0 1 2            # MNIST, hours
    python -m benchmarks.privacy.whole --data FOLDER --seeds 0 --rows cost clean
    python -m benchmarks.privacy.whole --data FOLDER --forks private --fork-steps 30 --out FOLDER

With `--forks public`, the default, forks learn public records and what the private base answers,
which costs nothing, so that the base has the whole budget; with `--forks private` they learn
people's, and are charged. For each seed and each of --epsilons a vault of --members members is made
(runs/privacy-TASK-SEED-eps...), its noise the least that keeps the population within that budget,
and --count generations. Rows are kept one by one in results/privacy-whole-TASK-seedN.json: an
interrupted run goes on where it stopped. `cost`: what the ledger says of everything, and naive
composition. `clean`: the test split, all generations. `alone`: one private network that has the
whole budget for itself; with public forks that is the base. `public`: the network where the base
begins, which has learned --public-steps batches of the public records that guide, and nobody's; and
a public fork of it, made as members are, but of a base that has never seen anybody. `stale`:
attacks crafted jointly on the last twenty generations, on the next one, and on one of the twenty
("had it stayed"). `basin`: the same of all that was exposed of the target's own basin, and
white-box. `iterates`: the same of snapshots of one training, which cost nothing more. What a step
costs is measured by `benchmarks.privacy.cost`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from benchmarks.common.command import Result
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown, ranged, shown
from benchmarks.privacy.vaults import SIZES, People, calibrated, flags, made, settings_of
from g2d import Defence, Settings
from g2d.attacks.pools import craft_pool, pack_pool
from g2d.core.seeds import seed_of
from g2d.core.types import Logits
from g2d.protect.privacy import accounting
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.protect.privacy.releases import releases
from g2d.redteam.scoring import Trial, accuracy_rate
from g2d.settings import HardenSettings
from g2d.settings.privacy import PRIVATE, PUBLIC
from g2d.tasks.inference import load_model
from g2d.training.jobs import TrainingJob, run_job
from g2d.training.loop import Batches, NextStep
from g2d.training.recipes import HardenedTraining
from g2d.training.recipes.private import Private, PrivatePlan
from g2d.training.recipes.private_public import learn_public
from g2d.weights.checkpoints import pack, unpack

EXPOSED, TARGETS_LEFT = 20, 5
"""Networks that the attacker has read, and how many next ones are scored: each costs a minute."""

EVERY = 5  # steps between the snapshots of one training
FAR = 1e4  # noise of forks that are there only because a population has two members
FORK_STEPS = 30  # of a refresh, which nothing here makes
OWN = (
    "count",
    "forks",
    "basins",
    "early_steps",
    "fork_rate",
    "soft",
    "base_weight",
    "stale_weight",
    "clip",
    "rate",
    "stale_asr",
)
ROWS = ("cost", "clean", "alone", "public", "stale", "basin", "iterates")


class Whole:
    """The rows of one seed and one budget."""

    def __init__(self, given: Namespace, seed: int, people: People, kept: Result, target: float):
        self.given, self.seed, self.people = given, seed, people
        self.rows: dict[str, Any] = kept.setdefault(f"{target:g}", {})
        self.target = target
        self._vault: Defence | None = None

    def settings(self) -> Settings:
        """The vault's settings."""
        return calibrated(self._uncalibrated(), self.given.noise_ratio)

    def _uncalibrated(self) -> Settings:
        given = self.given
        made = settings_of(self.people, given, self.seed, self.target)
        made = made.override(
            privacy__clip=given.clip, privacy__rate=given.rate, privacy__forks=given.forks
        )
        if given.forks == PUBLIC:
            made = made.override(
                population__fork_steps=given.fork_steps, population__fork_rate=given.fork_rate,
                population__basins=given.basins, population__early_steps=given.early_steps,
                privacy__soft=given.soft, privacy__fork_steps=FORK_STEPS,
                guidance__base_weight=given.base_weight, harden__stale=given.stale_weight,
                guidance__resting=True, gates__stale_asr=given.stale_asr,
            )  # fmt: skip
        return made

    @property
    def defence(self) -> Defence:
        """The vault, whole."""
        if self._vault is None:
            path = self._path("")
            settings = None if path.exists() else self.settings()
            self._vault = made(
                self.people, path, settings or Settings(), self.given.count, self.seed
            )
        return self._vault

    def _path(self, after: str) -> Path:
        name = f"privacy-{self.given.task}-{self.seed}-eps{self.target:g}{after}"
        return Path(self.given.runs, name)

    def cost(self) -> Result:
        """What was spent, and by whom it is covered."""
        defence, p = self.defence, self.defence.settings.privacy
        spent = PrivacyLedger(defence.vault, defence.settings).spendings()
        known = releases(defence.vault)
        return {
            "epsilon": accounting.total(spent, p.delta), "naive": accounting.naive(spent, p.delta),
            "delta": p.delta, "members": len(defence.vault.entries("member")),
            "generations": len(defence.vault.numbers()), "spendings": len(spent),
            "uncovered": [one.name for one in known if not one.covered],
            "noise": p.noise, "fork_noise": p.fork_noise,
            "rejected": len(defence.vault.rejections()),
        }  # fmt: skip

    def models(self) -> list[nn.Module]:
        """All generations, the base left out."""
        defence = self.defence
        numbers = defence.vault.numbers(1)
        return [load_model(self.people.task, defence.generation(n).state) for n in numbers]

    def clean(self) -> Result:
        """Accuracy on the test split."""
        test, vault = self.people.task.splits.test, self.defence.vault
        members = [unpack(vault.read(entry)) for entry in vault.entries("member")]
        networks = [load_model(self.people.task, state) for state in members]
        return {
            "generations": [accuracy_rate(model, test).value for model in self.models()],
            "members": [accuracy_rate(model, test).value for model in networks],
        }

    def alone(self) -> Result:
        """One network with the whole budget: the base, or one whose forks cost next to nothing."""
        if self.given.forks == PUBLIC:
            return self._of_base(self.defence)
        path, s = self._path("-alone"), None
        if not path.exists():
            s = self._uncalibrated().override(
                population__recipe="forks", population__members=2, privacy__fork_steps=1
            )
            s = calibrated(s, 50.0).override(privacy__fork_noise=FAR)
        with made(self.people, path, s or Settings(), 0, self.seed) as defence:
            return self._of_base(defence)

    def _of_base(self, defence: Defence) -> Result:
        base = defence.vault.entry("base")
        assert base is not None, "it is trained"
        model = load_model(self.people.task, unpack(defence.vault.read(base)))
        spent = PrivacyLedger(defence.vault, defence.settings).spendings()
        return {
            "accuracy": accuracy_rate(model, self.people.task.splits.test).value,
            "epsilon": accounting.total(spent, defence.settings.privacy.delta),
        }

    def public(self) -> Result:
        """The network where the base begins: what private training adds is what is beyond it."""
        task, s = self.defence.task, self.defence.settings
        seed = seed_of(self.seed, "base", 0)
        model = task.model(seed)
        learn_public(task, model, s.privacy.public_steps, s.population, seed)
        found: Result = {"accuracy": accuracy_rate(model.eval(), task.splits.test).value}
        if self.given.forks == PUBLIC:
            found["fork"] = self._fork_of(model.requires_grad_(False))
        return found

    def _fork_of(self, model: nn.Module) -> float:
        """Accuracy of a member's like, of a network that is not private, nor needs to be."""
        defence, s = self.defence, self.defence.settings
        p, task, weights = s.population, defence.task, pack(model.state_dict())
        split = task.splits.pooled
        attacks, index = craft_pool(task, model, split, p.pool, p.pool_steps, self.seed)
        job = TrainingJob(
            defence.source, "early", 0, 0, "repelled", p, None, (pack_pool(attacks, index, task),),
            harden=s.harden, privacy=s.privacy, base=weights,
        )  # fmt: skip
        start = run_job(job).weights if p.early_steps else weights
        fork = run_job(replace(job, kind="member", start=start)).weights
        return accuracy_rate(load_model(task, unpack(fork)), task.splits.test).value

    def stale(self) -> Result:
        """Joint attacks on the twenty generations before: on the next, and on the newest read."""
        return self._joint(self.models())

    def basin(self) -> Result:
        """Joint attacks on all that was exposed of the target's own basin, however long ago."""
        numbers, networks = self.defence.vault.numbers(1), self.models()
        kept = [self.defence.generation(number).manifest.get("basin") for number in numbers]
        trial = Trial.of(self.people.task, self.given.examples, seed=self.seed)
        found: Result = {"exposed": [], "next": [], "stayed": [], "white-box": []}
        for place in range(max(1, len(networks) - TARGETS_LEFT), len(networks)):
            own = [k for k in range(place) if kept[k] == kept[place]]
            if not own:
                continue
            crafted = trial.craft([networks[k] for k in own], "basin", place)
            itself = trial.craft(networks[place], "white-box", place)
            found["exposed"].append(len(own))
            found["next"].append(trial.score(networks[place], crafted).value)
            found["stayed"].append(trial.score(networks[own[-1]], crafted).value)
            found["white-box"].append(trial.score(networks[place], itself).value)
        return found

    def _joint(self, networks: Sequence[Logits]) -> Result:
        exposed = min(EXPOSED, max(1, len(networks) // 2))
        trial = Trial.of(self.people.task, self.given.examples, seed=self.seed)
        found: Result = {"exposed": exposed, "next": [], "stayed": []}
        first = max(exposed, len(networks) - TARGETS_LEFT)
        for place in range(first, len(networks)):
            crafted = trial.craft(networks[place - exposed : place], "joint", exposed, place)
            found["next"].append(trial.score(networks[place], crafted).value)
            found["stayed"].append(trial.score(networks[place - 1], crafted).value)
        return found

    def iterates(self) -> Result:
        """Snapshots of the base's own training, the last forty, one every few steps."""
        s, task = self.settings(), self.defence.task  # people and public records are apart there
        p, model, taken, states = s.privacy, task.model(self.seed), 0, []
        learn_public(task, model, p.public_steps, s.population, self.seed)
        plan = PrivatePlan(p, p.noise)
        batches = Batches(
            task, task.splits.train, p.batch, torch.Generator().manual_seed(self.seed)
        )
        training = HardenedTraining(
            task, HardenSettings(), batches, p.steps, seed=self.seed, private=Private(plan)
        )
        before = training.after

        def keep(network: nn.Module, rate: float) -> NextStep:
            nonlocal taken
            taken += 1
            if taken % EVERY == 0:
                states.append({n: t.clone() for n, t in network.state_dict().items()})
                del states[: -EXPOSED - TARGETS_LEFT]
            return before(network, rate)

        training.after = keep  # type: ignore[method-assign]
        training.run(model, p.rate)
        return self._joint([load_model(task, state) for state in states])


def measure(given: Namespace, seed: int) -> Result:
    """One seed: what is missing of its rows."""
    path = given.out / f"privacy-whole-{given.task}-seed{seed}.json"
    found: Result = {"seed": seed, "epsilons": {}}
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
    hold_to(found, {name: getattr(given, name) for name in (*SIZES, *OWN)}, path)
    people = People.of(given)

    def once(rows: dict[str, Any], name: str, work: Callable[[], Any], target: float = 0.0) -> None:
        if name in rows or name not in given.rows:
            return
        began = time.process_time()
        rows[name] = work()
        rows[name]["cpu_seconds"] = round(time.process_time() - began, 1)
        found["run"] = record(given)
        save(path, found)
        told = f"measured, {rows[name]['cpu_seconds']} CPU s"
        print(f"seed {seed}, epsilon {target:g}, {name}: {told}", flush=True)

    for target in given.epsilons:
        one = Whole(given, seed, people, found["epsilons"], target)
        for name in ROWS:
            once(one.rows, name, getattr(one, name), target)
    return found


def rows(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """The table, mean and range over seeds."""
    targets = sorted({target for result in results for target in result["epsilons"]}, key=float)
    lines: list[tuple[str, str, str]] = []
    for target in reversed(targets):
        lines += _rows_of(target, [r["epsilons"].get(target, {}) for r in results])
    return lines


WANTED = {"3": "97.5", "1": "96"}


def _rows_of(target: str, results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    def of(row: str) -> list[Any]:
        return [result[row] for result in results if row in result]

    at, lines = f"epsilon {target}", []
    if cost := of("cost"):
        told = ranged([one["epsilon"] for one in cost], 2, 1.0)
        sizes = {(one["members"], one["generations"]) for one in cost}
        told += "".join(f"; {m} members, {g} generations" for m, g in sorted(sizes))
        naive = ranged([one["naive"] for one in cost], 1, 1.0)
        lines.append((f"{at}: spent by everything, delta 1e-5", f"<= {float(target):.1f}", told))
        lines.append((f"{at}: naive composition", "", naive))
        missed = sum(len(one["uncovered"]) for one in cost)
        lines.append((f"{at}: releases that are not covered", "0", str(missed)))
    if clean := of("clean"):
        means = [statistics.mean(one["generations"]) for one in clean]
        worst = [min(one["generations"]) for one in clean]
        wanted = f">= {WANTED[target]}" if target in WANTED else ""
        lines.append((f"{at}: clean, mean of generations, %", wanted, shown(means, 2)))
        lines.append((f"{at}: clean, worst generation, %", wanted, shown(worst, 2)))
        both = [(r["alone"], statistics.mean(r["clean"]["generations"])) for r in results
                if "alone" in r and "clean" in r]  # fmt: skip
        if both:
            alone = shown([one["accuracy"] for one, _ in both], 2)
            less = shown([one["accuracy"] - mean for one, mean in both], 2)
            lines.append((f"{at}: one private network, %", "", alone))
            lines.append((f"{at}: generations below it, points", "<= 1", less))
    if public := of("public"):
        text = shown([one["accuracy"] for one in public], 2)
        lines.append((f"{at}: the public records alone, %", "", text))
        if forks := [one["fork"] for one in public if "fork" in one]:
            lines.append((f"{at}: a fork of those as members are made, %", "", shown(forks, 2)))
    for row, what in (("stale", "joint-20, generations"),
                      ("basin", "joint on all of its own basin"),
                      ("iterates", "joint-20, iterates of the base")):  # fmt: skip
        if made := [one for one in of(row) if one["next"]]:
            lines.append(_stale(f"{at}: stale ASR {what}, %", made, row == "stale"))
            if row == "basin":
                white = shown([statistics.mean(one["white-box"]) for one in made])
                lines.append((f"{at}: white-box ASR, generations, %", "", white))
    return lines


def _stale(what: str, found: Sequence[Mapping[str, Any]], wanted: bool) -> tuple[str, str, str]:
    after = [statistics.mean(one["next"]) for one in found]
    stayed = [statistics.mean(one["stayed"]) for one in found]
    text = f"{shown(after)}; had it stayed {shown(stayed)}"
    return what, "<= 1/3 of had it stayed" if wanted else "", text


def parser() -> ArgumentParser:
    """The flags."""
    made = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags(made)
    # By hand (docs/privacy.md, "What was tried"): the base on held-out train images of seed 7,
    # forks and basins on the public gate half of seed 0.
    made.set_defaults(batch=4096, steps=200, public_steps=3000, fork_steps=600, members=48)
    made.add_argument("--forks", choices=(PUBLIC, PRIVATE), default=PUBLIC, help="what they learn")
    made.add_argument("--basins", type=int, default=24, help="of public forks")
    made.add_argument("--early-steps", type=int, default=1000, help="plain ones, of each basin")
    made.add_argument("--fork-rate", type=float, default=2e-3, help="of public forks")
    made.add_argument("--soft", type=float, default=0.9, help="[privacy] soft, of those")
    made.add_argument(
        "--base-weight", type=float, default=1.0, help="[guidance] base_weight, with them"
    )
    made.add_argument("--stale-weight", type=float, default=1.0, help="[harden] stale, of those")
    # A basin's own exposed networks win more than the task's limit of 0.35 once all were served.
    made.add_argument("--stale-asr", type=float, default=0.6, help="[gates], with public forks")
    made.add_argument("--clip", type=float, default=0.1, help="[privacy] clip")
    made.add_argument("--rate", type=float, default=5e-3, help="[privacy] rate, of the base")
    made.add_argument("--epsilons", type=float, nargs="+", default=[3.0, 1.0])
    made.add_argument("--count", type=int, default=120, help="generations")
    made.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return made


def main() -> None:
    """Measure what is missing, and print the table."""
    given = parser().parse_args()
    torch.set_num_threads(1)
    results = [measure(given, seed) for seed in given.seeds]
    print(markdown(TARGETS, rows(results)))


if __name__ == "__main__":
    main()
