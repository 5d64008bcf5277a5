"""`g2d audit verify|show|export`: what an operator and a SIEM are told."""

from __future__ import annotations

import json

import pytest

from audit_logs import write
from g2d.errors import KeyFileError, SealingError
from g2d.protect.audit.ocsf import _CLASSES, to_ocsf
from g2d.protect.audit.places import audit_key, default_log
from g2d.protect.audit.records import GENESIS, Record, stamp
from g2d.protect.audit.verify import read_records
from g2d.rotation import events as rotation
from g2d.service.http import events as service
from g2d.vault.keys import SigningKey
from signed import run


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    path = tmp_path / "audit.jsonl"
    write(path, audit_key(), 12)
    return path


def test_a_sound_log_is_verified_with_this_machines_key(log):
    told = run("audit", "verify", log)
    assert "The chain and every signature are right." in told
    assert "no anchor" not in told
    found = json.loads(run("audit", "verify", log, "--json"))
    assert (found["sound"], found["records"], found["closed"]) == (True, 18, False)


def test_a_tampered_log_is_one_line_and_exit_1(log):
    log.write_bytes(log.read_bytes().replace(b'"before":6', b'"before":5', 1))
    told = run("audit", "verify", log, code=1)
    assert "chain: audit.jsonl:4: record 4 does not follow the one before it" in told
    assert "has 1 problem" in told


def test_a_head_that_was_noted_is_expected(log, tmp_path, monkeypatch):
    head = run("audit", "show", log).split("head ")[1].strip()
    assert "swap" in run("audit", "show", log, "--last", "5")
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "another machine"))
    key = tmp_path / "state" / "audit" / "audit.pub"
    told = run("audit", "verify", log, code=1)
    assert "give --key" in " ".join(told.split())
    assert "no anchor" in run("audit", "verify", log, "--key", key)
    assert "no anchor" not in run("audit", "verify", log, "--key", key, "--expect", head)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-5]))
    assert "cut: end: it has no record 18" in run(
        "audit", "verify", log, "--key", key, "--expect", head, code=1
    )
    assert "is no head" in " ".join(run("audit", "verify", log, "--after", "7", code=1).split())


def test_a_vault_stands_for_its_own_log(log, tmp_path):
    vault = tmp_path / "vault"
    vault.mkdir()
    assert "there is no audit log" in run("audit", "verify", vault, code=1)
    write(default_log(vault), audit_key(), 1)
    assert "are right" in run("audit", "verify", vault)


def test_an_export_is_the_records_or_ocsf(log):
    plain = run("audit", "export", log).splitlines()
    assert plain == [record.line().decode() for record in read_records(log)]
    assert len(run("audit", "export", log, "--after", "10").splitlines()) == 8
    events = [json.loads(line) for line in run("audit", "export", log, "--ocsf").splitlines()]
    swap = next(event for event in events if event["metadata"]["event_code"] == "swap")
    assert (swap["class_uid"], swap["type_uid"], swap["category_uid"]) == (6002, 600208, 6)
    assert swap["unmapped"]["generation"] == 7
    log_id = next(read_records(log)).facts["log"]
    assert swap["metadata"]["uid"] == f"{log_id}:3"


# What OCSF 1.3.0 requires of a class, besides what it requires of every event.
NEEDED = {
    0: (), 1008: (), 2004: ("finding_info",), 3002: ("user",), 3004: ("entity",),
    6002: ("app",), 6003: ("actor", "api", "src_endpoint"), 6008: (),
}  # fmt: skip
ALWAYS = ("activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid")
ACTIVITIES = {0: {99}, 1008: {3, 4, 99}, 2004: {1}, 3002: {1}, 3004: {1, 3},
              6002: {3, 4, 6, 7, 8, 99}, 6003: {3}, 6008: {1}}  # fmt: skip


@pytest.mark.parametrize("name", [*_CLASSES, "an event of tomorrow"])
def test_every_event_has_what_its_class_of_ocsf_requires(name):
    facts = {"client": "192.0.2.1", "call": "/admin/rotate", "kind": "drift", "text": "t"}
    event = to_ocsf(Record(7, stamp(1_500_000_000), GENESIS, name, facts), "log")
    assert not {*ALWAYS, *NEEDED[event["class_uid"]]} - event.keys()
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["activity_id"] in ACTIVITIES[event["class_uid"]]
    assert (event["activity_id"] == 99) == ("activity_name" in event)
    assert event["category_uid"] == event["class_uid"] // 1000
    assert event["metadata"]["product"]["vendor_name"] == "G2D"
    assert event["time"] == 1500  # milliseconds
    if event["class_uid"] == 3002:
        assert event["status_id"] == 2
        assert event["service"]["name"] == "g2d"  # at least this or a dst_endpoint
    assert json.loads(json.dumps(event)) == event


def test_every_event_of_ours_has_a_class():
    kinds = {
        kind.name
        for module in (rotation, service)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, rotation.Event) and kind.__dict__.get("name")
    }
    assert kinds - _CLASSES.keys() == set()


def test_the_audit_key_is_opened_by_a_custodian_from_the_start(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    url, place = f"file:{tmp_path / 'c.key'}", tmp_path / "state" / "audit" / "audit.key"
    assert f"opened by    {url}" in run("audit", "key", "--custodian", url)
    assert b"BEGIN G2D SEALED PRIVATE KEY" in place.read_bytes()
    log = tmp_path / "audit.jsonl"
    write(log, audit_key(), 3)
    assert "are right" in run("audit", "verify", log)
    assert "g2d keys seal" in " ".join(run("audit", "key", code=1).split())
    (tmp_path / "c.key").rename(tmp_path / "gone")
    with pytest.raises(SealingError, match="there is no custodian"):
        audit_key()
    (tmp_path / "gone").rename(tmp_path / "c.key")
    sealed = place.read_bytes()
    place.unlink()  # else a plain key would be made, and sign all that follows
    with pytest.raises(KeyFileError, match="is opened by file:"):
        audit_key()
    SigningKey.generate().write(place)
    with pytest.raises(KeyFileError, match="no such file") as caught:
        audit_key()
    assert "\n" not in str(caught.value)
    place.write_bytes(sealed)
    assert audit_key().fingerprint


def test_an_audit_key_without_its_private_half_is_not_made_over(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    run("audit", "key")
    (tmp_path / "state" / "audit" / "audit.key").unlink()
    assert "verifies older logs" in " ".join(run("audit", "key", code=1).split())
