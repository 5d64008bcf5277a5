"""What a TPM takes: sealing, quoting, releasing; and what is refused of what was changed.

    python -m benchmarks.sealing.attest            # swtpm; a minute or two
    python -m benchmarks.sealing.attest --flips 50 --repeats 5

Medians of `--repeats` runs against a software TPM, a process of its own. A release, end to end, is:
nonce, quote, verification, wrapping, importing and unsealing on the host. Of a quote, a sealed key
and a release `--flips` bits each are flipped, one at a time, in the bytes that travel.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.command import carry_out, parser
from benchmarks.common.results import record
from benchmarks.sealing.software_tpm import extend, running
from g2d.errors import SealingError
from g2d.protect.attestation import enrolment, release
from g2d.protect.attestation import host as asked
from g2d.protect.attestation.quotes import Evidence
from g2d.protect.sealing.tpm import TpmCustodian
from g2d.protect.tpm import counter, documents
from g2d.protect.tpm.device import open_device
from g2d.vault.sealing.released import PURPOSE

KEY, CONTEXT = bytes(range(32)), PURPOSE + b"a vault of this benchmark"
TARGET = 50  # ms, a release end to end


class Bench:
    """An enrolled host with its software TPM, and the side that releases to it."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.keeper = address, TpmCustodian(address)
        self.approver = release.PolicyKey.read(folder / "approvals.key")
        with open_device(address) as device:
            request = asked.request(device, counter.DEFAULT_INDEX)
        terms = enrolment.Terms((14,), every=1)
        challenge, pending = enrolment.begin(request, terms, (), True, time.time())
        with open_device(address) as device:
            answer = asked.answer(device, challenge)
        self.host, self.number = enrolment.finish(pending, answer, time.time()), 0

    def quote(self) -> bytes:
        """A quote that answers a nonce drawn now."""
        self.host, question = enrolment.ask(self.host, time.time())
        with open_device(self.address) as device:
            return documents.encode(asked.evidence(device, question))

    def hear(self, quote: bytes) -> tuple[enrolment.Host, Any]:
        """What a quote proves; the nonce stays as it is."""
        return enrolment.hear(
            self.host, documents.decode(Evidence, quote, "the quote"), time.time()
        )

    def release(self, quote: bytes, number: int) -> bytes:
        """Release a generation's key for what a quote proves."""
        heard, proven = self.hear(quote)
        made, self.host = release.release(heard, proven, KEY, CONTEXT, number, self.approver)
        return documents.encode(made)

    def whole(self) -> None:
        """A release, end to end."""
        self.number += 1
        blob = self.release(self.quote(), self.number)
        assert self.keeper.unwrap(blob, CONTEXT) == KEY


def median(repeats: int, once: Callable[[], object]) -> float:
    """Median wall milliseconds of a call."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        once()
        took.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(took), 2)


def times(bench: Bench, repeats: int) -> dict[str, float]:
    """Each step by itself, and all of them."""
    blob, quote = bench.keeper.wrap(KEY, CONTEXT), bench.quote()
    heard, proven = bench.hear(quote)
    made, _ = release.release(heard, proven, KEY, CONTEXT, 1, bench.approver)
    released = documents.encode(made)
    return {
        "seal": median(repeats, lambda: bench.keeper.wrap(KEY, CONTEXT)),
        "unseal": median(repeats, lambda: bench.keeper.unwrap(blob, CONTEXT)),
        "quote": median(repeats, bench.quote),
        "verify": median(repeats, lambda: enrolment.hear(
            dataclasses.replace(bench.host, nonce=documents.decode(Evidence, quote, "").nonce),
            documents.decode(Evidence, quote, ""), time.time())),
        "wrap": median(repeats, lambda: release.release(
            heard, proven, KEY, CONTEXT, 1, bench.approver)),
        "open": median(repeats, lambda: bench.keeper.unwrap(released, CONTEXT)),
        "release, end to end": median(repeats, bench.whole),
    }  # fmt: skip


def is_refused(once: Callable[[], object]) -> bool:
    """Whether a call is refused in one line."""
    try:
        once()
    except SealingError as error:
        return "\n" not in str(error)
    return False


def flips(bench: Bench, count: int) -> dict[str, list[int]]:
    """How many flipped bits are refused, of how many, in each thing that travels."""
    draw = random.Random(23)
    bench.number += 1
    quote = bench.quote()
    heard, proven = bench.hear(quote)
    made, _ = release.release(heard, proven, KEY, CONTEXT, bench.number, bench.approver)
    blobs: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
        "a quote": (quote, bench.hear),
        "a sealed key": (
            bench.keeper.wrap(KEY, CONTEXT), lambda data: bench.keeper.unwrap(data, CONTEXT)
        ),
        "a release": (documents.encode(made), lambda data: bench.keeper.unwrap(data, CONTEXT)),
    }  # fmt: skip
    found = {}
    for name, (blob, judge) in blobs.items():
        judge(blob)  # as it is, it is taken
        refused, bits = 0, draw.sample(range(8 * len(blob)), min(count, 8 * len(blob)))
        for bit in bits:
            flipped = bytearray(blob)
            flipped[bit // 8] ^= 1 << bit % 8
            refused += is_refused(lambda data=bytes(flipped), judge=judge: judge(data))  # type: ignore[misc]
        found[name] = [refused, len(bits)]
    return found


def others(bench: Bench, folder: Path) -> dict[str, bool]:
    """What else is refused: each is tried once. PCR 14 is extended last."""
    old = bench.quote()
    bench.number += 3
    first = bench.release(bench.quote(), bench.number)
    bench.keeper.unwrap(first, CONTEXT)
    bench.number += 3
    newer = bench.release(bench.quote(), bench.number)
    bench.keeper.unwrap(newer, CONTEXT)
    found = {
        "old nonce": is_refused(lambda: bench.hear(old)),
        "wound-back vault, on the host": is_refused(lambda: bench.keeper.unwrap(first, CONTEXT)),
        "wound-back vault, on release": is_refused(lambda: bench.release(bench.quote(), 1)),
    }
    with running(folder / "there") as there:
        other = Bench(there, folder)
        bench.host, question = enrolment.ask(bench.host, time.time())
        with open_device(there) as device:
            theirs = documents.encode(asked.evidence(device, question))
        found["other key"] = is_refused(lambda: bench.hear(theirs))
        found["other TPM"] = is_refused(lambda: other.keeper.unwrap(newer, CONTEXT))
    blob = bench.keeper.wrap(KEY, CONTEXT)
    extend(bench.address, 14, bytes(32))
    found["other PCR, sealed"] = is_refused(lambda: bench.keeper.unwrap(blob, CONTEXT))
    found["other PCR, released"] = is_refused(lambda: bench.keeper.unwrap(newer, CONTEXT))
    found["other PCR, on release"] = is_refused(
        lambda: bench.release(bench.quote(), bench.number + 1)
    )
    return found


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times, flipped bits, and the rest."""
    with running(folder / "here") as address:
        bench = Bench(address, folder)
        return record(given) | {
            "times": times(bench, given.repeats),
            "flips": flips(bench, given.flips),
            "others": others(bench, folder),
        }


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    took = [
        (f"{name}, swtpm, ms", f"≤ {TARGET}" if name.startswith("release") else "", value)
        for name, value in result["times"].items()
    ]
    flipped = [
        (f"refused: flipped bits of {name}", "100 %", f"{refused} of {count}")
        for name, (refused, count) in result["flips"].items()
    ]
    rest = [(f"refused: {name}", "yes", "yes" if is_ else "NO") for name, is_ in
            result["others"].items()]  # fmt: skip
    return [*took, *flipped, *rest]


def main() -> None:
    """Run the command line."""
    flags = parser(__doc__)
    flags.add_argument("--repeats", type=int, default=25, help="of each step; default: 25")
    flags.add_argument("--flips", type=int, default=1000, help="bits of each; default: 1000")
    carry_out("attest", flags, measure, rows)


if __name__ == "__main__":
    main()
