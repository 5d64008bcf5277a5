"""Networks for the tests of homomorphic inference, and a ciphertext that is an array."""

import numpy as np
import torch
from torch import nn

from g2d.tasks.polynomials import Quadratic, Square


def tiny(seed=0, hidden=6, classes=3):
    """Six numbers in, one square: the smallest that SEAL evaluates at N = 8192."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), Square(), nn.Linear(hidden, classes)).eval()


def mixed(seed=0):
    """Every kind of layer, for (2, 8, 8)."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        norm,
        Square(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        Quadratic(-0.5, 0.7, 0.1, learned=True),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(24, 8),
        Quadratic(0.3, -0.2),
        nn.Linear(8, 5),
    ).eval()


def computed(plan, matrices, image):
    """Every slot behind the last step, by numpy: what the server does, on numbers that are plain.

    Args:
        matrices: of `g2d.protect.homomorphic.matrices.affines`.
    """
    slots, sources = plan.parameters.slots, {}
    padded = np.append(image.reshape(-1), 0.0)
    for i, (program, affine) in enumerate(zip(plan.programs, matrices, strict=True)):
        if program.gathers is not None:
            sources = {j: padded[gather] for j, gather in enumerate(program.gathers)}
        for value, parent, step in program.babies:
            sources[value] = np.roll(sources[parent], -step)
        total = _sum(program, affine, sources, slots)
        for step in program.folds:
            total = total + np.roll(total, -step)
        for start in range(0, slots, program.made.period):
            total[program.made.slots + start] += affine.bias
        if i + 1 < len(plan.programs):
            total = total * total
            for step in program.pools:
                total = total + np.roll(total, -step)
        sources = {0: total}
    return sources[0]


def _sum(program, affine, sources, slots):
    entries = program.entries
    laid = np.zeros((len(program.terms), slots))
    values = np.asarray(affine.matrix[entries.row, entries.column]).ravel()
    for start in range(0, slots, entries.period):
        laid[entries.term, entries.slot + start] = values
    sums = {}
    for row, (source, giant) in zip(laid, program.terms, strict=True):
        sums[giant] = sums.get(giant, 0) + row * sources[source]
    for value, parent, step in reversed(program.giants):
        sums[parent] = sums.get(parent, 0) + np.roll(sums[value], -step)
    return sums[0]
