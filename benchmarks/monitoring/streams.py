"""Benign streams for monitors: plain use, retries, bursts, augmentations, many users, a camera.

Some look like a search: images that are encoded anew, exposures, sliders of brightness, parts that
are covered in turn.

Each is a function of images (n, channels, height, width) in [0, 1] and a NumPy generator that
yields requests: inputs (m, ...) float32 and the client's name. They never end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.fft import dctn, idctn

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


def in_order(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """One client that sends a data set, an image after the other, again and again."""
    while True:
        for image in x:
            yield image[None], "in-order"


def recoded(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """Retries that are encoded anew, as JPEG does it: cosines of blocks of 8 in steps, 8 bits."""
    steps = (1 + np.add.outer(np.arange(8), np.arange(8))) / 255
    while True:
        image = _one(x, draws)
        for _ in range(draws.integers(1, BURST + 1)):
            yield _coded(image, float(draws.choice([1, 2, 4, 8, 16])) * steps), "recodes"


def _coded(image: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Blocks that fit; the rest stays as it is."""
    made = image.copy()
    rows, columns = (side - side % 8 for side in image.shape[2:])
    part = made[..., :rows, :columns]
    blocks = part.reshape(-1, rows // 8, 8, columns // 8, 8).transpose(0, 1, 3, 2, 4)
    waves = np.rint(dctn(blocks, axes=(-2, -1), norm="ortho") / steps) * steps
    blocks = idctn(waves, axes=(-2, -1), norm="ortho")
    made[..., :rows, :columns] = blocks.transpose(0, 1, 3, 2, 4).reshape(part.shape)
    return np.clip(np.rint(255 * made) / 255, 0, 1).astype(np.float32)


def exposures(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """An image in ten exposures of even steps, in any order."""
    while True:
        image = _one(x, draws)
        for step in draws.permutation(10):
            yield (image * (1 - 0.05 * step)).astype(np.float32), "exposures"


def sliders(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """A viewer whose brightness is moved: all values by one amount, cut off at the ends."""
    while True:
        image, client = _one(x, draws), f"viewer-{draws.integers(5)}"
        for by in (0.0, *draws.uniform(-0.4, 0.4, int(draws.integers(1, 6)))):
            yield np.clip(image + by, 0, 1).astype(np.float32), client


def covers(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """Occlusion maps: a square of one grey at one place after the other."""
    while True:
        image, grey = _one(x, draws), float(draws.uniform(0, 0.6))
        side = image.shape[-1] // 4
        for place in np.ndindex(*(length // side for length in image.shape[2:])):
            covered = image.copy()
            row, column = (side * at for at in place)
            covered[..., row : row + side, column : column + side] = grey
            yield covered, "covers"


def constant(x: np.ndarray, draws: np.random.Generator) -> Requests:
    """The same bytes for ever."""
    image = _one(x, draws)
    while True:
        yield image, "constant"


STREAMS: dict[str, Callable[[np.ndarray, np.random.Generator], Requests]] = {
    stream.__name__: stream
    for stream in (
        plain, shared_address, in_order, retries, resubmits, recoded, augmentations, sweeps,
        exposures, sliders, covers, camera, constant,
    )
}  # fmt: skip
