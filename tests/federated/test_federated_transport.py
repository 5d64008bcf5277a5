"""The transport of federated training: who is let in, what is dropped, what is on the wire."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import threading

import pytest

pytest.importorskip("nvflare", reason="g2d[federated] is not installed")

import numpy as np
import torch

from commands import fail, succeed
from federated_processes import FEW, free_port, settings
from g2d.core.types import unsaid
from g2d.defence.federating import begin_at
from g2d.errors import FederatedError, G2DError, SettingsError
from g2d.settings import build
from g2d.settings.federated import FederatedSettings
from g2d.tasks.splits import Split
from g2d.training.federated.client import Client
from g2d.training.federated.form import Form
from g2d.training.federated.messages import ANSWER, Message, digest_of, encode, most_bytes
from g2d.training.federated.networks import Networks
from g2d.training.federated.processes import cells, words
from g2d.training.federated.processes.desk import Desk
from g2d.training.federated.processes.kits import Kit, provision, read_kit, split_address
from g2d.training.federated.processes.remote import Remote
from g2d.training.federated.processes.words import Note, Reply
from g2d.training.federated.processes.work import Worker
from g2d.training.federated.server import Asked, Server
from stand_ins import wait_for

A, B = "hospital-a", "hospital-b"
FORM = Form({"w": (4, 3), "b": (3,)})
MOST = most_bytes(FORM)
SECONDS = 240.0  # a machine may be busy


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """Kits of one run, and those of another one of the same names."""
    made = {}
    for run in ("own", "foreign"):
        folder = tmp_path_factory.mktemp(run) / "kits"
        provision(folder, f"localhost:{free_port()}", [A, B], settings())
        made[run] = folder
    return made


@pytest.fixture
def start():
    """Starts cells, and ends them.

    Cells of one process hand each other messages without a connection, unless they are forgotten.
    """
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.f3.stats_pool import StatsPoolManager

    made: list = []

    def begin(cell):
        CoreCell.ALL_CELLS.clear()
        StatsPoolManager.pools.clear()
        cell.start()
        made.append(cell)

    yield begin
    for cell in reversed(made):
        cell.stop()


def serve(kits, start, handle, most=MOST):
    """A server that listens; its address."""
    where = f"localhost:{free_port()}"
    cell = cells.ServerCell(read_kit(kits["own"] / "server"), where, most, handle)
    start(cell)
    port = int(where.rpartition(":")[2])
    wait_for(lambda: _listens(port), SECONDS)
    return cell, where


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connect(kit, where, start, most=MOST):
    cell = cells.ClientCell(read_kit(kit), where, most)
    start(cell)
    return cell


def until_reply(cell, topic, data, seconds=20.0):
    """Ask until there is a connection."""
    found: list = []

    def asked():
        try:
            found.append(cell.ask(topic, data, seconds))
        except cells.Unreachable:
            return False
        return True

    wait_for(asked, SECONDS)
    return found[0]


class Heard:
    """A handler that keeps what it was given."""

    def __init__(self):
        self.all = []

    def __call__(self, sender, topic, data):
        self.all.append((sender, topic, data))
        return Reply(words.WAIT, data[:3])


def test_bytes_arrive_with_the_name_of_the_certificate(kits, start):
    heard = Heard()
    cell, where = serve(kits, start, heard)
    one = connect(kits["own"] / A, where, start)
    silent = [socket.create_connection(("127.0.0.1", int(where[10:]))) for _ in range(3)]
    assert until_reply(one, words.NEXT, b"abcdef") == Reply(words.WAIT, b"abc")
    assert heard.all[0] == (A, words.NEXT, b"abcdef")
    for held in silent:  # they said nothing, and kept nobody away
        held.close()
    cell.tidy()
    assert one.ask(words.ANSWER, b"again").data == b"aga"


def test_what_is_no_request_of_ours_is_dropped_before_it_is_decoded(kits, start, monkeypatch):
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
    from nvflare.fuel.f3.message import Message as Frame
    from nvflare.fuel.utils import fobs

    heard, decoded = Heard(), []
    _, where = serve(kits, start, heard)
    one = connect(kits["own"] / A, where, start)
    until_reply(one, words.NEXT, b"here")
    monkeypatch.setattr(fobs, "loads", lambda *a, **k: decoded.append(a))
    coded = {MessageHeaderKey.PAYLOAD_ENCODING: "fobs"}
    for channel, topic, target, headers in (
        ("g2d", words.ANSWER, "server", coded),
        ("g2d", "other", "server", {}),
        ("cellnet.channel", "bulk", "server", {}),
        ("g2d", words.ANSWER, B, {}),
    ):
        frame = Frame(dict(headers), pickle.dumps({"a": 1}))
        reply = one._cell.send_request(channel, topic, target, frame, timeout=1.0, optional=True)
        assert reply.get_header(MessageHeaderKey.RETURN_CODE) != "ok"
    assert one.ask(words.NEXT, b"last").kind == words.WAIT
    assert [data for _, _, data in heard.all] == [b"here", b"last"]
    assert not decoded


def test_a_foreign_certificate_another_name_and_too_many_bytes_do_not_arrive(kits, start, tmp_path):
    heard = Heard()
    _, where = serve(kits, start, heard)
    foreign = connect(kits["foreign"] / A, where, start)
    with pytest.raises(cells.Unreachable):
        foreign.ask(words.NEXT, b"foreign", 3.0)
    own = read_kit(kits["own"] / A)
    other = cells.ClientCell(Kit(own.path, B, own.address, own.clients, own.text), where, 1000)
    start(other)
    with pytest.raises(cells.Unreachable):
        other.ask(words.NEXT, b"as another", 3.0)
    long = most_bytes(FORM) + (1 << 17)
    one = connect(kits["own"] / A, where, start, 4 * long)
    until_reply(one, words.NEXT, b"sound")
    with pytest.raises(cells.Unreachable):
        one.ask(words.ANSWER, bytes(long), 3.0)
    assert until_reply(one, words.NEXT, b"sound again").kind == words.WAIT
    assert {data for _, _, data in heard.all} == {b"sound", b"sound again"}


def test_an_address_that_is_taken_or_none_is_said(kits):
    kit = read_kit(kits["own"] / "server")
    with socket.create_server(("127.0.0.1", 0)) as held:
        where = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(SettingsError, match=r"cannot bind .* --bind HOST:PORT"):
            cells.ServerCell(kit, where, 1000, Heard())
    for odd in ("host", "host:0", "host:99999", ":80", "host:x"):
        with pytest.raises(SettingsError, match="no HOST:PORT"):
            split_address(odd)


# --- kits ----------------------------------------------------------------------------------------


def test_a_kit_holds_what_its_owner_needs_and_nothing_of_the_authority(kits):
    names = sorted(path.name for path in kits["own"].iterdir())
    assert names == [A, B, "server"]
    files = sorted(path.name for path in (kits["own"] / A).iterdir())
    assert files == ["client.crt", "client.key", "rootCA.pem", "run.toml", "settings.toml"]
    assert (kits["own"] / A / "client.key").stat().st_mode & 0o777 == 0o600
    kit = read_kit(kits["own"] / A)
    assert (kit.name, kit.clients, kit.is_server) == (A, (A, B), False)
    assert kit.settings().federated.clients == 2


@pytest.mark.parametrize(
    ("clients", "address", "words_"),
    [
        ([A, A.upper()], "localhost:1", "name each client once"),
        ([], "localhost:1", "one at least"),
        (["server"], "localhost:1", "can be no client's name"),
        (["a/b"], "localhost:1", "can be no client's name"),
        (["train.org"], "train.org:1", "nor the server's host"),
        ([A], "train.org", "no HOST:PORT"),
    ],
)
def test_names_that_do_not_fit_make_no_kits(tmp_path, clients, address, words_):
    with pytest.raises(SettingsError, match=words_):
        provision(tmp_path / "kits", address, clients, settings())
    assert not (tmp_path / "kits").exists()


def test_a_kit_that_is_damaged_open_or_anothers_is_refused(kits, tmp_path):
    def copy(name):
        shutil.copytree(kits["own"] / A, tmp_path / name)
        return tmp_path / name

    (copy("open") / "client.key").chmod(0o644)
    with pytest.raises(G2DError, match="chmod 600"):
        read_kit(tmp_path / "open")
    run = copy("anothers") / "run.toml"
    run.write_text(run.read_text().replace(f'name = "{A}"', f'name = "{B}"'))
    with pytest.raises(G2DError, match=f"is of {A}, and run.toml says {B}"):
        read_kit(tmp_path / "anothers")
    (copy("less") / "rootCA.pem").unlink()
    (copy("odd") / "run.toml").write_text("name = 3")
    for name in ("less", "odd", "none"):
        with pytest.raises(G2DError, match="is no sound kit"):
            read_kit(tmp_path / name)
    with pytest.raises(G2DError, match="make kits in a new folder"):
        provision(kits["own"], "localhost:1", [A], settings())
    told = fail("federated", "server", kits["own"] / A, "digits", "--vault", tmp_path / "v")
    assert "run `g2d federated client` with it" in told


# --- the desk ------------------------------------------------------------------------------------


def few(**changes):
    return build(FederatedSettings, FEW | {"clients": 2} | changes, "tests")


def desk_of(said=None, **changes):
    """A desk with a stage of two rounds that runs on a thread of its own."""
    s = few(**changes)
    desk = Desk([A, B], "d" * 64, s.patience, unsaid if said is None else said.append)
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
    assert said == []
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


def test_provision_is_a_command(tmp_path):
    file = tmp_path / "few.toml"
    file.write_text(settings().to_toml())
    told = succeed(
        "federated", "provision", tmp_path / "kits", "digits", "--server", "train.example.org:8002",
        "--client", A, "--client", B, "--settings", file,
    ).output  # fmt: skip
    assert "g2d federated server" in told
    text = (tmp_path / "kits" / A / "settings.toml").read_text()
    assert "clients = 2" in text
