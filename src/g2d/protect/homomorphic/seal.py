"""SEAL, by TenSEAL's low-level binding: contexts for each level, and its files in memory.

Keys for ciphertexts that have few primes left are made in a context that has no others: SEAL takes
a ciphertext from one context to another if their primes agree. Such keys are a fifth of the size.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from g2d.protect.homomorphic.errors import HomomorphicError
from g2d.protect.homomorphic.parameters import Parameters, check_security
from g2d.protect.homomorphic.wire import SEED

__all__ = ["SEAL_ERRORS", "Level", "body", "element", "levels", "load", "sealapi", "seeded_size"]

SEAL_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, OverflowError, MemoryError)
"""What the binding makes of SEAL's exceptions."""

_INSTALL = "homomorphic inference needs TenSEAL 0.3 and zstandard: pip install 'g2d[he]'"


def sealapi() -> Any:
    """The binding.

    Raises:
        HomomorphicError: it is not installed.
    """
    try:
        from tenseal import sealapi as binding
    except ImportError as error:
        raise HomomorphicError(_INSTALL) from error
    return binding


class Level:
    """Context, encoder and evaluator for ciphertexts of `primes` primes."""

    def __init__(self, parameters: Parameters, primes: int) -> None:
        seal = sealapi()
        chain = parameters.chain(primes)
        check_security(parameters.degree, sum(prime.bit_length() for prime in chain))
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.degree)
        chosen.set_coeff_modulus([seal.Modulus(prime) for prime in chain])
        self.context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise HomomorphicError(
                f"SEAL refuses the parameters: {self.context.parameters_error_message()}"
            )
        self.primes, self.degree = primes, parameters.degree
        self.id: list[int] = self.context.first_parms_id()
        self.key_id: list[int] = self.context.key_parms_id()
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)

    def encode(self, values: list[float], scale: float) -> Any:
        """A plaintext; its scale is exact.

        Raises:
            HomomorphicError: the numbers are too large.
        """
        found = sealapi().Plaintext()
        try:
            self.encoder.encode(values, self.id, scale, found)
        except SEAL_ERRORS as error:
            raise HomomorphicError(f"the weights are too large to encode: {error}") from error
        return found


@functools.lru_cache(maxsize=8)
def levels(parameters: Parameters) -> dict[int, Level]:
    """Every level of a plan, by the number of primes."""
    return {primes: Level(parameters, primes) for primes in range(1, parameters.levels + 1)}


def element(step: int, degree: int) -> int:
    """The Galois element that rotates by `step` slots to the left: 3^step modulo 2N."""
    return pow(3, step, 2 * degree)


@contextmanager
def _memory_file() -> Iterator[str]:
    """A path that SEAL can open, of a file that never touches a disk where the system has such."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        handle = os.memfd_create("g2d", getattr(os, "MFD_CLOEXEC", 0))
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
        return
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 made private below
    folder = tempfile.mkdtemp(prefix="g2d-", dir=shared)  # mode 0700
    path = os.path.join(folder, "file")
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.rmdir(folder)


def body(made: Any) -> bytes:
    """What SEAL writes of an object, without the outermost header and compression."""
    try:
        import zstandard
    except ImportError as error:
        raise HomomorphicError(_INSTALL) from error
    with _memory_file() as path:
        made.save(path)
        written = Path(path).read_bytes()
    if written[5] == 0:  # the header's mode of compression: none
        return written[16:]
    assert written[5] == 2, "SEAL of TenSEAL's wheels compresses by Zstandard"
    return zstandard.ZstdDecompressor().decompressobj().decompress(written[16:])


def load(made: Any, level: Level, file: bytes, what: str) -> Any:
    """Fill an object from a file whose headers are ours.

    Raises:
        HomomorphicError: SEAL refuses its residues.
    """
    with _memory_file() as path:
        Path(path).write_bytes(file)
        try:
            made.load(level.context, path)
        except SEAL_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise HomomorphicError(f"the {what} is no such thing to SEAL: {reason}") from error
    return made


def seeded_size(primes: int, degree: int) -> int:
    """Bytes of a fresh ciphertext: one polynomial and a seed."""
    return primes * degree * 8 + SEED
