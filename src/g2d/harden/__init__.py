"""Training recipes that harden the members of a population; composed by `[harden] recipe`.

A recipe is one function from a `Step` to a `Step`; docs/hardening.md shows how to write one.
"""

from g2d.harden.adversarial import adversarial, lightly, stale
from g2d.harden.course import RECIPES, Course, Recipe, budget, check, find, try_out
from g2d.harden.distil import Teacher, distil, find_teacher
from g2d.harden.regularise import clamp, l2
from g2d.harden.step import Part, Step, divergence, frozen

__all__ = [
    "RECIPES",
    "Course",
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
    "find",
    "find_teacher",
    "frozen",
    "l2",
    "lightly",
    "stale",
    "try_out",
]
