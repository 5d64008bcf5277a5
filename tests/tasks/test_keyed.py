"""Records that come later: on sides drawn by a keyed hash, which nothing but the key can change."""

from __future__ import annotations

import pytest
import torch

from g2d.errors import DataError
from g2d.tasks.keyed import SIDES, digest_of, pack_records, sort_records, unpack_records
from g2d.tasks.splits import FRACTIONS, Split, Splits

KEY = b"k" * 32


def some(n: int, seed: int = 0) -> Split:
    source = torch.Generator().manual_seed(seed)
    return Split(torch.rand(n, 3, generator=source), torch.randint(2, (n,), generator=source))


@pytest.fixture
def splits() -> Splits:
    return Splits(some(20, 1), some(8, 2), some(8, 3), some(8, 4))


def rows(split: Split) -> set[tuple[float, ...]]:
    return {tuple(row) for row in split.x.tolist()}


def test_a_record_never_changes_sides_whatever_else_is_given(splits):
    first = some(400)
    both = Split(
        torch.cat([some(300, 9).x, first.x.flip(0)]), torch.cat([some(300, 9).y, first.y.flip(0)])
    )
    a, b = sort_records(first, KEY, splits), sort_records(both, KEY, splits)
    assert len(a) == 400
    assert len(b) == 700
    for name, share in zip(SIDES, FRACTIONS, strict=True):
        assert rows(a.sides[name]) <= rows(b.sides[name])
        assert abs(len(b.sides[name]) / 700 - share) < 0.08
    other = sort_records(first, b"o" * 32, splits)
    assert rows(other.sides["gate"]) != rows(a.sides["gate"])


def test_what_is_known_twice_or_contradicted_is_left_out_and_counted(splits):
    new = some(50)
    x = torch.cat([new.x, new.x[:2], new.x[2:3], splits.test.x[:4], splits.train.x[:1]])
    y = torch.cat([new.y, new.y[:2], 1 - new.y[2:3], 1 - splits.test.y[:4], splits.train.y[:1]])
    found = sort_records(Split(x, y), KEY, splits)
    assert (found.known, found.relabelled) == (5, 4)  # the test split is never trained on
    assert (found.repeated, found.contradicted) == (2, 2)
    assert len(found) == 49


def test_records_come_back_from_their_file_and_go_to_the_ends_of_splits(splits):
    found = sort_records(some(100), KEY, splits)
    back = unpack_records(pack_records(found))
    grown = splits.with_more(back)
    for name in SIDES:
        assert torch.equal(back[name].x, found.sides[name].x)
        assert grown.added(name) == len(found.sides[name])
        old = getattr(splits, name)
        assert torch.equal(getattr(grown, name).x[: len(old)], old.x)
        assert torch.equal(getattr(grown.former, name).x, old.x)
    assert grown.added("test") == 0
    assert splits.former is splits
    later = grown.added("guiding")
    assert later == len(back["guide"]) + len(back["train"])  # a small guide split takes both
    assert rows(grown.guiding.take(range(len(grown.guiding) - later, len(grown.guiding)))) == (
        rows(back["guide"]) | rows(back["train"])
    )
    twice = grown.with_more(unpack_records(pack_records(sort_records(some(60, 8), KEY, grown))))
    assert twice.added("train") > grown.added("train")
    assert torch.equal(twice.former.gate.y, splits.gate.y)
    with pytest.raises(DataError, match="cannot be read"):
        unpack_records(b"no records")


def test_the_same_data_are_known_again_and_others_are_not():
    assert digest_of(some(10)) == digest_of(some(10))
    assert digest_of(some(10)) != digest_of(some(10, 1))
