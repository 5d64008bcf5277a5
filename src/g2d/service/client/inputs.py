"""Inputs as a client has them: read from files, fitted to a model's shape, checked before use.

What is encrypted cannot be checked by anybody else: a pixel out of bounds would only show in an
answer that is wrong.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from g2d.core.files import read_plain
from g2d.core.types import Array
from g2d.errors import DataError, G2DError

_MOST = 1 << 28  # bytes of a file of inputs
_PIXELS = 1 << 26
_PICTURES = 3  # sides of a picture: channels, height, width


def read_inputs(file: Path, shape: tuple[int, ...]) -> Array:
    """Read inputs (n, *shape) float32 from an array (.npy) or from one picture, as 0 to 1.

    Raises:
        DataError: it is neither, or of another shape.
    """
    try:
        data = read_plain(file, _MOST, follow=True)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    if not data.startswith(b"\x93NUMPY"):
        return fitted(_picture(file, data, shape), shape)
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise DataError(f"{file} holds no array of numbers: {error}") from error
    return fitted(found, shape)


def fitted(x: Array, shape: tuple[int, ...]) -> Array:
    """Return inputs as (n, *shape), n > 0; one alone, of the very shape, is a batch of it.

    Raises:
        DataError: they are of another shape, no numbers, or not finite.
    """
    x = np.asarray(x)
    if x.shape == shape:
        x = x[None]
    if x.shape[1:] != shape or not len(x):
        sides = ", ".join(map(str, shape))
        raise DataError(f"inputs have the shape {list(x.shape)}, expected [n, {sides}], n > 0")
    if x.dtype.kind not in "fiu":
        raise DataError(f"inputs are {x.dtype}, expected numbers")
    if not np.isfinite(x).all():
        raise DataError("inputs hold NaN or infinity: every value must be a finite number")
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def bounded(x: Array, bounds: tuple[float, float] | None) -> Array:
    """Return inputs, whose every value lies within bounds; None: they have none.

    Raises:
        DataError: one does not.
    """
    if bounds is None or not x.size:
        return x
    low, high = float(x.min()), float(x.max())
    if low < bounds[0] or high > bounds[1]:
        hint = "; divide bytes by 255" if bounds == (0.0, 1.0) and 1.0 < high <= 255.0 else ""
        raise DataError(
            f"inputs lie in {low:g} to {high:g}, expected {bounds[0]:g} to {bounds[1]:g}{hint}."
            " Nothing was encrypted"
        )
    return x


def _picture(file: Path, data: bytes, shape: tuple[int, ...]) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise G2DError("reading pictures needs pillow: pip install 'g2d[images]'") from error
    if len(shape) != _PICTURES or shape[0] not in (1, 3):
        raise DataError(f"inputs of {list(shape)} are no pictures: give an array in a .npy file")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > _PIXELS:
                raise DataError(f"{file} has more than {_PIXELS} pixels")
            pixels = np.asarray(picture.convert("L" if shape[0] == 1 else "RGB"), np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is neither an array (.npy) nor a picture: {error}") from error
    if pixels.shape[:2] != shape[1:]:
        height, width = pixels.shape[:2]
        raise DataError(
            f"{file} is {width} x {height} pixels, expected {shape[2]} x {shape[1]}: scale it first"
        )
    return (pixels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1) / 255.0)[None]
