"""How benchmarks/robust/ judges networks: every attack, on the same test images of a seed.

Attacks propose; `survivors` clips every proposal to the ball and scores it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2d.attacks import apgd, autoattack, pgd, project
from g2d.attacks.autoattack import square
from g2d.core.seeds import seed_of
from g2d.core.types import Logits
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

SWEEP = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6)


def bits(alive: Tensor) -> str:
    """One character an image, (n,) bool: intervals of differences pair images by them."""
    return "".join(str(int(b)) for b in alive.tolist())


class Judge:
    """The examples of a seed and the attacks on them; `many` begins with `examples`."""

    def __init__(self, task: Task, examples: Split, many: Split, seed: int) -> None:
        self.task, self.examples, self.many, self.seed = task, examples, many, seed

    def survivors(self, model: Logits, proposed: Tensor, split: Split | None = None) -> Tensor:
        """Which examples are classified correctly, clean and under attack, (n,) bool."""
        x, y = (split or self.examples).x, (split or self.examples).y
        inside = project(proposed, x, self.task.eps, self.task.bounds)
        return (predict(model, x).argmax(1) == y) & (predict(model, inside).argmax(1) == y)

    def alive(self, target: Logits, proposals: Sequence[Tensor]) -> Tensor:
        """Which examples survive every one of some proposals, (n,) bool."""
        return torch.stack([self.survivors(target, one) for one in proposals]).all(0)

    def clean(self, model: Logits) -> float:
        """Accuracy on the whole test split."""
        test = self.task.splits.test
        return float((predict(model, test.x).argmax(1) == test.y).double().mean())

    def autoattack(self, model: Logits, split: Split) -> Tensor:
        """What survives AutoAttack, standard version, (n,) bool."""
        x, y, bounds = split.x, split.y, self.task.bounds
        found = autoattack(model, x, y, eps=self.task.eps, seed=self.seed, bounds=bounds)
        return self.survivors(model, found, split)

    def judge(
        self, models: Sequence[nn.Module], cpu: float, split: Split | None = None
    ) -> dict[str, Any]:
        """Clean accuracy on the whole test split, AutoAttack on the examples, or on a split."""
        alive = [self.autoattack(model, split or self.examples) for model in models]
        each = [float(one.double().mean()) for one in alive]
        clean = [self.clean(model) for model in models]
        return {
            "clean": sum(clean) / len(clean),
            "clean_worst": min(clean),
            "autoattack": sum(each) / len(each),
            "autoattack_worst": min(each),
            "autoattack_each": each,
            "survivors": [bits(one) for one in alive],
            "networks": len(models),
            "cpu_seconds": cpu,
            "parameters": sum(p.numel() for p in models[0].parameters()),
            "images": len(alive[0]),
        }

    def crafted(self, known: Sequence[Logits]) -> list[Tensor]:
        """Attack several networks jointly, three ways of 40 steps: what carries over to others.

        PGD with momentum, APGD on cross-entropy, APGD on the difference of logits ratio.
        """
        x, y, eps, bounds = self.examples.x, self.examples.y, self.task.eps, self.task.bounds
        draws = torch.Generator().manual_seed(seed_of(self.seed, "joint"))
        momentum = pgd(
            known, x, y, eps=eps, steps=40, generator=draws, bounds=bounds, decay=1.0,
            step_size=eps / 4,
        )  # fmt: skip
        ce, dlr = (
            apgd(known, x, y, eps=eps, steps=40, seed=self.seed, bounds=bounds, loss=loss)
            for loss in ("ce", "dlr")
        )
        return [momentum, ce, dlr]

    def summary(self, alive: Sequence[Tensor], known: int) -> dict[str, Any]:
        """Mean and worst accuracy of targets, and which images survive on each."""
        each = [float(one.double().mean()) for one in alive]
        return {"accuracy": sum(each) / len(each), "worst": min(each), "each": each,
                "survivors": [bits(one) for one in alive], "known": known}  # fmt: skip

    def itself(self, targets: Sequence[Logits]) -> dict[str, Any]:
        """The attack of `crafted` on the target's own weights: what no secret at all would leave.

        Stale attacks are compared with it, so that a weaker attack does not pass for a secret.
        """
        return self.summary([self.alive(one, self.crafted([one])) for one in targets], 1)

    def pgd(self, model: Logits) -> float:
        """Accuracy under PGD-40: to choose whom AutoAttack should look at."""
        return float(self.survivors(model, self._pgd(model, self.task.eps)).double().mean())

    def _pgd(self, model: Logits, eps: float) -> Tensor:
        draws = torch.Generator().manual_seed(seed_of(self.seed, "pgd"))
        x, y = self.examples.x, self.examples.y
        return pgd(model, x, y, eps=eps, steps=40, generator=draws, bounds=self.task.bounds)

    def masking(self, model: nn.Sequential, whole: str) -> dict[str, Any]:
        """Does what looks robust only hide? One attack at a time, and eps until nothing is left.

        Args:
            whole: the survivors of AutoAttack. What it missed and another attack found is reported.
        """
        x, y, eps, bounds = self.examples.x, self.examples.y, self.task.eps, self.task.bounds
        seed = self.seed
        tries = {
            "PGD-40": self._pgd(model, eps),
            "APGD-CE-100": apgd(
                model, x, y, eps=eps, steps=100, seed=seed, bounds=bounds, keep="flip"
            ),
            "APGD-DLR-100": apgd(
                model, x, y, eps=eps, steps=100, seed=seed, bounds=bounds, loss="dlr", keep="flip"
            ),
            "PGD-100 behind the front": behind_front(model, x, y, eps, 100, seed),
            "Square-5000": square(model, x, y, eps=eps, queries=5000, seed=seed, bounds=bounds),
        }
        alive = {name: self.survivors(model, one) for name, one in tries.items()}
        alive["AutoAttack"] = torch.tensor([c == "1" for c in whole[: len(y)]])
        alive["all together"] = torch.stack(list(alive.values())).all(0)
        found: dict[str, Any] = {k: float(one.double().mean()) for k, one in alive.items()}
        found["sweep"] = {str(wide): self._swept(model, wide) for wide in SWEEP}
        return found

    def _swept(self, model: nn.Module, eps: float) -> float:
        x, y = self.examples.x, self.examples.y
        tried = self._pgd(model, eps), apgd(model, x, y, eps=eps, steps=40, seed=self.seed)
        right = [predict(model, x).argmax(1) == y]
        right += [predict(model, project(t, x, eps, (0.0, 1.0))).argmax(1) == y for t in tried]
        return float(torch.stack(right).all(0).double().mean())


def behind_front(
    model: nn.Sequential, x: Tensor, y: Tensor, eps: float, steps: int, seed: int
) -> Tensor:
    """PGD on what lies behind the soft threshold, whose flat ends would shrink gradients.

    The front acts pixel by pixel and rises, so the ball around x (n, ...) is a box around front(x):
    in it each pixel takes steps in proportion to its own width. The front is inverted at the end.
    """
    front, rest = model[0], model[1:]
    low, high = front((x - eps).clamp(0, 1)), front((x + eps).clamp(0, 1))
    draws = torch.Generator().manual_seed(seed)
    u = low + (high - low) * torch.rand(x.shape, generator=draws)
    for _ in range(steps):
        u.requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(rest(u), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, u)
        u = u.detach() + 1.25 / steps * (high - low) * gradient.sign()
        u = torch.minimum(torch.maximum(u, low), high)
    edge = 1 - 1e-7
    return 0.5 + torch.atanh(u.clamp(-edge, edge)) / front.steepness
