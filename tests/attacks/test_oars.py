"""OARS sends what its copy of the detector does not know, stays in the ball, and finds flips."""

import pytest
import torch

from g2d.attacks.oars import oars_square
from g2d.errors import SettingsError
from small_models import source

EPS, N = 0.2, 8


class Distance:
    """A detector of inputs that are close to one that was sent in the same lane."""

    def __init__(self, limit):
        self.limit, self.kept = limit, {}

    def near(self, x, lanes):
        return torch.tensor(
            [any((x[i] - s).abs().sum() < self.limit for s in self.kept.get(lane, []))
             for i, lane in enumerate(lanes.tolist())], dtype=torch.bool
        )  # fmt: skip

    def sent(self, x, lanes):
        for i, lane in enumerate(lanes.tolist()):
            self.kept.setdefault(lane, []).append(x[i].clone())


@pytest.fixture
def world():
    g = source(0)
    weights = torch.randn(36, 3, generator=g)
    x = torch.rand(N, 1, 6, 6, generator=g)
    return weights, x, (x.flatten(1) @ weights).argmax(1)


def run(world, detector, **more):
    weights, x, y = world
    asked = []

    def api(points, lanes):
        asked.extend(
            (lane, point.clone()) for lane, point in zip(lanes.tolist(), points, strict=True)
        )
        return points.flatten(1) @ weights

    best = oars_square(api, detector, x, y, eps=EPS, budget=30, generator=source(1), **more)
    return best, asked


def test_what_is_sent_does_not_collide_and_stays_in_the_ball(world):
    weights, x, y = world
    detector = Distance(1.0)
    best, asked = run(world, detector, jitter=0.02)
    assert asked
    kept = {}
    for lane, point in asked:
        assert (point - x[lane]).abs().max() <= EPS + 1e-6
        assert point.min() >= 0
        assert point.max() <= 1
        assert all((point - earlier).abs().sum() >= 1.0 for earlier in kept.get(lane, []))
        kept.setdefault(lane, []).append(point)
    assert bool(((best.flatten(1) @ weights).argmax(1) != y).any())
    assert best.shape == x.shape


def test_who_sees_everything_is_sent_nothing_unless_the_attacker_insists(world):
    _, x, _ = world
    best, asked = run(world, Distance(-1.0))
    assert asked  # it sees nothing
    seeing = Distance(0.0)
    seeing.near = lambda points, lanes: torch.ones(len(lanes), dtype=torch.bool)
    best, asked = run(world, seeing)
    assert not asked
    assert torch.equal(best, x)
    assert run(world, seeing, insist=True)[1]


def test_the_same_seed_gives_the_same_queries(world):
    first, again = (run(world, Distance(0.5))[0] for _ in range(2))
    assert torch.equal(first, again)


def test_a_draw_is_at_least_one(world):
    with pytest.raises(SettingsError, match="draws must be at least 1"):
        run(world, Distance(1.0), draws=0)
