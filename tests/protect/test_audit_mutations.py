"""Seeded mutations of an audit log: each is found, with the head that is kept outside of it."""

from __future__ import annotations

import random

import pytest

from audit_logs import check, kinds, write
from benchmarks.hostile.audit_damages import DAMAGES, Forger, changed
from g2d.protect.audit.records import Head, Record
from g2d.vault.keys import SigningKey

CASES = 17  # of each of the twelve kinds: 204


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A closed log of several files, another one of the same key, and an attacker."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("mutations")
        patch.setenv("G2D_STATE", str(folder / "state"))
        key = SigningKey.generate()
        log, other = folder / "a" / "audit.jsonl", folder / "b" / "audit.jsonl"
        write(log, key, 18, size=3000)
        write(other, key, 18, size=3000)
        yield key, Forger.of(log, other, SigningKey.generate(), random.Random(17))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_mutation_is_found(scene, damage):
    key, forger = scene
    missed = []
    for case in range(CASES):
        while not changed(forger):
            damage(forger)
        report = check(forger.path, key) if any(f.exists() for f in forger.files) else None
        if report is not None and report.sound:
            missed.append(case)
        forger.restore()
        assert not changed(forger)
    assert missed == []
    assert check(forger.path, key).problems == []  # and what is untouched is sound


def test_without_a_head_from_outside_a_cut_at_a_checkpoint_is_not_found(scene):
    """What docs/audit.md says plainly: nothing inside a log can show that its end is gone."""
    key, forger = scene
    lines = forger.flat()
    ends = [n for n, line in enumerate(lines) if b'"audit.checkpoint"' in line]
    forger.put(lines[: ends[2] + 1])
    assert check(forger.path, key, anchored=False).problems == []
    assert kinds(check(forger.path, key)) == ["cut"]
    noted = Record.parse(lines[ends[3]]).head()  # what an operator or a SIEM was told
    assert kinds(check(forger.path, key, anchored=False, known=[noted])) == ["cut"]
    forger.restore()
    assert check(forger.path, key, anchored=False, known=[noted]).problems == []
    wrong = Head(noted.sequence, "2" * 64)
    assert kinds(check(forger.path, key, anchored=False, known=[wrong])) == ["head"]


def test_another_key_and_another_log_are_found(scene):
    key, forger = scene
    found = check(forger.path, SigningKey.generate())
    assert set(kinds(found)) == {"signature"}
    forger.files[-1].write_bytes(b"".join(line + b"\n" for line in forger.other))
    for file in forger.files[:-1]:
        file.unlink()
    assert "log" in kinds(check(forger.path, key))
    forger.restore()


def test_a_long_run_without_a_checkpoint_is_found(scene, tmp_path, monkeypatch):
    from g2d.protect.audit.records import INTERVAL

    monkeypatch.setenv("G2D_STATE", str(tmp_path))
    key, log = SigningKey.generate(), tmp_path / "audit.jsonl"
    writer = write(log, key, 1)
    head, lines = writer.head, [log.read_bytes()]
    for _ in range(INTERVAL + 20):
        record = Record(head.sequence + 1, "2026-01-01T00:00:00.000000000Z", head.digest, "x", {})
        lines.append(record.line() + b"\n")
        head = record.head()
    log.write_bytes(b"".join(lines))
    assert kinds(check(log, key, anchored=False)) == ["unsigned"]
