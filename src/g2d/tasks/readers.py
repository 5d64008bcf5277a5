"""How data is read: embedded digits, MNIST and CIFAR-10 files, folders of images.

Everything read from disk is checked, and nothing is ever unpickled.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g2d.core.files import read_plain
from g2d.core.platforms import open_plain
from g2d.errors import DataError
from g2d.tasks.decoded import remembered
from g2d.tasks.splits import FRACTIONS, Split, Splits, split_dataset, unit_scaled

DIGITS_FRACTIONS = (0.55, 0.2, 0.25)
CIFAR10_FRACTIONS = (0.7, 0.15, 0.15)
MNIST_FRACTIONS = (42 / 60, 10 / 60, 8 / 60)

_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_MOST, _MOST_IMAGE = 1 << 34, 1 << 28  # bytes of an idx file unpacked, of one image
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_digits(seed: int = 0) -> Splits:
    """Read scikit-learn's embedded digits: x (N, 1, 8, 8) float32 in [0, 1], 10 classes."""
    images, labels = _embedded_digits()
    x = torch.from_numpy(images.reshape(-1, 1, 8, 8) / 16).float()
    return split_dataset(x, torch.from_numpy(labels), None, DIGITS_FRACTIONS, seed)


def _embedded_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 64) of 0 to 16 and labels, as `sklearn.datasets.load_digits` reads them.

    From its file where that lies where it always lay: the import alone takes 1.5 CPU seconds in
    every process that loads the task.
    """
    found = importlib.util.find_spec("sklearn")
    if found is not None and found.origin is not None:
        packed = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if packed.is_file():
            with gzip.open(packed, "rt") as lines:
                table = np.loadtxt(lines, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits as embedded

    images, labels = embedded(return_X_y=True)
    return images, labels


def load_mnist(folder: Path | str, seed: int = 0) -> Splits:
    """Read MNIST's four idx files, plain or .gz: x (N, 1, 28, 28) float32 in [0, 1].

    The 60,000 train images give train 42,000, guide 10,000, gate 8,000; the t10k files are test.

    Raises:
        DataError: a file is missing, truncated or not what its name says.
    """
    root = _folder(folder, "the four MNIST idx files")
    x, y = _read_mnist(root, "train")
    test_x, test_y = _read_mnist(root, "t10k")
    return split_dataset(x, y, Split(unit_scaled(test_x), test_y), MNIST_FRACTIONS, seed)


def load_cifar10(folder: Path | str, seed: int = 0) -> Splits:
    """Read CIFAR-10: x (N, 3, 32, 32) float32 in [0, 1]; train 35,000, guide and gate 7,500 each.

    `folder` holds either `train_jpeg.npz` and `test_jpeg.npz` (arrays `blob`: all JPEG files one
    after another, `length`: bytes of each, `y`: labels) or `train/<class>/*.png` and
    `test/<class>/*.png` (any of the usual image types).

    Raises:
        DataError: Pillow or a file is missing, or a file is not what it should be.
    """
    expected = "CIFAR-10 as train_jpeg.npz and test_jpeg.npz, or as train/<class>/*.png and test/"
    root = _folder(folder, expected)
    packed = [root / "train_jpeg.npz", root / "test_jpeg.npz"]
    folders = [root / "train", root / "test"]
    if all(path.is_file() for path in packed):
        (x, y), (test_x, test_y) = (_read_packed(path) for path in packed)
    elif all(path.is_dir() for path in folders):
        (x, y, names), (test_x, test_y, test_names) = (read_images(path) for path in folders)
        if len(names) != 10 or names != test_names:
            raise DataError(
                f"{root} has the classes {list(names)} in train and {list(test_names)} in test; "
                "expected the same 10 in both"
            )
    else:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise DataError(f"{root} holds {found}; expected {expected}. Point --data at that folder")
    for path, images in ((root / "train", x), (root / "test", test_x)):
        if images.shape[1:] != (3, 32, 32):
            raise DataError(f"{path}: images are {tuple(images.shape[1:])}, expected (3, 32, 32)")
    return split_dataset(x, y, Split(unit_scaled(test_x), test_y), CIFAR10_FRACTIONS, seed)


def load_image_folder(
    folder: Path | str, seed: int = 0, size: tuple[int, int] | int | None = None
) -> tuple[Splits, tuple[str, ...]]:
    """Read `<folder>/<class>/<image>` as RGB: x (N, 3, H, W) float32 in [0, 1], and class names.

    Classes are numbered in the sorted order of their names. `size` (H, W), or one side of a square,
    resizes every image; without it, all must have the same size already.

    Raises:
        DataError: Pillow is missing, there are no classes or images, or an image cannot be read.
    """
    x, y, names = read_images(_folder(folder, "a sub-folder of images for each class"), size)
    return split_dataset(x, y, None, FRACTIONS, seed), names


def _folder(folder: Path | str, expected: str) -> Path:
    if not str(folder):
        raise DataError(f"no data folder was given; point --data at a folder with {expected}")
    root = Path(folder).expanduser()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root} {found}; point --data at a folder with {expected}")
    return root


def _labels(path: Path, labels: NDArray[Any], classes: int = 10) -> Tensor:
    """Return `labels` (N,) as int64 after checking that all lie in [0, classes)."""
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        at = int(np.argmax((labels < 0) | (labels >= classes)))
        raise DataError(f"{path}: label {at} is {labels[at]}, expected 0 to {classes - 1}")
    return torch.from_numpy(labels.astype(np.int64))


def _read_mnist(root: Path, stem: str) -> tuple[Tensor, Tensor]:
    """Return one MNIST set: images (N, 1, 28, 28) uint8 and labels (N,) int64."""
    image_path, images = _read_idx(root, f"{stem}-images", (28, 28))
    label_path, labels = _read_idx(root, f"{stem}-labels", ())
    if len(images) != len(labels):
        raise DataError(
            f"{image_path.name} has {len(images)} images but {label_path.name} has {len(labels)} "
            f"labels; expected as many. The files in {root} do not belong together"
        )
    return torch.from_numpy(images).unsqueeze(1), _labels(label_path, labels)


def _read_idx(root: Path, stem: str, shape: tuple[int, ...]) -> tuple[Path, NDArray[np.uint8]]:
    """Read an idx file of unsigned bytes: returns its path and an array (N, *shape).

    Format: bytes 0, 0, 8 (unsigned byte), number of dimensions; each dimension as a big-endian
    int32; then the values.
    """
    ndim = 1 + len(shape)
    base = [f"{stem}-idx{ndim}-ubyte", f"{stem}.idx{ndim}-ubyte"]
    names = [name + suffix for name in base for suffix in ("", ".gz")]
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{root} has none of {', '.join(names)}; expected the four standard MNIST idx files "
            "(train and t10k, images and labels; plain or .gz). Point --data at their folder"
        )
    try:
        with os.fdopen(open_plain(path, follow=True), "rb") as raw, _unzipped(path, raw) as file:
            header = np.frombuffer(_exactly(path, file, 4 + 4 * ndim, "header"), dtype=">u4")
            magic, count, *found = (int(value) for value in header)
            if magic != 0x0800 + ndim:
                raise DataError(f"{path}: magic number {magic}, expected {0x0800 + ndim}")
            if tuple(found) != shape:
                raise DataError(f"{path}: images are {tuple(found)}, expected {shape}")
            body = _exactly(path, file, count * int(np.prod(shape)), f"data of {count} items")
            if file.read(1):
                raise DataError(f"{path}: longer than its header's {count} items; download again")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; download it again") from error
    return path, np.frombuffer(bytearray(body), dtype=np.uint8).reshape(count, *shape)


def _unzipped(path: Path, raw: BinaryIO) -> Any:
    return gzip.open(raw) if path.suffix == ".gz" else raw


def _exactly(path: Path, file: Any, size: int, what: str) -> bytes:
    if size > _MOST:  # a few bytes of a .gz can claim, and unpack to, any number
        raise DataError(f"{path}: its header claims {size} bytes of {what}; at most {_MOST}")
    try:
        data: bytes = file.read(size)
    except MemoryError:
        raise DataError(f"{path}: its header claims {size} bytes of {what}") from None
    if len(data) < size:
        raise DataError(
            f"{path}: truncated: {len(data)} bytes of {what}, expected {size}; download it again"
        )
    return data


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "reading images needs Pillow, which is not installed: pip install 'g2d[images]'"
        ) from error
    return Image


def _decode(
    source: Any, where: str, formats: tuple[str, ...], size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode one image file to RGB (H, W, 3), resized to `size` (H, W) where that is given."""
    Image = _pillow()
    try:
        with Image.open(source, formats=formats) as image:
            if image.mode[0] in "IF":
                raise DataError(f"{where}: pixels are {image.mode}, expected 8 bits a channel")
            image = image.convert("RGB")  # noqa: PLW2901
            if size is not None and image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)  # noqa: PLW2901
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where} is not a readable {' / '.join(formats)} image: {error}"
        ) from error


def _stack(images: NDArray[np.uint8]) -> Tensor:
    """Turn (N, H, W, 3) into contiguous (N, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _read_packed(path: Path) -> tuple[Tensor, Tensor]:
    """Read packed JPEG files, decoded once a machine: see `_decode_packed`."""
    about = f"packed JPEG 1, Pillow {getattr(_pillow(), '__version__', '')}"

    def make() -> dict[str, Tensor]:
        return dict(zip("xy", _decode_packed(path), strict=True))

    found = remembered(path, about, make)
    return found["x"], found["y"]


def _decode_packed(path: Path) -> tuple[Tensor, Tensor]:
    """Decode packed JPEG files: images (N, 3, 32, 32) uint8 and labels (N,) int64."""
    try:
        # NumPy leaves a file that it opened itself open when the archive is broken.
        opened = os.fdopen(open_plain(path, follow=True), "rb")
        with opened as raw, np.load(raw, allow_pickle=False) as file:
            blob, length, y = file["blob"], file["length"], file["y"]
    except KeyError as error:
        raise DataError(f"{path}: {error}; expected the arrays blob, length and y") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    integers = all(np.issubdtype(part.dtype, np.integer) for part in (length, y))
    if blob.dtype != np.uint8 or blob.ndim != 1 or not integers or length.ndim != 1:
        raise DataError(
            f"{path}: blob is {blob.dtype} {blob.shape}, length {length.dtype} {length.shape}, y "
            f"{y.dtype} {y.shape}; expected uint8 (bytes,), integers (N,), integers (N,)"
        )
    if length.shape != y.shape:
        raise DataError(f"{path}: {length.shape} lengths but {y.shape} labels; expected as many")
    length = length.astype(np.int64)
    if (length <= 0).any() or length.sum() != len(blob):
        raise DataError(
            f"{path}: the images' lengths add up to {length.sum()} bytes (least "
            f"{length.min(initial=0)}), but blob has {len(blob)}; truncated or mixed up"
        )
    ends = np.cumsum(length)
    images = np.empty((len(y), 32, 32, 3), dtype=np.uint8)
    for i, (start, end) in enumerate(zip(ends - length, ends, strict=True)):
        where = f"{path}, image {i},"
        pixels = _decode(io.BytesIO(blob[start:end].data), where, ("JPEG",))
        if pixels.shape != images.shape[1:]:
            raise DataError(f"{where} is {pixels.shape[:2]} pixels, expected (32, 32)")
        images[i] = pixels
    return _stack(images), _labels(path, y)


def read_images(
    root: Path, size: tuple[int, int] | int | None = None
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Read `<root>/<class>/<image>`: images (N, 3, H, W) uint8, labels (N,), class names."""
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and min(shape) < 1:
        raise DataError(f"size is {size}; expected a positive height and width")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{root} has the class folders {names}; expected at least two")
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        paths = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
        if not paths:
            raise DataError(
                f"{root / name} holds no images; expected files that end in "
                f"{', '.join(_IMAGE_SUFFIXES)}. Remove the folder if it is not a class"
            )
        for path in paths:
            try:
                source = io.BytesIO(read_plain(path, _MOST_IMAGE, follow=True))
            except OSError as error:
                raise DataError(f"{path} is not a readable image: {error}") from error
            pixels = _decode(source, str(path), _IMAGE_FORMATS, shape)
            if images and pixels.shape != images[0].shape:
                raise DataError(
                    f"{path} is {pixels.shape[:2]} pixels, the images before it are "
                    f"{images[0].shape[:2]}; give a size to resize them all"
                )
            images.append(pixels)
        labels += [label] * len(paths)
    return _stack(np.stack(images)), torch.tensor(labels), tuple(names)
