"""Hardening recipes: what each does to a training, how they compose, what is refused."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import PopulationError, SettingsError, VaultError
from g2d.settings import HardenSettings, PopulationSettings
from g2d.tasks.inference import accuracy
from g2d.training.loop import Batches, NextStep, train
from g2d.training.population import TrainingJob, _extra
from g2d.training.recipes import RECIPES, HardenedTraining, Step, check, find, stale, try_out
from g2d.training.recipes.adversarial import adversarial
from g2d.training.recipes.monitor import Check, TrainingMonitor
from hardening import robust, step_of, trained
from places import ROOT

DOCS = ROOT / "docs"


# --- adversarial ---------------------------------------------------------------------------------


def test_adversarial_training_makes_robust_what_plain_training_leaves_open(digits, plain, hardened):
    assert robust(digits, plain) < 0.3
    assert robust(digits, hardened) > robust(digits, plain) + 0.3
    assert accuracy(hardened, digits.splits.gate) > 0.9


def test_robust_accuracy_falls_to_zero_as_eps_grows(digits, hardened):
    rates = [robust(digits, hardened, eps) for eps in (0.0, 0.15, 0.3, 0.8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02


@pytest.mark.parametrize("changes", [{"method": "trades"}, {"method": "fgsm"}, {"clean": 0.5}])
def test_every_method_hardens(digits, plain, changes):
    settings = HardenSettings(recipe=("adversarial",), steps=4, **changes)
    assert robust(digits, trained(digits, settings)) > robust(digits, plain) + 0.25


def test_the_two_norm_hardens_against_its_own_ball(digits, plain):
    settings = HardenSettings(recipe=("adversarial",), steps=4, norm="2", eps=0.8)
    model = trained(digits, settings)
    assert robust(digits, model, 0.8, "2") > robust(digits, plain, 0.8, "2") + 0.2


def test_attacks_of_a_step_stay_in_their_ball_and_leave_the_model_as_it_was(digits):
    for norm, eps in (("inf", 0.1), ("2", 0.7)):
        step = step_of(digits, HardenSettings(norm=norm, steps=3), eps=eps)
        step.model.train()
        attacks = step.attack()
        delta = (attacks - step.x).flatten(1)
        length = delta.abs().amax(1) if norm == "inf" else delta.norm(dim=1)
        assert (length <= eps + 1e-5).all()
        assert (length > 0.5 * eps).all()
        assert step.model.training
        assert all(p.requires_grad and p.grad is None for p in step.model.parameters())


def test_eps_rises_and_a_fork_of_a_robust_start_meets_it_at_once(digits, plain, hardened):
    settings = HardenSettings(recipe=("adversarial",), ramp=0.5, steps=1)
    batches = Batches(digits, digits.splits.train, 8, torch.Generator())
    rising = HardenedTraining(digits, settings, batches, 10, seed=0)
    assert [round(rising.eps_at(d) / digits.eps, 2) for d in (0.0, 0.25, 0.5, 1.0)] == [
        0, 0.5, 1, 1,
    ]  # fmt: skip
    for model, share in ((hardened, 1.0), (plain, 0.2)):
        fork = HardenedTraining(digits, settings, batches, 10, seed=0, begun=True)
        fork(model)
        assert fork.eps_at(0.1) == pytest.approx(share * digits.eps)


def test_trades_learns_its_own_predictions_on_attacks(digits):
    step = adversarial(step_of(digits, HardenSettings(method="trades", steps=2, beta=3.0)))
    assert step.clean == 0
    (part,) = step.parts
    assert len(part.x) == 2 * len(step.x)
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    same = torch.cat([logits[:8], logits[:8]])
    assert torch.isclose(part.loss(same), F.cross_entropy(logits[:8], step.y))
    kl = F.kl_div(
        logits[8:].log_softmax(1), logits[:8].softmax(1), reduction="batchmean"
    )  # fmt: skip
    assert torch.isclose(part.loss(logits), F.cross_entropy(logits[:8], step.y) + 3 * kl)


def test_repelled_and_adversarial_are_one_step(digits):
    pool = digits.splits.guide.take(range(16))
    settings = HardenSettings(recipe=("adversarial",), stale=0.5)
    job = TrainingJob(
        digits, "member", 0, 0, "repelled", PopulationSettings(), None, (), (), settings
    )
    assert _extra(job, digits) == (stale,)
    step = adversarial(stale(step_of(digits, settings, pools=(pool,))))
    assert [len(part.x) for part in step.parts] == [8, 8]
    assert step.clean == 0
    assert torch.isfinite(step.loss())
    assert len(_extra(replace(job, harden=HardenSettings()), digits)) == 2
    assert _extra(replace(job, recipe="forks"), digits) == ()


# --- the guard and early stopping ----------------------------------------------------------------


def test_catastrophic_overfitting_is_told_from_a_weak_and_from_a_robust_model():
    assert Check(0.5, 0.3, 0.99, 0.95, 0.02).collapsed
    assert Check(0.5, 0.3, 1.0, 1.0, 0.0).collapsed  # two classes: FGSM cannot exceed 100 %
    assert not Check(0.5, 0.3, 0.99, 0.05, 0.0).collapsed
    assert not Check(0.5, 0.3, 0.99, 0.95, 0.80).collapsed


class Collapsing(TrainingMonitor):
    """Every look after half of the training finds a collapse."""

    def look(self, model, done, eps):
        check = Check(done, eps, 0.99, 0.95, 0.01 if done > 0.5 else 0.9)
        self.checks.append(check)
        self.states = [*getattr(self, "states", []), model.state_dict()["0.weight"].clone()]
        return check


@pytest.mark.parametrize("guard", ["stop", "switch", "off"])
def test_the_guard_stops_or_goes_on_with_pgd(digits, guard):
    settings = HardenSettings(
        recipe=("adversarial",), method="fgsm", guard=guard, ramp=0.0, steps=2, patience=6
    )
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    course = HardenedTraining(digits, settings, batches, 20, seed=0)
    course.watch = Collapsing(digits, settings, 0)
    run = partial(train, model, course, steps=20, rate=1e-3, after=course.after)
    if guard == "stop":
        with pytest.raises(PopulationError, match=r"catastrophic overfitting at 60%.*1\.0% under"):
            run()
        return
    run()
    assert course.settings.method == ("pgd" if guard == "switch" else "fgsm")
    assert course.switched == (0.6 if guard == "switch" else None)
    assert len(course.watch.checks) == 10  # what was waited for before the switch is forgiven


def test_a_switch_goes_back_to_what_was_sound_and_forgets_the_optimisers_past(digits):
    settings = HardenSettings(recipe=("adversarial",), method="fgsm", ramp=0.0, steps=2, checks=4)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    course = HardenedTraining(digits, settings, batches, 8, seed=0)
    course.watch = watch = Collapsing(digits, settings, 0)
    for taken in range(1, 7):
        course(model)
        with torch.no_grad():
            model.get_parameter("0.weight").add_(1.0)
        turn = course.after(model, 1e-3)
        assert turn is (NextStep.AFRESH if taken == 6 else NextStep.GO_ON)
    assert torch.equal(model.get_parameter("0.weight"), watch.states[1])  # of the look at half


@pytest.mark.parametrize("checks", [1, 4])
def test_a_collapse_that_nothing_sound_precedes_or_follows_is_an_error(digits, checks):
    class Collapsed(TrainingMonitor):
        def look(self, model, done, eps):
            self.checks.append(Check(done, eps, 0.99, 0.95, 0.01))
            return self.checks[-1]

    settings = HardenSettings(recipe=("adversarial",), method="fgsm", ramp=0.0, checks=checks)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    course = HardenedTraining(digits, settings, batches, 8, seed=0)
    course.watch = Collapsed(digits, settings, 0)
    train(model, course, steps=8, rate=1e-3, after=course.after)
    assert course.switched == 1 / checks
    assert not course.watch.best, "a collapsed look was kept"
    with pytest.raises(PopulationError, match=r"1\.0% under PGD.*no look found a sound model"):
        course.finish(model)


def test_a_fork_that_collapses_at_its_first_look_goes_back_to_its_start(digits):
    class Beginning(TrainingMonitor):
        def look(self, model, done, eps):
            self.checks.append(Check(done, eps, 0.99, 0.95, 0.9 if done == 0 else 0.01))
            return self.checks[-1]

    settings = HardenSettings(recipe=("adversarial",), method="fgsm", steps=2, checks=4)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    start = {name: t.clone() for name, t in model.state_dict().items()}
    course = HardenedTraining(digits, settings, batches, 8, seed=0, begun=True)
    course.watch = Beginning(digits, settings, 0)
    train(model, course, steps=8, rate=1e-3, after=course.after)
    course.finish(model)
    assert course.switched == 0.25
    assert all(torch.equal(t, start[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(("steps", "checks"), [(25, 10), (19, 10), (3, 10), (20, 0)])
def test_looks_are_as_many_as_asked_for_and_the_last_is_at_the_end(digits, steps, checks):
    settings = HardenSettings(recipe=("adversarial",), checks=checks)
    course = HardenedTraining(
        digits, settings, Batches(digits, digits.splits.train, 8, torch.Generator()), steps, seed=0
    )
    assert len(course.looks) == min(checks, steps)
    assert not checks or max(course.looks) == steps


def test_training_ends_early_and_keeps_the_most_robust_weights(digits):
    class Declining(TrainingMonitor):
        def look(self, model, done, eps):
            self.kept = getattr(self, "kept", None) or {
                n: t.clone() for n, t in model.state_dict().items()
            }
            return Check(done, eps, 0.9, 0.9, 0.9 - done)

    settings = HardenSettings(recipe=("adversarial",), steps=1, patience=3, checks=10, ramp=0.0)
    model, batches = digits.model(0), Batches(digits, digits.splits.train, 8, torch.Generator())
    course = HardenedTraining(digits, settings, batches, 20, seed=0)
    course.watch = watch = Declining(digits, settings, 0)
    train(model, course, steps=20, rate=1e-3, after=course.after)
    assert course._taken == 8
    course.finish(model)
    assert all(torch.equal(t, watch.kept[n]) for n, t in model.state_dict().items())


def test_looks_use_the_guide_split_alone(digits, hardened):
    ruined = replace(
        digits,
        splits=replace(
            digits.splits,
            gate=replace(digits.splits.gate, x=digits.splits.gate.x * 0),
            test=replace(digits.splits.test, x=digits.splits.test.x * 0),
        ),
    )
    settings = HardenSettings(recipe=("adversarial",))
    one, other = (
        TrainingMonitor(task, settings, 3).look(hardened, 1.0, 0.15) for task in (digits, ruined)
    )
    assert one == other


# --- L2 and clamps -------------------------------------------------------------------------------


def norm_of(model: nn.Module) -> float:
    return sum(float(p.detach().square().sum()) for p in model.parameters() if p.dim() > 1) ** 0.5


@pytest.mark.parametrize("changes", [{"decay": 1.0}, {"decay": 0.0, "penalty": 1e-2}])
def test_l2_keeps_weights_small(digits, plain, changes):
    model = trained(digits, HardenSettings(recipe=("l2",), **changes))
    assert norm_of(model) < 0.9 * norm_of(plain)
    assert accuracy(model, digits.splits.gate) > 0.9


def test_decoupled_decay_shrinks_weights_and_not_biases(digits):
    step = RECIPES["l2"](step_of(digits, HardenSettings(decay=0.5)))
    before = {n: p.detach().clone() for n, p in step.model.named_parameters()}
    (after,) = step.after
    with torch.no_grad():
        after(step.model, 0.1)
    for name, parameter in step.model.named_parameters():
        factor = 0.95 if parameter.dim() > 1 else 1.0
        assert torch.allclose(parameter, before[name] * factor)


def test_the_penalty_is_half_the_sum_of_squares(digits):
    step = RECIPES["l2"](step_of(digits, HardenSettings(decay=0.0, penalty=0.5)))
    assert step.after == ()
    difference = step.loss() - step.replace(penalties=()).loss()
    assert torch.isclose(
        difference.detach(), torch.tensor(0.25 * norm_of(step.model) ** 2), atol=1e-4
    )


def test_clamped_layers_have_no_outliers(digits, plain):
    model = trained(digits, HardenSettings(recipe=("clamp",), clamp=2.0))

    def outlier(net: nn.Module) -> float:
        return max(
            float(p.detach().abs().max() / p.detach().square().mean().sqrt())
            for p in net.parameters()
            if p.dim() > 1
        )

    assert outlier(plain) > 3
    assert outlier(model) < 2.3  # the last cut lowers the root mean square a little
    assert accuracy(model, digits.splits.gate) > 0.9


# --- which recipes there are ---------------------------------------------------------------------


def test_unknown_recipes_say_what_is_there(tmp_path, tiny_settings):
    with pytest.raises(SettingsError, match=r"no recipe 'adversrial'. Did you mean 'adversarial'"):
        find("adversrial")
    with pytest.raises(SettingsError, match="there is no module 'no_such_module'"):
        find("no_such_module:recipe")
    with pytest.raises(SettingsError, match=r"has no 'adversarail'. Did you mean 'adversarial'"):
        find("g2d.harden:adversarail")
    with pytest.raises(SettingsError, match="no function"):
        find("math:pi")
    wrong = tiny_settings.override(harden__recipe=["l3"])
    with pytest.raises(SettingsError, match="no recipe 'l3'"):
        g2d.Defence.build("digits", tmp_path / "v", wrong, engine=SerialEngine())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 1.5}, "data range"),
        ({"norm": "2"}, r"set \[harden\] eps"),
        ({"norm": "2", "eps": 9.0}, "data range"),
    ],
)
def test_a_budget_beyond_the_data_is_refused(tmp_path, tiny_settings, changes, message):
    named = {f"harden__{k}": v for k, v in changes.items()}
    wrong = tiny_settings.override(harden__recipe=["adversarial"], **named)
    with pytest.raises(SettingsError, match=message):
        g2d.Defence.build("digits", tmp_path / "v", wrong, engine=SerialEngine())


def test_the_recipe_of_the_docs_works(tmp_path, monkeypatch, digits):
    text = (DOCS / "hardening.md").read_text()
    (code,) = re.findall(r"```python\n# noise\.py\n(.*?)```", text, re.S)
    (tmp_path / "noise.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    try:
        model = trained(digits, HardenSettings(recipe=("noise:noisy", "l2")))
        assert accuracy(model, digits.splits.gate) > 0.9
    finally:
        sys.modules.pop("noise", None)


def no_step(step: Step) -> None:
    step.add()


def nothing(step: Step) -> Step:
    return step.replace(clean=0.0)


def vector_loss(step: Step) -> Step:
    return step.replace(criterion=lambda z: z.sum(1))


def raising(step: Step) -> Step:
    raise ZeroDivisionError("of the recipe")


def misshapen(step: Step) -> Step:
    return step.replace(x=torch.cat([step.x, step.x[:, :, :3]]))


def no_plain_loss(step: Step) -> Step:
    return step.replace(criterion=lambda z: F.cross_entropy(z, step.y[:2]))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (no_step, "gave NoneType; it has to return the step"),
        (nothing, "nothing to learn from"),
        (vector_loss, r"has shape \(4,\), not a scalar"),
        (
            misshapen,
            r"recipe '.*misshapen' fails at step 1 of 1: RuntimeError: .*\(.*test_harden.py",
        ),
        (
            no_plain_loss,
            r"loss of recipe .* fails at step 1 of 1: ValueError: .*\(.*test_harden.py",
        ),
        (raising, r"step 1 of 1: ZeroDivisionError: of the recipe \(.*test_harden.py, line \d+\)"),
    ],
)
def test_a_recipe_that_cannot_work_fails_before_the_training(digits, recipe, message):
    settings = HardenSettings(recipe=(f"{__name__}:{recipe.__name__}",))
    with pytest.raises(SettingsError, match=message):
        try_out(digits, settings)


def late(step: Step) -> Step:
    if step.done > 0.4:
        raise KeyError("boom")
    return step


def test_a_recipe_that_fails_later_is_named_with_its_place(tmp_path, tiny_settings):
    settings = tiny_settings.override(
        harden__recipe=[f"{__name__}:late"], population__base_steps=10, population__workers=1
    )
    with pytest.raises(
        SettingsError, match=r"late' fails at step 6 of 10: KeyError: 'boom' \(.*py"
    ):
        g2d.Defence.build("digits", tmp_path / "v", settings, engine=SerialEngine())


@pytest.mark.parametrize(
    "changes",
    [
        {"harden__recipe": ["adversarail"]},
        {"harden__recipe": ["distil"], "harden__teacher": "nowhere"},
        {"harden__recipe": [f"{__name__}:raising"]},
        {"guidance__robust_eps": 2.0},
    ],
)
def test_refused_hardening_leaves_no_vault_behind(tmp_path, tiny_settings, changes):
    with pytest.raises(SettingsError):
        g2d.Defence.create("digits", tmp_path / "v", tiny_settings.override(**changes))
    assert not (tmp_path / "v").exists()


def test_an_empty_vault_takes_other_settings_and_a_full_one_says_which_differ(
    tmp_path, tiny_settings
):
    with g2d.Defence.create("digits", tmp_path / "v", tiny_settings):
        pass
    other = tiny_settings.override(harden__recipe=["l2"], population__base_steps=5)
    with g2d.Defence.create("digits", tmp_path / "v", other) as defence:
        assert defence.settings.harden.recipe == ("l2",)
        defence.adopt_base(defence.task.model(0).state_dict())
    with pytest.raises(VaultError, match=r"\[harden\] recipe was \('l2',\) and is \(\)"):
        g2d.Defence.create("digits", tmp_path / "v", other.override(harden__recipe=[]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": ("adversarial", "distil")}, "would teach nothing"),
        ({"recipe": ("adversarial", "distil"), "clean": 0.5, "method": "trades"}, "teach nothing"),
        ({"recipe": ("l2", "l2")}, "names l2 twice"),
        ({"recipe": ("l2",), "decay": 0.0}, "both 0"),
        ({"recipe": ("adversarial",), "checks": 0, "patience": 2}, "asks for none"),
        ({"recipe": ("adversarial",), "checks": 0, "method": "fgsm"}, "asks for no look"),
    ],
)
def test_what_would_do_nothing_is_refused(digits, changes, message):
    with pytest.raises(SettingsError, match=message):
        check(digits, HardenSettings(**changes))


def test_the_clamp_leaves_a_layer_its_spread():
    with pytest.raises(SettingsError, match="clamp must lie in"):
        HardenSettings(clamp=1.0)


def test_labels_that_are_missing_are_refused_before_any_training():
    from g2d.errors import DataError
    from g2d.tasks.splits import Split

    with pytest.raises(DataError, match="labels"):
        Split(torch.rand(4, 2), None)  # type: ignore[arg-type]
    for labels in (None, [0, None, 1, 0], ["a", "b", "c", "d"]):
        with pytest.raises(DataError, match=r"labels y are (missing|no numbers)"):
            g2d.split_dataset(torch.rand(4, 2), labels)
