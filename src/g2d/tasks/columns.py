"""What users hold their data in, as tensors: arrays, frames and label columns of any kind.

No library of frames is needed or imported: whatever has `to_numpy` will do (pandas, polars).
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g2d.errors import DataError

_EXPECTED = "expected a tensor, a NumPy array or a frame"


def as_examples(given: Any, what: str = "examples x") -> Tensor:
    """Return examples (N, ...) as a tensor; NumPy's and frames' float64 in torch's default type.

    Raises:
        DataError: there are none, or not all are numbers; it names the columns that are not.
    """
    if isinstance(given, Tensor):
        return given
    array = _array(given, what)
    if array.dtype.kind in "OSU":
        array = _numbers(given, array, what)
    if array.dtype.kind not in "fiub":
        raise DataError(f"the {what} are {array.dtype}, expected numbers; convert them first")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    tensor = torch.as_tensor(np.ascontiguousarray(array))
    return tensor.to(torch.get_default_dtype()) if array.dtype == np.float64 else tensor


def as_labels(given: Any, what: str = "labels y") -> tuple[Tensor, tuple[str, ...]]:
    """Return labels (N,) as int64 and the classes' names; none where they count from 0 already.

    Texts, booleans, categories, and integers that do not begin at 0 are numbered in sorted order.

    Raises:
        DataError: some are missing, or they are neither integers nor texts.
    """
    if isinstance(given, Tensor):
        if given.dtype != torch.bool:
            return given, ()
        given = given.numpy(force=True)
    array = _array(given, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]  # a frame of one column
    if array.ndim != 1 or not array.size:
        return torch.zeros(array.shape, dtype=torch.long), ()  # its shape is refused by `Split`
    if array.dtype.kind == "O":
        array = _one_kind(array, what)
    if array.dtype.kind == "f":
        return torch.as_tensor(array), ()  # refused by `Split`, which says what to do
    if array.dtype.kind not in "biuSU":
        raise DataError(f"the {what} are {array.dtype}, expected integers or texts")
    if array.dtype.kind in "iu" and int(array.min()) == 0:
        return torch.from_numpy(array.astype(np.int64)), ()
    known, numbered = np.unique(array, return_inverse=True)
    names = (one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in known)
    return torch.from_numpy(numbered.reshape(-1).astype(np.int64)), tuple(names)


def _array(given: Any, what: str) -> NDArray[Any]:
    if given is None:
        raise DataError(f"the {what} are missing (None); {_EXPECTED}")
    try:
        return np.asarray(given.to_numpy() if hasattr(given, "to_numpy") else given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the {what} cannot be read as an array ({error}); {_EXPECTED}") from error


def _numbers(given: Any, array: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Objects as floats, where each one is a number; texts are not, even of digits."""
    wrong = [one for one in array.flat if not isinstance(one, numbers.Real | np.bool_)]
    if not wrong:
        return array.astype(np.float64)
    shown = f"such as {str(wrong[0])!r} ({type(wrong[0]).__name__})"
    titles = [str(title) for title in getattr(given, "columns", ())]
    if array.ndim == 2 and len(titles) == array.shape[1]:
        odd = [
            title
            for title, column in zip(titles, array.T, strict=True)
            if not all(isinstance(one, numbers.Real | np.bool_) for one in column)
        ]
        shown += f", in the columns {', '.join(odd[:8])}"
    raise DataError(
        f"the {what} are not all numbers: {len(wrong)} are something else, {shown}; encode "
        "categories as numbers (one-hot) and fill what is missing"
    )


def _one_kind(array: NDArray[Any], what: str) -> NDArray[Any]:
    """Objects as booleans, integers or texts, where all are of one of these."""
    for kind, dtype in ((bool | np.bool_, "?"), (numbers.Integral, None), (str, "U"), (bytes, "S")):
        if all(isinstance(one, kind) for one in array):
            wide = "u8" if dtype is None and max(array) >= 2**63 else dtype or "i8"
            return array.astype(wide)
    kinds = sorted({type(one).__name__ for one in array})
    raise DataError(
        f"the {what} are of several kinds or some are missing: {', '.join(kinds)}; expected all "
        "integers or all texts, none missing"
    )
