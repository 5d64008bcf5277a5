"""What unsealing adds to a swap: p99 while rotating of p99 at rest, of a sealed and a plain vault.

    python -m benchmarks.sealing.swap                                           # 9 minutes
    python -m benchmarks.sealing.swap --seconds 4 --turns 2 --only sealed       # a try

The same small vault of digits, plain and sealed (file custodian), each behind `g2d serve` which
makes a generation every second on the same machine; steady and rotating turns, as
`benchmarks.serving` has them, at one rate for both. Intervals are bootstraps over turns. `--vault`
takes a plain digits vault. Writes results/sealing_swap.json and prints a table.
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import command
from benchmarks.common.results import record
from benchmarks.serving.answers import judge
from benchmarks.serving.load import bodies
from benchmarks.serving.process import TINY, Server, copied, make_vault
from benchmarks.serving.run import latency, wait_to_write
from g2d.protect.sealing import make_custodian
from g2d.vault.sealing.changing import seal
from g2d.vault.sealing.remembered import VARIABLE
from g2d.vault.vault import Vault

KINDS = ("plain", "sealed")


def prepared(a: Namespace, folder: Path) -> dict[str, Path]:
    """The vault of each kind; what opens the sealed one is named for processes that follow."""
    plain, sealed = (folder / kind for kind in KINDS)
    if a.vault:
        copied(a.vault, plain)
    else:
        make_vault(plain, TINY)
    copied(plain, sealed)
    url = f"file:{folder / 'custodian.key'}"
    with Vault.open(sealed, write=True) as opened:
        seal(opened, make_custodian(url)[0], url)
    return dict(zip(KINDS, (plain, sealed), strict=True))


def measure(a: Namespace, folder: Path) -> dict[str, Any]:
    """Each kind in its turn, at the same rate."""
    os.environ.pop(VARIABLE, None)  # where one is named, plaintext is not served
    result = record(a) | {"latency": {}}
    for kind, vault in prepared(a, folder).items():
        if a.only not in ("", kind):
            continue
        wait_to_write(vault)
        server = Server(vault, folder / f"{kind}.log", "--every", f"{a.every}s")
        try:
            server.ready(a.patience)
            found = latency(server, a, a.rate)
            assert server.stop() == 0, "SIGTERM must drain and exit 0"
        finally:
            if server.process.poll() is None:
                server.kill()
        found |= asdict(judge(vault, bodies(), found.pop("answers")))
        result["latency"][kind] = found
    result["hardware"]["load_after"] = os.getloadavg()
    return result


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The table's rows: what, target, reached."""
    found = []
    for kind, one in result["latency"].items():
        low, high = one["interval"]
        found.append([
            f"{kind} vault: p99 while rotating / p99 steady, ms ({one['rotations']} rotations,"
            f" {one['answered']:,} answers at {one['rate']:g}/s)",
            "≤ 1.2" if kind == "sealed" else "–",
            f"{one['rotating']['p99_ms']:.2f} / {one['steady']['p99_ms']:.2f} ="
            f" {one['p99_ratio']:.2f} ({low:.2f}–{high:.2f})",
        ])  # fmt: skip
        bad = sum(one[key] for key in ("failed", "dropped", "wrong", "out_of_order"))
        found.append([
            f"{kind} vault: failed, dropped, wrong or out-of-order answers; one swap, ms",
            "0; –", f"{bad}; {one['swap_ms']:.1f}",
        ])  # fmt: skip
    return found


def main() -> None:
    """Read the flags, measure, print."""
    flags = command.parser(__doc__)
    flags.add_argument("--vault", type=Path, help="a plain digits vault; it is copied")
    flags.add_argument("--seconds", type=float, default=120, help="of rotation; as many without")
    flags.add_argument("--turns", type=int, default=10)
    flags.add_argument("--connections", type=int, default=16)
    flags.add_argument("--every", type=float, default=1.0, help="seconds between rotations")
    flags.add_argument("--rate", type=float, default=400.0, help="answers a second that are asked")
    flags.add_argument("--only", choices=("", *KINDS), default="", help="one of the two")
    flags.add_argument("--patience", type=float, default=120.0, help="seconds for a start")
    command.carry_out("sealing_swap", flags, measure, rows)


if __name__ == "__main__":
    main()
