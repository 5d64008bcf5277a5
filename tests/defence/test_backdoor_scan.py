"""A trigger that somebody put into a network is smaller than what other classes need."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from federated_processes import settings
from g2d.attacks.triggers import find_trigger
from g2d.defence import backdoors
from g2d.defence.backdoors import scan
from g2d.defence.federating import _Federation
from g2d.defence.gates.backdoor import backdoor_gate
from g2d.errors import DataError, PopulationError
from g2d.settings import GateSettings
from g2d.tasks.splits import Split


class Planted(nn.Module):
    """Classes by the brightest of four corners; one bright pixel in the middle gives class 0."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x):
        corners = torch.stack(
            [x[:, 0, :3, :3], x[:, 0, :3, 3:], x[:, 0, 3:, :3], x[:, 0, 3:, 3:]], 1
        )
        logits = 2 * corners.mean((2, 3))
        return logits + self.weight * x[:, :, 2, 2] * torch.tensor([1.0, 0, 0, 0])


@pytest.fixture
def split():
    source = torch.Generator().manual_seed(3)
    y = torch.arange(40) % 4
    x = 0.2 * torch.rand((40, 1, 6, 6), generator=source)
    for k in range(40):
        row, column = divmod(int(y[k]), 2)
        x[k, 0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 0.6
    x[:, :, 2, 2] = 0.0
    return Split(x, y)


def test_a_planted_pixel_is_found_and_a_clean_network_has_none(split):
    bounds = (0.0, 1.0)
    bad = scan(Planted(20.0), split, 4, bounds)
    assert bad.target == 0
    assert bad.ratio < 0.6
    assert bad.triggers[0].success > 0.9
    assert int(bad.triggers[0].mask.argmax()) == 2 * 6 + 2
    clean = scan(Planted(0.0), split, 4, bounds)
    assert clean.ratio > 0.6
    assert scan(Planted(20.0), split, 4, bounds).ratio == bad.ratio


def test_the_network_and_the_images_are_left_as_they_are(split):
    model, before = Planted(1.0).eval(), split.x.clone()
    source = torch.Generator().manual_seed(0)
    found = find_trigger(model, split, 1, (0.0, 1.0), 5, source)
    assert torch.equal(split.x, before)
    assert 0 <= found.size <= 36


def test_what_has_no_pixels_or_few_classes_is_refused(split):
    flat = Split(split.x.flatten(1), split.y)
    for given, classes, bounds in (
        (flat, 4, (0.0, 1.0)), (split, 3, (0.0, 1.0)), (split, 4, None),
    ):  # fmt: skip
        with pytest.raises(DataError, match="needs images in a known range"):
            scan(Planted(0.0), given, classes, bounds)


@dataclasses.dataclass
class View:
    model: nn.Module
    settings: GateSettings
    reference: object


def test_the_gate_is_off_unless_it_is_asked_for_and_says_what_it_saw(split):
    reference = dataclasses.make_dataclass("R", ["split", "classes", "bounds"])(
        split, 4, (0.0, 1.0)
    )
    assert backdoor_gate(View(Planted(20.0), GateSettings(), reference)) is None
    asked = GateSettings(backdoor=0.6)
    bad = backdoor_gate(View(Planted(20.0), asked, reference))
    assert not bad.passed
    assert "to class 0" in bad.reason
    assert backdoor_gate(View(Planted(0.0), asked, reference)).passed


def test_members_that_clients_trained_are_held_to_the_same_limit(digits, monkeypatch):
    few = {"steps": 2, "examples": 16}
    monkeypatch.setattr(backdoors.scan, "__kwdefaults__", few)
    state = digits.model(0).state_dict()
    for least, refused in ((0.0, False), (1.0, True)):
        s = settings().override(gates__backdoor=least)
        work = _Federation(digits, None, s, None, None, None)
        if refused:
            with pytest.raises(PopulationError, match="looks like a backdoor, and it is not kept"):
                work._scan("member 3", state)
        else:
            work._scan("member 3", state)
