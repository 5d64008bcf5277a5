"""The transport of federated training: who is let in, what is dropped, what is on the wire."""

from __future__ import annotations

import pickle
import select
import shutil
import socket

import pytest

pytest.importorskip("nvflare", reason="g2d[federated] is not installed")


from commands import fail, succeed
from federated_processes import free_port, settings
from g2d.errors import G2DError, SettingsError
from g2d.training.federated.form import Form
from g2d.training.federated.messages import most_bytes
from g2d.training.federated.processes import cells, words
from g2d.training.federated.processes.kits import Kit, provision, read_kit, split_address
from g2d.training.federated.processes.words import Reply
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


def test_one_certificate_holds_no_more_connections_than_it_needs(kits, start):
    server, where = serve(kits, start, Heard())
    lines = server._cell.communicator.conn_manager.sfm_conns
    for count in range(1, 4):
        cell = connect(kits["own"] / A, where, start)
        until_reply(cell, words.NEXT, b"here")
        assert len(lines) == count
    oldest = next(iter(lines.values()))
    server.tidy()
    # It takes nothing from here on; gRPC lets it go when its client sends next, within a minute.
    assert oldest.conn.closing
    assert cell.ask(words.NEXT, b"the newest").kind == words.WAIT


def test_a_certificate_names_one_end_and_no_more_is_kept_of_it(kits, start, monkeypatch):
    """NVFlare keeps every name that a certificate gives its ends, and what it says of each."""
    from nvflare.fuel.f3.endpoint import Endpoint
    from nvflare.fuel.f3.sfm.constants import Types

    server, where = serve(kits, start, Heard())
    one = connect(kits["own"] / A, where, start)
    until_reply(one, words.NEXT, b"here")
    ends = server._cell.communicator.conn_manager.sfm_endpoints
    lines = one._cell.communicator.conn_manager
    monkeypatch.setattr(lines, "update_endpoint", lambda *_: None)  # which would hang up
    line = next(iter(lines.sfm_conns.values()))
    line.local_endpoint = Endpoint(f"{A}.1", {"much": "x" * 1000})
    line.send_handshake(Types.HELLO)
    tried = server._cell.communicator.conn_manager.sfm_conns
    wait_for(lambda: len(ends) > 1 or all(one.conn.closing for one in tried.values()), SECONDS)
    assert list(ends) == [A]


def test_strangers_take_no_more_connections_than_leave_files_to_the_server(
    kits, start, monkeypatch
):
    """Each holds a file descriptor, and a server that has none left can keep nothing and ends."""
    monkeypatch.setattr(cells, "_most_lines", lambda: 10)
    monkeypatch.setattr(cells, "_HANDSHAKE", 1000 * int(SECONDS))
    _, where = serve(kits, start, Heard())
    one = connect(kits["own"] / A, where, start)
    until_reply(one, words.NEXT, b"here")
    strangers = [socket.create_connection(("127.0.0.1", int(where[10:]))) for _ in range(30)]
    try:
        wait_for(lambda: len(select.select(strangers, [], [], 0)[0]) >= 20, 60.0)
        assert one.ask(words.NEXT, b"still here").kind == words.WAIT
    finally:
        for held in strangers:
            held.close()


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


def test_a_clients_certificate_does_not_pass_for_the_servers(kits, start, tmp_path):
    """It is of the same authority; but the host that clients ask for is not in it."""
    heard, fake = Heard(), tmp_path / "fake"
    shutil.copytree(kits["own"] / B, fake)
    for end in ("crt", "key"):
        (fake / f"client.{end}").rename(fake / f"server.{end}")
    own, where = read_kit(kits["own"] / "server"), f"localhost:{free_port()}"
    kit = Kit(fake, own.name, own.address, own.clients, own.text)
    start(cells.ServerCell(kit, where, MOST, heard))
    wait_for(lambda: _listens(int(where.rpartition(":")[2])), SECONDS)
    one = connect(kits["own"] / A, where, start)
    with pytest.raises(cells.Unreachable):
        one.ask(words.NEXT, b"to the wrong one", 5.0)
    assert heard.all == []


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
        (["trainer"], "trainer:1", "nor the server's host"),
        (["a.b"], "localhost:1", "letters, digits and dashes"),
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


@pytest.mark.parametrize("place", ["rule", "recipe"])
def test_code_that_a_kit_names_is_not_run_before_it_is_accepted(kits, tmp_path, place):
    """Whoever made the kit chose it: a client's organisation looks at it first."""
    kit = tmp_path / "kit"
    shutil.copytree(kits["own"] / A, kit)
    code = f"odd_{place}:run"
    given = settings(rule=code) if place == "rule" else settings()
    given = given.override(federated__clients=2)
    if place == "recipe":
        given = given.override(harden__recipe=(code,))
    (kit / "settings.toml").write_text(given.to_toml())
    (tmp_path / f"odd_{place}.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nrun = 3\n"
    )
    words = ("federated", "client", kit, "digits", "--task-path", tmp_path)
    told = " ".join(fail(*words).split())
    assert f"names code that would run here, {code}" in told
    assert not (tmp_path / "ran").exists()
    assert code in fail(*words, "--accept-code")  # and now it is run: it is no rule
    assert (tmp_path / "ran").exists()


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


@pytest.mark.parametrize(
    ("files", "most"), [(-1, 1 << 16), (1024, 512), (4, 8), (1 << 30, 1 << 16)]
)
def test_connections_are_half_of_the_files_that_may_be_open(monkeypatch, files, most):
    """No limit at all is -1 on Linux, and was eight connections."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert cells._most_lines() == most
