"""What is tried when a task meets its settings, and where its jobs run."""

import dataclasses
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import g2d
from g2d.core.engine import LocalEngine, SerialEngine
from g2d.defence.opening import default_engine
from g2d.errors import DataError, TaskError
from g2d.tasks.splits import split_dataset
from tables import BUDGET, table_task


def linear(width=3):
    return nn.Linear(4, width)


def of_main(logits, y):
    return F.cross_entropy(logits, y)


of_main.__module__ = "__main__"


def own(factory=linear, **changed):
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    return g2d.Task("own", factory, split_dataset(x, torch.arange(60) % 3), 3, eps=0.1, **changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"factory": lambda: nn.Linear(4, 3)}, "its factory cannot be pickled"),
        ({"loss": lambda z, y: F.cross_entropy(2 * z, y)}, "its loss cannot be pickled"),
        ({"loss": of_main}, "its loss is, or uses, 'of_main' of __main__"),
        ({"augment": partial(partial, of_main)}, "its augment is, or uses, 'of_main' of __main__"),
    ],
)
def test_what_cannot_travel_stays_and_says_so(monkeypatch, changed, words):
    import __main__

    monkeypatch.setattr(__main__, "of_main", of_main, raising=False)
    augment = changed.pop("augment", None)
    task = own(**changed)
    if augment is not None:
        object.__setattr__(task, "augment", augment)
    with pytest.warns(UserWarning, match=words) as said:
        assert isinstance(default_engine(task, 0), SerialEngine)
    assert "\n" not in str(said[0].message)
    assert isinstance(default_engine(task, 1), SerialEngine)


@pytest.mark.parametrize("factory", [linear, partial(linear, 3)])
def test_what_can_travel_does(factory):
    with warnings.catch_warnings(), default_engine(own(factory), 1) as engine:
        assert isinstance(engine, LocalEngine)


class Spoken(nn.Linear):
    """A model whose state dict holds more than tensors."""

    def __init__(self, said):
        super().__init__(4, 3)
        self.said = said

    def state_dict(self, *given, **names):
        return super().state_dict(*given, **names) | {"said": self.said}


def test_a_state_that_no_file_keeps_is_refused_before_there_is_a_vault(tmp_path):
    task = own(partial(Spoken, "some words"))
    with pytest.raises(
        TaskError, match=r"'said' of its state dict cannot be kept in a vault \(str"
    ):
        g2d.Defence.create(task, tmp_path / "vault")
    assert not (tmp_path / "vault").exists()


def test_the_batch_that_is_set_is_tried_before_there_is_a_vault(tmp_path):
    def normed():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    settings = g2d.Settings().override(population__batch=1)
    with pytest.raises(TaskError, match=r"set \[population\] batch to 2 or more"):
        g2d.Defence.create(own(normed), tmp_path / "vault", settings)
    assert not (tmp_path / "vault").exists()


def test_a_vault_made_for_another_budget_is_not_gone_on_with(tmp_path):
    """Its stored attacks may go beyond the new limits; a vault without a note goes on."""
    task = table_task()
    with g2d.Defence.create(task, tmp_path / "vault") as defence:
        defence.adopt_base(task.model(0).state_dict())
        before = (tmp_path / "vault/task.toml").read_bytes()
    other = table_task(budget=dataclasses.replace(BUDGET, grow=()))
    assert other.eps == task.eps
    with pytest.raises(DataError, match="was made for another budget than task 'table' has now"):
        g2d.Defence.create(other, tmp_path / "vault")
    assert (tmp_path / "vault/task.toml").read_bytes() == before
    g2d.Defence.create(task, tmp_path / "vault").close()
