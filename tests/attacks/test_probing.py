"""A Square that asks a point again to find out that its network changed."""

import torch

from g2d.attacks.probing import probing_square
from g2d.attacks.query import SpentError

EPS = 0.1


def run(answer, budget, interval=5, beyond=False):
    """Let one lane search; `answer(number, point)` is its margin, `number` from 0."""
    x, y = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0])
    asked = []

    def api(points, lanes):
        asked.append(points.clone())
        assert float((points - x).abs().max()) <= EPS + 1e-6
        return torch.tensor([[float(answer(len(asked) - 1, points)), 0.0]])

    generator = torch.Generator().manual_seed(0)
    found = probing_square(
        api, x, y, eps=EPS, budget=budget, generator=generator, interval=interval, beyond=beyond
    )
    return found, asked


def test_a_probe_that_answers_as_before_changes_nothing():
    found, asked = run(lambda number, point: 5.0, 12)
    assert torch.equal(asked[5], asked[0])
    assert torch.equal(asked[10], asked[0])
    assert not torch.equal(asked[6], asked[0])
    assert (int(found.moves), bool(found.noisy)) == (0, False)
    assert len(asked) == 12


def test_a_move_is_confirmed_and_then_the_best_point_is_asked_again():
    #                 probe best         | moved: probe twice, then the best
    script = [5.0, 4.0, 3.0, 3.5, 3.6, 7.0, 7.0, 6.0, 5.5]
    found, asked = run(lambda number, point: script[number], 9)
    assert torch.equal(asked[5], asked[0])
    assert torch.equal(asked[6], asked[0])
    assert torch.equal(asked[7], asked[2]), "3.0 was the best on the network before"
    assert (int(found.moves), bool(found.noisy)) == (1, False)
    assert torch.equal(found.best, asked[8]), "5.5 beats the 6.0 that the best is worth now"


def test_who_hears_noise_probes_no_more():
    found, asked = run(lambda number, point: 5.0 + number % 3, 40)
    assert (int(found.moves), bool(found.noisy)) == (0, True)
    assert not any(torch.equal(point, asked[0]) for point in asked[7:])


def test_a_flip_ends_the_search_and_beyond_it_goes_on():
    _, asked = run(lambda number, point: 1.0 - number, 10)
    assert len(asked) == 3
    _, asked = run(lambda number, point: 1.0 - number, 10, beyond=True)
    assert len(asked) == 10


def test_a_spent_budget_leaves_the_best_so_far():
    def answer(number, point):
        if number == 4:
            raise SpentError
        return 5.0 - number

    found, asked = run(answer, 10)
    assert torch.equal(found.best, asked[3])
