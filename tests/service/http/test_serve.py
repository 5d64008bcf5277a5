"""`g2d serve` as a process over a real vault: the public client, drains, kills, TLS."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest

from g2d.protect.audit.places import anchor_file, default_log, public_key, read_anchor
from g2d.protect.audit.verify import read_records, verify
from g2d.vault.vault import Vault
from service_process import TOKEN, Process, can_write, certificate, expected
from stand_ins import wait_for


@pytest.mark.slow
def test_a_whole_life_with_the_public_client(vault, x, tmp_path):
    import tritonclient.http as triton

    with Process(vault, log=tmp_path / "log") as served:
        wait_for(lambda: served.worker().nice() == 10)
        assert psutil.Process(served.process.pid).nice() < 10
        client = triton.InferenceServerClient(served.address.removeprefix("http://"))
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("g2d")
        assert client.get_server_metadata()["name"] == "g2d"
        assert client.get_model_metadata("g2d")["inputs"][0]["shape"] == [-1, 1, 8, 8]
        for binary_in in (False, True):
            for binary_out in (False, True):
                tensor = triton.InferInput("input", list(x.shape), "FP32")
                tensor.set_data_from_numpy(x, binary_data=binary_in)
                wanted = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
                result = client.infer("g2d", [tensor], outputs=wanted, request_id="7")
                assert np.allclose(result.as_numpy("logits"), expected(vault, 1, x), atol=1e-5)
                told = result.get_response()
                assert (told["id"], told["parameters"]) == ("7", {"generation": 1})
        assert np.allclose(client.infer("g2d", [tensor]).as_numpy("logits"), served.infer(x)[1],
                           atol=1e-6)  # fmt: skip
        with pytest.raises(triton.InferenceServerException, match="not live"):
            client.infer("g2d", [tensor], model_version="99")
        client.close()

        assert served.rotate() == 2
        number, logits = served.infer(x)
        assert number == 2
        assert np.allclose(logits, expected(vault, 2, x), atol=1e-5)

        wait_for(lambda: served.ask("/status")[1]["rotation"]["spare"] == 3)
        served.worker().kill()  # the spare is warm, the worker dead: a new one commits it
        assert served.rotate() == 3
        assert any(line["event"] == "failed" for line in served.lines())
        history = served.ask("/status")[1]["history"]
        assert [h["generation"] for h in history] == [1, 2, 3]
        assert {g["gate"] for g in history[-1]["gates"]} >= {"accuracy", "distance"}

        worker = served.worker()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(120) == 0
        wait_for(lambda: not worker.is_running())
    assert [line["event"] for line in served.lines() if line["event"] != "audit"][-1] == "stop"
    assert TOKEN not in served.text()
    with Vault.open(vault, write=True) as opened:
        assert opened.live() == 3


def test_sigterm_answers_what_is_under_way_and_takes_no_more(vault, x, tmp_path):
    # What is under way may take long on a busy machine; an open stream would take for ever.
    with Process(vault, "--drain", "100s", log=tmp_path / "log") as served:
        codes: list[int] = []

        def load() -> None:
            with contextlib.suppress(OSError, urllib.error.URLError, ConnectionError):
                while True:
                    codes.append(served.infer(x)[0])

        threads = [threading.Thread(target=load) for _ in range(3)]
        events = urllib.request.urlopen(served.address + "/events", timeout=120)
        for thread in threads:
            thread.start()
        wait_for(lambda: len(codes) > 20)
        served.process.terminate()
        assert served.process.wait(120) == 0
        assert "shutdown exceeded" not in served.text(), "an open stream held the end up"
        for thread in threads:
            thread.join()
        events.close()
    assert set(codes) == {1}  # every answer that came was good: `infer` checks the status
    log = default_log(vault)  # by default there is one, closed and signed, and outside the vault
    report = verify(log, public_key(None), anchor=read_anchor(anchor_file(log)))
    assert (report.problems, report.unsigned, report.torn) == ([], 0, 0)
    names = [r.name for r in read_records(log) if not r.name.startswith("audit.")]
    names = [name for name in names if name != "older copy"]  # other fixtures' copies went further
    assert (names[:2], names[-1]) == (["configuration", "start"], "stop")
    assert str(report.head) in served.text()


@pytest.mark.slow
def test_kill_storm_under_load(vault, x, tmp_path):
    """SIGKILL of service or worker at random moments: the last committed generation comes back."""
    chance, seen = random.Random(5), 0
    for round_ in range(3):  # a longer storm: python -m benchmarks.hostile.kills
        with Vault.open(vault) as opened:
            committed = opened.live()
        with Process(vault, "--every", "200ms", log=tmp_path / f"{round_}.log") as served:
            number, logits = served.infer(x)
            assert number >= max(committed, seen)
            assert np.allclose(logits, expected(vault, number, x), atol=1e-5)
            first, patience = number, time.monotonic() + 280
            while round_ % 2 and served.infer(x)[0] == first:  # odd rounds: in mid rotation
                assert time.monotonic() < patience, served.text()
                time.sleep(0.2)  # the worker has the lower priority: leave it some time
            until = time.monotonic() + chance.uniform(0.1, 2.0)
            while time.monotonic() < until:
                number = served.infer(x)[0]
                assert number >= seen, "a generation went back"
                seen = number
            if round_ == 1:
                served.worker().kill()
                assert served.infer(x)[0] >= seen
            served.process.kill()
    wait_for(lambda: can_write(vault))
    with Vault.open(vault, write=True) as opened:
        assert opened.live() >= seen
        exposed = opened.exposures()
        assert exposed == sorted(exposed)
        for number in exposed:
            opened.read_generation(number)
    assert seen > 1, "the storm left no time to rotate"


def test_tls_by_certificate_and_key(vault, x, tmp_path, monkeypatch):
    import ssl

    cert, key = certificate(tmp_path)
    options = ("--host", "0.0.0.0", "--tls-cert", cert, "--tls-key", key)
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    with Process(vault, *options, log=tmp_path / "log") as served:
        assert served.address.startswith("https://")
        served.address = served.address.replace("0.0.0.0", "127.0.0.1")
        assert served.infer(x)[0] == 1
        assert "EXPOSED WITHOUT TLS" not in served.text()
        assert "EXPOSED WITHOUT AUTHENTICATION" in served.text()
