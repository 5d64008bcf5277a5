"""Marks of replicas in a vault: how strong they may be, and whose a suspect carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from g2d.core.types import State
from g2d.protect.fingerprint import (
    ERROR,
    STRENGTHS,
    Accused,
    accuse,
    marked,
    read_marks,
    strength_of,
)
from g2d.tasks.inference import accuracy, load_model
from g2d.tasks.task import Task
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack
from g2d.weights.symmetry import Coupling

COPIES = 4
"""Marked copies that are measured: each replica has other bits, of the same size."""


def fit_mark(task: Task, state: State, secret: bytes, drop: float) -> dict[str, Any]:
    """The strongest marks that cost at most `drop` accuracy on the gate split, for a manifest.

    Returns:
        strength, 0.0 where even the weakest cost more: such a generation carries none; `accuracy`
        of the generation and the least of the marked copies (`marked`); how many `copies`.
    """
    plain = accuracy(load_model(task, state), task.splits.gate)
    found = {"accuracy": round(plain, 6), "copies": COPIES}
    for strength in STRENGTHS:
        copies = (marked(state, secret, f"copy {i}", strength) for i in range(COPIES))
        worst = min(accuracy(load_model(task, copy), task.splits.gate) for copy in copies)
        if plain - worst <= drop:
            return {"strength": strength, "marked": round(worst, 6), **found}
    return {"strength": 0.0, "marked": round(plain, 6), **found}


def sources(
    vault: Vault, suspect: State, secret: bytes, numbers: Sequence[int], chain: Sequence[Coupling]
) -> dict[int, list[Accused]]:
    """Of each of these generations that carries marks: the slots whose copies a suspect is of.

    The chance that an innocent slot of any of them is accused is at most 1e-6 (Bonferroni).

    Args:
        suspect: under the model's names and types. numbers: the generations that it was made from.
    """
    found = {}
    for number in numbers:
        strength = strength_of(vault.generation(number).manifest)
        if not strength:
            continue
        generation = unpack(vault.read_generation(number))
        code, heard = read_marks(generation, suspect, secret, strength, chain)
        accused = accuse(code, heard, error=ERROR / len(numbers))
        found[number] = [replace(one, p=min(1.0, one.p * len(numbers))) for one in accused]
    return found
