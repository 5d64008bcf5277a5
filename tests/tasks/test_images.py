"""CIFAR-10 and folders of images: read; whatever is malformed is refused with words that help."""

import io
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from g2d.errors import DataError
from g2d.tasks import readers
from small_data import PARTS, same, shared


def picture(label, i=0, side=32):
    """A flat picture whose red tells its label: JPEG keeps it to within a few levels."""
    return Image.new("RGB", (side, side), (label * 25, 10 * i, 128))


def encoded(image, kind="JPEG"):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def packed(count, **changed):
    """The arrays of a packed set of `count` pictures with labels 0, 1, ..., 9, 0, ..."""
    files = [encoded(picture(i % 10, i // 10)) for i in range(count)]
    arrays = {
        "blob": np.frombuffer(b"".join(files), np.uint8),
        "length": np.array([len(file) for file in files], np.int32),
        "y": np.array([i % 10 for i in range(count)], np.uint8),
    } | changed
    return {name: array for name, array in arrays.items() if array is not None}


def write_packed(folder, **changed):
    np.savez(folder / "train_jpeg.npz", **packed(40, **changed))
    np.savez(folder / "test_jpeg.npz", **packed(10))
    return folder


def write_images(folder, names, count=5, side=32, kind="png"):
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(label, i, side).save(folder / name / f"{i}.{kind}")
    return folder


def reds_tell_labels(splits):
    parts = (splits.train, splits.guide, splits.gate, splits.test)
    return all(torch.equal((p.x[:, 0].mean((1, 2)) * 255 / 25).round().long(), p.y) for p in parts)


def test_packed_jpeg(tmp_path):
    splits = readers.load_cifar10(write_packed(tmp_path), seed=1)
    assert [len(getattr(splits, name)) for name in PARTS] == [28, 6, 6, 10]
    assert splits.train.x.shape[1:] == (3, 32, 32)
    assert splits.train.x.dtype == torch.float32
    assert splits.train.x.is_contiguous()
    assert reds_tell_labels(splits)
    assert same(splits, readers.load_cifar10(tmp_path, seed=1))


GOOD = packed(40)
ZERO = GOOD["length"].copy()
ZERO[:2] = 0, ZERO[:2].sum()
SMALL = encoded(picture(0, side=16))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"blob": GOOD["blob"][:-5]}, "train_jpeg.npz.*add up to .*truncated"),
        ({"length": GOOD["length"][:-1]}, r"\(39,\) lengths but \(40,\) labels"),
        ({"length": GOOD["length"] * -1}, "add up to"),
        ({"length": ZERO}, "least 0"),
        ({"length": GOOD["length"] * 1.0}, "length float64"),
        ({"y": GOOD["y"] + 1}, "label 9 is 10, expected 0 to 9"),
        ({"y": GOOD["y"].astype(np.int64) - 1}, "label 0 is -1"),
        ({"y": None}, "expected the arrays blob, length and y"),
        ({"y": GOOD["y"].astype(object)}, "cannot read .*train_jpeg.npz"),
        ({"blob": GOOD["blob"].astype(np.int16)}, "blob is int16"),
        ({"blob": GOOD["blob"] * 0}, "image 0, is not a readable JPEG"),
        (
            {
                "blob": np.frombuffer(SMALL, np.uint8),
                "length": np.array([len(SMALL)]),
                "y": np.array([0]),
            },
            r"image 0, is \(16, 16\) pixels, expected \(32, 32\)",
        ),
    ],
)
def test_packed_jpeg_refuses(tmp_path, changed, words):
    with pytest.raises(DataError, match=words):
        readers.load_cifar10(write_packed(tmp_path, **changed))


def test_packed_jpeg_refuses_a_truncated_picture(tmp_path):
    cut = GOOD["length"].copy()
    cut[0] -= 200
    cut[1] += 200
    with pytest.raises(DataError, match="image 0, is not a readable JPEG"):
        readers.load_cifar10(write_packed(tmp_path, length=cut))


def as_npy(_):
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


HARM = [lambda b: b[:300], lambda b: b"no zip", lambda b: b"", as_npy]
HARM += [lambda b: b[:900] + bytes([b[900] ^ 1]) + b[901:]]


@pytest.mark.parametrize("harm", HARM)
def test_packed_jpeg_refuses_a_broken_file(tmp_path, harm):
    path = write_packed(tmp_path) / "train_jpeg.npz"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot read .*train_jpeg.npz"):
        readers.load_cifar10(tmp_path)


def test_cifar10_folder_without_either_form(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"holds cifar-10-batches-py; expected .*train_jpeg.npz"):
        readers.load_cifar10(tmp_path)


TEN = [f"class{i}" for i in range(10)]


def test_cifar10_from_images(tmp_path):
    write_images(tmp_path / "train", TEN)
    write_images(tmp_path / "test", TEN, count=1)
    splits = readers.load_cifar10(tmp_path)
    assert [len(getattr(splits, name)) for name in PARTS] == [35, 7, 8, 10]
    assert reds_tell_labels(splits)


@pytest.mark.parametrize(
    ("train", "test", "side", "words"),
    [
        (TEN, [*TEN[:9], "other"], 32, "expected the same 10 in both"),
        (TEN[:3], TEN[:3], 32, "expected the same 10 in both"),
        (TEN, TEN, 16, r"images are \(3, 16, 16\), expected \(3, 32, 32\)"),
    ],
)
def test_cifar10_from_images_refuses(tmp_path, train, test, side, words):
    write_images(tmp_path / "train", train, side=side)
    write_images(tmp_path / "test", test, 1, side)
    with pytest.raises(DataError, match=words):
        readers.load_cifar10(tmp_path)


def test_pillow_missing_is_said(tmp_path, monkeypatch):
    write_packed(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=re.escape("pip install 'g2d[images]'")):
        readers.load_cifar10(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp"])
def test_image_folder(tmp_path, kind):
    write_images(tmp_path, ["ant", "bee", "cow"], count=10, kind=kind)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    splits, names = readers.load_image_folder(tmp_path, seed=2)
    assert names == ("ant", "bee", "cow")
    assert sum(len(getattr(splits, name)) for name in PARTS) == 30
    assert reds_tell_labels(splits)


def test_image_folder_resizes(tmp_path):
    write_images(tmp_path, ["ant", "bee"], count=8)
    picture(0, side=48).save(tmp_path / "ant" / "z.png")
    with pytest.raises(DataError, match=r"z.png is \(48, 48\) .*give a size"):
        readers.load_image_folder(tmp_path)
    assert readers.load_image_folder(tmp_path, size=20)[0].train.x.shape[1:] == (3, 20, 20)
    assert readers.load_image_folder(tmp_path, size=(10, 20))[0].train.x.shape[1:] == (3, 10, 20)
    with pytest.raises(DataError, match="expected a positive height"):
        readers.load_image_folder(tmp_path, size=0)


def test_image_folder_refuses(tmp_path):
    with pytest.raises(DataError, match="at least two"):
        readers.load_image_folder(tmp_path)
    write_images(tmp_path, ["ant", "bee"], count=8)
    (tmp_path / "cow").mkdir()
    with pytest.raises(DataError, match="cow holds no images"):
        readers.load_image_folder(tmp_path)
    (tmp_path / "cow" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a.png is not a readable PNG"):
        readers.load_image_folder(tmp_path)
    Image.fromarray(np.full((32, 32), 60_000, np.uint16)).save(tmp_path / "cow" / "a.png")
    with pytest.raises(DataError, match=r"a.png: pixels are I;16, expected 8 bits"):
        readers.load_image_folder(tmp_path)


@pytest.mark.shared
def test_real_packed_cifar10_test_set():
    # The 10,000 test images alone: the train set takes five times as long, by the same code.
    images, labels = readers._read_packed(shared("cifar10") / "test_jpeg.npz")
    assert images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(labels).tolist() == [1000] * 10
