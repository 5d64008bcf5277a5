"""Durability: how many finds of a search go on working as the networks behind the API rotate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from g2d.attacks import project
from g2d.core.types import Logits
from g2d.redteam.context import AttackContext
from g2d.redteam.query_log import QueryLog, by_count
from g2d.redteam.scoring import share

ROTATIONS = 5


def durability(
    models: Sequence[Logits],
    lanes: QueryLog,
    start: Tensor,
    at: int,
    context: AttackContext,
    fixed: bool = False,
) -> dict[str, Any]:
    """Which share of the finds, as sent, flips the networks that follow the one it was found on.

    Whether the search met a rotation or none: what it found is kept, and then they come.

    Args:
        models: the networks in their order. start: place at which each lane began (n,) or more.
        at: the budget whose finds are looked at. fixed: the networks are one function.

    Returns:
        `durability`: a rate for each number of `rotations` up to five, over the finds for which
        there is such a network that the lane has not met; `after_five_rotations`: the last of them.
        Both are left out where nothing was found or nothing follows.
    """
    won = lanes.won(at).nonzero()[:, 0]
    sent = project(lanes.found, lanes.split.x, context.eps, context.bounds)
    points = []
    for rotations in range(1, ROTATIONS + 1):
        place = lanes.network[won] + rotations
        # Where the networks are used up the first follows again, and a lane meets what it has met.
        fresh = torch.full_like(won, fixed, dtype=torch.bool) | (place - start[won] < len(models))
        counted = won[fresh]
        if not len(counted):
            break
        following = by_count(models, None, lanes.network + rotations)
        scores, _ = following(sent[counted], counted, torch.ones_like(counted))
        flipped = int((scores.argmax(1) != lanes.split.y[counted]).sum())
        points.append({"rotations": rotations} | asdict(share(flipped, len(counted))))
    if not points:
        return {}
    told: dict[str, Any] = {"durability": points}
    if len(points) == ROTATIONS:
        told["after_five_rotations"] = {k: v for k, v in points[-1].items() if k != "rotations"}
    return told
