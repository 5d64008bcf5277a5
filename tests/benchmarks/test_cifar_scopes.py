"""A hundredth of a network's parameters, and its rows of `benchmarks.generation.cifar`, tiny."""

from __future__ import annotations

import sys

import pytest

from benchmarks.generation import cifar, scopes
from g2d.tasks.building import seeded


@pytest.mark.parametrize("scope", ["norms", "adapters"])
@pytest.mark.parametrize("network", ["small", "resnet18"])
def test_at_most_a_hundredth_of_the_parameters_moves(network, scope):
    with seeded(0):
        model = scopes.factory_of(network, scope)()
    names = scopes.names_of(network, scope)
    moving = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.requires_grad and (name in names or not names)
    )
    whole = {"small": 223_146, "resnet18": 11_173_962}[network]
    assert 0.001 * whole < moving <= scopes.SHARE * whole


def test_the_rows_of_adapters_are_made_and_only_they_move(tmp_path, monkeypatch, capsys):
    flags = ["--network", "tiny", "--short", "--generations", "1", "--scope", "adapters"]
    folders = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["cifar", *flags, *folders])
    monkeypatch.setattr(cifar.Cifar, "examples", (16, 8))
    cifar.main()
    table = capsys.readouterr().out
    assert "| adapters: parameters that move | ≤ 1% | 0.58% |" in table
    for eps in cifar.Cifar.budgets:
        assert f"| adapters, eps_{eps:.4f}: stale ASR by 'had it stayed' | ≤ 0.5 × |" in table
    assert (tmp_path / "generation-cifar-tiny-adapters-seed0.json").is_file()
