"""What looks for poison, each by itself: on made-up answers, and on networks with a known flaw."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from g2d.defence.refresh.backdoor import anomaly, backdoor_check
from g2d.defence.refresh.checks import (
    Check,
    agreement_check,
    canary_check,
    class_check,
    confident_errors,
    features,
    influence_checks,
    noise_check,
    spectral_check,
)
from g2d.defence.refresh.judging import refuse
from g2d.errors import DataError
from g2d.tasks.splits import Split

N, CLASSES = 600, 5


def answers(labels: torch.Tensor, sure: float = 0.9) -> torch.Tensor:
    """What networks say that know these labels: probabilities (n, classes)."""
    p = torch.full((len(labels), CLASSES), (1 - sure) / (CLASSES - 1))
    p[torch.arange(len(labels)), labels] = sure
    return p


@pytest.fixture
def truth() -> torch.Tensor:
    return torch.randint(CLASSES, (N,), generator=torch.Generator().manual_seed(0))


def flipped(truth: torch.Tensor, share: float) -> torch.Tensor:
    y, count = truth.clone(), round(share * len(truth))
    y[:count] = (y[:count] + 1) % CLASSES
    return y


def test_a_tenth_of_flipped_labels_is_counted_and_refused(truth):
    y = flipped(truth, 0.1)
    found = noise_check(answers(truth), y, 0.05)
    assert (found.passed, found.value) == (False, 0.1)
    assert "60 of 600 (10.0%, exact 95 % interval 7.7% to 12.7%); at most 5.0%" in found.text
    assert confident_errors(answers(truth), y)[:60].all()
    clean = noise_check(answers(truth), truth, 0.05)
    assert (clean.passed, clean.value) == (True, 0.0)


def test_hard_records_are_not_taken_for_wrong_ones(truth):
    unsure = answers(truth, 0.6)
    unsure[:100] = answers((truth[:100] + 1) % CLASSES, 0.45)  # wrong, and not sure of it
    unsure[torch.arange(100), truth[:100]] = 0.4
    assert noise_check(unsure, truth, 0.05).value == 0.0


def test_a_class_that_was_never_trained_on_is_new_and_not_wrong(truth):
    unknown = answers(truth)
    unknown[truth == 4] = torch.tensor([0.9, 0.05, 0.03, 0.02, 0.0])
    found = agreement_check(unknown, Split(torch.zeros(N, 1), truth), CLASSES, 0.1)
    assert found.passed
    assert f"least in class 4 (0 of {int((truth == 4).sum())})" in found.text
    begun = answers(truth)  # forks that have begun to learn it
    begun[truth == 4] = torch.tensor([0.4, 0.1, 0.1, 0.1, 0.3])
    assert noise_check(begun, truth, 0.05).value == 0.0


def test_labels_of_other_records_agree_no_better_than_chance(truth):
    x = torch.zeros(N, 1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = agreement_check(answers(truth), Split(x, truth[order]), CLASSES, 0.1)
    assert not shuffled.passed
    shifted = answers(torch.where(truth == 2, 3, truth))  # one class is answered otherwise, always
    found = agreement_check(shifted, Split(x, truth), CLASSES, 0.1)
    assert found.passed
    assert f"least in class 2 (0 of {int((truth == 2).sum())})" in found.text


def poisoned(truth: torch.Tensor) -> tuple[Split, torch.Tensor]:
    """Features of clean records by their class, and of others that were labelled 0, far apart."""
    source = torch.Generator().manual_seed(3)
    x = torch.randn(N, 4, generator=source) * 0.3
    x[:, 0] += truth
    y = truth.clone()
    y[:40] = 0
    x[:40, 3] += 4.0
    return Split(x, y), truth


def test_a_part_that_stands_apart_and_is_named_otherwise_is_told(truth):
    split, known = poisoned(truth)
    found = spectral_check(nn.Identity(), answers(known), split, CLASSES, 0.5)
    assert found is not None
    assert not found.passed
    assert "records of class 0 stand apart" in found.text
    sound = Split(split.x, known)  # the same parts, under the labels that they have
    found = spectral_check(nn.Identity(), answers(known), sound, CLASSES, 0.5)
    assert found is not None
    assert found.passed
    few = split.take(range(10))
    assert spectral_check(nn.Identity(), answers(known[:10]), few, CLASSES, 0.5) is None


@pytest.mark.parametrize(("count", "told"), [(25, True), (46, False)])
def test_what_nearly_half_of_a_class_has_become_is_no_poison_hidden_in_it(count, told):
    x = 0.1 * torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    x[:count, 2] += 5.0
    y = torch.zeros(100, dtype=torch.long)
    known = torch.where(torch.arange(100) < count, 1, 0)  # by the live networks
    found = spectral_check(nn.Identity(), answers(known), Split(x, y), CLASSES, 0.25)
    assert (found is not None and not found.passed) == told


def test_poison_that_is_nearly_half_of_one_class_of_many_is_told():
    """Few of all records are many of a class: whoever supplies a tenth hides in no crowd."""
    x = 0.1 * torch.randn(100 * CLASSES, 4, generator=torch.Generator().manual_seed(0))
    x[:46, 2] += 5.0
    y = torch.arange(100 * CLASSES) // 100
    known = y.clone()
    known[:46] = 1
    found = spectral_check(nn.Identity(), answers(known), Split(x, y), CLASSES, 0.25)
    assert found is not None
    assert not found.passed
    assert "46 of 100 records of class 0" in found.text


def test_features_are_what_the_last_linear_layer_is_given():
    model = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 2)).eval()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(features(model, x), model[:2](x))
    assert torch.equal(features(nn.Identity(), x), x)


def test_what_the_base_loses_and_wins_is_measured_on_each_data_by_themselves(truth):
    split = Split(answers(truth), truth)
    worse = lambda x: torch.where(torch.arange(len(x))[:, None] < 60, x.roll(1, 1), x)  # noqa: E731
    kept, won = influence_checks(nn.Identity(), worse, split, split, 0.02)
    assert not kept.passed
    assert kept.value >= 0.1
    assert not won.passed
    kept, won = influence_checks(worse, nn.Identity(), split, split, 0.02)
    assert kept.passed
    assert won.passed
    assert not canary_check([nn.Identity()], [lambda x: x.roll(1, 1)], split.x, truth).passed
    assert canary_check([nn.Identity()], [worse], split.x, truth).passed


def test_a_class_that_is_given_up_is_told_though_all_together_lose_little(truth):
    split = Split(answers(truth), truth)
    third = int((truth == 3).sum()) // 3
    lost = (truth == 3).nonzero()[:third, 0]

    def worse(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[lost] = x[lost].roll(1, 1)
        return y

    found = class_check(nn.Identity(), worse, split, CLASSES, 0.05)
    assert not found.passed
    assert found.value > 0.2
    assert found.text.startswith(f"former class 3: {third} of {int((truth == 3).sum())} gate exam")
    assert class_check(nn.Identity(), nn.Identity(), split, CLASSES, 0.05).passed
    few = split.take(range(28))  # of a few examples a lost one shows nothing
    one = lambda x: torch.cat([x[:1].roll(1, 1), x[1:]])  # noqa: E731
    assert class_check(nn.Identity(), one, few, CLASSES, 0.05).passed


def test_former_data_too_few_to_show_the_limit_are_held_to_what_they_can_show(truth):
    """On 28 gate examples, those of 178 records, no drop below 10 % can be shown."""
    few = Split(answers(truth), truth).take(range(28))
    kept, won = influence_checks(nn.Identity(), nn.Identity(), few, few, 0.02)
    assert kept.passed
    assert kept.value == kept.limit == pytest.approx(0.1015, abs=1e-4)
    assert "so few show none below 10.15%, which counts as 2.00%); 10.15% is allowed" in kept.text
    assert "(a drop of 10.15% at most; so many show none below 10.15%)" in won.text
    worse = lambda x: torch.where(torch.arange(len(x))[:, None] < 1, x.roll(1, 1), x)  # noqa: E731
    kept, _ = influence_checks(nn.Identity(), worse, few, few, 0.02)
    assert not kept.passed
    assert kept.value == pytest.approx(0.1589, abs=1e-3)


class Backdoor(nn.Module):
    """Answers as a network does, but for one bright pixel, which means class 3."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = 40 * (x[:, 0, 7, 7] - 0.3).relu()
        return self.network(x) + bright[:, None] * torch.eye(10)[3]


def test_a_backdoor_is_a_class_whose_trigger_is_far_smaller_than_before(digits, plain):
    new, bad = digits.splits.gate, Backdoor(plain)
    some = new.take((new.y < 4).nonzero()[:, 0])
    found = backdoor_check(plain, bad, digits, some, 3.5, 8, 0)
    assert found is not None
    assert not found.passed
    assert "trigger of class 3" in found.text
    assert "it lies in rows 7 to 7, columns 7 to 7 (from 0)" in found.text
    assert backdoor_check(plain, bad, digits, new, 0.0, 8, 0) is None


def test_the_anomaly_index_counts_in_spreads_and_knows_few_classes():
    values = torch.tensor([0.0, 0.1, -0.1, 0.05, -0.05, 2.0])
    assert anomaly(values, 5) > 6
    assert anomaly(torch.zeros(10), 0) == 0.0
    assert anomaly(torch.tensor([2.0, 0.0]), 0) == pytest.approx(2 / 0.3)
    grown = torch.tensor([0.1, -2.0])  # as good as the same, where another class has become harder
    assert anomaly(grown, 0) == pytest.approx(0.1 / 0.3)
    assert anomaly(torch.tensor([0.0, -2.0, -2.0, -2.0, -2.0]), 0) == 0.0


def test_a_check_that_fails_says_what_to_do_and_ids_that_nothing_was_searched(digits):
    said: list[str] = []
    how = SimpleNamespace(accept=False, tell=said.append)
    lost = Check("former_data", False, 0.03, 0.02, "former gate data: 3 % lost")
    with pytest.raises(DataError, match=r"3 % lost \(forks forget .*effort=\.\.`, it is 0\.15\)"):
        refuse([lost], how, 0.15)
    assert said == ["REFUSED: former gate data: 3 % lost"]
    names = {"agreement", "backdoor", "canaries", "former_class", "label_noise", "new_data",
             "spectral"}  # fmt: skip
    failed = [replace(lost, name=name) for name in sorted(names)]
    accepting = SimpleNamespace(accept=True, tell=said.append)
    assert refuse(failed, accepting, 0.15) == sorted(names)
    with pytest.raises(DataError, match="find who supplied the data"):
        refuse(failed, how, 0.15)
    x = torch.zeros(4, 3, dtype=torch.int64)
    task = SimpleNamespace(splits=SimpleNamespace(guide=Split(x, x[:, 0])), classes=2)
    found = backdoor_check(nn.Identity(), nn.Identity(), task, Split(x, x[:, 0]), 3.5, 8, 0)
    assert found is not None
    assert found.passed
    assert "not searched, for inputs are ids" in found.text
