"""Make every table of README and docs from benchmarks/results/*.json; numbers are never typed.

    python -m benchmarks.tables

Writes the same bytes as long as the JSON is the same.
"""

from __future__ import annotations

from benchmarks.cluster import tables as cluster
from benchmarks.common.tables import fill
from benchmarks.confidential import (
    accuracy,
    ciphertexts,
    homomorphic,
    multiparty,
    orion,
    rotation,
)
from benchmarks.federated import tables as federated
from benchmarks.generation import basins_tables as basins
from benchmarks.generation import tables as generation
from benchmarks.hostile import audit
from benchmarks.hostile import tables as hostile
from benchmarks.interop import tables as interop
from benchmarks.monitoring import policies_tables
from benchmarks.monitoring import tables as monitoring
from benchmarks.ownership import tables as ownership
from benchmarks.privacy import tables as privacy
from benchmarks.redteam import headline
from benchmarks.redteam import tables as redteam
from benchmarks.robust import tables as robust
from benchmarks.robust import ways_tables
from benchmarks.sealing import tables as sealing
from benchmarks.serving import tables as serving
from benchmarks.tabular import tables as tabular
from benchmarks.tokens import tables as tokens


def blocks() -> dict[str, str]:
    """Every block of every page, by the name of its mark."""
    made: dict[str, str] = {}
    sources = (
        generation, basins, robust, ways_tables, serving, cluster, redteam, tabular, tokens,
        headline, audit, hostile, policies_tables, monitoring, ownership, privacy,
        sealing, multiparty, homomorphic, orion, ciphertexts, rotation, accuracy, federated,
        interop,
    )  # fmt: skip
    for source in sources:
        own = source.made()
        assert not made.keys() & own.keys(), f"two blocks of one name: {made.keys() & own.keys()}"
        made |= own
    return made


def main() -> None:
    """Fill every page; say which blocks no page holds."""
    made = blocks()
    if unused := made.keys() - fill(made):
        raise SystemExit(f"no page holds these blocks: {', '.join(sorted(unused))}")


if __name__ == "__main__":
    main()
