"""Ways to tamper with an audit log on disk, drawn from a seed; tests and benchmarks/hostile share.

Each gets a `Forger`: the log's files as lists of lines, another log of the same key, a stranger's
key. An attacker writes the files as he likes and has no audit key.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from g2d.protect.audit.places import segments
from g2d.protect.audit.records import (
    CHECKPOINT,
    GENESIS,
    Head,
    Record,
    sign_checkpoint,
    stamp,
)
from g2d.vault.keys import SigningKey


@dataclass
class Forger:
    """A log in memory, and what an attacker has; `write` puts the log back on disk."""

    path: Path
    files: list[Path]
    lines: list[list[bytes]]
    other: list[bytes]
    stranger: SigningKey
    chance: random.Random

    @classmethod
    def of(cls, path: Path, other: Path, stranger: SigningKey, chance: random.Random) -> Forger:
        """Read a log, and another one whose records may be spliced in."""
        files = segments(path)
        lines = [file.read_bytes().splitlines() for file in files]
        spliced = [line for file in segments(other) for line in file.read_bytes().splitlines()]
        return cls(path, files, lines, spliced, stranger, chance)

    def flat(self) -> list[bytes]:
        """All lines, oldest first."""
        return [line for lines in self.lines for line in lines]

    def put(self, flat: list[bytes]) -> None:
        """Write lines over the files, as long as each was; the last one takes what is left."""
        rest = list(flat)
        for file, lines in zip(self.files[:-1], self.lines[:-1], strict=True):
            part, rest = rest[: len(lines)], rest[len(lines) :]
            file.write_bytes(b"".join(line + b"\n" for line in part))
        self.files[-1].write_bytes(b"".join(line + b"\n" for line in rest))

    def restore(self) -> None:
        """Put everything back."""
        self.put(self.flat())


def flip(f: Forger) -> None:
    """One to eight bits of one file."""
    file = f.chance.choice(f.files)
    data = bytearray(file.read_bytes())
    for _ in range(f.chance.choice((1, 1, 2, 8))):
        data[f.chance.randrange(len(data))] ^= 1 << f.chance.randrange(8)
    file.write_bytes(data)


def edit(f: Forger) -> None:
    """Another fact, name, time or number in one record, in canonical form."""
    lines = f.flat()
    at = f.chance.randrange(len(lines))
    lines[at] = _edited(lines[at], f.chance).line()
    f.put(lines)


def remove(f: Forger) -> None:
    """One record, or a run of them."""
    lines = f.flat()
    at = f.chance.randrange(len(lines))
    del lines[at : at + f.chance.choice((1, 1, 2, 9))]
    f.put(lines)


def truncate(f: Forger) -> None:
    """Cut at a record, at a checkpoint, or anywhere."""
    lines = f.flat()
    ends = [n + 1 for n, line in enumerate(lines) if b'"audit.checkpoint"' in line][:-1]
    if f.chance.random() < 0.4:
        file = f.files[-1]
        data = file.read_bytes()
        file.write_bytes(data[: f.chance.randrange(len(data))])
    else:
        f.put(lines[: f.chance.choice((*ends, f.chance.randrange(len(lines))))])


def duplicate(f: Forger) -> None:
    """A record or a run of them once more, there or elsewhere."""
    lines = f.flat()
    at, size = f.chance.randrange(len(lines)), f.chance.choice((1, 1, 3, 9))
    to = f.chance.choice((at + size, f.chance.randrange(len(lines) + 1), len(lines)))
    lines[to:to] = lines[at : at + size]
    f.put(lines)


def reorder(f: Forger) -> None:
    """Two records, or two blocks between checkpoints, exchanged; or two files."""
    lines = f.flat()
    if len(f.files) > 2 and f.chance.random() < 0.3:
        one, two = f.chance.sample(f.files, 2)
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        return
    one, two = sorted(f.chance.sample(range(len(lines)), 2))
    size = f.chance.choice((1, max(1, (two - one) // 2)))
    first, second = lines[one : one + size], lines[two : two + size]
    lines[two : two + size], lines[one : one + size] = first, second
    f.put(lines)


def insert(f: Forger) -> None:
    """A record of one's own, well chained to the one before it, even at the very end."""
    lines = f.flat()
    at = f.chance.choice((len(lines), f.chance.randrange(1, len(lines))))
    before = Record.parse(lines[at - 1]).head(lines[at - 1])
    lines.insert(at, _forged(before).line())
    f.put(lines)


def splice(f: Forger) -> None:
    """The rest of another log of the same key, or one of its records, or all of it."""
    lines, other = f.flat(), f.other
    at = f.chance.choice((0, f.chance.randrange(len(lines))))
    by = f.chance.choice((at, at, f.chance.randrange(len(other)))) % len(other)
    if f.chance.random() < 0.5:
        lines[at:] = other[by:]
    else:
        lines[at : at + 1] = other[by : by + 1]
    f.put(lines)


def rechain(f: Forger) -> None:
    """An edit or a removal with everything after it chained anew; the old signatures kept."""
    lines = f.flat()
    at = f.chance.randrange(len(lines) - 1)
    f.put(_chained(lines, at, f))


def resign(f: Forger) -> None:
    """The same, and every checkpoint signed by a stranger, in his name or in the right one."""
    lines = f.flat()
    at = f.chance.randrange(len(lines) - 1)
    f.put(_chained(lines, at, f, f.stranger, named=f.chance.random() < 0.5))


def unsign(f: Forger) -> None:
    """The same, and every checkpoint after it left out."""
    lines = f.flat()
    at = f.chance.randrange(len(lines) - 1)
    rest = [line for line in lines[at:] if b'"audit.checkpoint"' not in line]
    f.put(_chained(lines[:at] + rest, at, f))


def lose(f: Forger) -> None:
    """A whole file: gone, empty, or that of another log."""
    file = f.chance.choice(f.files)
    act = f.chance.randrange(3)
    if act == 0:
        file.unlink()
    else:
        file.write_bytes(b"" if act == 1 else b"".join(line + b"\n" for line in f.other))


DAMAGES: list[Callable[[Forger], None]] = [
    flip, edit, remove, truncate, duplicate, reorder, insert, splice, rechain, resign, unsign, lose,
]  # fmt: skip


def _edited(line: bytes, chance: random.Random) -> Record:
    record = Record.parse(line)
    facts = dict(record.facts)
    facts[chance.choice(sorted(facts) or ["x"])] = chance.choice((None, 0, "", [], chance.random()))
    time = record.time[:-2] + str((int(record.time[-2]) + 1) % 10) + "Z"
    choices = (
        Record(record.sequence, record.time, record.previous, record.name, facts),
        Record(record.sequence, record.time, record.previous, "swap!", record.facts),
        Record(record.sequence, time, record.previous, record.name, record.facts),
        Record(record.sequence + 1, record.time, record.previous, record.name, record.facts),
        Record(record.sequence, record.time, "ab" * 32, record.name, record.facts),
    )
    return chance.choice([made for made in choices if made.line() != line])


def _forged(before: Head) -> Record:
    return Record(before.sequence + 1, stamp(), before.digest, "swap", {"generation": 99})


def _chained(
    lines: list[bytes], at: int, f: Forger, signer: SigningKey | None = None, named: bool = False
) -> list[bytes]:
    """Change the record at a place, and chain what follows as if it had always been so."""
    made = lines[:at]
    before = Record.parse(made[-1]).head(made[-1]) if made else Head(0, GENESIS)
    for line in [_edited(lines[at], f.chance).line() if at < len(lines) else b"", *lines[at + 1 :]]:
        if not line:
            continue
        old = Record.parse(line)
        facts = old.facts
        if old.name == CHECKPOINT and signer and "log" in facts:
            right = facts.get("key")
            facts = sign_checkpoint(signer, str(facts["log"]), before, old.time)
            facts |= {} if named else {"key": right}
        new = Record(before.sequence + 1, old.time, before.digest, old.name, facts)
        made.append(new.line())
        before = new.head()
    return made


def changed(f: Forger) -> bool:
    """Whether the files differ from what they were."""
    now = [file.read_bytes() if file.exists() else None for file in f.files]
    return now != [b"".join(line + b"\n" for line in lines) for lines in f.lines]
