"""The desk that clients ask at, their work, and what is in the frames between them."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from federated_processes import FEW, settings
from g2d.core.types import unsaid
from g2d.defence.federating import begin_at
from g2d.errors import FederatedError, G2DError
from g2d.settings import build
from g2d.settings.federated import FederatedSettings
from g2d.tasks.splits import Split
from g2d.training.federated.client import Client
from g2d.training.federated.form import Form
from g2d.training.federated.messages import ANSWER, Message, digest_of, encode
from g2d.training.federated.networks import Networks
from g2d.training.federated.processes import desk as desk_module
from g2d.training.federated.processes import words
from g2d.training.federated.processes.desk import Desk
from g2d.training.federated.processes.kits import provision
from g2d.training.federated.processes.remote import Remote
from g2d.training.federated.processes.words import Note, Reply
from g2d.training.federated.processes.work import Worker
from g2d.training.federated.server import Server
from g2d.training.federated.stages import Asked
from stand_ins import wait_for

A, B = "hospital-a", "hospital-b"
FORM = Form({"w": (4, 3), "b": (3,)})
SECONDS = 240.0  # a machine may be busy


def few(**changes):
    return build(FederatedSettings, FEW | {"clients": 2} | changes, "tests")


def desk_of(said=None, away=None, **changes):
    """A desk with a stage of two rounds that runs on a thread of its own."""
    s = few(**changes)
    desk = Desk([A, B], "d" * 64, s.patience, unsaid if said is None else said.append, away)
    start = np.zeros(FORM.size, np.float32)
    server = Server(FORM, start, Asked("base-0", 2, 8, ("early-0",)), s, [A, B])
    desk.members["early-0"] = b"a member"

    def run():
        while not server.done:
            desk.run_round(server, lambda _: None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: next_of(desk, A).kind != words.WAIT)
    return desk, server, thread


HAVE = {"early-0": words.digest_of_bytes(b"a member")}


def next_of(desk, name, have=HAVE, settings="d" * 64):
    return desk.handle(name, words.NEXT, Note(settings, have).encode())


def answer_of(server, name, value=1.0):
    vector = np.full(FORM.size, value, np.float32)
    base = digest_of(server.vector)
    return encode(Message(ANSWER, "base-0", vector, server.number, name, base), FORM)


def test_a_desk_gives_members_and_rounds_and_closes_when_all_have_spoken():
    desk, server, thread = desk_of()
    assert next_of(desk, A, {}) == Reply(words.MEMBER, b"a member")
    assert next_of(desk, A, {"early-0": "0" * 64}).kind == words.MEMBER
    assert next_of(desk, A) == Reply(words.ROUND, server.ask())
    data = answer_of(server, A)
    assert desk.handle(B, words.ANSWER, data).kind == words.UNTAKEN  # of A, and B has sent it
    assert desk.handle(A, words.ANSWER, data).kind == words.TAKEN
    assert desk.handle(A, words.ANSWER, data).kind == words.TAKEN  # once more: the same
    assert next_of(desk, A).kind == words.WAIT
    note = Note("d" * 64, {}, "base-0", 0, "no records")
    assert desk.handle(B, words.PASS, note.encode()).kind == words.TAKEN
    wait_for(lambda: server.number == 1)
    assert server.closed[0].answered == 1
    wait_for(lambda: next_of(desk, B).kind == words.ROUND)
    for name in (A, B):
        assert desk.handle(name, words.ANSWER, answer_of(server, name)).kind == words.TAKEN
    thread.join(SECONDS)
    ended = threading.Thread(target=desk.end, args=(SECONDS,), daemon=True)
    ended.start()
    wait_for(lambda: next_of(desk, A).kind == words.END)
    wait_for(lambda: next_of(desk, B).kind == words.END)
    ended.join(SECONDS)
    assert not ended.is_alive()


def test_who_leaves_or_is_missing_for_long_is_waited_for_no_more():
    said: list[str] = []
    desk, server, thread = desk_of(said)
    desk.handle(B, words.LEAVE, Note("d" * 64).encode())
    desk.handle(A, words.ANSWER, answer_of(server, A))
    wait_for(lambda: server.number == 1)
    assert f"round 0 of base-0: 1 of 2 answered, without {B}" in said
    wait_for(lambda: next_of(desk, A).kind == words.ROUND)
    desk.patience = 0.0
    next_of(desk, B)  # it is back, and then silent
    desk.handle(A, words.ANSWER, answer_of(server, A))
    thread.join(SECONDS)
    assert server.done


def test_who_had_left_before_a_restart_is_not_waited_for_once_more(tmp_path):
    away = tmp_path / "vault.federated" / "away.json"
    desk, *_ = desk_of(away=away)
    desk.handle(B, words.LEAVE, Note("d" * 64).encode())
    assert not away.parent.exists()  # of a run that is over nothing is written any more
    next_of(desk, B)
    away.parent.mkdir()
    desk.handle(B, words.LEAVE, Note("d" * 64).encode())
    again, server, thread = desk_of(away=away)  # the first server is killed at this moment
    for number in range(2):
        wait_for(lambda: next_of(again, A).kind == words.ROUND)
        again.handle(A, words.ANSWER, answer_of(server, A))
        wait_for(lambda number=number: server.number == number + 1)
    thread.join(SECONDS)
    third, server, _ = desk_of(away=away)
    next_of(third, B)  # it is back, and waited for: now, and by the next one
    for desk in (third, Desk([A, B], "d" * 64, 3600.0, unsaid, away)):
        assert desk._expected == {A, B}
    third.handle(A, words.ANSWER, answer_of(server, A))
    assert not third._is_over(server)


def test_who_was_silent_for_too_long_is_known_after_a_restart(tmp_path):
    desk, server, _ = desk_of(away=tmp_path / "away.json", patience=0.0)
    desk.handle(A, words.ANSWER, answer_of(server, A))
    wait_for(lambda: server.number == 1)
    wait_for(lambda: next_of(desk, A).kind == words.ROUND)
    assert Desk([A, B], "d" * 64, 3600.0, unsaid, tmp_path / "away.json")._expected == {A}


def test_a_list_of_who_left_that_is_damaged_has_everybody_waited_for(tmp_path):
    away = tmp_path / "away.json"
    for odd in ("", "{}", "[1]", "[" * 100_000, '["nobody"]'):
        away.write_text(odd)
        said: list[str] = []
        desk = Desk([A, B], "d" * 64, 3600.0, said.append, away)
        assert desk._expected == {A, B}
        assert [line for line in said if "everybody is waited for" in line] == said
        assert len(said) == (odd != '["nobody"]')
    away.unlink()
    away.mkdir()  # nor can it be written
    desk.handle(A, words.LEAVE, Note("d" * 64).encode())
    assert desk._expected == {B}


def test_who_leaves_after_its_answer_is_not_waited_for_in_the_next_round():
    desk, server, thread = desk_of()
    desk.handle(B, words.ANSWER, answer_of(server, B))
    desk.handle(B, words.LEAVE, Note("d" * 64).encode())
    desk.handle(A, words.ANSWER, answer_of(server, A))
    wait_for(lambda: server.number == 1)
    wait_for(lambda: next_of(desk, A).kind == words.ROUND)
    desk.handle(A, words.ANSWER, answer_of(server, A))
    thread.join(SECONDS)
    assert server.done


def test_as_many_as_may_be_malicious_do_not_hold_a_round_up_by_silence(monkeypatch):
    """They ask again and again, so that they are waited for, and never answer."""
    clock = [0.0]
    monkeypatch.setattr(desk_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    names = [A, B, "c-0", "c-1"]
    s = few(clients=4, f=1, rule="median", mix=False)
    desk = Desk(names, "d" * 64, 1000.0, unsaid)
    server = Server(FORM, np.zeros(FORM.size, np.float32), Asked("base-0", 2, 8), s, names)
    desk._server = server
    desk._opened, desk._enough = 0.0, None
    for name in names:
        next_of(desk, name)
    clock[0] = 20.0
    for name in names[:2]:
        desk.handle(name, words.ANSWER, answer_of(server, name))
        assert not desk._is_over(server)
    clock[0] = 500.0  # two are missing, and one may be malicious: the other is waited for
    assert not desk._is_over(server)
    desk.handle("c-0", words.ANSWER, answer_of(server, "c-0"))
    assert not desk._is_over(server)
    clock[0] = 999.0  # a slow one has its time: twice what the others took
    assert not desk._is_over(server)
    desk._opened, desk._enough = 490.0, None
    clock[0] = 500.0
    assert not desk._is_over(server)
    clock[0] = 529.0
    next_of(desk, "c-1")
    assert not desk._is_over(server)
    clock[0] = 530.0
    assert desk._is_over(server)


def test_an_answer_that_cannot_be_kept_is_said_and_taken_when_it_can(monkeypatch):
    said: list[str] = []
    desk, server, _ = desk_of(said)
    data = answer_of(server, A)
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(server, "_keep", full)
        for _ in range(20):
            with pytest.raises(OSError, match="No space"):
                desk.handle(A, words.ANSWER, data)
    assert len([line for line in said if "No space left on device" in line]) == 5
    assert server.taken == {}
    assert desk.handle(A, words.ANSWER, data).kind == words.TAKEN


def test_a_round_is_not_skipped_for_want_of_clients():
    _, server, thread = desk_of(patience=0.0)
    thread.join(1.0)
    assert server.number == 0
    assert thread.is_alive()


def test_strangers_other_settings_and_odd_notes_are_refused_and_said_a_few_times():
    said: list[str] = []
    desk, server, _ = desk_of(said)
    assert "no client of this run" in next_of(desk, "nobody").text
    assert "other settings" in next_of(desk, A, settings="e" * 64).text
    sound = json.loads(Note("d" * 64).encode())
    for odd in (
        b"", b"[]", b"{", b"[" * 100_000, bytes(words.MOST_NOTE + 1), pickle.dumps(sound),
        json.dumps(sound | {"weight": 3}).encode(), json.dumps(sound | {"round": True}).encode(),
        json.dumps(sound | {"have": {"a": 1}}).encode(),
    ):  # fmt: skip
        assert desk.handle(A, words.NEXT, odd).kind == words.REFUSED
        assert desk.handle(A, words.ANSWER, odd).kind in (words.UNTAKEN, words.REFUSED)
    assert len([line for line in said if line.startswith(f"{A} is refused")]) == 5
    assert server.number == 0
    for odd in (b"", b"wait", b"\x80\x04.", b"other\nabc"):
        with pytest.raises(FederatedError, match="no reply of this release"):
            words.decode_reply(odd)


# --- a client and the wire -----------------------------------------------------------------------


class Wire:
    """Connects clients and a desk, and keeps every frame."""

    def __init__(self, desk):
        self.desk, self.frames = desk, []

    def of(self, name):
        wire = self

        class Line:
            def ask(self, topic, data):
                wire.frames.append(data)
                reply = wire.desk.handle(name, topic, data)
                wire.frames.append(reply.encode())
                return reply

        return Line()


def test_records_are_in_no_frame_on_the_wire(digits, tmp_path):
    """Whoever sees all frames finds neither marker records, nor parts of them."""
    s = settings(rounds=2, fork_rounds=2)
    s = s.override(federated__clients=2)
    form, said = Networks.of(digits).form, []
    desk = Desk([A, B], words.settings_digest(s, form), 3600.0, said.append)
    remote = Remote(digits, s, begin_at(digits, s), names=[A, B], desk=desk)
    wire, marks, threads = Wire(desk), [], []
    source = np.random.default_rng(5)
    for k, name in enumerate((A, B)):
        part = digits.splits.train
        x = part.x[k * 40 : k * 40 + 40].clone()
        mark = source.random(x[0].shape).astype(np.float32)
        x[::2] = torch.from_numpy(mark)
        marks.append(mark)
        client = Client(name, digits, Split(x, part.y[k * 40 : k * 40 + 40]), s, remote.networks,
                        remote.like, tmp_path / name)  # fmt: skip
        worker = Worker(client, desk.settings, wire.of(name), threading.Event(), said.append)
        threads.append(threading.Thread(target=worker.run, daemon=True))
    for thread in threads:
        thread.start()
    base = remote.train("base-0", remote.networks.vector(remote.like), 2)
    remote.send("base-0", base.vector)
    remote.train("member-0", base.vector, 2, ("base-0",))
    desk.end(SECONDS)
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert [line for line in said if " waits: " not in line] == []  # as on a busy machine
    whole = b"".join(wire.frames)
    assert len(whole) > 8 * 4 * form.size  # 8 answers, at least
    for mark in marks:
        for few_values in (mark.reshape(-1)[at : at + 4] for at in range(0, mark.size, 4)):
            for kind in ("<f4", "<f8", "<f2"):
                assert few_values.astype(kind).tobytes() not in whole
    for kind in (words.ROUND, words.MEMBER, words.TAKEN, words.END):
        assert any(frame.startswith(kind.encode() + b"\n") for frame in wire.frames)


def test_a_marker_that_is_sent_is_found(digits):
    """The control of the test above: what searches frames does find what is there."""
    mark = np.arange(16, dtype=np.float32)
    vector = np.concatenate([mark, np.zeros(FORM.size - 15, np.float32)])[: FORM.size]
    data = encode(Message("member", "base-0", vector), FORM)
    assert mark[:4].tobytes() in data


def test_without_nvflare_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvflare", None)
    with pytest.raises(G2DError, match=r"pip install 'g2d\[federated\]'"):
        provision(tmp_path / "kits", "localhost:1", [A], settings())
