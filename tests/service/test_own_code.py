"""Code of the user's own is bound by what it is: other code never runs beside the signing key."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest

import g2d
from commands import fail, succeed
from g2d.errors import GenerationError, RefusedError, VaultError
from g2d.rotation.snapshot import Live
from g2d.service.assembly import rotate_vault
from g2d.service.http.options import Options
from g2d.service.loader import VaultLoader
from g2d.service.worker import Worker
from g2d.settings import Settings
from g2d.tasks import source
from g2d.vault.signing import VerifyKey
from g2d.vault.vault import Vault
from stand_ins import into

TASK = """
from bound_helper import NAME
from g2d import load_task


def task():
    return load_task(NAME)
"""
HELPER = 'NAME = "digits"\n'


def forget() -> None:
    for name in ("bound_task", "bound_helper"):
        sys.modules.pop(name, None)
    source._LOADED.clear()


@pytest.fixture(scope="session")
def bound_vault(once, tiny_vault, key_file):
    """The tiny vault, of a task that a module of the user's own makes; 2 is live, and signed."""

    def build(path: Path) -> None:
        code = path.with_name("bound_code")
        code.mkdir(exist_ok=True)
        write(code)
        shutil.copytree(tiny_vault, path)
        sys.path.append(str(code))
        try:
            with Vault.open(path, write=True) as opened:
                settings = Settings.from_toml(opened.settings_text)
                own = {"task__name": "bound_task:task", "signing__key": str(key_file)}
                opened.write_settings(settings.override(**own).to_toml())
            with g2d.Defence.open(path) as defence:
                defence.generate()
        finally:
            sys.path.remove(str(code))
            forget()

    return once.copy("bound", build)


def write(folder: Path) -> None:
    (folder / "bound_task.py").write_text(TASK)
    (folder / "bound_helper.py").write_text(HELPER)


@pytest.fixture
def vault(bound_vault, tmp_path):
    return Path(shutil.copytree(bound_vault, tmp_path / "vault"))


@pytest.fixture
def code(tmp_path, monkeypatch):
    """The folder of the user's own code, which is the last on the path."""
    folder = tmp_path / "code"
    folder.mkdir()
    write(folder)
    monkeypatch.setattr("sys.path", [*filter(None, sys.path), str(folder)])
    forget()
    yield folder
    forget()


@pytest.fixture
def key(key_file):
    from g2d.vault.keys import SigningKey

    return SigningKey.read(key_file).public


def tamper(code: Path) -> Path:
    """Other code in a file that the task's own imports, which leaves a proof if it runs."""
    proof = code / "proof"
    (code / "bound_helper.py").write_text(HELPER + f"open({str(proof)!r}, 'w').close()\n")
    return proof


def test_what_was_signed_is_served_and_other_code_is_refused_unrun(vault, code, key):
    """The file was bound by its name alone: whoever could write it ran code in the service."""
    loader = VaultLoader(vault, "g2d", key=key)
    loader.close()
    assert (sorted(loader.code["task"]), loader.unbound) == (["bound_helper", "bound_task"], "")
    forget()
    proof = tamper(code)
    for trusted in (key, None):  # without a key to verify it, a worker may still sign
        with pytest.raises(RefusedError) as refused:
            VaultLoader(vault, "g2d", key=trusted)
        assert refused.value.reason == "code"
        assert f"{code / 'bound_helper.py'} was changed" in str(refused.value)
        assert f"g2d generate {vault} --accept-code" in str(refused.value)
    assert not proof.exists()


def test_a_generation_that_was_signed_with_other_code_is_not_loaded(vault, code, key, monkeypatch):
    loader = VaultLoader(vault, "g2d", key=key)
    tamper(code)
    forget()
    with g2d.Defence.open(vault) as defence:  # by hand, and where it was made it is right
        defence.generate()
    with pytest.raises(RefusedError, match="it was signed with another version"):
        loader.load(3, 2)
    loader.close()


def test_a_vault_without_a_digest_is_served_with_an_alarm(vault, code, key, monkeypatch):
    """As an older G2D signed it."""
    monkeypatch.setattr("g2d.service.loader.bound_code", lambda _: {})
    loader = VaultLoader(vault, "g2d", key=key)
    first, warning = loader.first()
    assert (first.number, warning) == (2, None)
    told: list[tuple[str, dict]] = []
    rotate_vault(vault, loader, Live(first), Options(), into(told))
    loader.close()
    ((event, facts),) = told
    assert (event, facts["kind"]) == ("alarm", "code")
    said = (
        "generation 2 is served with the task's code as it is now: of its code no digest was kept"
    )
    assert facts["text"].startswith(said)
    assert sorted(loader.code["task"]) == ["bound_helper", "bound_task"]  # the worker is bound


def test_generating_by_hand_asks_before_other_code_signs(vault, code, tmp_path):
    proof = tamper(code)
    said = fail("generate", vault)
    assert f"{code / 'bound_helper.py'} was changed since a generation of {vault} was" in said
    assert "--accept-code" in said
    assert not proof.exists()
    sys.path.remove(str(code))
    assert "there is no module 'bound_task' among the installed" in fail("generate", vault)
    succeed("generate", vault, "--accept-code", "--task-path", code)
    assert proof.exists()
    with Vault.open(vault) as opened:
        bound = [opened.generation(n).manifest["code"]["task"] for n in (2, 3)]
    assert [name for name in bound[0] if bound[0][name] != bound[1][name]] == ["bound_helper"]
    forget()
    succeed("activate", vault, "3", "--task-path", code)  # which is what is accepted now


HOSTILE = ("torch.py", "numpy.py", "json.py", "g2d/__init__.py", "sitecustomize.py")


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_worker_runs_nothing_of_where_it_is_started_and_no_other_code(vault, code, monkeypatch):
    """`python -m` puts the working directory first: a vault's `torch.py` ran beside the key."""
    for name in HOSTILE:
        (vault / name).parent.mkdir(exist_ok=True)
        (vault / name).write_text(f"open({str(vault / 'ran')!r}, 'a').write(__name__)\n")
    loader = VaultLoader(vault, "g2d")
    monkeypatch.chdir(vault)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}")
    monkeypatch.setattr("sys.path", ["", str(vault), *sys.path])
    worker = Worker(vault, task=loader.task, code=loader.code)
    loader.close()
    try:
        assert worker.make(2) == 3
        assert psutil.Process(worker.pid).environ()["PYTHONSAFEPATH"] == "1"
        with Vault.open(vault) as opened:
            assert opened.generation(3).manifest["code"] == loader.code
        os.kill(worker.pid, signal.SIGKILL)
        proof = tamper(code)
        for _ in range(2):
            with pytest.raises(GenerationError, match=r"died|bound_helper.py was changed since"):
                worker.make(3)
    finally:
        worker.close()
    assert not proof.exists()
    assert not (vault / "ran").exists()


def test_a_verify_key_alone_is_enough(vault, code, key):
    """The serving side has no private key, and its settings may name a file that is not there."""
    assert isinstance(key, VerifyKey)
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text)
        opened.write_settings(settings.override(signing__key="/nowhere").to_toml())
    VaultLoader(vault, "g2d", key=key).close()
    (code / "bound_helper.py").unlink()
    forget()
    with pytest.raises(VaultError, match="module bound_helper is gone"):
        VaultLoader(vault, "g2d", key=key)
