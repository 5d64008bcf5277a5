"""One request of ours: who asks is told, who answers is verified, and answers have bounds."""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from authority import PROD, Authority
from g2d.core import exchange
from g2d.core.exchange import Credentials, ExchangeError, ask
from g2d.errors import SettingsError


@contextmanager
def answering(data=b"well", length=None, tls=None):
    """A server that answers the same to all; gives its address, and the headers that it hears."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            heard.append(dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request, address):
            if tls is not None:  # here and not in the thread that accepts: a handshake may fail
                try:
                    request = tls.wrap_socket(request, server_side=True)
                except OSError:
                    return
            super().finish_request(request, address)
            if tls is not None:
                request.close()

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    scheme = "http://127.0.0.1" if tls is None else "https://localhost"
    try:
        yield f"{scheme}:{server.server_port}", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_who_asks_is_told_and_who_answers_is_verified(tmp_path):
    authority = Authority(tmp_path, "ca")
    server, client = authority.server(), authority.workload(PROD)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server.cert, server.key)
    tls.load_verify_locations(authority.cert)
    tls.verify_mode = ssl.CERT_REQUIRED
    both = tmp_path / "both.pem"
    both.write_bytes(Path(client.cert).read_bytes() + Path(client.key).read_bytes())
    ca = Path(authority.cert)
    with answering(tls=tls) as (url, heard):
        assert ask("GET", url, known=Credentials("a.b", ca, both)).body == b"well"
        with pytest.raises(ExchangeError, match="does not answer"):
            ask("GET", url, known=Credentials(ca=ca))  # the server asks for a certificate
        with pytest.raises(ExchangeError, match="CERTIFICATE_VERIFY_FAILED"):
            ask("GET", url, known=Credentials(certificate=both))
    assert [headers["Authorization"] for headers in heard] == ["Bearer a.b"]
    with pytest.raises(SettingsError, match="cannot be used for TLS"):
        ask("GET", url, known=Credentials(ca=ca, certificate=ca))  # a certificate without its key


def test_a_token_comes_from_its_file_or_else_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_TOKEN", "of-all")
    assert Credentials.read(None, None, None).token == "of-all"
    file = tmp_path / "token"
    file.write_text("of-file\n")
    file.chmod(0o600)
    known = Credentials.read(file, None, None)
    assert known.token == "of-file"
    assert "of-file" not in repr(known)
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        Credentials.read(file, None, None)
    file.chmod(0o600)
    for wrong in ("", "two words", "two\nlines", "für"):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(SettingsError, match="holds no token") as caught:
            Credentials.read(file, None, None)
        assert not wrong or wrong not in str(caught.value)
    with pytest.raises(SettingsError, match="cannot read the token"):
        Credentials.read(tmp_path / "absent", None, None)
    monkeypatch.setenv("G2D_TOKEN", "two words")
    with pytest.raises(SettingsError, match="G2D_TOKEN holds no token"):
        Credentials.read(None, None, None)


def test_answers_have_bounds(monkeypatch):
    with answering(b"short", length=9) as (url, _), pytest.raises(ExchangeError, match="too early"):
        ask("GET", url)
    monkeypatch.setattr(exchange, "MOST_TEXT", 3)
    with answering() as (url, _), pytest.raises(ExchangeError, match="larger than 3 bytes"):
        ask("GET", url)


@contextmanager
def refusing_early():
    """A server that reads a head, refuses, and closes without reading the body."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            wire, _ = listening.accept()
            with wire:
                heard = b""
                while b"\r\n\r\n" not in heard:
                    heard += wire.recv(1024)
                text = b"too large"
                wire.sendall(
                    b"HTTP/1.1 413 Too Large\r\ncontent-length: %d\r\n\r\n" % len(text) + text
                )
                wire.shutdown(socket.SHUT_WR)
                gone.wait(60)

        gone = Event()
        thread = Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", gone
        gone.set()
        thread.join()


def test_a_body_in_parts_is_sent_and_an_early_refusal_is_heard():
    with refusing_early() as (url, gone):

        def parts():
            for _ in range(200):
                yield bytes(1 << 20)
                gone.set()  # the server has refused, and closes while we send

        reply = ask("POST", url, parts(), {"Content-Length": str(200 << 20)})
    assert reply.said == "413: too large"
