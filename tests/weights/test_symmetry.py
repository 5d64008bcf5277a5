from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from g2d.tasks.networks import digits_cnn, mnist_cnn, mnist_robust_cnn, resnet18
from g2d.weights.symmetry import (
    align,
    aligned_distances,
    balance,
    couplings,
    match,
    permute,
    relative_l1,
    rescale,
)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(80, 4),
    )  # fmt: skip


CASES = [
    pytest.param(mlp, (6,), 2, id="mlp"),
    pytest.param(digits_cnn, (1, 8, 8), 3, id="digits_cnn"),
    pytest.param(mnist_cnn, (1, 28, 28), 3, id="mnist_cnn"),
    pytest.param(normed, (1, 8, 8), 2, id="cnn with batch norm"),
]


def made(factory, shape, seed=0):
    torch.manual_seed(seed)
    model = factory()
    x = torch.randn(32, *shape)
    model.train()(x)  # batch norm gets statistics that are not the defaults
    model.eval()
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return model, state, x


@pytest.mark.parametrize(("factory", "shape", "layers"), CASES)
def test_align_leaves_logits_unchanged_and_finds_the_permutation(factory, shape, layers):
    model, state, x = made(factory, shape)
    chain = couplings(model, x[:4])
    assert len(chain) == layers
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(c.units, generator=generator) for c in chain]
    moved = permute(state, chain, orders)
    before = functional_call(model, state, (x,))
    torch.testing.assert_close(functional_call(model, moved, (x,)), before, atol=1e-5, rtol=1e-4)
    assert relative_l1(state, moved) > 0.5
    aligned = align(state, moved, chain)
    assert relative_l1(state, aligned) < 1e-6
    torch.testing.assert_close(functional_call(model, aligned, (x,)), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("factory", "shape", "layers"), CASES)
def test_align_never_changes_the_function_of_another_network(factory, shape, layers):
    model, state, x = made(factory, shape)
    _, other, _ = made(factory, shape, seed=5)
    chain = couplings(model, x[:4])
    aligned = align(state, other, chain)
    before = functional_call(model, other, (x,))
    torch.testing.assert_close(functional_call(model, aligned, (x,)), before, atol=1e-5, rtol=1e-4)
    assert relative_l1(state, aligned) <= relative_l1(state, other) * 1.05


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_permuted_and_rescaled_copies_have_distance_zero(seed):
    model, state, x = made(digits_cnn, (1, 8, 8))
    chain = couplings(model, x[:4])
    g = torch.Generator().manual_seed(seed)
    moved = permute(state, chain, [torch.randperm(c.units, generator=g) for c in chain])
    factors = [torch.rand(c.units, generator=g).mul(6).sub(3).exp2() for c in chain]
    moved = rescale(moved, chain, factors)
    assert relative_l1(state, moved) > 0.3
    assert aligned_distances([state, moved], moved, chain)[0] < 5e-3
    torch.testing.assert_close(
        functional_call(model, balance(moved, chain), (x,)),
        functional_call(model, state, (x,)),
        atol=1e-4,
        rtol=1e-3,
    )


def test_tanh_units_are_not_rescaled():
    model, state, x = made(mlp, (6,))
    chain = couplings(model, x[:4])
    assert [c.homogeneous for c in chain] == [False, True]
    before = functional_call(model, state, (x,))
    torch.testing.assert_close(functional_call(model, balance(state, chain), (x,)), before)


def test_models_that_are_no_chain_are_left_alone():
    model, state, x = made(resnet18, (3, 32, 32))
    assert couplings(model, x[:2]) == ()
    assert match(state, state, ()) == []
    assert aligned_distances([state], state, ()) == [0]


class Shuffled(nn.Module):
    """Registered in another order than it runs: reading the chain off the names would be wrong."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).flip(-1))


def test_a_guess_that_changes_logits_is_discarded():
    model, _, x = made(Shuffled, (8,))
    assert couplings(model, x[:4]) == ()


def test_what_is_done_to_the_inputs_first_does_not_break_the_chain():
    probe = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert len(couplings(mnist_robust_cnn(), probe)) == 4


def test_a_norm_of_flattened_images_is_no_chain_and_no_crash():
    """Its tensors are longer than the units before it: to index them by units raised."""
    layers = nn.Conv2d(1, 4, 3), nn.Flatten(), nn.BatchNorm1d(4 * 36), nn.ReLU()
    assert couplings(nn.Sequential(*layers, nn.Linear(4 * 36, 3)), torch.rand(4, 1, 8, 8)) == ()
