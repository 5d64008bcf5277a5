"""Canaries show single changes of weights, and nothing that rounding or another layout makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import words
from g2d.errors import CheckpointError
from g2d.protect.canaries import choosing
from g2d.protect.canaries.choosing import alone, together
from g2d.protect.canaries.inputs import Inputs
from g2d.protect.canaries.kept import Canaries, judge_classes, judge_labels, judge_scores
from g2d.protect.canaries.making import make_canaries, work
from g2d.protect.canaries.network import Network
from g2d.tasks.inference import load_model, predict
from g2d.weights.checkpoints import pack
from g2d.weights.symmetry import couplings, permute, rescale
from small_models import fitted, source
from tables import BUDGET, table_model, table_task

FLIPS = 300


def kept(task, model, count=16, steps=0, seed=0):
    return Canaries.from_bytes(pack(make_canaries(task, model, count, steps, seed)))


@pytest.fixture(scope="module")
def canaries(digits, plain):
    return kept(digits, plain)


def sign_flips(model, count, generator):
    """Flip the signs of single weights, one after the other, drawn evenly from all."""
    flat = [p.detach().view(-1) for p in model.parameters()]
    ends = torch.tensor([len(each) for each in flat]).cumsum(0)
    for at in torch.randperm(int(ends[-1]), generator=generator)[:count].tolist():
        which = int(torch.searchsorted(ends, at, right=True))
        weights, index = flat[which], at - int(ends[which]) + len(flat[which])
        weights[index] *= -1
        yield
        weights[index] *= -1


def test_labels_of_canaries_show_most_flips_of_signs_and_those_of_images_hardly_any(
    digits, plain, canaries
):
    model = load_model(digits, plain.state_dict())
    images = digits.splits.test.sample(16, source(1)).x
    both, before = torch.cat([torch.from_numpy(canaries.x), images]), predict(plain, images)
    seen = np.zeros(2)
    for _ in sign_flips(model, FLIPS, source(0)):
        logits = predict(model, both)
        seen[0] += bool(judge_labels(canaries, logits[:16].argmax(1).numpy()).changed)
        seen[1] += bool((logits[16:].argmax(1) != before.argmax(1)).any())
    own, random = seen / FLIPS
    assert own >= 0.4
    assert own >= 2.5 * random


def test_scores_show_more(digits, plain, canaries):
    model = load_model(digits, plain.state_dict())
    x, found = torch.from_numpy(canaries.x), []
    for _ in sign_flips(model, 100, source(2)):
        verdict = judge_scores(canaries, predict(model, x).numpy())
        found.append(bool(verdict.changed))
    assert np.mean(found) >= 0.6


def test_no_alarm_of_another_layout_batch_or_rounding(digits, plain, canaries):
    chain, x, draws = (
        couplings(plain, digits.splits.gate.x[:4]),
        torch.from_numpy(canaries.x),
        source(0),
    )
    assert chain
    for _ in range(10):
        moved = permute(
            plain.state_dict(), chain, [torch.randperm(c.units, generator=draws) for c in chain]
        )
        by = [(4 * torch.rand(c.units, generator=draws) - 2).exp2() for c in chain]
        model = load_model(digits, rescale(moved, chain, by))
        for batch in (1, 3, 16):
            logits = predict(model, x, batch)
            assert not judge_labels(canaries, logits.argmax(1).numpy()).changed
            for scores, how in ((logits, "logits"), (logits.softmax(1), "probabilities")):
                for decimals in (None, 4, 2):
                    shown = scores.numpy() if decimals is None else scores.numpy().round(decimals)
                    verdict = judge_scores(canaries, shown)
                    assert (verdict.changed, verdict.how, verdict.decimals) == ((), how, decimals)
            rounded = logits.softmax(1).numpy().round(4)
            assert not judge_labels(canaries, rounded.argmax(1)).changed


def test_the_same_seed_makes_the_same_bytes_and_another_one_others(digits, plain, canaries):
    few = [pack(make_canaries(digits, plain, 4, 3, seed)) for seed in (0, 0, 1)]
    assert few[0] == few[1]
    assert few[0] != few[2]
    assert len(canaries) == 16
    assert len(kept(digits, plain, count=1, steps=0)) == 1
    assert (canaries.margins >= 2 * canaries.tolerance).all()
    low, high = digits.bounds
    assert low <= canaries.x.min() <= canaries.x.max() <= high


# --- other inputs --------------------------------------------------------------------------------


def test_canaries_of_a_table_are_valid_rows():
    task = table_task()
    found = kept(task, table_model(task), 8)
    BUDGET.check(torch.from_numpy(found.x), "canaries")
    assert len(set(found.labels.tolist())) == 2
    assert found.margins.min() <= 4 * found.tolerance


def coded(x):
    """The last column holds codes 0 to 3, the one before it halves."""
    codes = torch.arange(len(x)) % 4
    return torch.cat([x[:, :6], (codes / 2)[:, None], codes[:, None]], 1)


class Embedding(nn.Module):
    """A table's model that looks up its last column."""

    def __init__(self):
        super().__init__()
        self.table, self.rest = nn.Embedding(4, 3), nn.Linear(10, 2)

    def forward(self, x):
        return self.rest(torch.cat([x[:, :7], self.table(x[:, 7].long())], 1))


def test_noise_of_a_table_keeps_to_each_columns_range_and_to_codes():
    task = table_task(coded, Embedding, bounds=(-50.0, 50.0), budget=None)
    inputs, data = Inputs.of(task, 24, 0), task.splits.guide.x
    assert (inputs.x >= data.amin(0)).all()
    assert (inputs.x <= data.amax(0)).all()
    assert set(inputs.x[:, 7].tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert not set(inputs.x[:, 6].tolist()) <= {0.0, 0.5, 1.0, 1.5}
    assert len(kept(task, table_model(task), 4, 2)) == 4


def test_unbounded_inputs_keep_to_the_range_of_the_data():
    task = table_task(budget=None)
    found = torch.from_numpy(kept(task, table_model(task), 8).x)
    data = task.splits.guide.x
    assert (found >= data.amin(0)).all()
    assert (found <= data.amax(0)).all()


def test_canaries_of_tokens_are_ids_that_stand_in_their_places_somewhere():
    task = words.by_tokens()
    model = fitted(task.model(0), task.splits.train.x, task.splits.train.y, 60)
    found, data = torch.from_numpy(kept(task, model, 8).x), task.splits.guide.x
    assert found.dtype == data.dtype
    for place in range(data.shape[1]):
        assert set(found[:, place].tolist()) <= set(data[:, place].tolist())


def test_a_network_without_a_boundary_keeps_inputs_for_scores_alone(digits, plain):
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    last = [name for name in state if name.endswith("bias")][-1]
    state[last][0] += 1e4
    found = kept(digits, load_model(digits, state), 4, 2)
    assert len(found) == 4
    assert set(found.labels.tolist()) == {0}


class Branching(nn.Module):
    """Looks at its data, which vmap cannot."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if float(x.sum()) > -1.0 else self.inner(-x)


def test_gradients_at_once_are_those_one_by_one_and_any_model_has_some(digits, plain):
    network, x = Network(plain), digits.splits.gate.x[:5]
    lead, slopes = together(network, x)
    for place, one in enumerate(x.split(1)):
        alone_lead, alone_slopes = alone(network, one)
        assert torch.allclose(lead[place], alone_lead[0], atol=1e-5)
        for slope, expected in zip(slopes, alone_slopes, strict=True):
            assert torch.allclose(slope[place], expected[0], atol=1e-4)
    with pytest.raises(RuntimeError):
        together(Network(Branching(plain)), x)
    assert len(kept(digits, Branching(plain), 2)) == 2


def test_work_is_bounded_whatever_is_asked_for(digits, plain, monkeypatch):
    """Fewer weights are counted for more candidates; large networks get fewer candidates."""
    size = sum(p.numel() for p in plain.parameters())
    assert choosing.counted(size, 96) == size
    assert choosing.counted(10**8, 96) * 96 <= choosing.CELLS
    assert choosing.counted(10**8, 6144) * 6144 <= choosing.CELLS
    small, large = work(10**5, 16, 0), work(2 * 10**7, 16, 0)
    assert large.candidates < small.candidates
    assert large.forwards < small.forwards < work(10**5, 16, 5).forwards
    monkeypatch.setattr(choosing, "CELLS", 3000)
    assert len(kept(digits, plain, 4)) == 4


# --- judging -------------------------------------------------------------------------------------


def test_judging_says_which_and_how_far(canaries):
    scores = canaries.logits.copy()
    assert judge_scores(canaries, scores).changed == ()
    scores[3, 5] += 3 * canaries.tolerance
    scores[7] = np.nan
    (third, seventh) = judge_scores(canaries, scores).changed
    assert (third.place, seventh.place) == (3, 7)
    assert third.off == pytest.approx(3 * canaries.tolerance, rel=0.01)
    assert "canary 3: class" in str(third)
    labels = canaries.labels.copy()
    labels[2] = (labels[2] + 1) % 10
    (one,) = judge_labels(canaries, labels).changed
    assert (one.place, one.off) == (2, None)


def test_coarse_rounding_hides_what_is_small_and_no_other_class(canaries):
    scores = canaries.logits.round(1)
    verdict = judge_scores(canaries, scores)
    assert (verdict.changed, verdict.decimals) == ((), 1)
    scores[0, canaries.labels[0]] -= 1
    assert [one.place for one in judge_scores(canaries, scores).changed] == [0]


def of_logits(logits, tolerance=1e-3):
    logits = np.asarray(logits, np.float32)
    return Canaries(np.zeros((len(logits), 1)), logits, logits.argmax(1), tolerance)


@pytest.mark.parametrize("classes", [3, 10, 256, 1000])
@pytest.mark.parametrize("scale", [0.1, 8.0])
def test_a_dead_network_does_not_pass(classes, scale):
    """It answers zeros, or all classes alike: neither rounded logits nor probabilities."""
    draws = np.random.default_rng(0)
    kept = of_logits(scale * draws.uniform(-1, 1, (16, classes)))
    for dead in (0.0, 1 / classes, round(1 / classes, 2)):
        answer = np.full((16, classes), dead)
        own = judge_scores(kept, answer, how="logits", rounded=False)
        assert (len(own.changed), own.compared) == (16, 16)
        outside = judge_scores(kept, answer)
        assert outside.changed or 2 * outside.compared < 16
        named = judge_classes(kept, answer)
        assert (named.changed, named.compared) == ((), 0)


def test_logits_all_below_a_half_are_compared_where_they_are_not_rounded():
    draws = np.random.default_rng(1)
    kept = of_logits(draws.uniform(-0.4, 0.4, (16, 5)))
    verdict = judge_scores(kept, kept.logits)
    assert (verdict.changed, verdict.compared) == ((), 16)
    shares = np.exp(kept.logits) / np.exp(kept.logits).sum(1, keepdims=True)
    for decimals in (3, 4, 5):
        verdict = judge_scores(kept, shares.round(decimals))
        assert (verdict.how, verdict.changed, verdict.compared) == ("probabilities", (), 16)


def test_classes_of_scores_that_tie_or_are_none(canaries):
    scores = canaries.logits.copy()
    second = scores[0].argsort()[-2]
    scores[0, second] = scores[0].max()
    scores[1] = np.nan
    verdict = judge_classes(canaries, scores)
    assert [one.place for one in verdict.changed] == [1]
    assert verdict.compared == 15


def test_what_is_no_canaries_is_refused(canaries):
    parts = {
        "x": torch.from_numpy(canaries.x), "logits": torch.from_numpy(canaries.logits),
        "labels": torch.from_numpy(canaries.labels), "tolerance": torch.tensor([1e-3]),
    }  # fmt: skip
    assert len(Canaries.from_bytes(pack(parts))) == 16
    for spoilt in (
        {"x": parts["x"][:3]}, {"labels": parts["labels"] + 100}, {"more": torch.ones(1)},
        {"logits": parts["logits"] * torch.nan}, {"tolerance": torch.tensor([torch.inf])},
        {"tolerance": torch.ones(0)}, {"logits": torch.ones(16)},
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="no canaries"):
            Canaries.from_bytes(pack(parts | spoilt))
    for data in (b"", b"x" * 100, pack({"x": torch.ones(2)})):
        with pytest.raises(CheckpointError, match="no canaries"):
            Canaries.from_bytes(data)
