"""CKKS parameters: degree, primes and scales, and the table that says what they protect.

A linear step multiplies by weights at the scale 2^29 and drops a prime of 60 bits; the square
doubles the 31 bits that a number has. So a step and its square cost one prime: 31 + 31 + 29 - 60 is
31 again. Every rotation and relinearisation happens at a scale of 2^62 or more, where the noise of
SEAL's key switching (2^22 in the worst slot, as its digits are not centred) is nothing; what is
left is the rounding of each rescaling, N/4.2 of 2^31 (one standard deviation, in a slot).
"""

from __future__ import annotations

from dataclasses import dataclass

from g2d.protect.homomorphic.errors import HomomorphicError

__all__ = ["MOST_BITS", "Parameters", "check_security", "choose"]

MOST_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Bits of all primes together at 128 bits of classical security, by degree.

Homomorphic Encryption Standard (Albrecht et al. 2018), table 1, ternary secrets. Newer guidelines
(Bossuat et al. 2024, "Security guidelines for implementing homomorphic encryption"), which know of
better attacks, are a little stricter at the edge of this table.
"""

SCALE, WEIGHTS = 31, 29
"""Bits of a number behind a step, and of a weight."""

_LAST, _MIDDLE, _SPECIAL = 50, 60, 60
"""Bits of the prime that the answer is left with, of each step's, and of the keys'."""

_FIRST, _LEAST_FIRST = 44, 28
"""The first step squares nothing before, so that its prime may be small where bits are short."""

_ERROR = 1e-3
"""What rounding may add to the square of the largest number that is called safe."""


@dataclass(frozen=True)
class Parameters:
    """What both sides compute with.

    Attributes:
        degree: N. primes: in the order in which they are kept, the keys' own last.
        input_scale: of the client's ciphertexts.
    """

    degree: int
    primes: tuple[int, ...]
    input_scale: float

    @property
    def slots(self) -> int:
        """S, numbers in a ciphertext."""
        return self.degree // 2

    @property
    def levels(self) -> int:
        """Primes of a fresh ciphertext."""
        return len(self.primes) - 1

    @property
    def bits(self) -> int:
        """Of all primes together."""
        return sum(prime.bit_length() for prime in self.primes)

    def chain(self, level: int) -> tuple[int, ...]:
        """The primes of keys that work on ciphertexts of `level` primes."""
        return (*self.primes[:level], self.primes[-1])

    @property
    def bound(self) -> float:
        """The magnitude up to which a pre-activation keeps its precision.

        Up to it the rounding error of a square has a standard deviation below 1e-3. Nothing wraps
        around before twice `most`, from where an answer would be noise.
        """
        deviation = self.degree / 18**0.5 / 2.0**SCALE
        return float(2 ** int(_ERROR / (2 * deviation)).bit_length() // 2)

    @property
    def most(self) -> float:
        """The magnitude of logits that is refused: half of where they wrap around, 2^18."""
        return 2.0 ** (_LAST - SCALE - 2)

    def scales(self) -> list[tuple[float, float, float]]:
        """For each step: the scale of what comes in, of its weights, and of what it makes.

        In the floating-point operations that SEAL does, so that they are equal to the last bit.
        """
        found, here = [], self.input_scale
        for level in range(self.levels, 1, -1):
            prime = float(self.primes[level - 1])
            weights = 2.0**SCALE * prime / here
            made = here * weights / prime
            found.append((here, weights, made))
            here = made * made
        return found


def check_security(degree: int, bits: int) -> None:
    """Refuse parameters below 128 bits of security.

    Raises:
        HomomorphicError: the degree is not in the standard's table, or the primes are too long.
    """
    most = MOST_BITS.get(degree)
    if most is None or bits > most:
        raise HomomorphicError(
            f"N = {degree} with {bits} bits of primes is below 128 bits of security"
            f" ({most or 'no'} bits at most): only what the plan's own compiler chooses is used"
        )


def choose(degree: int, steps: int) -> Parameters | None:
    """Parameters for so many linear steps; None where the degree has no room for them."""
    middle = [_MIDDLE] * (steps - 1)
    first = min(_FIRST, MOST_BITS[degree] - _LAST - sum(middle) - _SPECIAL)
    if first < _LEAST_FIRST:
        return None
    primes = _primes(degree, [_LAST, *middle, first, _SPECIAL])
    found = Parameters(degree, primes, 2.0 ** (SCALE + first - min(first, WEIGHTS + 1)))
    check_security(degree, found.bits)
    return found


def _primes(degree: int, bits: list[int]) -> tuple[int, ...]:
    """The largest primes of these lengths that are 1 modulo 2N, all different."""
    found: list[int] = []
    for length in bits:
        candidate = (1 << length) - 2 * degree + 1
        while candidate in found or not _is_prime(candidate):
            candidate -= 2 * degree
        found.append(candidate)
    return tuple(found)


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test, with the bases that decide for all numbers below 3.3e24."""
    power = number - 1
    twos = (power & -power).bit_length() - 1
    return all(
        _passes(number, base, power >> twos, twos)
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    )


def _passes(number: int, base: int, odd: int, twos: int) -> bool:
    x = pow(base, odd, number)
    if x in (1, number - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % number
        if x == number - 1:
            return True
    return False
