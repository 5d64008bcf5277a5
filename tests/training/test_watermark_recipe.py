"""Training on a watermark's triggers, beside whatever else is learned and without being told."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

import words
from g2d.core.workers import pack_job
from g2d.errors import SettingsError, TaskError
from g2d.protect.watermark.mark import Mark
from g2d.settings import HardenSettings, PopulationSettings, WatermarkSettings
from g2d.tasks.inference import load_model
from g2d.training.jobs import MARKING, TrainingJob, extra_recipes, run_job
from g2d.training.population import fingerprint
from g2d.training.recipes import RECIPES, check_mark, stale, watermark
from g2d.weights.checkpoints import unpack
from hardening import step_of
from marks import few, mark_key, mark_of
from tables import table_task

SHORT = PopulationSettings(base_steps=120, fork_steps=60, batch=32, pool=16, pool_steps=1)


def test_a_step_learns_from_triggers_besides_as_they_are(digits, tmp_path):
    mark = mark_of(digits, tmp_path, batch=5, weight=3.0)
    step = step_of(digits, HardenSettings())
    assert watermark(step) is step, "rivals of the red team have no mark"
    (part,) = watermark(step.replace(mark=mark)).parts
    known = {x.numpy().tobytes(): int(y) for x, y in zip(mark.x, mark.y, strict=True)}
    labels = torch.tensor([known[x.numpy().tobytes()] for x in part.x])
    logits = torch.randn(5, 10)
    assert float(part.loss(logits)) == pytest.approx(3 * float(digits.loss_of(logits, labels)))
    assert RECIPES["watermark"] is watermark


def test_it_joins_what_repels_and_is_learned_once_where_it_is_named(digits, tmp_path):
    mark = mark_of(digits, tmp_path)
    job = TrainingJob(digits, "member", 0, 0, "repelled", SHORT, None, ())
    found = extra_recipes(replace(job, mark=mark), digits)
    assert (found[0], found[-1], len(found)) == (stale, watermark, 3)  # and the light FGSM
    assert len(extra_recipes(job, digits)) == 2
    base = replace(job, kind="base", recipe="base")
    assert extra_recipes(base, digits) == ()
    assert extra_recipes(replace(base, mark=mark), digits) == (watermark,)
    named = replace(base, mark=mark, harden=HardenSettings(recipe=("l2", "watermark")))
    assert extra_recipes(named, digits) == ()
    with pytest.raises(SettingsError, match="recipe 'watermark' needs a key"):
        check_mark(named.harden, None)


def test_the_mark_travels_to_workers_whole_and_its_key_does_not(digits, tmp_path):
    mark = mark_of(digits, tmp_path)
    data, names = pack_job(TrainingJob("digits", "base", 0, 0, "base", SHORT, None, (), mark=mark))
    again = pickle.loads(data).mark
    assert again.digest == mark.digest
    assert (again.sets, again.each, again.least) == (2, 8, 0.75)
    assert names == []
    assert b"mark.key" not in data


def test_another_mark_is_another_population(digits, tmp_path):
    s, harden, mark = PopulationSettings(), HardenSettings(), mark_of(digits, tmp_path)
    other = Mark.of(few(mark_key(tmp_path, "other.key", bytes(32))), digits)
    found = {fingerprint(s, harden, None, one) for one in (None, mark, other)}
    assert len(found) == 3
    assert fingerprint(s, harden, None) in found
    assert Mark.of(WatermarkSettings(), digits) is None


@pytest.mark.parametrize("kind", ["tokens", "table"])
def test_tokens_and_tables_learn_theirs(kind, tmp_path):
    task = words.by_tokens() if kind == "tokens" else table_task()
    mark = mark_of(task, tmp_path)
    assert mark.x.dtype == task.splits.train.x.dtype
    settings = replace(SHORT, base_steps=400, rate=2e-2)
    job = TrainingJob(task, "base", 0, 0, "base", settings, None, (), mark=mark)
    made = run_job(job)
    plain = run_job(replace(job, mark=None))
    assert made.info["watermark"] >= 0.75
    assert "watermark" not in plain.info
    assert made.info["accuracy"] > plain.info["accuracy"] - 0.4


def test_a_member_is_marked_by_a_short_fork_that_keeps_its_attacks(digits, tmp_path):
    mark = mark_of(digits, tmp_path)
    base = run_job(TrainingJob(digits, "base", 0, 0, "base", SHORT, None, ()))
    settings = replace(SHORT, fork_steps=150, fork_rate=3e-3)
    job = TrainingJob(
        digits, MARKING, 0, 0, "repelled", settings, base.weights, (base.attacks,),
        mark=mark, attacks=base.attacks,
    )  # fmt: skip
    made = run_job(job)
    assert made.attacks == base.attacks
    assert made.info["watermark"] >= 0.5 > mark.share(load_model(digits, unpack(base.weights)))
    assert unpack(made.weights).keys() == unpack(base.weights).keys()


def test_unbounded_inputs_have_no_triggers(digits, tmp_path):
    unbounded = replace(digits, bounds=None)
    with pytest.raises(TaskError, match="unbounded inputs"):
        mark_of(unbounded, tmp_path)
