"""Labelled records that come later, on sides drawn by a keyed hash: a record never changes sides.

The side of a record is HMAC-SHA-256 of its input under a key that the vault keeps, so it depends on
nothing else: not on the order of the data, nor on what else is in them. Whoever prepares data and
does not hold the key cannot choose what gates see. How records are read is in `labelled`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from g2d.errors import DAMAGE, DataError
from g2d.tasks.splits import FRACTIONS, Split, Splits

SIDES = ("train", "guide", "gate")

KEY_BYTES = 32


@dataclass(frozen=True, eq=False)
class Sorted:
    """Records on their sides, and what was left out.

    Attributes:
        sides: `train`, `guide` and `gate`; never `test`. known: how many the task, or an earlier
            refresh, has already, be it in the test split. repeated: how many stood twice.
            contradicted: how many stood there with several labels, all of which are left out.
            relabelled: how many of `known` have another label there.
    """

    sides: Mapping[str, Split]
    known: int = 0
    repeated: int = 0
    contradicted: int = 0
    relabelled: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.sides.values()))


def sort_records(given: Split, key: bytes, splits: Splits) -> Sorted:
    """Put records on their sides: shares of train, guide and gate as in `FRACTIONS`.

    Args:
        given: validated records. key: `KEY_BYTES` secret bytes. splits: what is known already.
    """
    known = {
        digest: int(label)
        for item in fields(splits)
        for digest, label in zip(
            keyed_digests(getattr(splits, item.name).x, key),
            getattr(splits, item.name).y.tolist(),
            strict=True,
        )
    }
    x = given.x.to(splits.train.x.dtype)
    labels: dict[bytes, set[int]] = {}
    digests = keyed_digests(x, key)
    for digest, label in zip(digests, given.y.tolist(), strict=True):
        labels.setdefault(digest, set()).add(label)
    chosen: dict[str, list[int]] = {name: [] for name in SIDES}
    seen: set[bytes] = set()
    old = repeated = contradicted = relabelled = 0
    for place, digest in enumerate(digests):
        if digest in known:
            old += 1
            relabelled += known[digest] != int(given.y[place])
        elif len(labels[digest]) > 1:
            contradicted += 1
        elif digest in seen:
            repeated += 1
        else:
            chosen[side_of(digest)].append(place)
        seen.add(digest)
    sides = {name: Split(x[at], given.y[at], splits.labels) for name, at in chosen.items()}
    return Sorted(sides, old, repeated, contradicted, relabelled)


def side_of(digest: bytes) -> str:
    """The side of a record by its keyed digest: uniform in [0, 1) against cumulated shares."""
    at = int.from_bytes(digest[:8], "big") / 2**64
    train, guide, _ = FRACTIONS
    return "train" if at < train else "guide" if at < train + guide else "gate"


def keyed_digests(x: Tensor, key: bytes) -> list[bytes]:
    """HMAC-SHA-256 of each input (n, ...), as bytes in the machine's order of float or id."""
    rows = np.ascontiguousarray(x.detach().cpu().flatten(1).numpy())
    rows = rows + 0 if rows.dtype.kind == "f" else rows  # -0.0 is 0.0
    begun = hmac.new(key, digestmod=hashlib.sha256)
    found = []
    for row in rows:
        own = begun.copy()
        own.update(row.tobytes())
        found.append(own.digest())
    return found


def pack_records(found: Sorted) -> bytes:
    """Records with their sides, as safetensors."""
    tensors: dict[str, Tensor] = {}
    for name, split in found.sides.items():
        tensors |= {f"{name}.x": split.x.contiguous(), f"{name}.y": split.y.contiguous()}
    return save(tensors)


def unpack_records(data: bytes) -> dict[str, Split]:
    """Read what `pack_records` wrote.

    Raises:
        DataError: it is something else.
    """
    try:
        tensors = load(data)
        return {name: Split(tensors[f"{name}.x"], tensors[f"{name}.y"]) for name in SIDES}
    except (SafetensorError, *DAMAGE) as error:
        raise DataError(
            f"the records of a refresh cannot be read ({error}): restore the vault from a backup"
        ) from error


def digest_of(given: Split) -> str:
    """SHA-256 of records as they were given: whether the same data are given again."""
    sha = hashlib.sha256()
    for tensor in (given.x, given.y):
        sha.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        sha.update(np.ascontiguousarray(tensor.numpy()).data)
    return sha.hexdigest()


def joined(sides: Mapping[str, Split], *names: str) -> Split:
    """The records of several sides, one side after the other."""
    parts = [sides[name] for name in names]
    return Split(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]), parts[0].names)
