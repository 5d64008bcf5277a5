"""Bad input and commands out of order: one line that says what to do, and nothing is made."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import SMALL, edit_ledger, fail, settings_file, succeed
from g2d.vault.vault import Vault

# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "digit"], "no task 'digit'. Did you mean 'digits'?"),
        (["--task", "mnist", "--data", "/nowhere"], "/nowhere does not exist; point --data at"),
        (["--task", "no_such_module:task"], "there is no module 'no_such_module'"),
        (["--eps", "5"], "eps 5 is larger than the data's range"),
        (["--recipe", "repeled"], "Did you mean 'repelled'?"),
        (["--settings", "/nowhere.toml"], "cannot read the settings file /nowhere.toml"),
    ],
)
def test_bad_input_is_explained_and_makes_no_vault(tmp_path, arguments, expected):
    assert expected in fail("population", tmp_path / "vault", *arguments)
    assert not (tmp_path / "vault").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[population]\nmember = 4\n", "unknown key 'member'. Did you mean 'members'?"),
        ("[poplation]\n", "unknown key 'poplation'. Did you mean 'population'?"),
        ("[population]\nrate = 20.0\n", "rate must lie in [1e-08, 10], not 20.0"),
        ("population = 4\n", "'population' is a section, write [population]"),
        ("[population\n", "is not valid TOML"),
    ],
)
def test_a_bad_settings_file_is_explained(tmp_path, text, expected):
    file = settings_file(tmp_path, text)
    said = fail("population", tmp_path / "vault", "--settings", file)
    assert expected in said
    assert str(file) in said
    assert not (tmp_path / "vault").exists()


def test_bad_checkpoints_are_explained(tmp_path, tiny_vault):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    member = tiny_vault / "population" / "000000.safetensors"
    shutil.copy(member, zoo / "a.safetensors")
    adopt = ("population", tmp_path / "vault", "--from-checkpoints", zoo)
    assert "holds 1 checkpoint(s)" in fail(*adopt)
    state = load_file(member)
    name = next(iter(state))
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, zoo / "b.safetensors")
    assert "b.safetensors" in fail(*adopt)
    torch.save({"f": print}, zoo / "b.pt")
    (zoo / "b.safetensors").unlink()
    assert "b.pt" in fail(*adopt)
    assert "drop --members" in fail(*adopt, "--members", "3", code=2)


@pytest.mark.parametrize("command", ["show", "fit", "generate", "settings"])
def test_what_is_not_a_vault_is_named(tmp_path, command):
    assert "is not a vault" in fail(command, tmp_path)
    assert "there is no vault at" in fail(command, tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["show", "population", "generate"])
def test_a_vault_of_a_newer_version_is_refused(vault, command):
    edit_ledger(vault, "PRAGMA user_version = 99")
    assert "vault format 99" in fail(command, vault)


def test_commands_out_of_order_say_what_comes_first(vault):
    with Vault.open(vault, write=True) as opened:
        opened.delete("generator")
    assert "run `g2d fit` first" in fail("generate", vault)
    with Vault.open(vault, write=True) as opened:
        opened.delete("member")
    assert "run `g2d population` first" in fail("fit", vault)


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    said = fail("population", tmp_path, *SMALL)
    assert "not an empty folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_locked_vault_can_be_shown_and_names_its_writer(vault):
    with Vault.open(vault, write=True):
        succeed("show", vault)
        assert f"another g2d process (pid {os.getpid()}) is writing" in fail("generate", vault)


def test_g2d_threads_is_checked(vault, monkeypatch):
    monkeypatch.setenv("G2D_THREADS", "many")
    assert "G2D_THREADS is 'many'" in fail("fit", vault)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("G2D_THREADS", "3")
    succeed("fit", vault)
    monkeypatch.delenv("G2D_THREADS")
    succeed("fit", vault)
    assert asked == [3, 1]
