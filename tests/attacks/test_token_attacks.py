"""Substitution of tokens and attacks of one's own: what they find, and what of it counts."""

import itertools

import pytest
import torch
from torch import nn

from g2d.attacks.crafting import Functional, confine, craft
from g2d.attacks.pools import craft_pool, pack_pool, unpack_pool
from g2d.errors import DataError, TaskError
from g2d.redteam.scoring import attack_rate
from g2d.tasks.splits import Split
from g2d.tasks.tokens import TokenBudget
from small_models import fitted, source
from words import SIZE, by_itself, by_tokens, make, messages, unattacked

X, Y = messages()


@pytest.fixture(scope="module")
def models():
    task = by_tokens()
    return [fitted(task.model(seed), X, Y, 80) for seed in (0, 1)]


def crafted(task, models, x=X, y=Y, how="greedy"):
    return craft(task, models, x, y, generator=source(0), how=how)


def flips(model, proposed, y=Y):
    return model(proposed).argmax(1) != y


def test_the_beam_finds_nearly_all_that_a_search_of_everything_finds(models):
    task, model, found = by_tokens(), models[0], []
    words = torch.arange(2, SIZE)
    for x, label in zip(X[:12], Y[:12], strict=True):
        every = []
        for a, b in itertools.combinations(range(len(x)), 2):
            pairs = x.repeat(len(words) ** 2, 1)
            pairs[:, a] = words.repeat_interleave(len(words))
            pairs[:, b] = words.repeat(len(words))
            every.append(pairs)
        found.append(bool((model(torch.cat(every)).argmax(1) != label).any()))
    ours = flips(model, crafted(task, model, X[:12], Y[:12], "beam"), Y[:12])
    assert sum(found) - 1 <= int(ours.sum()) <= sum(found)
    assert sum(found) >= 6


def test_the_stronger_the_search_the_more_it_finds_within_the_budget(models):
    task, model = by_tokens(), models[0]
    losses = []
    for how in ("light", "greedy", "beam"):
        proposed = crafted(task, model, how=how)
        assert task.tokens.violation(proposed, X) == ""
        assert proposed.dtype == X.dtype
        losses.append(float(nn.functional.cross_entropy(model(proposed), Y)))
    clean = float(nn.functional.cross_entropy(model(X), Y))
    assert clean < losses[0] <= losses[1] <= losses[2] + 1e-6


def test_a_joint_attack_fools_both_better_than_one_made_on_the_other(models):
    task = by_tokens()
    jointly, alone = crafted(task, models), crafted(task, models[0])
    assert flips(models[1], jointly).sum() > flips(models[1], alone).sum()


def test_candidates_special_ids_and_fixed_places_are_kept(models):
    for budget in (
        TokenBudget(2, candidates=[2, 3], special=(5,), fixed=(0,)),
        TokenBudget(2, candidates={7: [2, 8], 9: [3]}, fixed=(1,)),
    ):
        task = make(tokens=budget)
        proposed = crafted(task, models[0])
        assert task.tokens.violation(proposed, X) == ""
        assert bool((proposed != X).any())


def test_the_gradient_goes_through_tensors_that_are_put_in(models):
    task, state = by_tokens(), dict(models[0].named_parameters())
    shell = Functional(task.model(5).eval(), state)
    assert torch.equal(crafted(task, shell), crafted(task, models[0]))


def test_a_pool_comes_back_as_it_was_made(models):
    task = by_tokens()
    attacks, index = craft_pool(task, models[0], task.splits.train, 30, 7, 0)
    back = unpack_pool(pack_pool(attacks, index, task), task.splits.train)
    assert torch.equal(back.x, attacks)
    assert back.x.dtype == task.splits.train.x.dtype
    assert torch.equal(back.y, task.splits.train.y[index])
    empty, none = craft_pool(unattacked(), models[0], task.splits.train, 30, 7, 0)
    assert (len(empty), len(none)) == (0, 0)


def cheats(models, x, y, generator):
    return torch.full_like(x, 19)


def of_floats(models, x, y, generator):
    return x.float()


def raises(models, x, y, generator):
    raise RuntimeError("no idea")


def in_place(models, x, y, generator):
    x[:, 0] = 19
    return x


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (cheats, "its attack is wrong: it replaced . tokens of example 0, and the budget is 2"),
        (of_floats, r"it gave \(120, 6\) torch.float32, expected \(120, 6\) torch.int64"),
        (lambda models, x, y, generator: None, "it gave NoneType"),
        (lambda models, x, y, generator: x[:1], r"it gave \(1, 6\)"),
        (raises, "its attack raised RuntimeError: no idea"),
    ],
)
def test_what_an_attack_of_ones_own_does_wrong_is_said(models, attack, words):
    with pytest.raises(TaskError, match=words):
        crafted(make(attack=attack, tokens=TokenBudget(2)), models[0])


def test_an_attack_of_ones_own_gets_copies_and_modules(models):
    seen = []

    def attack(models, x, y, generator):
        seen.append(([type(m).__name__ for m in models], y.shape))
        return in_place(models, x, y, generator)

    kept = X.clone()
    shares = nn.functional.one_hot(Y).float()
    proposed = crafted(make(attack=attack), [models[0], models[1].forward], y=shares)
    assert torch.equal(X, kept)
    assert bool((proposed[:, 0] == 19).all())
    assert seen == [(["Bag", "_Answers"], Y.shape)]


def test_scores_undo_what_the_limits_forbid(models):
    task, model, split = by_tokens(), models[0], Split(X, Y)
    honest = attack_rate(model, crafted(task, model), split, 0.0, None, task)
    right = ~flips(model, X)
    of = [X[right & (label == Y)][0] for label in (0, 1)]  # any of the other class, all words new
    everything = torch.where(Y[:, None] == 1, of[0], of[1])
    cheat = attack_rate(model, everything, split, 0.0, None, task)
    assert 0 < honest.value < 1
    assert cheat.value <= honest.value + 0.1
    assert attack_rate(model, everything, split, 0.0, None, by_itself()).value == 1
    with pytest.raises(DataError, match="inputs are token ids"):
        attack_rate(model, everything.float(), split, 0.0, None, task)
    with pytest.raises(TaskError, match="nothing to score"):
        attack_rate(model, everything, split, 0.0, None, unattacked())


def test_an_attack_of_ones_own_on_numbers_knows_no_eps_but_the_range(digits):
    import dataclasses

    task = dataclasses.replace(digits, attack=lambda models, x, y, generator: 1 - x)
    x = digits.splits.guide.x[:4]
    proposed = craft(task, digits.model(0), x, torch.zeros(4).long(), generator=source(0))
    assert torch.equal(confine(task, proposed, x, 0.1), 1 - x)
    beyond = torch.tensor([2.0, torch.nan, -1.0, 0.5]).view(4, 1, 1, 1).expand_as(x)
    inside = confine(task, beyond, x, 0.1)
    assert bool((inside[0] == 1).all() & (inside[2] == 0).all() & (inside[3] == 0.5).all())
    assert torch.equal(inside[1], x[1])
