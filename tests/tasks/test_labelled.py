"""New labelled data: every way in which they come, and one clear line for what cannot be used."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from g2d.errors import DataError
from g2d.tasks.budget import Budget
from g2d.tasks.labelled import checked, read_labelled, usable
from g2d.tasks.splits import Split


@pytest.fixture(scope="module")
def arrays(digits):
    return digits.splits.test.x[:40].numpy(), digits.splits.test.y[:40].numpy()


def test_arrays_a_pair_of_files_feedback_and_tables_give_the_same(digits, arrays, tmp_path):
    x, y = arrays
    np.savez(tmp_path / "new.npz", x=x, y=y)
    pair = tmp_path / "pair"
    pair.mkdir()
    np.save(pair / "x.npy", x)
    np.save(pair / "y.npy", y)
    log = tmp_path / "log"
    log.mkdir()
    lines = [
        json.dumps({"x": one.ravel().tolist(), "y": int(label)})
        for one, label in zip(x, y, strict=True)
    ]
    (log / "feedback.jsonl").write_text(
        "\n".join(['{"format": "g2d feedback 1"}', *lines, '{"x": [0'])
    )
    table = tmp_path / "new.csv"
    rows = [
        ",".join(map(str, [*one.ravel().tolist(), label])) for one, label in zip(x, y, strict=True)
    ]
    table.write_text("\n".join([",".join(["title"] * 65), *rows]))
    for path in (tmp_path / "new.npz", pair, log, log / "feedback.jsonl", table):
        found = read_labelled(path, digits)
        assert torch.equal(found.x, torch.from_numpy(x)), path
        assert found.y.tolist() == y.tolist()
        assert found.x.dtype == torch.float32


def test_images_of_classes_are_read_as_the_task_has_them(digits, arrays, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("three", "eight"):
        (tmp_path / name).mkdir()
        image.fromarray(np.full((8, 8), 128, np.uint8)).save(tmp_path / name / "a.png")
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    found = read_labelled(tmp_path, replace(digits, labels=names))
    assert sorted(found.y.tolist()) == [3, 8]
    assert tuple(found.x.shape) == (2, 1, 8, 8)
    with pytest.raises(DataError, match="the label 'eight', which task 'digits' does not know"):
        read_labelled(tmp_path, digits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, np.where(y == 3, 12, y)), "label '12', which task 'digits'"),
        (lambda x, y: (x, y + 0.5), "does not know"),
        (lambda x, y: (x, np.zeros_like(y)), "all 40 records have label 0"),
        (lambda x, y: (x[:0], y[:0]), "holds no labelled record"),
        (lambda x, y: (x, y[:-1]), "40 inputs with 39 labels"),
        (lambda x, y: (x[:, :, 1:], y), r"inputs are \(1, 7, 8\)"),
        (lambda x, y: (np.where(x > 0.9, np.nan, x), y), "hold NaN or infinite values"),
        (lambda x, y: (x * 255, y), "values lie from 0 to 255"),
        (lambda x, y: (x.astype(int), y), "inputs are torch.int64"),
        (lambda x, y: (x, np.stack([y, y])), "expected one label each"),
        (lambda x, y: (np.zeros(40), y), r"x has shape \(40,\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_one_line(digits, arrays, tmp_path, change, message):
    x, y = change(*arrays)
    np.savez(tmp_path / "new.npz", x=x, y=y)
    with pytest.raises(DataError, match=message) as raised:
        read_labelled(tmp_path / "new.npz", digits)
    assert "\n" not in str(raised.value)


def test_files_that_are_something_else_are_refused(digits, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nonsense")
    (tmp_path / "b.txt").write_text("1,2")
    (tmp_path / "c.jsonl").write_text("{not json\n")
    (tmp_path / "d.csv").write_text("1,2\n")
    np.savez(tmp_path / "e.npz", x=np.zeros((2, 2)))
    np.savez(tmp_path / "f.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    (tmp_path / "empty").mkdir()
    for name, message in {
        "a.npz": "cannot read", "b.txt": "is none of these", "c.jsonl": "line 1 is no feedback",
        "d.csv": "2 values, expected 64 features", "e.npz": "expected the arrays x and y",
        "f.npz": "cannot read", "empty": "holds neither", "absent": "does not exist",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_labelled(tmp_path / name, digits)


def test_classes_that_are_called_by_numbers_are_meant_by_these(digits, arrays, tmp_path):
    """As of `split_dataset(x, [1, .., 10])`: a class's own name is never another one's number."""
    x, y = arrays
    called = replace(digits, labels=tuple(str(n + 1) for n in range(10)))
    np.savez(tmp_path / "new.npz", x=x, y=y + 1)
    assert read_labelled(tmp_path / "new.npz", called).y.tolist() == y.tolist()
    np.savez(tmp_path / "bad.npz", x=x, y=y)  # 0 is no class's name
    with pytest.raises(DataError, match=r"the label '0', which .* know \(1, 2, 3.*8\);"):
        read_labelled(tmp_path / "bad.npz", called)
    table = tmp_path / "bad.csv"
    table.write_text("\n".join(",".join(map(str, [*one.ravel(), 0])) for one in x))
    with pytest.raises(DataError, match="the label '0', which"):
        read_labelled(table, called)
    log = tmp_path / "feedback.jsonl"  # a service's own words: numbers of classes
    said = zip(x, y, strict=True)
    lines = [json.dumps({"x": one.ravel().tolist(), "y": int(label)}) for one, label in said]
    log.write_text("\n".join([*lines, ""]))
    assert read_labelled(log, called).y.tolist() == y.tolist()


def test_ids_of_a_task_that_names_candidates_alone_are_those_of_its_data():
    part = Split(torch.tensor([[1, 2], [0, 6]]), torch.tensor([0, 1]))
    task = SimpleNamespace(
        name="words", bounds=None, budget=None, tokens=SimpleNamespace(vocabulary=0), labels=(),
        classes=2, splits=SimpleNamespace(train=part, guide=part, gate=part),
    )  # fmt: skip
    assert len(checked(torch.tensor([[6, 0], [3, 3]]), [0, 1], task, "here")) == 2
    with pytest.raises(DataError, match=r"ids lie from 0 to 7, the vocabulary .* from 0 to 6"):
        checked(torch.tensor([[7, 0], [3, 3]]), [0, 1], task, "here")


def log_of(x, y, path):
    """A log of feedback as a service writes it."""
    said = zip(x, y, strict=True)
    lines = [json.dumps({"x": one.ravel().tolist(), "y": int(label)}) for one, label in said]
    path.write_text("\n".join(['{"format": "g2d feedback 1"}', *lines, ""]))
    return path


def test_of_a_log_records_that_the_task_could_not_have_are_left_out_and_told(
    digits, arrays, tmp_path
):
    x, y = (part.copy() for part in arrays)
    x[3] *= 255.0
    x[5, 0, 0, 0] = np.nan
    x[7, 0, 0, 0] = -1.0
    log, told = log_of(x, y, tmp_path / "feedback.jsonl"), []
    sound = np.delete(np.arange(40), [3, 5, 7])
    for path in (log, tmp_path):
        found = read_labelled(path, digits, told.append)
        assert torch.equal(found.x, torch.from_numpy(x[sound]))
        assert found.y.tolist() == y[sound].tolist()
    assert told[0] == (
        f"{log}: 3 of 40 records are left out: 1 hold NaN or infinite values (the first is record "
        "5); 2 hold values outside 0 to 1 (the first is record 3)"
    )
    np.savez(tmp_path / "prepared.npz", x=x, y=y)
    with pytest.raises(DataError, match="1 of 40 records hold NaN"):
        read_labelled(tmp_path / "prepared.npz", digits, told.append)
    assert len(told) == 2


def test_a_log_whose_half_is_wrong_is_refused_as_it_is(digits, arrays, tmp_path):
    x, y = (part.copy() for part in arrays)
    x[:20] *= 255.0
    with pytest.raises(DataError, match=r"values lie from 0 to 255, .* scale the new data"):
        read_labelled(log_of(x, y, tmp_path / "feedback.jsonl"), digits)


def test_ids_and_rows_that_no_budget_allows_are_found_one_by_one(tmp_path):
    part = Split(torch.tensor([[1, 2], [0, 6]]), torch.tensor([0, 1]))
    words = SimpleNamespace(
        bounds=None, budget=None, tokens=SimpleNamespace(vocabulary=0), name="words",
        splits=SimpleNamespace(train=part, gate=part, guide=part), classes=2, labels=(),
    )  # fmt: skip
    told = []
    ids = torch.tensor([[6, 0], [7, 0], [3, 3]])
    kept, labels = usable(ids, [0, 1, 1], words, "here", told.append)
    assert (kept.tolist(), labels) == ([[6, 0], [3, 3]], [0, 1])
    assert told == ["here: 1 of 3 records are left out: 1 hold ids outside 0 to 6 (the first is"
                    " record 1)"]  # fmt: skip
    for values, wrong in (([3.0, 2.7], True), ([3.0, None], True), ([3.0, 2.0], False)):
        log = tmp_path / "feedback.jsonl"
        log.write_text("".join(json.dumps({"x": values, "y": y}) + "\n" for y in (0, 1)))
        with pytest.raises(DataError, match="not whole numbers") if wrong else nullcontext():
            assert read_labelled(log, words).x.tolist() == [[3, 2], [3, 2]]
    budget = Budget([0.1, 1, 0, 0], integer=[1], one_hot=[[2, 3]], least=[0, 0, 0, 0])
    rows = torch.tensor([[0.5, 1, 0, 1], [0.5, 1.5, 0, 1], [0.5, 1, 1, 1], [-1, 1, 1, 0]])
    assert budget.wrong(rows).tolist() == [False, True, True, True]
    budget.check(rows[:1], "here")
