"""A sealed vault gets a new key in place: who has the former one reads nothing that is there."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from benchmarks.sealing.kills import Fuse
from commands import edit_ledger
from g2d.errors import BrokenSealError, SealingError, VaultError
from g2d.protect import sealing
from g2d.protect.sealing.paper import PaperCustodian
from g2d.vault.sealing import changing, rekeying
from g2d.vault.sealing.envelope import About, head_of, seal_file
from g2d.vault.sealing.record import write_record
from g2d.vault.sealing.rekeying import rekey
from g2d.vault.sealing.remembered import remember, remembered
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from signed import run

pytest.importorskip("cryptography")


def network(seed):
    return save({"weight": np.random.default_rng(seed).normal(size=60).astype("f4")})


class Killed(BaseException):
    """Stands for SIGKILL: nothing below tidies up for it."""


@pytest.fixture
def urls(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    found = [f"file:{tmp_path / name}.key" for name in ("stolen", "new")]
    for url in found:
        sealing.make_custodian(url)
    return found


@pytest.fixture
def path(tmp_path, urls):
    path, by = tmp_path / "vault", sealing.custodian(urls[0])
    with Vault.create(path, "[task]\n") as made:
        made.put("base", 0, {"weights": network(0)}, {})
        made.put("member", 0, {"weights": network(3), "attacks": network(4)}, {})
        for turn in (1, 2):
            files = {"weights": network(turn), "attacks": network(5)}
            made.accept(files, {}, activate=True)
        changing.seal(made, by, urls[0])
        changing.add_custodian(made, PaperCustodian.make(), "paper")
        kept = path / "redteam" / "networks" / "one.safetensors"
        kept.parent.mkdir(parents=True)
        record = made.sealing.record
        about = made.sealing.other("network", kept.name, network(6))
        kept.write_bytes(seal_file(network(6), about, made.sealing.key(record)))
    return path


def read(path):
    with Vault.open(path) as vault:
        found = [vault.read(vault.entry(kind), "weights") for kind in ("base", "member")]
        found += [vault.read_generation(n, name) for n in (1, 2) for name in ("weights", "attacks")]
        return [*found, vault.sealing.content(path / "redteam" / "networks" / "one.safetensors")]


def go(path, urls, progress=None):
    with Vault.open(path, write=True) as vault:
        more = (progress,) if progress else ()
        return rekey(vault, None, sealing.custodian(urls[1]), urls[1], *more)


def keys_in(path):
    found = set()
    for file in path.rglob("*.safetensors"):
        with file.open("rb") as opened:
            found.add(head_of(opened.read).key)
    return found


def test_every_file_is_sealed_anew_and_the_stolen_custodian_opens_none(path, urls, tmp_path):
    before, old = read(path), keys_in(path)
    copy = shutil.copytree(path, tmp_path / "copy")
    done = go(path, urls)
    assert (done.files, done.before) == (8, 0)
    assert read(path) == before
    assert not keys_in(path) & old
    assert len(keys_in(path)) == 1
    assert verify(path) == []
    with Vault.open(path) as vault:
        record = vault.sealing.record
        assert (record.state, record.former, len(record.held)) == ("sealed", None, 1)
        with pytest.raises(SealingError):
            vault.sealing.key(replace(record, key="0" * 16), sealing.custodian(urls[0]))
    # A file of the former key, as who stole that makes one, is another vault's.
    with Vault.open(copy) as stolen:
        key = stolen.sealing.key(stolen.sealing.record, sealing.custodian(urls[0]))
    with Vault.open(path) as vault:
        row = vault.generation(2)
        about = About(vault.identity, "generation", 2, "weights", row.files["weights"])
        file = vault.generation_file(2)
        good = file.read_bytes()
        file.write_bytes(seal_file(network(2), about, key))
        with pytest.raises(BrokenSealError, match="another key"):
            vault.read_generation(2)
        file.write_bytes(good)


def test_a_former_key_that_is_put_back_into_the_ledger_opens_nothing(path, urls, tmp_path):
    def stop(stage, done, total):
        if done == 2:
            shutil.copytree(path, tmp_path / "half")

    with Vault.open(path) as opened:
        stolen = opened.sealing.key(opened.sealing.record, sealing.custodian(urls[0]))
    go(path, urls, stop)
    _put_former_back(path, tmp_path / "half", stolen)
    with Vault.open(path) as vault, pytest.raises(BrokenSealError, match="another key"):
        vault.read_generation(2)
    edit_ledger(path, "UPDATE sealing SET record = replace(record, 'blob', 'blub')")
    with Vault.open(path) as vault, pytest.raises(SealingError, match=r"record .* is damaged"):
        assert vault.sealing.record


def test_a_kill_at_the_very_end_leaves_nothing_open_to_the_former_key(
    path, urls, tmp_path, monkeypatch
):
    def stop(stage, done, total):
        if done == 2:
            shutil.copytree(path, tmp_path / "half")

    with Vault.open(path) as opened:
        stolen = opened.sealing.key(opened.sealing.record, sealing.custodian(urls[0]))

    def killed(vault, record):
        made = changing.put_record(vault, record)
        if record.state == "sealed":
            raise Killed
        return made

    with monkeypatch.context() as patch:
        patch.setattr(rekeying, "put_record", killed)
        with pytest.raises(Killed):
            go(path, urls, stop)
    with Vault.open(path) as vault:
        assert remembered(vault).former == ""
    _put_former_back(path, tmp_path / "half", stolen)
    with Vault.open(path) as vault, pytest.raises(BrokenSealError, match="another key"):
        vault.read_generation(2)


def test_what_an_older_g2d_left_open_is_closed_by_whoever_opens_the_vault(path, urls, tmp_path):
    def stop(stage, done, total):
        if done == 2:
            shutil.copytree(path, tmp_path / "half")

    with Vault.open(path) as opened:
        old = opened.sealing.record.key
        stolen = opened.sealing.key(opened.sealing.record, sealing.custodian(urls[0]))
    go(path, urls, stop)
    with Vault.open(path) as vault:  # as a kill of an older G2D left it
        remember(vault, urls[1], vault.sealing.record.key, former=old)
        assert remembered(vault).former == old
    Vault.open(path).close()
    _put_former_back(path, tmp_path / "half", stolen)
    with Vault.open(path) as vault, pytest.raises(BrokenSealError, match="another key"):
        vault.read_generation(2)


def _put_former_back(path, half, stolen):
    with Vault.open(half) as opened:
        record = opened.sealing.record
    assert record.state == "rekeying"
    with Vault.open(path, write=True) as vault:
        with vault._writing():
            write_record(vault._ledger, record)
        about = vault.sealing.generation(2, "weights", vault.generation(2).files["weights"])
        vault.generation_file(2).write_bytes(seal_file(network(2), about, stolen))


def test_a_kill_at_each_moment_leaves_a_vault_that_opens_and_goes_on(path, urls, monkeypatch):
    """Before and after each file, each commit, and each word of what is remembered."""
    before, steps = read(path), 0
    for moment in range(40):
        calls = 0

        def count(*_, moment=moment):
            nonlocal calls
            calls += 1
            if calls == moment + 1:
                raise Killed

        def counted(real, count=count):
            def called(*arguments, **options):
                count()
                made = real(*arguments, **options)
                count()
                return made

            return called

        with monkeypatch.context() as patch:
            for name in ("write", "put_record", "remember"):
                patch.setattr(rekeying, name, counted(getattr(rekeying, name)))
            try:
                go(path, urls)
                ended = True
            except Killed:
                ended = False
        if ended:
            steps = moment
            break
        with Vault.open(path) as vault:
            state = vault.sealing.record.state
        for url in urls[::-1]:  # whoever is named here, or the one that the command names
            monkeypatch.setenv("G2D_CUSTODIAN", url)
            try:
                assert read(path) == before
                break
            except SealingError:
                assert url == urls[1]
        else:
            raise AssertionError(state)
        with Vault.open(path, write=True) as vault:  # what is written meanwhile is sealed
            vault.put("generator", 0, {"weights": network(9)}, {})
        assert not any(network(9)[-64:] in file.read_bytes() for file in path.glob("gen*.safe*"))
        monkeypatch.delenv("G2D_CUSTODIAN")
        urls = go_on(path, urls)
        assert read(path) == before
    assert steps > 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigkill_on_the_way_leaves_nothing_lost(path, urls):
    before = read(path)
    for calls, after in ((1, 0.0), (3, 0.0), (4, 0.001), (6, 0.0), (8, 0.002)):
        if (child := os.fork()) == 0:
            try:
                go(path, urls, Fuse(calls, after))
                os.kill(os.getpid(), signal.SIGKILL)  # it was quicker than its timer
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert read(path) == before
        urls = go_on(path, urls)
        assert read(path) == before
    assert verify(path) == []


def go_on(path, urls):
    """The same command goes on; the next turn goes back to the other custodian."""
    go(path, urls)
    assert len(keys_in(path)) == 1
    return urls[::-1]


def test_nothing_else_changes_a_vault_that_is_being_rekeyed(path, urls):
    def stop(stage, done, total):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        go(path, urls, stop)
    for command in ("seal", "unseal"):
        assert f"g2d vault rekey {path}" in run("vault", command, path, code=1)
    said = run("verify", path, code=1)
    assert "begun and not finished: run `g2d vault rekey" in said
    assert "1 problem" in said
    assert "files were rewritten, 3 before" in run("vault", "rekey", path, "--to", urls[1])
    assert "is sound" in run("verify", path)
    plain = path.with_name("plain")
    Vault.create(plain, "[task]\n").close()
    assert "is not sealed" in run("vault", "rekey", plain, code=1)


def test_a_damaged_file_stops_it_named_and_a_custodian_that_forgets_begins_nothing(path, urls):
    class Forgets:
        kind = "file"

        def wrap(self, key, context):
            return b"wrapped"

        def unwrap(self, blob, context):
            return bytes(32)

    old = keys_in(path)
    with Vault.open(path, write=True) as vault, pytest.raises(SealingError):
        rekey(vault, None, Forgets(), "file:/none")
    assert keys_in(path) == old
    file = path / "generations" / "000001" / "weights.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-40] + b"\0" + good[-39:])
    with pytest.raises(VaultError, match="000001/weights"):
        go(path, urls)
    file.write_bytes(good)
    assert go(path, urls).before > 0
    assert verify(path) == []
