"""Training recipes that harden the members of a population; composed by `[harden] recipe`.

A recipe is one function from a `Step` to a `Step`; docs/hardening.md shows how to write one.
"""

from g2d.training.recipes.adversarial import adversarial, fgsm_light, stale
from g2d.training.recipes.distil import Teacher, distil, find_teacher
from g2d.training.recipes.hardened import (
    RECIPES,
    HardenedTraining,
    Recipe,
    budget,
    check,
    find,
    try_out,
)
from g2d.training.recipes.regularise import clamp, l2
from g2d.training.recipes.step import Part, Step, divergence, frozen

__all__ = [
    "RECIPES",
    "HardenedTraining",
    "Part",
    "Recipe",
    "Step",
    "Teacher",
    "adversarial",
    "budget",
    "check",
    "clamp",
    "distil",
    "divergence",
    "fgsm_light",
    "find",
    "find_teacher",
    "frozen",
    "l2",
    "stale",
    "try_out",
]
