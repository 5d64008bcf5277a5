"""Checkpoints as bytes and on disk: safetensors, digests, and whether one fits a model."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from g2d.core.types import State
from g2d.errors import CheckpointError, nearest

_METADATA = "g2d"


# --- checkpoints on disk -------------------------------------------------------------------------


def pack(tensors: State, metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise tensors as safetensors bytes; equal tensors give equal bytes."""
    plain = {name: tensors[name].detach().contiguous().clone() for name in sorted(tensors)}
    # One key: safetensors writes several in an order that changes from run to run.
    header = {_METADATA: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    return safetensors.torch.save(plain, header)


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


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Load a state dict from `.safetensors`, or from `.pt`/`.pth` with `weights_only=True`.

    Nothing is ever unpickled into code: a file that tries is refused.

    Raises:
        CheckpointError: the file is missing, corrupt, holds code or no plain state dict.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if path.suffix == ".safetensors":
        return unpack(data, str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; the error says enough
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled code or foreign objects; it was not executed and is refused. "
            "Save a plain state dict: torch.save(model.state_dict(), path), or use safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError) as error:
        raise CheckpointError(f"{path} is not a complete PyTorch checkpoint: {error}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    return dict(loaded)


def check_state(reference: State, state: State, name: str) -> None:
    """Refuse a state dict that cannot stand in for `reference`.

    Raises:
        CheckpointError: names the checkpoint and every reason: missing or foreign tensors, other
            shapes, values that are not finite.
    """
    reasons = [f"tensor {key!r} is missing" for key in reference if key not in state]
    foreign = [key for key in state if key not in reference]
    reasons += [f"tensor {key!r} is not in the model.{nearest(key, reference)}" for key in foreign]
    for key in reference:
        if key not in state:
            continue
        given, wanted = tuple(state[key].shape), tuple(reference[key].shape)
        if given != wanted:
            reasons.append(f"tensor {key!r} has shape {given}, the model's is {wanted}")
        elif state[key].is_floating_point() != reference[key].is_floating_point():
            reasons.append(f"tensor {key!r} is {state[key].dtype}, not {reference[key].dtype}")
        elif state[key].is_floating_point() and not bool(torch.isfinite(state[key]).all()):
            reasons.append(f"tensor {key!r} holds NaN or infinity")
    if reasons:
        more = f"; and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        raise CheckpointError(f"{name} does not fit the model: " + "; ".join(reasons[:4]) + more)


def digest(data: bytes) -> str:
    """SHA-256 of bytes, as hex."""
    return hashlib.sha256(data).hexdigest()
