"""Checkpoints whose names are not the model's own: prefixes that wrappers leave, tied tensors.

How files are read is in `checkpoints`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from g2d.core.types import State
from g2d.errors import CheckpointError
from g2d.weights.checkpoints import check_state
from g2d.weights.layout import same_bits

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that wrappers put anywhere into a name: torch.compile, FSDP, activation checkpoints."""
_TRIED = 8  # of the model's names, by which prefixes are found


@dataclass(frozen=True)
class Fitted:
    """A checkpoint under the model's own names and types; `notes` say what was done to names."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def fit_state(
    reference: State, state: State, name: str, ties: Mapping[str, str] | None = None
) -> Fitted:
    """Bring a checkpoint under the names and into the types of a model, or refuse it.

    A prefix that the model's names have in the checkpoint (`module.`, `model.`, any) is left out,
    as are parts that wrappers put into names; one that the checkpoint lacks is added. Of tied
    tensors one name is enough.

    Args:
        name: of the checkpoint, in messages. ties: as in `Layout`.

    Raises:
        CheckpointError: it does not fit; every kind of reason is given.
    """
    renamed, note = _renamed(reference, state, name)
    filled = _filled(reference, renamed, ties or {}, name)
    check_state(reference, filled, f"{name} ({note})" if note else name)
    notes = (f"{name}: {note}",) if note else ()
    return Fitted({n: filled[n].to(t.dtype) for n, t in reference.items()}, notes)


def _renamed(reference: State, state: State, name: str) -> tuple[dict[str, Tensor], str]:
    """The checkpoint under the names that fit the model best, and what was done to them."""
    found = _overlap(reference, state)
    if found == len(reference):
        return dict(state), ""
    bare = {_unwrapped(key): value for key, value in state.items()}
    wrapped = "parts that wrappers put into names left out" if bare.keys() != state.keys() else ""
    ways = [(bare, wrapped)] if len(bare) == len(state) and wrapped else []
    start = bare if ways else dict(state)
    ways += [
        (_without(start, prefix), "; ".join(filter(None, (wrapped, f"prefix {prefix!r} left out"))))
        for prefix in _prefixes(reference, start)
    ]
    if added := _shared_prefix(reference):
        ways.append(({added + key: t for key, t in start.items()}, f"prefix {added!r} added"))
    scores = [_overlap(reference, keys) for keys, _ in ways]
    best = max(scores, default=0)
    if best <= found:
        return dict(state), ""
    chosen = [way for way, score in zip(ways, scores, strict=True) if score == best]
    if len(chosen) > 1 and best == len(reference):
        raise CheckpointError(
            f"{name} holds the model {len(chosen)} times ({' or '.join(note for _, note in chosen)}"
            "); save the one to use alone"
        )
    return chosen[0]


def _overlap(reference: State, state: State) -> int:
    return sum(key in state for key in reference)


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _without(state: State, prefix: str) -> dict[str, Tensor]:
    """Names without a prefix; those that have none stay, unless they would hide another."""
    bare = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    others = {key: t for key, t in state.items() if not key.startswith(prefix) and key not in bare}
    return bare | others


def _prefixes(reference: State, state: State) -> Iterator[str]:
    """Prefixes under which some of the model's names are found, each once."""
    seen: set[str] = set()
    for wanted in list(reference)[:_TRIED]:
        for key in state:
            prefix = key.removesuffix(wanted)
            if prefix != key and prefix.endswith(".") and prefix not in seen:
                seen.add(prefix)
                yield prefix


def _shared_prefix(reference: State) -> str:
    """The first part that all of the model's names share, with its point; or nothing."""
    heads = {key.partition(".")[0] for key in reference if "." in key}
    return f"{heads.pop()}." if len(heads) == 1 and all("." in key for key in reference) else ""


def _filled(
    reference: State, state: State, ties: Mapping[str, str], name: str
) -> dict[str, Tensor]:
    """The state with each tied tensor under all of its names."""
    filled = dict(state)
    for group in _groups(ties, reference):
        there = [key for key in group if key in state]
        if other := [key for key in there[1:] if not same_bits(state[key], state[there[0]])]:
            raise CheckpointError(
                f"{name} does not fit the model: {there[0]!r} and {other[0]!r} are one tensor in "
                "the model (tied), and differ there; untie them in the task's factory, or save one"
            )
        filled |= {key: state[there[0]] for key in group if there}
    return filled


def _groups(ties: Mapping[str, str], reference: State) -> list[Sequence[str]]:
    firsts = {first for first in ties.values() if first in reference}
    return [[first, *(k for k, f in ties.items() if f == first)] for first in sorted(firsts)]
