"""SIGKILL at random moments of population, fit and generate: nothing accepted is ever lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import g2d
from g2d.core.engine import SerialEngine
from g2d.settings import Settings
from g2d.vault.vault import Vault

KILLS = 54


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


def started(path: Path, settings: Settings, phase: str) -> tuple[int, int]:
    """Fork a worker (torch is imported already); its process number, and where it is heard."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            work(path, settings, writer, phase)
        finally:
            os._exit(0)
    os.close(writer)
    return child, reader


def ended(child: int, reader: int) -> str:
    """Kill a worker; what it said that was not read yet."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        return said.read()


def killed(path: Path, settings: Settings, phase: str, after: float) -> str:
    """Kill a worker after some seconds; what it said."""
    child, reader = started(path, settings, phase)
    time.sleep(after)
    return ended(child, reader)


def first_generation(path: Path, settings: Settings) -> tuple[float, str]:
    """Seconds until a worker has made a generation (machines differ), and what it said."""
    began = time.monotonic()
    child, reader = started(path, settings, "generate")
    said = os.read(reader, 4096).decode()
    assert said, "the worker ended without a generation"
    took = time.monotonic() - began
    return took, said + ended(child, reader)


def contents(path: Path) -> tuple[dict[int, str], dict[int, str], int | None]:
    """Open the vault as the next process would; everything in it is verified."""
    with Vault.open(path, write=True) as vault:
        members = {e.index: e.files["weights"] for e in vault.entries("member")}
        generations = {g.number: g.files["weights"] for g in vault.generations()}
        live = vault.live()
    assert g2d.verify(path) == []
    return members, generations, live


@pytest.mark.slow
def test_kill_storm(tmp_path, tiny_settings, tiny_vault):
    chance = random.Random(7)
    settings = tiny_settings.override(population__members=12, population__fork_steps=20)
    growing = tmp_path / "growing"
    Vault.create(growing, settings.override(task__eps=0.15).to_toml()).close()
    settings = Settings.from_toml((growing / "task.toml").read_text())
    members: dict[int, str] = {}
    for _ in range(KILLS // 3):
        killed(growing, settings, "population", chance.uniform(0.05, 0.9))
        now, _, _ = contents(growing)
        assert members.items() <= now.items(), "a complete member was lost or changed"
        members = now

    vault = tmp_path / "vault"
    shutil.copytree(tiny_vault, vault)
    kept = Settings.from_toml((vault / "task.toml").read_text())
    for _ in range(KILLS // 3):
        killed(vault, kept, "fit", chance.uniform(0.05, 2.0))
        assert contents(vault)[2] == 1
        with g2d.Defence.open(vault) as defence:
            assert defence.generator.codec.size > 0

    accepted, live = contents(vault)[1], 1
    told = 0
    pace, said = first_generation(vault, kept)
    for turn in range(KILLS // 3):
        if turn:
            said = killed(vault, kept, "generate", chance.uniform(0.3, 3.0) * pace)
        _, now, alive = contents(vault)
        assert accepted.items() <= now.items(), "an accepted generation was lost or changed"
        assert alive is not None
        assert alive >= live, "the live generation went back"
        for line in said.splitlines():
            number, digest = line.split()
            assert now[int(number)] == digest, "an acknowledged generation was lost"
            told += 1
        accepted, live = now, alive
    assert told > 5, "the storm left no time to generate anything"
    assert sorted(accepted) == list(range(1, len(accepted) + 1))

    with g2d.Defence.create("digits", growing, settings) as defence:
        defence.populate(SerialEngine())
        assert len(defence.vault.entries("member")) == 12
    assert members.items() <= contents(growing)[0].items()
