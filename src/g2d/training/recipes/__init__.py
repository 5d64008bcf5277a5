"""Training recipes: what changes how the networks of a population are trained.

`[harden] recipe` names them, in order. The smallest is a function from a `Step` to a `Step`; a
`Recipe` may also exchange the optimiser and the sampler. docs/extending.md shows how to write one.
"""

from g2d.training.loop import Batches
from g2d.training.recipes.adversarial import adversarial, fgsm_light, stale
from g2d.training.recipes.distil import Teacher, distil, find_teacher
from g2d.training.recipes.hardened import (
    RECIPES,
    HardenedTraining,
    budget,
    check,
    find,
    try_out,
)
from g2d.training.recipes.private import Private, PrivatePlan
from g2d.training.recipes.private_check import check_private_training
from g2d.training.recipes.recipe import Recipe, Setup
from g2d.training.recipes.regularise import clamp, l2
from g2d.training.recipes.step import Part, Step, divergence, frozen
from g2d.training.recipes.watermark import check_mark, watermark

# Their names in 0.1.0, in what people have written.
Course, lightly = HardenedTraining, fgsm_light

__all__ = [
    "RECIPES",
    "Batches",
    "Course",
    "HardenedTraining",
    "Part",
    "Private",
    "PrivatePlan",
    "Recipe",
    "Setup",
    "Step",
    "Teacher",
    "adversarial",
    "budget",
    "check",
    "check_mark",
    "check_private_training",
    "clamp",
    "distil",
    "divergence",
    "fgsm_light",
    "find",
    "find_teacher",
    "frozen",
    "l2",
    "lightly",
    "stale",
    "try_out",
    "watermark",
]
