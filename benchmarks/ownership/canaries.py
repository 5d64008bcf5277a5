"""Canaries: which single changes of weights do 16 inputs show to whoever can only ask?

    python -m benchmarks.ownership.canaries --data FOLDER --seeds 0 1 2      # MNIST, minutes a seed
    python -m benchmarks.ownership.canaries --task digits --seeds 0          # a try

For each seed the task's base is trained, and its canaries are made with the default settings. Then
every sign (or --flips of them, drawn evenly) is flipped by itself, and --flips other bits, in the
network as it is served (held in its ranges). A flip is seen by labels if the class of any canary
changes; by scores, softmax rounded to two decimals or logits, if `g2d canary check` would say so.
Beside them as many random test images, the mean of five draws, judged alike. False alarms: the
untouched network, permuted and rescaled, in batches of one, three and all, with scores rounded to
four decimals. Writes results/canaries.json after each seed; a seed that is there already, with as
many flips, is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import command
from benchmarks.common.places import RESULTS
from benchmarks.common.results import record, save
from benchmarks.common.tables import shown
from g2d.core.seeds import seed_of
from g2d.protect.canaries.kept import Canaries, judge_labels, judge_scores
from g2d.protect.canaries.making import make_canaries
from g2d.protect.ranges import Ranges, hold_in_ranges
from g2d.settings import HardenSettings, Settings, build
from g2d.tasks.builtin import load_task
from g2d.tasks.inference import load_model, predict
from g2d.tasks.task import Task
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining
from g2d.weights.checkpoints import pack
from g2d.weights.symmetry import couplings, permute, rescale

DRAWS, LAYOUTS = 5, 50
BY = ("labels", "probabilities of two decimals", "logits")
BITS = {"sign": (31,), "exponent": tuple(range(23, 31)), "mantissa": tuple(range(23))}
SIGN = -(1 << 31)


@dataclass(frozen=True)
class Judged:
    """Inputs that are asked together: the canaries, or as many images drawn at random."""

    name: str
    canaries: Canaries

    def seen(self, logits: Tensor) -> tuple[bool, ...]:
        """Whether a change is seen, by each of `BY`."""
        rounded = logits.softmax(1).numpy().round(2)
        found = (
            judge_labels(self.canaries, logits.argmax(1).numpy()),
            judge_scores(self.canaries, rounded),
            judge_scores(self.canaries, logits.numpy()),
        )
        return tuple(bool(verdict.changed) for verdict in found)


def trained(task: Task, settings: Settings, seed: int) -> nn.Module:
    """The task's base."""
    p = settings.population
    model = task.model(seed)
    batches = Batches(task, task.splits.train, p.batch, torch.Generator().manual_seed(seed))
    HardenedTraining(task, HardenSettings(), batches, p.base_steps, seed=seed).run(model, p.rate)
    return load_model(task, model.state_dict())


def at_random(task: Task, model: nn.Module, like: Canaries, seed: int) -> Canaries:
    """As many random test images, judged by the same tolerance."""
    draws = torch.Generator().manual_seed(seed_of(seed, "images"))
    x = task.splits.test.sample(len(like), draws).x
    logits = predict(model, x).numpy()
    return Canaries(x.numpy(), logits, logits.argmax(1), like.tolerance)


def changes(
    model: nn.Module, bits: tuple[int, ...], count: int, draws: torch.Generator
) -> Iterator[None]:
    """Flip one bit after the other, each by itself; every one of them if there are so few."""
    tensors = [p for p in model.parameters() if p.dtype == torch.float32]
    sizes = [p.numel() * len(bits) for p in tensors]
    ends = torch.tensor(sizes).cumsum(0)
    for at in torch.randperm(int(ends[-1]), generator=draws)[:count].tolist():
        which = int(torch.searchsorted(ends, at, right=True))
        place = at - (int(ends[which - 1]) if which else 0)
        flat = tensors[which].detach().view(torch.int32).view(-1)
        index, bit = place // len(bits), bits[place % len(bits)]
        before = int(flat[index])
        flat[index] = before ^ (SIGN if bit == 31 else 1 << bit)
        yield
        flat[index] = before  # also where its range held it


def shares(model: nn.Module, asked: list[Judged], flips: int, seed: int) -> dict[str, Any]:
    """Share of flips that each set of inputs shows, by kind of bit."""
    x = torch.cat([torch.from_numpy(one.canaries.x) for one in asked])
    found: dict[str, Any] = {}
    for kind, bits in BITS.items():
        draws = torch.Generator().manual_seed(seed_of(seed, kind))
        rows = []
        for _ in changes(model, bits, flips, draws):
            parts = predict(model, x).split([len(one.canaries) for one in asked])
            rows.append([one.seen(part) for one, part in zip(asked, parts, strict=True)])
        means = np.array(rows, dtype=float).mean(0)  # (sets, ways)
        found[kind] = {"n": len(rows)}
        for name in ("canaries", "random"):
            own = [m for one, m in zip(asked, means, strict=True) if one.name == name]
            found[kind][name] = dict(zip(BY, np.mean(own, axis=0).tolist(), strict=True))
    return found


def false_alarms(task: Task, model: nn.Module, kept: Canaries, seed: int) -> dict[str, int]:
    """Alarms of an untouched network, and how often it was asked."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chain, x = couplings(model, task.splits.gate.x[:8]), torch.from_numpy(kept.x)
    draws, alarms, asked = torch.Generator().manual_seed(seed_of(seed, "layouts")), 0, 0
    for _ in range(LAYOUTS):
        moved = permute(state, chain, [torch.randperm(c.units, generator=draws) for c in chain])
        by = [(4 * torch.rand(c.units, generator=draws) - 2).exp2() for c in chain]
        other = load_model(task, rescale(moved, chain, by))
        for batch in (1, 3, len(x)):
            logits = predict(other, x, batch).numpy()
            for scores in (logits, logits.round(4)):
                alarms += bool(judge_scores(kept, scores).changed)
                alarms += bool(judge_labels(kept, logits.argmax(1)).changed)
                asked += 2
    return {"alarms": alarms, "asked": asked}


def one_seed(task: Task, settings: Settings, seed: int, flips: int) -> dict[str, Any]:
    """Everything of one seed."""
    model, s = trained(task, settings, seed), settings.canaries
    began = time.process_time()
    made = make_canaries(task, model, s.count, s.steps, seed)
    took = time.process_time() - began
    kept = Canaries.from_bytes(pack(made))
    alarms = false_alarms(task, model, kept, seed)
    asked = [Judged("canaries", kept)]
    asked += [Judged("random", at_random(task, model, kept, seed + 1000 * i)) for i in range(DRAWS)]
    hold_in_ranges(model, Ranges.of(model.state_dict()))
    accuracy = float(
        (predict(model, task.splits.test.x).argmax(1) == task.splits.test.y).float().mean()
    )
    return {
        "accuracy": accuracy, "parameters": sum(p.numel() for p in model.parameters()),
        "kept": len(kept), "cpu_seconds": took, "tolerance": kept.tolerance,
        "false": alarms, "flips": shares(model, asked, flips, seed),
    }  # fmt: skip


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table of targets."""
    seeds = list(result["seeds"].values())

    def both(kind: str, by: str) -> str:
        own, random = (
            shown([one["flips"][kind][name][by] for one in seeds])
            for name in ("canaries", "random")
        )
        return f"{own}; random images {random}"

    table = [
        [f"single sign flips seen, {by}, %", "≥ 60" if by == "labels" else "", both("sign", by)]
        for by in BY
    ]
    for kind in ("exponent", "mantissa"):
        table += [[f"flips of {kind} bits seen, {by}, %", "", both(kind, by)] for by in BY]
    false = [sum(one["false"][key] for one in seeds) for key in ("alarms", "asked")]
    table.append(["false alarms", "0", f"{false[0]} of {false[1]:,}"])
    seconds = shown([one["cpu_seconds"] for one in seeds], 2, 1.0)
    return [*table, ["CPU seconds to make them", "", seconds]]


def measure(given: argparse.Namespace, _: Path) -> dict[str, Any]:
    """Measure the seeds that are not there yet."""
    out = given.out or RESULTS / "canaries.json"
    result: dict[str, Any] = {
        "record": record(given), "task": given.task, "most_flips": given.flips, "seeds": {},
    }  # fmt: skip
    if out.exists():
        old = json.loads(out.read_text())
        if (old["task"], old.get("most_flips")) == (given.task, given.flips):
            result["seeds"] = old["seeds"]
    task = load_task(given.task, given.data)
    settings = build(
        Settings, {k: dict(v) for k, v in task.settings.items()}, "the task", stored=True
    )
    for seed in given.seeds:
        if str(seed) not in result["seeds"]:
            result["seeds"][str(seed)] = one_seed(task, settings, seed, given.flips)
            save(out, result)
    return result


def main() -> None:
    """Measure, keep and print."""
    flags = command.parser(__doc__)
    flags.add_argument("--task", default="mnist", choices=("mnist", "digits"))
    flags.add_argument("--data", default="", help="folder of MNIST")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--flips", type=int, default=20_000, help="of each kind of bit, at most")
    command.carry_out("canaries", flags, measure, rows)


if __name__ == "__main__":
    main()
