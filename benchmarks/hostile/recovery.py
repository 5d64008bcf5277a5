"""Damage on disk to a kept or an exposed generation: does a real `g2d serve` still rotate?

`tampering` runs this after its storm. A signed vault of digits, 1 and 2 exposed, 3 and 4 kept; the
gates count eight earlier generations and the generator remembers four, so that the worker reads
them all. For each damage a copy of the vault is served with `--key` and its worker, a
rotation every half second: generation 5, made after the damage, has to be live within PATIENCE,
the damaged one may never be swapped in, and the log has to name it.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import g2d
from benchmarks.serving.process import QUICK, Server, copy_vault, make_vault
from g2d.vault.vault import SIGNATURE

PATIENCE = 60.0  # seconds; the worker takes three to start
NEW = 5  # the first generation made after the damage
READS = QUICK | {
    "guidance": QUICK["guidance"] | {"memory": 4},
    "gates": QUICK["gates"] | {"history": 8},
}
TOLD = ("refused", "failed", "rejected", "alarm")


def flip(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[int, bool, Callable[[Path], None]]] = {
    "kept: a bit of its weights": (3, False, lambda folder: flip(folder / "weights.safetensors")),
    "kept: a bit of its manifest": (3, False, lambda folder: flip(folder / "manifest.json")),
    "kept: its folder gone": (3, False, shutil.rmtree),
    "kept: not signed": (4, False, lambda folder: (folder / SIGNATURE).unlink()),
    "exposed: a bit of its weights": (1, False, lambda f: flip(f / "weights.safetensors")),
    "exposed: a bit of its attacks": (1, False, lambda f: flip(f / "attacks.safetensors")),
    "exposed: its folder gone": (1, False, shutil.rmtree),
    "live: a bit of its weights": (2, True, lambda folder: flip(folder / "weights.safetensors")),
}
"""Which generation, whether it is damaged only once the service has loaded it, and how."""


def vault(path: Path, private: Path) -> Path:
    """Generations 1 and 2 exposed, 3 and 4 kept."""
    make_vault(path, READS, private)
    with g2d.Defence.open(path) as defence:
        defence.generate()
        defence.generate(2, activate=False)
    return path


def recover(whole: Path, name: str, keys: tuple[Path, Path], folder: Path) -> dict[str, Any]:
    """One damage: seconds until a generation made after it was live, and what the log says."""
    number, late, damage = DAMAGES[name]
    path = copy_vault(whole, folder / re.sub(r"\W+", "-", name), keys[0])
    place = path / "generations" / f"{number:06d}"
    if not late:
        damage(place)
    server = Server(path, path.with_suffix(".log"), "--every", "500ms", "--key", str(keys[1]))
    try:
        server.ready()
        if late:
            damage(place)
        began = time.monotonic()
        while (live := server.rotation()["generation"]) < NEW:
            if time.monotonic() - began > PATIENCE:
                break
            time.sleep(0.05)
        seconds = time.monotonic() - began
        assert server.stop() == 0, "SIGTERM must drain and exit 0"
    finally:
        if server.process.poll() is None:
            server.kill()
    told = [event for kind in TOLD for event in server.events(kind)]
    swaps = [event["generation"] for event in server.events("swap")]
    shutil.rmtree(path)
    return {
        "damaged": number, "live": live, "seconds": seconds if live >= NEW else None,
        "swaps": swaps, "served_damaged": number in swaps,
        "told": sum(names(event, number) for event in told),
        "events": [{key: e[key] for key in e if key != "at"} for e in told[:3]],
    }  # fmt: skip


def names(event: dict[str, Any], number: int) -> bool:
    """Whether an event of the log names a generation."""
    text = str(event.get("text", ""))
    return event.get("generation") == number or any(
        word in text for word in (f"eneration {number} ", f"{number:06d}")
    )


def recovery(private: Path, public: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Every damage, one after another."""
    folder.mkdir()
    whole, found = vault(folder / "whole", private), {}
    for name in DAMAGES:
        found[name] = recover(whole, name, (private, public), folder)
        print(name, {key: found[name][key] for key in ("seconds", "swaps", "told")}, flush=True)
    return found


def rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's row."""
    back = [one["seconds"] for one in found.values() if one["seconds"] is not None]
    never = [name for name, one in found.items() if one["seconds"] is None]
    silent = [name for name, one in found.items() if not one["told"]]
    served = [name for name, one in found.items() if one["served_damaged"]]
    parts = [f"{len(back)} of {len(found)}" + (f", within {max(back):.1f} s" if back else "")]
    wrong = {"no rotation": never, "not told": silent, "the damaged one served": served}
    parts += [f"{label}: {', '.join(names)}" for label, names in wrong.items() if names]
    return [[
        f"a kept, exposed or live generation damaged on disk ({len(found)} ways): `g2d serve` makes"
        " and serves a later one, never the damaged one, and says so",
        f"{len(found)} of {len(found)}", "; ".join(parts),
    ]]  # fmt: skip
