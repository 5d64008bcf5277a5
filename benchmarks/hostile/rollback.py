"""A vault that goes back: is an older generation ever served as if nothing had happened?

    python -m benchmarks.hostile.rollback                # eighteen ways, two minutes

A signed vault of digits; generation 4 is live, and a copy was taken when 2 was. For each way a copy
of the vault, with a state folder of its own, is put back, and then served with `g2d serve`'s own
defaults and the public key. Most have to end the start with a line that names `g2d accept`; those
that happen to a running service, or to its clock, have to raise an alarm and make it not ready.
Whatever was newer has to lie there still. A control, untouched, has to be served and ready.
Everybody who attacks here can write the vault; some can write the state folder, too. One who puts
both back to the same moment is not found, nor can he be without hardware. Writes
results/rollback.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import g2d
from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.serving.process import QUICK, Server, copy_vault, make_key, make_vault
from g2d.vault.mark import FileMark
from g2d.vault.vault import Vault

OLD, LIVE = 2, 4
PATIENCE = 60.0  # seconds for an alarm


@dataclass
class Scene:
    """A vault, what it was before, and where its mark lies."""

    vault: Path
    old: Path
    state: Path
    public: Path
    private: Path

    @property
    def mark(self) -> FileMark:
        with Vault.open(self.vault) as opened:
            return FileMark(self.vault, opened.identity, self.state)

    def say(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.vault / "ledger.sqlite")) as ledger, ledger:
            for statement in statements:
                ledger.execute(statement)

    def put_back(self) -> None:
        for part in ("generations", "ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
            place, before = self.vault / part, self.old / part
            if place.is_dir():
                shutil.rmtree(place)
                shutil.copytree(before, place)
            else:
                place.unlink(missing_ok=True)
                if before.exists():
                    shutil.copy2(before, place)


# --- ways: before a start ------------------------------------------------------------------------


def untouched(scene: Scene) -> None:
    """The control."""


def exposures_deleted(scene: Scene) -> None:
    scene.say(f"DELETE FROM exposures WHERE number > {OLD}")


def rows_deleted(scene: Scene) -> None:
    exposures_deleted(scene)
    scene.say(f"DELETE FROM generations WHERE number > {OLD}")


def kept_row_deleted(scene: Scene) -> None:
    with g2d.Defence.open(scene.vault) as defence:
        defence.generate(activate=False)
    scene.say(f"DELETE FROM generations WHERE number > {LIVE}")


def older_ledger(scene: Scene) -> None:
    shutil.copy2(scene.old / "ledger.sqlite", scene.vault)
    for end in ("-wal", "-shm"):
        (scene.vault / f"ledger.sqlite{end}").unlink(missing_ok=True)


def whole_folder(scene: Scene) -> None:
    scene.put_back()


def link_to_a_backup(scene: Scene) -> None:
    scene.vault.rename(scene.vault.with_name("aside"))
    scene.vault.symlink_to(scene.old)


def identity_wiped(scene: Scene) -> None:
    scene.put_back()
    scene.say("DROP TABLE identity", "DROP TABLE marked")


def identity_replaced(scene: Scene) -> None:
    scene.put_back()
    scene.say("UPDATE identity SET id = '0123456789abcdef0123456789abcdef'")


def another_history(scene: Scene) -> None:
    with g2d.Defence.open(scene.old) as defence:
        defence.generate(LIVE - OLD)
    scene.put_back()


def newest_folder_replaced(scene: Scene) -> None:
    folder = scene.vault / "generations"
    shutil.rmtree(folder / f"{LIVE:06d}")
    shutil.copytree(folder / f"{OLD:06d}", folder / f"{LIVE:06d}")


def mark_deleted(scene: Scene) -> None:
    file = scene.mark.file
    scene.put_back()
    file.unlink()


def state_deleted(scene: Scene) -> None:
    shutil.rmtree(scene.state)
    scene.put_back()


def state_deleted_and_note_wiped(scene: Scene) -> None:
    shutil.rmtree(scene.state)
    scene.put_back()
    scene.say("DROP TABLE marked")  # the signed manifest says it, too


def mark_damaged(scene: Scene) -> None:
    file = scene.mark.file
    scene.put_back()
    file.write_text("{}")


def mark_of_another(scene: Scene) -> None:
    file = scene.mark.file
    scene.put_back()
    mark = replace(scene.mark.read(), live=OLD, last=OLD, digest="0" * 64)
    file.unlink()
    scene.mark.reset(mark)


def clock_back(scene: Scene) -> None:
    """As if the newest moment that was seen were a day ahead: the same to who reads the clock."""
    mark = scene.mark.read()
    scene.mark.advance(replace(mark, time=time.time() + 86_400))


# --- ways: while it runs -------------------------------------------------------------------------


def ledger_put_back(scene: Scene, server: Server, others: list[Server]) -> Server:
    exposures_deleted(scene)
    return server


def two_services(scene: Scene, server: Server, others: list[Server]) -> Server:
    """Two on one vault: when the one that has the worker rotates, the other must not serve on."""
    second = Server(scene.vault, scene.vault.with_suffix(".2.log"), "--key", str(scene.public))
    others.append(second)
    second.ready()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for one, other in ((server, second), (second, server)):
            one.ask("/admin/rotate", "POST")  # refused by the one whose worker has no lock
            if one.rotation()["generation"] > LIVE:
                return other
    return second


STARTS = [
    exposures_deleted, rows_deleted, kept_row_deleted, older_ledger, whole_folder, link_to_a_backup,
    identity_wiped, identity_replaced, another_history, newest_folder_replaced, mark_deleted,
    state_deleted, state_deleted_and_note_wiped, mark_damaged, mark_of_another, clock_back,
]  # fmt: skip
WHILE = [ledger_put_back, two_services]


# --- judging -------------------------------------------------------------------------------------


def readiness(server: Server) -> int:
    """The status of `/v2/health/ready`."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.port}/v2/health/ready", timeout=10
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def outcome(
    scene: Scene, during: Callable[[Scene, Server, list[Server]], Server] | None
) -> dict[str, Any]:
    """Serve it; what became of it, which generation it answered from, what it said."""
    log = scene.vault.with_suffix(".log")
    server = first = Server(scene.vault, log, "--key", str(scene.public))
    others: list[Server] = []
    try:
        try:
            server.ready()
        except SystemExit:
            lines = [line for line in log.read_text().splitlines() if line.startswith("error:")]
            return {"outcome": "refused", "said": lines[-1][:300] if lines else "", "live": None}
        if during:
            server = during(scene, first, others)
        until, found = time.monotonic() + PATIENCE, "served"
        while time.monotonic() < until and found == "served":
            live = server.rotation()["generation"]
            if during and live > LIVE:
                found = "followed"
            elif during is not two_services and readiness(server) == 503 and server.events("alarm"):
                found = "alarmed, not ready"
            elif during is None and not server.events("alarm") and readiness(server) == 200:
                break
            time.sleep(0.1)
        told = [event.get("text", "") for event in server.events("alarm")]
        return {"outcome": found, "said": told[0][:300] if told else "", "live": live}
    finally:
        for each in (first, *others):
            if each.process.poll() is None:
                each.kill()


def judge(whole: Scene, way: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """One way, on a copy of everything."""
    place = folder / way.__name__
    scene = Scene(place / "vault", place / "old", place / "state", whole.public, whole.private)
    os.environ["G2D_STATE"] = str(scene.state)
    place.mkdir()
    shutil.copytree(whole.state, scene.state)  # the same vault is known at other paths,
    copy_vault(whole.old, scene.old, whole.private)  # and at these from now on
    copy_vault(whole.vault, scene.vault, whole.private)
    during = way if way in WHILE else None
    if not during:
        way(scene)
    generations = scene.vault.resolve() / "generations"
    before = {item.name for item in generations.iterdir()}
    found = outcome(scene, during)
    lost = sorted(before - {item.name for item in generations.iterdir()})
    shutil.rmtree(place)
    print(way.__name__, found, flush=True)
    return found | {"lost": lost}


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    private, public = make_key(folder)
    whole = Scene(folder / "vault", folder / "old", folder / "whole-state", public, private)
    os.environ["G2D_STATE"] = str(whole.state)
    make_vault(whole.vault, QUICK, private)
    with g2d.Defence.open(whole.vault) as defence:
        defence.generate(OLD - 1)
    shutil.copytree(whole.vault, whole.old)
    with g2d.Defence.open(whole.vault) as defence:
        defence.generate(LIVE - OLD)
    ways = [way for way in (*STARTS, *WHILE) if not a.only or way.__name__ in a.only]
    found = {way.__name__: judge(whole, way, folder) for way in ways}
    control = judge(whole, untouched, folder)
    return record(a) | {"ways": found, "control": control}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached."""
    ways = result["ways"]
    good = ("refused", "alarmed, not ready", "followed")
    held = [name for name, one in ways.items() if one["outcome"] in good and not one["lost"]]
    missed = sorted(ways.keys() - held)
    reached = f"{len(held)} of {len(ways)}" + (f"; not: {', '.join(missed)}" if missed else "")
    control = f"{result['control']['outcome']}, generation {result['control']['live']}"
    return [
        ["a vault that goes back (rows, log, folder, backup, identity, history, mark, clock, while"
         " it runs): refused, or alarmed and not ready; a newer one committed elsewhere: followed;"
         " nothing newer deleted", f"{len(ways)} of {len(ways)}", reached],
        ["the same vault untouched", f"served, generation {LIVE}", control],
    ]  # fmt: skip


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--only", nargs="*", help="try these ways alone")
    command.carry_out("rollback", flags, measure, rows, "ways")


if __name__ == "__main__":
    main()
