"""Query attacks: how many are seen before they succeed, and how often are benign clients accused?

    python -m benchmarks.monitoring.detection --data FOLDER --seeds 0 1 2    # MNIST, 20 min a seed
    python -m benchmarks.monitoring.detection --task digits --seeds 0 --images 10 --queries 300 \\
        --requests 5000                                                     # a try

For each seed the task's base is trained. Detection: every test image is attacked from an account of
its own, all on one monitor that has seen benign use before, beside Blacklight as published. "Before
success" is a first alarm about the account before the first input in the ball that is
misclassified, or an alarm where there is none. Nothing can be seen in a first query, and what tells
a search from an edit only in two that follow: accounts that win within so few are counted, too, and
the others by themselves. Attackers: Square, HopSkipJump, Square whose queries
are jittered (even noise of a quarter of eps), OARS that holds a copy of the monitor's detector of
near-duplicates with another salt, and the same that sends what collides all the same. Extraction:
Copycat and Knockoff on natural images, and Jacobian augmentation of 150 images, against other
clients' plain use. Benign: --requests inputs from each stream of `streams`, each on a monitor of
its own; Blacklight is asked the first --rival of each, and its flagged inputs are counted. Writes
results/detection.json after each part; what is there is not measured again, and what other flags
measured is not mixed in.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import command
from benchmarks.common.places import RESULTS
from benchmarks.common.results import hold_to, record, save
from benchmarks.common.tables import NOTHING, mean
from benchmarks.monitoring.blacklight import Blacklight
from benchmarks.monitoring.drift import most
from benchmarks.monitoring.policies_tables import rated
from benchmarks.monitoring.streams import STREAMS
from benchmarks.monitoring.watching import Copy, Watch
from benchmarks.ownership.canaries import trained
from g2d.attacks.extraction import extract
from g2d.attacks.oars import oars_square
from g2d.attacks.query import Api, clock_square, hop_skip_jump
from g2d.core.seeds import seed_of
from g2d.redteam.query_log import QueryLog
from g2d.settings import Settings, build
from g2d.tasks.builtin import load_task
from g2d.tasks.inference import predict
from g2d.tasks.task import Task

COPIERS = ("copycat", "knockoff", "jacobian")
ATTACKS = ("square", "hop-skip-jump", "square, jittered", "OARS", "OARS, insisting")
DETECTORS = ("queries", "blacklight")
EARLY = 3
"""Queries of an account within which no two differences can have been seen before the last."""

SIZES = ("task", "images", "oars", "warm", "queries", "requests", "rival", "copied")
"""Arguments that decide what a result says."""


Found = Mapping[str, Any]


def jittered(api: Api, by: float, draws: torch.Generator) -> Api:
    """An API that is asked about every input with even noise on it."""

    def asked(x: Tensor, lanes: Tensor) -> Tensor:
        noise = by * (2 * torch.rand(x.shape, generator=draws) - 1)
        return api((x + noise).clamp(0, 1), lanes)

    return asked


def search(name: str, task: Task, log: QueryLog, seed: int) -> None:
    """Carry an attack out."""
    draws = torch.Generator().manual_seed(seed_of(seed, name))
    x, y, eps, api = log.split.x, log.split.y, task.eps, log
    if name == "hop-skip-jump":
        hop_skip_jump(api, x, y, seed=seed, bounds=(0.0, 1.0), classes=task.classes)
    elif name.startswith("OARS"):
        oars_square(
            api, Copy(task, seed, task.splits.train.x[:256]), x, y, eps=eps, budget=log.budget,
            generator=draws, insist="insist" in name,
        )  # fmt: skip
    else:
        # Jitter of what lies in the ball would leave it: the search keeps to a smaller one.
        by = eps / 4 if "jitter" in name else 0.0
        asked = jittered(api, by, draws) if by else api
        clock_square(asked, x, y, eps=eps - by, budget=log.budget, generator=draws)


def warmed(task: Task, model: nn.Module, seed: int, inputs: int) -> Watch:
    """A monitor that has seen plain use, as one has that has served for a while."""
    watch, x = Watch(task, seed), task.splits.train.x.numpy()
    draws = np.random.default_rng(seed_of(seed, "warm"))
    seen = 0
    for some, client in STREAMS["plain"](x, draws):
        if seen >= inputs:
            break
        watch.see(some, predict(model, torch.from_numpy(some)).numpy(), client)
        seen += len(some)
    return watch


def detection(
    task: Task, model: nn.Module, seed: int, name: str, given: argparse.Namespace, warm: Watch
) -> dict[str, Any]:
    """One attack, seen by the monitor and by Blacklight."""
    draws = torch.Generator().manual_seed(seed_of(seed, "images"))
    split = task.splits.test.sample(min(4 * given.images, len(task.splits.test)), draws)
    images = min(given.images, given.oars) if name.startswith("OARS") else given.images
    right = (predict(model, split.x).argmax(1) == split.y).nonzero()[:images, 0]
    split = split.take(right)
    watch, rival = copy.deepcopy(warm), Blacklight(seed_of(seed, "rival").to_bytes(8, "big"))
    seen = {detector: torch.zeros(len(split), dtype=torch.long) for detector in DETECTORS}

    def answer(x: Tensor, lanes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        scores = predict(model, x)
        for i, (lane, number) in enumerate(zip(lanes.tolist(), numbers.tolist(), strict=True)):
            one, said = x[i : i + 1].numpy(), scores[i : i + 1].numpy()
            if not seen["queries"][lane] and watch.see(one, said, f"attacker-{lane}"):
                seen["queries"][lane] = number
            if not seen["blacklight"][lane] and rival.attacked(one):
                seen["blacklight"][lane] = number
        return scores, torch.zeros_like(numbers)

    log = QueryLog(answer, split, eps=task.eps, budget=given.queries, bounds=task.bounds)
    search(name, task, log, seed)
    early = (log.first > 0) & (log.first <= EARLY)
    found: dict[str, Any] = {
        "lanes": len(split), "won": int((log.first > 0).sum()), "early": int(early.sum()),
    }  # fmt: skip
    for detector, at in seen.items():
        before = (at > 0) & ((log.first == 0) | (at < log.first))
        found[detector] = {
            "before": int(before.sum()),
            "before_later": int((before & ~early).sum()),
            "undetected_wins": int(((log.first > 0) & ~before).sum()),
            "median": float(at[at > 0].double().median()) if bool((at > 0).any()) else None,
        }
    return found


def augmented(api: Callable[[Tensor], Tensor], thief: nn.Module, x: Tensor, queries: int) -> None:
    """Jacobian augmentation (Papernot et al. 2017, arXiv 1602.02697)."""
    optimizer = torch.optim.Adam(thief.parameters(), 2e-3)
    asked, known = x, api(x).argmax(1)
    while len(asked) < queries:
        thief.train()
        for part in torch.randperm(len(asked)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(thief(asked[part]), known[part]).backward()
            optimizer.step()
        thief.eval()
        leaf = asked.clone().requires_grad_(True)
        scores = thief(leaf).gather(1, known[:, None]).sum()
        (slope,) = torch.autograd.grad(scores, leaf)
        made = (asked + 0.1 * slope.sign()).clamp(0, 1)[: queries - len(asked)]
        asked, known = torch.cat([asked, made]), torch.cat([known, api(made).argmax(1)])


def extraction(
    task: Task, model: nn.Module, seed: int, attack: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Whether a copier is seen, and how many benign clients of plain use are accused before."""
    watch, draws = Watch(task, seed), torch.Generator().manual_seed(seed_of(seed, "copying"))
    benign = task.splits.train.sample(min(8000, len(task.splits.train)), draws).x
    said = predict(model, benign).numpy()
    for i in range(len(benign)):
        watch.see(benign[i : i + 1].numpy(), said[i : i + 1], f"benign-{i % 10}")
    own, asked, at = task.splits.test.x, 0, 0

    def api(x: Tensor) -> Tensor:
        nonlocal asked, at
        scores = predict(model, x)
        for i in range(len(x)):
            asked += 1
            seen = watch.see(x[i : i + 1].numpy(), scores[i : i + 1].numpy(), "copier")
            at = at or asked * seen
        return scores

    thief = task.model(seed + 1)
    if attack == "jacobian":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            augmented(api, thief, own[:150], given.copied)
    else:
        extract(
            api, thief, own, attack=attack, queries=given.copied, classes=task.classes,
            bounds=task.bounds, seed=seed, epochs=1,
        )  # fmt: skip
    accused = {who for _, who, _ in watch.alarms if who.startswith("benign")}
    return {"asked": asked, "at": at, "benign_accused": len(accused)}


def benign(task: Task, model: nn.Module, seed: int, name: str, given: Any) -> dict[str, Any]:
    """One stream on a monitor of its own."""
    watch, rival = Watch(task, seed), Blacklight(b"benign")
    x = task.splits.test.x.numpy()
    draws = np.random.default_rng(seed_of(seed, "stream", name))
    inputs = flagged = asked = 0
    spent = {"queries": 0.0, "blacklight": 0.0}
    for some, client in islice(STREAMS[name](x, draws), given.requests):
        if inputs >= given.requests:
            break
        scores = predict(model, torch.from_numpy(np.ascontiguousarray(some))).numpy()
        began = time.process_time()
        watch.see(some, scores, client)
        spent["queries"] += time.process_time() - began
        inputs += len(some)
        if asked < given.rival:
            began = time.process_time()
            flagged += sum(rival.attacked(one) for one in some)
            spent["blacklight"] += time.process_time() - began
            asked += len(some)
    return {
        "inputs": inputs, "alarms": len(watch.alarms), "flagged": flagged, "asked": asked,
        "rules": [rule for _, _, rule in watch.alarms][:5],
        "status": dict(watch.monitor.status()),
        "microseconds": 1e6 * spent["queries"] / inputs,
        "microseconds_blacklight": 1e6 * spent["blacklight"] / max(1, asked),
    }  # fmt: skip


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Measure what is not there yet."""
    out = given.out or RESULTS / "detection.json"
    result: dict[str, Any] = {"record": record(given), "task": given.task, "seeds": {}}
    if out.exists():
        old = json.loads(out.read_text())
        result |= {key: old[key] for key in ("seeds", "sizes") if key in old}
    hold_to(result, {name: getattr(given, name) for name in SIZES}, out)
    task = load_task(given.task, given.data)
    tables = {k: dict(v) for k, v in task.settings.items()}
    settings = build(Settings, tables, "the task", stored=True)
    for seed in given.seeds:
        parts = result["seeds"].setdefault(str(seed), {})
        missing = [(kind, name) for kind, name in ORDER if name not in parts.get(kind, {})
                   and any(part in f"{kind}, {name}" for part in given.parts or ("",))]  # fmt: skip
        if not missing:
            continue
        one = Seed(task, trained(task, settings, seed), seed, given)
        for kind, name in missing:
            there = parts.setdefault(kind, {})
            began = time.process_time()
            there[name] = one.measured(kind, name)
            there[name]["cpu_seconds"] = round(time.process_time() - began, 1)
            save(out, result)
            print(f"seed {seed}, {kind}, {name}: {there[name]['cpu_seconds']} CPU s", flush=True)
    return result


PARTS = {"attacks": ATTACKS, "benign": tuple(STREAMS), "extraction": COPIERS}
ORDER = sorted(  # OARS takes as long as all the rest
    ((kind, name) for kind, names in PARTS.items() for name in names),
    key=lambda part: part[1].startswith("OARS"),
)


class Seed:
    """One seed's network, and what is asked of it."""

    def __init__(self, task: Task, model: nn.Module, seed: int, given: argparse.Namespace) -> None:
        self._about, self._given = (task, model, seed), given

    @functools.cached_property
    def _warm(self) -> Watch:
        return warmed(*self._about, self._given.warm)

    def measured(self, kind: str, name: str) -> dict[str, Any]:
        """One part."""
        if kind == "attacks":
            return detection(*self._about, name, self._given, self._warm)
        return (extraction if kind == "extraction" else benign)(*self._about, name, self._given)


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets, of what is there."""
    seeds = list(result["seeds"].values())
    table = []
    for kind, of in (("attacks", _attacked), ("benign", _asked), ("extraction", _copied)):
        for name in PARTS[kind]:
            if each := [one[kind][name] for one in seeds if name in one.get(kind, {})]:
                table += of(name, each)
    if streams := [stream for one in seeds for stream in one.get("benign", {}).values()]:
        alarms, inputs = (sum(stream[key] for stream in streams) for key in ("alarms", "inputs"))
        told = f"{alarms} in {inputs:,} inputs; at most {most(alarms, inputs)}"
        table.append(["benign, all streams: alarms", "≤ 1 in 1,000,000", told])
    if costs := [one["benign"]["plain"] for one in seeds if "plain" in one.get("benign", {})]:
        ours, rival = (mean([one[key] for one in costs])
                       for key in ("microseconds", "microseconds_blacklight"))  # fmt: skip
        told = f"{ours:.0f} µs; Blacklight {rival:.0f} µs"
        table.append(["CPU time of an input of plain use", "", told])
    return table


def _attacked(name: str, each: Sequence[Found]) -> list[list[str]]:
    """One attack over all accounts of all seeds."""

    def total(key: str, detector: str = "") -> int:
        return sum((one[detector] if detector else one)[key] for one in each)

    lanes, wanted = total("lanes"), "≥ 95" if name in ATTACKS[:2] else ""

    def both(key: str, of: int) -> str:
        ours, rival = (rated(total(key, detector), of) for detector in DETECTORS)
        return f"{ours}; Blacklight {rival}"

    return [
        [f"{name}: seen before success, %", wanted, f"{both('before', lanes)}; of {lanes}"],
        [f"{name}: won within {EARLY} queries, %", "", rated(total("early"), lanes)],
        [f"{name}: of the others seen before success, %", "",
         both("before_later", lanes - total("early"))],
        [f"{name}: won, %; before it was seen, %", "",
         f"{rated(total('won'), lanes)}; {both('undetected_wins', lanes)}"],
    ]  # fmt: skip


def _asked(name: str, each: Sequence[Found]) -> list[list[str]]:
    """One benign stream of all seeds."""
    alarms, inputs, flagged, asked = (
        sum(one[key] for one in each) for key in ("alarms", "inputs", "flagged", "asked")
    )
    told = f"{alarms} in {inputs:,} inputs; Blacklight flags {flagged:,} of {asked:,}"
    what = f"benign, {name.replace('_', ' ')}: alarms"
    return [[what, "≤ 1 in 1,000,000", told]]


def _copied(name: str, each: Sequence[Found]) -> list[list[str]]:
    """One copier of all seeds."""
    seen = ", ".join(f"{one['at']:,}" if one["at"] else NOTHING for one in each)
    accused = sum(one["benign_accused"] for one in each)
    what = f"{name}: seen after so many of {each[0]['asked']:,} queries"
    return [[what, "", f"{seen}; benign clients accused: {accused}"]]


def main() -> None:
    """Measure, keep and print."""
    flags = command.parser(__doc__)
    flags.add_argument("--task", default="mnist", choices=("mnist", "digits"))
    flags.add_argument("--data", default="", help="folder of MNIST")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--images", type=int, default=100, help="attacked, each by an account")
    flags.add_argument("--oars", type=int, default=10, help="of them attacked by OARS")
    flags.add_argument("--warm", type=int, default=100_000, help="benign inputs before attacks")
    flags.add_argument("--queries", type=int, default=5000, help="of an account, at most")
    flags.add_argument("--requests", type=int, default=80_000, help="inputs of a benign stream")
    flags.add_argument("--rival", type=int, default=2_000, help="of them shown to Blacklight")
    flags.add_argument("--copied", type=int, default=3000, help="queries of an extraction")
    flags.add_argument("--parts", nargs="+", help="some parts, by a piece of `kind, name`")
    command.carry_out("detection", flags, measure, rows)


if __name__ == "__main__":
    main()
