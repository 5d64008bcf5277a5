"""Token ids as inputs: what an attacker may replace, and what a task says of its attack."""

import pytest
import torch
from torch import nn

from g2d.errors import DataError, TaskError
from g2d.tasks.builtin import load_task
from g2d.tasks.tokens import TokenBudget
from words import BUDGET, Bag, Counts, by_tokens, make, messages

X = torch.tensor([[0, 3, 4, 5], [1, 6, 7, 8]])


def changed(places, new):
    proposed = X.clone()
    for row, place in places:
        proposed[row, place] = new
    return proposed


@pytest.mark.parametrize(
    ("budget", "places", "new", "words"),
    [
        (TokenBudget(1, vocabulary=10), [(1, 2)], 3, ""),
        (TokenBudget(1, vocabulary=10), [(0, 1), (0, 2)], 9, "replaced 2 tokens of example 0"),
        (TokenBudget(2, vocabulary=10, special=(0,)), [(0, 0)], 9, "replaced id 0 at place 0"),
        (TokenBudget(2, vocabulary=10, special=(9,)), [(0, 1)], 9, "by 9"),
        (TokenBudget(2, vocabulary=10), [(0, 1)], 10, "by 10"),
        (TokenBudget(2, vocabulary=10), [(0, 1)], -1, "by -1"),
        (TokenBudget(2, vocabulary=10, fixed=(3,)), [(1, 3)], 2, "place 3 of example 1"),
        (TokenBudget(2, candidates=[5, 6]), [(1, 3)], 2, "by 2"),
        (TokenBudget(2, candidates={8: [2]}), [(1, 3)], 2, ""),
        (TokenBudget(2, candidates={8: [2]}), [(1, 2)], 2, "replaced id 7"),
    ],
)
def test_a_budget_says_what_it_does_not_allow_and_undoes_it(budget, places, new, words):
    proposed = changed(places, new)
    said = budget.violation(proposed, X)
    assert words in said
    assert bool(said) == bool(words)
    inside = budget.confine(proposed, X)
    assert budget.violation(inside, X) == ""
    assert torch.equal(inside, proposed) == (words == "")


def test_of_too_many_edits_the_first_stay():
    inside = TokenBudget(2, vocabulary=10).confine(torch.full_like(X, 9), X)
    assert (inside != X).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"edits": 0}, "edits is 0"),
        ({"tries": 1.5}, "tries is 1.5"),
        ({"vocabulary": -1}, "vocabulary is -1"),
        ({"candidates": []}, "leave nothing"),
        ({"candidates": [3], "special": (3,)}, "leave nothing"),
        ({"candidates": {3: [3]}}, "leave nothing"),
        ({"candidates": [12], "vocabulary": 10}, "candidate 12 lies outside"),
        ({"candidates": [-2]}, "from 0 on"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(given, words):
    with pytest.raises(TaskError, match=words):
        TokenBudget(**given)


def test_ids_have_no_bounds_and_the_embedding_says_how_many_there_are():
    task = by_tokens()
    assert (task.attack_kind, task.bounds) == ("tokens", None)
    assert task.tokens.vocabulary == 20
    assert task.tokens.table.tolist() == [list(range(2, 20))]
    assert task.attack_words == "substitution of tokens, at most 2 tokens replaced"


def odd(models, x, y, generator):
    return x


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({}, TaskError, r"no gradient: give tokens=TokenBudget.*attack='none'.*x.float\(\)"),
        ({"attack": "fgsm"}, TaskError, "attack is 'fgsm', expected a function"),
        ({"tokens": BUDGET, "factory": Counts}, TaskError, "no nn.Embedding of the model reads"),
        ({"tokens": TokenBudget(vocabulary=30)}, TaskError, "30 ids, and the model's embedding 20"),
        ({"tokens": TokenBudget(fixed=(6,))}, TaskError, "fixed place 6 lies outside"),
        ({"tokens": TokenBudget(candidates=[25])}, TaskError, "candidate 25 lies outside"),
        ({"tokens": TokenBudget(vocabulary=15)}, DataError, "token id 19, outside the vocabulary"),
        ({"tokens": BUDGET, "attack": odd, "factory": Counts}, TaskError, "how many ids there are"),
        ({"tokens": BUDGET, "x": messages()[0].float()}, TaskError, "ids have to be integers"),
        ({"tokens": BUDGET, "x": messages()[0] - 3}, DataError, "token id -1, outside"),
        ({"tokens": BUDGET, "x": messages()[0] + 1}, DataError, "token id 20, outside.*0 to 19"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(changes, error, words):
    with pytest.raises(error, match=words) as refused:
        make(**changes)
    assert "\n" not in str(refused.value)


def test_a_model_without_an_embedding_may_bring_its_own_attack():
    assert make(Counts, attack=odd).attack_kind == "own"
    assert make(Counts, attack="none").attack_kind == "none"


def test_an_embedding_inside_another_module_is_found():
    assert make(lambda: nn.Sequential(nn.Identity(), Bag()), tokens=BUDGET).tokens.vocabulary == 20


def test_eps_is_refused_where_there_is_no_ball():
    with pytest.raises(TaskError, match=r"no ball of eps to set to 0\.3: substitution of tokens"):
        load_task("words:by_tokens", eps=0.3)
