"""What answers give away, however they were asked for: red-team rows, and how tables tell them.

Each way's answers stand beside the plain network's, by the same attacks: whoever may ask gets both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g2d import Task
from g2d.redteam.rows import Identifiers, Row
from g2d.redteam.scoring import share
from g2d.redteam.threats.privacy.membership import area
from g2d.tasks.splits import Split

COLUMNS = ("who does what", "to whom", "measured", "got", "")
IDS = Identifiers(
    "AML.T0024 Exfiltration via AI Inference API", "nearest: NISTAML.03 privacy compromise",
    "nearest: ML05 Model Theft",
)  # fmt: skip


def halves(task: Task, n: int) -> tuple[Split, Split]:
    """Members of the training data and others, (n, ...) each, or as many as there are."""
    train, test = task.splits.train, task.splits.test
    return train.take(range(min(n, len(train)))), test.take(range(min(n, len(test))))


def through(
    name: str,
    family: str,
    told: Mapping[str, tuple[str, Tensor]],
    both: tuple[Split, Split],
    fresh: nn.Module,
    steps: int,
) -> Iterator[Row]:
    """Extraction and membership by logits.

    Args:
        name: what rows' kinds begin with. told: chain and logits of members and others by the
            target's name; "plain" is the network's own. fresh: what a copy begins as.
    """
    members, others = both
    y = torch.cat([members.y, others.y])
    right = told["plain"][1][: len(members)].argmax(1)
    state = {key: value.clone() for key, value in fresh.state_dict().items()}
    for target, (chain, logits) in told.items():
        fresh.load_state_dict(state)
        copied = _copied(fresh.train(), others.x, logits[len(members) :], steps)
        with torch.no_grad():
            same = (copied(members.x).argmax(1) == right).sum()
        yield Row(
            family, f"{name}-copy", "a client trains a copy on answers", target,
            f"{len(others)} inputs, their logits", share(float(same), len(members)),
            metric="agreement with the network", chain=chain,
            note="answers are the network's: what limits it is rates and rotation",
        )  # fmt: skip
        scores = -F.cross_entropy(logits, y, reduction="none")
        yield Row(
            family, f"{name}-membership", "a client guesses who was in the training data", target,
            "loss of an answer", None, metric="area under the curve", chain=chain,
            extra={"area": area(scores, len(members)), "members": len(members)},
        )  # fmt: skip


def _copied(model: nn.Module, x: Tensor, logits: Tensor, steps: int) -> nn.Module:
    source = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,), generator=source)
        optimiser.zero_grad()
        F.kl_div(
            F.log_softmax(model(x[chosen]), 1), F.softmax(logits[chosen], 1), reduction="batchmean"
        ).backward()
        optimiser.step()
    return model.eval()


def line(row: Mapping[str, Any]) -> tuple[object, ...]:
    """A row of `results.json` as a table has it."""
    return row["threat"], row["target"], row["metric"], _got(row), _noted(row)


def _got(row: Mapping[str, Any]) -> str:
    value, extra = row["value"], row["extra"]
    if value is None:
        return f"{extra['area']:.3f}"
    text = f"{value['value']:.3f} of {value['n']:,}"
    return f"{text}, {extra['refused']} refused" if "refused" in extra else text


def _noted(row: Mapping[str, Any]) -> str:
    """A row's note, and what χ² says of what was seen."""
    found = {key[2:]: p for key, p in row["extra"].items() if key.startswith("p_")}
    if not found:
        return row["note"]
    said = ", ".join(f"{p:.2g} ({what})" for what, p in found.items())
    return f"{row['note']}; χ² against uniform: p = {said}"
