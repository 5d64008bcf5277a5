"""Ray itself, on this machine: jobs as tasks, and `g2d serve --engine ray` as a process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np
import psutil
import pytest

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import G2DError
from g2d.settings import Settings
from g2d.vault.vault import Vault
from places import ROOT
from service_process import Process, expected
from stand_ins import wait_for

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("ray")]

TOLD = ("asked", "ended", "[", "GenerationError", "PopulationError", "in flight", "cancelled")
ENV = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
STEPS = (
    "[population]\nbase_steps = 60\nearly_steps = 20\nfork_steps = 20\npool = 64\npool_steps = 2\n"
)


@pytest.fixture
def alone():
    """Nothing that a test starts may be there when it has ended."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert psutil.wait_procs(left, timeout=120)[1] == []


@pytest.fixture
def vault(tiny_vault: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vault, tmp_path / "vault"))


@pytest.fixture
def x(digits: g2d.Task) -> np.ndarray:
    return digits.splits.test.x[:5].numpy()


# --- jobs ----------------------------------------------------------------------------------------


JOBS = """
import os, time, signal, sys, torch
from g2d.cli import main as cli
from g2d.core.ray_engine import RayEngine
from g2d.errors import GenerationError, PopulationError

def square(x): return x * x
def threads(_): return torch.get_num_threads()
def niceness(_): return os.getpriority(os.PRIO_PROCESS, 0)
def there(_): return os.getcwd() in sys.path or "G2D_ADMIN_TOKEN" in os.environ
def broken(x): raise GenerationError(f"job {x} says so")
def dies(_): os._exit(7)
def slow(_): time.sleep(400)

class Lent:  # to a command, which would close its own
    def __enter__(self): return engine
    def __exit__(self, *_): pass

def lend(*asked):
    print("asked for", *asked, flush=True)
    return Lent()

with RayEngine(workers=2) as engine:
    cli.make_engine = lend
    try:
        cli.app(sys.argv[1:])
    except SystemExit as ended:
        print("ended with", ended.code, flush=True)
    one = [list(engine.run(work, [0])) for work in (threads, niceness, there)]
    print(sorted(engine.run(square, [3, 1, 2])), *one)
    for work, kind in ((broken, GenerationError), (dies, PopulationError)):
        try:
            list(engine.run(work, [5]))
        except kind as error:
            print(type(error).__name__, error)
    made = []
    def payloads():
        for n in range(8):
            made.append(n)
            yield n
    run = engine.run(square, payloads())
    next(run)
    print("in flight", len(made) <= 3)
    run.close()
    signal.setitimer(signal.ITIMER_REAL, 2)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    began = time.monotonic()
    try:
        list(engine.run(slow, [0]))
    except KeyboardInterrupt:
        print("cancelled", time.monotonic() - began < 300)
"""


def files(path: Path) -> dict[tuple[str, int], dict]:
    with Vault.open(path) as vault:
        kinds = ("base", "early", "member")
        return {(kind, e.index): e.files for kind in kinds for e in vault.entries(kind)}


@pytest.mark.usefixtures("alone")
def test_a_population_is_the_same_bytes_and_jobs_say_what_failed_and_can_be_cancelled(tmp_path):
    """In one process with one cluster, which takes more time than what is tried on it."""
    settings = tmp_path / "settings.toml"
    settings.write_text(STEPS)
    command = ["population", str(tmp_path / "ray"), "--task", "digits", "--settings", str(settings),
               "--members", "4", "--basins", "2", "--engine", "ray", "--workers", "2"]  # fmt: skip
    script, here = tmp_path / "jobs.py", tmp_path / "here"
    script.write_text(JOBS)
    (here / "g2d").mkdir(parents=True)
    for name in ("g2d/__init__.py", "torch.py", "ray.py"):  # where it is started; nobody's task
        (here / name).write_text("raise SystemExit('imported from the current directory')")
    done = subprocess.run([sys.executable, str(script), *command],
                          env=ENV | {"G2D_ADMIN_TOKEN": "t" * 32}, cwd=here, timeout=600,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "(raylet)" not in line]
    asked, ended, squares, broken, died, flight, cancelled = [
        line for line in lines if line.startswith(TOLD)
    ]
    assert (asked, ended) == (f"asked for ray  2 {tmp_path / 'ray'}", "ended with 0")
    # As urgent as any other process: Ray's own 15 starved replicas on a busy machine.
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert squares == f"[(0, 9), (1, 1), (2, 4)] [(0, 1)] [(0, {own})] [(0, False)]"
    assert broken == "GenerationError job 5 says so"
    assert died.startswith("PopulationError a job was lost 4 times")
    assert (flight, cancelled) == ("in flight True", "cancelled True")

    by_ray = files(tmp_path / "ray")
    with Vault.open(tmp_path / "ray") as made:
        text = made.settings_text
    with g2d.Defence.create("digits", tmp_path / "serial", Settings.from_toml(text)) as defence:
        defence.populate(SerialEngine())
    assert by_ray == files(tmp_path / "serial")
    assert len(by_ray) == 1 + 2 + 4


def test_the_command_line_makes_rays_engine_of_what_it_is_given(monkeypatch, tmp_path):
    import g2d.core.ray_engine
    from g2d.cli.shared import make_engine

    monkeypatch.setattr(g2d.core.ray_engine, "RayEngine", lambda *given, **more: (given, more))
    assert make_engine("ray", "there:6379", 3, tmp_path) == (("there:6379", 3), {})


def test_no_cluster_and_wrong_addresses_are_said_at_once():
    from g2d.core.ray_cluster import joined

    for address, text in (
        ("127.0.0.1:1", "does not answer at 127.0.0.1:1"),
        ("ray://there:10001", "Ray Client's address"),
    ):
        began = time.monotonic()
        with pytest.raises(G2DError, match=text), joined(address):
            pass
        assert time.monotonic() - began < 200


# --- the service ---------------------------------------------------------------------------------


class Client:
    """One connection, kept open; says which replica answered."""

    def __init__(self, address: str) -> None:
        self.line = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=240)

    def close(self) -> None:
        self.line.close()

    def infer(self, x: np.ndarray, version: str = "") -> tuple[int, str, dict]:
        tensor = {"name": "input", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
        path = f"/v2/models/g2d{version}/infer"
        self.line.request("POST", path, json.dumps({"inputs": [tensor]}))
        response = self.line.getresponse()
        told = json.loads(response.read())
        return response.status, response.headers.get("g2d-replica", ""), told


class Load(threading.Thread):
    """Infers all the time, with a breath between: two of them without one took every core from the
    worker whose rotations they wait for. Keeps every answer's status, replica, generation, logits.
    """

    def __init__(self, address: str, x: np.ndarray) -> None:
        super().__init__(daemon=True)
        self.client, self.x, self.ending = Client(address), x, False
        self.answers: list[tuple[int, str, int, np.ndarray]] = []
        self.failed: list[object] = []

    def run(self) -> None:
        while not self.ending:
            try:
                status, replica, told = self.client.infer(self.x)
                if status != 200:
                    self.failed.append(told)
                    continue
                output = told["outputs"][0]
                logits = np.reshape(output["data"], output["shape"])
                number = told["parameters"]["generation"]
                self.answers.append((status, replica, number, logits))
                time.sleep(0.02)
            except Exception as error:
                self.failed.append(error)

    def stop(self) -> None:
        self.ending = True
        self.join(240)
        self.client.line.close()


def replicas(served: Process) -> dict[str, dict]:
    status, told = served.ask("/status")
    assert status == 200
    return {one["replica"]: one for one in told["rotation"]["cluster"]["replicas"]}


def both(served: Process) -> dict[str, int]:
    """Process ids of the two replicas, once one that answers has heard of both."""
    found: dict[str, int] = {}

    def there() -> bool:
        found.clear()
        found.update({name: one["pid"] for name, one in replicas(served).items()})
        return len(found) == 2

    wait_for(there, 240)
    return found


def answering(served: Process, x: np.ndarray, count: int) -> set[int]:
    """Ask until so many replicas have answered; return the generations that they did from."""
    found: dict[str, int] = {}
    client = Client(served.address)
    for _ in range(200):
        status, replica, told = client.infer(x)
        assert status == 200
        found[replica] = told["parameters"]["generation"]
        if len(found) == count:
            break
    client.line.close()
    assert len(found) == count
    return set(found.values())


def coordinator(served: Process) -> psutil.Process | None:
    for child in psutil.Process(served.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that was just killed
            if "CoordinatorActor" in " ".join(child.cmdline()):
                return child
    return None


@pytest.mark.usefixtures("alone")
def test_replicas_follow_every_rotation_under_load_and_are_not_restarted(vault, x, tmp_path):
    options = ("--engine", "ray", "--replicas", "2", "--lease", "60s")
    with Process(vault, *options, log=tmp_path / "log") as served:
        pids = both(served)
        check_processes(served)
        loads = [Load(served.address, x) for _ in range(2)]
        for load in loads:
            load.start()
        for number in (2, 3, 4):
            assert served.rotate() == number
            assert answering(served, x, 2) == {number}  # all of them, now
            wait_for(lambda: {one["generation"] for one in replicas(served).values()} == {number})  # noqa: B023
        client = Client(served.address)
        status, _, told = client.infer(x, "/versions/3")
        client.line.close()
        assert (status, told["error"]) == (404, "version '3' is not live; 4 is")

        wait_for(lambda: served.ask("/status")[1]["rotation"]["spare"] == 5, 240)
        weights = vault / "generations" / "000005" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        status, told = served.ask("/admin/rotate", method="POST")
        assert status == 409, told  # tampered with: refused
        assert served.infer(x)[0] == 4  # and the live one stays
        assert served.rotate() == 6
        for load in loads:
            load.stop()
        assert both(served) == pids
        assert served.ask("/v2/health/ready")[0] == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(240) == 0
    check(loads, vault, x)
    assert {answer[1] for load in loads for answer in load.answers} == pids.keys()
    rolled = [line for line in served.lines() if line["event"] == "rolled out"]
    assert {line["generation"] for line in rolled} == {2, 3, 4, 6}
    assert all(line["seconds"] < 60 for line in rolled)
    assert [line["event"] for line in served.lines() if line["event"] != "audit"][-1] == "stop"


def check_processes(served: Process) -> None:
    """Nothing of Ray listens but on loopback, or knows the admin's token; its files are ours."""
    operator = psutil.Process(served.process.pid)
    tree = [operator, *operator.children(recursive=True)]
    bound = [(c.laddr.ip.removeprefix("::ffff:"), process.name())
             for process in tree for c in process.net_connections("inet")
             if c.status == psutil.CONN_LISTEN]  # fmt: skip
    assert len({name for _, name in bound}) >= 6, bound  # operator, gcs, raylet, agents, replicas
    assert {address for address, _ in bound} <= {"127.0.0.1", "::1"}, bound
    assert not [p.name() for p in tree[1:] if "G2D_ADMIN_TOKEN" in p.environ()]
    folders = {
        argument.split("=", 1)[1] for process in tree for argument in process.cmdline()
        if argument.startswith(("--temp_dir=", "--temp-dir="))
    }  # fmt: skip
    assert len(folders) == 1
    assert stat.S_IMODE(Path(folders.pop()).parent.stat().st_mode) == 0o700


def check(loads: list[Load], vault: Path, x: np.ndarray) -> None:
    """No answer failed, mixed generations, or went back at its replica."""
    known: dict[int, np.ndarray] = {}
    for load in loads:
        assert load.failed == []
        last: dict[str, int] = {}
        for _, replica, number, logits in load.answers:
            if number not in known:
                known[number] = expected(vault, number, x)
            assert np.allclose(logits, known[number], atol=1e-5)
            assert number >= last.get(replica, 0)
            last[replica] = number
    assert len(known) > 3


@pytest.mark.usefixtures("alone")
def test_without_its_coordinator_a_replica_refuses_and_comes_back(vault, x, tmp_path):
    options = ("--engine", "ray", "--replicas", "2", "--lease", "8s")
    with (
        Process(vault, *options, log=tmp_path / "log") as served,
        contextlib.closing(Client(served.address)) as client,
    ):

        def answer(status: int) -> bool:
            """Whether all of twenty requests, to either replica, have this status."""
            return all(client.infer(x)[0] == status for _ in range(20))

        pids = both(served)
        assert served.rotate() == 2
        away = coordinator(served)
        away.suspend()
        assert client.infer(x)[0] == 200  # the lease goes on
        wait_for(lambda: answer(503))
        assert served.ask("/v2/health/live")[0] == 200
        away.resume()
        wait_for(lambda: answer(200), 240)

        away.kill()  # a new one is started; it reads the ledger and goes on
        wait_for(lambda: coordinator(served) not in (None, away), 240)
        wait_for(lambda: answer(200), 240)
        assert served.infer(x)[0] == 2
        assert served.rotate() >= 3
        assert both(served) == pids
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(240) == 0
