"""Private parts: public data where guidance and gates read, and a record that changes only its own
part."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from g2d.errors import DataError, PrivacyError
from g2d.tasks.shielded import Shield, ShieldedSplits
from g2d.tasks.splits import Split, split_dataset

KEY = b"k" * 32


def records(n, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(n, 4, generator=draws), torch.arange(n) % 3


def splits(n=400, keys=None):
    return split_dataset(*records(n), keys=keys)


def public(n=400):
    return Split(*records(n, seed=1))


def rows(split):
    return {tuple(row) for row in split.x.tolist()}


@pytest.mark.parametrize("held", [False, True])
def test_what_guides_judges_and_attacks_is_public(held):
    known, people = public(), splits()
    found = ShieldedSplits.of(people, known, Shield("there", KEY, held))
    parts = [found.guide, found.gate, found.guiding, found.pooled]
    assert all(rows(part) <= rows(known) for part in parts)
    assert not rows(found.guide) & rows(found.gate)
    theirs = [people.train, people.guide, people.gate, people.test]
    own = [found.train, found.test] if not held else [found.train, found.held, found.test]
    assert set().union(*map(rows, own)) == set().union(*map(rows, theirs))
    assert sum(map(len, own)) == sum(map(len, theirs))


def test_one_record_less_changes_one_part_by_one_record():
    x, y = records(300)
    shield = Shield("there", KEY, held=True)

    def parts(keep):
        whole = split_dataset(x[keep], y[keep], test=public(10), fractions=(0.4, 0.3, 0.3))
        found = ShieldedSplits.of(whole, public(), shield)
        return rows(found.train), rows(found.held)

    whole = parts(torch.arange(300))
    for place in range(0, 300, 37):
        less = parts(torch.tensor([k for k in range(300) if k != place]))
        lost = [before - after for before, after in zip(whole, less, strict=True)]
        assert sorted(map(len, lost)) == [0, 1]
        assert all(after <= before for before, after in zip(whole, less, strict=True))


def test_exact_copies_count_once():
    x, y = records(200)
    doubled = split_dataset(torch.cat([x, x]), torch.cat([y, y]), test=public(10))
    found = ShieldedSplits.of(doubled, public(), Shield("there", KEY))
    assert len(found.train) == 200


def test_a_person_has_one_record_and_one_part():
    people = np.array([f"person {k % 50}" for k in range(400)])
    whole = splits(keys={"person": people})
    shield = Shield("there", KEY, held=True, unit="person")
    found = ShieldedSplits.of(whole, public(), shield)
    both = torch.cat([found.train.keys["person"], found.held.keys["person"]])
    assert len(both) == len(both.unique())
    assert len(both) <= 50  # some are in the test split alone
    with pytest.raises(PrivacyError, match="whose they are cannot be told"):
        found.with_more({"train": Split(*records(20, seed=3))})


def test_a_unit_that_the_task_does_not_tell_is_refused():
    with pytest.raises(PrivacyError, match=r"'persn'.*Did you mean 'person'"):
        ShieldedSplits.of(
            splits(keys={"person": range(400)}), public(), Shield("there", KEY, unit="persn")
        )


def test_later_records_come_to_the_ends_and_go_again():
    shield = Shield("there", KEY, held=True)
    found = ShieldedSplits.of(splits(), public(), shield)
    x, y = records(100, seed=2)
    known = found.held.take(range(5))
    more = {"train": Split(x[:60], y[:60]), "gate": Split(x[60:], y[60:]), "guide": known}
    grown = found.with_more(more)
    assert grown.added("train") + grown.added("held") == 100  # what is known is not added again
    assert grown.added("guide") == grown.added("gate") == grown.added("guiding") == 0
    assert torch.equal(grown.train.x[: len(found.train)], found.train.x)
    for before, after in ((found.train, grown.former.train), (found.held, grown.former.held)):
        assert torch.equal(before.x, after.x)
    assert torch.equal(grown.gate.x, found.gate.x)


def test_public_data_are_needed_and_need_to_be_enough():
    with pytest.raises(PrivacyError, match=r"\[privacy\] public names no folder"):
        Shield("", KEY).over(SimpleNamespace(splits=splits()))
    with pytest.raises(PrivacyError, match="expected some 512"):
        ShieldedSplits.of(splits(), public(100), Shield("there", KEY))


def test_a_key_column_is_one_value_for_each_record():
    with pytest.raises(DataError, match="one for each example"):
        Split(*records(10), keys={"person": torch.arange(9)})


@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.2), (0.5, 0.2, 0.1)])
@pytest.mark.parametrize("given", [False, True])
def test_one_record_less_draws_no_other_test_split(given, fractions):
    x, y = records(300)
    shield = Shield("there", KEY, held=True)

    def parts(keep):
        test = public(10) if given else None
        found = ShieldedSplits.of(
            split_dataset(x[keep], y[keep], test, fractions), public(), shield
        )
        return [rows(part) for part in (found.train, found.held, found.test)]

    whole = parts(torch.arange(300))
    for place in range(0, 300, 60):
        less = parts(torch.tensor([k for k in range(300) if k != place]))
        assert sum(len(a ^ b) for a, b in zip(whole, less, strict=True)) <= 1
    used, all_of_them = sum(map(len, whole)) - 10 * given, 300 * min(1, sum(fractions))
    assert used == pytest.approx(all_of_them, abs=60 if sum(fractions) < 0.99 else 0)


def test_an_object_of_another_private_vault_is_refused_where_it_says_less():
    found = ShieldedSplits.of(splits(), public(), Shield("there", KEY))
    task = SimpleNamespace(splits=found, name="theirs")
    assert Shield("here", b"x" * 32).over(task) is task
    for asked in (Shield("there", KEY, held=True), Shield("there", KEY, unit="person")):
        with pytest.raises(PrivacyError, match="'theirs' was given with people's records apart"):
            asked.over(task)


@pytest.mark.parametrize("nobody", [None, float("nan")])
def test_a_record_of_nobody_knows_whom_is_refused(nobody):
    with pytest.raises(DataError, match="1 values of a key column are missing"):
        splits(keys={"person": [nobody, *range(399)]})
