from __future__ import annotations

import pytest
import torch

from drawing import generator, members
from g2d.errors import PopulationError
from g2d.generator.autoencoder import Span, WeightAutoencoder, mixtures


def test_span_is_exact_on_members_and_orthonormal():
    V, basins = members()
    span = Span.fit(V, basins)
    torch.testing.assert_close(span.lift(span.project(V)), V, atol=1e-4, rtol=1e-4)
    eye = torch.eye(len(span.basis))
    torch.testing.assert_close(span.basis @ span.basis.T, eye, atol=1e-4, rtol=1e-4)


def test_span_standardises_within_basins():
    V, basins = members(K=30)
    c = Span.fit(V, basins).project(V)
    within = torch.cat([c[torch.tensor(basins) == b] for b in range(3)])
    centred = torch.cat([p - p.mean(0) for p in (c[torch.tensor(basins) == b] for b in range(3))])
    assert len(within) == 30
    variance = centred.square().sum(0) / (30 - 3)
    assert int(((variance - 1).abs() < 1e-3).sum()) >= 27  # the rest separates the basins


@pytest.mark.parametrize("V", [torch.ones(1, 5), torch.ones(4, 5)])
def test_span_refuses_populations_without_directions(V):
    with pytest.raises(PopulationError):
        Span.fit(V, [0] * len(V))


def test_untrained_autoencoder_is_the_exact_linear_map():
    V, basins = members()
    coder = WeightAutoencoder(Span.fit(V, basins), 0, 16)
    coder.standardise(coder.span.project(V))
    z = coder.encode(V)
    torch.testing.assert_close(coder.decode(z), V, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(z.shape[1]), atol=1e-3, rtol=0)


def test_reconstruction_error_is_the_squared_error_in_weight_space():
    V, basins = members()
    coder = WeightAutoencoder(Span.fit(V, basins), 0, 16)
    c = coder.span.project(V)
    out = coder.reconstruction(c, 0.3, 0.2, generator())
    direct = (coder.span.lift(out.coordinates) - V).square().sum(-1)
    torch.testing.assert_close(out.squared_error, direct, rtol=1e-3, atol=1e-3)
    silent = coder.reconstruction(c, 0.0, 0.0, generator())
    assert float(silent.squared_error.detach().max()) < 1e-4


def test_mixtures_stay_in_their_basin_with_its_spread():
    V, basins = members(K=60)
    of = torch.tensor(basins)
    c = Span.fit(V, basins).project(V)
    drawn, which = mixtures(c, of, 6000, 1.0, generator())
    for b in range(3):
        inside, original = drawn[which == b], c[of == b]
        error = (inside.mean(0) - original.mean(0)).norm() / original.std(0).norm()
        assert float(error) < 0.1
        ratio = inside.var(0).sum() / original.var(0).sum()
        assert 0.9 < float(ratio) < 1.1


def test_settled_samples_lie_in_a_basin():
    V, basins = members(K=12)
    span = Span.fit(V, basins)
    coder = WeightAutoencoder(span, 0, 16, 3)
    c = span.project(V)
    coder.standardise(c)
    coder.learn_basins(c, torch.tensor(basins))
    assert int(coder.between.sum()) == 2  # three basins differ along two axes
    torch.testing.assert_close(coder.settle(coder.encode(V)), V, atol=1e-3, rtol=1e-3)
    halfway = coder.encode((V[0] + V[1]) / 2).unsqueeze(0)  # members of two basins
    settled = span.project(coder.settle(halfway)[0])
    off = (settled[coder.between] - coder.centres[:, coder.between]).norm(dim=1)
    assert float(off.min()) < 1e-3
