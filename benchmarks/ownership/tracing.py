"""Leaks that are traced to their generation, and false accusations; the price of replicas' marks.

    python -m benchmarks.ownership.tracing --data ../shared/data/mnist --seeds 0 1 2

Goes on where it stopped: vaults lie in runs/tracing-TASK-SEED, each judgement is a line in a file
beside them, and what a seed found stands in the result once it is measured. `--vault` takes vaults
that are there, such as those of `carried`: `--vault runs/ownership-{seed}-marked`. `--task digits`
tries everything out in minutes.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import g2d
from benchmarks.common import results
from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import save
from benchmarks.ownership.leaking import TREATMENTS, disguised, soup, tuned
from benchmarks.ownership.vaults import grow, of_seed
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.defence.marking import COPIES, fit_mark
from g2d.defence.tracing import Tracer
from g2d.generator import hidden_units
from g2d.protect.fingerprint import accuse, marked, read_marks, slot_of
from g2d.protect.trace import Verdict
from g2d.settings import Settings, build
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.sizes import defaults_of
from g2d.tasks.source import resolve
from g2d.weights.checkpoints import unpack

_STRANGERS = 20  # networks that were trained elsewhere
_MOST_PARTS = 8
_SECRET = b"the secret of a benchmark's marks"


@dataclass(frozen=True)
class Case:
    """A suspect: what it is, the generations in it, and those that the vault does not know."""

    kind: str
    name: str
    guilty: tuple[int, ...]
    make: Callable[[torch.Generator], State]
    unknown: tuple[int, ...] = ()


class Trial:
    """All cases on one vault; what was judged before is not judged again."""

    def __init__(self, vault: Path, seed: int, given: Namespace) -> None:
        self.defence = g2d.Defence.open(vault, write=False, data=given.data)
        self.task, self.vault, self.seed = self.defence.task, self.defence.vault, seed
        self.chain, self.given = hidden_units(self.task), given
        self.numbers = self.vault.numbers(self.vault.retired)
        self.file = vault.parent / f"{vault.name}-traced.jsonl"

    def about(self) -> dict[str, Any]:
        """What the vault is: how many members and basins, and generations that have weights."""
        p = self.defence.settings.population
        return {
            "vault": self.vault.path.name, "members": p.members, "basins": p.basins,
            "generations": len(self.numbers), "marked": bool(self.vault.commitment()),
        }  # fmt: skip

    def state(self, number: int) -> State:
        return unpack(self.vault.read_generation(number))

    def cases(self) -> Iterator[Case]:
        """Leaks of real generations, and as many kinds of suspects that are none of them."""
        for place in range(self.given.leaks):
            number = self.numbers[place * 7 % len(self.numbers)]
            how = list(TREATMENTS)[place % len(TREATMENTS)]
            yield Case(f"leak: {how}", f"{number}-{place}", (number,), self._leak(number, how))
        innocents = (self._strangers, self._others, self._soups, self._left_out)
        for kind in innocents:
            yield from kind(self.given.innocents // len(innocents))

    def _leak(self, number: int, how: str) -> Callable[[torch.Generator], State]:
        return lambda draws: TREATMENTS[how](self.state(number), self.task, draws)

    def _strangers(self, count: int) -> Iterator[Case]:
        """Trained from other seeds, then treated."""
        for place in range(count):
            stranger, how = place % _STRANGERS, list(TREATMENTS)[place % len(TREATMENTS)]

            def make(draws: torch.Generator, stranger: int = stranger, how: str = how) -> State:
                return TREATMENTS[how](self._trained(stranger), self.task, draws)

            yield Case("unrelated", f"{stranger}-{self.given.steps}-{place}", (), make)

    def _trained(self, stranger: int) -> State:
        name = f"{self.file.stem}-stranger-{stranger}-{self.given.steps}.pt"
        known = self.file.with_name(name)
        if not known.exists():
            fresh = self.task.model(seed_of("stranger", self.seed, stranger) % 2**31).state_dict()
            draws = torch.Generator().manual_seed(stranger)
            torch.save(tuned(3e-3, self.given.steps)(fresh, self.task, draws), known)
        return torch.load(known, weights_only=True)

    def _others(self, count: int) -> Iterator[Case]:
        """Members and early checkpoints: networks of the vault that are no generation."""
        entries = [*self.vault.entries("member"), *self.vault.entries("early")]
        for place in range(count):
            entry, how = entries[place % len(entries)], list(TREATMENTS)[place % len(TREATMENTS)]

            def make(draws: torch.Generator, entry: Any = entry, how: str = how) -> State:
                return TREATMENTS[how](unpack(self.vault.read(entry)), self.task, draws)

            yield Case("members", f"{entry.kind}-{entry.index}-{place}", (), make)

    def _soups(self, count: int) -> Iterator[Case]:
        """Of two to eight generations of one basin: those outside it are innocent."""
        basins = [
            [n.number for n in nest.names if n.kind == "generation"] for nest in self.tracer._nests
        ]
        large = [basin for basin in basins if len(basin) >= 2]
        for place in range(count if large else 0):
            draws = torch.Generator().manual_seed(seed_of("soup", self.seed, place))
            own = large[place % len(large)]
            parts = min(len(own), 2 + place % (_MOST_PARTS - 1))
            chosen = tuple(own[int(i)] for i in torch.randperm(len(own), generator=draws)[:parts])

            def make(_: torch.Generator, chosen: tuple[int, ...] = chosen) -> State:
                even = torch.full((len(chosen),), 1 / len(chosen))
                return soup([self.state(number) for number in chosen], even)

            yield Case("soups", f"{place}", chosen, make)

    def _left_out(self, count: int) -> Iterator[Case]:
        """Generations whose weights the vault is made to have forgotten."""
        for place in range(count):
            number = self.numbers[1 + place * 3 % (len(self.numbers) - 1)]
            how = list(TREATMENTS)[place % len(TREATMENTS)]
            yield Case("forgotten", f"{number}-{place}", (), self._leak(number, how), (number,))

    @property
    def tracer(self) -> Tracer:
        if not hasattr(self, "_tracer"):
            self._tracer = Tracer(self.defence)
        return self._tracer

    def judged(self) -> list[dict[str, Any]]:
        """One record a case; what other flags had judged stays in the file alone."""
        text = self.file.read_text("utf-8") if self.file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # half a line, of a run that was killed
            self.file.write_text(whole, "utf-8")
        known = {(r["kind"], r["name"]): r for r in map(json.loads, whole.splitlines())}
        wanted = list(self.cases())
        with self.file.open("a") as kept:
            for case in wanted:
                if (case.kind, case.name) not in known:
                    record = self._judge(case)
                    known[case.kind, case.name] = record
                    print(json.dumps(record), file=kept, flush=True)
        return [known[case.kind, case.name] for case in wanted]

    def _judge(self, case: Case) -> dict[str, Any]:
        draws = torch.Generator().manual_seed(seed_of(self.seed, case.kind, case.name))
        suspect = disguised(case.make(draws), self.chain, draws)
        began = time.process_time()
        verdict: Verdict = self.tracer.trace(suspect, unknown=case.unknown)
        named, best = set(verdict.generations), verdict.candidates[0]
        return {
            "kind": case.kind, "name": case.name, "parts": len(case.guilty),
            "named": len(named & set(case.guilty)), "wrong": len(named - set(case.guilty)),
            "best": best.score / best.needed if best.needed < 1e300 else 0.0,
            "cpu_seconds": round(time.process_time() - began, 3),
        }  # fmt: skip

    def marks(self) -> list[dict[str, Any]]:
        """What replicas' marks cost of accuracy and stale ASR, and whom leaked copies name."""
        found, test = [], self.task.splits.test
        for number in self.numbers[max(1, len(self.numbers) - self.given.marked) :]:
            state = self.state(number)
            mark = fit_mark(self.task, state, _SECRET, self.given.drop)
            copies = [marked(state, _SECRET, f"r{i}", mark["strength"]) for i in range(COPIES)]
            models = [load_model(self.task, copy) for copy in (state, *copies)]
            clean = [accuracy(model, test) for model in models]
            stale = [self._stale(number, model) for model in models]
            draws = torch.Generator().manual_seed(number)
            for how, treat in TREATMENTS.items():
                suspect = disguised(treat(copies[0], self.task, draws), self.chain, draws)
                code, heard = read_marks(state, suspect, _SECRET, mark["strength"], self.chain)
                slots = {one.slot for one in accuse(code, heard)}
                found.append({
                    "number": number, "how": how, "strength": mark["strength"],
                    "lost": clean[0] - sum(clean[1:]) / COPIES,
                    "stale_risen": sum(stale[1:]) / COPIES - stale[0],
                    "right": slots == {slot_of(_SECRET, "r0")},
                    "wrong": bool(slots - {slot_of(_SECRET, "r0")}),
                })  # fmt: skip
        return found

    def _stale(self, number: int, model: Any) -> float:
        """How often the attacks that the vault keeps of the generation before succeed."""
        before = max(n for n in self.numbers if n < number)
        exposure = self.defence.exposure(before)
        attacks, clean = exposure.gate, exposure.gate_clean
        right = predict(model, clean.x).argmax(1) == clean.y
        wrong = predict(model, attacks.x).argmax(1) != clean.y
        return float((right & wrong).sum() / right.sum().clamp_min(1))


def made(seed: int, given: Namespace) -> Path:
    """A vault with as many generations as are asked for; what is there already is kept."""
    if given.vault:
        return of_seed(given.vault, seed)
    path = RUNS / f"tracing-{given.task}-{seed}"
    settings = None
    if not path.exists():
        own = defaults_of(resolve((given.task, given.data, 0, 0.0)))
        own = {**own, "task": {"name": given.task, "data": given.data}}
        settings = build(Settings, own, "benchmark").override(population__seed=seed)
    with g2d.Defence.build(given.task, path, settings) as defence:
        while defence.vault.last_number() < given.generations:
            grow(defence, seed)
    return path


def timed(given: Namespace) -> dict[str, Any]:
    """CPU seconds of a trace over a thousand generations, made without polish, to save time.

    They are kept: an interrupted run goes on with the next one.
    """
    path = RUNS / f"tracing-{given.task}-{given.thousand}-quick"
    quick = {
        "population__members": 4, "population__basins": 2, "population__base_steps": 100,
        "population__early_steps": 30, "population__fork_steps": 30, "population__pool": 32,
        "diffusion__steps": 100, "guidance__polish_steps": 0, "guidance__latent_steps": 0,
        "guidance__reverse_steps": 0, "guidance__particles": 1, "guidance__pool": 8,
        "guidance__pool_steps": 1, "gates__accuracy_drop": 1.0, "gates__class_drop": 1.0,
        "gates__stale_asr": 1.0, "gates__distance": 0.0, "gates__history": 1, "gates__pool": 8,
        "gates__pool_steps": 1, "guidance__memory": 1, "vault__keep": 2000, "canaries__count": 0,
        "task__name": given.task, "task__data": given.data,
    }  # fmt: skip
    settings = None if path.exists() else Settings().override(**quick)
    with g2d.Defence.build(given.task, path, settings) as defence:
        while defence.vault.last_number() < given.thousand:
            grow(defence, 0)
    with g2d.Defence.open(path, write=False, data=given.data) as defence:
        suspect = unpack(defence.vault.read_generation(given.thousand // 2))
        began = time.process_time()
        Tracer(defence).trace(suspect)
        return {"generations": given.thousand, "cpu_seconds": time.process_time() - began}


def measure(given: Namespace, _: Path) -> dict[str, Any]:
    """Every seed's cases, the price of marks, the time; a seed that is there is not repeated."""
    out = given.out or RESULTS / "tracing.json"
    what = {k: str(v) for k, v in vars(given).items() if k not in ("out", "seeds", "thousand")}
    old = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    known = old if old.get("measured") == what else {}
    found = {"run": results.record(given), "measured": what}
    found |= {key: known.get(key, []) for key in ("cases", "marks", "vaults")}
    found["time"] = known.get("time", {})
    there = {one["seed"] for one in found["vaults"]}
    for seed in (seed for seed in given.seeds if seed not in there):
        trial = Trial(made(seed, given), seed, given)
        found["cases"] += [{"seed": seed, **record} for record in trial.judged()]
        found["marks"] += [{"seed": seed, **record} for record in trial.marks()]
        found["vaults"].append({"seed": seed, **trial.about()})
        save(out, found)
    if given.thousand and found["time"].get("generations") != given.thousand:
        found["time"] = timed(given)
    return found


def rows(result: dict[str, Any]) -> Sequence[Sequence[object]]:
    """What, target, reached."""
    cases, marks, timing = result["cases"], result["marks"], result["time"]
    leaks = [c for c in cases if c["kind"].startswith("leak")]
    table = [("leaks attributed", "≥ 99 %", _share(map(_right, leaks)))]
    for kind in dict.fromkeys(c["kind"] for c in leaks):
        some = [_right(c) for c in leaks if c["kind"] == kind]
        table.append((f"- {kind.removeprefix('leak: ')}", "", _share(some)))
    for kind in ("unrelated", "members", "soups", "forgotten"):
        some = [c["wrong"] > 0 for c in cases if c["kind"] == kind]
        table.append((f"false accusations: {kind}", "0", _share(some)))
    parts = [c for c in cases if c["kind"] == "soups"]
    named, there = (sum(c[key] for c in parts) for key in ("named", "parts"))
    table.append(("parts of soups named", "", f"{named} of {there}"))
    if marks:
        lost, risen = (sum(m[key] for m in marks) / len(marks) for key in ("lost", "stale_risen"))
        table += [
            ("marks: accuracy lost", "", f"{100 * lost:.2f} points"),
            ("marks: stale ASR risen by", "", f"{100 * risen:.2f} points"),
            ("marks: copies traced", "", _share(m["right"] for m in marks)),
            ("marks: innocents accused", "0", _share(m["wrong"] for m in marks)),
        ]
    if timing:
        what = f"a trace over {timing['generations']} generations"
        table.append((what, "≤ 60 s", f"{timing['cpu_seconds']:.1f} s"))
    return table


def _right(leak: dict[str, Any]) -> bool:
    return leak["named"] == 1 and not leak["wrong"]


def _share(found: Iterable[bool]) -> str:
    values = list(found)
    return f"{sum(values)} of {len(values)}"


def main() -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--task", default="mnist")
    flags.add_argument("--data", default="")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--vault", type=Path, help="vaults that are there; {seed} is the seed")
    flags.add_argument("--generations", type=int, default=60)
    flags.add_argument("--leaks", type=int, default=200)
    flags.add_argument("--innocents", type=int, default=1000)
    flags.add_argument("--marked", type=int, default=20, help="generations whose marks are tried")
    flags.add_argument("--drop", type=float, default=0.002, help="as [cluster] mark_drop")
    flags.add_argument("--steps", type=int, default=1000, help="of an unrelated training")
    flags.add_argument("--thousand", type=int, default=1000, help="0: no measurement of time")
    carry_out("tracing", flags, measure, rows)


if __name__ == "__main__":
    main()
