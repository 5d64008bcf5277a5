"""`g2d serve --engine ray` on two hosts: head, vault and coordinator on the first."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

import g2d
from benchmarks.cluster import asking, probing
from benchmarks.cluster.answers import Answer, read
from benchmarks.cluster.certificates import Authority
from benchmarks.cluster.hosts import Host
from benchmarks.serving.process import TINY
from g2d.core.engine import SerialEngine
from g2d.settings import Settings, build
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault

PORT, RAY = 8000, 6379
_TRIES = 4
_RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
SMALL = TINY | {"gates": {**TINY["gates"], "distance": 0.0}}
# Ray then runs as if it were installed without its dashboard. With it, its agents take longer to
# start on a busy machine than the 15 seconds that the raylet waits for them.
_LEAN = 'raise ModuleNotFoundError("without the dashboard", name=__name__)'
_STRANGER = """
from g2d.core.ray_cluster import joined
from g2d.errors import G2DError
try:
    with joined({address!r}):
        print("joined")
except G2DError as error:
    print(error)
"""


class Service:
    """Starts all of it, ends it with its block, and asks."""

    def __init__(self, made: Sequence[Host], folder: Path, lease: float) -> None:
        self.hosts, self.lease, self._folder = list(made), lease, folder
        self._authority, self._token = Authority(), secrets.token_hex(16)
        self._log = (folder / "log").open("wb")
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": "/tmp/lean:" + os.environ.get("PYTHONPATH", ""),
            "OMP_NUM_THREADS": "1", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        self._tls: dict[str, dict[str, str]] = {}
        self._clients: dict[str, subprocess.Popen[bytes]] = {}
        self._head = f"{made[0].address}:{RAY}"

    def __enter__(self) -> Service:
        a, b = self.hosts
        for host in self.hosts:
            (host.disk / "lean").mkdir()
            (host.disk / "lean" / "opencensus.py").write_text(_LEAN)
        self._make_vault(a)
        for host in self.hosts:
            self.join(host)
        command = [sys.executable, "-m", "g2d", "serve", "/tmp/vault", "--engine", "ray",
                   "--ray-address", self._head, "--replicas", "2", "--lease", f"{self.lease}s",
                   "--host", "0.0.0.0", "--port", str(PORT), "--key", "/tmp/public.pem",
                   "--allow-host", a.address, "--allow-host", b.address]  # fmt: skip
        self.operator = a.start(command, self._env | self._tls["a"] | {
            "G2D_ADMIN_TOKEN": self._token}, self._log)  # fmt: skip
        until = time.monotonic() + 400
        while " is live at " not in self.text():
            if self.operator.poll() is not None or time.monotonic() > until:
                raise OSError(f"the service did not start: {self.text()[-3000:]}")
            time.sleep(0.5)
        for host in self.hosts:
            self._ask_from(host)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def _make_vault(self, host: Host) -> None:
        """Make a signed vault; its private key lies beside it, on that host alone."""
        key, there = SigningKey.generate(), host.disk / "signing.pem"
        key.write(there)
        key.public.write(host.disk / "public.pem")
        settings = build(Settings, {**SMALL, "signing": {"key": str(there)}}, "benchmarks")
        with g2d.Defence.build("digits", host.disk / "vault", settings, engine=SerialEngine()) as d:
            d.generate()
        with Vault.open(host.disk / "vault", write=True) as vault:
            stored = Settings.from_toml(vault.settings_text)
            vault.write_settings(stored.override(signing__key="/tmp/signing.pem").to_toml())

    # --- hosts that come and go ------------------------------------------------------------------

    def join(self, host: Host) -> None:
        """Start Ray on a host, the first as the head, and its client again if it had one."""
        if host.name not in self._tls:
            self._tls[host.name] = self._authority.issue(
                host.disk / "tls", host.address, there="/tmp/tls"
            )  # fmt: skip
        head = host is self.hosts[0]
        role = (["--head", f"--port={RAY}", "--include-dashboard=false", "--no-monitor"]
                if head else [f"--address={self._head}"])  # fmt: skip
        command = [*_RAY, *role, f"--node-ip-address={host.address}",
                   f"--num-cpus={2 if head else 1}", "--include-log-monitor=false",
                   f"--object-store-memory={200 << 20}"]  # fmt: skip
        for _ in range(_TRIES):
            if self._starts(host, command):
                break
        else:
            raise OSError(f"Ray does not start on {host.name}: {self.text()[-2000:]}")
        if host.name in self._clients:
            self._ask_from(host)

    def _starts(self, host: Host, command: Sequence[str]) -> bool:
        """Whether Ray is up; on a busy machine it gives itself up after 15 seconds."""
        with (self._folder / f"ray-{host.name}").open("wb") as log:
            started = host.start(command, self._env | self._tls[host.name], log)
        while started.poll() is None:
            if b"Ray runtime started" in (self._folder / f"ray-{host.name}").read_bytes():
                return True
            time.sleep(0.5)
        return False

    def _ask_from(self, host: Host) -> None:
        """Start a client there; what it writes goes to no disk of the host's."""
        command = [sys.executable, asking.__file__, "127.0.0.1", str(PORT)]
        with self._file(host).open("ab") as out:
            self._clients[host.name] = host.start(command, {}, out)

    def _file(self, host: Host) -> Path:
        return self._folder / f"answers-{host.name}.jsonl"

    def coordinator(self) -> psutil.Process:
        """The process of the coordinator's actor."""
        for process in self.hosts[0].processes():
            with contextlib.suppress(psutil.Error):
                if "CoordinatorActor" in " ".join(process.cmdline()):
                    return process
        raise OSError("there is no coordinator")

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """Ask host a's node from there; status and JSON."""
        command = ["curl", "--silent", "--max-time", "60", "--request", method, "--header",
                   f"authorization: Bearer {self._token}", "--write-out", "\n%{http_code}",
                   f"http://127.0.0.1:{PORT}{path}"]  # fmt: skip
        with tempfile.TemporaryFile() as out:
            self.hosts[0].start(command, {"PATH": os.environ["PATH"]}, out).wait()
            out.seek(0)
            body, _, status = out.read().decode().rpartition("\n")
        try:
            return int(status), json.loads(body or "{}")
        except ValueError:
            return int(status or 0), {"text": body[:300]}

    def live(self) -> int:
        """The number that the coordinator says is live."""
        until = time.monotonic() + 120
        while True:
            status, told = self.ask("/status")
            if status == 200:
                return int(told["rotation"]["generation"])
            if time.monotonic() > until:
                raise TimeoutError(f"no status: {status} {told}")
            time.sleep(0.5)

    def rotate(self) -> int:
        """Rotate once; the number that is live then."""
        before, until = self.live(), time.monotonic() + 180
        while time.monotonic() < until:
            status, told = self.ask("/admin/rotate", "POST")
            if status == 200:
                return int(told["generation"])
            time.sleep(0.5)  # 202: still at it; 409, 503: refused, or the coordinator is away
            if status == 202 and (now := self.live()) > before:
                return now
        raise TimeoutError(f"no rotation: {status} {told}; {self.text()[-2000:]}")

    def since(self, host: Host, when: float) -> list[Answer]:
        """What a host's client was answered to what it asked since."""
        return [one for one in read(self._file(host)) if one.asked >= when]

    def await_generation(self, number: int) -> None:
        """Wait until both clients are answered from a generation, or a newer one."""
        began, until = time.time(), time.monotonic() + 240
        while not all(any(one.generation >= number for one in self.since(host, began))
                      for host in self.hosts):  # fmt: skip
            if time.monotonic() > until:
                raise TimeoutError(f"generation {number} does not answer; {self.text()[-2000:]}")
            time.sleep(0.3)

    # --- what is known ---------------------------------------------------------------------------

    def text(self) -> str:
        """What operator and Ray have printed."""
        return (self._folder / "log").read_text(errors="replace")

    def where(self) -> dict[str, str]:
        """Which host each replica is on."""
        _, told = self.ask("/status")
        rows = told["rotation"]["cluster"]["replicas"]
        return {row["replica"]: row["node"] for row in rows}

    def swaps(self) -> list[tuple[int, float]]:
        """When each generation was committed, by what coordinators wrote themselves."""
        found: dict[int, float] = {}
        for file in (self.hosts[0].disk / "ray").glob("session_*/logs/worker-*.err"):
            for line in file.read_text(errors="replace").splitlines():
                if '"event":"committed"' in line or '"event":"swap"' in line:
                    said = json.loads(line[line.index("{") :])
                    at = datetime.fromisoformat(said["at"]).timestamp()
                    number = int(said["generation"])
                    found[number] = min(at, found.get(number, at))
        return sorted(found.items())

    def gaps(self, since: float) -> dict[str, float]:
        """The longest time without an answer at each host, up to the first that comes after it."""
        found = {}
        for host in self.hosts:
            good = [since, *(one.got for one in self.since(host, since) if one.status == 200)]
            longest = max((b - a for a, b in pairwise(good)), default=0.0)
            found[f"{host.name}_without_answers_s"] = round(longest, 2)
        return found

    def strangers(self) -> dict[str, str]:
        """What g2d says on host b to who has not what the nodes have."""
        b = self.hosts[1]
        foreign = Authority("another").issue(b.disk / "foreign", b.address, there="/tmp/foreign")
        env = {key: value for key, value in self._env.items() if key != "RAY_AUTH_TOKEN"}
        mine, token = self._tls[b.name], {"RAY_AUTH_TOKEN": "f" * 64}
        kinds = {"no TLS": self._env, "a foreign certificate": self._env | foreign,
                 "a wrong token": env | mine | token}  # fmt: skip
        code = _STRANGER.format(address=self._head)
        return {
            kind: self._says(b, [sys.executable, "-c", code], its) for kind, its in kinds.items()
        }

    def _says(self, host: Host, command: Sequence[str], env: dict[str, str]) -> str:
        with tempfile.TemporaryFile() as out:
            process = host.start(command, env, out)
            process.wait(300)
            out.seek(0)
            return " ".join(out.read().decode(errors="replace").split())

    def listeners(self, host: Host) -> list[str]:
        """Who listens on a host, on which addresses, and what each speaks."""
        assert host.init is not None
        inside = ["nsenter", "--target", str(host.init.pid), "--net", "ss", "-Hltnp"]
        told = subprocess.run(inside, capture_output=True, text=True, check=True).stdout
        bound: dict[int, tuple[str, str]] = {}
        for line in told.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            name = line.split('users:(("')[-1].split('"')[0].split(".")[0]
            bound[int(port)] = (name, address.replace("[::ffff:", "").rstrip("]"))
        command = [sys.executable, "-SE", probing.__file__, host.address, *map(str, sorted(bound))]
        spoken = json.loads(self._says(host, command, {}))
        return sorted(
            {f"{name} on {ip}: {spoken[str(port)]}" for port, (name, ip) in bound.items()}
        )

    def secrets_on(self, host: Host) -> list[str]:
        """Which secrets of the vault's host are in a file or an environment of another's."""
        key = (self.hosts[0].disk / "signing.pem").read_text().splitlines()[1]
        known = {"the private key": key.encode(), "the admin token": self._token.encode()}
        found = set()
        for process in host.processes():
            with contextlib.suppress(OSError, psutil.Error):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                found |= {name for name, secret in known.items() if secret in environment}
        for file in host.disk.rglob("*"):
            if file.is_file() and not file.is_symlink():
                data = file.read_bytes()
                found |= {name for name, secret in known.items() if secret in data}
        return sorted(found)
