"""A client's keys: the secret one, which stays, and those that a server computes with.

CKKS is approximate, so that a decryption is the answer plus noise, and that noise depends on the
secret key: whoever sees enough exact decryptions of ciphertexts that he knows finds the key (Li &
Micciancio 2021, IND-CPA-D). SEAL adds no noise that would hide it. So `SecretKeys.decrypt` rounds
what it tells, to a grid several times as coarse as the largest noise that was seen. That makes such
an attack longer, not impossible: a logit beside the middle between two points still tells a bit of
its noise. So do not show a server what its answers decrypt to, and never exactly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2d.core.files import fill_file, read_plain
from g2d.core.platforms import others_may_read
from g2d.protect.homomorphic.batch import SPARE
from g2d.protect.homomorphic.errors import HomomorphicError
from g2d.protect.homomorphic.plan import Plan
from g2d.protect.homomorphic.seal import (
    SEAL_ERRORS,
    Level,
    body,
    element,
    levels,
    load,
    sealapi,
    seeded_size,
)
from g2d.protect.homomorphic.wire import (
    HEADER,
    SEED,
    ciphertext_file,
    keys_file,
    pack,
    plaintext_file,
    unpack,
)

__all__ = ["GRID", "EvaluationKeys", "SecretKeys"]

GRID = 2.0**-10
"""What answers are rounded to."""

_TOLERANCE = 2.0**-5
"""How far copies of a logit in one answer may differ; noise is a thousandth of it."""

_MEMBERS = 32 + 1 + 5 * 8
"""Bytes of a ciphertext's members before its residues' own header."""

_ARRAY = 16 + 8
"""Bytes of an array's header and length."""


class SecretKeys:
    """A client's secret key, for one plan. Make one with `new` or `load`.

    Attributes:
        plan: what it is for.
    """

    def __init__(self, plan: Plan, words: bytes) -> None:
        """Args: words: residues of the secret polynomial in NTT form, for every prime."""
        self.plan, self._words = plan, words
        self._levels = levels(plan.parameters)
        self._keys: dict[int, Any] = {}

    @classmethod
    def new(cls, plan: Plan) -> SecretKeys:
        """Draw a fresh key by SEAL, from the system's randomness."""
        top = levels(plan.parameters)[plan.parameters.levels]
        made = body(sealapi().KeyGenerator(top.context).secret_key())
        size = _secret_size(plan)
        return cls(plan, made[-size:])

    def upload(self) -> bytes:
        """Public, relinearisation and rotation keys, as many as the plan needs; no secret.

        Half of each key but the public one is the expansion of a seed, and only the seed is sent.
        """
        plan = self.plan
        parts = [self._public()]
        for level in plan.squares:
            parts += _digits(body(self._generator(level).create_relin_keys()), plan, level, 1)
        for level, steps in plan.rotations.items():
            elements = sorted(element(step, plan.parameters.degree) for step in steps)
            made = body(self._generator(level).create_galois_keys(elements))
            parts += _digits(made, plan, level, len(steps))
        return pack("keys", plan.digest, parts)

    def encrypt(self, images: Tensor) -> bytes:
        """A query.

        Args:
            images: (n, *shape), finite, of magnitude at most `plan.bound`; 0 < n <= plan.batch.

        Raises:
            HomomorphicError: they are not.
        """
        plan, parameters = self.plan, self.plan.parameters
        if tuple(images.shape[1:]) != plan.shape or not 0 < len(images) <= plan.batch:
            wanted = f"1 to {plan.batch} of {plan.shape}" if plan.batch > 1 else (1, *plan.shape)
            raise HomomorphicError(f"images of shape {tuple(images.shape)}: {wanted} would do")
        flat = images.detach().to("cpu", torch.float64).reshape(len(images), -1).numpy()
        if not np.isfinite(flat).all() or np.abs(flat).max() > plan.bound:
            raise HomomorphicError(
                f"an image has values that are not finite or larger than {plan.bound:g}"
            )
        level = self._levels[parameters.levels]
        encryptor = sealapi().Encryptor(level.context, self._key(parameters.levels))
        parts = []
        for row in _rows(plan, flat):
            plain = level.encode(row.tolist(), parameters.input_scale)
            made = body(encryptor.encrypt_symmetric(plain))
            parts.append(_seeded(made, parameters.levels, parameters.degree))
        return pack("query", plan.digest, parts)

    def decrypt(self, answer: bytes, exact: bool = False) -> Tensor:
        """The logits of an answer, (plan.batch, classes), rounded to `GRID`.

        A batch that was not full is followed by the logits of inputs of zero.

        Args:
            exact: do not round. Keep what comes of it from everybody: see this module.

        Raises:
            HomomorphicError: it is no answer under this key, or its values wrapped around, or
                nearly. Make new keys then: from what follows, whoever made it up learns of these.
        """
        values, plan = self.slots(answer), self.plan
        found, spread = _batch(values) if plan.packing == "batch" else _copies(plan, values[0])
        allowed = _TOLERANCE * (1 + np.abs(found).max() / 2**6)
        if not np.abs(values).max() < plan.parameters.most or spread > allowed:
            raise HomomorphicError(
                "the answer is noise: it is of another key, was changed, or a number on its way was"
                f" far beyond {plan.bound:g}"
            )
        if not exact:
            found = np.round(found / GRID) * GRID
        return torch.tensor(found, dtype=torch.float32).reshape(plan.batch, plan.classes)

    def slots(self, answer: bytes) -> np.ndarray:
        """Everything in an answer, (plan.answers, S), not rounded: for tests of what it tells."""
        size = 2 * self.plan.parameters.degree * 8
        parts = unpack("answer", self.plan.digest, answer, [size] * self.plan.answers)
        return np.stack([self._decrypted(words) for words in parts])

    def _decrypted(self, words: bytes) -> np.ndarray:
        """The slots of one ciphertext."""
        plan, level = self.plan, self._levels[1]
        scale = plan.parameters.scales()[-1][2]
        degree = plan.parameters.degree
        file = ciphertext_file(level.id, degree, 1, scale, words)
        read = load(sealapi().Ciphertext(), level, file, "answer")
        refuse_transparent(read, "answer")
        plain = sealapi().Plaintext()
        try:
            sealapi().Decryptor(level.context, self._key(1)).decrypt(read, plain)
            return np.array(level.encoder.decode_double(plain))
        except SEAL_ERRORS as error:
            raise HomomorphicError(f"SEAL cannot decrypt the answer: {error}") from error

    def save(self, path: Path) -> None:
        """Write the secret key to a new file for its owner alone (mode 0600).

        Raises:
            HomomorphicError: there is a file of that name, or it cannot be written.
        """
        try:
            fill_file(Path(path), pack("secret", self.plan.digest, [self._words]), 0o600)
        except FileExistsError as error:
            raise HomomorphicError(
                f"{path} is there already: name another file, or remove it"
            ) from error
        except OSError as error:
            raise HomomorphicError(f"cannot write {path}: {error}") from error

    @classmethod
    def load(cls, path: Path, plan: Plan) -> SecretKeys:
        """Read a secret key.

        Raises:
            HomomorphicError: it cannot be read, others may read it, or it is of another plan.
        """
        size = _secret_size(plan)
        try:
            blob = read_plain(Path(path), HEADER + size, follow=True)
            mode = os.stat(path).st_mode
        except OSError as error:
            raise HomomorphicError(f"cannot read the secret key {path}: {error}") from error
        if others_may_read(mode):
            raise HomomorphicError(f"others may read the secret key {path}: chmod 600 {path}")
        (words,) = unpack("secret", plan.digest, blob, [size])
        found = cls(plan, words)
        found._key(1)  # SEAL refuses residues that are none
        return found

    def _key(self, level: int) -> Any:
        """SEAL's secret key for a level: the residues of its primes."""
        if level not in self._keys:
            parameters, size = self.plan.parameters, self.plan.parameters.degree * 8
            words = self._words[: level * size] + self._words[parameters.levels * size :]
            here = self._levels[level]
            file = plaintext_file(here.key_id, words)
            self._keys[level] = load(sealapi().SecretKey(), here, file, "secret key")
        return self._keys[level]

    def _generator(self, level: int) -> Any:
        return sealapi().KeyGenerator(self._levels[level].context, self._key(level))

    def _public(self) -> bytes:
        made = sealapi().PublicKey()
        self._generator(1).create_public_key(made)
        return body(made)[_MEMBERS + _ARRAY :]


class EvaluationKeys:
    """What a server computes with for one client; it decrypts nothing.

    Attributes:
        digest: of the plan that they are for. public: encrypts for the client, at the last level.
        squares, rotations: SEAL's relinearisation and Galois keys, by level.
    """

    def __init__(
        self, digest: str, public: Any, squares: dict[int, Any], rotations: dict[int, Any]
    ) -> None:
        self.digest, self.public = digest, public
        self.squares, self.rotations = squares, rotations

    @classmethod
    def read(cls, blob: bytes, plan: Plan) -> EvaluationKeys:
        """Read a client's upload.

        Raises:
            HomomorphicError: it is of another plan, has too few or too many keys, is damaged, or
                SEAL takes its residues for none.
        """
        seal, here, degree = sealapi(), levels(plan.parameters), plan.parameters.degree
        parts = unpack("keys", plan.digest, blob, plan.key_sizes)
        file = ciphertext_file(here[1].key_id, degree, 2, 1.0, next(parts))
        public = load(seal.PublicKey(), here[1], file, "public key")
        squares = {
            level: _key_set(seal.RelinKeys(), here[level], parts, [0], 1) for level in plan.squares
        }
        rotations = {}
        for level, steps in plan.rotations.items():
            elements = sorted(element(step, degree) for step in steps)
            indices = [one // 2 for one in elements]
            rotations[level] = _key_set(seal.GaloisKeys(), here[level], parts, indices, degree)
            if missing := [one for one in elements if not rotations[level].has_key(one)]:
                raise HomomorphicError(
                    f"the keys lack {len(missing)} rotations that the plan needs"
                )
        return cls(plan.digest, public, squares, rotations)


def _rows(plan: Plan, images: np.ndarray) -> Iterator[np.ndarray]:
    """The slots of each ciphertext of a query, from images as (n, F)."""
    if plan.packing == "batch":
        for column in images.T:
            yield np.pad(column, (0, plan.parameters.slots - len(column)))
        return
    gathers, padded = plan.programs[0].gathers, np.append(images[0], 0.0)
    assert gathers is not None
    for gather in gathers:  # -1, nothing, is the zero at the end
        yield padded[gather]


def _copies(plan: Plan, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits, (classes,), and how far what should equal them, or zero, is from it."""
    where = plan.programs[-1].made
    copies = values.reshape(-1, where.period)
    mean = copies.mean(axis=0)
    idle = np.abs(np.delete(mean, where.slots)).max(initial=0.0)
    return mean[where.slots], max(float(np.abs(copies - mean).max()), float(idle))


def _batch(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits, (n, classes), of values (classes, S), and how far the spare slots are apart."""
    spare = values[:, -SPARE:]
    return values[:, :-SPARE].T, float((spare.max(axis=1) - spare.min(axis=1)).max())


def refuse_transparent(ciphertext: Any, what: str) -> None:
    """Refuse what anybody can read: a ciphertext whose second polynomial is zero.

    Raises:
        HomomorphicError: it is transparent.
    """
    if ciphertext.is_transparent():
        raise HomomorphicError(f"the {what} is transparent: nothing in it is encrypted")


def _key_set(
    made: Any, level: Level, parts: Iterator[bytes], indices: list[int], slots: int
) -> Any:
    """One relinearisation or Galois key set from its seeded digits."""
    keys = {}
    for index in indices:
        digits = [next(parts) for _ in range(level.primes)]
        keys[index] = [
            ciphertext_file(
                level.key_id, level.degree, level.primes + 1, 1.0, one[:-SEED], one[-SEED:]
            )
            for one in digits
        ]
    return load(made, level, keys_file(level.key_id, keys, slots), "key set")


def _seeded(members: bytes, primes: int, degree: int) -> bytes:
    """Residues and seed of a fresh ciphertext's members."""
    start, size = _MEMBERS + _ARRAY, primes * degree * 8
    assert len(members) == start + size + 16 + 1 + SEED, "SEAL writes another format"
    return members[start : start + size] + members[-SEED:]


def _digits(members: bytes, plan: Plan, level: int, count: int) -> list[bytes]:
    """Residues and seeds of every digit in a key set's members, in the order of their indices."""
    degree = plan.parameters.degree
    one = _MEMBERS + _ARRAY + (level + 1) * degree * 8 + 16 + 1 + SEED
    found, at = [], 32
    slots = int.from_bytes(members[at : at + 8], "little")
    at += 8
    for _ in range(slots):
        digits = int.from_bytes(members[at : at + 8], "little")
        at += 8
        for _ in range(digits):
            found.append(_seeded(members[at + 16 : at + 16 + one], level + 1, degree))
            at += 16 + one
    assert (len(found), at) == (level * count, len(members)), "SEAL writes another format"
    return found


def _secret_size(plan: Plan) -> int:
    return math.prod((len(plan.parameters.primes), plan.parameters.degree, 8))


assert seeded_size(0, 0) == SEED
