"""Augmentations and layers do what their plain form does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from g2d.tasks import networks

AUGMENTATIONS = [(networks.shift, (9, 1, 28, 28)), (networks.crop_and_flip, (9, 3, 32, 32))]


@pytest.mark.parametrize(("augment", "shape"), AUGMENTATIONS)
def test_augmentations_draw_from_their_generator_alone(augment, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    kept, before = x.clone(), torch.get_rng_state()
    first, again, other = (augment(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == x.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, kept)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 128])
def test_shift_moves_each_image_by_at_most_a_pixel(n):
    x = torch.zeros(n, 1, 28, 28)
    x[:, :, 14, 14] = 1
    seen = set()
    for seed in range(20):
        out = networks.shift(x, torch.Generator().manual_seed(seed))
        spots = out.nonzero()
        assert spots[:, 0].tolist() == list(range(n))
        seen |= {tuple(spot) for spot in spots[:, 2:].tolist()}
    assert seen <= {(14 + dy, 14 + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert len(seen) > 4


def test_crop_and_flip_equals_the_plain_way():
    """Every result is one of the 9 x 9 x 2 crops that a loop makes; all offsets and flips occur."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x, (4, 4, 4, 4))[0]
    crops = [padded[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    oracle = torch.stack([side for crop in crops for side in (crop, crop.flip(2))])
    out = networks.crop_and_flip(x.expand(2000, 3, 8, 8), torch.Generator().manual_seed(1))
    distance = torch.cdist(
        out.flatten(1), oracle.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest = distance.min(1)
    assert float(nearest.values.max()) == 0
    assert len(nearest.indices.unique()) == 162


def test_a_strided_stem_is_its_convolution_and_so_are_all_its_gradients() -> None:
    # Stated to be the same function: an attack's gradient takes another way than a forward pass.
    stem = networks.StridedStem(2, 5, 5, stride=2, padding=2).double()
    plain = nn.Conv2d(2, 5, 5, stride=2, padding=2).double()
    plain.load_state_dict(stem.state_dict())
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 28, 28, generator=draws, dtype=torch.float64)
    weight = torch.randn(3, 5, 14, 14, generator=draws, dtype=torch.float64)
    found = []
    for one in (stem, plain):
        inputs = x.clone().requires_grad_(True)
        out = one(inputs)
        found.append((out, *torch.autograd.grad((out * weight).sum(), [inputs, *one.parameters()])))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)
    assert torch.equal(stem(x), plain(x))  # without a gradient of x it is the very same call


def test_a_strided_stem_of_another_shape_takes_the_convolutions_own_way() -> None:
    draws = torch.Generator().manual_seed(0)
    for kind in ({"stride": 1}, {"padding_mode": "reflect"}, {"dilation": 2}, {"padding": (2, 1)}):
        stem = networks.StridedStem(1, 3, 5, **({"stride": 2, "padding": 2} | kind))
        plain = nn.Conv2d(1, 3, 5, **({"stride": 2, "padding": 2} | kind))
        plain.load_state_dict(stem.state_dict())
        for side in (28, 29):
            x = torch.rand(2, 1, side, side, generator=draws, requires_grad=True)
            assert torch.equal(stem(x), plain(x))
