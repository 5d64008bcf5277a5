"""PGD's momentum follows its paper; without it PGD is the plain loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from g2d.attacks import pgd, project
from g2d.errors import SettingsError
from small_models import source


def test_without_decay_pgd_is_the_plain_loop(images):
    """The stored results of other issues were made by exactly this."""
    (model, _), split = images
    x, y, g = split.x, split.y, source(0)
    noise = torch.rand(x.shape, generator=g)
    expected = project(x + (2 * noise - 1) * 0.1, x, 0.1, (0.0, 1.0))
    for _ in range(7):
        expected.requires_grad_(True)
        loss = torch.stack([F.cross_entropy(model(expected), y, reduction="sum")]).sum()
        (gradient,) = torch.autograd.grad(loss, expected)
        moved = expected.detach() + (2.5 * 0.1 / 7) * gradient.sign()
        expected = project(moved, x, 0.1, (0.0, 1.0))
    assert torch.equal(pgd(model, x, y, eps=0.1, steps=7, generator=source(0)), expected)


def test_momentum_follows_the_papers_recursion(images):
    (model, _), split = images
    x, y = split.x[:4], split.y[:4]
    found = pgd(model, x, y, eps=0.1, steps=5, generator=source(0), decay=0.7, step_size=0.04)
    start = project(x + (2 * torch.rand(x.shape, generator=source(0)) - 1) * 0.1, x, 0.1, (0, 1))
    for i in range(4):  # equation 6 of Dong et al. 2018, one example at a time
        point, g = start[i : i + 1], torch.zeros_like(x[:1])
        for _ in range(5):
            point = point.detach().requires_grad_(True)
            loss = F.cross_entropy(model(point), y[i : i + 1])
            (gradient,) = torch.autograd.grad(loss, point)
            g = 0.7 * g + gradient / gradient.abs().mean()
            point = project(point.detach() + 0.04 * g.sign(), x[i : i + 1], 0.1, (0, 1))
        torch.testing.assert_close(found[i : i + 1], point, atol=1e-6, rtol=0)


def test_momentum_survives_a_gradient_of_zero(rows):
    _, split = rows
    flat = nn.Sequential(nn.Linear(6, 3))
    nn.init.zeros_(flat[0].weight)
    still = pgd(flat, split.x, split.y, eps=0.1, steps=3, generator=source(0), decay=1.0)
    assert torch.isfinite(still).all()


def test_a_negative_decay_is_refused(images):
    (model, _), split = images
    with pytest.raises(SettingsError, match="decay"):
        pgd(model, split.x, split.y, eps=0.1, steps=3, generator=source(0), decay=-1.0)
