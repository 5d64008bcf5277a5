"""The commands `g2d smpc`: what fails is one line; the whole runs where SPU's environment is."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import g2d
from commands import fail, invoke, process, succeed
from g2d.protect.multiparty.starting import PYTHON
from smpc_parties import LONG, Setup, short_folder, wait_for, why_absent

absent = why_absent()


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def test_an_identity_is_made_and_its_key_is_closed(tmp_path):
    told = succeed("smpc", "identity", tmp_path / "one").stdout
    assert "fingerprint" in told
    assert (tmp_path / "one.key").stat().st_mode & 0o77 == 0
    assert "exists already" in fail("smpc", "identity", tmp_path / "one")


def test_a_party_needs_its_environment(setup, monkeypatch):
    monkeypatch.setenv(PYTHON, str(setup.folder / "none"))
    told = fail("smpc", "party", "--rank", 0, "--config", setup.file)
    assert "Run `make smpc`" in told


@pytest.mark.parametrize("command", ["party --rank 0", "share vault", "infer x.npy", "status"])
def test_what_is_wrong_with_the_file_is_said_first(tmp_path, command):
    file = tmp_path / "parties.toml"
    assert "cannot read" in fail("smpc", *command.split(), "--config", file)
    file.write_text('protocol = "nothing"')
    assert "expected aby3 or cheetah" in fail("smpc", *command.split(), "--config", file)


def test_parties_that_are_not_there_are_named(setup, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    asked = ("smpc", "infer", tmp_path / "x.npy", "--config", setup.file)
    assert "party 0 at 127.0.0.1" in fail(*asked)


def test_status_says_which_party_is_not_there(setup):
    told = invoke("smpc", "status", "--config", setup.file)
    assert told.exit_code == 1
    assert [line[:7] for line in told.stdout.splitlines()] == ["party 0", "party 1", "party 2"]
    assert "3 of 3 parties do not answer" in told.stderr


def test_a_vault_is_not_shared_with_nobody(setup, tiny_vault, tmp_path):
    shutil.copytree(tiny_vault, tmp_path / "vault")
    told = fail("smpc", "share", tmp_path / "vault", "--config", setup.file)
    assert "does not answer" in told


def test_sharing_that_fails_is_tried_less_and_less_often(setup, tiny_vault, tmp_path, monkeypatch):
    """Each try sends all weights to all parties."""
    from g2d.cli import smpc

    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 9:
            raise KeyboardInterrupt

    shutil.copytree(tiny_vault, tmp_path / "vault")
    monkeypatch.setattr(smpc.time, "sleep", sleep)
    invoke("smpc", "share", tmp_path / "vault", "--config", setup.file, "--follow")
    assert [round(w / 2**i, 1) for i, w in enumerate(waits[:5])] == pytest.approx([1] * 5, abs=0.11)
    assert max(waits) <= 66


@pytest.mark.skipif(bool(absent), reason=absent or "SPU is here")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_vault_is_shared_asked_and_rotated(rotated_vault, digits, tmp_path):
    """Three commands as three processes, the vault's generation, and the next one followed."""
    vault = tmp_path / "vault"
    shutil.copytree(rotated_vault, vault)
    with short_folder() as folder:
        setup = Setup(Path(folder))
        config = ("--config", setup.file)
        try:
            for rank in range(3):
                state = ("--state", Path(folder) / f"state{rank}")
                log = setup.log(str(rank)).open("wb")
                setup.processes[rank] = process(
                    "smpc", "party", "--rank", rank, *config, *state, stderr=log, stdout=log
                )
                log.close()
            setup.until_met()
            assert "Generation 3 is live" in succeed("smpc", "share", vault, *config).stdout
            x = digits.splits.test.x[:20]
            np.save(tmp_path / "x.npy", x.numpy())
            asked = ("smpc", "infer", tmp_path / "x.npy", *config, "--out", tmp_path / "y.npy")
            assert succeed(*asked).stdout.count("generation 3") == 20
            with g2d.Defence.open(vault) as defence:
                expected = defence.snapshot().predict(x).numpy()
            told = succeed("client", "infer", setup.file, tmp_path / "x.npy", "--way", "multiparty")
            assert "answered by generation 3" in told.stdout
            told = succeed("smpc", "status", *config).stdout
            assert told.count("answers by generation 3; SPU 0.9.5, aby3") == 3
            assert np.abs(np.load(tmp_path / "y.npy") - expected).max() < 1e-3
            follower = process("smpc", "share", vault, *config, "--follow")
            try:
                with g2d.Defence.open(vault) as defence:
                    defence.generate()
                wait_for(lambda: setup.status()["number"] == 4, setup)
            finally:
                follower.send_signal(signal.SIGINT)
                follower.communicate(timeout=LONG)
            assert succeed(*asked).stdout.count("generation 4") == 20
            assert fail("smpc", "share", rotated_vault, *config)  # an older copy of the vault
        finally:
            setup.stop()
