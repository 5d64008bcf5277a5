"""Client certificates over real sockets: who gets in, and a CA that changes under the service."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from authority import PROD, Authority, Pair, bearer
from g2d.service.http.connection import within
from g2d.service.http.options import Options
from g2d.service.http.places import Places
from g2d.service.http.server import Server
from g2d.service.http.startup import check_access
from places import ROOT
from stand_ins import INFER, Harness, body, wait_for


class Served:
    """A service over stand-ins on a thread, with TLS as `g2d serve` has it."""

    def __init__(self, options: Options, token: str = "") -> None:
        self.harness = Harness(options, token=token, hosts=("localhost",))
        self.access = self.harness.service.access
        config = uvicorn.Config(
            self.harness.service, http=within(10.0, self.access), loop="uvloop", ws="none",
            lifespan="on", log_config=None, timeout_graceful_shutdown=1,
        )  # fmt: skip
        config.load()
        assert self.access.tls is not None
        self.server = Server(config, Places(100, 100), tls=self.access.tls)
        self.bound = socket.create_server(("127.0.0.1", 0))

    def client(self, authority: Authority, pair: Pair | None = None, tls: int = 3) -> Client:
        context = ssl.create_default_context(cafile=authority.cert)
        if tls == 2:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        return Client("localhost", self.bound.getsockname()[1], context=context, timeout=60)

    def refuses(self, authority: Authority, pair: Pair | None, tls: int = 3) -> bool:
        with contextlib.closing(self.client(authority, pair, tls)) as client:
            try:
                client.ask("GET", "/status")
            except (ssl.SSLError, ConnectionError, http.client.HTTPException):
                return True
        return False

    def resumes(self, client: Client, session: ssl.SSLSession) -> bytes:
        """What is answered to a connection that goes on with a TLS session of before."""
        with contextlib.suppress(ssl.SSLError, ConnectionError), self._reach() as plain:
            plain.settimeout(20)
            with client._context.wrap_socket(
                plain, server_hostname="localhost", session=session
            ) as wire:
                wire.sendall(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n")
                return wire.recv(100)
        return b""

    def _reach(self) -> socket.socket:
        return socket.create_connection(self.bound.getsockname(), 20)


class Client(http.client.HTTPSConnection):
    """One connection that is kept."""

    def ask(self, method: str, path: str, headers: dict | None = None) -> tuple[int, dict]:
        self.connect() if self.sock is None else None
        content = json.dumps(body()) if path == INFER else None
        self.request(method, path, content, headers or {})
        answer = self.getresponse()
        return answer.status, json.loads(answer.read() or "{}")

    def infer(self, headers: dict | None = None) -> int:
        return self.ask("POST", INFER, headers)[0]

    def ended(self) -> bool:
        """Whether the service has closed it; nothing is under way."""
        self.sock.settimeout(20)
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True


@contextlib.contextmanager
def serving(options: Options, token: str = "") -> Iterator[Served]:
    served = Served(options, token)
    thread = threading.Thread(target=served.server.run, args=([served.bound],), daemon=True)
    thread.start()
    try:
        wait_for(lambda: served.server.started or not thread.is_alive())
        yield served
    finally:
        served.harness.event_log.close()
        served.server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        served.bound.close()


@pytest.fixture
def mutual(authority: Authority, server_pair: Pair, tmp_path: Path) -> Options:
    """Options whose CA file the test may change."""
    shutil.copy(authority.cert, tmp_path / "ca.pem")
    return Options(
        tls_cert=server_pair.cert, tls_key=server_pair.key, client_ca=str(tmp_path / "ca.pem")
    )


def test_only_certificates_of_the_client_ca_get_in(authority, foreign, mutual):
    revoked, good = authority.workload(PROD), authority.workload(PROD)
    from dataclasses import replace

    mutual = replace(mutual, client_crl=authority.revoke(revoked))
    with serving(mutual) as served:
        for tls in (2, 3):
            client = served.client(authority, good, tls)
            assert client.infer() == client.infer() == 200
            assert client.ask("GET", "/status")[0] == 403
            client.close()
        for pair in (
            None,
            foreign.workload(PROD),
            authority.workload(PROD, days=(-2, -1)),
            authority.workload(PROD, days=(1, 2)),
            authority.workload(PROD, use="server"),
            revoked,
        ):
            for tls in (2, 3):
                assert served.refuses(authority, pair, tls)
    assert not [line for line in served.harness.lines() if "error" in line]


def test_an_access_file_says_what_each_identity_may(authority, mutual, issuer, jwks, tmp_path):
    from dataclasses import replace

    (tmp_path / "access.toml").write_text(
        f"[[allow]]\nidentity = '{PROD}'\nroles = ['infer']\nconnections = 1\n"
        "[[allow]]\nidentity = 'cn:*'\nroles = ['observe']\n"
    )
    options = replace(mutual, access=str(tmp_path / "access.toml"), jwks=jwks,
                      jwt_audience="g2d-service", jwt_issuer="https://issuer.example")  # fmt: skip
    prod, other = authority.workload(PROD), authority.workload("spiffe://example.org/ns/test/x")
    with serving(options, "the token of the operator") as served, contextlib.ExitStack() as stack:

        def connect(pair: Pair | None) -> Client:
            return stack.enter_context(contextlib.closing(served.client(authority, pair)))

        first, second = connect(prod), connect(prod)
        assert first.infer() == 200
        assert second.infer() == 429  # one connection at once
        first.close()
        wait_for(lambda: not served.access._quotas._links)
        assert connect(prod).infer() == 200
        assert connect(other).infer() == 403
        assert connect(authority.issue(common="bob")).ask("GET", "/status")[0] == 200
        nobody = connect(None)
        assert nobody.infer() == 401
        assert nobody.infer(bearer(issuer.token("infer"))) == 200
        assert nobody.ask("POST", "/admin/pause", bearer("the token of the operator"))[0] == 200
        # A token says who asks, also on another's connection.
        assert connect(other).infer(bearer(issuer.token("infer"))) == 200
        wrong = connect(authority.issue([], common="a\nb"))
        status, told = wrong.ask("GET", "/status")
        assert (status, told["error"][:40]) == (401, "the client certificate's name is longer ")


def test_a_new_ca_counts_without_a_restart_also_for_who_is_connected(
    authority, foreign, mutual, tmp_path
):
    ours, theirs, ca = authority.workload(PROD), foreign.workload(PROD), tmp_path / "ca.pem"
    with serving(mutual) as served:
        # TLS 1.2 and 1.3 resume sessions: what was verified under the old CA must not pass again.
        clients = [served.client(authority, ours, tls) for tls in (2, 3)]
        assert [client.infer() for client in clients] == [200, 200]
        sessions = [client.sock.session for client in clients]
        assert served.resumes(clients[0], sessions[0]).startswith(b"HTTP/1.1 200")
        assert served.refuses(authority, theirs)
        ca.write_text("no certificate")
        wait_for(lambda: served.harness.event_log.snapshot()["alarms"])
        assert [client.infer() for client in clients] == [200, 200]  # the old CA still counts
        ca.write_bytes(Path(foreign.cert).read_bytes())
        assert all(client.ended() for client in clients)
        for client, session in zip(clients, sessions, strict=True):
            client.close()
            assert served.resumes(client, session) == b""
        assert served.refuses(authority, ours)
        with contextlib.closing(served.client(authority, theirs)) as client:
            assert client.infer() == 200
    told = served.harness.lines()
    assert [line["flags"] for line in told if line["event"] == "access_changed"] == [
        ["--client-ca"]
    ]


def test_a_renewed_server_certificate_disturbs_nobody(authority, mutual, tmp_path, server_pair):
    from dataclasses import replace

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(server_pair.cert, cert)
    shutil.copy(server_pair.key, key)
    mine, renewed = authority.workload(PROD), authority.server()
    with serving(replace(mutual, tls_cert=str(cert), tls_key=str(key))) as served:
        client = served.client(authority, mine)
        assert client.infer() == 200
        before = client.sock.getpeercert()["serialNumber"]
        shutil.copy(renewed.key, key)
        shutil.copy(renewed.cert, cert)
        changed = [line for line in served.harness.lines() if line["event"] == "access_changed"]
        wait_for(lambda: "access_changed" in served.harness.log.getvalue())
        assert not changed
        assert client.infer() == 200
        assert client.sock.getpeercert()["serialNumber"] == before
        client.close()
        with contextlib.closing(served.client(authority, mine)) as client:
            assert client.infer() == 200
            assert int(client.sock.getpeercert()["serialNumber"], 16) == renewed.read.serial_number


def test_a_certificate_that_expires_during_a_connection_opens_nothing_more(authority, mutual):
    with (
        serving(mutual) as served,
        contextlib.closing(served.client(authority, authority.workload(PROD))) as client,
    ):
        assert client.infer() == 200
        (link,) = served.access._links
        link._peer = link.peer._replace(ends=1.0)
        assert client.infer() == 401
        assert client.sock is None  # told to connect anew


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_commands_of_the_page_make_what_the_service_takes(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "access.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
    shell = [block for kind, block in blocks if kind == "sh"]
    serve = next(block for block in shell if "g2d serve" in block)
    made = next(block for block in shell if block.startswith("openssl"))
    (token,) = [block for kind, block in blocks if kind == "python"]
    (access,) = [block for kind, block in blocks if kind == "toml"]
    monkeypatch.chdir(tmp_path)
    subprocess.run(["sh", "-euc", made], check=True, capture_output=True, timeout=60)
    jwt = subprocess.run([sys.executable, "-c", token], check=True, capture_output=True, text=True)
    Path("access.toml").write_text(access)
    flags = dict(re.findall(r"--([a-z-]+) (\S+)", serve))
    assert flags.pop("admin-token-file")
    options = Options(**{name.replace("-", "_"): value for name, value in flags.items()})
    check_access(options, b"an operator's")
    with serving(options, "an operator's") as served:
        context = ssl.create_default_context(cafile="server.pem")
        context.load_cert_chain("client.pem", "client.key")
        port = served.bound.getsockname()[1]
        client = Client("localhost", port, context=context, timeout=60)
        assert client.infer() == 200
        assert client.ask("GET", "/status")[0] == 403
        assert client.ask("GET", "/status", bearer(jwt.stdout.strip()))[0] == 200
        assert client.ask("POST", "/admin/pause", bearer(jwt.stdout.strip()))[0] == 200
        client.close()
    admin = [line for line in served.harness.lines() if line["event"] == "admin"]
    assert [line["who"] for line in admin] == ["jwt:ann"]
