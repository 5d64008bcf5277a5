"""The judge clips, re-scores and believes nobody; its controls show zero defence."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import g2d
from g2d.core.engine import SerialEngine
from g2d.core.shares import wilson
from g2d.core.types import silent
from g2d.errors import DataError, SettingsError
from g2d.redteam import overview_json
from g2d.redteam.chains import build_chains
from g2d.redteam.context import AttackContext, RunSpec
from g2d.redteam.controls import permuted, retrained
from g2d.redteam.overview import KINDS, evaluate
from g2d.redteam.overview_json import summarise
from g2d.redteam.rows import Status
from g2d.redteam.scoring import (
    Rate,
    Trial,
    accuracy_rate,
    attack_rate,
    by_age,
    pooled,
    share,
    stale_joint,
    transfer,
)
from g2d.redteam.threats import threats
from g2d.settings import PopulationSettings, Settings
from g2d.tasks.inference import load_model
from g2d.tasks.splits import Split, split_dataset
from g2d.tasks.task import Task

of_one_worker = pytest.mark.xdist_group("overview")  # who builds `hardened`


def small():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def tanh_of_sine():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Linear(6, 3)

        def forward(self, x):
            return self.weight(torch.sin(x))

    return Odd()


def toy(factory=small, n=400):
    generator = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.3, 0.7, 0.5, 0.3, 0.6, 0.5], [0.7, 0.3, 0.5, 0.6, 0.3, 0.5],
                            [0.5, 0.5, 0.7, 0.5, 0.5, 0.2]])  # fmt: skip
    y = torch.arange(n) % 3
    x = (centres[y] + 0.08 * torch.randn(n, 6, generator=generator)).clamp(0, 1)
    return Task("toy", factory, split_dataset(x, y), classes=3, eps=0.15)


def trained(task, seed, steps=120):
    model = task.model(seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        loss = F.cross_entropy(model(task.splits.train.x), task.splits.train.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def task():
    return toy()


@pytest.fixture(scope="module")
def models(task):
    return {number: trained(task, number) for number in (1, 2, 4, 7)}


@pytest.fixture(scope="module")
def trial(task):
    return Trial.of(task, n=60, steps=10, seed=3)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # R's prop.test(..., correct = FALSE)
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (81, 263, 0.2552934, 0.3662159),
        (1, 29, 0.0061124, 0.1717552),
    ],
)
def test_wilson_gives_known_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-5)


def test_wilson_grows_with_confidence_and_of_nothing_says_nothing():
    (a, b), (c, d) = wilson(5, 20, 0.9), wilson(5, 20, 0.99)
    assert c < a < 0.25 < b < d
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (1, 5, 1.0)])
def test_wilson_refuses_what_is_no_share(successes, n, confidence):
    with pytest.raises(SettingsError):
        wilson(successes, n, confidence)


def test_pooling_rates_of_the_same_examples_narrows_nothing():
    assert pooled([share(25, 100)] * 50) == share(25, 100)
    assert pooled([share(0, 100), share(50, 100)]).value == pytest.approx(0.25)
    assert pooled([]) == Rate(0.0, 0.0, 1.0, 0)


def test_a_proposal_that_changes_nothing_scores_zero(models, trial):
    rate = trial.score(models[1], trial.split.x)
    assert rate.value == 0
    assert rate.n == round(accuracy_rate(models[1], trial.split).value * 60)


def threshold(x):
    """Class 1 above 0.7."""
    return torch.cat([0.7 - x, x - 0.7], 1)


def test_a_proposal_outside_the_ball_is_clipped_before_it_is_scored():
    split = Split(torch.tensor([[0.5], [0.65], [0.9], [0.2]]), torch.tensor([0, 0, 1, 1]))
    far = torch.full((4, 1), 100.0)
    # The last is misclassified as it is and counts for nothing; within 0.1 only 0.65 can be moved.
    rate = attack_rate(threshold, far, split, 0.1, (0.0, 1.0))
    assert (rate.value, rate.n) == (pytest.approx(1 / 3), 3)
    assert attack_rate(threshold, far, split, 0.04, (0.0, 1.0)).value == 0
    # 0.9, itself outside this range, is the one that clipping to it flips.
    assert attack_rate(threshold, far, split, 0.1, (0.0, 0.69)).value == pytest.approx(1 / 3)
    assert attack_rate(threshold, far[:2], split.take([0, 1]), 0.1, (0.0, 0.69)).value == 0
    assert attack_rate(threshold, far, split, 50.0, None).value == pytest.approx(2 / 3)


def test_a_proposal_that_is_not_a_number_attacks_nothing():
    split = Split(torch.tensor([[0.5], [0.65]]), torch.tensor([0, 0]))
    nan = torch.full((2, 1), float("nan"))
    assert attack_rate(threshold, nan, split, 0.2, (0.0, 1.0)).value == 0
    infinite = torch.full((2, 1), float("inf"))
    assert attack_rate(threshold, infinite, split, 0.06, (0.0, 1.0)).value == 0.5


def test_a_proposal_of_another_shape_is_refused():
    split = Split(torch.rand(4, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match=r"\(3, 2\), expected \(4, 2\)"):
        attack_rate(threshold, torch.rand(3, 2), split, 0.1, None)


def test_the_matrix_holds_every_later_generation_and_the_diagonal_is_white_box(models, trial):
    matrix = transfer(models, trial)
    assert set(matrix) == {(a, b) for a in models for b in models if a <= b}
    proposed = trial.craft(models[2], "single", 2)
    assert matrix[2, 7] == trial.score(models[7], proposed)
    assert matrix == transfer(models, trial)
    other = transfer(models, dataclasses.replace(trial, seed=9))
    assert other.keys() == matrix.keys()


def test_age_counts_rotations_not_numbers_and_leaves_the_base_out_of_white_box(models, trial):
    matrix = transfer(models, trial)
    ages = by_age(matrix)
    assert list(ages) == [0, 1, 2, 3]
    assert ages[0] == pooled([matrix[k, k] for k in (2, 4, 7)])
    assert ages[1] == pooled([matrix[1, 2], matrix[2, 4], matrix[4, 7]])
    assert ages[3] == matrix[1, 7]


def test_the_joint_attack_knows_just_the_last_exposed(models, trial):
    joint = stale_joint(models, trial, 2)
    assert list(joint) == [4, 7]
    proposed = trial.craft([models[2], models[4]], "joint", 2, 7)
    assert joint[7] == trial.score(models[7], proposed)


def test_a_pure_permutation_defends_nothing(task, models, trial):
    state = models[1].state_dict()
    one, another = (load_model(task, other) for other in permuted(task, state, 2, seed=0))
    assert not torch.equal(one.state_dict()["0.weight"], another.state_dict()["0.weight"])
    model = one
    assert not torch.equal(model.state_dict()["0.weight"], state["0.weight"])
    proposed = trial.craft(models[1], "single", 1)
    frozen = trial.score(models[1], proposed)
    assert frozen.value > 0.3
    assert trial.score(model, proposed) == frozen


def test_without_hidden_units_there_is_no_permutation():
    task = toy(tanh_of_sine)
    assert permuted(task, task.model(0).state_dict(), 3, seed=0) == []


def test_a_fresh_retraining_is_a_function_of_its_index(task):
    settings = Settings(population=PopulationSettings(base_steps=30, pool=16, pool_steps=1))
    (one, seconds), (again, _), (two, _) = (retrained(task, settings, i) for i in (0, 0, 1))
    assert seconds > 0
    assert torch.equal(one.state_dict()["0.weight"], again.state_dict()["0.weight"])
    assert not torch.equal(one.state_dict()["0.weight"], two.state_dict()["0.weight"])


def test_a_trial_draws_from_the_test_split_alone(task):
    trial = Trial.of(task, n=10, seed=5)
    rows = {tuple(x.tolist()) for x in task.splits.test.x}
    assert all(tuple(x.tolist()) in rows for x in trial.split.x)
    assert torch.equal(trial.split.x, Trial.of(task, n=10, seed=5).split.x)
    assert not torch.equal(trial.split.x, Trial.of(task, n=10, seed=6).split.x)
    assert len(Trial.of(task, n=10**6).split) == len(task.splits.test)


def context_of(defence, folder):
    """The red team's context, with the defence's own chain and a few retrainings."""
    vault = str(defence.vault.path)
    spec = RunSpec(defence.source, vault, defence.settings, n=100, eps=0.15, quick=True)
    chains = build_chains(defence, spec, folder, SerialEngine(), {"retrained"}, silent)
    return AttackContext(dataclasses.replace(spec, chains=chains))


@pytest.fixture(scope="module")
def hardened(tmp_path_factory, tiny_settings):
    """A hardened defence of two generations, and its context."""
    folder = tmp_path_factory.mktemp("hardened")
    settings = tiny_settings.override(
        harden__recipe=["adversarial"], harden__steps=2, harden__checks=0, gates__class_drop=1.0,
        gates__accuracy_drop=1.0, population__base_steps=120, population__early_steps=30,
    )  # fmt: skip
    with g2d.Defence.build("digits", folder / "v", settings, engine=SerialEngine()) as defence:
        defence.generate(1, seed=0)
        yield context_of(defence, folder / "networks")


@pytest.fixture(scope="module")
def judged(hardened):
    return evaluate(hardened, n=100, fresh=True, draws=2)


@of_one_worker
def test_a_hardened_defence_is_shown_beside_a_plain_training(hardened, judged):
    rows = {row.kind: row for row in judged.rows}
    without = evaluate(hardened, n=100, draws=2).rows
    assert "2 retrainings" in rows["fresh-seed"].target
    assert rows["undefended"].value.value > rows["frozen"].value.value
    assert not {"undefended", "fresh-seed"} & {row.kind for row in without}


@of_one_worker
def test_every_row_is_one_of_the_red_teams_and_has_its_words(hardened, judged):
    assert [row.kind for row in judged.rows] == list(KINDS) == list(overview_json._WORDS)
    assert {row.family for row in judged.rows} <= set(threats())
    for row in judged.rows:
        assert (row.status, row.metric, row.eps, row.seed) == (Status.OK, "ASR", 0.15, 0)
    assert judged.matrix[1, 2] == hardened.score(
        hardened.models(hardened.chain("generated").networks)[1],
        judged.trial.craft(judged.models[1], "single", 1),
        hardened.examples(100),
    )


@of_one_worker
def test_one_generation_has_nothing_stale(hardened):
    chains = dict(hardened.spec.chains)
    first = dataclasses.replace(chains["generated"], networks=chains["generated"].networks[:1])
    spec = dataclasses.replace(hardened.spec, chains=chains | {"generated": first})
    with pytest.raises(SettingsError, match="needs two"):
        evaluate(AttackContext(spec), n=100)


@of_one_worker
def test_a_summary_is_plain_and_says_how_novel_generations_are(hardened, judged):
    summary = summarise(hardened, judged)
    assert json.loads(json.dumps(summary, allow_nan=False))["numbers"] == summary["numbers"]
    assert summary["numbers"]["stale_single_asr"] == judged.matrix[1, 2].value
    assert set(summary["rows"][0]) == {
        "kind", "family", "threat", "target", "clean_accuracy", "asr", "eps", "attack", "seed",
        "seconds", "note",
    }  # fmt: skip
    found = summary["novelty"]
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["generations", "soups", "noised members"]
    assert (found["members"], found["fitted"], found["aligned"]) == (4, 4, True)
    assert found["bar"] == pytest.approx(judged.clean_accuracy[1].value - 0.01)
    (generation,) = summary["distances"]["generations"]
    assert rows["generations"]["distance"] == pytest.approx(generation["nearest_member"])
    assert rows["soups"]["distance"] < rows["generations"]["distance"]
