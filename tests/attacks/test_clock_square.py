"""A clock that only says when a network may change."""

import torch

from g2d.attacks.query import clock_square


def sizes_by_the_clock(moves, **more):
    """Changed pixels of each proposal, of one lane on a network that moves at a tick of 40."""
    x, y, points = torch.full((1, 1, 12, 12), 0.5), torch.tensor([0]), []

    def api(point, lanes):
        points.append(point.clone())
        return torch.tensor([[5.0 + (moves and len(points) > 40), 0.0]])

    clock_square(
        api, x, y, eps=0.1, budget=80, every=40, generator=torch.Generator().manual_seed(0), **more
    )
    assert torch.equal(points[40], points[0]), "the best point is asked at the tick"
    return [int((point != points[0]).sum()) for point in points]


def test_who_was_not_moved_by_a_tick_goes_on_with_small_squares():
    stayed = sizes_by_the_clock(moves=False, sure=False)
    assert max(stayed[41:]) <= 1 < 6 < max(stayed[:10])
    moved = sizes_by_the_clock(moves=True, sure=False)
    assert max(moved[41:50]) > 6, "another network: it begins anew"
    assert max(sizes_by_the_clock(moves=False)[41:50]) > 6, "a clock that is sure needs no proof"
