"""Noise that lies in few directions of each matrix is measured direction by direction."""

import numpy as np
import pytest
import torch

from g2d.protect.trace import Frame, Named, compare, judge
from g2d.protect.trace.frame import MOST
from g2d.protect.trace.judgement import GENERATION, Group
from g2d.protect.trace.structure import Basis
from g2d.weights.symmetry import Coupling, balance, rescale
from small_models import source

MATRICES = ((30, 40), (30, 1), (10, 30), None)
SIZES = [1200, 30, 300, 70]
TENSOR_OF = torch.arange(4).repeat_interleave(torch.tensor(SIZES))
NAMES = tuple(Named(GENERATION, i) for i in range(20))


class Trained:
    """Differences as training leaves them: rows and columns of matrices are correlated."""

    def __init__(self, seed):
        self.draws = source(seed)
        self.sides = [
            [self.normal(n, n) @ torch.diag(0.9 ** torch.arange(n)) for n in matrix]
            for matrix in ((30, 40), (10, 30))
        ]
        self.mean = 5 * self.normal(sum(SIZES))

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.draws)

    def difference(self):
        (a, b), (c, d) = self.sides
        wide = (a @ self.normal(30, 40) @ b.T, self.normal(30), c @ self.normal(10, 30) @ d.T)
        return torch.cat([*(part.flatten() / part.std() for part in wide), self.normal(70)])

    def many(self, count):
        return torch.stack([self.difference() for _ in range(count)])


@pytest.fixture
def trained():
    return Trained(0)


@pytest.fixture
def known(trained):
    return trained.mean + trained.many(len(NAMES))


def test_directions_are_orthogonal_and_spread_as_differences_are(trained):
    basis = Basis.of(trained.many(60), MATRICES, SIZES)
    fresh = trained.many(40)
    turned = basis.turned(fresh)
    assert torch.allclose(turned @ turned.T, fresh @ fresh.T, rtol=1e-4, atol=1e-2)
    assert torch.equal(turned[:, -70:], fresh[:, -70:])
    for spread in basis.spread.split(SIZES):
        assert float(spread.mean()) == pytest.approx(1.0)
    # What was one draw in few directions is as many as there are, once each counts by its spread.
    wide = turned[:, :1200].double()
    even = wide / basis.spread[:1200].sqrt()
    assert torch.corrcoef(wide.square()).shape == (40, 40)
    effective = [float(x.square().sum() ** 2 / x.square().square().sum()) for x in (wide, even)]
    assert effective[1] > 4 * effective[0]


def test_the_variance_follows_the_suspect_not_the_networks(trained):
    basis = Basis.of(trained.many(60), MATRICES, SIZES)
    white = basis.variance(3 * trained.normal(sum(SIZES)))
    assert float(basis.spread.max() / basis.spread.min()) > 1000
    for part in white.split(SIZES):  # of a quantised copy: nearly as wide in every direction
        assert float(part.max() / part.min()) < 5
    assert float(white[:1200].mean()) == pytest.approx(9.0, rel=0.2)
    own = basis.variance(basis.turned(2 * trained.difference()))
    ratio = (own / basis.spread)[:1200][basis.spread[:1200] > 0.1]
    assert float(ratio.max() / ratio.min()) < 2
    assert torch.equal(basis.variance(torch.zeros(sum(SIZES))) > 0, torch.ones(sum(SIZES)) > 0)


@pytest.mark.parametrize("tuned", [0.3, 1.0])
def test_what_was_trained_on_is_named_more_surely_than_by_tensors_alone(trained, known, tuned):
    ratios = []
    for place in (0, 7, 13):
        suspect = known[place] + tuned * trained.difference()
        found = [
            compare(known, suspect, TENSOR_OF, trained.many(4), matrices)
            for matrices in (None, MATRICES)
        ]
        scores = [one.score[place] / np.delete(one.score, place).std() for one in found]
        ratios.append(scores[1] / scores[0])
        assert found[1].score.argmax() == place
        if tuned < 1:
            assert judge([Group(NAMES, found[1])]).generations == (place,)
    assert np.median(ratios) > 1.5


def test_nobody_is_accused_of_what_is_no_ones(trained, known):
    least = []
    for place in range(60):
        suspect = trained.mean + (1 + place % 3) * trained.difference()
        if place % 2:
            suspect = suspect + 3 * trained.normal(len(suspect))
        found = compare(known, suspect, TENSOR_OF, trained.many(2), MATRICES)
        verdict = judge([Group(NAMES, found)], closed=bool(place % 3))
        assert verdict.accused == (), str(verdict)
        least.append(verdict.candidates[0].p)
    assert sum(p < 0.1 for p in least) < 18


def test_a_copy_as_it_is_and_a_pruned_one_are_named_too(trained, known):
    pruned = torch.where(known[3].abs() < known[3].abs().median(), 0.0, known[3])
    by_tensor = compare(known, pruned, TENSOR_OF)
    assert np.array_equal(compare(known, pruned, TENSOR_OF, None, MATRICES).score, by_tensor.score)
    for suspect in (pruned, known[3], 0.5 * known[3] + 0.5 * known[9]):
        found = compare(known, suspect, TENSOR_OF, None, MATRICES)
        assert 3 in judge([Group(NAMES, found)]).generations


def test_scales_of_hidden_units_accuse_nobody_and_hide_nobody(trained):
    sizes = {"into": (12, 9), "bias": (12,), "out": (5, 12), "last": (5,)}
    layer = Coupling(12, ("into", "bias"), ("into", "bias"), "out")

    def state():
        return {name: trained.normal(*shape) for name, shape in sizes.items()}

    base = state()
    networks = [{n: base[n] + 0.1 * own[n] for n in base} for own in (state() for _ in range(20))]
    frame = Frame(balance(base, (layer,)), (layer,), tuple(base))
    known = frame.own(networks)
    step = 1e-3
    for unit in (0, 7):
        by = torch.ones(12)
        by[unit] += step
        moved = rescale(frame.reference, (layer,), (by,))
        flat = torch.cat([(moved[n] - frame.reference[n]).flatten() for n in frame.names]) / step
        assert torch.allclose(flat, frame.scales.directions()[unit], atol=5e-3)
    scales, by = frame.scales, 0.2 * trained.normal(12).double().numpy()
    suspect = scales.undone(known[4], -by) + 1e-3 * trained.normal(185)
    assert torch.allclose(scales.undone(scales.undone(known[4], -by), by), known[4], atol=1e-5)
    aware, blind = (
        judge([Group(NAMES, compare(known, suspect, frame.tensor_of, scales=given))])
        for given in (scales, None)
    )
    assert aware.generations == (4,)
    assert blind.accused == ()
    suspect = scales.undone(known[4], -by)
    gone = [*range(9), 108, *range(120, 180, 12)]
    suspect[gone] = 0  # a unit that was pruned away: all that enters it, and what leaves it
    found = compare(known, suspect, frame.tensor_of, scales=scales)
    assert np.isfinite(found.score).all()
    assert judge([Group(NAMES, found)]).generations == (4,)
    suspect[-5:] = 0  # a whole tensor
    found = compare(known, suspect, frame.tensor_of, scales=scales)
    assert judge([Group(NAMES, found)]).generations == (4,)
    at, vectors = known[7], known[:3]
    ways, kinds = scales.directions(at), frame.tensor_of
    for kind, (own, cross) in enumerate(zip(*scales.products(at, vectors, kinds, 4), strict=True)):
        some = ways[:, kinds == kind].double()
        assert torch.allclose(own, some @ some.T, atol=1e-5)
        assert torch.allclose(cross, some @ vectors[:, kinds == kind].double().T, atol=1e-5)
    assert Frame(base, (), tuple(base)).scales is None


def test_matrices_are_those_of_tensors_that_are_compared_whole():
    state = {
        "conv": torch.zeros(4, 3, 5, 5), "bias": torch.zeros(4), "scale": torch.zeros(()),
        "waves": torch.zeros(2, 3, dtype=torch.complex64),
    }  # fmt: skip
    assert Frame(state, (), tuple(state)).matrices == ((4, 75), (4, 1), None, None)
    assert Frame({"w": torch.zeros(2, MOST)}, (), ("w",)).matrices == (None,)
