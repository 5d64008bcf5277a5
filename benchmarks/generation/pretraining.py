"""CIFAR-10 networks, pretrained once: by momentum, in steps that are kept and gone on with.

What a large population is forked from. A run that was ended goes on from its last kept step, and
gives the weights that it would have given: batches are drawn by the number of the step.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import g2d
from g2d.core.devices import mixed
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.tasks.inference import accuracy
from g2d.tasks.networks import ResidualBlock, resnet18
from g2d.training.loop import Batches
from g2d.weights.checkpoints import pack, unpack

KEEP = 250  # steps


def small_residual() -> nn.Module:
    """A residual network with batch norm for (N, 3, 32, 32), 10 classes; 223,146 parameters."""
    return _residual(32, (32, 64, 96))


def tiny_residual() -> nn.Module:
    """The same with 3,822 parameters, to rehearse with."""
    return _residual(4, (4, 8, 12))


def _residual(stem: int, widths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, stem, 3, 2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(),
    ]  # fmt: skip
    for place, width in enumerate(widths):
        layers.append(ResidualBlock(stem, width, 2 if place else 1))
        stem = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(stem, 10))


NETWORKS = {"small": small_residual, "tiny": tiny_residual, "resnet18": resnet18}


@dataclass(frozen=True)
class Plan:
    """How a network is pretrained: Nesterov momentum, one cycle of the rate, decoupled from wall
    time; `rate` is that of 128 examples a step."""

    steps: int
    batch: int = 128
    rate: float = 0.1
    decay: float = 5e-4
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """A fifth of the steps up, then a half cosine down to zero."""
        peak, up = self.rate * self.batch / 128, max(1, self.steps // 5)
        if step < up:
            return peak * (step + 1) / up
        return peak * 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, self.steps - up)))


def pretrained(task: g2d.Task, plan: Plan, folder: Path) -> tuple[State, dict[str, float]]:
    """The state of a pretrained network, and its clean accuracy and CPU seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.name}-{plan.steps}-{plan.batch}-{plan.seed}.safetensors"
    model = task.placed(task.model(seed_of(plan.seed, "pretrained")))
    optimizer = torch.optim.SGD(
        model.parameters(), plan.rate, momentum=0.9, nesterov=True, weight_decay=plan.decay
    )
    began, done, spent = time.process_time(), *_read(path, model, optimizer)
    source, precision = torch.Generator(), mixed(model)
    batches = Batches(task, task.splits.train, plan.batch, source)
    model.train()
    for step in range(done, plan.steps):
        source.manual_seed(seed_of(plan.seed, "batch", step))
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        x, y = batches.draw()
        with precision():
            loss = task.loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % KEEP == 0 or step + 1 == plan.steps:
            whole = spent + time.process_time() - began
            _keep(path, model, optimizer, step + 1, whole)
            print(
                f"pretraining {step + 1}/{plan.steps}, loss {float(loss.detach()):.3f}", flush=True
            )
    model.eval()
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    spent += time.process_time() - began
    return state, {"clean": accuracy(model, task.splits.test), "cpu_seconds": spent}


def _keep(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, spent: float
) -> None:
    """Write what a later run goes on from, all at once."""
    kept: dict[str, Tensor] = {f"model.{n}": t for n, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if "momentum_buffer" in optimizer.state[parameter]:
            kept[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    kept["at"] = torch.tensor([float(step), spent], dtype=torch.float64)
    partial = path.with_suffix(".partial")
    partial.write_bytes(pack(kept))
    os.replace(partial, path)


def _read(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Take up what an earlier run kept: its step, and the CPU seconds until then."""
    if not path.exists():
        return 0, 0.0
    kept = unpack(path.read_bytes(), str(path))
    model.load_state_dict({n[6:]: t for n, t in kept.items() if n.startswith("model.")})
    for name, parameter in model.named_parameters():
        if (momentum := kept.get(f"momentum.{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    step, spent = kept["at"].tolist()
    return int(step), spent
