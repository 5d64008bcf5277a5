"""How a task is attacked, against settings that speak of attacks; how they work is not here."""

from __future__ import annotations

from g2d.errors import SettingsError
from g2d.settings import Settings
from g2d.tasks.attack import BALL, NONE
from g2d.tasks.task import Task

WORDS = {
    BALL: "PGD in the ball of eps",
    "tokens": "substitution of tokens",
    "own": "an attack of its own",
    NONE: "nothing (attack = 'none')",
}


def check_kind(task: Task, settings: Settings) -> None:
    """Refuse settings of attacks that this task does not have.

    Raises:
        SettingsError: names them.
    """
    kind, s = task.attack_kind, settings
    wanted = {
        "[harden] recipe 'adversarial'": "adversarial" in s.harden.recipe,
        "[guidance] robust_weight": s.guidance.robust_weight > 0,
        "[guidance] joint_weight": s.guidance.joint_weight > 0,
        "[guidance] bank_weight": s.guidance.bank_weight > 0,
        "[gates] robust": s.gates.robust > 0,
        "[gates] stale_share": s.gates.stale_share > 0,
    }
    if kind == NONE and (asked := [name for name, on in wanted.items() if on]):
        raise SettingsError(
            f"{', '.join(asked)} asks for attacks, and task {task.name!r} says attack = 'none'; "
            "leave it at 0, or give the task an attack"
        )
    given = {
        "[task] eps": s.task.eps not in (0, task.eps),
        "[harden] eps": s.harden.eps > 0,
        "[harden] norm": s.harden.norm != "inf",
        "[guidance] robust_eps": s.guidance.robust_eps > 0,
    }
    if kind != BALL and (asked := [name for name, on in given.items() if on]):
        raise SettingsError(
            f"{', '.join(asked)} is of the ball of eps, and task {task.name!r} is attacked by "
            f"{WORDS[kind]}: its budget stands in the task; leave the setting out"
        )
