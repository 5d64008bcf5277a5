"""New networks from old basins: how few steps does one need that stored attacks do not know?

    python -m benchmarks.generation.renewal --data ../shared/data/mnist

Exploration on the *gate* split of MNIST, so that nothing is chosen on test data; one population,
that of `runs/basins-<seed>` (`python -m benchmarks.generation.basins` makes it). A network begins
at the soup of a basin: its first layer stays, the rest is shrunk and perturbed,

    theta <- share * theta + sqrt(1 - share^2) * fresh        (Ash & Adams 2020, arXiv 1910.08475)

and is trained on clean data, on attacks that the population keeps, and on the attacks of what was
exposed before; `soft` mixes the labels with the soups' mean answer. Nine are made in a chain, the
last three are judged by attacks on those before them. Rows that are in the JSON are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.places import RESULTS, RUNS
from benchmarks.common.results import hardware, save
from benchmarks.common.tables import mean
from g2d import load_task
from g2d.attacks.eot import Tricks, eot_pgd
from g2d.attacks.pools import craft_pool, unpack_pool
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.redteam.scoring import any_of, attack_rate
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.splits import Split
from g2d.training.basins import midpoint
from g2d.training.loop import Batches, schedule
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack

CHAIN, JUDGED, MEMBERS, POOL, BATCH, IMAGES = 9, 3, 32, 750, 64, 500


@dataclass(frozen=True)
class Way:
    """One row: how a network begins, and how it is trained.

    Attributes:
        share: how much of the soup the layers after the first begin with; 0: fresh. keep: the first
            layer is the soup's, and stays. soft: share of the soups' answers in the labels.
    """

    share: float
    steps: int
    soft: float = 0.5
    keep: bool = True

    @property
    def name(self) -> str:
        """The row's name."""
        first = "first layer kept" if self.keep else "nothing kept"
        return f"share {self.share:g}, {first}, {self.steps} steps, soft {self.soft:g}"


WAYS = (
    Way(0.0, 300, 0.0, keep=False), Way(0.0, 300, 0.0), Way(0.0, 300),
    Way(0.5, 300), Way(0.5, 600), Way(0.7, 150), Way(0.7, 300), Way(0.7, 600), Way(1.0, 300),
    Way(0.7, 1200),
)  # fmt: skip


class Grower:
    """The population's soups and stored attacks, and networks grown from them."""

    def __init__(self, data: str, seed: int) -> None:
        self.task, self.seed = load_task("mnist", data), seed
        with Vault.open(RUNS / f"basins-{seed}") as vault:
            kept = sorted(vault.entries("member"), key=lambda entry: entry.index)[-MEMBERS:]
            states = [(int(e.info["basin"]), unpack(vault.read(e))) for e in kept]
            pools = [unpack_pool(vault.read(e, "attacks"), self.task.splits.train) for e in kept]
        self.pool = Split(torch.cat([p.x for p in pools]), torch.cat([p.y for p in pools]))
        self.soups = [_mean([s for b, s in states if b == basin]) for basin in range(6)]
        self.teachers = [load_model(self.task, soup) for soup in self.soups]
        self.answers = self.taught(self.pool.x)
        self.first = next(iter(self.soups[0])).rpartition(".")[0] + "."

    @torch.no_grad()
    def taught(self, x: Tensor) -> Tensor:
        """The soups' mean probabilities (n, classes) on inputs (n, ...)."""
        parts = [predict(teacher, x).softmax(1) for teacher in self.teachers]
        return torch.stack(parts).mean(0)

    def start(self, way: Way, index: int) -> nn.Module:
        """A network to begin with, what stays frozen."""
        soup = self.soups[index % len(self.soups)]
        model = self.task.model(seed_of(self.seed, "renewal", index))
        rest = (1 - way.share**2) ** 0.5
        model.load_state_dict({
            name: soup[name] if way.keep and name.startswith(self.first)
            else way.share * soup[name] + rest * fresh
            for name, fresh in model.state_dict().items()
        })  # fmt: skip
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (way.keep and name.startswith(self.first)))
        return model

    def grow(self, way: Way, index: int, exposed: list[Split]) -> nn.Module:
        """Train the `index`-th network of a chain against what was exposed before it."""
        model = self.start(way, index).train()
        g = torch.Generator().manual_seed(seed_of(self.seed, "renewal", way.name, index))
        clean = Batches(self.task, self.task.splits.train, BATCH, g)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
        for step in range(way.steps):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * schedule(step, way.steps, 1 + way.steps // 8)
            x, y = clean.draw()
            at = torch.randint(len(self.pool), (BATCH,), generator=g)
            parts = [
                (x, way.soft * self.taught(x) + (1 - way.soft) * F.one_hot(y, 10)),
                (self.pool.x[at], self._labels(way, at)),
            ]
            share = max(1, BATCH // len(exposed))
            seen = [pool.take(torch.randint(len(pool), (share,), generator=g)) for pool in exposed]
            stale = torch.cat([split.x for split in seen]), torch.cat([split.y for split in seen])
            parts.append((stale[0], F.one_hot(stale[1], 10).float()))
            logits = model(torch.cat([x for x, _ in parts])).split([len(x) for x, _ in parts])
            losses = [F.cross_entropy(z, t) for z, (_, t) in zip(logits, parts, strict=True)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
        return model.eval().requires_grad_(False)

    def _labels(self, way: Way, at: Tensor) -> Tensor:
        """Labels of stored attacks: half of what is soft on clean data, for soups err on some."""
        hard = F.one_hot(self.pool.y[at], 10).float()
        return way.soft / 2 * self.answers[at] + (1 - way.soft / 2) * hard

    def expose(self, model: nn.Module, index: int) -> Split:
        """What a rotation keeps of an exposed network: attacks on it."""
        seed, train = seed_of(self.seed, "renewal", "expose", index), self.task.splits.train
        x, at = craft_pool(self.task, model, train, POOL, 7, seed)
        return Split(x, train.y[at])

    def measure(self, way: Way) -> dict[str, object]:
        """Grow a chain, attack its last networks through those before them."""
        models: list[nn.Module] = [self.teachers[0]]
        exposed, spent = [self.expose(models[0], 0)], 0.0
        for index in range(1, CHAIN + 1):
            began = time.process_time()
            models.append(self.grow(way, index, exposed))
            exposed.append(self.expose(models[-1], index))
            spent += time.process_time() - began
        return asdict(way) | {"cpu_seconds": round(spent / CHAIN, 2)} | self.judge(models)

    def judge(self, models: list[nn.Module]) -> dict[str, object]:
        """Clean accuracy and ASR on the gate split, mean over the last networks of a chain."""
        task, gate = self.task, self.task.splits.gate
        split = gate.sample(IMAGES, torch.Generator().manual_seed(0))
        known, judged = models[:-JUDGED], models[-JUDGED:]

        def craft(networks: list[nn.Module]) -> Tensor:
            return eot_pgd(
                lambda: networks, split.x, split.y, eps=task.eps, steps=40, bounds=task.bounds,
                generator=torch.Generator().manual_seed(0), tricks=Tricks("probability", 1.0),
            )  # fmt: skip

        def asr(model: nn.Module, made: Tensor) -> float:
            return attack_rate(model, made, split, task.eps, task.bounds).value

        single, joint = [craft([model]) for model in known], craft(known)
        middles = [
            load_model(task, midpoint(judged[0].state_dict(), k.state_dict())) for k in known
        ]
        return {
            "clean": mean([accuracy(model, gate) for model in judged]),
            "white_box": mean([asr(model, craft([model])) for model in judged]),
            "joint": mean([asr(model, joint) for model in judged]),
            "joint_stayed": mean([asr(model, joint) for model in known[-JUDGED:]]),
            "worst": mean([max(asr(model, made) for made in single) for model in judged]),
            "tries": mean([asr(m, any_of(m, [*single, joint], split)) for m in judged]),
            "midpoint": max(accuracy(model, gate) for model in middles),
        }


def _mean(states: list[State]) -> State:
    return {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}


def main() -> None:
    """Measure every way that the seed's JSON does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of MNIST's idx files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", type=int, nargs="+", default=list(range(len(WAYS))))
    args = parser.parse_args()
    torch.set_num_threads(1)
    grower = Grower(args.data, args.seed)
    for place in args.ways:
        path = RESULTS / "renewal" / f"mnist-seed{args.seed}-{place}.json"
        if path.exists() and json.loads(path.read_text())["row"]["name"] == WAYS[place].name:
            continue
        row = {"name": WAYS[place].name} | grower.measure(WAYS[place])
        save(path, {"seed": args.seed, "hardware": hardware(), "row": row})
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
