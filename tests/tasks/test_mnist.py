"""MNIST's files: read in either form; every malformed one is refused with words that help."""

import gzip
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from g2d.errors import DataError
from g2d.tasks import readers
from small_data import PARTS, same, shared

IDX = {
    "train-images-idx3-ubyte": 60,
    "train-labels-idx1-ubyte": 60,
    "t10k-images-idx3-ubyte": 12,
    "t10k-labels-idx1-ubyte": 12,
}


def idx(name, count):
    """The bytes of a small idx file; image i is filled with the value i."""
    if "labels" in name:
        return struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
    body = b"".join(bytes([i]) * 784 for i in range(count))
    return struct.pack(">IIII", 2051, count, 28, 28) + body


def write_mnist(folder, zipped=False, **changed):
    """Write the four files; `changed` maps `train_images` and so on to other bytes, or None."""
    for name, count in IDX.items():
        key = "_".join(name.split("-")[:2])
        content = changed.get(key, idx(name, count))
        if content is not None:
            path = folder / (name + ".gz" * zipped)
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_files(tmp_path, zipped):
    splits = readers.load_mnist(write_mnist(tmp_path, zipped), seed=3)
    assert [len(getattr(splits, name)) for name in PARTS] == [42, 10, 8, 12]
    assert splits.train.x.shape[1:] == (1, 28, 28)
    assert splits.train.x.dtype == torch.float32
    for part in (splits.train, splits.guide, splits.gate, splits.test):
        numbers = (part.x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(numbers % 10, part.y)  # images and labels still belong together
    assert same(splits, readers.load_mnist(str(tmp_path), seed=3))


def test_mnist_files_named_with_a_dot(tmp_path):
    write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(readers.load_mnist(tmp_path).train) == 42


IMAGES = idx("train-images-idx3-ubyte", 60)
LABELS = idx("train-labels-idx1-ubyte", 60)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_images": IMAGES[:-1]}, "train-images.*truncated: 47039 bytes.*expected 47040"),
        ({"train_images": IMAGES[:7]}, "train-images.*truncated: 7 bytes of header, expected 16"),
        ({"train_images": b""}, "train-images.*truncated: 0 bytes"),
        ({"train_images": IMAGES + b"x"}, "train-images.*longer than its header's 60"),
        ({"train_labels": LABELS[:-3]}, "train-labels.*truncated: 57 bytes"),
        ({"train_images": b"\0\0\x0d\x03" + IMAGES[4:]}, "magic number 3331, expected 2051"),
        ({"t10k_labels": IMAGES}, "t10k-labels.*magic number 2051, expected 2049"),
        ({"train_images": struct.pack(">IIII", 2051, 2, 20, 20)}, r"\(20, 20\), expected \(28, 2"),
        ({"train_labels": idx("labels", 59)}, "60 images but .* has 59 labels"),
        ({"t10k_labels": idx("labels", 13)}, "12 images but .* has 13 labels"),
        ({"train_labels": LABELS[:-1] + b"\x0a"}, "train-labels.*label 59 is 10, expected 0 to 9"),
        ({"t10k_images": None}, "none of t10k-images-idx3-ubyte, t10k-images-idx3-ubyte.gz"),
        ({"train_labels": None}, "standard MNIST idx files.*--data"),
        ({"train_images": IMAGES[:16], "train_labels": LABELS[:8]}, "truncated"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_refuses(tmp_path, changed, words, zipped):
    write_mnist(tmp_path, zipped, **changed)
    with pytest.raises(DataError, match=words):
        readers.load_mnist(tmp_path)


def test_mnist_refuses_empty_sets(tmp_path):
    empty = {"train_images": idx("images", 0), "train_labels": idx("labels", 0)}
    with pytest.raises(DataError, match="too few"):
        readers.load_mnist(write_mnist(tmp_path, **empty))


@pytest.mark.parametrize("harm", [lambda b: b[:-20], lambda b: b"no gzip", lambda b: b""])
def test_mnist_refuses_a_broken_gz(tmp_path, harm):
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz"):
        readers.load_mnist(tmp_path)


@given(at=st.integers(0, 15), value=st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_a_changed_header_byte_is_refused(tmp_path_factory, at, value):
    changed = bytearray(IMAGES)
    changed[at] = value
    folder = write_mnist(tmp_path_factory.mktemp("mnist"), train_images=bytes(changed))
    if changed == IMAGES:
        readers.load_mnist(folder)
    else:
        with pytest.raises(DataError, match="train-images"):
            readers.load_mnist(folder)


@pytest.mark.parametrize(
    "load", [readers.load_mnist, readers.load_cifar10, readers.load_image_folder]
)
def test_a_wrong_folder_is_named(tmp_path, load):
    with pytest.raises(DataError, match=r"absent does not exist; point --data"):
        load(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file is a file; point --data"):
        load(tmp_path / "file")
    with pytest.raises(DataError, match=r"no data folder was given; point --data"):
        load("")


@pytest.mark.shared
def test_real_mnist():
    splits = readers.load_mnist(shared("mnist"))
    assert [len(getattr(splits, name)) for name in PARTS] == [42_000, 10_000, 8_000, 10_000]
    assert splits.test.y[:5].tolist() == [7, 2, 1, 0, 4]
