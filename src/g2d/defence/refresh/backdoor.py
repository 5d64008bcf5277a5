"""A search for backdoors: the smallest patch that turns everything into one class, class by class.

Neural Cleanse (Wang et al. 2019, IEEE S&P): of each class the mask m and the pattern p that
minimise the loss of x (1 - m) + p m for that class plus the mask's L1 norm. A class with a backdoor
needs a far smaller mask than the others. Here the norms are compared with those of the network
before the refresh, so that classes which are easy by nature raise no alarm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.defence.refresh.checks import Check
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

_ENOUGH = 0.9  # share of other classes' inputs that a trigger has to turn
_CLASSES = 32  # that are searched at most; those with the most new records first
_BATCH = 64
_FEWEST = 4  # classes, below which a median of them says nothing


def backdoor_check(
    before: nn.Module, after: nn.Module, task: Task, new: Split, limit: float, steps: int, seed: int
) -> Check | None:
    """The anomaly index of the class whose trigger shrank most; None: not searched.

    Args:
        before, after: a network, and the same one refreshed. new: records; classes with the most of
            them are searched. limit: of the index; 0: off. steps: of each search.
    """
    if not limit or not task.splits.guide.x.is_floating_point():
        return None
    counts = torch.bincount(new.y, minlength=task.classes)
    chosen = counts.argsort(descending=True)[:_CLASSES].sort().values.tolist()
    ratios = []
    for label in chosen:
        sizes = [smallest_trigger(m, task, label, steps, seed + label) for m in (before, after)]
        ratios.append(torch.tensor(sizes).clamp_min(1e-3).log())
    shrunk = torch.stack([r[0] - r[1] for r in ratios])
    place = int(shrunk.argmax())
    index = anomaly(shrunk, place)
    text = (
        f"backdoor: the smallest trigger of class {chosen[place]} is {shrunk[place].exp():.1f} "
        f"times smaller than before the refresh (anomaly index {index:.1f}); at most {limit:g} "
        f"is allowed, of {len(chosen)} classes"
    )
    return Check("backdoor", index <= limit, index, limit, text)


def anomaly(values: Tensor, place: int) -> float:
    """How far one of some values (n,) lies above the median, in units of the normal MAD.

    The MAD is at least 0.1: values that are all but equal make no outlier of the largest. Of few
    values it says nothing, and each must be judged by itself: 0.1 is its unit then, too.
    """
    if len(values) < _FEWEST:
        others = torch.cat([values[:place], values[place + 1 :]])
        return max(0.0, float(values[place] - others.max()) / 0.5) if len(others) else 0.0
    median = values.median()
    mad = 1.4826 * float((values - median).abs().median())
    return max(0.0, float(values[place] - median)) / max(mad, 0.1)


def smallest_trigger(model: nn.Module, task: Task, label: int, steps: int, seed: int) -> float:
    """The L1 norm of the smallest mask found that turns other classes' inputs into `label`.

    The weight of the norm rises while the trigger works on `_ENOUGH` of a batch, and falls where it
    does not. A mask has one value for each place of an image, or for each feature.

    Returns:
        the norm; where no trigger worked, the number of places.
    """
    generator = torch.Generator().manual_seed(seed)
    split = task.splits.guiding
    others = split.take((split.y != label).nonzero()[:, 0])
    x_all = others.sample(min(len(others), 512), generator).x
    shape = x_all.shape[1:]
    low, high = _ends(task, x_all)
    places = (1, *shape[1:]) if len(shape) == 3 else tuple(shape)
    m = torch.zeros(places, requires_grad=True)
    p = torch.zeros(shape, requires_grad=True)
    optimizer = torch.optim.Adam([m, p], 0.5, betas=(0.5, 0.9))
    size = float(torch.tensor(places).prod())
    weight, best = 1.0, size
    for _ in range(steps):
        x = x_all[torch.randint(len(x_all), (_BATCH,), generator=generator)]
        mask = m.sigmoid()
        patched = x * (1 - mask) + (low + (high - low) * p.sigmoid()) * mask
        logits = model(patched)
        target = torch.full((len(x),), label)
        norm = mask.sum()
        loss = F.cross_entropy(logits, target) + weight * norm / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float((logits.argmax(1) == label).double().mean()) >= _ENOUGH:
            best, weight = min(best, float(norm.detach())), weight * 1.3
        else:
            weight /= 1.5
    return best


def _ends(task: Task, x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the most of each value: of the task's range, else of its own data."""
    if task.bounds is not None:
        return torch.tensor(task.bounds[0]), torch.tensor(task.bounds[1])
    return x.amin(0), x.amax(0)
