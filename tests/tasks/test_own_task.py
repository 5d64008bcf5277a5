"""A task that the user wrote: found by its name, or refused in words."""

import sys

import pytest

from g2d.errors import G2DError, TaskError
from g2d.tasks.builtin import load_task

OWN = """
import torch
from torch import nn
from g2d.data import Split, split_dataset
from g2d.tasks import Task

def factory():
    return nn.Linear(4, 2)

def make():
    x = torch.linspace(0, 1, 160).view(40, 4)
    return Task("own", factory, split_dataset(x, torch.arange(40) % 2), 2, eps=0.1)

def make_other():
    return 7

def make_badly():
    raise ValueError("no luck")

def make_misfit():
    x = torch.linspace(0, 1, 160).view(40, 4)
    return Task("own", factory, split_dataset(x, torch.arange(40) % 2), 3, eps=0.1)

def needs(folder):
    return folder

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with modules of the user's own, under names that no other test uses."""
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{tmp_path.name}_{id(tmp_path)}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_syntax.py").write_text("def make(:")
    (tmp_path / f"{name}_exit.py").write_text("raise SystemExit(2)")
    (tmp_path / f"{name}_needs.py").write_text("import no_such_library_at_all")
    return name


def test_own_task(own):
    task = load_task(f"{own}:make")
    assert (task.name, task.eps) == ("own", 0.1)
    assert load_task(f"{own}:make", eps=0.3).eps == 0.3


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("_absent:make", "there is no module 'own_.*_absent' among the installed"),
        (".py:make", "there is no module .* without '.py'"),
        (":mak", r"has no 'mak'. Did you mean 'make'\?"),
        (":number", "'number' is int, expected a function"),
        (":make_other", r"make_other\(\) returned int, expected a g2d.tasks.Task"),
        (":make_badly", r"make_badly\(\) without arguments raised ValueError: no luck"),
        (":make_misfit", r"raised TaskError: task 'own': the model gives \(2, 2\)"),
        (":needs", r"needs\(\) without arguments raised TypeError"),
        (":", "is not the name of one; write 'package.module:name'"),
        ("_syntax:make", "importing .* raised SyntaxError"),
        ("_exit:make", "importing .* raised SystemExit: 2"),
        ("_needs:make", "raised ModuleNotFoundError: No module named 'no_such_library_at_all'"),
    ],
)
def test_own_task_refuses(own, suffix, words):
    with pytest.raises(TaskError, match=words):
        load_task(own + suffix)


def test_own_task_without_a_module():
    with pytest.raises(TaskError, match="is not the name of one"):
        load_task(":make")


def test_own_task_takes_no_folder(own):
    with pytest.raises(G2DError, match="reads its own data"):
        load_task(f"{own}:make", data="somewhere")
