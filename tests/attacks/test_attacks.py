"""One table of cases drives every attack: what each must keep, whatever it is.

A new attack joins by a line in `TABLE`.
"""

import dataclasses
import logging
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from g2d.attacks import apgd, autoattack, box, fgsm, pgd, project, square, universal
from g2d.attacks.query import clock_square
from g2d.errors import SettingsError
from g2d.redteam.scoring import attack_rate
from g2d.tasks.inference import predict
from g2d.tasks.splits import Split


def source(seed):
    return torch.Generator().manual_seed(seed)


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


def fitted(model, x, y, steps=150):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


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


# --- momentum ---


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


# --- pyautoattack's room ---


def test_autoattack_gives_the_verdict_of_a_direct_call_image_by_image(images):
    pytest.importorskip("pyautoattack")
    from pyautoattack import AutoAttack

    (model, _), split = images
    split = split.take(range(10))
    found = autoattack(model, split.x, split.y, eps=0.14, seed=5, batch=7)
    with torch.random.fork_rng(devices=[]):
        direct = AutoAttack(model, eps=0.14, seed=5, version="standard")
        expected, labels = direct.run_standard_evaluation(split.x, split.y, batch_size=7)
    assert torch.equal(found, expected)
    robust = predict(model, project(found, split.x, 0.14, (0.0, 1.0))).argmax(1) == split.y
    assert torch.equal(robust, labels == split.y)
    assert 0 < int(robust.sum()) < len(split)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_autoattack_with_few_classes(classes):
    pytest.importorskip("pyautoattack")
    g = source(classes)
    y = torch.arange(8) % classes
    x = (torch.eye(4)[y].reshape(-1, 1, 2, 2) * 0.4 + 0.3).repeat_interleave(2, 3)
    x = (x + 0.02 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    torch.manual_seed(0)
    model = fitted(nn.Sequential(nn.Flatten(), nn.Linear(8, classes)), x, y)
    found = autoattack(model, x, y, eps=0.6, seed=0)
    assert attack_rate(model, found, Split(x, y), 0.6, (0.0, 1.0)).value == 1


def test_autoattack_is_silent_and_leaves_the_logger_as_it_was(images, caplog):
    pytest.importorskip("pyautoattack")
    (model, _), split = images
    with caplog.at_level(logging.DEBUG):
        autoattack(lambda x: model(x).softmax(1), split.x[:2], split.y[:2], eps=0.9, seed=0)
    assert not caplog.records
    assert not logging.getLogger("auto-attack").disabled


def test_an_unknown_version_is_refused(images):
    (model, _), split = images
    with pytest.raises(SettingsError, match="standard, plus, rand"):
        autoattack(model, split.x, split.y, eps=0.1, seed=0, version="quick")


def test_apgd_flips_what_the_librarys_own_flips(images):
    pytest.importorskip("pyautoattack")
    from pyautoattack.autopgd_base import APGDAttack

    (model, _), split = images
    with torch.random.fork_rng(devices=[]):
        direct = APGDAttack(model, n_iter=30, eps=0.12, seed=4, loss="ce")
        expected = direct.perturb(split.x, split.y)
    found = apgd(model, split.x, split.y, eps=0.12, steps=30, seed=4, keep="flip")
    flipped = [predict(model, x).argmax(1) != split.y for x in (found, expected)]
    assert torch.equal(*flipped)
    assert 0 < int(flipped[0].sum()) < len(split)


def test_a_model_beside_itself_is_attacked_as_it_is_alone(images):
    pytest.importorskip("pyautoattack")
    (model, _), split = images
    one = apgd(model, split.x, split.y, eps=0.1, steps=15, seed=0)
    two = apgd([model, model], split.x, split.y, eps=0.1, steps=15, seed=0)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_joint_apgd_reaches_a_higher_joint_loss_than_pgd(images):
    pytest.importorskip("pyautoattack")
    models, split = images
    x, y = split.x, split.y

    def loss(points):
        parts = [F.cross_entropy(m(points), y, reduction="none") for m in models]
        return float(torch.stack(parts).sum(0).mean())

    found = apgd(models, x, y, eps=0.1, steps=40, seed=0)
    plain = pgd(models, x, y, eps=0.1, steps=40, generator=source(0))
    assert loss(found) >= loss(plain) - 1e-3


def test_apgd_refuses_what_makes_no_sense(images):
    models, split = images
    with pytest.raises(SettingsError, match="one model"):
        apgd(models, split.x, split.y, eps=0.1, steps=5, seed=0, keep="flip")
    with pytest.raises(SettingsError, match="loss"):
        apgd(models, split.x, split.y, eps=0.1, steps=5, seed=0, loss="hinge")
    with pytest.raises(SettingsError, match="at least one step"):
        apgd(models, split.x, split.y, eps=0.1, steps=0, seed=0)


# --- universal ---


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
