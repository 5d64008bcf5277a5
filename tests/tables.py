"""A small table with every kind of feature, and what must hold of anything that attacks it."""

import torch
from torch import nn

from g2d.tasks.budget import Budget
from g2d.tasks.splits import Split, Splits
from g2d.tasks.task import Task
from small_models import fitted, source

# 0 grows, 1 is a share in [0, 1], 2 counts, 3 is out of reach, 4 shrinks; 5 to 7 are a category of
# which the last is neither entered nor left.
BUDGET = Budget(
    eps=(2.0, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0),
    grow=(0,),
    shrink=(4,),
    integer=(2,),
    one_hot=((5, 6, 7),),
    least=(-50.0, 0.0, *[-50.0] * 6),
    most=(50.0, 1.0, *[50.0] * 6),
)


def rows(n, seed):
    draws = source(seed)
    x = torch.zeros(n, 8)
    x[:, [0, 3, 4]] = torch.randn(n, 3, generator=draws)
    x[:, 1] = 0.25 + 0.25 * torch.randint(0, 2, (n,), generator=draws)
    x[0, 1] = 0.25
    x[:, 2] = torch.randint(0, 9, (n,), generator=draws).float()
    category = torch.randint(5, 8, (n,), generator=draws)
    return x.scatter(1, category[:, None], 1.0)


def labels(x):
    return ((x[:, 0] + x[:, 1] + 0.5 * x[:, 2] - x[:, 4] + 2 * x[:, 5] + x[:, 3]) > 3.5).long()


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def table_task(change=None, factory=mlp, classes=2, **more):
    parts = []
    for seed, n in enumerate((300, 80, 80, 80)):
        x = rows(n, seed)
        parts.append(Split(x if change is None else change(x), labels(x)))
    more = {"bounds": None, "budget": BUDGET} | more
    return Task("table", factory, Splits(*parts), classes=classes, **more)


def table_model(task, seed=0):
    return fitted(task.model(seed), task.splits.train.x, task.splits.train.y)


def valid(found, x, eps=BUDGET.largest):
    """Check by hand, feature by feature, that `found` can be sent by the attacker of `x`."""
    part, delta = eps / 2.0, found - x
    assert bool((delta[:, 0] >= 0).all())
    assert bool((delta[:, 0] <= 2 * part + 1e-5).all())
    assert bool((delta[:, 1].abs() <= 0.5 * part + 1e-5).all())
    assert bool(((found[:, 1] >= 0) & (found[:, 1] <= 1)).all())
    assert torch.equal(found[:, 2], found[:, 2].round())
    assert bool((delta[:, 2].abs() <= part + 1e-5).all())
    assert torch.equal(found[:, 3], x[:, 3])
    assert bool((delta[:, 4] <= 0).all())
    assert bool((delta[:, 4] >= -part - 1e-5).all())
    group, before = found[:, 5:], x[:, 5:]
    assert bool(((group == 0) | (group == 1)).all())
    assert bool((group.sum(1) == 1).all())
    assert torch.equal(group[:, 2], before[:, 2])
