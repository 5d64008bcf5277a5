"""What a refresh adds to training and to gates: new examples are seen, each part is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from g2d.defence.gates import CandidateView, Reference
from g2d.defence.gates.renewed import former_data_gate, new_data_gate
from g2d.settings import GateSettings
from g2d.tasks.splits import Split
from g2d.training.loop import NewAndOld


def view(wrong: torch.Tensor, added: int, drop: float = 0.05) -> CandidateView:
    """A candidate that errs where `wrong` (n,) says, beside a base that never does."""
    split = Split(wrong[:, None].float(), torch.zeros(len(wrong), dtype=torch.long))
    base = torch.ones(len(wrong), dtype=torch.bool)
    return CandidateView(
        {}, lambda x: torch.cat([1 - x, x], 1), Reference(split, base, 2, added=added), (), {}, (),
        GateSettings(accuracy_drop=drop),
    )  # fmt: skip


def test_each_part_of_the_gate_data_is_judged_by_itself():
    wrong = torch.zeros(1200, dtype=torch.bool)
    wrong[1000:1060] = True  # a twentieth of all, and a third of what is new
    seen = view(wrong, 200)
    former, new = former_data_gate(seen), new_data_gate(seen)
    assert former is not None
    assert new is not None
    assert (former.passed, former.n) == (True, 1000)
    assert (new.passed, new.n) == (False, 200)
    assert "accuracy, new data: may be" in new.reason
    assert new.share


def test_few_new_examples_are_held_to_what_they_can_show():
    wrong = torch.zeros(1020, dtype=torch.bool)
    passed = new_data_gate(view(wrong, 20))  # 20 that agree could not show a drop of 5 %
    assert passed is not None
    assert passed.passed
    assert passed.value == passed.limit == pytest.approx(0.1391, abs=1e-4)
    wrong[1019:] = True
    failed = new_data_gate(view(wrong, 20))
    assert failed is not None
    assert not failed.passed
    assert failed.reason == (
        "accuracy, new data: may be 21.61% below the base's (95% bound; measured 5.00% on 20 gate"
        " examples); 13.91% is allowed; 20 show none below that"
    )


def differing(new: int, worse: int, better: int, old: int = 4000, drop: float = 0.0075):
    """A candidate and its base that differ on new data: some one way, some the other."""
    wrong, base = torch.zeros(old + new, dtype=torch.bool), torch.ones(old + new, dtype=torch.bool)
    wrong[old : old + worse] = True
    base[old + worse : old + worse + better] = False
    seen = view(wrong, new, drop)
    return new_data_gate(replace(seen, reference=replace(seen.reference, base_correct=base)))


def test_a_candidate_about_as_good_as_its_base_is_not_refused_for_how_few_new_examples_there_are():
    """On NSL-KDD's shift networks of a vault differ in two of a hundred new flows either way."""
    as_good = differing(2200, 50, 44)
    assert as_good is not None
    assert as_good.passed
    assert as_good.value > 0.0075  # the bound alone said no
    assert as_good.limit == pytest.approx(0.0103, abs=1e-4)
    worse = differing(2200, 58, 30)  # by 1.27 points
    assert worse is not None
    assert not worse.passed
    assert "0.98% is allowed, 0.23% of it because 2200 examples leave more open" in worse.reason
    one_way = differing(2200, 30, 0)  # what is lost earns nothing
    assert one_way is not None
    assert (one_way.passed, one_way.limit) == (False, 0.0075)


def test_where_none_of_the_new_examples_is_a_gate_example_nothing_is_shown():
    part = view(torch.zeros(50, dtype=torch.bool), 50)
    former = former_data_gate(part)
    assert former is not None
    assert (former.passed, former.value, former.limit, former.n) == (True, 1.0, 1.0, 0)


def test_a_vault_that_was_never_refreshed_has_no_such_gates():
    untouched = view(torch.zeros(100, dtype=torch.bool), 0)
    assert former_data_gate(untouched) is None
    assert new_data_gate(untouched) is None


def test_a_third_of_a_batch_is_what_was_added_or_more(digits):
    split = digits.splits.train
    few = NewAndOld(digits, split, 64, torch.Generator().manual_seed(0), added=10)
    late = {tuple(row) for row in split.x[-10:].flatten(1).tolist()}

    def new(batches: NewAndOld) -> int:
        return sum(tuple(row) in late for row in batches.draw()[0].flatten(1).tolist())

    assert new(few) == 21
    many = NewAndOld(
        digits, split, 100, torch.Generator().manual_seed(0), added=len(split) * 4 // 5
    )
    first = {tuple(row) for row in split.x[: len(split) // 5].flatten(1).tolist()}
    old = sum(tuple(row) in first for row in many.draw()[0].flatten(1).tolist())
    assert abs(old - 20) <= 1
    none = NewAndOld(digits, split, 64, torch.Generator().manual_seed(0))
    assert len(none.draw()[0]) == 64
