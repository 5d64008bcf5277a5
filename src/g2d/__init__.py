"""G2D — Generate to Defend: fresh parameters for a deployed classifier, rotated like passwords.

The public names load lazily, so that `import g2d` and `g2d --help` stay free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g2d.data import Split, Splits, split_dataset
    from g2d.defence import Defence, Generation
    from g2d.errors import G2DError
    from g2d.generator import Generator
    from g2d.rotation import Rotor
    from g2d.settings import Settings
    from g2d.tasks import Task, load_task

__version__ = "0.1.0"

_HOMES = {
    "Defence": "g2d.defence",
    "G2DError": "g2d.errors",
    "Generation": "g2d.defence",
    "Generator": "g2d.generator",
    "Rotor": "g2d.rotation",
    "Settings": "g2d.settings",
    "Split": "g2d.data",
    "Splits": "g2d.data",
    "Task": "g2d.tasks",
    "load_task": "g2d.tasks",
    "split_dataset": "g2d.data",
}

__all__ = [
    "Defence",
    "G2DError",
    "Generation",
    "Generator",
    "Rotor",
    "Settings",
    "Split",
    "Splits",
    "Task",
    "load_task",
    "split_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'g2d' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
