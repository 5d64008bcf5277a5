"""Programs for parties: read off networks, the same as the network, and nothing else is taken."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from g2d.protect.multiparty.errors import MultipartyError, UnsupportedError
from g2d.protect.multiparty.program import MOST_VALUES, Program
from g2d.protect.multiparty.translate import plain, translate
from g2d.tasks.networks import ResidualBlock, digits_cnn, mnist_cnn, mnist_robust_cnn, resnet18
from g2d.tasks.one_logit import as_pairs


def normed() -> nn.Module:
    made = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Dropout(0.5),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=2, groups=2), nn.AvgPool2d(3, 1, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
    )
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return made


NETWORKS = {
    "digits": (digits_cnn, (1, 8, 8)),
    "mnist": (mnist_cnn, (1, 28, 28)),
    "normed": (normed, (2, 11, 9)),
    "table": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), (4,)),
    "one logit": (lambda: as_pairs(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))),
                  (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_gives_the_networks_logits(name):
    torch.manual_seed(0)
    factory, shape = NETWORKS[name]
    model = factory().eval()
    found = translate(model, shape, (0.0,), (1.0,))
    x = torch.rand(7, *shape)
    with torch.no_grad():
        expected = model(x).numpy()
    computed = plain(found.program, found.parameters, x.numpy())
    np.testing.assert_allclose(computed, expected, atol=1e-5)
    assert [p.shape for p in found.parameters] == [s for _, s in found.program.parameters]
    assert Program.from_json(found.program.to_json()) == found.program


def test_translating_leaves_the_network_as_it_was():
    model = mnist_cnn().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    translate(model, (1, 28, 28))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_program_holds_no_weights():
    one, other = (translate(digits_cnn(), (1, 8, 8)).program for _ in range(2))
    assert one.digest == other.digest


def test_pools_come_before_relus_which_are_then_fewer():
    kinds = [layer["kind"] for layer in translate(mnist_cnn(), (1, 28, 28)).program.layers]
    assert kinds[:5] == ["conv", "relu", "conv", "maxpool", "relu"]


class Reversed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.second(self.first(x))


UNSUPPORTED = {
    "SoftThreshold": (mnist_robust_cnn, (1, 28, 28), "layer 0 .SoftThreshold."),
    "Tanh": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (3,), "train .* with ReLU"),
    "shortcut": (lambda: nn.Sequential(ResidualBlock(2, 2, 1), nn.Flatten()), (2, 4, 4), "chain"),
    "resnet": (resnet18, (3, 32, 32), "no chain"),
    "order": (Reversed, (3,), "no chain"),
    "no flatten": (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(4, 2)), (1, 4, 4),
                   "put a Flatten before"),
    "reflect": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")),
                (1, 4, 4), "padding_mode"),
    "ceil": (lambda: nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()), (1, 5, 5),
             "ceil_mode"),
    "batch statistics": (
        lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)), (3,),
        "running statistics"),
    "pictures": (lambda: nn.Sequential(nn.Conv2d(1, 1, 1)), (1, 4, 4), "not .n, classes."),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_parties_cannot_compute_is_named(name):
    factory, shape, expected = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError, match=expected):
        translate(factory(), shape)


def test_values_that_would_leave_the_ring_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.constant_(model[0].weight, 4e6)
    with pytest.raises(UnsupportedError, match=r"layer 0 .linear. gives values of"):
        translate(model, (3,), (0.0,), (1.0,))


def small() -> dict:
    return json.loads(translate(digits_cnn(), (1, 8, 8), (0.0,), (1.0,)).program.to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"fraction": 20},
        {"shape": []},
        {"shape": [1, 8, True]},
        {"shape": [1, 1 << 30, 8]},
        {"classes": 0},
        {"layers": []},
        {"layers": [{"kind": "relu"}] * 1000},
        {"layers": [{"kind": "reveal"}]},
        {"layers": [{"kind": "relu", "more": 1}]},
        {"layers": [{"kind": "linear", "weight": [MOST_VALUES, 8], "bias": False}]},
        {"layers": [{"kind": "linear", "weight": [8, -8], "bias": False}]},
        {"layers": [{"kind": "linear", "weight": [8, 8], "bias": 1}]},
        {"layers": [{"kind": "maxpool", "kernel": [0, 2], "stride": [1, 1], "padding": [0, 0]}]},
        {"least": [0.0, 0.0]},
        {"least": [1.0]},
        {"least": [-1e9]},
        {"more": 1},
    ],
)
def test_only_programs_are_read(change):
    text = json.dumps(small() | change, sort_keys=True, separators=(",", ":"))
    with pytest.raises(MultipartyError, match="no program"):
        Program.from_json(text)


@pytest.mark.parametrize("text", ["", "[]", "nul", '{"format":1}', "{" * 5000])
def test_other_texts_are_no_programs(text):
    with pytest.raises(MultipartyError, match="no program"):
        Program.from_json(text)
