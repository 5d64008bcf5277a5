"""Layouts and rotations of homomorphic inference, on plain numbers: torch's answers come out."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from g2d.protect.homomorphic import Plan, Unsupported
from g2d.protect.homomorphic.matrices import affines
from g2d.protect.homomorphic.rotations import split, tree
from g2d.tasks.networks import digits_he_cnn, mnist_he_cnn
from g2d.tasks.polynomials import Quadratic, Square
from he_networks import computed, mixed, tiny


def pooled():
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), Square(), nn.AvgPool2d(2),
        nn.Conv2d(8, 4, 5, padding=2), Square(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(36, 8), Square(), nn.Linear(8, 10),
    )  # fmt: skip


NETWORKS = {
    "mixed": (mixed, (2, 8, 8)),
    "tiny": (tiny, (6,)),
    "digits-he": (digits_he_cnn, (1, 8, 8)),
    "mnist-he": (mnist_he_cnn, (1, 28, 28)),
    "pooled": (pooled, (1, 12, 12)),
    "one step": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4)),
    "convolution last": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), Square(), nn.Conv2d(2, 3, 2)),
                         (1, 6, 5)),
}  # fmt: skip


def check(network, shape):
    """Every slot of the answer is a logit, its copy, or zero."""
    network = network.double().eval()
    plan = Plan.of(network, shape)
    image = torch.rand(1, *shape, dtype=torch.float64)
    wanted = network(image).detach().numpy().ravel()
    slots = computed(plan, affines(plan.steps, network.state_dict()), image.numpy())
    made = plan.programs[-1].made
    assert made.period > len(wanted), "a slot is idle, where what wraps around shows"
    full = np.zeros(made.period)
    full[made.slots] = wanted
    np.testing.assert_allclose(slots, np.tile(full, len(slots) // made.period), atol=1e-9)
    return plan


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_compute_what_the_network_does_and_leave_no_partial_sums(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(1)
    check(make(), shape)


@pytest.mark.parametrize("seed", range(25))
def test_random_chains(seed):
    """Odd sides, strides, windows and channels."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape = draw.choice([1, 2, 3]), draw.randint(6, 12), draw.randint(6, 12)
    layers, here = [], torch.zeros(1, *shape)
    for _ in range(draw.randint(1, 2)):
        size, step = draw.randint(1, 4), draw.choice([1, 1, 2, 2, 3, 4, (1, 2)])
        layers.append(nn.Conv2d(here.shape[1], draw.choice([1, 3, 4, 5]), size, step, padding=size))
        layers.append(draw.choice([Square(), Quadratic(0.3, draw.uniform(-1, 1), 0.2)]))
        if draw.random() < 0.5:
            layers.append(nn.AvgPool2d(2, draw.choice([None, 1])))
        here = nn.Sequential(*layers)(torch.zeros(1, *shape))
    layers += [nn.Flatten(), nn.Linear(here[0].numel(), draw.randint(1, 20))]
    try:
        check(nn.Sequential(*layers), shape)
    except Unsupported as error:
        assert "padding" in str(error)  # noqa: PT017 a window that sees nothing is no network


def test_mnist_he_stays_as_cheap_as_it_was():
    """Key switches and products decide what a request takes; few keys, what an upload has."""
    plan = Plan.of(mnist_he_cnn(), (1, 28, 28))
    switches = sum(
        len(one.babies) + len(one.giants) + len(one.folds) + len(one.pools) for one in plan.programs
    )
    assert (plan.parameters.degree, plan.ciphertexts) == (16384, 7)
    assert switches <= 40
    assert sum(len(one.terms) for one in plan.programs) <= 100
    assert plan.limits.upload_bytes <= 60e6


def test_baby_and_giant_steps_reach_every_rotation():
    wanted = [x + 16 * y + 256 * c for x in range(5) for y in range(5) for c in range(4)]
    found = split(wanted, 4)
    for rotation in wanted:
        for part, steps in ((rotation & found.mask, found.babies),
                            (rotation & ~found.mask, found.giants)):  # fmt: skip
            assert part == 0 or part in {value for value, _, _ in steps}
    assert len(found.babies) + len(found.giants) == 18  # 10 and 10, of 100


def test_a_tree_reaches_its_values_by_few_different_steps():
    found = tree([1, 2, 3, 4, 16, 17, 18, 19, 20])
    known = {0}
    for value, parent, step in found:
        assert parent in known
        assert value == parent + step
        known.add(value)
    assert {step for _, _, step in found} == {1, 16}


def test_an_activation_that_does_not_fit_is_named():
    network = nn.Sequential(nn.Conv2d(1, 40, 3, padding=1), Square(), nn.Flatten(),
                            nn.Linear(40 * 1024, 2))  # fmt: skip
    with pytest.raises(Unsupported, match=r"layer '0' makes 40960 numbers .* slots"):
        Plan.of(network, (1, 32, 32))
