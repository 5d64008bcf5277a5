"""One logit is two classes: in the task, its loss, its state dict, a worker, and a vault."""

import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from g2d.errors import DataError, TaskError
from g2d.tasks.splits import Split
from g2d.training.recipes.distil import Teacher
from g2d.weights.checkpoints import pack
from tables import table_task


def one():
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = one()

    def forward(self, x):
        return self.inner(x)[:, 0]


@pytest.mark.parametrize("factory", [one, Flat])
def test_logits_become_pairs_and_names_stay(factory):
    task, x = table_task(factory=factory), torch.randn(5, 8)
    model, plain = task.model(3), factory()
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    z = plain(x).reshape(-1)
    expected = torch.stack([torch.zeros(5), z], 1)
    assert torch.equal(model(x), expected)
    assert torch.equal(functional_call(model, model.state_dict(), (x,)), expected)
    assert torch.allclose(model(x).softmax(1)[:, 1], z.sigmoid())


LOSSES = {
    "cross-entropy": (F.cross_entropy, F.binary_cross_entropy_with_logits),
    "smoothed": (
        functools.partial(F.cross_entropy, label_smoothing=0.2),
        lambda z, y: F.binary_cross_entropy_with_logits(z, 0.8 * y + 0.1),
    ),
    "weighed": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0])),
        lambda z, y: (
            F.binary_cross_entropy_with_logits(z, y, 1 + 3 * y, reduction="sum") / (1 + 3 * y).sum()
        ),
    ),
    "bce": (nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits),
    "bce weighed": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)),
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(3.0)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("factory", [one, Flat])
def test_losses_mean_on_pairs_what_they_mean_on_the_logit(name, factory):
    loss, expected = LOSSES[name]
    task = table_task(factory=factory, loss=loss)
    split = task.splits.guide
    logits = task.model(0)(split.x)
    assert torch.allclose(task.loss(logits, split.y), expected(logits[:, 1], split.y.float()))


def test_losses_that_teach_nothing_are_refused_in_one_line():
    for loss in (F.mse_loss, lambda z, y: F.cross_entropy(z[:, :1], y * 0)):
        with pytest.raises(TaskError, match="does not pull it towards labels 0 and 1") as caught:
            table_task(factory=one, loss=loss)
        assert "\n" not in str(caught.value)


def test_it_travels_to_a_worker_and_is_not_wrapped_twice():
    task = table_task(factory=one, loss=nn.BCEWithLogitsLoss())
    factory, loss = pickle.loads(pickle.dumps((task.factory, task.loss)))
    assert factory()(torch.zeros(2, 8)).shape == (2, 2)
    assert loss(torch.zeros(2, 2), torch.tensor([0, 1])).item() == pytest.approx(0.6931, abs=1e-3)
    assert task.factory.__module__ == __name__
    again = table_task(factory=task.factory, loss=task.loss)
    assert again.factory is task.factory


def test_what_is_no_binary_classifier_is_refused_with_the_reason():
    x = torch.zeros(6, 8)
    with pytest.raises(DataError, match=r"several labels for each example .*argmax"):
        Split(x, torch.zeros(6, 3, dtype=torch.long))
    with pytest.raises(DataError, match=r"regression\) are not defended"):
        Split(x, torch.rand(6))
    with pytest.raises(TaskError, match=r"one logit is two classes .*regression"):
        table_task(factory=one, classes=3)
    with pytest.raises(TaskError, match="at least 2"):
        table_task(factory=one, classes=1)


@pytest.mark.parametrize("factory", ["one", "flat"])
def test_a_teacher_of_one_logit_teaches_two_classes(factory):
    """(N,) answers of two examples look like two classes."""
    task = table_task(factory=one)
    model = {"one": one, "flat": Flat}[factory]
    teacher = Teacher(pack(model().state_dict()), f"{__name__}:{model.__name__}").load(task)
    assert teacher(torch.zeros(5, 8)).shape == (5, 2)
