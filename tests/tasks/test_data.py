"""Splits are disjoint and seeded; every malformed file is refused with words that help."""

import gzip
import io
import re
import struct
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from g2d.errors import DataError
from g2d.tasks import readers
from g2d.tasks import splits as splits_module
from g2d.tasks.splits import Split, Splits
from places import SHARED

PARTS = ("train", "guide", "gate", "test")


def numbered(n):
    """Examples that carry their own number, so that a split shows which ones it took."""
    return torch.arange(n, dtype=torch.float64).unsqueeze(1), torch.arange(n) % 3


def taken(splits):
    return [getattr(splits, name).x[:, 0].long().tolist() for name in PARTS]


def same(first, second):
    return all(
        torch.equal(getattr(first, name).x, getattr(second, name).x)
        and torch.equal(getattr(first, name).y, getattr(second, name).y)
        for name in PARTS
    )


def shared(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the real {name} files are needed")
    return folder


# --- Split and Splits ---------------------------------------------------------------------------


def test_split_keeps_labels_as_int64():
    split = Split(torch.zeros(3, 2), torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert split.y.dtype == torch.int64
    assert len(split) == 3


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), "one label for each"),
        (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.long), "one label for each"),
        (torch.tensor(1.0), torch.tensor(1), "one label for each"),
        (torch.zeros(3, 2), torch.zeros(3), "expected integers"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), "expected integers"),
        (torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, dtype=torch.long), "expected floats"),
        (torch.tensor([[1.0], [torch.nan]]), torch.tensor([0, 1]), "NaN or infinite"),
        (torch.tensor([[1.0], [-torch.inf]]), torch.tensor([0, 1]), "NaN or infinite"),
    ],
)
def test_split_refuses(x, y, words):
    with pytest.raises(DataError, match=words):
        Split(x, y)


def test_take_keeps_the_order():
    x, y = numbered(5)
    part = Split(x, y).take([4, 0, 4])
    assert part.x[:, 0].tolist() == [4, 0, 4]
    assert part.y.tolist() == [1, 0, 1]


@given(n=st.integers(1, 30), k=st.integers(0, 40), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_sample_is_without_replacement_and_seeded(n, k, seed):
    split = Split(*numbered(n))
    first = split.sample(k, torch.Generator().manual_seed(seed))
    again = split.sample(k, torch.Generator().manual_seed(seed))
    drawn = first.x[:, 0].tolist()
    assert len(drawn) == len(set(drawn)) == min(n, k)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.x[:, 0].long() % 3, first.y)


def test_splits_refuse_an_empty_or_odd_part():
    x, y = numbered(4)
    part = Split(x, y)
    with pytest.raises(DataError, match="gate split is empty"):
        Splits(part, part, part.take([]), part)
    with pytest.raises(DataError, match="examples of the test split are"):
        Splits(part, part, part, Split(torch.zeros(2, 5), y[:2]))


# --- split_dataset ------------------------------------------------------------------------------


@given(n=st.integers(15, 300), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_parts_are_disjoint_and_cover_everything(n, seed):
    splits = splits_module.split_dataset(*numbered(n), seed=seed)
    parts = taken(splits)
    assert sorted(chain(*parts)) == list(range(n))
    assert len(parts[3]) == round(0.2 * n)
    assert all(torch.equal(p.x[:, 0].long() % 3, p.y) for p in vars(splits).values())


@given(
    n=st.integers(60, 300),
    weights=st.tuples(*[st.integers(1, 10)] * 4),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_fractions_are_kept_beside_a_given_test_set(n, weights, seed):
    *fractions, _unused = (weight / sum(weights) for weight in weights)
    test = Split(*numbered(7))
    splits = splits_module.split_dataset(*numbered(n), test, tuple(fractions), seed)
    parts = taken(splits)[:3]
    flat = list(chain(*parts))
    assert splits.test is test
    assert len(flat) == len(set(flat))
    for part, share in zip(parts, fractions, strict=True):
        assert abs(len(part) - share * n) <= 1


def test_the_seed_decides():
    x, y = numbered(100)
    first, again, other = (splits_module.split_dataset(x, y, seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_splitting_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    splits_module.split_dataset(*numbered(100))
    assert torch.equal(before, torch.get_rng_state())


def test_arrays_become_tensors():
    pixels = np.arange(40, dtype=np.uint8).reshape(20, 2) * 6
    splits = splits_module.split_dataset(pixels, np.arange(20) % 2)
    assert splits.train.x.dtype == torch.float32
    assert float(splits.train.x.max()) <= 1
    table = splits_module.split_dataset(pixels.astype(np.float64), np.arange(20) % 2)
    assert table.train.x.dtype == torch.float32
    assert float(table.train.x.max()) > 1


@pytest.mark.parametrize(
    ("n", "fractions", "words"),
    [
        (6, splits_module.FRACTIONS, "6 examples are too few: .*test 1"),
        (100, (0.9, 0.01, 0.09), "guide 1"),
        (100, (0.5, 0.5, 0.5), "sum of at most 1"),
        (100, (1.0, 0.0, 0.0), "positive shares"),
        (100, (0.5, 0.5), "three positive shares"),
    ],
)
def test_split_dataset_refuses(n, fractions, words):
    with pytest.raises(DataError, match=words):
        splits_module.split_dataset(*numbered(n), fractions=fractions)


def test_split_dataset_refuses_labels_of_another_length():
    with pytest.raises(DataError, match="one label for each"):
        splits_module.split_dataset(torch.zeros(20, 2), torch.zeros(19, dtype=torch.long))


def test_digits():
    splits = readers.load_digits(0)
    assert [len(getattr(splits, name)) for name in PARTS] == [791, 287, 360, 359]
    assert splits.train.x.shape[1:] == (1, 8, 8)
    assert splits.train.x.dtype == torch.float32
    assert float(splits.train.x.min()) == 0
    assert float(splits.train.x.max()) == 1
    assert same(splits, readers.load_digits(0))


def test_digits_are_read_as_scikit_learn_reads_them():
    from sklearn.datasets import load_digits

    images, labels = readers._embedded_digits()
    told_images, told_labels = load_digits(return_X_y=True)
    assert np.array_equal(images, told_images)
    assert np.array_equal(labels, told_labels)
    assert (images.dtype, labels.dtype) == (told_images.dtype, told_labels.dtype)


def test_a_light_import_stays_light():
    code = "import sys, g2d.data; print([m for m in ('sklearn', 'PIL') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- MNIST --------------------------------------------------------------------------------------

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


# --- CIFAR-10 and image folders -----------------------------------------------------------------


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
        ({"blob": GOOD["blob"] * 0}, "image 0, is no readable JPEG"),
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
    with pytest.raises(DataError, match="image 0, is no readable JPEG"):
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
    with pytest.raises(DataError, match=r"a.png is no readable PNG"):
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
