"""Extraction: a surrogate trained on what an API answers, by ART's Copycat CNN and Knockoff Nets.

How close the surrogate comes, and what attacks on it are worth, is for the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from g2d.attacks.art import Typed, array, black_box, quiet
from g2d.core.adam import Adam
from g2d.core.types import Bounds

ATTACKS = ("copycat", "knockoff")


class _Soft(nn.Module):
    """Cross-entropy with the victim's probabilities; ART would cut them to labels for torch's."""

    def forward(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        return F.cross_entropy(logits, probabilities)


def extract(
    api: Callable[[Tensor], Tensor],
    surrogate: nn.Module,
    x: Tensor,
    *,
    attack: str,
    queries: int,
    classes: int,
    bounds: Bounds,
    seed: int,
    request: int = 100,
    epochs: int = 10,
    rate: float = 2e-3,
) -> nn.Module:
    """Train a surrogate, in place, on an API's answers to the attacker's own images.

    `copycat` (Correia-Silva et al. 2018, arXiv 1806.05476) learns the answered labels; `knockoff`
    (Orekondy et al. 2019, arXiv 1812.02766; random strategy) learns the answered probabilities.

    Args:
        api: maps inputs (m, ...) to logits or probabilities (m, classes); one call is one request.
        x: images that the attacker owns (n, ...), without labels.
        queries: how many of them are asked about, once each. request: inputs a request.
        epochs, rate: the surrogate's training with Adam, batches of 64.

    Returns:
        The surrogate in evaluation mode, frozen. Whatever the API raises passes through.
    """
    from art.attacks.extraction import CopycatCNN, KnockoffNets
    from art.estimators.classification import PyTorchClassifier

    assert attack in ATTACKS, f"no such extraction: {attack}"
    soft = attack == "knockoff"
    shape = tuple(x.shape[1:])
    thief: Any = PyTorchClassifier(
        model=Typed(surrogate, x.dtype), loss=_Soft(), input_shape=shape, nb_classes=classes,
        clip_values=bounds,
        optimizer=Adam(surrogate.parameters(), rate), device_type="cpu",
    )  # fmt: skip
    victim = black_box(
        (lambda part: _probabilities(api(part))) if soft else api, shape, classes, bounds, x.dtype
    )
    settings = {
        "batch_size_fit": 64, "batch_size_query": request, "nb_epochs": epochs,
        "nb_stolen": min(queries, len(x)), "use_probability": soft,
    }  # fmt: skip
    library = (
        KnockoffNets(victim, verbose=False, **settings) if soft else CopycatCNN(victim, **settings)
    )
    with quiet(seed):
        library.extract(array(x), thieved_classifier=thief)
    return surrogate.eval().requires_grad_(False)


def _probabilities(scores: Tensor) -> Tensor:
    """Softmax of logits; rows that are probabilities already stay."""
    sums = bool(((scores.sum(1) - 1).abs() <= 1e-3).all())
    return scores if sums and bool((scores >= 0).all()) else scores.softmax(1)
