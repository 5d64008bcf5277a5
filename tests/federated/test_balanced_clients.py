"""Clients whose labels differ: what their own frequencies explain is left out of their loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from federated_processes import settings
from g2d.defence.federating import begin_at
from g2d.tasks.splits import Split
from g2d.training.federated.balance import balanced
from g2d.training.federated.client import Client
from g2d.training.federated.networks import Networks


def skewed(digits, many=300):
    """Nine zeros for each other digit, about."""
    train = digits.splits.train
    zeros, others = (train.y == 0).nonzero()[:, 0], (train.y != 0).nonzero()[:, 0]
    return train.take(torch.cat([zeros[:90], others[: many // 30]]))


def test_where_a_network_knows_nothing_frequencies_alone_teach_it_nothing(digits):
    """The mean gradient of the logits at zero is softmax - frequencies: here both are p."""
    own = skewed(digits)
    plain, fair = (
        torch.zeros(len(own), digits.classes, requires_grad=True) for _ in range(2)
    )  # fmt: skip
    digits.loss_of(plain, own.y).backward()
    balanced(digits, own).loss_of(fair, own.y).backward()
    assert plain.grad.sum(0).abs().max() > 0.5
    assert fair.grad.sum(0).abs().max() < 0.1  # of each label's one more


def test_clients_of_other_labels_pull_less_far_apart(digits):
    """The logits' gradients of two clients, where nothing is known yet."""
    y = torch.tensor([0] * 40 + [1] * 10), torch.tensor([0] * 10 + [1] * 40)
    x = digits.splits.train.x[:50]

    def pulled(task, labels):
        logits = torch.zeros(50, digits.classes, requires_grad=True)
        task.loss_of(logits, labels).backward()
        return logits.grad.sum(0)

    apart = [pulled(digits, labels) for labels in y]
    near = [pulled(balanced(digits, Split(x, labels)), labels) for labels in y]
    assert (near[0] - near[1]).norm() < 0.3 * (apart[0] - apart[1]).norm()


def test_equal_frequencies_change_nothing_and_a_loss_of_ones_own_is_kept(digits):
    y = torch.arange(10).repeat(3)
    logits = torch.randn(30, 10, generator=torch.Generator().manual_seed(1))
    smooth = replace(digits, loss=lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2))
    for task in (digits, smooth):
        fair = balanced(task, Split(digits.splits.train.x[:30], y))
        assert fair.loss_of(logits, y) == pytest.approx(float(task.loss_of(logits, y)), abs=1e-6)


def test_only_training_is_balanced_and_only_where_it_is_asked_for(digits):
    own = skewed(digits)
    clients = [
        Client("a", digits, own, s, Networks.of(digits), begin_at(digits, s))
        for s in (settings(), settings(balance=False))
    ]
    asked, plain = clients
    assert plain._learned is plain.task is asked.task is digits
    assert asked._learned is not digits
    assert asked._learned.splits is digits.splits
