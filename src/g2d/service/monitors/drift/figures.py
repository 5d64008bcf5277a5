"""What requests say: shares of the classes, scores, confidence, input statistics. Numpy alone.

Each is one value a request, whatever its number of inputs: inputs of one request belong together.
Requests are taken several at a time, for small numpy calls cost more than what they compute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2d.core.types import Array
from g2d.service.http.protocol import Model

_STREAMS = 64  # of classes, and of columns; more share streams
_CHANNELS = 8
_PLACES = 1024  # values of an input that tell whether it is repeated
_REMEMBERED = 8192  # inputs
_AT_ONCE = 1 << 18  # values that are computed with at once: each takes 8 bytes, several times


def folded(values: Array, most: int = _STREAMS) -> Array:
    """Add up columns that share a stream: (n, k) to (n, min(k, most))."""
    n, k = values.shape
    if k <= most:
        return values
    padded = np.zeros((n, -(-k // most) * most), values.dtype)
    padded[:, :k] = values
    return padded.reshape(n, -1, most).sum(1)


def means(values: Array, starts: Array) -> Array:
    """Average rows (n, k) over each request's, which begin at `starts` (r,): (r, k)."""
    counts = np.diff(starts, append=len(values))
    return np.add.reduceat(values, starts, axis=0) / counts[:, None]


@dataclass(frozen=True)
class Answers:
    """Of several requests' answers, means over each one's inputs.

    Attributes:
        shares: (r, k) of the predicted classes. scores: (r, k + 1) softmax, and the confidence.
    """

    shares: Array
    scores: Array

    @classmethod
    def of(cls, logits: Array, starts: Array) -> Answers:
        """Take logits (n, classes) of requests that begin at `starts`; k is 64 at most."""
        shifted = logits - logits.max(1, keepdims=True)
        scores = np.exp(shifted, dtype=np.float64)
        scores /= scores.sum(1, keepdims=True)
        best = scores.max(1, keepdims=True)
        hard = np.zeros_like(scores)
        hard[np.arange(len(hard)), logits.argmax(1)] = 1.0
        whole = np.concatenate([folded(scores), best], axis=1)
        return cls(means(folded(hard), starts), means(whole, starts))


class InputFigures:
    """Makes a vector of each request's inputs: mean and spread of each channel, or each column.

    Token ids have neither: of whole numbers nothing is made.

    Attributes:
        names: what each entry is; empty: nothing is made of such inputs.
    """

    def __init__(self, model: Model) -> None:
        shape = model.shape
        whole = np.dtype(model.dtype).kind != "f" or model.vocabulary > 0
        self._columns = len(shape) == 1
        self._channels = shape[0] if len(shape) == 3 and shape[0] <= _CHANNELS else 1
        if whole or not shape:
            self.names: tuple[str, ...] = ()
        elif self._columns:
            self.names = tuple(f"column {c}" for c in range(min(shape[0], _STREAMS)))
        else:
            each = range(self._channels)
            self.names = tuple(
                f"{what} of channel {c}" for what in ("mean", "spread") for c in each
            )

    def __call__(self, inputs: Array, starts: Array) -> Array:
        """Return the entries (r, k) for inputs (n, ...) of requests that begin at `starts`."""
        if self._columns:
            whole = inputs.astype(np.float64, copy=False)
            return means(folded(whole) / folded(np.ones((1, whole.shape[1]))), starts)
        step = max(1, _AT_ONCE // max(1, inputs[0].size))
        parts = [self._spreads(inputs[n : n + step]) for n in range(0, len(inputs), step)]
        return means(np.concatenate(parts), starts)

    def _spreads(self, inputs: Array) -> Array:
        parts = inputs.reshape(len(inputs), self._channels, -1)
        mean = parts.mean(2, dtype=np.float64)
        spread = np.sqrt(np.square(parts - mean[..., None]).mean(2))
        return np.concatenate([mean, spread], axis=1)


class Repeats:
    """Says which inputs a client has sent before, lately: retries say nothing new of the world.

    Keeps keyed hashes, which say nothing of an input; where inputs are large, of some of their
    values, at places that nobody knows.
    """

    def __init__(self, model: Model, most: int = _REMEMBERED) -> None:
        size = int(np.prod(model.shape, dtype=np.int64))
        few = np.random.default_rng().choice(size, _PLACES, False) if size > _PLACES else None
        self._places, self._most = few, most
        self._seen: dict[int, None] = {}

    def fresh(self, inputs: Array, client: str) -> Array:
        """Return which of the inputs (n, ...) are new: (n,) of bool."""
        flat = inputs.reshape(len(inputs), -1)
        if self._places is not None:
            flat = flat[:, self._places]
        found = np.zeros(len(flat), bool)
        for n, row in enumerate(flat):
            key = hash((client, row.tobytes()))
            found[n] = key not in self._seen
            self._seen.pop(key, None)
            self._seen[key] = None
        while len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return found
