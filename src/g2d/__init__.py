"""G2D — Generate to Defend: fresh parameters for a deployed classifier, rotated like passwords.

The public names load lazily, so that `import g2d` and `g2d --help` stay free of torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from g2d.core.imports import FormerNames

if TYPE_CHECKING:
    from g2d.defence.defence import Defence
    from g2d.defence.generations import Generation
    from g2d.errors import G2DError
    from g2d.generator import Generator
    from g2d.redteam import attack
    from g2d.rotation.snapshot import Rotor
    from g2d.settings import Settings
    from g2d.tasks.builtin import load_task
    from g2d.tasks.splits import Split, Splits, split_dataset
    from g2d.tasks.task import Task
    from g2d.tasks.tokens import TokenBudget
    from g2d.vault.verify import verify

__version__ = "0.2.0"

_HOMES = {
    "Budget": "g2d.tasks.budget",
    "Defence": "g2d.defence.defence",
    "G2DError": "g2d.errors",
    "Generation": "g2d.defence.generations",
    "Generator": "g2d.generator",
    "Rotor": "g2d.rotation.snapshot",
    "Settings": "g2d.settings",
    "Split": "g2d.tasks.splits",
    "Splits": "g2d.tasks.splits",
    "Task": "g2d.tasks.task",
    "TokenBudget": "g2d.tasks.tokens",
    "attack": "g2d.redteam",
    "load_task": "g2d.tasks.builtin",
    "split_dataset": "g2d.tasks.splits",
    "verify": "g2d.vault.verify",
}

__all__ = [
    "Budget",
    "Defence",
    "G2DError",
    "Generation",
    "Generator",
    "Rotor",
    "Settings",
    "Split",
    "Splits",
    "Task",
    "TokenBudget",
    "attack",
    "load_task",
    "split_dataset",
    "verify",
]


# Public since 0.1.0: `[harden] recipe` and `teacher_model` in people's settings name them.
_FORMER = {
    "g2d.data": "g2d.tasks.splits",
    "g2d.harden": "g2d.training.recipes",
    "g2d.harden.adversarial": "g2d.training.recipes.adversarial",
    "g2d.harden.course": "g2d.training.recipes.hardened",
    "g2d.harden.distil": "g2d.training.recipes.distil",
    "g2d.harden.regularise": "g2d.training.recipes.regularise",
    "g2d.harden.step": "g2d.training.recipes.step",
    "g2d.harden.watch": "g2d.training.recipes.monitor",
    "g2d.networks": "g2d.tasks.networks",
    "g2d.results": "g2d.report.results",
}
sys.meta_path.append(FormerNames(_FORMER))


def __getattr__(name: str) -> Any:
    if f"g2d.{name}" in _FORMER:
        import importlib

        return importlib.import_module(f"g2d.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'g2d' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
