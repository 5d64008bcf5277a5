"""`g2d serve`: what is wrong is said at once, in one line; what is light stays light."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from g2d.service.http.options import Options
from places import ROOT
from service_process import certificate, serve
from stand_ins import wait_for


def test_two_services_cannot_have_one_port():
    from g2d.errors import SettingsError
    from g2d.service.http.server import listen

    with listen(Options(port=0)) as first, pytest.raises(SettingsError, match="cannot bind"):
        listen(Options(port=first.getsockname()[1]))


def test_sigterm_during_the_start_is_no_failure(vault):
    process = subprocess.Popen(
        [sys.executable, "-m", "g2d", "serve", str(vault), "--port", "0"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    try:

        def caught() -> bool:
            status = Path(f"/proc/{process.pid}/status").read_text()
            mask = int(status.split("SigCgt:")[1].split()[0], 16)
            return bool(mask >> (signal.SIGTERM - 1) & 1)

        wait_for(caught)
        process.terminate()
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "ended before it served" in said
    assert "is live at" not in said


def test_what_is_wrong_with_certificate_and_key_is_said_with_the_file(vault, tmp_path):
    (tmp_path / "other").mkdir()
    (cert, key), (_, other) = certificate(tmp_path), certificate(tmp_path / "other")
    none, text = str(tmp_path / "none.pem"), tmp_path / "text.pem"
    text.write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    for pair, said in (
        ((cert, none), f"cannot read --tls-key {none}"),
        ((none, key), f"cannot read --tls-cert {none}"),
        ((key, cert), "swapped"),
        ((cert, other), f"{other} is not the private key of {cert}"),
        ((str(text), key), str(text)),
        ((cert, cert), f"--tls-key {cert} holds no private key"),
    ):
        done = serve(str(vault), "--tls-cert", pair[0], "--tls-key", pair[1])
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_mistakes_are_said_before_torch_is_loaded(vault, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, env, text in (
            ((str(tmp_path / "none"),), {}, "there is no vault"),
            ((str(vault), "--every", "soon"), {}, "not a time span"),
            ((str(vault), "--tls-cert", "x"), {}, "both files"),
            ((str(vault),), {"G2D_ADMIN_TOKEN": "short"}, "too weak"),
            ((str(vault), "--client-ca", "x"), {}, "--client-ca needs TLS"),
            ((str(vault), "--port", port), {}, "cannot bind"),
        ):
            done = serve(*arguments, **env)
            assert done.returncode == 1
            assert text in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_the_service_is_light_to_import():
    code = (
        "import sys, g2d.service.http.server, g2d.service.worker;"
        "heavy = {'torch', 'fastapi', 'sklearn', 'scipy'} & sys.modules.keys();"
        "assert not heavy, heavy"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    code = (
        "import sys, g2d.service.loader;"
        "heavy = {'fastapi', 'sklearn', 'scipy'} & sys.modules.keys(); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
