"""Makes a generation's canaries: the same bytes from the same network, task and seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g2d.core.seeds import seed_of
from g2d.protect.canaries.boundary import sharpen, to_boundary
from g2d.protect.canaries.choosing import choose
from g2d.protect.canaries.inputs import Inputs
from g2d.protect.canaries.network import Network, leads
from g2d.tasks.task import Task

_DRAWN = 3  # inputs that are moved, for each that is kept
_NOISES = 20  # how many times the noise measured a sound answer may differ
_SHARE = 2e-5  # and at least this share of the largest logit, for arithmetic not met here
_MARGIN = 3.0  # tolerances that the highest logit leads by: two logits may err, and room


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
    inputs = Inputs.of(task, -(-_DRAWN * count // 2), seed_of(seed, "drawn"))
    network = Network(model)
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
