"""Which recipes there are, your own among them; what is refused before a training and in it."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
import torch
from torch.nn import functional as F

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import SettingsError, VaultError
from g2d.settings import HardenSettings
from g2d.tasks.inference import accuracy
from g2d.training.recipes import Step, check, find, try_out
from hardening import trained
from places import ROOT

DOCS = ROOT / "docs"


def test_unknown_recipes_say_what_is_there(tmp_path, tiny_settings):
    with pytest.raises(SettingsError, match=r"no recipe 'adversrial'. Did you mean 'adversarial'"):
        find("adversrial")
    with pytest.raises(SettingsError, match="there is no module 'no_such_module'"):
        find("no_such_module:recipe")
    with pytest.raises(SettingsError, match=r"has no 'adversarail'. Did you mean 'adversarial'"):
        find("g2d.harden:adversarail")
    with pytest.raises(SettingsError, match="is float; it has to be a function"):
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
            r"recipe '.*misshapen' fails at step 1 of 1: RuntimeError: .*\(.*test_recipes.py",
        ),
        (
            no_plain_loss,
            r"loss of recipe .* fails at step 1 of 1: ValueError: .*\(.*test_recipes.py",
        ),
        (raising, r"step 1 of 1: ZeroDivisionError: of the recipe \(.*test_recipes.py, line \d+\)"),
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
        ({"recipe": ("adversarial", "distil")}, "would have no effect"),
        (
            {"recipe": ("adversarial", "distil"), "clean": 0.5, "method": "trades"},
            "would have no effect",
        ),
        ({"recipe": ("l2", "l2")}, "names l2 twice"),
        ({"recipe": ("l2",), "decay": 0.0}, "both 0"),
        ({"recipe": ("adversarial",), "checks": 0, "patience": 2}, "allows none"),
        ({"recipe": ("adversarial",), "checks": 0, "method": "fgsm"}, "allows none"),
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
    for labels in (None, [0, None, 1, 0]):
        with pytest.raises(DataError, match=r"the labels y are (of several kinds|missing)"):
            g2d.split_dataset(torch.rand(4, 2), labels)
