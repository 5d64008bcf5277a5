"""What a thief does to stolen parameters so that nobody can tell whose they were.

Pure functions: of a state dict, or of a model and data; what is given is not changed. Nothing here
knows of a watermark, as the thief knows no key. Whether one survives is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2d.core.adam import Adam
from g2d.core.types import Logits, State
from g2d.errors import SettingsError
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.weights.layout import mean_of
from g2d.weights.symmetry import Coupling, permute, rescale, signs

_MOST_SCALE = 3.0  # log2 of the factor that `disguised` may give a unit, either way


def _weights(state: State) -> list[str]:
    """Names of weight matrices and kernels: what is pruned and rounded in practice."""
    return [name for name, t in state.items() if t.is_floating_point() and t.dim() >= 2]


def pruned(state: State, share: float) -> dict[str, Tensor]:
    """Set the smallest `share` of all weights to zero, by magnitude over the whole network.

    Han et al. 2015, arXiv 1506.02626; biases and norms are left alone.

    Raises:
        SettingsError: `share` lies outside [0, 1).
    """
    if not 0 <= share < 1:
        raise SettingsError(f"a share of {share:g} cannot be pruned: expected one in [0, 1)")
    names = _weights(state)
    sizes = torch.cat([state[name].detach().abs().flatten().float() for name in names])
    least = sizes.sort().values[int(share * len(sizes))]
    return {
        name: tensor * (tensor.abs() >= least) if name in names else tensor
        for name, tensor in state.items()
    }


def rounded(state: State, bits: int) -> dict[str, Tensor]:
    """Round weights to signed integers of `bits`, with one scale for each output unit, and back.

    Raises:
        SettingsError: fewer than 2 bits, or more than 16.
    """
    if not 2 <= bits <= 16:
        raise SettingsError(f"weights cannot be rounded to {bits} bits: expected 2 to 16")
    most = 2 ** (bits - 1) - 1

    def coarse(tensor: Tensor) -> Tensor:
        rows = tensor.detach().flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / most).clamp_min(torch.finfo(rows.dtype).tiny)
        return ((rows / scale).round().clamp(-most, most) * scale).view_as(tensor)

    names = _weights(state)
    return {n: coarse(tensor) if n in names else tensor for n, tensor in state.items()}


def noised(state: State, share: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Add Gaussian noise of `share` root mean squares of each weight tensor to it."""
    names = _weights(state)

    def noisy(tensor: Tensor) -> Tensor:
        scale = share * tensor.square().mean().sqrt()
        return tensor + scale * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    return {n: noisy(tensor) if n in names else tensor for n, tensor in state.items()}


def disguised(
    state: State, chain: Sequence[Coupling], generator: torch.Generator
) -> dict[str, Tensor]:
    """Permute hidden units, rescale and turn them: the same function, no parameter in its place.

    Raises:
        SettingsError: the architecture has no chain of hidden units.
    """
    if not chain:
        raise SettingsError("this model is no plain chain of layers: no hidden units to permute")
    orders = [torch.randperm(layer.units, generator=generator) for layer in chain]
    draws = [torch.rand(layer.units, generator=generator) for layer in chain]
    moved = permute(state, chain, orders)
    scales = [((2 * u - 1) * _MOST_SCALE).exp2() for u in draws]
    turned = [signs(layer, generator) for layer in chain]  # where a square loses them
    return rescale(moved, chain, [s * t for s, t in zip(scales, turned, strict=True)])


def souped(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of stolen networks: collusion."""
    return mean_of(states)


def nearest(state: State, others: Sequence[State], count: int) -> list[State]:
    """The `count` networks nearest to one in their parameters, itself first if it is among them.

    What lies near has a mean that works; networks of several basins have none.
    """

    def apart(other: State) -> float:
        return sum(float((other[n] - t).double().square().sum()) for n, t in state.items()
                   if t.is_floating_point())  # fmt: skip

    return sorted(others, key=apart)[:count]


def fine_tuned(
    task: Task,
    state: State,
    split: Split,
    *,
    steps: int,
    rate: float,
    generator: torch.Generator,
    batch: int = 128,
    besides: Split | None = None,
) -> dict[str, Tensor]:
    """Go on training on a split with Adam at a constant rate.

    Args:
        besides: as many examples of it a step go with the others: with triggers of the thief's
            own this overwrites a mark.
    """
    splits = (split,) if besides is None else (split, besides)

    def loss(model: nn.Module) -> Tensor:
        drawn = [_some(one, batch, generator) for one in splits]
        x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return task.loss_of(model(x), y)

    model = task.model(0)
    model.load_state_dict(dict(state))
    return _descended(model, loss, steps, rate)


def distilled(
    task: Task,
    teacher: Logits,
    x: Tensor,
    *,
    soft: bool,
    steps: int,
    rate: float,
    seed: int,
    batch: int = 128,
) -> dict[str, Tensor]:
    """Train a network from a fresh seed on what a stolen one answers, its labels unseen.

    Args:
        x: inputs (n, ...) of the thief's. soft: learn probabilities (Hinton et al. 2015, arXiv
            1503.02531); else labels alone, as of an API that gives no more.
    """
    answers, generator = predict(teacher, x), torch.Generator().manual_seed(seed)
    labels, shares = answers.argmax(1), answers.softmax(1)

    def loss(model: nn.Module) -> Tensor:
        at = torch.randint(len(x), (batch,), generator=generator)
        if not soft:
            return task.loss_of(model(x[at]), labels[at])
        return F.kl_div(model(x[at]).log_softmax(1), shares[at], reduction="batchmean")

    return _descended(task.model(seed), loss, steps, rate)


def _some(split: Split, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    at = torch.randint(len(split), (count,), generator=generator)
    return split.x[at], split.y[at]


def _descended(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int, rate: float
) -> dict[str, Tensor]:
    """A model's state after Adam steps in training mode, dropout's draws not left to the caller."""
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


__all__ = [
    "disguised", "distilled", "fine_tuned", "nearest", "noised", "pruned", "rounded", "souped",
]  # fmt: skip
