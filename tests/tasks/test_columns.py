"""Data as users hold them: frames, columns of labels of any kind, and what is refused in a line."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import g2d
from g2d.errors import DataError, DataWarning, TaskError
from g2d.service.http.protocol import Model, Query, answer
from g2d.tasks.columns import as_examples, as_labels
from g2d.tasks.splits import Split, split_dataset


class Frame:
    """What this needs of a frame of pandas or polars."""

    def __init__(self, **columns):
        self.columns, self._values = list(columns), list(columns.values())

    def to_numpy(self):
        dtypes = {np.asarray(one).dtype for one in self._values}
        common = dtypes.pop() if len(dtypes) == 1 else np.dtype(object)
        return np.array([list(row) for row in zip(*self._values, strict=True)], common)


def column(*values, dtype=object):
    array = np.empty(len(values), object)
    array[:] = values
    return array.astype(dtype)


def test_a_frame_becomes_floats():
    x = as_examples(Frame(a=np.array([1.0, 2.0]), b=np.array([3.0, 4.0])))
    assert x.dtype == torch.float32
    assert x.tolist() == [[1, 3], [2, 4]]
    mixed = as_examples(Frame(a=np.array([1.5, 2.0]), b=np.array([True, False]), c=[3, 4]))
    assert mixed.tolist() == [[1.5, 1, 3], [2, 0, 4]]
    big = as_examples(np.array([[1.0]], ">f4"))
    assert big.tolist() == [[1]]


def test_a_frame_with_categories_names_its_columns():
    frame = Frame(bytes=[1.0, 2.0], proto=["tcp", "udp"], flag=["SF", None])
    with pytest.raises(DataError, match=r"4 are something else, such as 'tcp' \(str\), in the col.*"
                       "proto, flag"):  # fmt: skip
        as_examples(frame)
    with pytest.raises(DataError, match="fill what is missing"):
        as_examples(column(1.0, None))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"])
def test_integers_of_any_kind(dtype):
    y, names = as_labels(np.array([0, 3, 1], dtype))
    assert (y.dtype, y.tolist(), names) == (torch.int64, [0, 3, 1], ())
    y, names = as_labels(np.array([7, 5, 7], dtype))
    assert (y.tolist(), names) == ([1, 0, 1], ("5", "7"))


@pytest.mark.parametrize(
    ("given", "numbered", "names"),
    [
        (column("spam", "ham", "spam"), [1, 0, 1], ("ham", "spam")),
        (column("spam", "ham", dtype="U4"), [1, 0], ("ham", "spam")),
        (["spam", "ham"], [1, 0], ("ham", "spam")),
        (column(b"x", b"a"), [1, 0], ("a", "x")),
        (np.array([True, False]), [1, 0], ("False", "True")),
        (torch.tensor([True, False]), [1, 0], ("False", "True")),
        (column(True, False), [1, 0], ("False", "True")),
        (np.array([-1, 1]), [0, 1], ("-1", "1")),
        (column(0, 1, 2), [0, 1, 2], ()),
        (np.array([2**64 - 1, 1], "u8"), [1, 0], ("1", str(2**64 - 1))),
        (column(2**64 - 1, 1), [1, 0], ("1", str(2**64 - 1))),
        (Frame(label=column("b", "a")), [1, 0], ("a", "b")),
    ],
)
def test_labels_of_any_kind_are_numbered_and_named(given, numbered, names):
    y, found = as_labels(given)
    assert (y.tolist(), found) == (numbered, names)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (column("a", None), "NoneType, str; expected all"),
        (column("a", 1), "int, str"),
        (np.array(["2020-01-01"], "M8[D]"), "expected integers or texts"),
        (None, r"missing \(None\)"),
    ],
)
def test_labels_that_are_none(given, words):
    with pytest.raises(DataError, match=words):
        as_labels(given)


def test_pandas_itself():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0] * 10, "b": [True, False] * 10})
    y = pandas.Series(["x", "y"] * 10, dtype="category")
    splits = split_dataset(frame, y)
    assert splits.labels == ("x", "y")


def spam(y, classes=2, **more):
    x = torch.arange(40.0).view(20, 2) / 40
    return g2d.Task("spam", lambda: nn.Linear(2, 2), split_dataset(x, y), classes=classes, **more)


def test_a_task_keeps_the_names_and_the_service_tells_them():
    task = spam(np.array(["spam", "ham"] * 10))
    assert task.labels == ("ham", "spam")
    assert task.splits.guide.take([0]).names == task.labels
    named = spam(np.array([0, 1] * 10), labels=("good", "bad"))
    assert named.labels == ("good", "bad")
    model = Model("g2d", (2,), "float32", 2, task.labels)
    assert model.metadata(3)["parameters"] == {"labels": '["ham","spam"]'}
    logits = np.array([[0, 1], [2, 1]], np.float32)
    for binary in (False, True):
        body, _ = answer(Query(np.zeros((2, 2)), None, binary), model, logits, 3)
        assert b'"labels":"[\\"spam\\",\\"ham\\"]"' in body
    plain = Model("g2d", (2,), "float32", 2)
    assert "parameters" not in plain.metadata(3)
    assert b"labels" not in answer(Query(np.zeros((2, 2)), None, False), plain, logits, 3)[0]


def test_names_have_to_be_of_the_classes():
    with pytest.raises(TaskError, match=r"3 labels \(a, b, c\) for 2 classes"):
        spam(np.array([0, 1] * 10), labels=("a", "b", "c"))
    with pytest.raises(TaskError, match=r"2 labels \(4, 9\) for 3 classes"):
        spam(np.array([4, 9] * 10), classes=3)
    with pytest.raises(DataError, match="every training example has label 0"):
        spam(np.zeros(20, int))
    with pytest.raises(DataError, match=r"lie in \[0, 5\], expected \[0, 1\]"):
        spam(np.array([0, 5] * 10))


def test_pixels_beside_floats_and_a_given_test_split():
    x, y = np.random.default_rng(0).random((20, 2)), np.arange(20) % 2
    with pytest.raises(DataError, match="divide pixels by 255"):
        Split(torch.zeros(4, 2, dtype=torch.uint8), torch.arange(4) % 2)
    with pytest.raises(DataError, match=r"test split are \(2,\) torch.float64, those of the train"):
        split_dataset(x, y, Split(torch.rand(4, 2).double(), torch.arange(4) % 2))
    assert split_dataset(torch.from_numpy(x), y).train.x.dtype == torch.float64


def test_duplicates_between_splits_are_said_once():
    x = torch.arange(40.0).view(20, 2)
    x[10:] = x[:10]
    with pytest.warns(DataWarning, match="in more than one split") as caught:
        split_dataset(x, torch.arange(20) % 2)
    (said,) = caught
    assert re.search(r"examples are in more than one split: \d+ of guide", str(said.message))
