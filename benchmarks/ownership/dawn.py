"""DAWN: a service that marks its answers, so that whoever learns from them learns the mark.

Szyller, Atli, Marchal and Asokan 2021, arXiv 1906.00830. Of all queries a small share, chosen by a
keyed hash of the query alone, is answered wrongly, always in the same way. A copy that was trained
on the answers repeats them. Re-implemented as a rival in a benchmark; no part of the product.

Left out is the paper's mapping function, by which a query and slight changes of it are answered
alike: the copies of the benchmark are trained on queries as they were asked.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

import torch
from torch import Tensor

from g2d.core.types import Logits
from g2d.protect.watermark import p_value
from g2d.tasks.inference import predict

_LEVELS = 255  # a query is hashed as an 8-bit image, so that rounding does not choose its answer


@dataclass(frozen=True)
class Dawn:
    """A service over a model: maps queries (n, ...) to logits (n, classes), `share` of them wrong.

    Attributes:
        key: secret; decides on queries and on their wrong labels. bounds: of the inputs' values,
            None for token ids.
    """

    model: Logits
    key: bytes = field(repr=False)
    classes: int
    share: float
    bounds: tuple[float, float] | None

    def __call__(self, x: Tensor) -> Tensor:
        """Answer: of chosen queries the highest score changes places with the wrong label's."""
        logits = self.model(x).clone()
        top = logits.argmax(1)
        chosen, other = self._decided(x, top)
        at, right, wrong = chosen, top[chosen], other[chosen]
        logits[at, right], logits[at, wrong] = logits[at, wrong], logits[at, right]
        return logits

    def marked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The places of the chosen ones among queries x, (m,), and how they are answered, (m,)."""
        top = predict(self.model, x).argmax(1)
        chosen, other = self._decided(x, top)
        return chosen, other[chosen]

    def _decided(self, x: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Which queries are chosen, and for each a label that is not the model's own."""
        digests = [hmac.digest(self.key, row, hashlib.sha256) for row in self._bytes(x)]
        limit = int(self.share * 2**64)
        chosen = [int.from_bytes(digest[:8], "big") < limit for digest in digests]
        # Uniform over the other classes, and independent of whoever did not see the answers.
        steps = [1 + int.from_bytes(d[8:16], "big") % (self.classes - 1) for d in digests]
        return torch.tensor(chosen).nonzero()[:, 0], (top + torch.tensor(steps)) % self.classes

    def _bytes(self, x: Tensor) -> list[bytes]:
        flat = x.flatten(1)
        if self.bounds is not None:
            low, high = self.bounds
            flat = ((flat - low) / (high - low) * _LEVELS).round().clamp(0, _LEVELS)
            flat = flat.to(torch.uint8)
        return [row.tobytes() for row in flat.numpy()]


def worth(hits: int, n: int, classes: int) -> float:
    """At most how likely `hits` of `n` wrong labels are for a network that saw no answers.

    A wrong label is uniform over all classes but the right one, so that whatever such a network
    answers, hits are no more than Binomial(n, 1 / (classes - 1)). Needs three classes.
    """
    return p_value(hits, n, classes - 1)
