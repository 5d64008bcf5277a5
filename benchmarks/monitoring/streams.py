"""Benign streams for monitors: plain use, retries, bursts, augmentations, many users, a camera.

Each is a function of images (n, channels, height, width) in [0, 1] and a NumPy generator that
yields requests: inputs (m, ...) float32 and the client's name. They never end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Requests = Iterator[tuple[np.ndarray, str]]
BURST = 64  # variants of one image, at most, whoever sends them


def _one(x: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return x[draws.integers(len(x))][None]


def _noisy(image: np.ndarray, by: float, draws: np.random.Generator) -> np.ndarray:
    noise = by * draws.normal(size=image.shape)
    return np.clip(image + noise, 0, 1).astype(np.float32)


def plain(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """Fifty clients, an image or a batch of images at a time."""
    while True:
        some = x[draws.integers(len(x), size=int(draws.choice([1, 1, 1, 8, 32])))]
        yield some, f"plain-{draws.integers(50)}"


def shared_address(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """Many users behind one address."""
    while True:
        yield _one(x, draws), "many-users"


def retries(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """Clients that send the same image again and again, up to a hundred times."""
    while True:
        image, client = _one(x, draws), f"retry-{draws.integers(10)}"
        for _ in range(draws.integers(1, 101)):
            yield image, client


def resubmits(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """A bursty client: an image, encoded anew each time, in bursts of up to 64."""
    while True:
        image, by = _one(x, draws), float(draws.choice([0.002, 0.01, 0.05]))
        for _ in range(draws.integers(1, BURST + 1)):
            yield _noisy(image, by, draws), "resubmits"


def augmentations(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """Test-time augmentation: shifts, noise and brightness in any order, 2 to 64 of an image."""
    while True:
        image, parts = _one(x, draws), []
        for _ in range(draws.integers(2, BURST + 1)):
            moved = np.roll(image, tuple(draws.integers(-2, 3, size=2)), axis=(2, 3))
            moved = moved * draws.uniform(0.8, 1.0)
            parts.append(_noisy(moved, float(draws.choice([0.0, 0.05, 0.1])), draws))
        yield np.concatenate(parts), f"augments-{draws.integers(3)}"


def sweeps(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """Robustness tests: an image under a corruption that rises in up to ten steps."""
    while True:
        image, steps = _one(x, draws), int(draws.integers(3, 11))
        noise = draws.normal(size=image.shape)
        for step in range(steps):
            yield np.clip(image + 0.03 * step * noise, 0, 1).astype(np.float32), "sweeps"


def camera(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """A camera before scenes that stand still for a thousand noisy frames."""
    while True:
        image = _one(x, draws)
        for _ in range(1000):
            yield _noisy(image, 0.02, draws), "camera"


def constant(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """The same bytes for ever."""
    image = _one(x, draws)
    while True:
        yield image, "constant"


STREAMS: dict[str, Callable[[np.ndarray, np.random.Generator], Requests]] = {
    stream.__name__: stream
    for stream in (
        plain, shared_address, retries, resubmits, augmentations, sweeps, camera, constant
    )
}  # fmt: skip
