"""Tampered generations against the serving side: is every one of them refused?

    python -m benchmarks.hostile.tampering               # 2,400 mutations, four minutes
    python -m benchmarks.hostile.tampering --cases 240   # a try

A vault of digits, signed with a key of `g2d keys new`; generation 2 is live, 4 is the next one. It
is read as the running service reads it: one `VaultLoader` with the public key, opened once. Every
seeded mutation meets it in one of two ways, in turn: tampered before the spare is loaded (`load`
has to refuse), or after (`verify`, just before the swap, has to, and the spare in memory has to be
unharmed). The mutations of files are those of tests/damages.py, half of them with the ledger
forged to match. Every hundredth case is a control: untouched, it has to load. The gates are open
(`serving_process.QUICK`): only refusals are judged. After that, `recovery`: a real `g2d serve` has
to go on rotating over damage on disk. Writes results/tampering.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import g2d
from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.hostile import recovery
from benchmarks.hostile.damages import DAMAGES, restore, with_ledger_in_step
from benchmarks.serving.process import QUICK, make_key, make_vault
from g2d.errors import VaultError
from g2d.service.loader import VaultLoader
from g2d.vault.signing import SigningKey, VerifyKey
from g2d.vault.vault import SIGNATURE

LIVE, NEXT = 2, 4
DAY = 86_400.0


@dataclass
class Scene:
    """The vault, its ledger as an attacker would write it, and what restores both."""

    vault: Path
    other: Path
    key: SigningKey
    ledger: sqlite3.Connection
    files: dict[Path, bytes]
    rows: list[Any]
    identity: str

    @property
    def folder(self) -> Path:
        """The next generation's."""
        return self.vault / "generations" / f"{NEXT:06d}"

    def changed(self) -> bool:
        """Whether a mutation changed anything: a list of one reversed, say, is no mutation."""
        if any(not p.is_file() or p.read_bytes() != data for p, data in self.files.items()):
            return True
        ((identity,),) = self.ledger.execute("SELECT id FROM identity")
        rows = self.ledger.execute("SELECT * FROM generations").fetchall()
        return rows != self.rows or identity != self.identity

    def mutate(self, mutation: Callable[[Scene, random.Random], int], chance: random.Random) -> int:
        """Draw until something has changed, or another number is asked for."""
        while (number := mutation(self, chance)) == NEXT and not self.changed():
            pass
        return number

    def restore(self) -> None:
        """Undo whatever a mutation did."""
        for path in (self.vault / "generations").glob("00000[5-9]"):
            shutil.rmtree(path)
        restore(self.ledger, self.files, self.rows)
        with self.ledger:
            self.ledger.execute("DELETE FROM generations WHERE number > 4")
            self.ledger.execute("UPDATE identity SET id = ?", (self.identity,))


def sign_anew(scene: Scene, key: SigningKey, **changes: Any) -> None:
    """Change the manifest and sign it, the ledger in step."""
    path = scene.folder / "manifest.json"
    signed = json.loads(path.read_text()) | {"signer": key.fingerprint} | changes
    path.write_text(json.dumps(signed, sort_keys=True, indent=2))
    (scene.folder / SIGNATURE).write_bytes(key.sign(path.read_bytes()))
    with_ledger_in_step(scene.ledger, scene.folder)


# --- mutations: each returns the number that is to be refused ------------------------------------


def files(scene: Scene, chance: random.Random) -> int:
    """Bits, lengths, removal, swaps, manifests, signatures: see tests/damages.py."""
    chance.choice(DAMAGES)(scene.folder, chance, scene.key)
    if chance.random() < 0.5:
        with_ledger_in_step(scene.ledger, scene.folder)
    return NEXT


def expired(scene: Scene, chance: random.Random) -> int:
    """Signed by the right key, and out of its time: over, or made in the future."""
    now, ago = time.time(), chance.uniform(1.0, 400 * DAY)
    times = chance.choice(({"expires": now - ago}, {"created": now + 3700 + ago}))
    sign_anew(scene, scene.key, **times)
    return NEXT


def unsigned(scene: Scene, chance: random.Random) -> int:
    """Without its signature, or with an empty or short one."""
    path = scene.folder / SIGNATURE
    if chance.random() < 0.5:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: chance.randrange(64)])
    return NEXT


def wrong_key(scene: Scene, chance: random.Random) -> int:
    """Everything right, but signed by a stranger; or by the stranger in our name."""
    stranger = SigningKey.generate()
    named = {} if chance.random() < 0.5 else {"signer": scene.key.fingerprint}
    sign_anew(scene, stranger, **named)
    return NEXT


def replay(scene: Scene, chance: random.Random) -> int:
    """An older valid generation: as it is, or under a new number with a row of its own."""
    old = chance.choice((1, LIVE))
    if chance.random() < 0.3:
        return old
    new = chance.choice((5, 6, 9))
    generations = scene.vault / "generations"
    old = chance.choice((1, 2, 3, 4))
    shutil.copytree(generations / f"{old:06d}", generations / f"{new:06d}")
    with scene.ledger:
        scene.ledger.execute(
            f"INSERT INTO generations SELECT {new}, files, manifest, created FROM generations"
            f" WHERE number = {old}"
        )
    return new


def reordered(scene: Scene, chance: random.Random) -> int:
    """Two whole generations exchanged, their rows with them."""
    other = scene.folder.with_name(f"{chance.choice((1, 2, 3)):06d}")
    aside = scene.folder.with_name("aside")
    for source, target in ((scene.folder, aside), (other, scene.folder), (aside, other)):
        source.rename(target)
    if chance.random() < 0.7:
        with_ledger_in_step(scene.ledger, scene.folder)
    return NEXT


def ledger(scene: Scene, chance: random.Random) -> int:
    """The next generation's row edited, or the vault's identity."""
    statements = (
        "UPDATE generations SET files = '{}' WHERE number = 4",
        "UPDATE generations SET files = replace(files, 'a', 'b') WHERE number = 4",
        "UPDATE generations SET files = 'not json' WHERE number = 4",
        "UPDATE generations SET manifest = 'null' WHERE number = 4",
        "UPDATE generations SET manifest = replace(manifest, '0', '1') WHERE number = 4",
        "UPDATE generations SET manifest = (SELECT manifest FROM generations WHERE number = 1)"
        " WHERE number = 4",
        "UPDATE generations SET created = created + 1e-3 WHERE number = 4",
        "DELETE FROM generations WHERE number = 4",
        f"UPDATE identity SET id = '{chance.randbytes(16).hex()}'",
    )
    with scene.ledger:
        scene.ledger.execute(chance.choice(statements))
    return NEXT


def another_vault(scene: Scene, chance: random.Random) -> int:
    """A generation of another vault that the same key signed."""
    shutil.rmtree(scene.folder)
    theirs = scene.other / "generations" / f"{chance.choice((1, 2, 3, 4)):06d}"
    shutil.copytree(theirs, scene.folder)
    with_ledger_in_step(scene.ledger, scene.folder)
    return NEXT


MUTATIONS: list[Callable[[Scene, random.Random], int]] = [
    files, files, files, files, files, expired, unsigned, wrong_key, replay, reordered, ledger,
    another_vault,
]  # fmt: skip


# --- judging -------------------------------------------------------------------------------------


def judge(act: Callable[[], Any]) -> str:
    """Whether it is refused, and why; "accepted" or "crash: .." where it is not."""
    try:
        act()
    except VaultError as error:
        return str(getattr(error, "reason", "unreadable"))
    except Exception as error:
        return f"crash: {type(error).__name__}"
    return "accepted"


def storm(scene: Scene, loader: VaultLoader, a: argparse.Namespace) -> dict[str, Any]:
    """Every case, and the controls among them."""
    chance, reasons = random.Random(a.seed), {m.__name__: Counter() for m in MUTATIONS}
    controls = harmed = moved = 0
    for case in range(a.cases):
        mutate = MUTATIONS[case % len(MUTATIONS)]
        warm = case // len(MUTATIONS) % 2 == 1
        spare = loader.load(NEXT, LIVE) if warm else None
        number = scene.mutate(mutate, chance)
        act = loader.verify if warm else loader.load
        reasons[mutate.__name__][judge(lambda n=number, act=act: act(n, LIVE))] += 1
        harmed += bool(spare and spare.check())
        moved += judge(lambda: loader.live() == LIVE or 1 / 0) != "accepted"
        scene.restore()
        if case % 100 == 0:
            controls += judge(lambda: loader.load(NEXT, LIVE)) != "accepted"
    return {"reasons": {name: dict(found) for name, found in reasons.items()},
            "spares_harmed": harmed, "live_moved": moved, "controls_refused": controls}  # fmt: skip


def others(scene: Scene, public: Path, folder: Path) -> dict[str, str]:
    """What has no seed: a key that nobody trusts, and a whole vault that was put back."""
    found = {}
    trusted = VerifyKey.read(public)
    stranger = SigningKey.generate().public
    found["another public key"] = judge(lambda: VaultLoader(scene.vault, "g2d", key=stranger))
    memory = folder / "served"
    with closing(VaultLoader(scene.vault, "g2d", key=trusted, served=memory)) as loader:
        loader.served(NEXT)
        found["vault put back"] = judge(loader.first)
    return found


def prepared(folder: Path, private: Path) -> Scene:
    """Two vaults of one key: 2 live, 3 and 4 kept."""
    vault, other, identities = folder / "vault", folder / "other", {}
    for path in (vault, other):
        make_vault(path, QUICK, private)
        with g2d.Defence.open(path) as defence:
            defence.generate()
            defence.generate(2, activate=False)
            identities[path] = defence.vault.identity
    connection = sqlite3.connect(vault / "ledger.sqlite")
    connection.execute("PRAGMA synchronous = OFF")  # thousands of commits
    rows = connection.execute("SELECT * FROM generations").fetchall()
    kept = {p: p.read_bytes() for p in (vault / "generations").rglob("*.*")}
    key, identity = SigningKey.read(private), identities[vault]
    return Scene(vault, other, key, connection, kept, rows, identity)


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    private, public = make_key(folder)
    scene = prepared(folder, private)
    began = time.time()
    with closing(VaultLoader(scene.vault, "g2d", key=VerifyKey.read(public))) as loader:
        found = storm(scene, loader, a)
    found["others"] = others(scene, public, folder)
    scene.ledger.close()
    every = sum((Counter(r) for r in found["reasons"].values()), Counter(found["others"].values()))
    crashes = sum(n for reason, n in every.items() if reason.startswith("crash"))
    return record(a) | found | {
        "cases": every.total(), "accepted": every["accepted"], "crashes": crashes,
        "histogram": dict(every.most_common()), "seconds": time.time() - began,
        "recovery": recovery.recovery(private, public, folder / "recovery"),
    }  # fmt: skip


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached. Also for docs/benchmarks/serving.md."""
    refused = result["cases"] - result["accepted"] - result["crashes"]
    why = ", ".join(f"{reason} {count}" for reason, count in result["histogram"].items())
    wrong = [result[key] for key in ("spares_harmed", "live_moved", "controls_refused")]
    return [
        [f"tamper cases refused, of {result['cases']:,} seeded mutations ({why})", "100 %",
         f"{100 * refused / result['cases']:.6g} %"],
        ["loaded spares harmed / live generation moved / untouched ones refused", "0 / 0 / 0",
         " / ".join(map(str, wrong))],
        *recovery.rows(result["recovery"]),
    ]  # fmt: skip


def main() -> None:
    flags = command.parser(__doc__)
    flags.add_argument("--cases", type=int, default=2400)
    flags.add_argument("--seed", type=int, default=4)
    command.carry_out("tampering", flags, measure, rows, "reasons")


if __name__ == "__main__":
    main()
