"""A vault that was built from a `Task` object is found again by the function that made it."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

import g2d
from commands import fail, succeed
from g2d.errors import TaskError
from g2d.settings import Settings
from g2d.tasks import source
from g2d.tasks.origin import Origin
from g2d.vault.vault import Vault

SOURCE = """
import torch
from torch import nn
from g2d import Defence, Settings, Task, split_dataset

def model():
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))

def made():
    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    return Task("mine", model, split_dataset(x, (x[:, 0] > x[:, 1]).long()), classes=2, eps=0.1)

def with_argument(eps):
    return made()

def defend(path, task=None):
    with Defence.create(task or made(), path, Settings()):
        pass

def does_more(path="vault"):
    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    task = Task("mine", model, split_dataset(x, (x[:, 0] > 0.5).long()), classes=2, eps=0.1)
    defend(path, task)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The module of a user, in the folder that is the current one."""
    (tmp_path / "mine_of_user.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import mine_of_user

    source._LOADED.clear()
    yield mine_of_user
    sys.modules.pop("mine_of_user", None)


def test_the_function_that_made_it_is_recorded_and_found_again(mine, tmp_path):
    mine.defend("vault")
    text = (tmp_path / "vault/task.toml").read_text()
    assert 'name = "mine"' in text
    assert 'origin = "mine_of_user:made"' in text
    with g2d.Defence.open("vault") as defence:
        assert defence.task.name == "mine"
        assert defence.source == ("mine_of_user:made", "", 0, 0.1)
    assert "origin=mine_of_user:made" in Settings.from_vault(text).source  # signatures bind it


def test_where_it_is_gone_one_line_says_where_it_was_and_what_to_pass(mine, tmp_path):
    mine.defend("vault")
    (tmp_path / "mine_of_user.py").write_text(SOURCE.replace("def made(", "def renamed("))
    del sys.modules["mine_of_user"]
    importlib.invalidate_caches()
    said = fail("fit", "vault")
    assert "the task 'mine' was made by mine_of_user:made in " in said
    assert "has no 'made'" in said
    assert "--task module:function" in said


def test_a_function_that_does_more_is_never_called_again(mine):
    """Calling it would build a defence inside of opening one."""
    mine.does_more()
    with pytest.raises(
        TaskError, match=r"does_more\(\) does more than to return it.*--task module"
    ):
        g2d.Defence.open("vault")


@pytest.mark.parametrize(
    ("guard", "found"), [('if __name__ == "__main__":', True), ("if 1:", False)]
)
def test_a_script_is_imported_again_only_if_it_has_a_guard(tmp_path, guard, found):
    script = tmp_path / "script_of_user.py"
    script.write_text(SOURCE + f"\n{guard}\n    defend('vault')\n")
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=300)
    text = (tmp_path / "vault/task.toml").read_text()
    assert ('origin = "script_of_user:made"' in text) == found
    assert ("made_in = " + repr(str(script)).replace("'", '"') in text) == found
    assert ("has no `if __name__" in text) != found


def test_a_start_of_another_task_that_failed_leaves_no_settings_behind(mine, tmp_path):
    """Its folder is free: nothing had been paid for."""
    with g2d.Defence.create("digits", "vault"):
        pass
    mine.defend("vault")
    with g2d.Defence.create("mine_of_user:made", "other"):
        fresh = (tmp_path / "other/task.toml").read_text()
    with g2d.Defence.create("digits", "again"):
        pass
    with g2d.Defence.create("mine_of_user:made", "again"):
        assert (tmp_path / "again/task.toml").read_text() == fresh


def test_a_base_that_was_handed_in_is_never_forgotten(mine, digits):
    """Without it, other settings would train a base of their own, and nobody would notice."""
    with g2d.Defence.create("digits", "vault") as defence:
        assert not defence.vault.begun()
        defence.adopt_base(digits.model(0).state_dict())
        assert defence.vault.begun()
    with pytest.raises(g2d.errors.VaultError, match="was made with other task or population"):
        g2d.Defence.create("digits", "vault", Settings().override(population__seed=8))
    with Vault.open("vault") as vault:
        assert vault.entry("base") is not None


def test_the_command_line_takes_the_other_task_with_its_own_settings(mine, tmp_path):
    with g2d.Defence.create("digits", "vault"):
        pass
    small = ["--members", "2", "--basins", "1", "--workers", "1"]
    steps = [f"--set=population.{name}=1" for name in ("base_steps", "early_steps", "fork_steps")]
    succeed("population", "vault", "--task", "mine_of_user:made", *small, *steps)
    kept = Settings.from_vault((tmp_path / "vault/task.toml").read_text())
    assert kept.task.name == "mine_of_user:made"
    assert kept.gates.accuracy_drop == 0.072  # what 64 can show, not what digits had


BUILT_IN = """
import dataclasses
from g2d import load_task

def ours():
    return load_task("digits")

def another_budget():
    return load_task("digits", eps=0.1)

def changed():
    return dataclasses.replace(load_task("digits"), eps=0.1)
"""


def test_a_built_in_task_is_found_by_its_name_whoever_loaded_it(mine, tmp_path):
    """The module that asked for it need not be there where the vault is opened."""
    (tmp_path / "asks.py").write_text(BUILT_IN)
    import asks

    del sys.modules["asks"]
    assert asks.changed().origin.name == "asks:changed"  # which is no longer ours
    for function, eps in ((asks.ours, 0.15), (asks.another_budget, 0.1)):
        task = function()
        assert task.origin.name == ""
        with g2d.Defence.create(task, function.__name__) as defence:
            assert defence.settings.source == "digits"
        (tmp_path / "asks.py").unlink(missing_ok=True)
        with g2d.Defence.open(function.__name__) as defence:
            assert (defence.task.name, defence.task.eps) == ("digits", eps)


def test_a_name_that_says_where_the_task_is_found_is_its_only_one(mine, tmp_path):
    """A vault that an earlier release signed under this name stays signed."""
    named = dataclasses.replace(mine.made(), name="mine_of_user:made")
    assert named.origin.name == ""
    mine.defend("vault", named)
    with Vault.open("vault") as vault:
        kept = Settings.from_vault(vault.settings_text)
    assert (kept.source, kept.task.origin, kept.task.made_in) == ("mine_of_user:made", "", "")
    both = dataclasses.replace(kept.task, origin="gone:made")
    assert source.by_name(both)[0] == "mine_of_user:made"


def test_an_origin_that_is_known_outlives_a_visit_from_elsewhere(mine, tmp_path):
    """A signature binds it: opening the vault from a notebook must not take it away."""
    mine.defend("vault")
    x = mine.made()
    object.__setattr__(x, "_origin", Origin(why="it was made in a notebook, or typed in"))
    with g2d.Defence.create(x, "vault"):
        text = (tmp_path / "vault/task.toml").read_text()
    assert 'origin = "mine_of_user:made"' in text
