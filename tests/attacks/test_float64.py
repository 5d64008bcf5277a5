"""Every attack on a model of doubles: libraries compute in float32, the model must not notice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import states
from g2d.attacks.autoattack import apgd, square
from g2d.attacks.bitflip import flipped, progressive_bit_search, quantise
from g2d.attacks.eot import Tricks, eot_pgd
from g2d.attacks.extraction import extract
from g2d.attacks.inference import art_membership, invert
from g2d.attacks.query import art_square, clock_square, hop_skip_jump
from g2d.attacks.universal import universal
from g2d.redteam.query_log import QueryLog
from small_models import fitted, source

pytest.importorskip("art")
pytest.importorskip("pyautoattack")

EPS = 0.1


@pytest.fixture(scope="module")
def task():
    return states.images()


@pytest.fixture(scope="module")
def model(task):
    split = task.splits.train
    return fitted(task.model(0), split.x, split.y, steps=30)


class Strict(nn.Module):
    """Asserts that it is asked in doubles alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        assert x.dtype == torch.float64
        return self.inner(x)


WHITE = {
    "apgd": lambda m, x, y: apgd(m, x, y, eps=EPS, steps=2, seed=0, bounds=(0.0, 1.0)),
    "square": lambda m, x, y: square(m, x, y, eps=EPS, queries=5, seed=0, bounds=(0.0, 1.0)),
    "eot": lambda m, x, y: eot_pgd(
        lambda: [m], x, y, eps=EPS, steps=2, generator=source(0), bounds=(0.0, 1.0),
        tricks=Tricks("probability", 1.0),
    ),
    "universal": lambda m, x, y: x + universal(
        [m], x, y, eps=EPS, steps=2, generator=source(0), bounds=(0.0, 1.0)
    ),
    "miface": lambda m, x, y: invert([m], x, 0, states.images(), steps=2, rate=0.1, seed=0),
}  # fmt: skip


@pytest.mark.parametrize("name", WHITE)
def test_white_box_attacks(task, model, name):
    split = task.splits.test.take(torch.arange(4))
    found = WHITE[name](Strict(model), split.x, split.y)
    assert found.shape == split.x.shape
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("name", ["clock", "square", "hop"])
def test_query_attacks(task, model, name):
    split = task.splits.test.take(torch.arange(3))
    strict = Strict(model)

    def answer(x, lanes, numbers):
        return strict(x), torch.zeros_like(lanes)

    log = QueryLog(answer, split, eps=EPS, budget=30, bounds=task.bounds)
    known = {"bounds": (0.0, 1.0), "classes": 3, "seed": 0}
    if name == "clock":
        clock_square(log, split.x, split.y, eps=EPS, budget=30, generator=source(0), every=10)
    elif name == "square":
        art_square(log, split.x, split.y, eps=EPS, budget=30, **known)
    else:
        hop_skip_jump(log, split.x, split.y, **known)
    assert int(log.spent.sum()) > 0
    assert log.found.dtype == torch.float64


@pytest.mark.parametrize("attack", ["copycat", "knockoff"])
def test_extraction(task, model, attack):
    stolen = extract(
        Strict(model), Strict(task.model(1)), task.splits.guide.x, attack=attack, queries=32,
        classes=3, bounds=(0.0, 1.0), seed=0, epochs=1,
    )  # fmt: skip
    assert stolen(task.splits.test.x).dtype == torch.float64


def test_membership(task, model):
    split, other = task.splits.train, task.splits.guide
    (scores,) = art_membership(
        task, (model(split.x), model(other.x)), (split.y, other.y), [model(other.x)], other.y, 0
    )
    assert scores.shape == (len(other),)


def test_bit_flips_keep_the_type(task, model):
    stored = quantise(model.state_dict())
    flips = progressive_bit_search(model, [stored], task.splits.guide.take(torch.arange(8)), most=1)
    state = flipped(stored, flips).state()
    assert {tensor.dtype for tensor in state.values()} == {torch.float64}
    again = task.model(0)
    again.load_state_dict(state)
    assert again(task.splits.test.x).isfinite().all()


def test_constants_that_are_infinite_are_no_weights():
    stored = quantise(states.Attention().state_dict())
    assert "mask" not in stored.codes
    assert torch.equal(stored.state()["mask"], stored.rest["mask"])
