"""The judge of the table that decides: every attack on one chain of networks, on test examples.

The attacker has read the networks before the targets, sorts them by basin, crafts, and submits; all
figures stand beside the same proposals on networks that they were crafted on ("had it stayed").
What flips is kept image by image, so that two rows can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from g2d.attacks.eot import Tricks, eot_pgd
from g2d.attacks.pgd import project
from g2d.core.seeds import seed_of
from g2d.core.types import Logits, State
from g2d.redteam.threats.basins.knowledge import Basin, recognised, sort_states
from g2d.redteam.threats.basins.threat import TRICKS
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.task import Task

QUERIES, DRAWS, LOOKED_AT, SINGLES = 64, 4, 500, 16

Flips = list[str]
"""For each target, which images its clean answer is right on and an attack flips: hex digits."""


@dataclass(frozen=True)
class Budget:
    """How much an attacker spends: images, steps of the joint attacks and of the single ones."""

    images: int = 200
    steps: int = 50
    single_steps: int = 20


class Judge:
    """Judges chains of one task: the same images and the same attacker for each."""

    def __init__(self, task: Task, seed: int, budget: Budget) -> None:
        self.task, self.seed, self.budget = task, seed, budget
        self.split = task.splits.test.sample(budget.images, self._source("examples"))
        self.own = task.splits.guide.sample(LOOKED_AT, self._source("sorting"))
        self.asked = task.splits.guide.x[:QUERIES]
        images = task.splits.test.x.dim() == 4
        self.tricks = [one for one in TRICKS if images or not one.for_images]
        # A task's attacker moves what its budget allows; without one, any input in the ball.
        self.reach = task.reach

    def _source(self, *name: object) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, "judge", *name))

    def model(self, state: State) -> nn.Module:
        """A frozen model."""
        return load_model(self.task, state)

    def craft(
        self, draw: Callable[[], Sequence[Logits]], steps: int, tricks: Tricks, *name: object
    ) -> Tensor:
        """Propose an attack on what `draw` gives at each step."""
        return eot_pgd(
            draw, self.split.x, self.split.y, eps=self.task.eps, steps=steps,
            bounds=self.reach, generator=self._source(*name), tricks=tricks,
        )  # fmt: skip

    def on_basin(self, basin: Basin, tricks: Tricks, *name: object) -> Tensor:
        """Propose a joint attack on a basin's networks and Dirichlet means of them."""
        draw = basin.drawing(DRAWS, self._source("soups", *name))
        return self.craft(draw, self.budget.steps, tricks, *name)

    def flips(self, model: Logits, made: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Which images (n,) the model is right on, and any of the proposals flips; and the first.

        Scored anew: projected into the ball, run by g2d's own forward pass.
        """
        right = predict(model, self.split.x).argmax(1) == self.split.y
        flipped = torch.zeros_like(right)
        for proposed in made:
            inside = project(proposed, self.split.x, self.task.eps, self.reach)
            flipped |= predict(model, inside).argmax(1) != self.split.y
        return right, right & flipped

    def __call__(
        self, known: Sequence[State], targets: Sequence[State], owner: Sequence[State] = ()
    ) -> dict[str, Any]:
        """All columns of a row.

        Args:
            known: networks that the attacker has read, oldest first. targets: those after them.
            owner: proposals for the first target, for an attacker who has everything but the
                randomness.
        """
        read = [self.model(state) for state in known]
        later = [self.model(state) for state in targets]
        stayed = read[-len(later) :]
        basins = sort_states(self.task, read, known, self.own)
        best = [self.on_basin(b, TRICKS[0], "basin", i) for i, b in enumerate(basins)]
        others = [
            self.on_basin(basin, tricks, "basin", i, j)
            for i, basin in enumerate(basins)
            for j, tricks in enumerate(self.tricks[1:], 1)
        ]
        plain = Tricks("cross-entropy", 0.75)
        singles = [
            self.craft(lambda m=m: [m], self.budget.single_steps, plain, "single", i)  # type: ignore[misc]
            for i, m in enumerate(read[-SINGLES:])
        ]
        sixteen = self.craft(
            lambda: read[-SINGLES:], self.budget.single_steps, plain, "joint-16"
        )  # fmt: skip
        ways: dict[str, Callable[[Logits], Sequence[Tensor]]] = {
            "last": lambda _: singles[-1:],
            "joint_16": lambda _: [sixteen],
            "picked": lambda m: [best[recognised(m, basins, self.asked)]],
            "basins": lambda _: best,
            "tries": lambda _: [*best, *others, sixteen],
        }
        row: dict[str, Any] = {
            "known": len(known), "targets": len(later), "sorted_into": len(basins),
            "submissions": len(best) + len(others) + 1,
            "clean": [accuracy(m, self.task.splits.test) for m in later],
            "worst_16": [max(self.rate(m, [made]) for made in singles) for m in later],
            "worst_16_stayed": [max(self.rate(m, [made]) for made in singles) for m in stayed],
            "white_box": [self.rate(m, self.white_box(m)) for m in later],
        }  # fmt: skip
        for name, way in ways.items():
            found = [self.flips(m, way(m)) for m in later]
            row[name] = [int(f.sum()) / max(1, int(r.sum())) for r, f in found]
            row[f"{name}_flips"] = [to_hex(f) for _, f in found]
            row[f"{name}_stayed"] = [self.rate(m, way(m)) for m in stayed]
        if owner:
            row["owner"] = self.rate(later[0], [self.by_owner(owner)])
            row["proposals"] = len(owner)
        return row

    def by_owner(self, owner: Sequence[State]) -> Tensor:
        """An attack on the owner's proposals, `DRAWS` of them at each step (EOT)."""
        drawn, models = self._source("owner"), [self.model(state) for state in owner]

        def draw() -> list[nn.Module]:
            at = torch.randperm(len(models), generator=drawn)[:DRAWS].tolist()
            return [models[i] for i in at]

        return self.craft(draw, self.budget.steps, TRICKS[0], "owner")

    def rate(self, model: Logits, made: Sequence[Tensor]) -> float:
        """ASR: the share of rightly classified images that any of the proposals flips."""
        right, flipped = self.flips(model, made)
        return int(flipped.sum()) / max(1, int(right.sum()))

    def white_box(self, model: Logits) -> list[Tensor]:
        """Attacks on the target itself: the union of two losses."""
        kinds = (Tricks("probability", 1.0), Tricks("dlr", 0.75))
        return [
            self.craft(lambda: [model], self.budget.steps, tricks, "white-box", i)
            for i, tricks in enumerate(kinds)
        ]


def to_hex(flags: Tensor) -> str:
    """Bools (n,) as hex digits, the first one the highest bit of n."""
    bits = "".join("1" if flag else "0" for flag in flags.tolist())
    return f"{int(bits, 2):0{(len(bits) + 3) // 4}x}"


def from_hex(text: str, count: int) -> list[bool]:
    """`to_hex` back."""
    return [bit == "1" for bit in f"{int(text, 16):0{count}b}"]
