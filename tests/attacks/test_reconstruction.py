"""Reconstruction: answers tell coordinates, whatever constant each carries."""

import pytest
import torch

from g2d.attacks.reconstruction import Answers, fit_coordinates, misfit
from g2d.errors import DataError, SettingsError


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def run(c, x):
    """Logits (n, 3) that depend on two coordinates, and not linearly."""
    return torch.stack([c[0] * x[:, 0], c[1] * x[:, 1] ** 2, c[0] * c[1] * x[:, 0]], 1)


@pytest.fixture
def answers():
    x = torch.randn(60, 2, generator=source())
    constants = torch.randn(60, 1, generator=source(1))
    return Answers(x, run(torch.tensor([1.0, -0.5]), x) + constants)


def test_a_constant_of_each_answer_counts_for_nothing(answers):
    same = answers.logits.log_softmax(1)
    assert float(misfit(same, answers.logits)) < 1e-10
    assert float(misfit(torch.zeros(60, 3), answers.logits)) == pytest.approx(1)


def test_coordinates_are_found_from_answers(answers):
    known = {"steps": 200, "rate": 0.05, "generator": source(), "batch": 32}
    found = fit_coordinates(run, torch.tensor([0.6, 0.1]), answers, **known)
    assert torch.allclose(found, torch.tensor([1.0, -0.5]), atol=0.02)


def test_a_fit_that_leads_to_no_number_stays_where_it_began(answers):
    start = torch.tensor([0.6, 0.1])
    known = {"steps": 3, "rate": 0.1, "generator": source()}
    assert torch.equal(
        fit_coordinates(lambda c, x: run(c, x) / 0.0, start, answers, **known), start
    )


def test_every_fifth_answer_is_held_back(answers):
    seen, held = answers.split()
    assert (len(seen), len(held)) == (48, 12)
    assert torch.equal(held.x[0], answers.x[1])
    with pytest.raises(DataError, match="at least two answers, not 1"):
        answers.take(torch.tensor([0])).split()


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.1), (1, 0.0), (1, float("nan"))])
def test_a_fit_of_nothing_is_refused(answers, steps, rate):
    with pytest.raises(SettingsError, match="above 0"):
        fit_coordinates(run, torch.zeros(2), answers, steps=steps, rate=rate, generator=source())
