"""Code of the user's own is bound by what it is: other code never runs beside the signing key."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

import g2d
from commands import fail, succeed, write_settings
from g2d.errors import GenerationError, RefusedError, VaultError
from g2d.redteam.context import AttackContext, RunSpec
from g2d.rotation.snapshot import Live
from g2d.service.assembly import rotate_vault
from g2d.service.http.options import Options
from g2d.service.loader import VaultLoader
from g2d.service.worker import Worker
from g2d.settings import Settings
from g2d.tasks import source
from g2d.vault.confirmed import confirm_key
from g2d.vault.signing import SigningKey, VerifyKey, sign_generation
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
def vault(bound_vault, tmp_path, key_file):
    path = Path(shutil.copytree(bound_vault, tmp_path / "vault"))
    with Vault.open(path) as opened:
        confirm_key(opened, str(key_file))  # of the copy, too
    return path


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


def test_a_vault_without_a_digest_is_served_with_an_alarm(vault, code, key, key_file):
    """As an older G2D signed it."""
    newer = {"number", "files", "created", "code", "marked"}
    with Vault.open(vault, write=True) as opened:
        manifest = opened.generation(2).manifest
        files = {name: opened.read_generation(2, name) for name in manifest["files"]}
        older = {name: value for name, value in manifest.items() if name not in newer}
        opened.accept(files, older, activate=True, sign=SigningKey.read(key_file).sign)
    loader = VaultLoader(vault, "g2d", key=key)
    first, warning = loader.first()
    assert (first.number, warning) == (3, None)
    told: list[tuple[str, dict]] = []
    rotate_vault(vault, loader, Live(first), Options(), into(told))
    loader.close()
    # Copies of the same vault went further in other fixtures.
    ((event, facts),) = [one for one in told if one[0] != "older copy"]
    assert (event, facts["kind"]) == ("alarm", "code")
    said = (
        "generation 3 is served with the task's code as it is now: of its code no digest was kept"
    )
    assert facts["text"].startswith(said)
    assert sorted(loader.code["task"]) == ["bound_helper", "bound_task"]  # the worker is bound


OTHER = TASK.replace("def task", "open(__file__ + '.ran', 'w').close()\n\n\ndef task")


def name_other(vault: Path, code: Path) -> Path:
    """Name another module of the machine in task.toml, as who may write the vault can."""
    (code / "installed_thing.py").write_text(OTHER)
    write_settings(vault, '"bound_task:task"', '"installed_thing:task"')
    return code / "installed_thing.py.ran"


def test_what_is_signed_is_what_was_loaded_whatever_the_settings_name_now(vault, code, key_file):
    """A worker signed the name that task.toml had at that moment, and a restart ran its code."""
    with g2d.Defence.open(vault) as defence:
        name_other(vault, code)
        said = (
            "names 'installed_thing:task' now, and 'bound_task:task' was loaded: nothing is signed"
        )
        with pytest.raises(VaultError, match=said):
            defence.generate()
        assert defence.vault.last_number() == 2
        assert defence.vault.rejections() == []


def sign_other(vault: Path, key_file: Path, **more) -> None:
    """Make 3 live, signed for what task.toml names: as a signer that believes it would."""
    with Vault.open(vault, write=True) as opened:
        files = {name: opened.read_generation(2, name) for name in ("weights", "attacks")}
        manifest = {**opened.generation(2).manifest, **more}
        for name in ("number", "files", "created", *(() if "code" in more else ("code",))):
            manifest.pop(name)
        source = Settings.from_vault(opened.settings_text).source
        signer = SigningKey.read(key_file)
        sign_generation(opened, files, manifest, signer, source=source, lifetime=1.0, activate=True)


def test_a_service_that_runs_takes_nothing_that_was_signed_for_another_task(
    vault, code, key, key_file
):
    loader = VaultLoader(vault, "g2d", key=key)
    name_other(vault, code)
    sign_other(vault, key_file)
    for judge in (loader.verify, loader.load):
        with pytest.raises(RefusedError, match="for task 'installed_thing:task', and 'bound_task"):
            judge(3, 2)
    with pytest.raises(RefusedError) as refused:
        loader.again(3)
    assert refused.value.reason == "task"
    loader.close()


def test_a_task_of_ones_own_that_a_signature_does_not_bind_is_refused_unrun(
    vault, code, key, key_file
):
    """Only what an older G2D signed may lack digests; this one always says what it binds."""
    proof = name_other(vault, code)
    sign_other(vault, key_file)
    with Vault.open(vault) as opened:
        assert opened.generation(3).manifest["code"] == {}
    for trusted in (key, None):
        with pytest.raises(RefusedError, match="signed without its code") as refused:
            VaultLoader(vault, "g2d", key=trusted)
        assert refused.value.reason == "code"
    assert not proof.exists()


def test_no_command_runs_other_code_than_was_signed(vault, code):
    """`g2d population` and `g2d attack` compared nothing."""
    proof = tamper(code)
    commands = [
        ("population", vault),
        ("population", vault, "--set", "guidance.memory=3"),
        ("attack", vault, "--threat", "sanity", "--examples", "5"),
        ("activate", vault, "2"),
        ("fit", vault),
    ]
    for command in commands:
        said = fail(*command)
        assert f"{code / 'bound_helper.py'} was changed since a generation of {vault} was" in said
    assert not proof.exists()
    assert "give at least 10" in fail(*commands[2], "--accept-code")
    assert proof.exists()
    forget()
    proof.unlink()
    succeed(*commands[1], "--accept-code")
    assert proof.exists()


def test_a_worker_of_the_red_team_runs_no_other_code_than_its_parent(vault, code):
    with g2d.Defence.open(vault, write=False) as defence:
        spec = RunSpec(defence.source, str(vault), defence.settings, n=10, code=defence.code)
    forget()
    proof = tamper(code)
    with pytest.raises(VaultError, match=r"bound_helper.py was changed"):
        AttackContext(spec)
    assert not proof.exists()


def test_removing_a_signature_does_not_switch_the_check_off(vault, code):
    """Whoever may write the vault could so have other code run beside the signing key."""
    (vault / "generations" / "000002" / "manifest.sig").unlink()
    proof = tamper(code)
    said = fail("generate", vault)
    assert f"{vault} lacks the signature of generation 2" in said
    assert "--accept-code" in said
    with pytest.raises(VaultError, match="lacks the signature of generation 2"):
        VaultLoader(vault, "g2d")
    assert not proof.exists()


def test_an_unsigned_generation_after_a_signed_one_does_not_either(vault, code):
    with Vault.open(vault, write=True) as opened:
        opened.accept({"weights": opened.read_generation(2)}, {"task": "digits"})
    proof = tamper(code)
    assert "bound_helper.py was changed" in fail("generate", vault)
    assert not proof.exists()


@pytest.mark.filterwarnings("ignore")  # of importing Ray Serve
@pytest.mark.parametrize("kind", ["http.server", "cluster.deployment"])
def test_an_observer_imports_no_other_code_than_was_signed(vault, code, tmp_path, key, kind):
    """It was made before the task's code was compared, and may import the task's module."""
    if kind == "cluster.deployment":
        pytest.importorskip("ray")
    (code / "bound_watch.py").write_text("import bound_task\n\n\ndef make(alarm):\n    raise\n")
    serve = importlib.import_module(f"g2d.service.{kind}").serve
    options, proof = Options(observer=("bound_watch:make",)), tamper(code)
    key.write(tmp_path / "signing.pub")
    with socket.socket() as bound:
        more = {"bound": bound} if kind == "http.server" else {}
        for trusted in (None, tmp_path / "signing.pub"):
            with pytest.raises(RefusedError, match=r"bound_helper.py was changed"):
                serve(vault, options, key=trusted, audit="none", **more)
    assert not proof.exists()


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
