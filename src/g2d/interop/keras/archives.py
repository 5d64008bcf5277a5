"""What lies in Keras' files, read within bounds: an architecture, or weights. No code is run.

A `.keras` file is a zip of `config.json` and `model.weights.h5`. Of the first the classes are
looked at before Keras is given it: a process that once called `enable_unsafe_deserialization` would
else run what a file holds. Of the second the sizes are: a few kilobytes can say terabytes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g2d.core.files import MOST_TEXT, MOST_WEIGHTS, fill_file, read_plain
from g2d.errors import CheckpointError, TaskError
from g2d.interop.wording import legible, short

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_CODE = frozenset({
    "Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer",
})  # fmt: skip
"""Classes whose configuration holds Python's code, or names a folder that does."""


def architecture(path: Path) -> str:
    """The configuration (JSON) of a `.keras` file's model.

    Raises:
        TaskError: it is no such file, is cut off, or has a class that holds code.
    """
    try:
        with _opened(path) as archive:
            text = _member(archive, _CONFIG, MOST_TEXT).decode("utf-8")
        kinds = set(_classes(json.loads(text)))
    except Exception as error:  # zipfile's kinds, json's, and nesting without end
        raise TaskError(
            f"{path} is no Keras model that can be read without running its code, or is cut off"
            f" ({short(error)}); pass the function that builds the model instead"
        ) from error
    if code := sorted(kinds & _CODE):
        raise TaskError(
            f"{path} has a {code[0]} layer: Python code inside of a file, which no reader should"
            " run; pass the function that builds the model instead"
        )
    return text


def extract_weights(path: Path, folder: Path, room: int) -> Path:
    """Put the weights of a `.keras` or `.weights.h5` file into a folder, as `.weights.h5`.

    Args:
        room: bytes that they may take, packed or not.

    Raises:
        CheckpointError: they take more, or lie in other files. Else what zipfile or h5py raise of
            a file that is none.
    """
    if path.suffix == ".keras":
        with _opened(path) as archive:
            data = _member(archive, _WEIGHTS, room)
    else:
        data = read_plain(path, room, follow=True)
    _check_weights(data, room)
    file = folder / _WEIGHTS
    fill_file(file, data, 0o600)
    return file


def _opened(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(read_plain(path, MOST_WEIGHTS, follow=True)))


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > most:
        raise CheckpointError(f"its {name} takes {size} bytes, more than {most}")
    return archive.read(name)  # no more than it says: zipfile stops there


def _classes(config: Any) -> Iterator[str]:
    """Every class that a configuration names, at any depth."""
    if isinstance(config, dict):
        kind = config.get("class_name")
        if isinstance(kind, str):
            yield kind.rpartition(">")[2]
    for part in config.values() if isinstance(config, dict) else config:
        if isinstance(part, dict | list):
            yield from _classes(part)


def _check_weights(data: bytes, room: int) -> None:
    """Refuse datasets that are larger than they can be, or not in the file."""
    import h5py

    taken = 0

    def look(name: str, part: Any) -> None:
        nonlocal taken
        if isinstance(part, h5py.Dataset):
            if part.external or part.is_virtual:
                raise CheckpointError(f"its {legible(name)!r} lies in another file")
            taken += part.nbytes

    with h5py.File(io.BytesIO(data), "r") as file:
        file.visititems(look)
    if taken > room:
        raise CheckpointError(f"its weights take {taken} bytes, more than {room}")
