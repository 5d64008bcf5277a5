"""Every attack on a table stays inside its budget, and finds what is there to be found."""

import pytest
import torch

from g2d.attacks import apgd, autoattack, fgsm, pgd, project, square, universal
from g2d.attacks.eot import eot_pgd
from g2d.attacks.pools import craft_pool, pack_pool, unpack_pool
from g2d.attacks.query import clock_square
from g2d.errors import SettingsError
from g2d.redteam.query_log import QueryLog
from g2d.redteam.scoring import attack_rate
from g2d.tasks.inference import predict
from places import example
from small_models import source
from tables import BUDGET, table_model, table_task, valid


@pytest.fixture(scope="module")
def task():
    return table_task()


@pytest.fixture(scope="module")
def model(task):
    return table_model(task)


def ours(function, **more):
    return lambda model, x, y: function(
        model, x, y, eps=2.0, generator=source(0), bounds=BUDGET, **more
    )


def asking(model, x, y):
    return clock_square(
        lambda points, _: predict(model, points), x, y,
        eps=2.0, budget=60, generator=source(0), bounds=BUDGET,
    )  # fmt: skip


def shared(model, x, y):
    delta = universal(model, x, y, eps=2.0, steps=30, generator=source(0), bounds=BUDGET)
    return project(x + delta, x, 2.0, BUDGET)


def theirs(model, x, y):
    pytest.importorskip("pyautoattack")
    return apgd(model, x, y, eps=2.0, steps=20, seed=0, bounds=BUDGET, keep="flip")


# The share of the best that any assignment of the ends and the categories reaches (`exhausted`).
TABLE = {
    "pgd": (ours(pgd, steps=20), 0.97),
    "pgd momentum": (ours(pgd, steps=20, decay=1.0), 0.97),
    "pgd joint": (lambda m, x, y: ours(pgd, steps=20)([m, m], x, y), 0.97),
    "fgsm": (ours(fgsm), 0.5),
    "eot": (lambda m, x, y: ours(eot_pgd, steps=20)(lambda: [m], x, y), 0.9),
    "apgd": (theirs, 0.97),
    "square": (asking, 0.9),
    "universal": (shared, 0.2),
}


def exhausted(model, x, y):
    """Proposals that no attack within the budget beats by much: every corner, the worst of all."""
    wrong = torch.zeros(len(x), dtype=torch.bool)
    best = x.clone()
    for corner in range(2**5):
        for category in (5, 6):
            wish = x + 99 * torch.tensor([2.0 * (corner >> i & 1) - 1 for i in range(5)] + [0] * 3)
            wish[:, category] = 9.0
            point = BUDGET.project(wish, x, 2.0)
            found = predict(model, point).argmax(1) != y
            best[found & ~wrong], wrong = point[found & ~wrong], wrong | found
    return best


@pytest.mark.parametrize("name", TABLE)
def test_an_attack_stays_inside_and_finds_most_of_what_there_is(name, task, model):
    propose, share = TABLE[name]
    split = task.splits.test
    found = propose(model, split.x, split.y)
    valid(found, split.x)
    best = attack_rate(model, exhausted(model, split.x, split.y), split, 2.0, BUDGET).value
    assert attack_rate(model, found, split, 2.0, BUDGET).value >= share * best
    assert best > 0.5
    assert not torch.equal(found[:, 5:], split.x[:, 5:]), "no category was swapped"


def test_the_judge_lets_nothing_pass_that_cannot_be_sent(task, model):
    split = task.splits.test
    cheated = split.x + 1000 * torch.randn(split.x.shape, generator=source(0))
    fair = BUDGET.project(cheated, split.x, 2.0)
    rates = [attack_rate(model, p, split, 2.0, task.reach) for p in (cheated, fair)]
    assert rates[0] == rates[1]


def test_a_log_counts_no_win_outside_the_budget(task):
    split = task.splits.test.take(range(1))
    wrong = torch.nn.functional.one_hot(1 - split.y, 2).float()

    def won(x):
        log = QueryLog(lambda *_: (wrong, torch.zeros(1).long()), split, eps=2.0, budget=5,
                       bounds=BUDGET)  # fmt: skip
        log(x, torch.zeros(1, dtype=torch.long))
        return bool(log.won(5)[0])

    assert won(BUDGET.project(split.x + 1, split.x, 2.0))
    assert not won(split.x + torch.tensor([0, 0, 0.5, 0, 0, 0, 0, 0]))


def test_pools_keep_what_was_crafted_to_the_bit(task, model):
    attacks, index = craft_pool(task, model, task.splits.guide, 40, 5, 0)
    valid(attacks, task.splits.guide.x[index])
    back = unpack_pool(pack_pool(attacks, index, task), task.splits.guide)
    assert torch.equal(back.x, attacks)


def test_what_cannot_respect_a_budget_says_why(task, model):
    pytest.importorskip("pyautoattack")
    x, y = task.splits.test.x[:4], task.splits.test.y[:4]
    for attack in (autoattack, lambda *a, **k: square(*a, queries=5, **k)):
        with pytest.raises(SettingsError, match="one eps for all features and drops rows"):
            attack(model, x, y, eps=2.0, seed=0, bounds=BUDGET)
    with pytest.raises(SettingsError, match="norm is '2', and the task has a budget"):
        pgd(model, x, y, eps=2.0, steps=1, generator=source(0), bounds=BUDGET, norm="2")


def test_same_seed_same_bytes(task, model):
    x, y = task.splits.test.x, task.splits.test.y
    for propose in (TABLE["pgd"][0], TABLE["eot"][0], TABLE["square"][0]):
        assert torch.equal(propose(model, x, y), propose(model, x, y))


def test_the_page_shows_a_task_that_works():
    space: dict = {}
    exec(compile(example("Tables", "docs/models.md"), "models.md", "exec"), space)
    task = space["task"]
    assert task.eps == 100
    assert task.model(0)(task.splits.test.x).shape == (80, 2)
