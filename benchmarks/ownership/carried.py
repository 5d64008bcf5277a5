"""What the watermark is worth on fresh generations, what it costs, and what a thief can do to it.

    python -m benchmarks.ownership.carried --data FOLDER [--seeds 0 1 2]

For each seed two vaults are made with the same settings, one marked from the population's start
and one not (runs/ownership-N-marked and -plain), with 100 generations each; `--members` and
`--basins` make smaller populations, `--distilled` and `--late` fewer of what takes longest. Rows
are measured one by one and kept in benchmarks/results/ownership-carried-TASK-seedN.json with all
of that: an interrupted run goes on at the row that it stopped at, and one of other sizes is
refused. `--task digits --settings FILE` tries it in minutes.
"""

from __future__ import annotations

import json
import math
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.measure import stale
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown
from benchmarks.ownership.vaults import grow
from g2d import Defence, Settings, load_task
from g2d.attacks import removal
from g2d.cli.progress import show_progress
from g2d.core.engine import LocalEngine, SerialEngine
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.generator import hidden_units
from g2d.protect.watermark import InputForm, WatermarkKey, p_value
from g2d.protect.watermark.commitment import commit
from g2d.protect.watermark.mark import Mark
from g2d.redteam.controls import retraining
from g2d.redteam.scoring import Trial
from g2d.settings import build
from g2d.tasks.inference import accuracy, load_model
from g2d.tasks.sizes import defaults_of
from g2d.tasks.splits import Split
from g2d.training.jobs import run_job
from g2d.weights.checkpoints import unpack

Row = dict[str, Any]
Thief = Callable[[int], State]
"""What is left of the n-th stolen generation, the newest first."""

LIKELY, SURE = 2.0**-64, 2.0**-128
STOLEN = 20
SOUP = 8
SIZES = ("members", "basins", "count", "independent", "tune_steps", "distilled", "late", "examples")
"""Arguments that decide what a row says: rows of others are not mixed with them."""


class Carried:
    """The two vaults of one seed, and the rows that are measured on them."""

    def __init__(self, given: Namespace, seed: int) -> None:
        self.given, self.seed = given, seed
        name = f"ownership-carried-{given.task}-seed{seed}.json"
        self.path = given.out / name
        self.record: dict[str, Any] = {"seed": seed, "rows": {}}
        if self.path.exists():
            self.record = json.loads(self.path.read_text("utf-8"))
        sizes = {name: getattr(given, name) for name in SIZES}
        if given.settings:
            sizes["settings"] = given.settings.read_text("utf-8")
        hold_to(self.record, sizes, self.path)
        self.marked, self.plain = (self._built(name) for name in ("marked", "plain"))
        found = Mark.of(self.marked.settings.watermark, self.marked.task)
        assert found is not None, "the marked vault names its key"
        self.mark, self.task = found, self.marked.task

    # --- vaults ----------------------------------------------------------------------------------

    def _built(self, name: str) -> Defence:
        """A vault with its generations; what is there of it is kept."""
        given, folder = self.given, self.given.runs / f"ownership-{self.seed}-{name}"
        if given.settings:
            settings = Settings.from_file(given.settings)
        else:
            task = load_task(given.task, given.data)
            settings = build(Settings, defaults_of(task), given.task, stored=True)
        settings = settings.override(
            task__name=given.task, task__data=given.data, population__seed=self.seed,
            canaries__count=0,  # they cost time, and change no weight
            watermark__key=str(self._key()) if name == "marked" else "",
        )  # fmt: skip
        sizes = {"members": given.members, "basins": given.basins}
        settings = settings.override(**{f"population__{k}": n for k, n in sizes.items() if n})
        p = settings.population
        self.record["population"] = {"members": p.members, "basins": p.basins}
        defence = Defence.create(given.task, folder, settings)
        if name == "marked" and not defence.vault.commitment():
            s, key, form = (
                settings.watermark,
                WatermarkKey.read(self._key()),
                InputForm.of(defence.task),
            )
            made = commit(key, form, given.task, defence.vault, n=s.triggers, sets=s.sets)
            defence.vault.write_commitment(json.dumps(made.record()).encode())
        with show_progress() as progress:
            if given.workers == 1:
                defence.populate(SerialEngine(), progress)
            else:
                with LocalEngine(given.workers) as engine:
                    defence.populate(engine, progress)
            defence.fit(progress)
            while (there := len(defence.vault.numbers())) < given.count + 1:
                if refused := grow(defence, self.seed):
                    told = self.record.setdefault("refused", {}).setdefault(name, {})
                    told[str(defence.vault.last_number())] = refused
                progress(f"generations ({name})", there, given.count)
        return defence

    def _key(self) -> Path:
        """The seed's own key, the same in every run: no secret of anybody's."""
        path = self.given.runs / f"ownership-{self.seed}.key"
        if not path.exists():
            WatermarkKey(self.seed.to_bytes(32, "big")).write(path)
        return path

    def states(self, defence: Defence, count: int) -> list[State]:
        """The newest generated states of a vault; the base is none of them."""
        numbers = defence.vault.numbers(1)[-count:]
        return [dict(defence.generation(number).state) for number in numbers]

    @cached_property
    def stolen(self) -> list[State]:
        """What the thief has: every generation, the newest last."""
        return self.states(self.marked, self.given.count)

    # --- rows ------------------------------------------------------------------------------------

    def hits(self, state: State) -> list[int]:
        """Hits of every set, the one that is asked first."""
        return self.mark.hits(load_model(self.task, state))

    def _p(self, hits: int) -> float:
        """What hits of a set are worth; any set but the reserve could have been shown."""
        return p_value(hits, self.mark.each, self.task.classes, self.mark.sets - 1)

    def verified(self, states: Sequence[State]) -> Row:
        """Of networks: how many are told at which p by the first set, and hits of all sets."""
        found = [self.hits(state) for state in states]
        first = [self._p(hits[0]) for hits in found]
        return {
            "n": len(found),
            "queries": self.mark.each,
            "likely": sum(p < LIKELY for p in first),
            "sure": sum(p < SURE for p in first),
            "least": min(hits[0] for hits in found),
            "most": max(hits[0] for hits in found),
            "least_reserve": min(hits[-1] for hits in found),
            "most_of_any_set": max(max(hits) for hits in found),
        }

    def attacked(self, thief: Thief, most: int = STOLEN) -> Row:
        """What is left of the mark, and of accuracy on the test split."""
        states = [thief(index) for index in range(min(most, STOLEN, len(self.stolen)))]
        test = self.task.splits.test
        scores = [accuracy(load_model(self.task, state), test) for state in states]
        return self.verified(states) | {"accuracy": sum(scores) / len(scores)}

    def independent(self) -> Row:
        """Networks from fresh seeds, trained as the base was, and without the mark."""
        source, settings = self.plain.source, self.plain.settings
        jobs = (retraining(source, settings, index) for index in range(self.given.independent))
        return self.verified([unpack(run_job(job).weights) for job in jobs])

    def cost(self, defence: Defence) -> Row:
        """Accuracy on the test split, and ASR of attacks on predecessors, of one vault."""
        states = self.states(defence, self.given.count)
        models = [load_model(self.task, state) for state in states]
        full = Trial.of(self.task, n=self.given.examples, seed=self.seed)
        half = Trial(full.split.take(range(len(full.split) // 2)), full.eps, full.bounds,
                     full.steps, full.seed, full.task)  # fmt: skip
        late = range(max(1, len(models) - self.given.late), len(models))
        asr = [stale(models[i], models[max(0, i - 16) : i], full, half, False) for i in late]
        kinds = sorted({kind for found in asr for kind in found})
        test = self.task.splits.test
        return {
            "n": len(models),
            "accuracy": [accuracy(model, test) for model in models],
            **{f"stale_{kind}": [one[kind] for one in asr if kind in one] for kind in kinds},
            "cpu_seconds": [
                defence.vault.generation(number).manifest.get("cpu_seconds")
                for number in defence.vault.numbers(1)
            ],
        }

    def thieves(self) -> Mapping[str, Thief]:
        """Every attack on the mark, by the name of its row; each of the n-th stolen network."""
        task, train, take = self.task, self.task.splits.train, self._generation
        tune = self.given.tune_steps
        own = self._own_triggers()
        chain = hidden_units(task)

        def tuned(index: int, rate: float, besides: Split | None = None) -> State:
            return removal.fine_tuned(
                task, take(index), train, steps=tune, rate=rate, generator=self._draws(index),
                besides=besides,
            )  # fmt: skip

        def copied(index: int, soft: bool) -> State:
            model, s = load_model(task, take(index)), self.marked.settings.population
            return removal.distilled(
                task, model, train.x, soft=soft, steps=s.base_steps, rate=s.rate / 3,
                seed=seed_of(self.seed, "distil", index),
            )  # fmt: skip

        found: dict[str, Thief] = {"nothing": take}
        for share in (0.3, 0.5, 0.8):
            found[f"pruned {share:.0%}"] = partial(lambda i, s: removal.pruned(take(i), s), s=share)
        for bits in (8, 4):
            found[f"int{bits}"] = partial(lambda i, b: removal.rounded(take(i), b), b=bits)
        found["noise of a tenth"] = lambda i: removal.noised(take(i), 0.1, self._draws(i))
        if chain:
            found["disguised"] = lambda i: removal.disguised(take(i), chain, self._draws(i))
        for rate in (1e-3, 3e-3, 1e-2):
            found[f"fine-tuned at {rate:g}"] = partial(tuned, rate=rate)
        found[f"soup of {SOUP}"] = lambda i: removal.souped(self._near(take(i)))
        found["overwritten at 0.001"] = partial(tuned, rate=1e-3, besides=own)
        found["distilled, soft"] = partial(copied, soft=True)
        found["distilled, hard"] = partial(copied, soft=False)
        return found

    def _generation(self, index: int) -> State:
        return self.stolen[-1 - index]

    def _near(self, state: State) -> list[State]:
        """Of the stolen networks those whose mean with this one works: the nearest."""
        return removal.nearest(state, self.stolen, SOUP)

    def _draws(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, "thief", index))

    def _own_triggers(self) -> Split:
        """Another key's triggers: what a thief would overwrite the mark with."""
        path = self.given.runs / "thief.key"
        if not path.exists():
            WatermarkKey(b"\xff" * 32).write(path)
        settings = self.marked.settings.override(watermark__key=str(path)).watermark
        thief = Mark.of(settings, self.task)
        assert thief is not None
        return Split(thief.x, thief.y)

    def rows(self) -> Mapping[str, Callable[[], Row]]:
        """Every row, in the order in which they are measured."""
        count = self.given.count
        found: dict[str, Callable[[], Row]] = {
            "fresh": lambda: self.verified(self.states(self.marked, count)),
            "unmarked": lambda: self.verified(self.states(self.plain, count)),
            "independent": self.independent,
            "cost, marked": lambda: self.cost(self.marked),
            "cost, plain": lambda: self.cost(self.plain),
        }
        for name, thief in self.thieves().items():
            most = self.given.distilled if name.startswith("distilled") else STOLEN
            found[name] = partial(self.attacked, thief, most)
        return found

    def measure(self) -> None:
        """Measure every row that is not there, and keep each as soon as it is."""
        for name, row in self.rows().items():
            if name in self.record["rows"]:
                continue
            self.record["rows"][name] = row()
            self.record["measured"] = record(self.given)
            save(self.path, self.record)
            print(self.seed, name, json.dumps(self.record["rows"][name])[:300], flush=True)


def lines(found: Sequence[Mapping[str, Row]]) -> list[tuple[str, str, str]]:
    """The issue's table, of all seeds: what, target, reached; what is not there yet is left out."""

    def told(name: str, key: str) -> str:
        rows = [rows[name] for rows in found if name in rows]
        return f"{sum(row[key] for row in rows)} of {sum(row['n'] for row in rows)}"

    there = list(dict.fromkeys(name for rows in found for name in rows))
    made = []
    if "fresh" in there:
        made.append(("fresh generations at p < 2^-128", "100 of 100", told("fresh", "sure")))
    control = [name for name in ("unmarked", "independent") if name in there]
    if control:
        rows = [rows[name] for name in control for rows in found if name in rows]
        most = max(row["most_of_any_set"] for row in rows)
        asked = rows[0]["queries"]
        made.append(("most hits without the mark", f"at most {asked // 4}", f"{most} of {asked}"))
    if {"cost, marked", "cost, plain"} <= set(there):
        kinds = {k for rows in found for k in rows.get("cost, plain", ()) if k.startswith("stale")}
        both = [rows for rows in found if {"cost, marked", "cost, plain"} <= set(rows)]
        for key in ("accuracy", *sorted(kinds)):
            text = _cost([(r["cost, marked"][key], r["cost, plain"][key]) for r in both])
            target = "0.1 points at most" if key == "accuracy" else "within the interval"
            made.append((f"{key.replace('_', ' ')}, marked / unmarked", target, text))
    known = {"fresh", "unmarked", "independent", "cost, marked", "cost, plain"}
    wanted = {"pruned 50%", "int4", "fine-tuned at 0.001", f"soup of {SOUP}"}
    for name in (name for name in there if name not in known):
        scores = [rows[name]["accuracy"] for rows in found if name in rows]
        target = f"{STOLEN} of {STOLEN}" if name in wanted else "printed"
        accuracy = 100 * sum(scores) / len(scores)
        text = f"{told(name, 'likely')}, accuracy {accuracy:.2f} %"
        made.append((f"{name}, at p < 2^-64", target, text))
    return made


def _cost(twins: Sequence[tuple[Sequence[float], Sequence[float]]]) -> str:
    """Means of marked and unmarked generations, and the largest difference of any seed, points.

    Its 95 % interval is Welch's: generations of the two vaults are not paired.
    """

    def told(marked: Sequence[float], plain: Sequence[float]) -> tuple[float, float]:
        variances = (
            statistics.variance(v) / len(v) if len(v) > 1 else 0.0 for v in (marked, plain)
        )
        gap = statistics.mean(marked) - statistics.mean(plain)
        return gap, 1.96 * math.sqrt(sum(variances))

    means = (statistics.mean(v for own in each for v in own) for each in zip(*twins, strict=True))
    gap, half = max((told(*twin) for twin in twins), key=lambda one: abs(one[0]))
    shown = " / ".join(f"{100 * mean:.2f} %" for mean in means)
    low, high = 100 * (gap - half), 100 * (gap + half)
    return f"{shown}; worst seed {100 * gap:+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> None:
    """Measure, keep, print."""
    flags = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--task", default="mnist")
    flags.add_argument("--data", default="")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--settings", type=Path, help="TOML of the vaults' settings")
    flags.add_argument("--count", type=int, default=100, help="generations of each vault")
    flags.add_argument("--independent", type=int, default=20, help="networks from fresh seeds")
    flags.add_argument("--members", type=int, default=0, help="of a population; 0: the task's own")
    flags.add_argument("--basins", type=int, default=0, help="of a population; 0: the task's own")
    flags.add_argument("--distilled", type=int, default=5, help="networks that are distilled")
    flags.add_argument("--late", type=int, default=STOLEN, help="generations met by stale attacks")
    flags.add_argument("--tune-steps", type=int, default=500)
    flags.add_argument("--examples", type=int, default=1000, help="attacked, of the test split")
    flags.add_argument("--workers", type=int, default=0, help="1: none but this process")
    flags.add_argument("--runs", type=Path, default=RUNS)
    flags.add_argument("--out", type=Path, default=RESULTS)
    given = flags.parse_args()
    given.data = str(Path(given.data).absolute()) if given.data else ""
    given.runs = given.runs.absolute()
    given.runs.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in given.seeds:
        carried = Carried(given, seed)
        carried.measure()
        found.append(carried.record["rows"])
    print(markdown(TARGETS, lines(found)))


if __name__ == "__main__":
    main()
