"""Hosts on one machine: namespaces of Linux, with a network, a disk, names and processes each.

A host is a network namespace whose cable goes to a switch (a bridge in a namespace of its own), a
mount namespace with its own `/tmp` and `/dev/shm`, and namespaces of processes and of the host's
name. It can lose its network (the switch's port goes down: packets vanish, nobody is told) and its
power (its first process is killed, and with it all others). Needs root and `ip`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

# bash reaps what loses its parent; the mounts are seen by this host alone.
_INIT = """
hostname "$0"; mount --make-rprivate /; mount --bind "$1" /tmp; mount -t tmpfs shm /dev/shm
echo up > /tmp/.up; sleep infinity & wait
"""


def why_not() -> str:
    """Why hosts cannot be made here; "" if they can."""
    missing = [tool for tool in ("ip", "unshare", "nsenter", "mount") if not shutil.which(tool)]
    if missing:
        return f"needs {' and '.join(missing)} (Debian: iproute2, util-linux, mount)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    name = f"g2d-try-{os.getpid()}"
    tried = _ip("netns", "add", name, check=False)
    _ip("netns", "delete", name, check=False)
    return f"network namespaces are not permitted: {tried.stderr.strip()}" * bool(tried.returncode)


class Host:
    """One host; `run` and `start` do something there."""

    def __init__(self, name: str, address: str, switch: str, folder: Path) -> None:
        self.name, self.address, self._switch = name, address, switch
        self.space = f"{switch}-{name}"
        self.disk = folder / name
        self.init: psutil.Process | None = None
        self._started: list[subprocess.Popen[bytes]] = []

    def connect(self) -> None:
        """Lay the cable."""
        _ip("netns", "add", self.space)
        _ip("link", "add", "name", "eth0", "netns", self.space, "type", "veth",
            "peer", "name", self.name, "netns", self._switch)  # fmt: skip
        _ip("-n", self._switch, "link", "set", "dev", self.name, "master", "switch", "up")
        _ip("-n", self.space, "address", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", self.space, "link", "set", "dev", link, "up")

    def boot(self) -> None:
        """Switch the host on, with the disk that it has."""
        self.disk.mkdir(exist_ok=True)
        self.disk.chmod(0o1777)
        (self.disk / ".up").unlink(missing_ok=True)
        outer = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "unshare", "--mount", "--uts", "--pid", "--fork",
             "--kill-child", "--mount-proc", "bash", "-c", _INIT, self.name, str(self.disk)],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 60
        while not (self.disk / ".up").exists():
            if outer.poll() is not None or time.monotonic() > until:
                raise OSError(f"host {self.name} does not come up")
            time.sleep(0.05)
        self._outer = outer
        (self.init,) = psutil.Process(outer.pid).children()

    def cut_power(self) -> None:
        """End every process of the host at once; its disk stays."""
        if self.init is not None:
            with contextlib.suppress(psutil.Error):
                self.init.kill()
            for process in (self._outer, *self._started):
                process.wait(60)
            self.init, self._started = None, []

    def set_network(self, up: bool) -> None:
        """Pull the cable out of the switch, or put it back."""
        _ip("-n", self._switch, "link", "set", "dev", self.name, "up" if up else "down")

    def start(
        self, command: Sequence[str], env: Mapping[str, str], log: IO[Any]
    ) -> subprocess.Popen[bytes]:
        """Start a process there."""
        assert self.init is not None
        enter = ["nsenter", "--target", str(self.init.pid), "--mount", "--uts", "--net", "--pid"]
        started = subprocess.Popen(
            [*enter, "--", *command], env=dict(env), cwd="/", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        self._started.append(started)
        return started

    def processes(self) -> list[psutil.Process]:
        """Every process that its first one is an ancestor of, or that was entered into it."""
        found = []
        assert self.init is not None
        space = os.readlink(f"/proc/{self.init.pid}/ns/pid")
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == space:
                    found.append(process)
        return found


@contextlib.contextmanager
def hosts(names: Sequence[str], folder: Path) -> Iterator[list[Host]]:
    """Hosts at one switch, 10.77.0.1 and on; all is taken away afterwards."""
    switch = f"g2d{os.getpid()}"
    made = [Host(name, f"10.77.0.{i + 1}", switch, folder) for i, name in enumerate(names)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "name", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "dev", "switch", "up")
        for host in made:
            host.connect()
            host.boot()
        yield made
    finally:
        for host in made:
            host.cut_power()
            _ip("netns", "delete", host.space, check=False)
        _ip("netns", "delete", switch, check=False)


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done
