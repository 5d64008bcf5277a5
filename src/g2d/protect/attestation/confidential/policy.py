"""What is wanted of a confidential machine: its measurement, no debugging, firmware, freshness."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from g2d.errors import SealingError

__all__ = ["Expected", "Shown", "bound_data", "check", "judge"]

UP_TO_DATE = frozenset({"UpToDate"})
_PURPOSE = b"g2d confidential 1\0"
_DATA = 64  # bytes that a guest may put into what is signed, of either maker


@dataclass(frozen=True)
class Shown:
    """What verified evidence says.

    Attributes:
        kind: a key of `BACKENDS`. measurements: SHA-384 of what was started, by name: `measurement`
            of AMD's; `mrtd` and `rtmr0` to `rtmr3` of Intel's. data: 64 bytes of the guest's
            choice. debug: the machine's owner reads its memory. migrates: another machine's agent
            may move it. firmware: security versions, by component. status: what the maker says of
            them ("": nothing), with the numbers of its advisories. machine: the processor, in hex.
            level: of privilege that asked, 0 the highest.
    """

    kind: str
    measurements: Mapping[str, bytes]
    data: bytes
    debug: bool
    migrates: bool
    firmware: Mapping[str, int]
    status: str = ""
    advisories: tuple[str, ...] = ()
    machine: str = ""
    level: int = 0


@dataclass(frozen=True)
class Expected:
    """What is wanted of it.

    Attributes:
        measurements: by name, those of which one has to be shown; one name at least. data: 64
            bytes that are fresh (`bound_data`). least: security versions by component, at least.
            statuses: of the maker's that will do. debug, migrates: whether such a machine will do.
        machines: processors, in hex, of which it has to be one; none: any of the maker's, for who
            has one may start the same there.
    """

    measurements: Mapping[str, frozenset[bytes]]
    data: bytes
    least: Mapping[str, int] = field(default_factory=dict)
    statuses: frozenset[str] = UP_TO_DATE
    debug: bool = False
    migrates: bool = False
    machines: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.measurements or not all(self.measurements.values()):
            raise SealingError(
                "no measurement is expected, and without one any machine of the maker will do: say"
                " what it is to have started, with --measurement NAME=HEX"
            )
        for name, values in self.measurements.items():
            if any(len(value) != hashlib.sha384().digest_size for value in values):
                raise SealingError(f"{name} is a SHA-384: 96 digits in hex")
        if len(self.data) != _DATA or not any(self.data):
            raise SealingError(
                f"what the machine was to put into its evidence has {_DATA} bytes that are not all"
                " zero: draw a nonce, and give it with --nonce"
            )


def bound_data(nonce: bytes, key: bytes = b"") -> bytes:
    """The 64 bytes that a machine puts into its evidence: SHA-512(purpose ‖ nonce ‖ key).

    Args:
        nonce: 32 bytes, drawn for this one time by whoever verifies. key: a public key, of fixed
            form, whose private half was made in the machine: what is wrapped for it is the
            machine's alone. b"": none.

    Raises:
        SealingError: the nonce is not of 32 bytes.
    """
    if len(nonce) != 32:
        raise SealingError("a nonce has 32 bytes: 64 digits in hex")
    return hashlib.sha512(_PURPOSE + nonce + key).digest()


def judge(shown: Shown, expected: Expected) -> list[str]:
    """Every reason why what was shown is not what is expected; []: it is."""
    said = []
    for name, values in sorted(expected.measurements.items()):
        found = shown.measurements.get(name)
        if found is None:
            known = ", ".join(sorted(shown.measurements))
            said.append(f"it has no {name} (there are: {known})")
        elif not any(hmac.compare_digest(found, value) for value in values):
            said.append(f"{name} is {found.hex()[:16]}..., which is not expected")
    if not hmac.compare_digest(shown.data, expected.data):
        said.append("it does not answer this nonce: it is a replay, or another machine's")
    if expected.machines and shown.machine not in expected.machines:
        said.append(f"its processor is {shown.machine[:16]}..., which is not expected")
    if shown.debug and not expected.debug:
        said.append("it may be debugged: who owns the machine reads its memory")
    if shown.migrates and not expected.migrates:
        said.append("a migration agent may move it to another machine")
    if shown.level:
        said.append(f"it was asked from level {shown.level} of privilege, and not from the highest")
    for name, least in sorted(expected.least.items()):
        if (has := shown.firmware.get(name)) is None:
            said.append(f"of its {name} no security version is told")
        elif has < least:
            said.append(f"its {name} is of security version {has}, expected {least} at least")
    if shown.status and shown.status not in expected.statuses:
        named = f" ({', '.join(shown.advisories)})" if shown.advisories else ""
        said.append(f"its maker says of its firmware: {shown.status}{named}")
    return said


def check(shown: Shown, expected: Expected) -> None:
    """Refuse what is not expected.

    Raises:
        SealingError: with every reason, in one line.
    """
    if said := judge(shown, expected):
        raise SealingError(f"the {shown.kind} machine is not what is expected: {'; '.join(said)}")
