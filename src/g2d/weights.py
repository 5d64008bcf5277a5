"""Parameters as vectors: the exact codec, checkpoints on disk, alignment and distances.

Nothing here trains or generates. `Codec` maps a state dict to a vector `v` in R^P and back without
losing a bit; `align` removes the symmetries (permuted or rescaled hidden units) that make a raw
distance worthless as evidence (DESIGN section 2).
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from g2d.errors import CheckpointError, SettingsError, nearest

State = Mapping[str, Tensor]

_METADATA = "g2d"


@dataclass(frozen=True)
class TensorSpec:
    """Where one tensor lives in the vector, and its scale (a power of two, so that it is exact)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    scale: float
    positive: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Codec:
    """An exact, invertible map between a state dict and a vector of P standardised parameters.

    Each tensor is divided by its scale, the power of two nearest to the tensor's typical magnitude:
    a division by a power of two loses nothing, so `decode(encode(state))` equals `state` bit by bit
    (subnormals aside). Tensors out of scope, and integers such as batch norm's counter, are taken
    from the reference. Running variances are kept positive on the way back.
    """

    def __init__(self, specs: Sequence[TensorSpec], rest: State) -> None:
        self.specs = tuple(specs)
        self.rest = {name: tensor.detach().clone() for name, tensor in rest.items()}
        self.size = sum(spec.size for spec in self.specs)
        wide = any(spec.dtype == torch.float64 for spec in self.specs)
        self.dtype = torch.float64 if wide else torch.float32

    @classmethod
    def fit(cls, states: Sequence[State], scope: Sequence[str] = ()) -> Codec:
        """Build the codec of a population; the first state is the reference for what is left out.

        Args:
            states: one or more state dicts of one architecture.
            scope: name patterns (`fc.*`, `*.bias`); empty means every floating tensor.

        Raises:
            SettingsError: a pattern matches no tensor.
        """
        reference = states[0]
        names = [name for name, tensor in reference.items() if tensor.is_floating_point()]
        chosen = _in_scope(names, scope)
        specs, offset = [], 0
        for name in chosen:
            tensor = reference[name]
            spread = max(float(state[name].double().square().mean().sqrt()) for state in states)
            scale = 2.0 ** round(math.log2(spread)) if spread > 1e-30 else 1.0
            positive = name.endswith("running_var")
            specs.append(
                TensorSpec(name, tuple(tensor.shape), tensor.dtype, offset, scale, positive)
            )
            offset += tensor.numel()
        rest = {name: tensor for name, tensor in reference.items() if name not in set(chosen)}
        return cls(specs, rest)

    def encode(self, state: State) -> Tensor:
        """Flatten a state dict to the vector `v`, shape (P,)."""
        parts = [state[s.name].detach().to(self.dtype).flatten() / s.scale for s in self.specs]
        return torch.cat(parts)

    def decode(self, v: Tensor) -> dict[str, Tensor]:
        """Turn a vector of shape (P,) into a complete state dict; the inverse of `encode`."""
        state = {name: tensor.clone() for name, tensor in self.rest.items()}
        for spec, part in zip(self.specs, self._parts(v), strict=True):
            state[spec.name] = part.detach().to(spec.dtype).clone()
        return state

    def tensors(self, v: Tensor) -> dict[str, Tensor]:
        """View `v` as named tensors that carry gradients, for `torch.func.functional_call`.

        Batch norm's running statistics carry none: PyTorch does not differentiate by them.
        """
        named: dict[str, Tensor] = dict(self.rest)
        for spec, part in zip(self.specs, self._parts(v), strict=True):
            tensor = part.to(spec.dtype)
            named[spec.name] = tensor.detach() if _is_statistic(spec.name) else tensor
        return named

    def _parts(self, v: Tensor) -> list[Tensor]:
        if v.shape != (self.size,):
            raise CheckpointError(f"a vector of shape ({self.size},) fits, not {tuple(v.shape)}")
        parts = []
        for spec, flat in zip(self.specs, v.split([s.size for s in self.specs]), strict=True):
            part = flat.view(spec.shape) * spec.scale
            parts.append(part.clamp_min(1e-12) if spec.positive else part)
        return parts

    def describe(self) -> list[list[object]]:
        """Return the tensor table as plain data, for the generator file's metadata."""
        return [[s.name, list(s.shape), str(s.dtype)[6:], s.scale, s.positive] for s in self.specs]

    @classmethod
    def restore(cls, table: Sequence[Sequence[object]], rest: State) -> Codec:
        """Rebuild a codec from `describe()` and the tensors out of scope."""
        specs, offset = [], 0
        for name, shape, dtype, scale, positive in table:
            size = tuple(int(n) for n in shape)  # type: ignore[attr-defined]
            kind = getattr(torch, str(dtype))
            spec = TensorSpec(str(name), size, kind, offset, float(str(scale)), bool(positive))
            specs.append(spec)
            offset += spec.size
        return cls(specs, rest)


def _is_statistic(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var")


def _in_scope(names: Sequence[str], scope: Sequence[str]) -> list[str]:
    if not scope:
        return list(names)
    for pattern in scope:
        if not fnmatch.filter(names, pattern):
            raise SettingsError(f"scope pattern {pattern!r} matches no tensor." + _hint(names))
    return [name for name in names if any(fnmatch.fnmatch(name, p) for p in scope)]


def _hint(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f" The model has: {shown}"


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
