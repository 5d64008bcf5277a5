"""Checkpoints as bytes and on disk: safetensors, digests, and whether one fits a model."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from g2d.core.files import MOST_WEIGHTS, read_plain
from g2d.core.types import State
from g2d.errors import CheckpointError, nearest
from g2d.weights.layout import check_tensor, is_number

_METADATA = "g2d"
_KEPT = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
})  # fmt: skip
"""What safetensors has a name for."""
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Under which of its keys a training's file holds the state dict: Lightning's first."""
_FILES = ("model.safetensors", "pytorch_model.bin")
"""How Hugging Face names the file in a model's folder; in shards, with an index beside them."""
_INDEX = ".index.json"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


# --- checkpoints on disk -------------------------------------------------------------------------


def pack(tensors: State, metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise tensors as safetensors bytes; equal tensors give equal bytes.

    Raises:
        CheckpointError: an entry is no tensor (extra state, say), or of a type that safetensors
            does not have (complex128, sparse).
    """
    plain = {}
    for name in sorted(tensors):
        check_tensor(name, tensors[name])
        plain[name] = _plain(name, tensors[name].detach())
    # One key: safetensors writes several in an order that changes from run to run.
    header = {_METADATA: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    return safetensors.torch.save(plain, header)


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A dense copy of its own on the CPU, as safetensors takes it."""
    tensor = tensor.cpu()
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not dense or tensor.dtype not in _KEPT:
        kind = tensor.dtype if dense else f"{tensor.layout}, {tensor.dtype} on {tensor.device}"
        raise CheckpointError(
            f"tensor {name!r} is {kind}, which a checkpoint cannot keep; expected a dense tensor of"
            " float, integer, bool or complex64: convert it in the task's factory"
        )
    return tensor.resolve_conj().resolve_neg().contiguous().clone()


def unpack(data: bytes, where: str = "checkpoint") -> dict[str, Tensor]:
    """Read safetensors bytes.

    Raises:
        CheckpointError: the bytes are not a complete safetensors file.
    """
    try:
        # Sorted: safetensors gives another order each time, and a codec's layout follows it.
        return dict(sorted(safetensors.torch.load(data).items()))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{where} is not a complete safetensors file: {error}") from error


def unpack_metadata(data: bytes) -> dict[str, str]:
    """Read the metadata of safetensors bytes (as written by `pack`)."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return dict(json.loads((header.get("__metadata__") or {}).get(_METADATA, "{}")))


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by name: files, and folders that Hugging Face's tools wrote."""
    return sorted(
        path
        for path in folder.glob("*")
        if (path.suffix in _SUFFIXES and path.is_file()) or (path.is_dir() and _in_folder(path))
    )


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Load a state dict from a file or from a folder that Hugging Face's tools wrote.

    `.safetensors`; `.pt`, `.pth`, `.ckpt` and `.bin` with `weights_only=True`, as a plain state
    dict or a training's file that holds one (Lightning's `state_dict`, `model_state_dict`); shards
    by their `.index.json`. Nothing is ever unpickled into code: a file that tries is refused.

    Raises:
        CheckpointError: the file is missing, corrupt, holds code or no plain state dict.
    """
    if path.is_dir():
        found = _in_folder(path)
        if found is None:
            there = ", ".join(sorted(one.name for one in path.glob("*"))[:5]) or "nothing"
            raise CheckpointError(
                f"{path} holds none of {', '.join(_FILES)} (nor an index of shards), but {there}; "
                "name the checkpoint's file"
            )
        path = found
    return _load_shards(path) if path.name.endswith(_INDEX) else _load_file(path)


def _in_folder(folder: Path) -> Path | None:
    """The model's file in a folder, or the index of its shards."""
    named = (folder / f"{name}{ending}" for name in _FILES for ending in ("", _INDEX))
    return next((path for path in named if path.is_file()), None)


def _read(path: Path) -> bytes:
    try:
        return read_plain(path, MOST_WEIGHTS, follow=True)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error


def _load_shards(index: Path) -> dict[str, Tensor]:
    """Every shard that an index names; each tensor from the shard that is said to hold it."""
    try:
        where = json.loads(_read(index))["weight_map"]
        files = sorted({str(name) for name in where.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r}") from error
    if foreign := [name for name in files if Path(name).name != name or name.endswith(_INDEX)]:
        raise CheckpointError(f"{index} names {foreign[0]!r}, which is no file beside it: refused")
    loaded = {name: _load_file(index.parent / name) for name in files}
    if lacking := [name for name, file in where.items() if name not in loaded[str(file)]]:
        raise CheckpointError(
            f"{index} looks for {lacking[0]!r} in {where[lacking[0]]}, which lacks it: load the "
            "files anew, all of one model"
        )
    return {name: loaded[str(file)][name] for name, file in sorted(where.items())}


def load_whole(path: Path) -> tuple[dict[str, Tensor], bytes]:
    """As `load_checkpoint`, with the bytes of the very file that was loaded; b"": several were."""
    if path.is_dir() or path.name.endswith(_INDEX):
        return load_checkpoint(path), b""
    data = _read(path)
    return _parsed(data, path), data


def _load_file(path: Path) -> dict[str, Tensor]:
    return _parsed(_read(path), path)


def _parsed(data: bytes, path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return unpack(data, str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; the error says enough
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled code or foreign objects; it was not executed and is refused. "
            "Save a plain state dict: torch.save(model.state_dict(), path), or use safetensors; of "
            "a Lightning checkpoint, its 'state_dict' alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError) as error:
        scripted = "TorchScript" in str(error)
        what = "a scripted model, which is code" if scripted else "not a complete PyTorch file"
        raise CheckpointError(
            f"{path} is {what}: expected what torch.save(model.state_dict(), path) writes "
            f"({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    return _state_in(loaded, path)


def _state_in(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a training saved: itself, or under the key that is usual."""
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if isinstance(loaded, dict) and not any(isinstance(v, Tensor) for v in loaded.values()):
        inside = {key: value for key, value in loaded.items() if _is_state(value)}
        if len(inside) > 1:
            raise CheckpointError(
                f"{path} holds several state dicts ({', '.join(map(repr, inside))}); save the one "
                "of the model alone"
            )
        loaded = next(iter(inside.values()), loaded)
    if not isinstance(loaded, dict) or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    if other := [name for name, value in loaded.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"{path} holds no plain state dict: {other[0]!r} is {type(loaded[other[0]]).__name__},"
            " expected tensors alone; save torch.save(model.state_dict(), path)"
        )
    return dict(loaded)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(torch.is_tensor, value.values()))


def check_state(reference: State, state: State, name: str) -> None:
    """Refuse a state dict that cannot stand in for `reference`.

    Infinity is taken where the reference has the same, as in an attention mask.

    Raises:
        CheckpointError: names the checkpoint and the first of every kind of reason: missing or
            foreign tensors, other shapes or types, values that are not finite.
    """
    both = {key: (state[key], reference[key]) for key in reference if key in state}
    shapes = [key for key, (given, wanted) in both.items() if given.shape != wanted.shape]
    fitting = {key: pair for key, pair in both.items() if key not in shapes}
    types = [key for key, (given, wanted) in fitting.items() if _kind(given) != _kind(wanted)]
    numbers = {key: pair for key, pair in fitting.items() if key not in types}
    missing = [key for key in reference if key not in state]
    advice = "" if missing else ": leave it out of the file"
    reasons = [
        *_listed(missing, "is missing", lambda key: ""),
        *_listed(
            [key for key in state if key not in reference],
            "is not in the model",
            lambda key: f".{guess}" if (guess := nearest(key, missing)) else advice,
        ),
        *_listed(
            shapes,
            "has another shape",
            lambda key: (
                f": {tuple(state[key].shape)}, the model's is {tuple(reference[key].shape)}"
            ),
        ),
        *_listed(
            types,
            "is of another kind",
            lambda key: f": {state[key].dtype}, not {reference[key].dtype}",
        ),
        *_listed(
            [key for key, pair in numbers.items() if not _is_sound(*pair)],
            "holds NaN or infinity",
            lambda key: "",
        ),
    ]
    if reasons:
        raise CheckpointError(f"{name} does not fit the model: " + "; ".join(reasons))


def _listed(names: list[str], fault: str, more: Callable[[str], str]) -> list[str]:
    """The first three of those that share a fault, and how many more there are."""
    shown = [f"tensor {name!r} {fault}{more(name)}" for name in names[:3]]
    return shown + ([f"and {len(names) - 3} more"] if len(names) > 3 else [])


def _kind(tensor: Tensor) -> str:
    floating = "float" if tensor.is_floating_point() else "integer"
    return "complex" if tensor.is_complex() else floating


def _is_sound(given: Tensor, wanted: Tensor) -> bool:
    """Whether all is finite, but for what is not in the reference either."""
    if not is_number(given):
        return True
    finite = torch.isfinite(given)
    return bool((finite | (given.to(wanted.dtype) == wanted)).all())


def digest(data: bytes) -> str:
    """SHA-256 of bytes, as hex."""
    return hashlib.sha256(data).hexdigest()
