"""Makes a generation's canaries: the same bytes from the same network, task and seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2d.core.seeds import seed_of
from g2d.protect.canaries.boundary import HALVINGS, sharpen, to_boundary
from g2d.protect.canaries.choosing import LARGE, choose, room
from g2d.protect.canaries.inputs import Inputs
from g2d.protect.canaries.network import Network, leads
from g2d.tasks.task import Task

_DRAWN = 3  # inputs that are moved, for each that is kept
_DRAWN_LARGE = 2  # of large networks
_PASSES = 12  # of all inputs forward, beside those to the boundary: measured for noise and leads
_COPIES = 3  # of a network's weights at once: shaken, and gradients
_NOISES = 20  # how many times the noise measured a sound answer may differ
_SHARE = 2e-5  # and at least this share of the largest logit, for arithmetic not met here
_MARGIN = 3.0  # tolerances that the highest logit leads by: two logits may err, and room


@dataclass(frozen=True)
class Work:
    """What making canaries takes, for an estimate: inputs moved, passes and bytes.

    Attributes:
        forwards: of one example each. gradients: of one example each, by weights or inputs. room:
            bytes of memory at once, beside the network's own.
    """

    candidates: int
    forwards: int
    gradients: int
    room: int


def work(size: int, count: int, steps: int) -> Work:
    """Foresee what `count` canaries of a network of `size` weights take; 0: nothing."""
    moved = 2 * _begun(size, count)
    forwards = moved * (_PASSES + HALVINGS + steps)
    held = room(size, moved) + _COPIES * 4 * size if count else 0
    return Work(moved, forwards, moved * (1 + steps), held)


def _begun(size: int, count: int) -> int:
    """How many examples are drawn, and as many of noise."""
    return -(-(_DRAWN if size <= LARGE else _DRAWN_LARGE) * count // 2)


def make_canaries(
    task: Task, model: nn.Module, count: int, steps: int, seed: int
) -> dict[str, Tensor]:
    """Make `count` canaries of a model in evaluation mode, or as many as there are.

    Labels alone show a change where two classes nearly tie, scores show it anywhere. So inputs are
    moved to where answers depend most on the weights, then to where the highest logit leads by
    three tolerances, and those are kept that together show most flips of signs.

    Args:
        steps: gradient steps of the first move; 0: none.

    Returns:
        x (n, ...), logits (n, classes) float32, labels (n,) int64, tolerance (1,) float32: see
        `kept.Canaries`. Nothing where the network answers nothing finite.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "moved"))
    network = Network(model)
    size = sum(w.numel() for w in network.weights.values())
    inputs = Inputs.of(task, _begun(size, count), seed_of(seed, "drawn"))
    x = sharpen(network, inputs, steps, generator)
    with torch.no_grad():
        whole = network(x).isfinite().all(1)
        x, logits = x[whole], network(x)[whole]
    if not len(x):
        return {}
    noise = network.noise(x, generator)
    tolerance = max(_NOISES * noise, _SHARE * (1 + float(logits.abs().max())))
    near = to_boundary(network, inputs, x, _MARGIN * tolerance, generator)
    candidates = near if len(near) >= count else torch.cat([near, x])
    x = candidates[choose(network, candidates, count, generator)]
    with torch.no_grad():
        logits = network(x).float()
    labels, lead = leads(logits)
    kept = lead >= (_MARGIN - 1) * tolerance  # what was moved nowhere may tie
    if not bool(kept.any()):
        return {}
    return {
        "x": x[kept].contiguous(),
        "logits": logits[kept],
        "labels": labels[kept],
        "tolerance": torch.tensor([tolerance], dtype=torch.float32),
    }
