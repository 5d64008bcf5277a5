"""The worker alone: it makes, keeps and commits; whoever hangs or starves is replaced."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

import g2d
from g2d.errors import GenerationError
from g2d.service.worker import Worker
from g2d.settings import Settings
from g2d.vault.vault import Vault
from places import ROOT
from service_process import TOKEN, can_write
from stand_ins import into


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_the_worker_makes_keeps_and_commits_and_takes_what_was_kept(vault):
    told: list[tuple[str, dict]] = []
    worker = Worker(vault, tell=into(told))
    try:
        assert worker.make(1) == 2
        with Vault.open(vault) as opened:
            assert (opened.live(), opened.last_number()) == (1, 2)
        worker.commit(2)
        with Vault.open(vault) as opened:
            assert opened.live() == 2
        assert worker.make(2) == 3
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(GenerationError, match="died"):
            worker.commit(3)
        assert worker.make(2) == 3  # kept by the one that died: judged anew, not made anew
        with pytest.raises(GenerationError, match="replay refused"):
            worker.commit(1)
    finally:
        worker.close()
    assert can_write(vault)
    with pytest.raises(GenerationError, match="closed"):
        worker.make(3)


@pytest.mark.usefixtures("eager")
def test_a_worker_that_cannot_write_or_hangs_says_so(vault, tmp_path):
    worker = Worker(vault)
    with Vault.open(vault, write=True), pytest.raises(GenerationError, match="another g2d process"):
        worker.make(1)
    worker.close()
    hung = Worker(vault, patience=1.0)
    try:
        hung._running().send_signal(signal.SIGSTOP)
        with pytest.raises(GenerationError, match="more than 1 s"):
            hung.make(1)
        assert hung.pid is not None
    finally:
        hung.close()


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_rejected_candidates_are_told_with_their_gates(vault):
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text)
    with g2d.Defence.open(vault) as defence:
        defence.generate(activate=False)
    with Vault.open(vault, write=True) as opened:
        strict = settings.override(gates__distance=1e6, gates__attempts=2)
        opened.write_settings(strict.to_toml())
    told: list[tuple[str, dict]] = []
    worker = Worker(vault, tell=into(told))
    try:
        for _ in range(2):
            with pytest.raises(GenerationError, match="no candidate passed"):
                worker.make(1)
    finally:
        worker.close()
    # The one made ahead is judged once; each time two candidates are tried.
    assert [facts["generation"] for _, facts in told] == [2, 3, 3, 3, 3]
    assert {gate["gate"] for gate in told[0][1]["gates"]} == {"distance"}


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_what_cannot_be_read_does_not_hold_up_what_can_be_made(vault):
    """A damaged spare is told as refused; damaged exposed ones count no more, with an alarm."""
    with g2d.Defence.open(vault) as defence:
        defence.generate(2)
        defence.generate(activate=False)  # 4: left by a service that was killed
    for number, name in ((4, "weights"), (2, "weights"), (3, "attacks")):
        file = vault / "generations" / f"{number:06d}" / f"{name}.safetensors"
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
    told: list[tuple[str, dict]] = []
    worker = Worker(vault, tell=into(told))
    try:
        assert worker.make(3) == 5
        assert worker.make(5) == 6
    finally:
        worker.close()
    (refused,) = [facts for event, facts in told if event == "refused"]
    assert (refused["generation"], refused["reason"]) == (4, "unreadable")
    alarms = [facts["text"] for event, facts in told if event == "alarm"]
    assert len(alarms) == 2
    assert all(any(f"generation {number} no more" in text for text in alarms) for number in (2, 3))


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_worker_loads_no_other_task_and_knows_no_admin_token(vault, tmp_path, monkeypatch):
    """Whoever can write the vault must not run code beside the signing key."""
    monkeypatch.setenv("G2D_ADMIN_TOKEN", TOKEN)
    proof = tmp_path / "proof"
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{tmp_path}")
    worker = Worker(vault, task="digits")
    try:
        assert worker.make(1) == 2
        assert "G2D_ADMIN_TOKEN" not in psutil.Process(worker.pid).environ()
        os.kill(worker.pid, signal.SIGKILL)
        settings = (vault / "task.toml").read_text()
        (vault / "task.toml").write_text(settings.replace('"digits"', '"evil:task"'))
        for _ in range(2):
            with pytest.raises(GenerationError, match=r"died|names 'evil:task' now"):
                worker.make(2)
    finally:
        worker.close()
    assert not proof.exists()


@pytest.mark.slow
def test_a_worker_that_starves_is_replaced_by_one_that_does_not_idle(vault, monkeypatch):
    monkeypatch.setattr("g2d.service.worker._STARVED", 0.5)
    told: list[str] = []
    worker = Worker(vault, tell=lambda event: told.append(event.name))
    try:
        first = worker._running().pid
        assert os.sched_getscheduler(first) == os.SCHED_IDLE
        os.kill(first, signal.SIGSTOP)  # it gets nothing of a core
        assert worker.make(1) == 2
        assert (worker.pid != first, told) == (True, ["hurried"])
        assert os.sched_getscheduler(worker.pid) == os.SCHED_OTHER
        assert psutil.Process(worker.pid).nice() == 10
    finally:
        worker.close()


def test_kept_generations_that_make_no_sense_are_skipped_and_told(defence):
    """A row that is nested, or a network of another kind: rotation must not end over either."""
    import sqlite3
    from contextlib import closing

    from safetensors.torch import save
    from torch import zeros

    from g2d.service.worker import _kept

    (made,) = defence.generate(activate=False)
    defence.vault.accept({"weights": save({"foreign": zeros(3)}), "attacks": b""}, {})
    with closing(sqlite3.connect(defence.vault.path / "ledger.sqlite")) as ledger, ledger:
        deep = "[" * 100_000
        ledger.execute("UPDATE generations SET manifest = ? WHERE number = ?", (deep, made.number))
        ledger.execute("INSERT INTO generations VALUES (?, '{}', '{}', 1.0)", ((1 << 63) - 1,))
    told, failed = [], set()
    assert _kept(defence, 1, into(told), failed) is None
    assert failed == {2, 3}
    assert [(name, facts["generation"], facts["reason"]) for name, facts in told] == [
        ("refused", 2, "unreadable"), ("refused", 3, "unreadable"),
    ]  # fmt: skip
    assert "nested too deeply" in told[0][1]["text"]
    assert _kept(defence, 1, into(told), failed) is None
    assert len(told) == 2
    assert defence.generate(activate=False)[0].number == 4
