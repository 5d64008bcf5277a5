"""What lies in the current directory or in a vault never runs in a process of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from g2d.core import search_path
from g2d.core.imports import import_attribute
from g2d.errors import SettingsError, TaskError
from g2d.vault import ledger
from places import ROOT

SOURCE = str(ROOT / "src")


def plant(folder: Path, *names: str) -> Path:
    """Modules that leave a proof when they run; as files, and the package as a folder."""
    proof = folder / "proof"
    for name in names:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({str(proof)!r}, 'a').write(__name__ + ' ')\n")
    return proof


def test_the_name_of_a_vaults_ledger_is_known():
    assert search_path.LEDGER == ledger.LEDGER


POOL = """
from g2d.core import engine
engine._start_worker = abs

if __name__ == "__main__":
    with engine.LocalEngine(1) as local:
        print(list(local.run(abs, [-1])))
"""


def test_workers_of_an_engine_take_nothing_from_the_current_directory(tmp_path):
    """They are started with `-c`: `multiprocessing` itself came from where they were started."""
    here = tmp_path / "here"
    here.mkdir()
    proof = plant(here, "multiprocessing/__init__.py", "site.py", "torch.py", "g2d/__init__.py")
    (tmp_path / "pool.py").write_text(POOL)
    done = subprocess.run(
        [sys.executable, tmp_path / "pool.py"], cwd=here, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": SOURCE}, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[(0, 1)]\n", "")
    assert not proof.exists()


@pytest.mark.parametrize("python_path", [SOURCE, f"{SOURCE}{os.pathsep}"])
def test_python_m_g2d_takes_the_current_directory_off_the_path(tmp_path, python_path):
    proof = plant(tmp_path, "typer.py", "typer/__init__.py", "torch.py", "numpy.py")
    done = subprocess.run(
        [sys.executable, "-m", "g2d", "settings", "--defaults"], cwd=tmp_path,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": python_path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not proof.exists()


def test_a_child_gets_no_empty_part_of_pythonpath_and_no_vault(tmp_path, monkeypatch):
    vault = tmp_path / "vault"
    vault.mkdir()
    (vault / "ledger.sqlite").touch()
    (vault / "inner").mkdir()
    (tmp_path / "link").symlink_to(vault / "inner")
    monkeypatch.chdir(tmp_path)
    parts = ["", "own", str(vault), str(vault / "inner"), str(tmp_path / "link"), SOURCE, ""]
    made = search_path.child_environment({"PYTHONPATH": os.pathsep.join(parts), "A": "b"})
    assert made == {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "own"), SOURCE]),
        "PYTHONSAFEPATH": "1",
        "A": "b",
    }
    monkeypatch.setattr("sys.path", ["", "own", str(tmp_path / "link"), SOURCE])
    assert search_path.search_path() == [str(tmp_path / "own"), SOURCE]
    with pytest.raises(SettingsError, match="code from a vault is never run"):
        search_path.refuse_vaults()


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{SOURCE}{os.pathsep}")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with search_path.isolated_children():
        assert os.environ["PYTHONPATH"] == SOURCE
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["PYTHONPATH"] == f"{SOURCE}{os.pathsep}"
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of a user in the current directory, which is not on the path."""
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    name = f"of_a_user_{id(tmp_path)}"
    (tmp_path / f"{name}.py").write_text("def task():\n    return 1\n")
    yield name
    sys.modules.pop(name, None)


def test_a_module_of_the_current_directory_is_named_in_words(mine, tmp_path):
    with pytest.raises(TaskError, match=r"it lies in the current directory: add --task-path \.;"):
        import_attribute(f"{mine}:task", "task", TaskError)
    added = search_path.add_task_path(Path())
    try:
        assert sys.path[-1] == str(tmp_path)  # it shadows nothing
        assert import_attribute(f"{mine}:task", "task", TaskError)() == 1
        assert os.environ["G2D_TASK_PATH"] == str(tmp_path)
    finally:
        search_path.drop_task_path(added)
    assert str(tmp_path) not in sys.path
    assert "G2D_TASK_PATH" not in os.environ


def test_a_process_that_somebody_else_starts_for_us_knows_the_task_path(mine, tmp_path):
    """Ray's workers get no `sys.path` of ours; relative folders and vaults are left out."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import sys; from g2d.core.imports import import_attribute as"
         f" f\nprint(f({mine + ':task'!r}, 'task', ValueError)(), sys.path[-1])"],
        capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": SOURCE, "G2D_TASK_PATH": f"own:{tmp_path}:"},
    )  # fmt: skip
    assert done.stdout == f"1 {tmp_path}\n"


def test_no_module_comes_from_inside_a_vault(mine, tmp_path):
    (tmp_path / "ledger.sqlite").touch()
    sys.path.append(str(tmp_path))
    with pytest.raises(TaskError, match=r"lies in the vault .* is never run") as refused:
        import_attribute(f"{mine}:task", "task", TaskError)
    assert "\n" not in str(refused.value)
    assert mine not in sys.modules
    inner = tmp_path / "population"
    inner.mkdir()
    for folder in (tmp_path, inner):
        with pytest.raises(SettingsError, match="lies in the vault"):
            search_path.add_task_path(folder)


def test_a_task_path_shadows_nothing_and_says_so(mine, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemError\n")
    added = search_path.add_task_path(tmp_path)
    try:
        with pytest.raises(TaskError, match=r"goes before it: give yours another name"):
            import_attribute("json:task", "task", TaskError)
    finally:
        search_path.drop_task_path(added)
    with pytest.raises(SettingsError, match="there is no such folder"):
        search_path.add_task_path(tmp_path / "absent")


def test_a_folder_that_was_on_the_path_before_stays_there(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    before = list(sys.path)
    search_path.drop_task_path(search_path.add_task_path(tmp_path))
    assert sys.path == before
