"""What a thief does to stolen parameters: each does what it says, and changes nothing given."""

from __future__ import annotations

import pytest
import torch

from g2d.attacks import removal
from g2d.errors import SettingsError
from g2d.generator import hidden_units
from g2d.tasks.inference import accuracy, load_model, predict
from g2d.tasks.splits import Split
from small_models import source


@pytest.fixture
def stolen(plain):
    return {name: tensor.clone() for name, tensor in plain.state_dict().items()}


def test_pruning_zeroes_the_smallest_and_leaves_biases(stolen):
    found = removal.pruned(stolen, 0.5)
    weights = [n for n, t in stolen.items() if t.dim() >= 2]
    zeros = sum(int((found[n] == 0).sum()) for n in weights)
    total = sum(stolen[n].numel() for n in weights)
    assert abs(zeros / total - 0.5) < 0.01
    kept = torch.cat([stolen[n][found[n] != 0].abs() for n in weights])
    gone = torch.cat([stolen[n][found[n] == 0].abs() for n in weights])
    assert float(kept.min()) >= float(gone.max())
    assert all(torch.equal(found[n], stolen[n]) for n in stolen if n not in weights)
    for share in (-0.1, 1.0):
        with pytest.raises(SettingsError, match="cannot be pruned"):
            removal.pruned(stolen, share)


def test_rounding_leaves_as_many_levels_as_bits_give(stolen):
    for bits in (4, 8):
        found = removal.rounded(stolen, bits)
        name = next(n for n, t in stolen.items() if t.dim() >= 2)
        rows, before = found[name].flatten(1), stolen[name].flatten(1)
        assert max(len(row.unique()) for row in rows) <= 2**bits - 1
        step = before.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert bool(((rows - before).abs() <= step / 2 + 1e-7).all())
    with pytest.raises(SettingsError, match="1 bits"):
        removal.rounded(stolen, 1)


def test_noise_has_its_share(stolen):
    found = removal.noised(stolen, 0.2, source(0))
    name = max((n for n, t in stolen.items() if t.dim() >= 2), key=lambda n: stolen[n].numel())
    added, whole = found[name] - stolen[name], stolen[name]
    assert float(added.square().mean().sqrt() / whole.square().mean().sqrt()) == pytest.approx(
        0.2, rel=0.1
    )


def test_a_disguise_keeps_the_function_and_no_parameter_in_its_place(digits, plain, stolen):
    found = removal.disguised(stolen, hidden_units(digits), source(1))
    x = digits.splits.gate.x
    moved = predict(load_model(digits, found), x)
    assert torch.allclose(moved, predict(plain, x), rtol=1e-3, atol=1e-3)
    name = next(n for n, t in stolen.items() if t.dim() >= 2)
    assert not torch.allclose(found[name], stolen[name])
    with pytest.raises(SettingsError, match="no plain chain"):
        removal.disguised(stolen, (), source(1))
    soup = removal.souped([stolen, removal.rounded(stolen, 8)])
    assert torch.allclose(soup[name], stolen[name], atol=0.05)


def test_fine_tuning_overwriting_and_distilling_train(digits, plain, stolen):
    train, gate = digits.splits.train, digits.splits.gate
    tuned = removal.fine_tuned(
        digits, stolen, train, steps=20, rate=1e-3, generator=source(2), batch=32
    )
    assert accuracy(load_model(digits, tuned), gate) > 0.9
    own = Split(torch.rand(16, *train.x.shape[1:], generator=source(3)), torch.arange(16) % 10)
    over = removal.fine_tuned(
        digits, stolen, train, steps=60, rate=3e-3, generator=source(2), batch=32, besides=own
    )
    assert accuracy(load_model(digits, over), own) > 0.8 > accuracy(plain, own)
    for soft in (True, False):
        made = removal.distilled(
            digits, plain, train.x, soft=soft, steps=150, rate=3e-3, seed=1, batch=64
        )
        assert accuracy(load_model(digits, made), gate) > 0.8
    again = plain.state_dict()
    assert all(torch.equal(stolen[n], again[n]) for n in stolen)


def test_the_nearest_networks_come_in_their_order_and_the_network_itself_first(stolen):
    others = [removal.noised(stolen, share, source(0)) for share in (0.3, 0.1, 0.2)]
    found = removal.nearest(stolen, [*others, stolen], 3)
    assert found[0] is stolen
    assert found[1] is others[1]
    assert found[2] is others[2]
