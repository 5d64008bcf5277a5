"""Uploads of keys: at a pace, one client's never all, and through evaluators that die."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from echoing import GOOD, OPTIONS, EchoingProcess, answered, echoing, posted
from g2d.errors import G2DError
from g2d.service.access.identity import Caller
from g2d.service.encrypted import arriving
from g2d.service.encrypted.evaluators import BusyError
from g2d.service.encrypted.keyring import KeyRing
from g2d.service.encrypted.spool import Spool, remove_stale
from g2d.service.encrypted.uploads import Upload
from g2d.service.http.protocol import RequestError
from stand_ins import run, wait_for

KEYS, ASK = "/encrypted/keys", "/encrypted/infer"
LOCAL, ALSO_LOCAL = (Caller("", frozenset(), "", a) for a in ("127.0.0.1", "::1"))
REMOTE = Caller("", frozenset(), "", "10.0.0.1")
NAMED = Caller("jwt:a", frozenset(), "jwt", "127.0.0.1")


async def patiently(work):
    return await asyncio.wait_for(work, 60)


def test_an_upload_that_trickles_is_ended_long_before_the_time_for_all_of_it(monkeypatch):
    patched = pytest.MonkeyPatch()
    patched.setattr(arriving, "_GRACE", 0.1)
    harness, evaluators = echoing(monkeypatch, replace(OPTIONS, encrypted_timeout=3000.0))
    never = asyncio.Event()

    async def work(client):
        async def trickle():
            yield GOOD
            await never.wait()

        late = await patiently(client.post(KEYS, content=trickle()))
        patched.undo()
        assert late.status_code == 408
        assert "too slowly" in late.json()["error"]
        assert list(evaluators.spool.iterdir()) == []
        assert (await client.post(KEYS, content=GOOD)).status_code == 201

    run(harness, work)


def test_whoever_keeps_the_pace_has_all_the_time_and_no_more(tmp_path, monkeypatch):
    """By a clock of its own: 100 bytes in 100 s, ten at a time."""

    async def sent(pause: float, most: float = 100.0) -> int:
        loop, left = asyncio.get_running_loop(), [b"x" * 10] * 10
        offset, real = 0.0, loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + offset)

        async def receive():
            nonlocal offset
            offset += pause
            await asyncio.sleep(0)  # the loop looks at its clock
            await asyncio.sleep(0)
            part = left.pop()
            return {"type": "http.request", "body": part, "more_body": bool(left)}

        upload = Upload("", tmp_path / f"{pause}", "", 0.0)
        await arriving.save(receive, upload, 100, most)
        assert upload.file.stat().st_size == upload.size
        return upload.size

    assert asyncio.run(sent(9.0)) == 100
    for pause in (11.5, 40.0):
        with pytest.raises(RequestError) as refused:
            asyncio.run(sent(pause))
        assert refused.value.status == 408


def test_of_loopback_three_uploads_at_once_so_that_a_place_is_left(tmp_path):
    """A proxy may stand for everybody there; it still is one client beside others."""
    ring = KeyRing(tmp_path, 3, 100.0)
    with ring.upload(LOCAL), ring.upload(ALSO_LOCAL), ring.upload(LOCAL):
        with pytest.raises(BusyError) as refused, ring.upload(ALSO_LOCAL):
            pass
        assert refused.value.own
        with ring.upload(REMOTE):
            pass
        with ring.upload(NAMED), pytest.raises(BusyError), ring.upload(NAMED):
            pass  # who says who he is is no loopback, wherever he comes from


def test_what_loopback_is_exempt_from_and_what_not(tmp_path, monkeypatch):
    """As docs/confidential.md says: keys of one client, and his share of what waits."""
    ring = KeyRing(tmp_path, 3, 100.0)
    for caller, kept in ((LOCAL, 3), (REMOTE, 2), (NAMED, 2)):
        made = []
        for _ in range(4):
            with ring.upload(caller) as upload:
                made.append(ring.keep(upload.id, upload.file, 4, caller).id)
        assert len(set(made) & set(ring._keys)) == kept
    _, evaluators = echoing(monkeypatch)  # four wait, two of one client

    async def work():
        EchoingProcess.gate.clear()
        evaluators.start(asyncio.get_running_loop(), harness_live(monkeypatch, evaluators))
        file = evaluators.spool / "a"
        file.write_bytes(GOOD)
        submit = evaluators.submit
        asked = [submit("a", file, b"x", LOCAL.client) for _ in range(4)]
        with pytest.raises(BusyError) as refused:
            submit("a", file, b"x", LOCAL.client)
        assert not refused.value.own
        EchoingProcess.gate.set()
        await asyncio.gather(*asked)
        EchoingProcess.gate.clear()
        asked = [submit("a", file, b"x", NAMED.client) for _ in range(2)]
        with pytest.raises(BusyError) as refused:
            submit("a", file, b"x", NAMED.client)
        assert refused.value.own
        EchoingProcess.gate.set()
        await asyncio.gather(*asked)
        await asyncio.to_thread(evaluators.stop)

    asyncio.run(work())


def harness_live(monkeypatch, evaluators):
    from g2d.rotation.snapshot import Live
    from stand_ins import numbered

    return Live(replace(numbered(1), encrypted=evaluators.encode(b"1")))


def test_keys_outlive_evaluators_that_die_and_not_the_third_that_dies_of_them(monkeypatch):
    harness, _ = echoing(monkeypatch)

    async def work(client):
        keys = (await client.post(KEYS, content=GOOD)).json()["keys"]
        for query in (b"die", b"fail"):  # another process may have died of anything
            told = await client.post(ASK, **posted(keys, query))
            assert told.status_code == 503, told.text
            assert told.headers["retry-after"]
            assert "-11" not in told.text
            assert answered(await client.post(ASK, **posted(keys)))[1] == b"1:c"
        assert (await client.post(ASK, **posted(keys, b"die"))).status_code == 500
        assert (await client.post(ASK, **posted(keys))).status_code == 404
        assert [line for line in harness.lines() if line["event"] == "broken"]

    run(harness, work)


def test_failures_of_long_ago_are_no_reason_to_forget_keys(tmp_path):
    now = [0.0]
    ring = KeyRing(tmp_path, 3, 1e6, clock=lambda: now[0])
    with ring.upload(REMOTE) as upload:
        own = ring.keep(upload.id, upload.file, 4, REMOTE).id
    for hours in (0, 0, 2, 2, 4):
        now[0] = 3600.0 * hours
        assert ring.failed(own)
    assert ring.failed(own)
    assert not ring.failed(own)
    assert not ring.failed(own)
    assert len(ring) == 0


def test_an_upload_is_read_again_by_the_evaluator_after_one_that_died(monkeypatch):
    harness, evaluators = echoing(monkeypatch)
    real, deaths = EchoingProcess.ask, []

    def dying(self, order, payload, patience):
        if order["do"] == "read" and len(deaths) < times:
            deaths.append(1)
            return real(self, {**order, "do": "evaluate"}, b"die", patience)
        return real(self, order, payload, patience)

    async def work(client):
        assert (await client.post(KEYS, content=GOOD)).status_code == status
        assert len(list(evaluators.spool.iterdir())) == (status == 201)

    monkeypatch.setattr(EchoingProcess, "ask", dying)
    times, status = 1, 201
    run(harness, work)
    harness, evaluators = echoing(monkeypatch)
    deaths.clear()
    times, status = 2, 500
    run(harness, work)


def test_what_is_not_kept_is_forgotten_by_evaluators_too_once_its_file_is_gone(tmp_path):
    told = []
    ring = KeyRing(tmp_path, 3, 100.0, lambda own: told.append((own, (tmp_path / own).exists())))
    with ring.upload(LOCAL) as upload:
        upload.file.write_bytes(b"keys")
    assert told == [(upload.id, False)]
    with ring.upload(LOCAL) as upload:
        upload.file.write_bytes(b"keys")
        ring.keep(upload.id, upload.file, 4, LOCAL)
    ring.drop(upload.id, LOCAL)
    assert told[1:] == [(upload.id, False)]  # in this order: who still parses it finds no file


def test_folders_of_keys_are_private_locked_and_removed_once_they_are_nobodys(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = Spool()
    assert first.path.stat().st_mode & 0o777 == 0o700
    (first.path / "a").write_bytes(GOOD)
    second = Spool()
    assert first.path.exists()  # the other holds it
    os.close(first._held)  # as the system does where a process is killed
    first._held = None
    remove_stale(tmp_path)
    assert not first.path.exists()
    assert second.path.exists()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_service_takes_for_a_stale_one_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make, made = tempfile.mkdtemp, []

    def taken_at_once(**how):
        made.append(make(**how))
        if len(made) == 1:
            remove_stale(tmp_path)  # in the moment before it is opened
        return made[-1]

    monkeypatch.setattr("tempfile.mkdtemp", taken_at_once)
    kept = Spool()
    assert [path == str(kept.path) for path in made] == [False, True]
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_where_no_folder_can_be_made_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(G2DError, match="TMPDIR") as told:
        Spool()
    assert "\n" not in str(told.value)


def test_nothing_else_is_removed_for_a_folder_of_keys(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Spool()
    prefix = made.path.name[:-8]
    made.close()
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine" / "dear").write_bytes(b"1")
    (tmp_path / f"{prefix}link").symlink_to(tmp_path / "mine")
    (tmp_path / f"{prefix}file").write_bytes(b"1")
    (tmp_path / f"{prefix}open").mkdir()
    (tmp_path / f"{prefix}open").chmod(0o755)
    (tmp_path / f"{prefix}deep" / "folder").mkdir(parents=True)
    (tmp_path / f"{prefix}deep").chmod(0o700)
    before = sorted(tmp_path.rglob("*"))
    remove_stale(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_taken_for_stale_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    from g2d.service.encrypted import spool

    real, taken = spool._open, []

    def late(path: Path) -> int:
        held = real(path)
        if not taken:
            taken.append(path)
            path.rmdir()  # another start was quicker
        return held

    monkeypatch.setattr(spool, "_open", late)
    made = Spool()
    assert made.path.exists()
    assert made.path != taken[0]
    made.close()


def test_a_service_that_was_killed_with_all_of_its_processes_leaves_keys_to_the_next(
    tmp_path, monkeypatch
):
    """A real process, killed: the lock goes with it, by the system."""
    import subprocess
    import sys

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "from g2d.service.encrypted.spool import Spool\n"
        "made = Spool(); (made.path / 'a').write_bytes(b'keys')\n"
        "print(made.path, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
    ) as process:  # fmt: skip
        path = Path(process.stdout.readline().strip())
        remove_stale(tmp_path)
        assert (path / "a").exists()
        process.kill()
        process.wait()
    remove_stale(tmp_path)
    wait_for(lambda: not path.exists())
