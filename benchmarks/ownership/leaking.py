"""What a thief does to weights before they are found; every copy is permuted and rescaled too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from g2d.core.types import State
from g2d.tasks.inference import load_model
from g2d.tasks.task import Task
from g2d.weights.symmetry import Coupling, permute, rescale, signs

Treatment = Callable[[State, Task, torch.Generator], State]


def disguised(state: State, chain: Sequence[Coupling], draws: torch.Generator) -> State:
    """Hidden units in a random order, rescaled by up to two, turned where none can tell."""
    moved = permute(state, chain, [torch.randperm(c.units, generator=draws) for c in chain])
    scales = [(2 * torch.rand(c.units, generator=draws) - 1).exp2() for c in chain]
    turned = [signs(layer, draws) for layer in chain]
    return rescale(moved, chain, [s * t for s, t in zip(scales, turned, strict=True)])


def soup(states: Sequence[State], weights: Tensor) -> State:
    """A weighted mean."""
    return {
        name: sum(w * s[name] for w, s in zip(weights.tolist(), states, strict=True))  # type: ignore[misc]
        for name in states[0]
    }


def pruned(share: float) -> Treatment:
    """The smallest weights of each matrix set to zero."""

    def treat(state: State, task: Task, draws: torch.Generator) -> State:
        return _each(state, lambda t: torch.where(t.abs() > t.abs().quantile(share), t, 0.0))

    return treat


def quantised(bits: int) -> Treatment:
    """Symmetric, a scale for each row of a matrix, as is usual for so few bits."""

    def cut(tensor: Tensor) -> Tensor:
        top = tensor.abs().flatten(1).amax(1).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
        step = top.view(-1, *[1] * (tensor.dim() - 1))
        return (tensor / step).round() * step

    return lambda state, task, draws: _each(state, cut)


def noisy(share: float) -> Treatment:
    """Gaussian noise of a share of each matrix's root mean square."""

    def treat(state: State, task: Task, draws: torch.Generator) -> State:
        def add(tensor: Tensor) -> Tensor:
            noise = torch.randn(tensor.shape, generator=draws)
            return tensor + share * tensor.square().mean().sqrt() * noise

        return _each(state, add)

    return treat


def tuned(rate: float, steps: int = 100) -> Treatment:
    """Trained on by Adam, on the train split."""

    def treat(state: State, task: Task, draws: torch.Generator) -> State:
        model = load_model(task, state).train().requires_grad_(True)
        optimizer, split = torch.optim.Adam(model.parameters(), rate), task.splits.train
        for _ in range(steps):
            rows = torch.randint(len(split), (128,), generator=draws)
            loss = F.cross_entropy(model(split.x[rows]), split.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    return treat


def untouched(state: State, task: Task, draws: torch.Generator) -> State:
    """Nothing but the disguise."""
    return state


TREATMENTS: dict[str, Treatment] = {
    "permuted and rescaled": untouched,
    "pruned by half": pruned(0.5),
    "int4": quantised(4),
    "noise of a tenth": noisy(0.1),
    "fine-tuned at 1e-3": tuned(1e-3),
}


def _each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    return {n: change(t) if t.dim() > 1 and t.is_floating_point() else t for n, t in state.items()}
