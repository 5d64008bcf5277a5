"""What the README and examples/ show must run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from commands import succeed
from places import ROOT


def run(example, folder, *arguments, timeout):
    """What it prints, started in a folder of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_breast_cancer_example_rotates_a_users_own_model(tmp_path):
    said = run("breast_cancer.py", tmp_path, timeout=1700)
    assert [f"generation {n} is live" in said for n in (2, 3, 4)] == [True] * 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    os.environ.get("G2D_EXAMPLES") != "long",
    reason="takes four CPU minutes: G2D_EXAMPLES=long make test",
)
def test_a_stolen_generation_is_proven_ours_and_traced(tmp_path):
    said = run("stolen_weights.py", tmp_path, tmp_path, timeout=1100)
    assert "it carries the mark: True" in said
    assert "the suspect was made from generation 3" in said
    assert (tmp_path / "claim.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tour_goes_from_a_population_to_a_report(tmp_path):
    said = run("tour.py", tmp_path, tmp_path, timeout=560)
    assert "generation 4 is live" in said
    assert "attacks crafted on generation 3" in said
    assert "frozen" in said
    assert "g2d" in (tmp_path / "report.html").read_text("utf-8").lower()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_clinics_train_with_a_server_in_three_processes(tmp_path):
    pytest.importorskip("nvflare", reason="g2d[federated] is not installed")
    said = run("two_clinics.py", tmp_path, tmp_path, timeout=1700)
    assert "answers of 2 clients made a base" in said
    assert "and 2 members" in said
    assert said.count("the population is complete") == 2
    assert "Next: g2d fit" in said


def test_example_is_about_twenty_lines():
    text = (ROOT / "examples" / "breast_cancer.py").read_text()
    code = [s for s in text.splitlines() if s.strip() and not s.startswith(("import", "from", '"'))]
    assert len(code) <= 30


def test_readme_names_exist():
    """Every file, command and public name that the README mentions is there."""
    import g2d
    from g2d.cli.main import app

    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(((?:docs|examples)/[^)#]+)\)", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"from g2d import ([\w, ]+)", text):
        assert all(hasattr(g2d, part.strip()) for part in name.split(","))
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    known |= {group.typer_instance.info.name for group in app.registered_groups}
    assert set(re.findall(r"^g2d (\w+)", text, re.MULTILINE)) <= known


def test_readmes_own_model_is_a_task_that_rotates(tmp_path, monkeypatch, tiny_settings):
    """The block is saved as it stands; only the size of its population is another."""
    import g2d

    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (command,) = re.findall(r"`g2d (check mine:task[^`]*)`", text)
    assert "mine, 3 classes" in succeed(*command.split()).stdout
    monkeypatch.syspath_prepend(str(tmp_path))  # as Python does for `python mine.py`
    small = tiny_settings.override(task__name="mine:task", population__workers=1)
    with g2d.Defence.build("mine:task", "vault", small) as defence:
        rotor = g2d.Rotor(defence)
        assert rotor.rotate() == 2
        assert rotor(defence.task.splits.test.x).shape == (len(defence.task.splits.test), 3)
        budget = defence.task.budget
        assert budget is not None
        assert len(budget.eps) == 13
