"""New labelled data of a task that is there: read from what users hold them in, and checked.

A folder of images for each class, arrays (.npz, or a pair of .npy), a table (.csv), or a log of
feedback (.jsonl). Which side of the splits a record comes to is in `keyed`.
"""

from __future__ import annotations

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g2d.core.files import read_plain
from g2d.core.platforms import open_plain
from g2d.errors import DAMAGE, DataError
from g2d.tasks.columns import as_examples
from g2d.tasks.readers import read_images
from g2d.tasks.splits import Split, unit_scaled
from g2d.tasks.task import Task

KINDS = (
    "a folder of images for each class, an .npz with arrays x and y, a folder with x.npy and"
    " y.npy, a .csv whose last column is the label, or a .jsonl of feedback (a folder of those)"
)
MOST = 1 << 32
"""Bytes of a file of data."""
LINE = 1 << 24
"""Bytes of a line of feedback."""


class Number(int):
    """A label that is the number of a class, whatever the classes are called."""


def read_labelled(
    path: Path | str, task: Task, tell: Callable[[str], None] = lambda _: None
) -> Split:
    """Read new labelled data and check them against the task.

    A log of feedback grows by what clients have sent: records of it that the task could not have
    are left out, unless they are half of it or more. Prepared data are refused for one.

    Args:
        tell: hears in one line how many records were left out, and why.

    Returns:
        x (N, ...) in the task's dtype and range, y (N,) int64.

    Raises:
        DataError: it cannot be read, is empty, of another shape or type, not finite, out of the
            task's range, has a label that the task does not know, or is of one class only.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist; expected {KINDS}")
    x, labels = _read(path, task)
    if path.suffix == ".jsonl" or (path.is_dir() and any(path.glob("*.jsonl"))):
        x, labels = usable(x, labels, task, str(path), tell)
    return checked(x, labels, task, str(path))


def usable(
    x: Tensor, labels: Sequence[Any], task: Task, where: str, tell: Callable[[str], None]
) -> tuple[Tensor, Sequence[Any]]:
    """Leave out of a log the records whose values the task could not have; see `read_labelled`.

    Where they are half of it or more, all stay: it is the whole that is wrong, and is refused.
    """
    bad = torch.zeros(len(x), dtype=torch.bool)
    why: list[str] = []
    for words, found in _wrong(x, task).items():
        fresh = found & ~bad
        bad |= found
        if count := int(fresh.sum()):
            why.append(f"{count} {words} (the first is record {int(fresh.nonzero()[0, 0])})")
    if not why or 2 * int(bad.sum()) >= len(x):
        return x, labels
    tell(f"{where}: {int(bad.sum())} of {len(x)} records are left out: {'; '.join(why)}")
    kept = (~bad).nonzero()[:, 0]
    return x[kept], [labels[row] for row in kept.tolist()]


def _wrong(x: Tensor, task: Task) -> Mapping[str, Tensor]:
    """Which records (n,) have values that the task could not have, in words of each reason."""
    flat = x.flatten(1)
    found = {"hold NaN or infinite values": (~torch.isfinite(flat)).any(1)}
    if task.bounds is not None:
        low, high = task.bounds
        slack = 1e-6 * (high - low)
        out = ((flat < low - slack) | (flat > high + slack)).any(1)
        found[f"hold values outside {low:g} to {high:g}"] = out
    if task.budget is not None:
        found["are none that the budget allows"] = task.budget.wrong(flat)
    if task.tokens is not None:
        most = _vocabulary(task)
        found[f"hold ids outside 0 to {most - 1}"] = ((flat < 0) | (flat >= most)).any(1)
    return found


def _vocabulary(task: Task) -> int:
    """How many ids a task of tokens knows; where it does not say, as its data have it."""
    assert task.tokens is not None
    known = (task.splits.train, task.splits.gate)  # as a mark has it
    return task.tokens.vocabulary or 1 + max(int(split.x.max()) for split in known)


def checked(x: Tensor, labels: Sequence[Any], task: Task, where: str) -> Split:
    """Check records against a task; see `read_labelled`. `labels`: numbers, or classes' names."""
    like = task.splits.guide.x
    if not len(labels):
        raise DataError(f"{where} holds no labelled record; expected {KINDS}")
    if len(x) != len(labels):
        raise DataError(f"{where}: {len(x)} inputs with {len(labels)} labels; expected as many")
    x = unit_scaled(x)
    if tuple(x.shape[1:]) != tuple(like.shape[1:]):
        raise DataError(
            f"{where}: inputs are {tuple(x.shape[1:])}, those of task {task.name!r} "
            f"{tuple(like.shape[1:])}; prepare the new data as the old were"
        )
    if x.is_floating_point() != like.is_floating_point():
        raise DataError(
            f"{where}: inputs are {x.dtype}, those of task {task.name!r} {like.dtype}; prepare the "
            "new data as the old were"
        )
    _check_values(x, task, where)
    y = _numbered(labels, task, where)
    found = y.unique().tolist()
    if len(found) < 2:
        raise DataError(
            f"{where}: all {len(y)} records have label {found[0]}; a refresh on one class alone "
            "would teach the network to forget the others: give records of at least two"
        )
    return Split(x.to(like.dtype).contiguous(), y)


def _check_values(x: Tensor, task: Task, where: str) -> None:
    bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
    if bad:
        raise DataError(
            f"{where}: {bad} of {len(x)} records hold NaN or infinite values; leave them out"
        )
    if task.bounds is not None:
        low, high = task.bounds
        slack = 1e-6 * (high - low)
        least, largest = (float(end) for end in x.aminmax())
        if least < low - slack or largest > high + slack:
            raise DataError(
                f"{where}: values lie from {least:g} to {largest:g}, those of task {task.name!r} "
                f"from {low:g} to {high:g}; scale the new data as the old were"
            )
    if task.budget is not None:
        task.budget.check(x, where)
    if task.tokens is not None:
        least, largest = (int(end) for end in x.aminmax())
        most = _vocabulary(task)
        if least < 0 or largest >= most:
            raise DataError(
                f"{where}: ids lie from {least} to {largest}, the vocabulary of task "
                f"{task.name!r} from 0 to {most - 1}"
            )


def _numbered(labels: Sequence[Any], task: Task, where: str) -> Tensor:
    """Labels as numbers of classes: classes' names are looked up, numbers stay.

    Classes that are called by numbers (1, 2, 3, say) are meant by these: what is the name of one
    class is not the number of another.
    """
    names = {str(name): number for number, name in enumerate(task.labels)}
    called = {n: number for name, number in names.items() if (n := _whole(name)) is not None}
    numbers: list[int] = []
    for label in labels:
        number = names.get(label) if isinstance(label, str) else None
        if number is None:
            number = _whole(label)
            if called and number is not None and not isinstance(label, Number):
                number = called.get(number)
        if number is None or not 0 <= number < task.classes:
            raise DataError(
                f"{where}: record {len(numbers)} has the label {str(label)[:40]!r}, which task "
                f"{task.name!r} does not know ("
                + "; or ".join(_known(names, task.classes, bool(called)))
                + "); a class more is another task, in a vault of its own"
            )
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.long)


def _known(names: Mapping[str, int], classes: int, called: bool) -> Iterator[str]:
    if names:
        yield ", ".join(list(names)[:8])
    if not called:
        yield f"0 to {classes - 1}"


def _whole(label: Any) -> int | None:
    """A label as a whole number; None: it is none."""
    try:
        value = float(label)
        return int(value) if math.isfinite(value) and value == int(value) else None
    except (TypeError, ValueError):
        return None


# --- reading -------------------------------------------------------------------------------------


def _read(path: Path, task: Task) -> tuple[Tensor, Sequence[Any]]:
    logs = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if logs:
        return _joined([_read_feedback(log, task) for log in logs])
    if path.is_dir():
        return _read_folder(path, task)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".jsonl":
        return _read_feedback(path, task)
    if path.suffix == ".csv":
        return _read_csv(path, task)
    raise DataError(f"{path} is none of these: {KINDS}")


def _joined(parts: Sequence[tuple[Tensor, Sequence[Any]]]) -> tuple[Tensor, list[Any]]:
    return torch.cat([x for x, _ in parts]), [label for _, labels in parts for label in labels]


def _read_folder(path: Path, task: Task) -> tuple[Tensor, Sequence[Any]]:
    if (path / "x.npy").is_file() and (path / "y.npy").is_file():
        return _tensor(_array(path / "x.npy"), path), _labels(_array(path / "y.npy"), path)
    shape = task.splits.guide.x.shape[1:]
    folders = [p for p in path.iterdir() if p.is_dir()]
    if not folders or len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"{path} holds neither x.npy and y.npy, nor *.jsonl, nor a folder of images for each"
            f" class that task {task.name!r} could take; expected {KINDS}"
        )
    images, y, names = read_images(path)
    if shape[0] == 1:
        if not bool((images == images[:, :1]).all()):
            raise DataError(f"{path}: images have colours, those of task {task.name!r} are grey")
        images = images[:, :1]
    return images, [names[label] for label in y.tolist()]


def _array(path: Path) -> np.ndarray[Any, Any]:
    try:
        with open(open_plain(path, follow=True), "rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _read_npz(path: Path) -> tuple[Tensor, Sequence[Any]]:
    try:
        with (
            open(open_plain(path, follow=True), "rb") as raw,
            np.load(raw, allow_pickle=False) as f,
        ):
            x, y = f["x"], f["y"]
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}; expected the arrays x and y") from error
    except (OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, *DAMAGE) as error:
        raise DataError(f"cannot read {path}: {error}; expected the arrays x and y") from error
    return _tensor(x, path), _labels(y, path)


def _tensor(array: np.ndarray[Any, Any], path: Path) -> Tensor:
    if array.ndim < 2:
        raise DataError(f"{path}: x has shape {array.shape}, expected (N, ...)")
    return as_examples(array, f"inputs of {path}")


def _labels(array: np.ndarray[Any, Any], path: Path) -> Sequence[Any]:
    if array.ndim != 1 or array.dtype.kind not in "iufUS":
        raise DataError(
            f"{path}: y is {array.dtype} of shape {array.shape}, expected one label each: (N,)"
        )
    texts = (one.decode(errors="replace") if isinstance(one, bytes) else one for one in array)
    return [one.item() if isinstance(one, np.generic) else one for one in texts]


def _read_csv(path: Path, task: Task) -> tuple[Tensor, Sequence[Any]]:
    """A table: features in the task's order, the label last; a first line of titles is passed."""
    width = task.splits.guide.x[:1].numel()
    rows: list[list[float]] = []
    labels: list[str] = []
    for number, row in enumerate(csv.reader(_lines(path)), 1):
        if not row:
            continue
        if len(row) != width + 1:
            raise DataError(
                f"{path}, line {number}: {len(row)} values, expected {width} features of task "
                f"{task.name!r} and the label"
            )
        try:
            rows.append([float(value) for value in row[:-1]])
        except ValueError as error:
            if number == 1:
                continue
            raise DataError(f"{path}, line {number}: {error}; expected numbers") from error
        labels.append(row[-1].strip())
    return _shaped(rows, task, path), labels


def _read_feedback(path: Path, task: Task) -> tuple[Tensor, Sequence[Any]]:
    """Feedback: a JSON object a line, with the input `x` (as sent, or flat) and its label `y`.

    It is what a service keeps of `POST /feedback` (`service.monitors.feedback.log`). Lines without
    an input, such as its first, are passed; a last line that was cut short counts for nothing.
    """
    width = task.splits.guide.x[:1].numel()
    rows: list[list[float]] = []
    labels: list[Any] = []
    whole = [line for line in _lines(path, ended=True) if line.strip()]
    for number, line in enumerate(whole, 1):
        try:
            said = json.loads(line)
            if said.get("x") is None:
                continue
            own = np.asarray(said["x"], dtype=np.float64).reshape(-1)
            label = said["y"] if "y" in said else said["label"]
            label = Number(label) if type(label) is int else label  # as the service answers
        except DAMAGE as error:
            raise DataError(
                f'{path}, line {number} is no feedback ({error}); expected {{"x": [..], "y": 3}}'
            ) from error
        if own.size != width:
            raise DataError(
                f"{path}, line {number}: {own.size} values, expected {width} of task {task.name!r}"
            )
        rows.append(own.tolist())
        labels.append(label)
    return _shaped(rows, task, path), labels


def _lines(path: Path, ended: bool = False) -> Iterator[str]:
    """The lines of a text. `ended`: not a last one without its end, which is being written."""
    try:
        text = read_plain(path, MOST, follow=True).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if ended:
        text = text[: text.rfind("\n") + 1]
    for line in text.splitlines():
        if len(line) > LINE:
            raise DataError(f"{path}: a line has more than {LINE} characters")
        yield line


def _shaped(rows: Sequence[Sequence[float]], task: Task, path: Path) -> Tensor:
    like = task.splits.guide.x
    x = torch.tensor(rows, dtype=torch.float64).reshape(-1, *like.shape[1:])
    if not like.is_floating_point() and (broken := (x != x.round()).flatten(1).any(1)).any():
        raise DataError(
            f"{path}: record {int(broken.nonzero()[0, 0])} holds values that are not whole numbers;"
            f" inputs of task {task.name!r} are {like.dtype}: prepare the new data as the old were"
        )
    return x.to(like.dtype)
