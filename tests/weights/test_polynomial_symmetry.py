"""Hidden units of squares and quadratics: what may be done to them, and that it is undone."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.func import functional_call

from g2d.attacks.removal import disguised
from g2d.protect.layout import conceal, hide, random_inputs, reveal
from g2d.protect.trace.frame import Frame
from g2d.tasks.polynomials import Quadratic, Square
from g2d.weights.layout import same_bits, whole_state
from g2d.weights.symmetry import (
    align,
    aligned_distances,
    balance,
    couplings,
    permute,
    relative_l1,
    rescale,
)


def network(*activations: nn.Module) -> nn.Module:
    one, two, three = activations
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), one, nn.AvgPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1), two, nn.Flatten(),
        nn.Linear(80, 7), three, nn.Linear(7, 4),
    )  # fmt: skip


def squares() -> nn.Module:
    return network(Square(), Square(), Square())


def quadratics() -> nn.Module:
    return network(Quadratic(0.5, 1, 0.25), Quadratic(0.25, 0.5), Quadratic(-0.5, 0, 0))


def learned() -> nn.Module:
    return network(*(Quadratic(0.25, 0.5, learned=True) for _ in range(3)))


def mixed() -> nn.Module:
    """Orders in which activations, pools and norms leave less than a square alone would."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d(2), Square(),  # of no sign
        nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), Square(), nn.ReLU(),  # turned by the norm
        nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), Square(), nn.AvgPool2d(2),  # of no sign
        nn.Conv2d(6, 5, 1, bias=False), Quadratic(1, 1), nn.Flatten(),  # nothing: no bias to shift
        nn.Linear(20, 9), Square(), nn.BatchNorm1d(9),  # what follows the norm, as through ReLU
        nn.Linear(9, 8), Quadratic(1, 0, 2), nn.Tanh(),  # signs alone
        nn.Linear(8, 8), Quadratic(0, 2, 0), Square(), Square(), nn.Linear(8, 4),  # of degree 4
    )  # fmt: skip


EXPECTED = {
    squares: [(2, True)] * 3,
    quadratics: [(0, True), (0, True), (2, True)],
    learned: [(0, False)] * 3,
    mixed: [(2, False), (2, True), (2, False), (0, False), (1, False), (0, True), (4, False)],
}
CASES = [pytest.param(factory, id=factory.__name__) for factory in EXPECTED]


def made(factory, seed: int = 0):
    torch.manual_seed(seed)
    model = factory()
    x = torch.randn(16, 1, 8, 8)
    model.train()(x)
    state = whole_state(model)
    if factory is learned:  # coefficients that are not all the same
        state = {k: t + 0.1 * torch.rand(()) if t.dim() == 0 else t for k, t in state.items()}
    model.eval().load_state_dict(state)
    return model.requires_grad_(False), state, x


def assert_same(model: nn.Module, one, other, x: torch.Tensor) -> None:
    """Logits apart by no more than 1e-5 of an input's largest."""
    before, after = (functional_call(model, state, (x,)) for state in (one, other))
    apart = (before - after).abs().amax(1) / (1 + before.abs().amax(1))
    assert float(apart.max()) < 1e-5


@pytest.mark.parametrize("factory", CASES)
def test_what_may_be_done_to_the_units_is_read_off_the_model(factory):
    model, _, x = made(factory)
    chain = couplings(model, x[:8])
    assert [(layer.degree, layer.even) for layer in chain] == EXPECTED[factory]


@pytest.mark.parametrize("factory", CASES)
def test_a_disguised_copy_has_the_same_function_and_distance_zero(factory):
    model, state, x = made(factory)
    chain = couplings(model, x[:8])
    for seed in range(3):
        moved = disguised(state, chain, torch.Generator().manual_seed(seed))
        assert_same(model, state, moved, x)
        assert relative_l1(state, moved) > 0.3
        assert_same(model, state, balance(moved, chain), x)
        assert_same(model, state, align(state, moved, chain), x)
        assert aligned_distances([state], moved, chain)[0] < 5e-3


@pytest.mark.parametrize("factory", CASES)
def test_balanced_units_enter_and_leave_with_the_same_norm(factory):
    model, state, x = made(factory)
    chain = couplings(model, x[:8])
    even = balance(state, chain)
    for layer in chain:
        if layer.homogeneous:
            entering = layer.entering(even, torch.float64).square().sum(1)
            blocks = even[layer.into].double().reshape(len(even[layer.into]), layer.units, -1)
            torch.testing.assert_close(entering, blocks.square().sum((0, 2)), rtol=0.02, atol=0)


@pytest.mark.parametrize("factory", CASES)
def test_a_disguised_copy_is_traced_to_the_network_that_it_was_made_from(factory):
    model, state, x = made(factory)
    chain = couplings(model, x[:8])
    names = tuple(n for n, t in state.items() if t.is_floating_point())
    frame = Frame(balance(state, chain), chain, names)
    moved = disguised(state, chain, torch.Generator().manual_seed(4))
    torch.testing.assert_close(frame.onto(moved), frame.own([state])[0], rtol=0.02, atol=2e-3)
    other = frame.onto(made(factory, seed=1)[1])
    assert float((frame.onto(moved) - frame.own([state])[0]).norm()) < 0.05 * float(
        (other - frame.own([state])[0]).norm()
    )


@pytest.mark.parametrize("factory", CASES)
def test_the_secret_layout_hides_units_and_can_be_revealed_bit_by_bit(factory):
    model, state, x = made(factory)
    chain = couplings(model, x[:8])
    for seed in range(3):
        hidden, units = hide(state, chain, random.Random(seed).randbytes)
        assert_same(model, state, hidden, x)
        back = reveal(hidden, units, chain)
        assert all(same_bits(back[name], tensor) for name, tensor in state.items())
        for layer, factor in zip(chain, units.factors, strict=True):
            assert len(set(factor.abs().tolist())) == 1
            assert bool((factor < 0).any()) == (layer.even and not layer.vertex)


@pytest.mark.parametrize("factory", CASES)
def test_a_served_network_is_concealed_whatever_inputs_make_of_its_polynomials(factory):
    model, state, _ = made(factory)
    found = conceal(model, state, random_inputs((1, 8, 8), torch.float32))
    assert (found.layout, found.failed) == ("secret", "")


def test_a_sign_before_a_square_counts_for_nothing_and_before_a_relu_it_counts():
    model, state, x = made(squares)
    chain = couplings(model, x[:8])
    moved = rescale(state, chain[:1], [torch.tensor([-1.0, 1, -2, 1, 1, -0.5])])
    assert_same(model, state, moved, x)
    assert aligned_distances([state], moved, chain)[0] < 1e-3
    torch.testing.assert_close(moved["3.weight"][:, 2] * 4, state["3.weight"][:, 2])
    ordinary = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    units = couplings(ordinary, torch.randn(8, 6))
    with pytest.raises(AssertionError):
        rescale(whole_state(ordinary), units, [-torch.ones(6)])


def test_units_find_their_order_whichever_sign_they_have():
    model, state, x = made(squares)
    chain = couplings(model, x[:8])
    source = torch.Generator().manual_seed(0)
    moved = permute(state, chain, [torch.randperm(c.units, generator=source) for c in chain])
    moved = rescale(moved, chain, [-torch.ones(c.units) for c in chain])
    assert relative_l1(state, align(state, moved, chain)) < 1e-6


class Written(nn.Module):
    """An activation that no module shows: nearly ReLU, where its argument is large."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(nn.functional.softplus(self.first(x)))


def test_a_wrong_guess_is_found_on_each_input_by_the_scale_of_its_own_logits():
    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(16, 8)
    x[0] *= 1e8  # by whose logits everybody else's would be the same
    assert couplings(model, x) == ()


def test_inputs_that_overflow_do_not_hide_the_chain():
    model, _, x = made(squares)
    x[0] *= 1e12
    assert not bool(model(x[:1]).isfinite().all())
    assert len(couplings(model, x)) == 3
    assert couplings(model, x[:1]) == ()
