"""A copy is not new, however it is disguised; nor is what is far away and useless."""

import statistics

import pytest
import torch
from torch import nn

from g2d.errors import DataError
from g2d.redteam.controls import FittedMembers, noised, permuted, soups
from g2d.redteam.novelty import Distances, measure, novel, spaced
from g2d.tasks.inference import load_model
from g2d.tasks.splits import Split, split_dataset
from g2d.tasks.task import Task
from g2d.weights.symmetry import aligned_distances, couplings


def small():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture(scope="module")
def task():
    x = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    return Task("toy", small, split_dataset(x, (x[:, 0] > 0.5).long()), classes=2, eps=0.1)


@pytest.fixture(scope="module")
def chain():
    return couplings(small(), torch.rand(8, 4))


@pytest.fixture(scope="module")
def states(task):
    return [dict(task.model(seed).state_dict()) for seed in range(4)]


def points(*values):
    """States of a single number each: their distances can be reckoned by hand."""
    return [{"w": torch.tensor([float(value)])} for value in values]


def test_distances_are_those_of_the_gates(states, chain):
    distances = Distances(states[:3], chain)
    wanted = aligned_distances(states[:3], states[3], chain)
    assert distances.all(states[3]) == pytest.approx(wanted)
    assert distances.all(states[3], 2) == pytest.approx(wanted[:2])
    assert distances.nearest(states[3]) == (min(wanted), wanted.index(min(wanted)))


def test_a_member_in_another_order_is_no_distance_away(task, states, chain):
    (copy,) = permuted(task, states[1], 1, seed=0)
    assert not torch.equal(copy["0.weight"], states[1]["0.weight"])
    distance, place = Distances(states, chain).nearest(copy)
    assert (distance, place) == (pytest.approx(0, abs=1e-6), 1)
    assert Distances(states, ()).all(copy)[1] > 0.1  # without alignment it would look new


def test_the_unit_is_the_median_distance_to_the_nearest_other_member():
    # In units of itself: 1 is 1/1 from 2, 2 is 1/2 from 1, 8 is 6/8 from 2.
    assert Distances(points(1, 2, 8), ()).unit == statistics.median([1.0, 0.5, 0.75])
    assert Distances(points(1, 2, 8), (), most=1).unit == 1.0  # asks the first alone
    with pytest.raises(DataError, match="one member"):
        _ = Distances(points(1), ()).unit


def test_places_are_spaced_evenly():
    assert spaced(3, None) == spaced(3, 5) == [0, 1, 2]
    assert spaced(10, 4) == [0, 2, 5, 7]


@pytest.mark.parametrize(
    ("distance", "accuracy", "tau", "wanted"),
    [
        (0.3, 0.9, 2, True),
        (0.2, 0.9, 2, False),  # exactly two units: not more than them
        (0.3, 0.9, 3, False),
        (9.0, 0.79, 1, False),  # far away and useless
        (0.3, 0.8, 1, True),  # the bar itself is enough
    ],
)
def test_novel_is_accurate_and_far(distance, accuracy, tau, wanted):
    assert novel(distance, accuracy, 0.8, 0.1, tau) is wanted


def threshold(at):
    """Class 1 above a threshold."""
    return lambda x: torch.cat([at - x, x - at], 1)


def test_what_is_measured_can_be_reckoned_by_hand():
    split = Split(torch.tensor([[0.1], [0.4], [0.6], [0.9]]), torch.tensor([0, 0, 1, 1]))
    members, models = points(10, 11), [threshold(0.5), threshold(0.7)]
    # A copy of the first, a fair one far away, a useless one farther still; a unit is 0.1 or so.
    found = measure(
        points(10, 16, 50), [threshold(0.5), threshold(0.5), threshold(-1)], models,
        Distances(members, ()), split, bar=0.75,
    )  # fmt: skip
    assert (found.networks, found.accuracy, found.passed) == (3, pytest.approx(5 / 6), 2 / 3)
    assert found.distance == pytest.approx((0 + 5 / 11 + 39 / 11) / 3)
    # The copy agrees with the first member; the others' nearest is the second, which errs at 0.6.
    assert found.disagreement == pytest.approx((0 + 1 / 4 + 3 / 4) / 3)
    assert found.novel == {"1": 1 / 3, "2": 1 / 3, "3": 1 / 3}


def test_each_network_needs_its_model():
    split = Split(torch.zeros(2, 1), torch.tensor([0, 1]))
    distances = Distances(points(1, 2), ())
    models = [threshold(0.5)] * 2
    for states, some, members in ((0, 0, 2), (2, 1, 2), (1, 1, 1)):
        with pytest.raises(DataError, match="a model for each"):
            measure(
                points(3, 4)[:states], models[:some], models[:members], distances, split, bar=0.5
            )


def test_soups_mix_one_basin_and_noise_stays_near_its_member(task, states, chain):
    members = FittedMembers(tuple(states), torch.tensor([0, 0, 1, 1]))
    mixed = soups(members, 3, seed=0)
    means = [(states[i]["0.weight"] + states[i + 1]["0.weight"]) / 2 for i in (0, 2)]
    assert all(any(torch.allclose(s["0.weight"], mean) for mean in means) for s in mixed)
    assert soups(members.take([2]), 3, seed=0) == []
    near = [Distances(states, chain).nearest(state)[0] for state in noised(members, 3, seed=0)]
    assert max(near) < 0.2
    assert torch.equal(soups(members, 3, 0)[0]["0.bias"], mixed[0]["0.bias"])
    assert load_model(task, mixed[0])(task.splits.test.x).shape == (len(task.splits.test), 2)
