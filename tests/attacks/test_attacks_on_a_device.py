"""Attacks on models of a device find what they find on the CPU, wherever inputs are handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fake_device import NAME, There, fake_device
from g2d.attacks import fgsm, pgd
from g2d.attacks.crafting import craft
from g2d.attacks.eot import Tricks, eot_pgd
from g2d.core.devices import place
from small_models import source
from tables import BUDGET, rows
from words import by_itself, by_tokens, messages

Attack = Callable[[Any, Tensor, Tensor], Tensor]
BALL = {"eps": 0.1, "bounds": (0.0, 1.0)}

ATTACKS: dict[str, Attack] = {
    "pgd": lambda m, x, y: pgd(m, x, y, steps=3, decay=0.9, generator=source(0), **BALL),  # type: ignore[arg-type]
    "pgd, L2": lambda m, x, y: pgd(m, x, y, steps=3, norm="2", generator=source(0), **BALL),  # type: ignore[arg-type]
    "fgsm": lambda m, x, y: fgsm(m, x, y, generator=source(0), **BALL),  # type: ignore[arg-type]
    "eot": lambda m, x, y: eot_pgd(
        lambda: [m, m], x, y, steps=3, generator=source(0),
        tricks=Tricks(hardest=0.5, diversity=1.0, smooth=3), **BALL,  # type: ignore[arg-type]
    ),
}  # fmt: skip


def images() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    x = torch.rand(6, 1, 8, 8, generator=source(1))
    return model.eval().requires_grad_(False), x, torch.arange(6) % 4


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_found_on_a_device_is_what_is_found_on_the_cpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = images()
    wanted = ATTACKS[name](model, x, y)
    with fake_device(monkeypatch):
        place(model, NAME)
        assert torch.equal(ATTACKS[name](model, x, y), wanted)
        there = ATTACKS[name](model, x.to(NAME), y.to(NAME))
        assert isinstance(there, There)
        assert torch.equal(there.cpu(), wanted)


def test_a_table_is_searched_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model = rows(5, 0), nn.Linear(len(BUDGET), 2).requires_grad_(False)
    y = torch.arange(5) % 2

    def found(x: Tensor, y: Tensor) -> Tensor:
        return pgd(model, x, y, eps=2.0, steps=2, generator=source(0), bounds=BUDGET)

    wanted = found(x, y)
    with fake_device(monkeypatch):
        place(model, NAME)
        assert torch.equal(found(x, y), wanted)
        assert torch.equal(found(x.to(NAME), y.to(NAME)).cpu(), wanted)


@pytest.mark.parametrize("how", ["light", "greedy", "beam"])
def test_tokens_are_substituted_where_the_model_is(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, (x, y) = by_tokens(), messages()
    model = task.model(0).eval().requires_grad_(False)
    x, y = x[:4], y[:4]
    wanted = craft(task, model, x, y, generator=source(0), how=how)
    with fake_device(monkeypatch):
        place(model, NAME)
        assert torch.equal(craft(task, model, x, y, generator=source(0), how=how), wanted)
        there = craft(task, model, x.to(NAME), y.to(NAME), generator=source(0), how=how)
        assert torch.equal(there.cpu(), wanted)


def test_an_attack_of_ones_own_is_given_tensors_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, (x, y) = by_itself(), messages()
    model = task.model(0).eval().requires_grad_(False)
    wanted = craft(task, model, x[:4], y[:4], generator=source(0))
    with fake_device(monkeypatch):
        place(model, NAME)
        there = craft(task, model, x[:4].to(NAME), y[:4].to(NAME), generator=source(0))
        assert torch.equal(there.cpu(), wanted)
