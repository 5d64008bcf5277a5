"""A wrong `--observer` ends every start, and leaves nothing open that nobody would close."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from cluster_script import TERMS, Script
from g2d.errors import SettingsError, VaultError
from g2d.protect.audit.verify import read_records
from g2d.service.cluster.mirror import MirrorLoader
from g2d.service.cluster.replica import ReplicaSpec
from g2d.service.cluster.replica import assemble as assemble_replica
from g2d.service.http import server
from g2d.service.http.limits import AdminToken
from g2d.service.http.options import Options

WRONG = Options(observer=("no_such_module:x",))


def test_a_service_of_one_machine_closes_its_vault(vault, tmp_path, monkeypatch):
    closed = []

    def close(loader):
        closed.append(loader)

    monkeypatch.setattr("g2d.service.loader.VaultLoader.close", close)
    log = tmp_path / "audit.jsonl"
    with socket.socket() as bound, pytest.raises(SettingsError, match="no_such_module"):
        server.serve(vault, WRONG, bound=bound, audit=str(log))
    assert len(closed) == 1
    records = list(read_records(log))
    (refused,) = [record for record in records if record.name == "refused"]
    assert refused.facts["reason"] == "start"
    assert "no_such_module" in refused.facts["text"]
    assert "audit.close" in [record.name for record in records[-2:]]  # it ended in order


def test_a_service_that_cannot_be_put_together_closes_its_vault(vault, monkeypatch):
    closed = []

    def close(loader):
        closed.append(loader)

    def fails(*_):
        raise VaultError("nothing may be served")

    monkeypatch.setattr("g2d.service.loader.VaultLoader.close", close)
    monkeypatch.setattr(server, "open_live", fails)
    with socket.socket() as bound, pytest.raises(VaultError, match="nothing may be served"):
        server.serve(vault, Options(), bound=bound)
    assert len(closed) == 1


def replica_fails(script: Script, options: Options, folder: Path, monkeypatch) -> Exception:
    """What a replica's start raises; it leaves no mirror."""
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(Exception) as raised:  # noqa: PT011 (the caller looks at it)
        assemble_replica(script, ReplicaSpec(options, TERMS, AdminToken(None)), "r1")
    assert list(folder.iterdir()) == []
    return raised.value


def test_a_replica_compares_the_tasks_code_before_it_imports_an_observer(
    signed_vault, tmp_path, monkeypatch
):
    """Which may import the task's module."""
    compared, compare = [], MirrorLoader._read_code

    def note(loader, *rest):
        compared.append(loader)
        compare(loader, *rest)

    monkeypatch.setattr(MirrorLoader, "_read_code", note)
    error = replica_fails(Script(signed_vault), WRONG, tmp_path / "own", monkeypatch)
    assert isinstance(error, SettingsError)
    assert len(compared) == 1


@pytest.mark.parametrize("place", ["replica.assemble_service", "mirror.MirrorLoader.first"])
def test_a_replica_that_fails_later_leaves_no_mirror(signed_vault, tmp_path, monkeypatch, place):
    def fails(*_):
        raise VaultError("nothing may be served")

    monkeypatch.setattr(f"g2d.service.cluster.{place}", fails)
    error = replica_fails(Script(signed_vault), Options(), tmp_path / "own", monkeypatch)
    assert "nothing may be served" in str(error)


@pytest.mark.filterwarnings("ignore")  # of importing Ray Serve
def test_with_ray_no_cluster_is_joined(vault, monkeypatch):
    pytest.importorskip("ray")
    from g2d.service.cluster import deployment

    monkeypatch.setattr(deployment, "found", lambda _: pytest.fail("looked for a cluster"))
    with pytest.raises(SettingsError, match="no_such_module"):
        deployment.serve(vault, WRONG)
