"""Splits are disjoint and seeded, and refuse what is no data."""

import copy
import pickle
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import g2d
from g2d.errors import DataError
from g2d.tasks import readers
from g2d.tasks import splits as splits_module
from g2d.tasks.splits import Split, Splits
from small_data import PARTS, numbered, same, taken


def test_split_keeps_labels_as_int64():
    split = Split(torch.zeros(3, 2), torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert split.y.dtype == torch.int64
    assert len(split) == 3


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), "one label for each"),
        (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.long), "one label for each"),
        (torch.tensor(1.0), torch.tensor(1), "one label for each"),
        (torch.zeros(3, 2), torch.zeros(3), "expected integers"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), "expected integers"),
        (torch.zeros(3, 2, dtype=torch.int16), torch.zeros(3, dtype=torch.long), "expected floats"),
        (torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 1]), "NaN or infinite"),
        (torch.tensor([[1.0], [-torch.inf]]), torch.tensor([0, 1]), "NaN or infinite"),
    ],
)
def test_split_refuses(x, y, words):
    with pytest.raises(DataError, match=words):
        Split(x, y)


def test_take_keeps_the_order():
    x, y = numbered(5)
    part = Split(x, y).take([4, 0, 4])
    assert part.x[:, 0].tolist() == [4, 0, 4]
    assert part.y.tolist() == [1, 0, 1]


@given(n=st.integers(1, 30), k=st.integers(0, 40), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_sample_is_without_replacement_and_seeded(n, k, seed):
    split = Split(*numbered(n))
    first = split.sample(k, torch.Generator().manual_seed(seed))
    again = split.sample(k, torch.Generator().manual_seed(seed))
    drawn = first.x[:, 0].tolist()
    assert len(drawn) == len(set(drawn)) == min(n, k)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.x[:, 0].long() % 3, first.y)


def test_splits_refuse_an_empty_or_odd_part():
    x, y = numbered(4)
    part = Split(x, y)
    with pytest.raises(DataError, match="gate split is empty"):
        Splits(part, part, part.take([]), part)
    with pytest.raises(DataError, match="examples of the test split are"):
        Splits(part, part, part, Split(torch.zeros(2, 5), y[:2]))


@given(n=st.integers(15, 300), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_parts_are_disjoint_and_cover_everything(n, seed):
    splits = splits_module.split_dataset(*numbered(n), seed=seed)
    parts = taken(splits)
    assert sorted(chain(*parts)) == list(range(n))
    assert len(parts[3]) == round(0.2 * n)
    own = (splits.train, splits.guide, splits.gate, splits.test)
    assert all(torch.equal(p.x[:, 0].long() % 3, p.y) for p in own)


@given(
    n=st.integers(60, 300),
    weights=st.tuples(*[st.integers(1, 10)] * 4),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_fractions_are_kept_beside_a_given_test_set(n, weights, seed):
    *fractions, _unused = (weight / sum(weights) for weight in weights)
    test = Split(*numbered(7))
    splits = splits_module.split_dataset(*numbered(n), test, tuple(fractions), seed)
    parts = taken(splits)[:3]
    flat = list(chain(*parts))
    assert splits.test is test
    assert len(flat) == len(set(flat))
    for part, share in zip(parts, fractions, strict=True):
        assert abs(len(part) - share * n) <= 1


def test_the_seed_decides():
    x, y = numbered(100)
    first, again, other = (splits_module.split_dataset(x, y, seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_splitting_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    splits_module.split_dataset(*numbered(100))
    assert torch.equal(before, torch.get_rng_state())


def test_arrays_become_tensors():
    pixels = np.arange(40, dtype=np.uint8).reshape(20, 2) * 6
    splits = splits_module.split_dataset(pixels, np.arange(20) % 2)
    assert splits.train.x.dtype == torch.float32
    assert float(splits.train.x.max()) <= 1
    table = splits_module.split_dataset(pixels.astype(np.float64), np.arange(20) % 2)
    assert table.train.x.dtype == torch.float32
    assert float(table.train.x.max()) > 1


@pytest.mark.parametrize(
    ("n", "fractions", "words"),
    [
        (6, splits_module.FRACTIONS, "6 examples are too few: .*test 1"),
        (100, (0.9, 0.01, 0.09), "guide 1"),
        (100, (0.5, 0.5, 0.5), "sum of at most 1"),
        (100, (1.0, 0.0, 0.0), "positive shares"),
        (100, (0.5, 0.5), "three positive shares"),
    ],
)
def test_split_dataset_refuses(n, fractions, words):
    with pytest.raises(DataError, match=words):
        splits_module.split_dataset(*numbered(n), fractions=fractions)


def test_split_dataset_refuses_labels_of_another_length():
    with pytest.raises(DataError, match="one label for each"):
        splits_module.split_dataset(torch.zeros(20, 2), torch.zeros(19, dtype=torch.long))


def test_digits():
    splits = readers.load_digits(0)
    assert [len(getattr(splits, name)) for name in PARTS] == [791, 287, 360, 359]
    assert splits.train.x.shape[1:] == (1, 8, 8)
    assert splits.train.x.dtype == torch.float32
    assert float(splits.train.x.min()) == 0
    assert float(splits.train.x.max()) == 1
    assert same(splits, readers.load_digits(0))


def test_digits_are_read_as_scikit_learn_reads_them():
    from sklearn.datasets import load_digits

    images, labels = readers._embedded_digits()
    told_images, told_labels = load_digits(return_X_y=True)
    assert np.array_equal(images, told_images)
    assert np.array_equal(labels, told_labels)
    assert (images.dtype, labels.dtype) == (told_images.dtype, told_labels.dtype)


def test_a_light_import_stays_light():
    code = "import sys, g2d.data; print([m for m in ('sklearn', 'PIL') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_is_known_of_a_draw_goes_with_copies_and_is_no_split():
    x = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    made = g2d.split_dataset(x, torch.arange(60) % 2)
    assert vars(made).keys() == {"train", "guide", "gate", "test"}
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert made.drawn is not None
        assert again.drawn is not None
        assert len(again.drawn.parts[0]) == len(made.drawn.parts[0]) == len(made.test)
        assert vars(again).keys() == vars(made).keys()
