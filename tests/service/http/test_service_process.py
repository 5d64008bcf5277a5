"""`g2d serve` as a process over a real vault: the public client, the worker, drains and kills."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import torch

import g2d
from g2d.errors import GenerationError, RefusedError, VaultError
from g2d.rotation.snapshot import Live
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.worker import Worker
from g2d.settings import Settings
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault
from places import ROOT
from stand_ins import TOKEN, into, wait_for

if TYPE_CHECKING:
    from g2d.service.loader import VaultLoader

TOKEN = TOKEN.replace(" ", "-")


class Process:
    """A running `g2d serve`."""

    def __init__(self, vault: Path, *options: str, log: Path) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "G2D_ADMIN_TOKEN": TOKEN}
        self.log, self.out = log, log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "g2d", "serve", str(vault), "--port", "0", *options],
            stderr=self.out, env=env,
        )  # fmt: skip

    def __enter__(self) -> Process:
        wait_for(lambda: " is live at " in self.text() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.text()
        self.address = self.text().split(" is live at ")[1].split("/v2")[0]
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.out.close()

    def text(self) -> str:
        return self.log.read_text()

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def ask(self, path: str, body: object = None, method: str | None = None) -> tuple[int, dict]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {TOKEN}"} if path.startswith("/admin") else {}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read() or "{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "{}")

    def infer(self, x: np.ndarray) -> tuple[int, np.ndarray]:
        tensor = {"name": "input", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
        status, told = self.ask("/v2/models/g2d/infer", {"inputs": [tensor]})
        assert status == 200, told
        output = told["outputs"][0]
        return told["parameters"]["generation"], np.reshape(output["data"], output["shape"])

    def rotate(self) -> int:
        until = time.monotonic() + 120
        while time.monotonic() < until:  # 202: not within the request's time; 409: said why
            status, told = self.ask("/admin/rotate", method="POST")
            if status == 200:
                return told["generation"]
            assert status in (202, 409), told
            time.sleep(0.1)
        raise AssertionError(self.text())

    def worker(self) -> psutil.Process:
        found = []

        def there() -> bool:
            children = psutil.Process(self.process.pid).children()
            found[:] = [c for c in children if "g2d.service.worker" in c.cmdline()]
            return bool(found)

        wait_for(there, 60)
        return found[0]


@pytest.fixture
def vault(tiny_vault: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vault, tmp_path / "vault"))


@pytest.fixture
def x(digits: g2d.Task) -> np.ndarray:
    return digits.splits.test.x[:5].numpy()


def expected(vault: Path, number: int, x: np.ndarray) -> np.ndarray:
    with g2d.Defence.open(vault, write=False) as defence, torch.no_grad():
        return defence.generation(number).model()(torch.from_numpy(x)).numpy()


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

        wait_for(lambda: served.ask("/status")[1]["rotation"]["spare"] == 3, 60)
        served.worker().kill()  # the spare is warm, the worker dead: a new one commits it
        assert served.rotate() == 3
        assert any(line["event"] == "failed" for line in served.lines())
        history = served.ask("/status")[1]["history"]
        assert [h["generation"] for h in history] == [1, 2, 3]
        assert {g["gate"] for g in history[-1]["gates"]} >= {"accuracy", "distance"}

        worker = served.worker()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        wait_for(lambda: not worker.is_running(), 10)
    assert served.lines()[-1]["event"] == "stop"
    assert TOKEN not in served.text()
    with Vault.open(vault, write=True) as opened:
        assert opened.live() == 3


def test_sigterm_answers_what_is_under_way_and_takes_no_more(vault, x, tmp_path):
    with Process(vault, log=tmp_path / "log") as served:
        codes: list[int] = []

        def load() -> None:
            with contextlib.suppress(OSError, urllib.error.URLError, ConnectionError):
                while True:
                    codes.append(served.infer(x)[0])

        threads = [threading.Thread(target=load) for _ in range(3)]
        events = urllib.request.urlopen(served.address + "/events", timeout=30)
        for thread in threads:
            thread.start()
        wait_for(lambda: len(codes) > 20, 60)
        began = time.monotonic()
        served.process.terminate()
        assert served.process.wait(30) == 0
        assert time.monotonic() - began < 9, "an open stream of events held the end up"
        for thread in threads:
            thread.join()
        events.close()
    assert set(codes) == {1}  # every answer that came was good: `infer` checks the status


def test_a_head_that_never_ends_is_ended(vault, x, tmp_path):
    """Slow loris: nothing sent, a head that trickles, blank lines on an idle connection."""
    import socket

    with Process(vault, "--timeout", "1s", log=tmp_path / "log") as served:
        host, _, port = served.address.removeprefix("http://").rpartition(":")

        def talk(first: bytes, then: bytes, until: float = 8.0) -> tuple[bytes, float]:
            began, heard = time.monotonic(), b""
            with socket.create_connection((host, int(port)), timeout=0.2) as wire:
                wire.sendall(first)
                while time.monotonic() - began < until:
                    with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                        part = wire.recv(65536)
                        heard += part
                        if not part:
                            break
                    with contextlib.suppress(OSError):
                        wire.sendall(then)
            return heard, time.monotonic() - began

        live = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for first, then in ((b"", b""), (b"GET /v2 HTTP/1.1\r\n", b"a: b\r\n"), (live, b"\r\n")):
            heard, took = talk(first, then)
            assert heard.endswith(b"content-length: 0\r\n\r\n"), heard
            assert b"408" in heard
            assert 0.8 < took < 5
        heard, _ = talk(b"GET /v2 HTTP/1.1\r\n", b"a: " + b"b" * 60_000 + b"\r\n")
        assert b"431" in heard
        refused = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 300000\r\n\r\n"
        heard, _ = talk(refused, bytes(20_000), 0.9)
        assert heard.startswith(b"HTTP/1.1 404")
        assert b"431" not in heard
        assert served.infer(x)[0] == 1


@pytest.mark.slow
def test_kill_storm_under_load(vault, x, tmp_path):
    """SIGKILL of service or worker at random moments: the last committed generation comes back."""
    chance, seen = random.Random(5), 0
    for round_ in range(6):
        with Vault.open(vault) as opened:
            committed = opened.live()
        with Process(vault, "--every", "200ms", log=tmp_path / f"{round_}.log") as served:
            number, logits = served.infer(x)
            assert number >= max(committed, seen)
            assert np.allclose(logits, expected(vault, number, x), atol=1e-5)
            first, patience = number, time.monotonic() + 240
            while round_ % 2 and served.infer(x)[0] == first:  # odd rounds: in mid rotation
                assert time.monotonic() < patience, served.text()
                time.sleep(0.2)  # the worker has the lower priority: leave it some time
            until = time.monotonic() + chance.uniform(0.1, 2.0)
            while time.monotonic() < until:
                number = served.infer(x)[0]
                assert number >= seen, "a generation went back"
                seen = number
            if round_ == 3:
                served.worker().kill()
                assert served.infer(x)[0] >= seen
            served.process.kill()
    wait_for(lambda: can_write(vault), 20)
    with Vault.open(vault, write=True) as opened:
        assert opened.live() >= seen
        exposed = opened.exposures()
        assert exposed == sorted(exposed)
        for number in exposed:
            opened.read_generation(number)
    assert seen > 1, "the storm left no time to rotate"


def can_write(vault: Path) -> bool:
    try:
        Vault.open(vault, write=True).close()
    except VaultError:
        return False
    return True


# --- the worker alone ----------------------------------------------------------------------------


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


def test_a_worker_that_starves_is_replaced_by_one_that_does_not_idle(vault, monkeypatch):
    monkeypatch.setattr("g2d.service.worker._STARVED", 0.5)
    told: list[str] = []
    worker = Worker(vault, tell=lambda event: told.append(event.name))
    try:
        assert worker.make(1) == 2
        first = worker.pid
        assert os.sched_getscheduler(first) == os.SCHED_IDLE
        os.kill(first, signal.SIGSTOP)  # it gets nothing of a core any more
        assert worker.make(2) == 3
        assert (worker.pid != first, told) == (True, ["hurried"])
        assert os.sched_getscheduler(worker.pid) == os.SCHED_OTHER
        assert psutil.Process(worker.pid).nice() == 10
    finally:
        worker.close()


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


# --- the shelf -----------------------------------------------------------------------------------


@pytest.fixture
def loader(vault):
    from g2d.service.loader import VaultLoader

    opened = VaultLoader(vault, "g2d")
    yield opened
    opened.close()


def test_a_flipped_bit_is_found_and_healed_from_the_vault(vault, loader, x):
    from g2d.rotation.scheduler import Rotation, Triggers
    from g2d.service.http.metrics import Metrics
    from g2d.service.monitors.memory import Monitor
    from stand_ins import Fake

    first, _warning = loader.first()
    live, told = Live(first), []
    rotation = Rotation(live, Fake(), Fake(), Triggers(), into(told))
    metrics = Metrics(rotation.status)
    monitor = Monitor(live, loader, rotation, metrics, every=0.05)
    before = first.predict(x)
    assert monitor.check()
    weights = next(iter(first.predict._model.parameters()))
    weights.view(torch.int32).view(-1)[3] ^= 1 << 30
    assert not np.allclose(first.predict(x), before, atol=1e-5)
    monitor.start()
    wait_for(lambda: live.snapshot is not first, 10)
    monitor.stop()
    assert np.array_equal(live.snapshot.predict(x), before)
    ((_, alarm),) = told
    assert alarm["kind"] == "integrity"
    assert "healed" in alarm["text"]
    assert b'g2d_integrity_checks_total{outcome="changed"} 1.0' in metrics.render()
    assert rotation.status()["due"] == ["alarm: integrity"]


def test_a_watch_goes_on_whatever_is_wrong_and_tells_what_expires(vault, loader):
    from dataclasses import replace

    from g2d.rotation.scheduler import Rotation, Triggers
    from g2d.service.http.metrics import Metrics
    from g2d.service.monitors.memory import Monitor
    from stand_ins import Fake

    first, _warning = loader.first()
    live, told = Live(replace(first, expires=time.time() + 0.2)), []
    rotation = Rotation(live, Fake(), Fake(), Triggers(), lambda event: told.append(event.facts()))
    monitor = Monitor(live, loader, rotation, Metrics(rotation.status), every=0.05)
    ledger = sqlite3.connect(vault / "ledger.sqlite")
    with ledger:
        ledger.execute("UPDATE generations SET manifest = 'not json', files = 'nor this'")
    ledger.close()
    weights = next(iter(first.predict._model.parameters()))
    weights.view(torch.int32).view(-1)[3] ^= 1 << 30
    monitor.start()
    try:
        wait_for(lambda: sum("NOT healed" in f["text"] for f in told) > 1, 10)
        wait_for(lambda: any(f["kind"] == "expired" for f in told), 10)
    finally:
        monitor.stop()
    assert sum(f["kind"] == "expired" for f in told) == 1


def test_weights_that_do_not_fit_or_are_corrupt_are_refused(vault, loader):
    file = vault / "generations" / "000001" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(VaultError, match="corrupt"):
        loader.first()
    with pytest.raises(VaultError, match="corrupt"):
        loader.again(1)
    with pytest.raises(RefusedError, match="not above"):
        loader.load(1, 1)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_blueprints_are_what_the_tasks_are(name, digits):
    from g2d.tasks.builtin import blueprint

    plan = blueprint(name)
    model = plan.factory().eval()
    assert model(torch.zeros(2, *plan.shape, dtype=plan.dtype)).shape == (2, plan.classes)
    if name == "digits":
        x = digits.splits.guide.x
        assert (plan.shape, plan.dtype) == (tuple(x.shape[1:]), x.dtype)
        assert plan.factory is digits.factory


def test_a_vault_that_was_put_back_is_refused(vault, tmp_path):
    from g2d.service.loader import VaultLoader

    memory = tmp_path / "served"
    loader = VaultLoader(vault, "g2d", served=memory)
    loader.served(1)
    assert loader.first()[0].number == 1
    loader.served(4)
    with pytest.raises(RefusedError, match="put back") as refused:
        loader.first()
    assert refused.value.reason == "replay"
    for damaged in ("{}", '{"served": Infinity}', "[]", ""):
        memory.write_text(damaged)
        with pytest.raises(VaultError, match="look why"):
            loader.first()
    with pytest.raises(VaultError, match="lies in the vault"):
        VaultLoader(vault, "g2d", served=vault / "served.json")
    loader.close()


def first_alarm(loader: VaultLoader, vault: Path) -> str:
    """The kind of the alarm that a service which starts now writes first."""
    from g2d.service.http.server import _assemble

    lines = io.StringIO()
    _assemble(loader, vault, "", Options(), None, Log(lines))
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    return next(line["kind"] for line in told if line["event"] == "alarm")


def test_with_a_key_only_what_was_signed_is_served(vault, tmp_path, monkeypatch):
    from g2d.service.loader import VaultLoader

    key = SigningKey.generate()
    key.write(tmp_path / "k.key")
    monkeypatch.setattr(
        "g2d.service.loader.blueprint", lambda *_: pytest.fail("imported unverified")
    )
    with pytest.raises(RefusedError) as refused:
        VaultLoader(vault, "g2d", key=key.public)
    assert refused.value.reason == "unsigned"
    monkeypatch.undo()
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text)
        signing = {"signing__key": str(tmp_path / "k.key"), "signing__lifetime": 1e-5}
        opened.write_settings(settings.override(**signing).to_toml())
    with g2d.Defence.open(vault) as defence:
        defence.generate()
    loader = VaultLoader(vault, "g2d", key=key.public)
    assert loader.first()[0].number == 2
    time.sleep(1.0)
    snapshot, warning = loader.first()  # expired: nothing better to serve, and it says so
    assert snapshot.number == 2
    assert warning.reason == "expired"
    assert first_alarm(loader, vault) == "expired"
    assert loader.again(2).number == 2  # a flipped bit in it can still be healed
    with monkeypatch.context() as clock:
        clock.setattr("time.time", lambda now=time.time(): now - 7 * 86_400)  # noqa: B008
        snapshot, warning = loader.first()
        assert (snapshot.number, warning.reason) == (2, "future")
        assert first_alarm(loader, vault) == "future"
        with pytest.raises(RefusedError):
            loader.load(2, 1)
    with pytest.raises(RefusedError):
        loader.verify(2, 1)
    signature = vault / "generations" / "000002" / "manifest.sig"
    signature.write_bytes(bytes(64))
    with pytest.raises(RefusedError) as refused:
        loader.first()
    assert refused.value.reason == "signature"
    loader.close()


# --- the command ---------------------------------------------------------------------------------


def serve(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "g2d", "serve", *arguments], capture_output=True, text=True,
        timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | env,
    )  # fmt: skip


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

        wait_for(caught, 60)
        process.terminate()
        _, said = process.communicate(timeout=60)
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
            ((str(vault), "--every", "soon"), {}, "no time span"),
            ((str(vault), "--tls-cert", "x"), {}, "both files"),
            ((str(vault),), {"G2D_ADMIN_TOKEN": "short"}, "too weak"),
            ((str(vault), "--port", port), {}, "cannot bind"),
        ):
            done = serve(*arguments, **env)
            assert done.returncode == 1
            assert text in done.stderr
            assert len(done.stderr.splitlines()) == 1


def certificate(folder: Path) -> tuple[str, str]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime.now(UTC),
                                      datetime.now(UTC) + timedelta(1))  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "c.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())  # fmt: skip
    (folder / "k.pem").write_bytes(private)
    return str(folder / "c.pem"), str(folder / "k.pem")


def test_tls_by_certificate_and_key(vault, x, tmp_path, monkeypatch):
    import ssl

    cert, key = certificate(tmp_path)
    options = ("--host", "0.0.0.0", "--tls-cert", cert, "--tls-key", key)
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    with Process(vault, *options, log=tmp_path / "log") as served:
        assert served.address.startswith("https://")
        served.address = served.address.replace("0.0.0.0", "127.0.0.1")
        assert served.infer(x)[0] == 1
        assert "EXPOSED" not in served.text()


def test_exposure_without_tls_is_said_loudly(vault, tmp_path):
    with Process(vault, "--host", "0.0.0.0", log=tmp_path / "log") as served:
        wait_for(lambda: "EXPOSED WITHOUT TLS" in served.text(), 10)


def test_the_service_is_light_to_import():
    code = (
        "import sys, g2d.service.server, g2d.service.worker;"
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
