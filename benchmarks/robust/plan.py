"""What benchmarks.robust measures: sizes, and the recipe behind each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.robust import recipes

N = 150  # test images of AutoAttack and of the transfer attacks
MANY = 500  # of AutoAttack on the rows FINER; the first N are the same
CHAIN = 30  # generations
NEWEST = 5  # judged by AutoAttack, without choice: the mean
SUSPECTS = 5  # judged too: those that PGD hurts most; the worst of both
JOINT = 20
MEMBERS = 4  # of each population, judged by AutoAttack: the last of each basin
FORKS = {"repelled": 6, "adversarial": 8}  # made for a row alone, in each basin one after another
PROPOSALS = 8  # the adaptive attacker's own
DRAWS = (5, 10, 20, 40)  # fresh samples a step of the adaptive attacker
UNSEEN = 100  # fresh samples that the adaptive attacks are scored on, too
PARTS = (4, 2)  # the base's steps, divided: the curve of compute
LONGER = ("student, RSLAD",)  # trained with twice the steps, too


WIDE = "PGD, twice the width"  # at half the steps: a way of ways.py that was the best there


@dataclass(frozen=True)
class Recipe:
    """A row of one network: what differs from the task's hardening; its steps are divided."""

    harden: dict[str, Any]
    part: float = 1
    factory: Any = None
    teacher: str = ""


RECIPES = {
    WIDE: Recipe({}, 2, recipes.wide),
    "standard": Recipe({"recipe": ()}, 4),
    "standard, ordinary CNN": Recipe({"recipe": ()}, 4, recipes.plain),
    "standard, clamped": Recipe({"recipe": ("clamp",)}, 4),
    "FGSM at eps = 1 alone, ordinary CNN": Recipe(
        {"recipe": ("benchmarks.robust.recipes:blog",)}, 4, recipes.plain
    ),
    "FGSM-RS": Recipe({"method": "fgsm"}, 2),
    "PGD": Recipe({}),
    "TRADES": Recipe({"method": "trades"}, 2),
}
STUDENTS = {
    "student, standard": Recipe({"recipe": ()}, 4, recipes.student),
    "student, adversarial": Recipe({}, factory=recipes.student),
    "student, RSLAD": Recipe(
        {"recipe": ("distil", "adversarial"), "clean": 0.2},
        factory=recipes.student,
        teacher="PGD",
    ),
    "student, teacher of defensive distillation": Recipe(
        {"recipe": ("benchmarks.robust.recipes:hot",)}, 4, recipes.student
    ),
    "student, defensive distillation": Recipe(
        {"recipe": ("distil",), "temperature": 20.0},
        4,
        recipes.student,
        "student, teacher of defensive distillation",
    ),
}
FINER = ("PGD", WIDE)


def named(name: str, part: float) -> str:
    """A row's name when its training is shortened, or stretched."""
    if part == 1:
        return name
    return f"{name}, 1/{part:g} of the steps" if part > 1 else f"{name}, {1 / part:g} × the steps"
