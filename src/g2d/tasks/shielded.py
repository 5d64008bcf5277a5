"""People's records and public data apart: the splits of a task that is trained privately.

Everything but private training reads `guide`, `gate`, `guiding` and `pooled`, and finds public data
there; people's records are in `train`, and in `held` where gates count on them with noise. So what
guides, judges, attacks and fits reads no record of anybody by construction. What a record
contributes to, and whether it counts at all, depends on its own unit alone, by a keyed hash:
whoever takes one unit away takes one record out of one part, and changes nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from g2d.errors import DataError, PrivacyError, nearest
from g2d.tasks.keyed import keyed_digests, side_of
from g2d.tasks.labelled import read_labelled
from g2d.tasks.splits import ENOUGH, Split, Splits
from g2d.tasks.task import Task

RECORD = "record"
"""The unit of privacy that every task has: all records of one input, whatever their labels."""


@dataclass(frozen=True)
class Shield:
    """How people's records are kept apart; the same one gives the same parts everywhere.

    Attributes:
        public: the folder of declared public data. key: secret bytes of the vault, by which records
            are sorted. held: whether a part of people's records is kept for gates. unit: `record`,
            or a key column of the splits.
    """

    public: str
    key: bytes = field(repr=False)
    held: bool = False
    unit: str = RECORD

    def over(self, task: Task) -> Task:
        """The task whose `guide` and `gate` are public, and whose people are in `train`.

        Raises:
            PrivacyError: there are no public data, or too few; the unit is no column of the task.
            DataError: the public data cannot be read, or do not fit the task.
        """
        if isinstance(task.splits, ShieldedSplits):
            own = task.splits.shield  # it was given as an object that is a private vault's already
            if (own.unit, own.held) != (self.unit, self.held):
                raise PrivacyError(
                    f"task {task.name!r} was given with people's records apart for unit"
                    f" {own.unit!r} and {'some' if own.held else 'none'} held for gates, and"
                    f" [privacy] asks for unit {self.unit!r} and {'some' if self.held else 'none'}:"
                    " give the task as it was before, or its name"
                )
            return task
        if not self.public:
            raise PrivacyError(
                "[privacy] public names no folder: guidance, attack pools, the autoencoder and the"
                " gates read data, and in private mode they may only read public ones. Name a"
                f" folder of some {2 * ENOUGH} labelled records or more that anybody may know"
            )
        try:
            public = read_labelled(Path(self.public), task)
        except DataError as error:
            raise DataError(f"[privacy] public: {error}") from error
        splits = ShieldedSplits.of(task.splits, public, self)
        made = replace(task, splits=splits)
        object.__setattr__(made, "_origin", task.origin)
        return made


class ShieldedSplits(Splits):
    """Splits whose `guide` and `gate` are public; people are in `train`, and perhaps in `held`."""

    held: Split | None
    """People's records that gates count on with noise, a block of their own; None: none are."""
    shield: Shield

    @classmethod
    def of(cls, people: Splits, public: Split, shield: Shield) -> ShieldedSplits:
        """Sort a task's own records and public ones.

        A test split that was given stays what it is; one that a permutation of all records has
        drawn is drawn anew, by keyed digests, for with one record less it would be another.
        """
        _check_unit(people, shield.unit)
        whole, test = _undrawn(people, shield)
        train, held = _parts(whole, shield, ())
        if not len(train) or (held is not None and not len(held)):
            raise DataError(f"{len(whole)} records are too few to be sorted into private parts")
        digests = keyed_digests(public.x, shield.key)
        gate = torch.tensor([digest[8] < 128 for digest in digests])  # not what `side_of` reads
        names = people.labels
        guide, gates = (Split(public.x[of], public.y[of], names) for of in (~gate, gate))
        if min(len(guide), len(gates)) < ENOUGH // 2:
            raise PrivacyError(
                f"[privacy] public has {len(public)} records, half of which guide and half judge:"
                f" expected some {2 * ENOUGH} or more"
            )
        return cls._made(train, guide, gates, test, held, shield, {})

    @classmethod
    def _made(
        cls, train: Split, guide: Split, gate: Split, test: Split, held: Split | None,
        shield: Shield, added: Mapping[str, int],
    ) -> ShieldedSplits:  # fmt: skip
        found = cls(train, guide, gate, test)
        for name, value in (("held", held), ("shield", shield), ("_added", dict(added))):
            object.__setattr__(found, name, value)
        return found

    @property
    def of_public(self) -> ShieldedSplits:
        """The splits of a training that may read nobody: each part of them is public."""
        return self._made(self.guide, self.guide, self.gate, self.gate, None, self.shield, {})

    @property
    def pooled(self) -> Split:
        """Public: attacks that are kept are raw inputs plus a perturbation."""
        return self.guide

    @property
    def guiding(self) -> Split:
        """Public, however few they are."""
        return self.guide

    def added(self, name: str) -> int:
        """How many of people's records came later; public data do not grow."""
        return int(vars(self)["_added"].get(name, 0))

    @property
    def former(self) -> Splits:
        """The splits without what came later."""
        if not vars(self)["_added"]:
            return self
        train = self.train.take(range(len(self.train) - self.added("train")))
        held = self.held
        if held is not None:
            held = held.take(range(len(held) - self.added("held")))
        return self._made(train, self.guide, self.gate, self.test, held, self.shield, {})

    def with_more(self, more: Mapping[str, Split]) -> Splits:
        """Add people's records of all sides; a unit that is known already is not added again.

        Raises:
            PrivacyError: the unit is a key column, which later records do not have.
        """
        if self.shield.unit != RECORD:
            raise PrivacyError(
                f"[privacy] unit is the key column {self.shield.unit!r}, which records of a refresh"
                " do not have: whose they are cannot be told. Make a new vault of all the data"
            )
        whole = _joined([split for split in more.values() if len(split)], self.labels)
        whole = Split(whole.x.to(self.train.x.dtype), whole.y, whole.names)
        known = [self.train] if self.held is None else [self.train, self.held]
        train, held = _parts(whole, self.shield, known)
        counts = {"train": self.added("train") + len(train)}
        if held is not None and self.held is not None:
            counts["held"] = self.added("held") + len(held)
            held = _joined([self.held, held], self.labels)
        train = _joined([self.train, train], self.labels)
        return self._made(train, self.guide, self.gate, self.test, held, self.shield, counts)


def one_of_each(people: Split, key: bytes, unit: str = RECORD) -> Split:
    """Of records that all train the one of each unit that is used; see `Shield`.

    Raises:
        PrivacyError: the unit is no column of the records.
    """
    if unit != RECORD and unit not in people.keys:
        raise _no_column(unit, people.keys)
    return _parts(people, Shield("", key, False, unit), ())[0]


def _undrawn(people: Splits, shield: Shield) -> tuple[Split, Split]:
    """All records but those of the test split, and the test split; what `Drawn` says, by digests.

    Each record's place hangs on its own unit alone, and on shares that are the same for any n.
    """
    own, drawn = [people.train, people.guide, people.gate], people.drawn
    if drawn is None:
        return _joined(own, people.labels), people.test
    whole = _joined([*own, *drawn.parts], people.labels)
    kept = 1.0 if drawn.kept >= 1.0 else drawn.test + (1.0 - drawn.test) * drawn.kept
    at = [
        int.from_bytes(hmac.digest(shield.key, b"drawn" + unit, "sha256")[:8], "big") / 2**64
        for unit in _units(whole, shield)
    ]
    test = [place for place, share in enumerate(at) if share < drawn.test]
    rest = [place for place, share in enumerate(at) if drawn.test <= share <= kept]
    return whole.take(rest), whole.take(test) if drawn.test else people.test


def _units(people: Split, shield: Shield) -> list[bytes]:
    """A keyed digest of each record's unit."""
    if shield.unit == RECORD:
        return keyed_digests(people.x, shield.key)
    return [_keyed(shield.key, int(one)) for one in people.keys[shield.unit]]


def _parts(people: Split, shield: Shield, known: Sequence[Split]) -> tuple[Split, Split | None]:
    """One record of each unit that is not known: those that train, and those that are held."""
    content = keyed_digests(people.x, shield.key)
    units = content if shield.unit == RECORD else _units(people, shield)
    met = {digest for split in known for digest in keyed_digests(split.x, shield.key)}
    chosen: dict[bytes, int] = {}
    labels = people.y.tolist()
    for place, unit in enumerate(units):
        if unit in met:
            continue
        at = chosen.setdefault(unit, place)
        if (content[place], labels[place]) < (content[at], labels[at]):
            chosen[unit] = place  # by what the unit itself holds, not by its place
    places = sorted(chosen.values())
    if not shield.held:
        return people.take(places), None
    gate = [side_of(units[place]) == "gate" for place in places]
    sides = [
        [p for p, held in zip(places, gate, strict=True) if held is of] for of in (False, True)
    ]
    return people.take(sides[0]), people.take(sides[1])


def _keyed(key: bytes, value: int) -> bytes:
    return hmac.new(key, b"unit" + value.to_bytes(8, "big", signed=True), hashlib.sha256).digest()


def _joined(parts: Sequence[Split], names: tuple[str, ...]) -> Split:
    """One split of several; key columns that all of them have stay."""
    shared = set.intersection(*(set(part.keys) for part in parts))
    keys: dict[str, Tensor] = {n: torch.cat([p.keys[n] for p in parts]) for n in sorted(shared)}
    return Split(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]), names, keys)


def _check_unit(people: Splits, unit: str) -> None:
    if unit == RECORD:
        return
    have = set.intersection(*(set(p.keys) for p in (people.train, people.guide, people.gate)))
    if unit not in have:
        raise _no_column(unit, have)


def _no_column(unit: str, have: Iterable[str]) -> PrivacyError:
    known = ", ".join(sorted(have)) or "none"
    return PrivacyError(
        f"[privacy] unit names the key column {unit!r}, and the task has {known}:"
        f" give split_dataset(keys=...) that column, or set unit to 'record'."
        f"{nearest(unit, [*have, RECORD])}"
    )
