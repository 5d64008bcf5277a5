"""SIGKILL at random moments of population, fit and generate: nothing accepted is ever lost.

    python -m benchmarks.hostile.storm               # 54 kills, two minutes
    python -m benchmarks.hostile.storm --kills 9     # what the tests do

A tiny vault of digits. A third of the kills each: while members are trained, while the generator is
fitted anew, while generations are made for ever. After each the vault is opened as the next process
would, and all of it is verified (`g2d.verify`): no complete member, no accepted generation and
nothing that was acknowledged may be lost or changed, and the live generation never goes back.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import tempfile
import time
from pathlib import Path

import g2d
from g2d.core.engine import SerialEngine
from g2d.settings import Settings, build
from g2d.vault.vault import Vault


def work(path: Path, settings: Settings, pipe: int, phase: str) -> None:
    """What a user's process does: go on with whatever is missing, then generate for ever."""
    with g2d.Defence.create("digits", path, settings) as defence:
        if phase != "population":
            defence.fit(again=phase == "fit")
        else:
            defence.populate(SerialEngine())
        while phase == "generate":
            (made,) = defence.generate()
            os.write(pipe, f"{made.number} {made.manifest['files']['weights']}\n".encode())


def killed(path: Path, settings: Settings, phase: str, after: float, hear: bool = False) -> str:
    """Fork a worker (torch is imported already) and kill it `after` seconds; what it said.

    With `hear`, the seconds begin when it says something, however long that takes.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            work(path, settings, writer, phase)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        if hear:
            select.select([said], [], [])
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return said.read()


def contents(path: Path) -> tuple[dict[int, str], dict[int, str], int]:
    """Members, generations and what is live, as the next process sees it; all is verified."""
    with Vault.open(path, write=True) as vault:
        members = {e.index: e.files["weights"] for e in vault.entries("member")}
        generations = {g.number: g.files["weights"] for g in vault.generations()}
        live = vault.live()
    assert g2d.verify(path) == []
    return members, generations, live or 0


def empty(path: Path, settings: Settings) -> Path:
    """A vault whose population of twelve is yet to be trained."""
    wanted = settings.override(
        population__members=12, population__fork_steps=20, task__eps=0.15
    )  # fmt: skip
    Vault.create(path, wanted.to_toml()).close()
    return path


def of(path: Path) -> Settings:
    """A vault's settings."""
    return Settings.from_vault((path / "task.toml").read_text())


def storm_of_members(path: Path, kills: int, chance: random.Random) -> None:
    """Kill a population while it grows; the rest of it is made at the end."""
    members: dict[int, str] = {}
    for _ in range(kills):
        killed(path, of(path), "population", chance.uniform(0.05, 0.9))
        now, _, _ = contents(path)
        assert members.items() <= now.items(), "a complete member was lost or changed"
        members = now
    with g2d.Defence.create("digits", path, of(path)) as defence:
        defence.populate(SerialEngine())
    now, _, _ = contents(path)
    assert len(now) == of(path).population.members
    assert members.items() <= now.items()


def storm_of_fits(path: Path, kills: int, chance: random.Random) -> None:
    """Kill while the generator is fitted anew; the old one or the new one is there."""
    for _ in range(kills):
        killed(path, of(path), "fit", chance.uniform(0.05, 2.0))
        assert contents(path)[2] == 1
        with g2d.Defence.open(path) as defence:
            assert defence.generator.codec.size > 0


def storm_of_generations(path: Path, kills: int, chance: random.Random) -> int:
    """Kill while generations are made; how many were acknowledged. Half of the kills come early."""
    (_, accepted, live), told = contents(path), 0
    for turn in range(kills):
        said = killed(path, of(path), "generate", chance.uniform(0.0, 0.6), hear=turn % 2 == 0)
        _, now, alive = contents(path)
        assert accepted.items() <= now.items(), "an accepted generation was lost or changed"
        assert alive >= live, "the live generation went back"
        for line in said.splitlines():
            number, digest = line.split()
            assert now[int(number)] == digest, "an acknowledged generation was lost"
            told += 1
        accepted, live = now, alive
    assert sorted(accepted) == list(range(1, len(accepted) + 1))
    return told


def storm(populated: Path, growing: Path, kills: int, seed: int = 7) -> int:
    """All three, `kills` in all; how many generations were acknowledged."""
    chance = random.Random(seed)
    storm_of_members(growing, kills // 3, chance)
    storm_of_fits(populated, kills // 3, chance)
    return storm_of_generations(populated, kills - 2 * (kills // 3), chance)


def main() -> None:
    from benchmarks.serving.process import TINY

    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--kills", type=int, default=54)
    p.add_argument("--seed", type=int, default=7)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = build(Settings, TINY, "the storm")
        with g2d.Defence.build("digits", folder / "vault", settings):
            pass
        growing = empty(folder / "growing", settings)
        told = storm(folder / "vault", growing, a.kills, a.seed)
    print(f"{a.kills} kills; {told} generations acknowledged, none lost")


if __name__ == "__main__":
    main()
