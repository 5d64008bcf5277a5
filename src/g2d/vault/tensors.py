"""What a safetensors file holds, seen without torch: names, shapes, and whether all is finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EXPONENT = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10),
             "BF16": ("<u2", 0xFF << 7), "C64": ("<u4", 0xFF << 23)}  # fmt: skip
"""Of each floating type: its bits as integers, and those that are all set in NaN and infinity."""


@dataclass(frozen=True)
class Shape:
    """A tensor's place in an architecture: its sizes and its type ("F32")."""

    sizes: tuple[int, ...]
    dtype: str

    def fits(self, other: Shape) -> bool:
        """Whether a tensor of this shape can stand where the other does; precision may differ."""
        return self.sizes == other.sizes and ("F" in self.dtype) == ("F" in other.dtype)

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.sizes}"


def shapes_of(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Shape]:
    """The shape of each tensor of `parse`."""
    return {
        name: Shape(tuple(tensor["shape"]), tensor["dtype"]) for name, tensor in tensors.items()
    }


def parse(data: bytes) -> dict[str, dict[str, Any]]:
    """Read safetensors bytes: `dtype` ("F32"), `shape` and `data` of each tensor by name.

    Raises:
        ValueError: they are not a complete safetensors file.
    """
    from safetensors import SafetensorError, deserialize

    try:
        return dict(sorted(deserialize(data)))
    except (SafetensorError, ValueError, OverflowError) as error:
        raise ValueError(f"it is not a complete safetensors file ({error})") from error


def infinities(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The bytes of tensors that hold infinity and no NaN, as an attention mask does, by name."""
    odd = {name: t for name, t in tensors.items() if not _finite(t)}
    return {name: bytes(t["data"]) for name, t in odd.items() if not _has_nan(t)}


def faults(
    tensors: Mapping[str, Mapping[str, Any]], known: Mapping[str, bytes] | None = None
) -> list[str]:
    """What is wrong in itself: values that are not finite, indices of another length.

    Args:
        known: what may be infinite: bytes of the base's own such tensors, by name.
    """
    odd = [name for name, tensor in tensors.items() if not _finite(tensor)]
    wanted = {name: (known or {}).get(name.removeprefix("rest.")) for name in odd}
    found = [
        f"tensor {name!r} holds NaN or infinity"
        for name in odd
        if wanted[name] is None or bytes(tensors[name]["data"]) != wanted[name]
    ]
    for name, tensor in tensors.items():
        if name == "index" or name.endswith("_index"):
            other = tensors.get(name.removesuffix("index").removesuffix("_") or "x")
            if other and other["shape"][:1] != tensor["shape"][:1]:
                found.append(f"tensor {name!r} does not point at each of its attacks")
    return found


def misfits(reference: Mapping[str, Shape], given: Mapping[str, Shape]) -> list[str]:
    """Why a network is not of the reference's architecture."""
    found = [f"tensor {name!r} is missing" for name in reference if name not in given]
    found += [f"tensor {name!r} is foreign" for name in given if name not in reference]
    found += [
        f"tensor {name!r} is {given[name]}, expected {there}"
        for name, there in reference.items()
        if name in given and not given[name].fits(there)
    ]
    return found


def _finite(tensor: Mapping[str, Any]) -> bool:
    if tensor["dtype"] not in _EXPONENT:
        return True
    import numpy as np

    kind, mask = _EXPONENT[tensor["dtype"]]
    bits = np.frombuffer(tensor["data"], kind)
    return not bool(((bits & np.array(mask, kind)) == mask).any())


def _has_nan(tensor: Mapping[str, Any]) -> bool:
    """Whether an exponent of ones has bits of a fraction beside it: infinity has none."""
    import numpy as np

    kind, mask = _EXPONENT[tensor["dtype"]]
    bits = np.frombuffer(tensor["data"], kind)
    sign = 1 << (8 * np.dtype(kind).itemsize - 1)
    return bool(((bits & np.array(sign - 1, kind)) > mask).any())
