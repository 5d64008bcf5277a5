"""A search for backdoors: the smallest patch that turns everything into one class, class by class.

As Neural Cleanse (Wang et al. 2019, IEEE S&P): of each class a mask m and a pattern p such that
x (1 - m) + p m is answered as that class; one with a backdoor needs a far smaller mask than others.
The mask is whole places, given up step by step, in place of an L1 norm that takes a thousand steps
to fall. Sizes are compared with those of the network before the refresh, so that classes which are
easy by nature raise no alarm.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d.core.adam import Adam
from g2d.defence.refresh.checks import Check
from g2d.tasks.splits import Split
from g2d.tasks.task import Task

_ENOUGH = 0.9  # share of other classes' inputs that a trigger has to turn
_CLASSES = 32  # that are searched at most; those with the most new records first
_BATCH, _KNOWN = 64, 256
_SHRINK = 0.7  # of the places that go on after each success
_SPREAD = 0.3  # least spread of the logarithms: a size more or less is a factor of 1 / 0.7
_FEWEST = 4  # classes, below which a median of them says nothing
_SHOWN = 6  # places of a trigger that are named


def backdoor_check(
    before: nn.Module, after: nn.Module, task: Task, new: Split, limit: float, steps: int, seed: int
) -> Check | None:
    """The anomaly index of the class whose trigger shrank most; None: it is turned off.

    Args:
        before, after: a network, and the same one refreshed. new: records; classes with the most of
            them are searched. limit: of the index; 0: off. steps: of each search.
    """
    if not limit:
        return None
    if not task.splits.guide.x.is_floating_point():
        text = "backdoor: not searched, for inputs are ids, which no pattern can be fitted to"
        return Check("backdoor", True, 0.0, limit, text)
    counts = torch.bincount(new.y, minlength=task.classes)
    chosen = counts.argsort(descending=True)[:_CLASSES].sort().values.tolist()
    ratios, masks = [], []
    for label in chosen:
        old, own = (smallest_trigger(m, task, label, steps, seed + label) for m in (before, after))
        ratios.append(math.log(size_of(old) / size_of(own)))
        masks.append(own)
    shrunk = torch.tensor(ratios, dtype=torch.float64)
    place = int(shrunk.argmax())
    index, times = anomaly(shrunk, place), float(shrunk[place].exp())
    text = (
        f"backdoor: the smallest trigger of class {chosen[place]} is {times:.1f} times "
        f"smaller than before the refresh (anomaly index {index:.1f}); at most {limit:g} "
        f"is allowed, of {len(chosen)} classes; it lies in {_named(masks[place])}"
    )
    return Check("backdoor", index <= limit, index, limit, text)


def size_of(mask: Tensor) -> int:
    """Of how many places a trigger is; one more than there are where none was found."""
    return int(mask.sum()) or mask.numel() + 1


def _named(mask: Tensor) -> str:
    """Where a trigger lies, in words: rows and columns of an image, columns of a table."""
    at = mask.nonzero()
    if not len(at):
        return "no place: none was found"
    if mask.dim() == 3:
        low, high = at.amin(0).tolist(), at.amax(0).tolist()
        return f"rows {low[1]} to {high[1]}, columns {low[2]} to {high[2]} (from 0)"
    shown = ", ".join(",".join(map(str, one)) for one in at[:_SHOWN].tolist())
    more = f" and {len(at) - _SHOWN} more" if len(at) > _SHOWN else ""
    return f"column {shown}{more} (from 0)"


def anomaly(values: Tensor, place: int) -> float:
    """How far one of some values (n,) lies above the median, in units of the normal MAD.

    And above 0, where that is less: a trigger that is as large as it was is no new one, however
    much those of other classes have grown. The MAD is at least `_SPREAD`: values that are all but
    equal make no outlier of the largest. Of few values it says nothing: then the largest is held
    against the next one, in that unit.
    """
    own, unit = float(values[place]), _SPREAD
    if len(values) < _FEWEST:
        others = torch.cat([values[:place], values[place + 1 :]])
        usual = float(others.max()) if len(others) else own
    else:
        usual = float(values.median())
        unit = max(1.4826 * float((values - values.median()).abs().median()), _SPREAD)
    return max(0.0, min(own, own - usual)) / unit


def smallest_trigger(model: nn.Module, task: Task, label: int, steps: int, seed: int) -> Tensor:
    """Where the smallest patch lies that was found to turn other inputs into `label`.

    It begins with the whole input. While the best pattern in the mask turns `_ENOUGH` of a batch,
    the places whose values matter least to the margin are given up, and the pattern learns on.

    Args:
        model: frozen, in evaluation mode. steps: Adam's, in each mask.

    Returns:
        which places it takes (1, h, w) of pixels in all channels, or (features,): 1 there, 0
        elsewhere; 0 everywhere where none worked.
    """
    generator = torch.Generator().manual_seed(seed)
    split = task.splits.guiding
    others = split.take((split.y != label).nonzero()[:, 0]).sample(_KNOWN, generator).x
    low, high = _ends(task)
    shape = others.shape[1:]
    places = (1, *shape[1:]) if len(shape) == 3 else tuple(shape)
    mask, pattern = torch.ones(places), torch.zeros(shape, requires_grad=True)
    optimizer = Adam([pattern], 0.5)
    found, target = torch.zeros(places), torch.full((_BATCH,), label)
    while True:
        for _ in range(steps):
            x = others[torch.randint(len(others), (_BATCH,), generator=generator)]
            loss = F.cross_entropy(model(_patched(x, mask, low, high, pattern)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        soft = mask.clone().requires_grad_()
        logits = model(_patched(others[:_BATCH], soft, low, high, pattern.detach()))
        if float((logits.argmax(1) == label).double().mean()) < _ENOUGH:
            return found
        found, size = mask, int(mask.sum())
        if size == 1:
            return found
        others_best = logits.index_fill(1, target[:1], -torch.inf).amax(1)
        (logits[:, label] - others_best).mean().backward()  # a loss near zero tells no place apart
        assert soft.grad is not None, "the margin depends on the mask"
        matters = torch.where(mask > 0, soft.grad, torch.tensor(-torch.inf))
        kept = matters.flatten().topk(max(1, round(_SHRINK * size))).indices
        mask = torch.zeros(mask.numel()).index_fill(0, kept, 1.0).view(places)


def _patched(x: Tensor, mask: Tensor, low: Tensor, high: Tensor, pattern: Tensor) -> Tensor:
    return x * (1 - mask) + (low + (high - low) * pattern.sigmoid()) * mask


def _ends(task: Task) -> tuple[Tensor, Tensor]:
    """The least and the most of each value: of the task's range, else of all that is trained on.

    A trigger is often a value that hardly any sound record has, and a sample of them none.
    """
    if task.bounds is not None:
        return torch.tensor(task.bounds[0]), torch.tensor(task.bounds[1])
    x = task.splits.train.x
    return x.amin(0), x.amax(0)
