"""At most a hundredth of a network's parameters move: norms and the head, or low-rank adapters.

What `benchmarks.generation.cifar --scope` takes, and the rows that say how much of a stale attack
is left beside a network that stays. Batch norm's statistics, which are no parameters, move as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import g2d
from benchmarks.common.tables import NOTHING
from benchmarks.generation.pretraining import NETWORKS
from g2d.tasks.adapters import Adapted

SCOPES = ("all", "norms", "adapters")
SHARE = 0.01  # of the parameters, at most
LEFT = 0.5  # of the ASR on a network that stays, at most


@dataclass(frozen=True)
class Layers:
    """Which layers have adapters, of which rank; what trains beside them, as it is."""

    layers: tuple[str, ...]
    rank: int
    train: tuple[str, ...] = ()


ADAPTERS = {
    "small": Layers(("0", "3.*", "4.*", "8"), 1),  # 1,893 of 223,146
    "tiny": Layers(("8",), 1),  # 22 of 3,822: there is no room for more
    "resnet18": Layers(("[0-9]", "[0-9].*", "10.*"), 2, ("13.*",)),  # 76,532 of 11,173,962
}


def factory_of(network: str, scope: str) -> Callable[[], nn.Module]:
    """What builds a network: with adapters if it has that scope."""
    plain = NETWORKS[network]
    if scope != "adapters":
        return plain
    found = ADAPTERS[network]
    return Adapted(plain, found.layers, found.rank, train=found.train)


def names_of(network: str, scope: str) -> tuple[str, ...]:
    """What `[autoencoder] scope` names; nothing: all that trains."""
    if scope != "norms":
        return ()
    model = NETWORKS[network]()
    head = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [n for n, p in model.named_parameters() if p.dim() == 1 or n.startswith(head[-1] + ".")]
    return (*found, *(n for n, _ in model.named_buffers() if "running" in n))


def share_of(task: g2d.Task, scope: Sequence[str], network: str) -> dict[str, int]:
    """How many parameters move, and of how many the network has them."""
    model, plain = task.model(0), NETWORKS[network]()
    moving = [
        p for n, p in model.named_parameters() if p.requires_grad and (not scope or n in scope)
    ]
    count = sum(p.numel() for p in moving)
    return {"moving": count, "parameters": sum(p.numel() for p in plain.parameters())}


def rows(records: Mapping[str, Mapping[str, Any]]) -> list[list[object]]:
    """A line for each scope and eps that was measured: what, target, reached."""
    table: list[list[object]] = []
    for scope, record in records.items():
        found, share = record["short"], record["scope"]
        part = share["moving"] / share["parameters"]
        wanted = NOTHING if scope == "all" else f"≤ {SHARE:.0%}"
        table.append([f"{scope}: parameters that move", wanted, f"{part:.2%}"])
        for eps, row in found["rows"].items():
            left = row["last"] / max(row["had_it_stayed"], 1e-9)
            said = f"{left:.2f} × ({row['last']:.1%} of {row['had_it_stayed']:.1%})"
            table.append([f"{scope}, {eps}: stale ASR by 'had it stayed'", f"≤ {LEFT} ×", said])
        lost = 100 * (found["clean_base"] - found["clean_mean"])
        table.append([f"{scope}: clean points lost to the base", "≤ 2", f"{lost:.1f}"])
    return table
