"""`g2d serve` on a host that holds releases alone: a software TPM, a copied folder, real HTTP."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from commands import edit_ledger
from g2d.cli import main as cli
from g2d.errors import SealingError, VaultError
from g2d.protect.sealing.file import FileCustodian
from g2d.vault.sealing.changing import seal
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault
from places import ROOT
from service_process import Process, expected
from software_tpm import extend, running
from stand_ins import wait_for
from vaults import private


@contextlib.contextmanager
def _read_only(folder: Path, there: Path) -> Iterator[None]:
    """Mount a folder read-only at another place."""
    for step in (["--bind", str(folder), str(there)], ["-o", "remount,ro,bind", str(there)]):
        if os.geteuid() or subprocess.call(["mount", *step]):
            pytest.skip("this machine does not let us mount a folder")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(there)], check=True)


class Sides:
    """The side that generates, and a host to which the vault's folder is copied."""

    def __init__(self, folder: Path, address: str, signed: Path, monkeypatch) -> None:
        self.folder, self.address, self._patch = folder, address, monkeypatch
        self.vault, self.copy = folder / "made" / "vault", folder / "host" / "vault"
        self.host, self.key = folder / "made" / "edge.host", folder / "public"
        self.private = self.key
        self.at("made")
        shutil.copytree(signed, self.vault)
        self.g2d("accept", self.vault)
        custodian = FileCustodian.make(folder / "made" / "custodian.key")
        with Vault.open(self.vault, write=True) as opened:
            seal(opened, custodian, f"file:{folder / 'made' / 'custodian.key'}")

    def at(self, side: str) -> None:
        """Be on a side: nothing of the other's state, settings or keys is here."""
        for name, place in (("G2D_STATE", "state"), ("XDG_CONFIG_HOME", "config"), ("HOME", "")):
            self._patch.setenv(name, str(self.folder / side / place))
        (self.folder / side).mkdir(exist_ok=True)

    def g2d(self, *arguments, side: str = "made", code: int = 0) -> str:
        self.at(side)
        done = CliRunner().invoke(cli.app, [str(part) for part in arguments])
        assert done.exit_code == code, done.output
        return done.output

    def refused(self, *options: str) -> str:
        """What a service says that does not start on the host, in one line."""
        self.at("host")
        done = subprocess.run(
            [sys.executable, "-m", "g2d", "serve", str(self.copy), "--port", "0", *options],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.splitlines()[-1].split())

    def enroll(self) -> None:
        request, challenge, answer = (self.folder / name for name in "rca")
        tpm = ("--tpm", self.address)
        self.g2d("attest", "enroll", "--out", request, *tpm, side="host")
        self.g2d("attest", "enroll", request, "--host", self.host, "--out", challenge,
                 "--insecure-software-tpm")  # fmt: skip
        self.g2d("attest", "enroll", challenge, "--out", answer, *tpm, side="host")
        self.g2d("attest", "enroll", answer, "--host", self.host)

    def release(self) -> None:
        nonce, quote = self.folder / "n", self.folder / "q"
        self.g2d("attest", "ask", self.host, nonce)
        self.g2d("attest", "quote", nonce, quote, "--tpm", self.address, side="host")
        self.g2d("attest", "release", self.vault, self.host, quote)

    def carry(self, ledger_first: bool = False) -> None:
        """Copy what changed as rsync does: beside its place, then renamed into it."""
        found = [path for path in self.vault.rglob("*") if path.is_file()]
        kept = [
            path for path in found if not path.name.startswith(("ledger.sqlite-", "vault.lock"))
        ]
        for path in sorted(kept, key=lambda path: (path.name == "ledger.sqlite") != ledger_first):
            there = self.copy / path.relative_to(self.vault)
            if not there.exists() or there.read_bytes() != path.read_bytes():
                there.parent.mkdir(parents=True, exist_ok=True)
                beside = there.with_name(f".{there.name}.part")
                shutil.copy2(path, beside)
                beside.replace(there)
        private(self.copy)

    def activate(self, number: int) -> None:
        self.at("made")
        with Vault.open(self.vault, write=True) as opened:
            opened.activate(number)

    def expected(self, number: int, x: np.ndarray) -> np.ndarray:
        self.at("made")
        return expected(self.vault, number, x)


@pytest.fixture
def sides(tmp_path, signed_vault, key_file, monkeypatch):
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    with running(tmp_path / "tpm") as address:
        made = Sides(tmp_path, address, signed_vault, monkeypatch)
        made.private = key_file
        SigningKey.read(key_file).public.write(made.key)
        made.enroll()
        yield made


@pytest.mark.slow
def test_a_host_serves_what_was_released_to_it_and_no_more(sides, x, tmp_path):
    sides.carry()
    told = sides.refused()
    assert "g2d attest open" in told  # nothing was released yet
    sides.release()
    sides.carry()
    sides.g2d("attest", "open", sides.copy, "--tpm", sides.address, side="host")
    assert "leave out --every and --queries" in sides.refused("--every", "60s")
    second, third = sides.expected(2, x), sides.expected(3, x)
    sides.at("host")
    with Process(sides.copy, "--key", str(sides.key), log=tmp_path / "log") as served:
        number, logits = served.infer(x)
        assert number == 2
        assert np.allclose(logits, second, atol=1e-5)
        status, told = served.ask("/admin/rotate", method="POST")
        assert status == 409, told
        assert "this host was given releases alone" in str(told)

        sides.activate(3)  # committed, and not released
        sides.carry(ledger_first=True)
        wait_for(lambda: "generation 3 does not open here" in served.text(), 60)
        (line,) = (line for line in served.lines() if line["event"] == "refused")
        assert (line["generation"], line["reason"], line["live"]) == (3, "released", 2)
        assert "generation 3 was not released to this host" in line["text"]
        assert served.ask("/v2/health/ready")[0] == 200
        assert served.infer(x)[0] == 2

        sides.release()
        sides.carry()
        wait_for(lambda: served.rotation()["generation"] == 3, 60)
        number, logits = served.infer(x)
        assert number == 3
        assert np.allclose(logits, third, atol=1e-5)

    extend(sides.address, 14, bytes(32))  # something else was booted
    told = sides.refused()
    assert "booted something else" in told


@pytest.mark.slow
def test_a_release_is_made_while_a_service_generates(sides, x, tmp_path):
    """Its worker holds the vault's lock from its first candidate on."""
    sides.g2d("keys", "use", sides.vault, "--key", sides.private)
    sides.at("made")
    with Process(sides.vault, "--every", "1h", log=tmp_path / "log") as served:
        wait_for(lambda: served.rotation()["spare"] is not None, 240)
        with pytest.raises(VaultError, match="is writing"):
            Vault.open(sides.vault, write=True)
        sides.release()
        number = served.rotate()
        assert number > 2
        sides.release()
        with Vault.open(sides.vault) as opened:
            assert len(opened.sealing.released(2)) == 1
            assert len(opened.sealing.released(number)) == 1
        assert served.infer(x)[0] == number
    sides.carry()
    sides.g2d("attest", "open", sides.copy, "--tpm", sides.address, side="host")
    with Vault.open(sides.copy) as opened:
        opened.read_generation(number)


def test_what_was_served_is_not_gone_back_from_and_no_copy_comes_half(sides, monkeypatch):
    from g2d.errors import RefusedError
    from g2d.service import released_loader
    from g2d.service.released import holds_releases_alone
    from g2d.service.released_loader import ReleasedLoader

    sides.release()
    sides.carry()
    sides.g2d("attest", "open", sides.copy, "--tpm", sides.address, side="host")
    older = shutil.copytree(sides.copy, sides.folder / "older")
    sides.activate(3)
    sides.release()
    sides.at("host")
    assert holds_releases_alone(sides.copy)
    monkeypatch.setattr(released_loader, "PATIENCE", 0.0)
    monkeypatch.setattr(released_loader, "_MOST", 0.0)
    loader = ReleasedLoader(sides.copy, "g2d")
    try:
        assert loader.first()[0].number == 2
        for missing in ("weights.safetensors", "manifest.json"):
            sides.carry(ledger_first=True)
            (sides.copy / "generations" / "000003" / missing).unlink()
            sides.at("host")
            assert loader.live() == 2  # it has not arrived
        sides.carry()
        sides.at("host")
        assert loader.live() == 3
        assert loader.load(3, 2).number == 3
        loader.served(3)
        shutil.copy2(older / "ledger.sqlite", sides.copy / "put")
        (sides.copy / "put").replace(sides.copy / "ledger.sqlite")
        with pytest.raises(RefusedError, match="was put back"):
            loader.live()
    finally:
        loader.close()
    mounted = sides.folder / "host" / "mounted"
    mounted.mkdir()
    with _read_only(sides.vault, mounted), Vault.open(sides.vault, write=True):
        sides.g2d("attest", "open", mounted, "--tpm", sides.address, side="host")
        loader = ReleasedLoader(mounted, "g2d")
        assert loader.first()[0].number == 3
        loader.close()
    sides.carry()
    sides.at("host")
    with Vault.open(sides.copy, write=True) as opened:  # who writes the copy takes release 3 away
        opened._ledger.execute(
            "UPDATE sealing SET record = replace(record, 'generation 3', 'generation 9')"
        )
    with pytest.raises(VaultError, match="3 has been served"):
        ReleasedLoader(sides.copy, "g2d")
    edit_ledger(sides.copy, "DROP TABLE sealing")  # and what is plain would be served
    with pytest.raises(SealingError, match="says so no more: it is not served"):
        holds_releases_alone(sides.copy)
