"""Whether plaintext of tensors lies in a folder: each block of 64 bytes, at any place of a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import deserialize

BLOCK = 64


def tensors_of(files: Iterable[bytes]) -> list[bytes]:
    """The bytes of all tensors of safetensors files."""
    return [bytes(tensor["data"]) for data in files for _, tensor in deserialize(data)]


def blocks_of(contents: Iterable[bytes]) -> set[bytes]:
    """Each content cut into blocks, but those of few values (zeros, ones), which lie anywhere."""
    cut = {data[i : i + BLOCK] for data in contents for i in range(0, len(data) - BLOCK + 1, BLOCK)}
    return {block for block in cut if len(set(block)) > 8}


def found_in(folder: Path, blocks: set[bytes]) -> dict[str, int]:
    """How many of the blocks lie in each file below a folder that holds any."""
    firsts = np.frombuffer(b"".join(block[:8] for block in blocks), "<u8")
    found: dict[str, int] = {}
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        data = path.read_bytes()
        count = sum(data[at : at + BLOCK] in blocks for at in _candidates(data, np.unique(firsts)))
        if count:
            found[str(path.relative_to(folder))] = count
    return found


def _candidates(data: bytes, firsts: np.ndarray) -> Iterable[int]:
    """Where eight bytes lie with which a block begins."""
    for shift in range(8):
        size = (len(data) - shift) // 8
        if size > 0:
            words = np.frombuffer(data, "<u8", size, shift)
            yield from (8 * int(i) + shift for i in np.flatnonzero(np.isin(words, firsts)))
