"""Ways to tamper with a signed generation on disk, drawn from a seed; tests and benchmarks share.

Each gets the folder of generation 4, beside which 1 to 3 lie, all signed, and `key` that signed.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
from pathlib import Path

from g2d.vault.signing import SigningKey
from g2d.vault.vault import SIGNATURE


def damage_bits(folder: Path, chance: random.Random, key: SigningKey) -> None:
    path = chance.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def damage_length(folder: Path, chance: random.Random, key: SigningKey) -> None:
    path = chance.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    cut = chance.randrange(len(data))
    path.write_bytes(chance.choice((data[:cut], data + b"\n", b"", data[cut:] + data[:cut] + b"x")))


def damage_by_removal(folder: Path, chance: random.Random, key: SigningKey) -> None:
    path = chance.choice(sorted(folder.iterdir()))
    path.unlink()
    chance.choice((lambda: None, path.mkdir, lambda: os.mkfifo(path)))()


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def damage_by_swap_inside(folder: Path, chance: random.Random, key: SigningKey) -> None:
    swap(*chance.sample(sorted(folder.iterdir()), 2))


def damage_by_swap_between(folder: Path, chance: random.Random, key: SigningKey) -> None:
    """One file, several or all of another generation's, which is signed and valid itself."""
    other = folder.with_name(f"{chance.choice((1, 2, 3)):06d}")
    names = sorted(path.name for path in folder.iterdir())
    for name in chance.choice((names, chance.sample(names, chance.randint(1, len(names) - 1)))):
        swap(folder / name, other / name)


def damage_manifest(folder: Path, chance: random.Random, key: SigningKey) -> None:
    """The same meaning in other bytes, or another meaning; half of them signed by a stranger."""
    path = folder / "manifest.json"
    signed = json.loads(path.read_text())
    keys = list(signed)
    chance.shuffle(keys)
    text = chance.choice(
        [
            json.dumps({name: signed[name] for name in keys}, indent=2),
            json.dumps(signed, sort_keys=True),
            path.read_text() + " ",
            path.read_text().replace('"number"', '"number": 99, "number"'),
            json.dumps(signed | {"exposed": signed["exposed"][::-1]}, sort_keys=True, indent=2),
            json.dumps(signed | {"number": 99}, sort_keys=True, indent=2),
            json.dumps(signed | {"expires": 1e12}, sort_keys=True, indent=2),
            json.dumps(signed | {"extra": 1}, sort_keys=True, indent=2),
        ]
    )
    path.write_text(text)
    if chance.random() < 0.5:
        (folder / SIGNATURE).write_bytes(SigningKey.generate().sign(path.read_bytes()))


def damage_signature(folder: Path, chance: random.Random, key: SigningKey) -> None:
    """By strangers, for other purposes, and s + L, the second solution of the equation."""
    manifest, path = (folder / "manifest.json").read_bytes(), folder / SIGNATURE
    signature = path.read_bytes()
    order = 2**252 + 27742317777372353535851937790883648493
    shifted = int.from_bytes(signature[32:], "little") + order
    path.write_bytes(
        chance.choice(
            [
                SigningKey.generate().sign(manifest),
                key._key.sign(manifest),  # right key, without our context
                key.sign(manifest + b"\0"),
                signature[:32] + shifted.to_bytes(32, "little"),
                signature * 2,
                bytes(64),
                chance.randbytes(64),
            ]
        )
    )


DAMAGES = [
    damage_bits, damage_bits, damage_length, damage_by_removal, damage_by_swap_inside,
    damage_by_swap_between, damage_manifest, damage_signature,
]  # fmt: skip


def with_ledger_in_step(ledger: sqlite3.Connection, folder: Path) -> None:
    """An attacker who writes the folder writes the ledger too: make it agree where it can."""
    if not (folder / "manifest.json").is_file():
        return
    try:
        text = (folder / "manifest.json").read_text()
        signed = json.loads(text)
        values = (json.dumps(signed["files"]), text, signed["created"])
    except (ValueError, KeyError):
        return
    with ledger:
        ledger.execute(
            "UPDATE generations SET files = ?, manifest = ?, created = ? WHERE number = 4", values
        )


def restore(ledger: sqlite3.Connection, spare: dict[Path, bytes], rows: list) -> None:
    """Put back files and the ledger's rows of generations."""
    for path, data in spare.items():
        if path.is_dir():
            path.rmdir()
        elif not path.is_file():
            path.unlink(missing_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
    if ledger.execute("SELECT * FROM generations").fetchall() != rows:
        with ledger:
            ledger.executemany("INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?)", rows)
