"""Images and table rows with a model that is fitted on them."""

import pytest
import torch
from torch import nn

from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from small_models import fitted, source


@pytest.fixture(scope="module")
def images():
    """Two small networks on digits, and test images that both classify correctly."""
    import g2d

    splits = g2d.load_task("digits").splits
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
        models.append(fitted(body, splits.train.x, splits.train.y))
    right = torch.stack([predict(m, splits.test.x).argmax(1) == splits.test.y for m in models])
    index = right.all(0).nonzero()[:, 0]
    return models, splits.test.take(index[:60])


@pytest.fixture(scope="module")
def rows():
    """A small network on tabular data in [0, 1], six features, three classes."""
    g = source(1)
    y = torch.arange(90) % 3
    x = torch.eye(3).repeat(1, 2)[y] * 0.4 + 0.3 + 0.05 * torch.randn(90, 6, generator=g)
    torch.manual_seed(0)
    model = fitted(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)), x, y)
    return model, Split(x.clamp(0, 1), y)
