"""Polynomial activations, and networks that are approximated by them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from g2d.errors import TaskError
from g2d.tasks.networks import digits_cnn, digits_he_cnn, resnet18
from g2d.tasks.polynomials import Quadratic, Square, approximate, skeleton


def test_polynomials_are_what_they_say():
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(Square()(x), x**2)
    fixed, learned = Quadratic(0.5, -1, 2), Quadratic(0.5, -1, 2, learned=True)
    for one in (fixed, learned):
        torch.testing.assert_close(one(x), 0.5 * x**2 - x + 2)
        assert one.values == (0.5, -1.0, 2.0)
        assert repr(one) == "Quadratic(a=0.5, b=-1, c=2)"
    assert (Square().fixed(), fixed.fixed(), learned.fixed()) == ((1, 0, 0), (0.5, -1, 2), None)
    assert (list(fixed.state_dict()), list(learned.state_dict())) == ([], ["a", "b", "c"])
    learned(x).sum().backward()
    assert learned.a.grad == x.square().sum()


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip


def test_an_approximation_is_labelled_lossy_and_says_what_it_loses(plain, digits):
    judged, images = digits.splits.gate, digits.splits.guide.x
    before = copy.deepcopy(plain.state_dict())
    found = approximate(plain, images, judged=judged)
    assert found.replaced == ("1", "3", "6")
    assert {type(layer) for layer in found.network} == {
        nn.Conv2d, nn.Linear, nn.Flatten, Quadratic,
    }  # fmt: skip
    answers = [model(judged.x).argmax(1) for model in (found.network, plain)]
    right = [float((answer == judged.y).double().mean()) for answer in answers]
    assert [found.accuracy, found.original] == right
    assert found.agreement == float((answers[0] == answers[1]).double().mean())
    assert right[1] - 0.03 < right[0] <= 1
    assert str(found) == (
        f"lossy approximation by polynomials of degree 2 (3 layers): accuracy {right[0]:.2%}, the "
        f"original's {right[1]:.2%}; the same class on {found.agreement:.2%} of 360 images"
    )
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in before.items())
    again = skeleton(digits_cnn())
    again.load_state_dict(found.network.state_dict())
    assert torch.equal(again(judged.x[:4]), found.network(judged.x[:4]))


def test_a_quadratic_is_the_nearest_in_least_squares():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(400, 3)
    found = approximate(network, x).network
    z = network[0](x).detach().double().flatten()
    powers = torch.stack([z**2, z, torch.ones_like(z)], 1)
    best = torch.linalg.lstsq(powers, z.relu()[:, None]).solution[:, 0]
    torch.testing.assert_close(torch.tensor(found[1].values).double(), best, rtol=1e-4, atol=1e-5)


def test_weights_behind_a_mean_are_fitted_again_and_what_is_a_polynomial_stays():
    """By its coefficients alone, MNIST's network of a max pool fell from 98 to 66 %."""
    torch.manual_seed(0)
    network, x = small().eval().requires_grad_(False), torch.rand(300, 1, 8, 8)
    found = approximate(network, x)
    bare = copy.deepcopy(found.network)
    for place in (3, 7, 9):
        bare[place].load_state_dict(network[place].state_dict())
    wanted = network(x)
    apart = [float((model(x) - wanted).square().mean()) for model in (found.network, bare)]
    assert apart[0] < 0.2 * apart[1]
    assert isinstance(found.network[2], nn.AvgPool2d)
    assert found.accuracy is None
    assert "accuracy" not in str(found)
    linear = nn.Sequential(nn.Linear(64, 8), Square(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    same = approximate(linear, x.flatten(1)).network
    assert torch.equal(same[0].weight, linear[0].weight)
    assert torch.equal(same[2].weight, linear[2].weight)
    assert isinstance(same[1], Square)


def test_dead_and_constant_units_have_a_fit():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.fill_(0.5)
    for value in (0.5, 0.0, -0.5):
        with torch.no_grad():
            network[0].bias.fill_(value)
        x = torch.rand(20, 3)
        found = approximate(network, x).network
        torch.testing.assert_close(found(x), network(x), atol=1e-4, rtol=1e-4)


class Between(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(self.act(self.one(x)) + x)


class Twice(Between):
    def forward(self, x):
        return self.two(self.act(self.one(self.act(x))))


@pytest.mark.parametrize(
    ("network", "shape", "says"),
    [
        pytest.param(digits_he_cnn(), (1, 8, 8), "nothing to approximate", id="squares"),
        pytest.param(Between(), (4,), "no chain of layers", id="shortcut"),
        pytest.param(Twice(), (4,), "no chain of layers", id="one layer twice"),
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), (4,), "'1' is Softmax", id="s"),
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (4,), "LayerNorm", id="norm"),
        pytest.param(resnet18(), (3, 32, 32), "AdaptiveAvgPool2d", id="resnet"),
    ],
)
def test_what_cannot_be_approximated_is_refused_in_one_line(network, shape, says):
    with pytest.raises(TaskError, match=says) as refused:
        approximate(network.eval(), torch.rand(4, *shape))
    assert "\n" not in str(refused.value)


def test_other_degrees_and_images_are_refused():
    for degree in (1, 3, 7):
        with pytest.raises(TaskError, match=f"degree is {degree}.*give degree=2"):
            approximate(digits_cnn(), torch.rand(4, 1, 8, 8), degree)
    for images in (
        torch.rand(1, 1, 8, 8),
        torch.ones(4, 1, 8, 8).long(),
        torch.full((4, 1), torch.inf),
    ):
        with pytest.raises(TaskError, match="two or more to calibrate on"):
            approximate(digits_cnn(), images)
