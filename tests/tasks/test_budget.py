"""A table's budget: what it refuses, and that nothing an attack proposes can leave it."""

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2d.errors import DataError, TaskError
from g2d.redteam.overview import told_metrics
from g2d.tasks.budget import Budget
from small_models import source
from tables import BUDGET, rows, table_task, valid

REFUSED = [
    ({"eps": ()}, "has no features"),
    ({"eps": (1.0, -2.0)}, r"eps of feature 1 is -2, expected a number of at least 0"),
    ({"eps": (1.0, float("nan"))}, r"eps of feature 1 is nan"),
    ({"eps": (0.0, 0.0)}, "touch no feature"),
    ({"eps": (1.0, 1.0), "grow": (2,)}, r"grow names feature 2; there are 2, from 0 to 1"),
    ({"eps": (1.0, 1.0), "grow": (0,), "shrink": (0,)}, "feature 0 .* only grow and only shrink"),
    ({"eps": (0.5, 1.0), "integer": (0,)}, "feature 0 is 0.5, .* could never move"),
    ({"eps": (1,) * 4, "one_hot": ((0, 1), (1, 2))}, "feature 1 stands in one-hot groups 0 and 1"),
    ({"eps": (1,) * 4, "one_hot": ((0, 1),), "integer": (1,)}, "feature 1 stands in a one-hot"),
    ({"eps": (1, 0, 1), "one_hot": ((0, 1),)}, "group 0 .* has 2 columns, 1 of them"),
    ({"eps": (1, 1), "least": (0,)}, "`least` has 1 values, expected 2"),
]


@pytest.mark.parametrize(("given_", "says"), REFUSED)
def test_a_budget_that_makes_no_sense_is_one_line(given_, says):
    with pytest.raises(TaskError, match=says) as caught:
        Budget(**given_)
    assert "\n" not in str(caught.value)


ODD = [
    (lambda x: x[:, :-1], TaskError, r"shape \(7,\), and the budget is for 8 features"),
    (lambda x: x + 0.5 * (torch.arange(8) == 2), DataError, "feature 2 is called integer"),
    (lambda x: x * (torch.arange(8) < 5), DataError, "one-hot group 0 .* not one-hot in row 0"),
    (
        lambda x: x - 100 * (torch.arange(8) == 1),
        DataError,
        "feature 1 has values beyond its least",
    ),
]


@pytest.mark.parametrize(("change", "error", "says"), ODD)
def test_data_that_are_not_what_the_budget_says_are_one_line(change, error, says):
    with pytest.raises(error, match=says) as caught:
        table_task(change)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 2.0, 40.0]))
def test_what_is_projected_is_valid_and_stays_where_it_is(seed, eps):
    x = rows(20, seed)
    wild = x + 50 * torch.randn(x.shape, generator=source(seed))
    wild[0, 0], wild[1, 5], wild[2, 3] = float("nan"), float("nan"), float("inf")
    found = BUDGET.project(wild, x, eps)
    valid(found, x, eps)
    assert torch.equal(BUDGET.project(found, x, eps), found)
    assert torch.equal(BUDGET.project(x, x, eps), x)
    if not eps:
        assert torch.equal(found, x)


def test_each_feature_moves_exactly_as_far_as_it_may():
    x = rows(1, 0)
    far = BUDGET.project(x + 1000.0, x, BUDGET.largest)
    assert (far - x)[0, :5].tolist() == [2.0, 0.5, 1.0, 0.0, 0.0]
    near = BUDGET.project(x - 1000.0, x, BUDGET.largest)
    assert (near - x)[0, :5].tolist() == [0.0, -0.25, -1.0, 0.0, -1.0]


def test_a_category_swaps_only_to_where_it_may():
    x = torch.zeros(2, 8)
    x[0, 5] = x[1, 7] = 1.0
    wish = torch.zeros(2, 8)
    wish[:, 6], wish[:, 7] = 2.0, 5.0
    found = BUDGET.project(wish, x, 2.0)[:, 5:]
    assert found.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]  # 7 has eps 0: never entered, left


def test_half_of_the_budget_halves_all_and_the_task_says_which():
    assert BUDGET.largest == 2.0
    assert table_task().eps == 2.0
    assert BUDGET.radius(1.0, torch.zeros(1)).tolist() == [1.0, 0.25, 0.5, 0, 0.5, 1, 1, 1]
    assert dataclasses.replace(table_task(), eps=1.0).eps == 1.0


def test_it_travels_and_takes_on_a_shared_range():
    again = pickle.loads(pickle.dumps(BUDGET))
    assert again == BUDGET
    x = rows(5, 1)
    assert torch.equal(again.project(x + 9, x, 2.0), BUDGET.project(x + 9, x, 2.0))
    inside = Budget((1.0, 1.0), most=(0.5, 9.0)).within((0.0, 1.0))
    assert inside.most == (0.5, 1.0)
    assert inside.least == (0.0, 0.0)


def test_a_task_of_something_else_is_one_line():
    with pytest.raises(TaskError, match="the budget is tuple, expected a g2d"):
        table_task(budget=(1.0,) * 8)
    with pytest.raises(TaskError, match="metric 'recall' is float, expected a function"):
        table_task(metrics={"recall": 0.5})


def test_metrics_are_told_and_one_that_fails_says_so():
    def recall(logits, y):
        return float((logits.argmax(1)[y == 1] == 1).double().mean())

    task = table_task(metrics={"recall": recall, "odd": lambda logits, y: 1 / 0})
    ones = [lambda x: torch.tensor([[0.0, 1.0]]).repeat(len(x), 1)]
    told = told_metrics(task, ones, task.splits.test)
    assert told == "recall: 1; odd: not measured (ZeroDivisionError: division by zero)"
