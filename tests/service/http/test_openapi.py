"""schemathesis against a live service over stand-ins: the OpenAPI description is what it does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading

import pytest
import uvicorn

from places import ROOT
from stand_ins import TOKEN, Harness, wait_for

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)
CONFIG = ROOT / "benchmarks" / "hostile" / "schemathesis.toml"


@pytest.fixture
def port():
    """A service with a socket, in a thread."""
    config = uvicorn.Config(
        Harness(token=TOKEN.replace(" ", "-")).service, port=0, log_config=None, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.mark.slow
def test_the_description_is_what_the_service_does(port, tmp_path):
    """All checks; without /events, whose answer never ends."""
    token = f"Authorization: Bearer {TOKEN.replace(' ', '-')}"
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run",
         f"http://127.0.0.1:{port}/openapi.json", "--checks", "all", "--exclude-checks",
         "positive_data_acceptance", "--exclude-path", "/events", "--phases",
         "examples,coverage,fuzzing", "--max-examples", "3", "--seed", "1",
         "--request-timeout", "20", "--no-color", "-H", token],
        capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "/v2/models" in done.stdout
