"""What sealing costs: reading a generation, sealed and plain, and asking a custodian for the key.

    python -m benchmarks.sealing.cost            # some seconds
    python -m benchmarks.sealing.cost --custodian 'pkcs11:token=T;object=K?module-path=..'

The medians of `--repeats` readings of a generation of `--sizes` MiB (`Vault.read_generation`, which
checks the digest in both cases), the vault's key in memory as in a service; and of asking the
custodian for that key, as each process does once. The cost of a swap under load is measured by
`python -m benchmarks.serving --vault SEALED`, as that of any vault.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.command import carry_out, parser
from benchmarks.common.results import record
from benchmarks.sealing.kills import network
from g2d.protect.sealing import custodian, make_custodian
from g2d.vault.sealing import changing
from g2d.vault.vault import Vault

SIZES, REPEATS = (1, 16, 64), 15


def median(repeats: int, once: Callable[[], object]) -> float:
    """Median wall milliseconds of a call."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        once()
        took.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(took), 3)


def reading(folder: Path, size: int, repeats: int) -> dict[str, float]:
    """A generation of `size` MiB, read plain and sealed."""
    url = f"file:{folder / f'{size}.key'}"
    with Vault.create(folder / f"of {size}", "[task]\n") as vault:
        vault.accept({"weights": network(size, size << 18)}, {}, activate=True)
        plain = median(repeats, lambda: vault.read_generation(1))
        changing.seal(vault, make_custodian(url)[0], url)
        sealed = median(repeats, lambda: vault.read_generation(1))
    return {"size": size, "plain": plain, "sealed": sealed}


def asking(folder: Path, url: str, repeats: int) -> dict[str, Any]:
    """The vault's key, each time from the custodian."""
    made, _ = make_custodian(url)
    with Vault.create(folder / f"by {made.kind}", "[task]\n") as vault:
        record = changing.begin(vault, made, url)
        (held,) = record.held
        took = median(repeats, lambda: custodian(url).unwrap(held.blob, record.context))
    return {"kind": made.kind, "ms": took}


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All sizes, the file custodian and those that were named."""
    urls = [f"file:{folder / 'c.key'}", *given.custodian]
    return record(given) | {
        "reading": [reading(folder, size, given.repeats) for size in given.sizes],
        "asking": [asking(folder, url, given.repeats) for url in urls],
    }


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    read = [
        (f"a generation of {r['size']} MiB, read sealed (plain), ms", "",
         f"{r['sealed']} ({r['plain']})")
        for r in result["reading"]
    ]  # fmt: skip
    asked = [
        (f"the vault's key, by the custodian {a['kind']}, ms", "", a["ms"])
        for a in result["asking"]
    ]
    return [*read, *asked]


def main() -> None:
    """Measure and keep."""
    flags = parser(__doc__)
    flags.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="MIB")
    flags.add_argument("--repeats", type=int, default=REPEATS)
    flags.add_argument("--custodian", nargs="*", default=[], help="names of others to ask, too")
    carry_out("sealing-cost", flags, measure, rows)


if __name__ == "__main__":
    main()
