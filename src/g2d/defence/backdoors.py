"""Is there a backdoor in a network? One class that a far smaller pattern reaches than the others.

Neural Cleanse (Wang et al. 2019): patterns are found by `attacks.triggers`, and judged here by the
smallest one's size as a share of the median. The paper's own index, median absolute deviations
below the median, is told beside it: among ten classes the deviation is hardly known, and above 2
lay 2 of 4 clean networks in a first measurement on digits, and 6 of 8 with a backdoor.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from g2d.attacks.triggers import Trigger, find_trigger
from g2d.errors import DataError
from g2d.tasks.splits import Split

STEPS = 150
EXAMPLES = 128
_NORMAL = 1.4826  # of a normal distribution, deviations by median absolute deviations
_LEAST = 4  # classes of which one can stand out


@dataclass(frozen=True)
class Scan:
    """What was found.

    Attributes:
        triggers: the smallest pattern of each class. target: the class whose is the smallest.
        ratio: its size by the median. index: by how many deviations it is below the median.
    """

    triggers: Sequence[Trigger]
    target: int
    ratio: float
    index: float


def scan(
    model: nn.Module,
    split: Split,
    classes: int,
    bounds: tuple[float, float] | None,
    *,
    steps: int = STEPS,
    examples: int = EXAMPLES,
) -> Scan:
    """Look for a backdoor; the same network and split give the same result.

    Args:
        model: in evaluation mode. split: the judge's own images. steps: for each class.

    Raises:
        DataError: the data are no images in a known range, or of fewer than four classes.
    """
    if bounds is None or split.x.dim() != 4 or classes < _LEAST:
        raise DataError(
            "a backdoor scan looks for patterns of pixels: it needs images in a known range, of "
            f"{_LEAST} classes at least"
        )
    source = torch.Generator().manual_seed(0)
    some = split.sample(min(examples, len(split)), source)
    found = [find_trigger(model, some, k, bounds, steps, source) for k in range(classes)]
    sizes = [one.size for one in found]
    median = statistics.median(sizes)
    spread = _NORMAL * statistics.median(abs(size - median) for size in sizes)
    target = min(range(classes), key=sizes.__getitem__)
    smallest = sizes[target]
    index = (median - smallest) / max(spread, 1e-9)
    return Scan(found, target, smallest / max(median, 1e-9), index)
