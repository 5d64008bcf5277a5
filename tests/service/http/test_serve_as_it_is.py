"""One `g2d serve` that no test changes: what it says, what it shows, whom it does not wait for."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import succeed
from places import DATA
from service_process import Process
from stand_ins import wait_for

pytestmark = pytest.mark.xdist_group("serve")
PATIENCE = 1.5  # seconds that a client may take over a head


@pytest.fixture(scope="module")
def served(tiny_vault: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Open to other machines, without TLS, over a vault that a red team has looked at."""
    folder = tmp_path_factory.mktemp("served")
    vault = Path(shutil.copytree(tiny_vault, folder / "vault"))
    (vault / "redteam").mkdir()
    shutil.copy(DATA / "results.json", vault / "redteam" / "results.json")
    options = ("--host", "0.0.0.0", "--timeout", f"{PATIENCE}s")
    with Process(vault, *options, log=folder / "log") as running:
        running.address = running.address.replace("0.0.0.0", "127.0.0.1")
        yield running


def test_exposure_without_tls_is_said_loudly(served):
    wait_for(lambda: "EXPOSED WITHOUT TLS" in served.text())


def test_a_real_service_has_the_page_and_its_vaults_findings(served, x):
    with urllib.request.urlopen(served.address + "/", timeout=120) as answer:
        assert b"Live generation" in answer.read()
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert served.ask("/redteam")[1]["rows"]
    status = served.ask("/status")[1]
    assert status["redteam"]
    assert status["rotation"]["layout"] == "secret"
    wait_for(lambda: '"layout":"secret"' in served.text().replace(" ", ""))  # the line `start`
    served.infer(x)
    answers = served.ask("/status")[1]["traffic"]["answers"]
    assert answers == status["traffic"]["answers"] + 1
    (base,) = status["history"]
    assert base["origin"] == "base"
    assert served.ask("/redoc")[0] == 404


def test_canaries_are_answered_as_they_were_made(served):
    asked = "canary", "check", served.address, "--vault", served.log.parent / "vault"
    told = succeed(*asked).stdout
    assert "logits of 16 canaries" in told
    assert "All are answered as the sound generation does." in told
    assert "labels only of 16" in succeed(*asked, "--labels").stdout


def talk(served: Process, first: bytes, then: bytes, times: int = 1000) -> tuple[bytes, float]:
    """Send, then so many times more until the other side has closed; or has answered."""
    host, _, port = served.address.removeprefix("http://").rpartition(":")
    began, heard = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=0.2) as wire:
        wire.sendall(first)
        while time.monotonic() - began < 90 and (times > 0 or not heard):
            with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                part = wire.recv(65536)
                heard += part
                if not part:
                    break
            times -= 1
            with contextlib.suppress(OSError):
                wire.sendall(then if times > 0 else b"")
    return heard, time.monotonic() - began


@pytest.mark.slow
def test_a_head_that_never_ends_is_ended(served, x):
    """Slow loris: nothing sent, a head that trickles, blank lines on an idle connection."""
    live = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for first, then in ((b"", b""), (b"GET /v2 HTTP/1.1\r\n", b"a: b\r\n"), (live, b"\r\n")):
        heard, took = talk(served, first, then)
        assert heard.endswith(b"content-length: 0\r\n\r\n"), heard
        assert b"408" in heard
        assert 0.8 * PATIENCE < took < 60
    heard, _ = talk(served, b"GET /v2 HTTP/1.1\r\n", b"a: " + b"b" * 60_000 + b"\r\n")
    assert b"431" in heard
    refused = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 300000\r\n\r\n"
    heard, _ = talk(served, refused, bytes(20_000), 5)
    assert heard.startswith(b"HTTP/1.1 404")
    assert b"431" not in heard
    assert served.infer(x)[0] == 1
