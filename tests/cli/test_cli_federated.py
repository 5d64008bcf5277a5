"""What `g2d federated` says to whoever does something wrong, and what it then leaves as it was."""

import os
from contextlib import contextmanager

import pytest

import g2d
from commands import fail, succeed
from federated_processes import free_port, settings
from g2d.attacks.byzantine import ATTACKS
from g2d.core.platforms import FileLock
from g2d.core.types import unsaid
from g2d.defence.federating import federate
from g2d.training.federated.simulate import Hostile

A, B = "hospital-a", "hospital-b"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A vault that two clients of one process trained, one of them malicious; shared and kept."""
    path = tmp_path_factory.mktemp("federated") / "vault"
    given = settings(rounds=1, fork_rounds=1, local_steps=1, early_rounds=1)
    seen = []
    with g2d.Defence.create("digits", path, given) as defence:
        hostile = Hostile(ATTACKS["sign-flip"], 1)
        federate(
            defence.task, defence.vault, given, hostile, lambda *step: seen.append(step), unsaid
        )
    return path, seen


def kits(tmp_path, *words, **federated):
    pytest.importorskip("nvflare", reason="g2d[federated] is not installed")
    file = tmp_path / "few.toml"
    file.write_text(settings(**federated).to_toml())
    return (
        "federated", "provision", tmp_path / "kits", "digits", "--server",
        f"localhost:{free_port()}", "--client", A, "--client", B, "--settings", file, *words,
    )  # fmt: skip


@contextmanager
def held(path):
    path.parent.mkdir(parents=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    lock = FileLock(handle, path)
    yield
    lock.close()
    os.close(handle)


def test_no_kits_are_made_by_settings_that_nobody_could_train_by(tmp_path):
    for change, words in (
        ("federated.f=1", "may be half or more"),
        ("federated.rule=media", "Did you mean 'median'"),
        ("federated.secure=true", "hides malicious ones, too"),
        ("population.recipe=seeds", "take 'repelled' or 'forks'"),
    ):
        assert words in fail(*kits(tmp_path, "--set", change, rule="median"))
    assert not (tmp_path / "kits").exists()
    # A client decides by itself how private it is: that is not the server's to check.
    succeed(*kits(tmp_path, "--set", "federated.private=true"))


def test_a_server_says_what_does_not_fit_before_it_listens(tmp_path):
    succeed(*kits(tmp_path))
    kit, vault = tmp_path / "kits" / "server", tmp_path / "vault"
    words = ("federated", "server", kit, "digits", "--vault", vault)
    assert "--bind 'here' is no HOST:PORT" in fail(*words, "--bind", "here")
    assert not vault.exists()
    text = (kit / "settings.toml").read_text()
    (kit / "settings.toml").write_text(text.replace("\nf = 0", "\nf = 1"))
    assert "bears no malicious client" in fail(*words)  # and not a line before it


def test_a_client_needs_a_port_and_a_kit_that_no_other_process_uses(tmp_path):
    succeed(*kits(tmp_path))
    kit = tmp_path / "kits" / A
    words = ("federated", "client", kit, "digits")
    assert "--server 'here' is no HOST:PORT" in fail(*words, "--server", "here")
    with held(kit / "state" / f"{A}.lock"):
        said = fail(*words)
    assert f"another process takes part as {A}" in said
    assert "end it first" in said


def test_what_no_client_does_is_said_as_it_was_given():
    words = ("federated", "simulate", "digits", "--attack", "alie", "--f", "1", "--malicious", "0")
    assert "--malicious is 0" in fail(*words)


def test_other_settings_are_refused_by_name_and_not_kept(made):
    path, _ = made
    kept = (path / "task.toml").read_bytes()
    said = fail("federated", "simulate", "digits", "--vault", path, "--rounds", "9", "--f", "0")
    assert "[federated] rounds was 1 and is 9" in said
    assert (path / "task.toml").read_bytes() == kept
    freely = ["--set", "federated.member_drop=0.9", "--set", "federated.patience=5"]
    succeed("population", path, *freely)
    assert b"member_drop = 0.9" in (path / "task.toml").read_bytes()


def test_a_vault_says_who_trained_it_and_whose_ledgers_count(made):
    path, _ = made
    shown = succeed("show", path).stdout
    assert "trained by   3 clients of one process (a simulation), rule mean, f = 0" in shown
    assert "1 of them malicious: sign-flip" in shown
    told = " ".join(succeed("privacy", path).stdout.split())
    assert "clients trained it" in told
    assert "as they are" not in told


def test_every_stage_says_how_far_it_is(made):
    _, seen = made
    assert ("early-0", 1, 1) in seen


def test_a_base_that_a_vault_would_not_keep_is_said(tmp_path):
    file = tmp_path / "few.toml"
    given = settings(rule="mean", clip=0.0, rounds=6, local_steps=5, root=200)
    file.write_text(given.to_toml())
    attacked = ("--attack", "sign-flip", "--malicious", "1")
    told = succeed("federated", "simulate", "digits", "--settings", file, *attacked).output
    assert "with --vault it would be refused" in told
    assert "refused      none" in told
