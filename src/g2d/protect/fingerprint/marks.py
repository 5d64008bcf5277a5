"""Marks in weights: a replica's codeword as a small secret change, and what a suspect says of it.

Spread spectrum (Cox et al. 1997): every weight belongs to one bit of the code and has a secret
sign; a bit that is 1 moves its weights by that sign, one that is 0 against it, each by the same
small share of its tensor's root mean square. Both are fresh for each generation: whoever learns the
marks of one knows nothing of the next.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2d.core.types import Array, State
from g2d.errors import SettingsError
from g2d.protect.fingerprint.tardos import SLOTS, Code, design
from g2d.protect.watermark.key import WatermarkKey
from g2d.settings import Settings
from g2d.weights.checkpoints import digest, pack
from g2d.weights.layout import same_bits
from g2d.weights.symmetry import Coupling, align, balance

STRENGTHS = (0.04, 0.02, 0.01, 0.005)
"""Shares of a tensor's root mean square that may be tried, the strongest first."""

_CLEAR = 5.0  # a weight that moved by more than this many marks says no more than that


@dataclass(frozen=True, eq=False)
class _Carriers:
    """Of one generation: its code; the bit and sign (P,) of each weight that carries a mark."""

    code: Code
    bits: Array
    signs: Array


def secret_of(key: WatermarkKey) -> bytes:
    """What marks are derived from, 32 bytes: whoever has it knows nothing of the key's triggers."""
    return hmac.digest(key.secret, b"g2d replica marks 1", hashlib.sha256)


def secret_for(settings: Settings) -> bytes:
    """What the marks of a vault are derived from; b"": its replicas carry none.

    Raises:
        SettingsError: no key is named. KeyFileError: it cannot be used.
    """
    if not settings.cluster.fingerprint:
        return b""
    if not settings.cluster.key:
        raise SettingsError(
            "[cluster] fingerprint needs a secret key: name its file as [cluster] key (one of "
            "`g2d watermark new` will do), or set fingerprint = false"
        )
    return secret_of(WatermarkKey.read(settings.cluster.key))


def strength_of(manifest: Mapping[str, Any]) -> float:
    """How strong the marks of a generation are, as its manifest says; 0.0: it carries none."""
    mark = manifest.get("mark")
    strength = mark.get("strength") if isinstance(mark, dict) else 0.0
    return next((known for known in STRENGTHS if strength == known), 0.0)


def slot_of(secret: bytes, replica: str) -> int:
    """The codeword's place of a replica; ten names share none of theirs in 99 clusters of 100."""
    named = hmac.digest(secret, b"slot\0" + replica.encode(), hashlib.sha256)
    return int.from_bytes(named[:8], "big") % SLOTS


def marked(state: State, secret: bytes, replica: str, strength: float) -> dict[str, Tensor]:
    """A generation as one replica serves it: the same, with the replica's codeword in its weights.

    Matrices and kernels of floats carry it; biases, statistics, and what is not finite stay. Equal
    tensors under two names stay equal. The same arguments give the same bytes.

    Args:
        strength: how far a weight moves, as a share of its tensor's root mean square; 0: nowhere.
    """
    names = _carrying(state)
    if not names or not strength:
        return dict(state)
    carriers = _carriers(state, names, secret)
    word = carriers.code.word(slot_of(secret, replica))
    moves = carriers.signs * np.where(word[carriers.bits], 1.0, -1.0)
    parts = torch.from_numpy(moves).split([state[name].numel() for name in names])
    changed = {}
    for name, part in zip(names, parts, strict=True):
        tensor = state[name].double()
        step = strength * tensor.square().mean().sqrt() * part.view(tensor.shape)
        changed[name] = (tensor + step).to(state[name].dtype)
    return dict(state) | changed | _ties(state, names, changed)


def read_marks(
    generation: State,
    suspect: State,
    secret: bytes,
    strength: float,
    chain: Sequence[Coupling] = (),
) -> tuple[Code, Array]:
    """What a suspect made from copies of a generation says of each bit: (length,) in [-1, 1].

    Args:
        suspect: under the generation's names and types. chain: couplings that the suspect's
            symmetries are undone by.
    """
    names = _carrying(generation)
    carriers = _carriers(generation, names, secret)
    even = balance(generation, chain)
    found = align(even, balance(suspect, chain), chain)
    moved, expected = [], []
    for name in names:
        was, there, now = (s[name].double().flatten() for s in (generation, even, found))
        # Balancing stretched a mark as it stretched the weight that carries it.
        stretch = torch.where(was != 0, there / torch.where(was != 0, was, 1.0), 1.0)
        step = strength * was.square().mean().sqrt() * stretch
        step = torch.where((now == 0) & (there != 0), 0.0, step)  # it was pruned
        moved.append((now - there).clamp(-_CLEAR * step.abs(), _CLEAR * step.abs()))
        expected.append(step)
    carried = torch.cat(expected).numpy() * carriers.signs
    product = np.bincount(carriers.bits, carried * torch.cat(moved).numpy(), carriers.code.length)
    power = np.bincount(carriers.bits, np.square(carried), carriers.code.length)
    heard = np.divide(product, power, out=np.zeros_like(product), where=power > 0)
    return carriers.code, np.clip(heard, -1.0, 1.0)


def _carrying(state: State) -> list[str]:
    """Names of the tensors that carry marks; of equal ones the first."""
    found: list[str] = []
    for name, tensor in state.items():
        floats = tensor.dim() >= 2 and tensor.is_floating_point()
        if not (floats and bool(torch.isfinite(tensor).all())):
            continue
        if not any(same_bits(tensor, state[other]) for other in found):
            found.append(name)
    return sorted(found)


def _ties(state: State, names: Sequence[str], changed: State) -> dict[str, Tensor]:
    """What is equal to a tensor that was changed, and is to stay so."""
    return {
        name: changed[first].clone()
        for name, tensor in state.items()
        if name not in changed
        for first in names
        if same_bits(tensor, state[first])
    }


def _carriers(state: State, names: Sequence[str], secret: bytes) -> _Carriers:
    own = hmac.digest(secret, b"generation\0" + digest(pack(state)).encode(), hashlib.sha256)
    length, cutoff = design()
    count = sum(state[name].numel() for name in names)
    data = np.frombuffer(hashlib.shake_256(b"carriers\0" + own).digest(4 * count), ">u4")
    drawn = data.astype(np.uint64)
    bits = ((drawn >> np.uint64(1)) * np.uint64(length) >> np.uint64(31)).astype(np.int64)
    signs = np.where(drawn & np.uint64(1), 1.0, -1.0)
    return _Carriers(Code(own, length, cutoff), bits, signs)
