"""SIGKILL at random moments of sealing, unsealing, and writing into a sealed vault.

    python -m benchmarks.sealing.kills               # 100 kills, about two minutes
    python -m benchmarks.sealing.kills --kills 6     # what the tests do

A vault of random networks is sealed, written to and unsealed over and over by a process that is
killed. After each kill the vault is opened as the next process would: every file has to hold what
it held, a generation that was acknowledged has to be there, and nothing may be wrong but that
sealing or unsealing was begun. At last it is sealed to the end, and its folder is searched for
every block of 64 bytes of every network.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from benchmarks.common.command import carry_out, parser
from benchmarks.common.results import record
from benchmarks.sealing.scan import blocks_of, found_in, tensors_of
from g2d.protect.sealing import custodian, make_custodian
from g2d.vault.sealing import changing
from g2d.vault.vault import Vault
from g2d.vault.verify import verify

KILLS = 100
MEMBERS, SIZE = 6, 20_000
FILES = 5 + 2 * MEMBERS


def network(seed: int, size: int = SIZE) -> bytes:
    """A network of random weights as safetensors."""
    return save({"weight": np.random.default_rng(seed).normal(size=size).astype("f4")})


def make(path: Path, size: int = SIZE) -> None:
    """A plain vault: base, members with attacks, two generations."""
    with Vault.create(path, "[task]\n") as vault:
        vault.put("base", 0, {"weights": network(0, size)}, {})
        for index in range(MEMBERS):
            files = {"weights": network(10 + index, size), "attacks": network(50 + index, size)}
            vault.put("member", index, files, {})
        for number in (1, 2):
            files = {"weights": network(100 + number, size), "attacks": network(200, size)}
            vault.accept(files, {}, activate=True)


class Fuse:
    """A `Progress` that ends its own process by SIGKILL: some seconds after it was called so often.

    Not by the parent's clock: on a busy machine that would always kill the same moment. Half of the
    kills come at once, between two files, the others while something is written.
    """

    def __init__(self, calls: int, after: float) -> None:
        self.left, self.after = calls, after

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0 and self.after:
            threading.Timer(self.after, self.blow).start()
        elif self.left == 0:
            self.blow()

    def blow(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def work(path: Path, url: str, pipe: int, size: int, fuse: Fuse) -> None:
    """Seal, make a generation, unseal, make another, for ever; say what was accepted."""
    by = custodian(url)
    while True:
        with Vault.open(path, write=True) as vault:
            record = vault.sealing.record
            if record is not None and record.state != "sealing":
                changing.unseal(vault, by, fuse)
            else:
                changing.seal(vault, by, url, fuse)
            files = {"weights": network(101 + vault.last_number(), size)}
            made = vault.accept(files, {}, activate=True)
            os.write(pipe, f"{made.number}\n".encode())


def killed(path: Path, url: str, size: int, fuse: Fuse) -> list[int]:
    """Fork a worker that is killed on its way; which generations it said were accepted."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            work(path, url, writer, size, fuse)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as said:
        told = said.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the worker failed by itself"
    return [int(line) for line in told.splitlines()]


def check(path: Path, told: list[int], size: int) -> str:
    """Check what the next process sees; the state that the kill has left."""
    with Vault.open(path, write=True) as vault:
        record = vault.sealing.record
        for number in vault.numbers():
            assert vault.read_generation(number) == network(100 + number, size), "other weights"
        for entry in vault.entries("member"):
            assert vault.read(entry) == network(10 + entry.index, size), "another member"
        assert max(told, default=0) <= vault.last_number(), "an accepted generation is lost"
        assert vault.live() == vault.last_number()
    odd = {one.kind for one in verify(path)} - {"sealing", "unknown"}
    assert not odd, f"verify finds {odd}"
    return record.state if record else "plain"


def storm(folder: Path, kills: int, seed: int = 7, size: int = SIZE) -> dict[str, Any]:
    """Kill so many times; how often each state was left, and blocks of plaintext at the end.

    Raises:
        AssertionError: something was lost.
    """
    path, url = folder / "vault", f"file:{folder / 'custodian.key'}"
    make(path, size)
    make_custodian(url)
    chance, left = (
        random.Random(seed),
        dict.fromkeys(("plain", "sealing", "sealed", "unsealing"), 0),
    )
    for turn in range(kills):
        fuse = Fuse(chance.randint(1, 2 * FILES), chance.uniform(0.0, 0.02) * (turn % 2))
        left[check(path, killed(path, url, size, fuse), size)] += 1
    with Vault.open(path, write=True) as vault:
        changing.seal(vault, custodian(url), url)
        last = vault.last_number()
    assert verify(path) == []
    seeds = [0, 200, *range(10, 10 + MEMBERS), *range(50, 50 + MEMBERS), *range(101, 101 + last)]
    blocks = blocks_of(tensors_of(network(seed, size) for seed in seeds))
    lying = sum(found_in(path, blocks).values())
    return {"kills": kills, "left": left, "generations": last, "blocks": lying}


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole storm, which fails at the first loss."""
    return record(given) | storm(folder, given.kills, given.seed)


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table of targets."""
    left = ", ".join(f"{count} {state}" for state, count in result["left"].items())
    return [
        (
            "SIGKILL while sealing, unsealing, writing: lost",
            "0",
            f"0 of {result['kills']} ({left})",
        ),
        ("blocks of 64 bytes of plaintext in the sealed folder", "0", result["blocks"]),
    ]


def main() -> None:
    """Measure and keep."""
    flags = parser(__doc__)
    flags.add_argument("--kills", type=int, default=KILLS)
    flags.add_argument("--seed", type=int, default=7)
    carry_out("sealing-kills", flags, measure, rows)


if __name__ == "__main__":
    main()
