"""Records, checkpoints and files of an audit log: what is written, and taken up after a crash."""

from __future__ import annotations

import json
import os
import stat

import pytest

from audit_logs import check, entries, kinds, write
from g2d.errors import G2DError, SettingsError
from g2d.protect.audit.places import anchor_file, audit_key, default_log, read_anchor, segments
from g2d.protect.audit.records import GENESIS, INTERVAL, Head, Record, canonical, stamp
from g2d.protect.audit.verify import read_records
from g2d.protect.audit.writer import LockedError, Writer
from g2d.vault.keys import SigningKey


@pytest.fixture
def key():
    return SigningKey.generate()


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    return tmp_path / "audit.jsonl"


def test_a_record_is_one_line_of_canonical_json():
    record = Record(1, stamp(1_234_567_890), GENESIS, "swap", {"b": float("nan"), "a": "ü"})
    assert record.line() == (
        b'{"facts":{"a":"\\u00fc","b":null},"name":"swap","prev":"' + b"0" * 64
        + b'","seq":1,"time":"1970-01-01T00:00:01.234567890Z"}'
    )  # fmt: skip
    assert Record.parse(record.line()).line() == record.line()


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"seq":1', b'"seq":1,"seq":1'),
        lambda line: line.replace(b'"seq":1', b'"seq": 1'),
        lambda line: line.replace(b'"seq":1', b'"seq":true'),
        lambda line: line.replace(b'"seq":1', b'"seq":0'),
        lambda line: line[:-1] + b',"zzz":1}',
        lambda line: b"[" * 100_000,
        lambda line: line + b" " * 200_000,
        lambda line: b"null",
        lambda line: b"\xff",
    ],
)
def test_nothing_else_is_a_record(change):
    line = Record(1, stamp(), GENESIS, "swap", {}).line()
    with pytest.raises(ValueError, match=r"."):
        Record.parse(change(line))


def test_a_sound_log_says_how_much_is_in_it(log, key):
    write(log, key, 20)
    found = check(log, key)
    assert found.problems == []
    assert (found.records, found.checkpoints, found.unsigned, found.closed) == (27, 5, 0, False)
    assert [r.name for r in read_records(log)][:3] == ["audit.open", "audit.checkpoint", "swap"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(anchor_file(log).stat().st_mode) == 0o600


def test_a_log_goes_on_over_files_and_services(log, key):
    for _ in range(3):
        write(log, key, 16, size=3000)
    files = segments(log)
    assert len(files) >= 3
    assert [p.name for p in files[:2]] == ["audit.000001.jsonl", "audit.000002.jsonl"]
    found = check(log, key)
    assert found.problems == []
    numbers = [record.sequence for record in read_records(log)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_older_files_may_be_moved_away_once_they_were_verified(log, key, tmp_path):
    write(log, key, 40, size=3000)
    first, *_ = segments(log)
    lines = first.read_bytes().splitlines()
    after = Record.parse(lines[-1]).head()
    assert check(log, key, after=after).problems == []
    first.rename(tmp_path / "elsewhere")
    assert check(log, key, after=after).problems == []
    assert kinds(check(log, key)) == ["sequence"]
    wrong = Head(after.sequence, "1" * 64)
    assert kinds(check(log, key, after=wrong)) == ["chain"]


def test_a_busy_log_is_signed_at_the_latest_after_an_interval(log, key):
    writer = Writer(log, key, anchor_file(log))
    for turn in range(4):
        writer.append(entries(writer.room, turn))
    writer.release()
    found = check(log, key)
    assert found.problems == []
    assert found.checkpoints == 5
    assert found.records == 4 * INTERVAL + 2


@pytest.mark.parametrize("cut", [1, 7, 60, 200])
def test_a_torn_line_is_recognised_and_kept(log, key, cut):
    write(log, key, 4, close=False)
    data = log.read_bytes()
    log.write_bytes(data + Record(8, stamp(), "1" * 64, "swap", {"x": "y" * 99}).line()[:cut])
    torn = check(log, key)
    assert torn.problems == []
    assert torn.torn == cut
    write(log, key, 1)
    found = check(log, key)
    assert found.problems == []
    assert found.recovered == 1
    (recovered,) = [r for r in read_records(log) if r.name == "audit.recovered"]
    assert recovered.facts["bytes"] == cut
    assert log.read_bytes().startswith(data)  # append-only: nothing is ever cut


def test_a_line_that_lacks_its_end_alone_is_a_record(log, key):
    write(log, key, 4, close=False)
    data = log.read_bytes()
    head = [Record.parse(line) for line in data.splitlines()][-1].head()
    more = Record(head.sequence + 1, stamp(), head.digest, "swap", {}).line()
    log.write_bytes(data + more)
    write(log, key, 1)
    assert check(log, key).problems == []
    assert [r.name for r in read_records(log)].count("swap") == 4


def test_a_first_record_that_was_torn_begins_the_log(log, key):
    log.write_bytes(b'{"facts"')
    log.chmod(0o600)
    write(log, key, 1)
    found = check(log, key)
    assert (found.problems, found.recovered) == ([], 1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda log: log.write_bytes(b"\n".join(log.read_bytes().split(b"\n")[:9]) + b"\n"), "cut"),
        (lambda log: log.unlink(), "not the log"),
        (lambda log: log.write_bytes(log.read_bytes()[:-9] + b'x"}\n'), "cut"),
    ],
)
def test_a_log_that_was_changed_while_nobody_wrote_is_taken_up_and_says_so(log, key, damage, said):
    write(log, key, 20)
    damage(log)
    again = write(log, key, 2)
    assert said in again.suspect
    assert "suspect" in kinds(check(log, key))


def test_two_services_do_not_write_one_log(log, key):
    writer = Writer(log, key, anchor_file(log))
    with pytest.raises(LockedError, match="another service writes"):
        Writer(log, key, anchor_file(log))
    writer.release()
    write(log, key, 1)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permissions of files")
def test_a_log_that_others_may_read_and_a_link_are_refused(log, key, tmp_path):
    write(log, key, 1)
    log.chmod(0o644)
    with pytest.raises(G2DError, match="chmod 600"):
        write(log, key, 1)
    link = tmp_path / "link.jsonl"
    link.symlink_to(log)
    with pytest.raises(G2DError, match="cannot open the audit log"):
        write(link, key, 1)


def test_what_is_no_log_is_not_appended_to(log, key):
    log.write_bytes(b"a diary\nof somebody\n")
    log.chmod(0o600)
    with pytest.raises(G2DError, match="does not end as an audit log"):
        write(log, key, 1)
    assert log.read_bytes() == b"a diary\nof somebody\n"


def test_the_audit_key_is_made_once_and_is_private(log):
    assert audit_key().fingerprint == audit_key().fingerprint
    private = default_log(log).parent / "audit.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    public = private.with_suffix(".pub")
    kept = public.read_bytes()
    public.unlink()  # a kill may come between the two
    audit_key()
    assert public.read_bytes() == kept


def test_an_anchor_that_is_none_is_said(log, key):
    write(log, key, 1)
    anchor_file(log).write_text(json.dumps({"log": 1}))
    with pytest.raises(G2DError, match="anchor"):
        read_anchor(anchor_file(log))


def test_a_head_is_read_as_it_is_written():
    head = Head(7, "a" * 64)
    assert Head.read(str(head)) == head
    for wrong in ("", "7", "7:abc", f"x:{'a' * 64}", f"7:{'g' * 64}"):
        with pytest.raises(SettingsError, match="no head"):
            Head.read(wrong)


def test_canonical_json_has_one_form():
    assert canonical({"b": (1, 2), "a": {3: float("inf")}}) == b'{"a":{"3":null},"b":[1,2]}'
