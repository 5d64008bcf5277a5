"""One table of cases drives every attack: what each must keep, whatever it is.

A new attack joins by a line in `TABLE`.
"""

import dataclasses
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from g2d.attacks import apgd, autoattack, box, fgsm, pgd, project, square, universal
from g2d.attacks.query import clock_square
from g2d.errors import SettingsError
from g2d.redteam.scoring import attack_rate
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split
from small_models import source


@dataclasses.dataclass(frozen=True)
class Attack:
    """A line of the table.

    propose: maps (model, x, y, eps, bounds, seed) to proposals. sure: ASR that it reaches when the
    ball holds the whole range. n, eps: images to run it on, and their budget. unbounded: works
    without a range. library: what it needs. apart: how far the ASR may move with the units.
    """

    name: str
    propose: Callable
    sure: float = 1.0
    n: int = 60
    eps: float = 0.1
    unbounded: bool = True
    library: str = ""
    apart: float = 0.05 + 1e-9


def ours(function, **more):
    return lambda model, x, y, eps, bounds, seed: function(
        model, x, y, eps=eps, generator=source(seed), bounds=bounds, **more
    )


def asking(function, **more):
    """An attack on an API: it sees scores alone."""
    return lambda model, x, y, eps, bounds, seed: function(
        lambda points, _: predict(model, points), x, y,
        eps=eps, generator=source(seed), bounds=bounds, **more
    )  # fmt: skip


def theirs(function, **more):
    return lambda model, x, y, eps, bounds, seed: function(
        model, x, y, eps=eps, seed=seed, bounds=bounds, **more
    )


def jointly(propose):
    return lambda model, *rest: propose([model, model], *rest)


def one_for_all(model, x, y, eps, bounds, seed):
    delta = universal(model, x, y, eps=eps, steps=60, generator=source(seed), bounds=bounds)
    return project(x + delta, x, eps, bounds)


def library(name, propose, **more):
    return Attack(name, propose, unbounded=False, library="pyautoattack", **more)


TABLE = [
    Attack("pgd", ours(pgd, steps=20)),
    Attack("pgd momentum", ours(pgd, steps=20, decay=1.0)),
    Attack("pgd joint", jointly(ours(pgd, steps=20))),
    # One step of 1.25 eps overshoots when the ball is the whole range.
    Attack("fgsm", ours(fgsm), sure=0.8),
    # One perturbation for all: the inputs of the class that it leads to are not flipped.
    Attack("universal", one_for_all, sure=0.8),
    # A random search: one proposal that rounding accepts or not sends all that follow elsewhere.
    Attack("square by the clock", asking(clock_square, budget=300, every=150), apart=0.1),
    library("apgd", theirs(apgd, steps=20)),
    library("apgd flip", theirs(apgd, steps=20, keep="flip", restarts=2)),
    library("apgd dlr", theirs(apgd, steps=20, loss="dlr")),
    library("apgd joint", jointly(theirs(apgd, steps=20))),
    library("square", theirs(square, queries=200)),
    # Seconds for every input that survives APGD: Square makes all of its 5,000 queries.
    library("autoattack", theirs(autoattack), n=2, eps=0.5),
]


@pytest.fixture(params=TABLE, ids=lambda attack: attack.name)
def attack(request):
    if request.param.library:
        pytest.importorskip(request.param.library)
    return request.param


def run(attack, model, split, eps, bounds=(0.0, 1.0), seed=3):
    return attack.propose(model, split.x, split.y, eps, bounds, seed)


def test_proposals_keep_shape_ball_and_range(attack, images):
    (model, _), split = images
    split = split.take(range(attack.n))
    before = split.x.clone()
    found = run(attack, model, split, attack.eps)
    assert found.shape == split.x.shape
    assert found.dtype == split.x.dtype
    assert not found.requires_grad
    assert torch.equal(split.x, before), "the clean inputs were written to"
    inside = project(found, split.x, attack.eps, (0.0, 1.0))
    torch.testing.assert_close(found, inside, atol=1e-6, rtol=0)
    assert not torch.equal(found, split.x)


def test_equal_seeds_give_equal_bytes_and_global_randomness_is_left_alone(attack, images):
    (model, _), split = images
    split = split.take(range(attack.n))
    torch.manual_seed(11)
    np.random.seed(11)
    state, arrays, trace = torch.get_rng_state(), np.random.get_state()[1].copy(), sys.gettrace()
    first = run(attack, model, split, attack.eps)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == arrays).all()
    assert sys.gettrace() is trace
    torch.manual_seed(12)
    assert torch.equal(first, run(attack, model, split, attack.eps))


def test_a_ball_of_the_whole_range_flips_everything(attack, images):
    (model, _), split = images
    found = run(attack, model, split, 1.0)
    assert attack_rate(model, found, split, 1.0, (0.0, 1.0)).value >= attack.sure


@pytest.mark.slow
def test_an_empty_ball_flips_nothing(attack, images):
    (model, _), split = images
    split = split.take(range(attack.n))
    found = run(attack, model, split, 1e-6)
    assert attack_rate(model, found, split, 1e-6, (0.0, 1.0)).value == 0


@pytest.mark.parametrize("eps", [-0.1, 1.5, float("nan")])
def test_a_budget_outside_the_range_is_refused(attack, images, eps):
    (model, _), split = images
    with pytest.raises(SettingsError, match="eps must lie between 0 and the data range"):
        run(attack, model, split, eps)


def test_tabular_inputs_work(attack, rows):
    model, split = rows
    found = run(attack, model, split, 0.5)
    assert found.shape == split.x.shape
    assert attack_rate(model, found, split, 0.5, (0.0, 1.0)).value > 0.3


def test_data_without_a_range_work_or_are_refused(attack, rows):
    model, split = rows
    if attack.unbounded:
        found = run(attack, model, split, 0.5, None)
        assert attack_rate(model, found, split, 0.5, None).value > 0.3
    else:
        with pytest.raises(SettingsError, match="range of the data"):
            run(attack, model, split, 0.5, None)


def test_a_box_holds_every_ball_and_makes_up_for_a_missing_range(rows):
    pytest.importorskip("pyautoattack")
    model, split = rows
    assert box(split.x, 0.5, (-1.0, 2.0)) == (-1.0, 2.0)
    low, high = box(split.x, 0.5, None)
    assert low < float(split.x.min()) - 0.5
    assert high > float(split.x.max()) + 0.5
    found = autoattack(model, split.x[:5], split.y[:5], eps=0.5, seed=0, bounds=(low, high))
    assert attack_rate(model, found, split.take(range(5)), 0.5, None).value == 1


def test_no_inputs_give_no_proposals(attack, images):
    (model, _), split = images
    if attack.name == "universal":
        with pytest.raises(SettingsError, match="at least one input"):
            run(attack, model, split.take(range(0)), 0.1)
    else:
        assert run(attack, model, split.take(range(0)), 0.1).shape == (0, 1, 8, 8)


def test_other_ranges_and_precisions_are_the_same_attack(attack, images):
    """An affine change of units, in double precision, changes neither proposals nor verdicts."""
    (model, _), split = images
    split = split.take(range(attack.n))
    moved = Split(split.x.double() * 4 - 1, split.y)

    def same(x):
        return model(((x + 1) / 4).float())

    same.eval = same.train = lambda *_: None
    same.training = False
    plain = attack_rate(model, run(attack, model, split, 0.15), split, 0.15, (0.0, 1.0))
    found = run(attack, same, moved, 0.6, (-1.0, 3.0))
    assert found.dtype == torch.float64
    other = attack_rate(same, found, moved, 0.6, (-1.0, 3.0))
    assert abs(plain.value - other.value) <= attack.apart


def test_a_universal_perturbation_is_one_for_all_and_carries_over_to_new_inputs(images):
    import g2d

    (model, _), split = images
    own = g2d.load_task("digits").splits.guide
    delta = universal(model, own.x, own.y, eps=0.3, steps=100, generator=source(0))
    assert delta.shape == split.x.shape[1:]
    assert float(delta.abs().max()) <= 0.3 + 1e-6
    signs = (torch.rand(delta.shape, generator=source(1)) - 0.5).sign()
    found, chance = (
        attack_rate(model, split.x + 0.3 * d, split, 0.3, (0.0, 1.0)).value
        for d in (delta / 0.3, signs)
    )
    assert found > 0.3
    assert found > chance
