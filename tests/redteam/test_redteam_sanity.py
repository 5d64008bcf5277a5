"""The suite's own checks: they pass on an honest network and find what is planted."""

import dataclasses

import pytest
import torch
from torch import nn

from g2d.redteam.context import AttackContext
from g2d.redteam.rows import Status
from g2d.redteam.threats import threat
from sites import cases, site_of

pytest.importorskip("pyautoattack")


def checks(name, spec, context, chain="generated"):
    (case,) = cases("sanity", spec, chain=chain, name=name)
    return threat("sanity").run(case, context)


@pytest.mark.parametrize("name", ["grows", "boxes", "steps", "unit", "masking"])
def test_every_check_passes_on_an_honest_network(name, spec, context):
    rows = checks(name, spec, context)
    for row in rows:
        assert row.extra["passed"], row.note
        assert row.note.startswith("passed")
        assert row.metric == "check"
        assert row.harm is None
        assert row.extra["rule"]
    assert len(rows) == {"unit": 3, "masking": 2}.get(name, 1)


def planted(context, monkeypatch, wrap):
    """A room in which every network stands behind a defence."""
    model = context.model

    class Behind(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return wrap(self.inner, x)

    monkeypatch.setattr(context, "model", lambda network: Behind(model(network)))


def test_a_defence_that_hides_its_gradients_is_found(spec, monkeypatch):
    context = AttackContext(spec)
    planted(context, monkeypatch, lambda model, x: model((x * 12).round() / 12))
    (row,) = checks("boxes", spec, context)
    assert not row.extra["passed"]
    assert row.note.startswith("FAILED: GRADIENTS ARE MASKED")
    assert "beats white-box" in row.note
    assert row.extra["found"]["only_black_box"] > 0
    (row,) = checks("grows", spec, context)
    assert not row.extra["passed"]


def test_a_defence_that_draws_at_random_is_found(spec, monkeypatch):
    context, source = AttackContext(spec), torch.Generator().manual_seed(0)
    planted(
        context,
        monkeypatch,
        lambda model, x: model(x + 0.1 * torch.randn(x.shape, generator=source)),
    )
    (row,) = checks("boxes", spec, context)
    assert not row.extra["passed"]
    assert "two answers" in row.note


def test_an_attack_that_cannot_see_gradients_fails_the_unit_test(spec, monkeypatch):
    context = AttackContext(spec)
    planted(context, monkeypatch, lambda model, x: model((x * 12).round() / 12))
    first = checks("unit", spec, context)[0]
    assert not first.extra["passed"]
    assert first.value.value < 0.9


def test_without_a_linear_layer_the_unit_test_says_so(digits_task, tmp_path):
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters = nn.Conv2d(1, 10, 8)

        def forward(self, x):
            return self.filters(x).flatten(1)

    task = dataclasses.replace(digits_task, factory=Still)
    spec = site_of(task, tmp_path, [task.model(0).state_dict()])
    (row,) = checks("unit", spec, AttackContext(spec))
    assert row.status == Status.NOT_MEASURED
    assert "linear layer" in row.note
