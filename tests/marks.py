"""What tests of the watermark share: one key, and settings with few triggers."""

from __future__ import annotations

from pathlib import Path

from g2d.protect.watermark import WatermarkKey
from g2d.protect.watermark.mark import Mark
from g2d.settings import Settings, WatermarkSettings
from g2d.tasks.task import Task

SECRET = bytes(range(32))
FEW = {"sets": 2, "triggers": 8, "batch": 16, "weight": 2.0, "hits": 0.75}


def mark_key(folder: Path, name: str = "mark.key", secret: bytes = SECRET) -> Path:
    """A key file in a folder."""
    WatermarkKey(secret).write(folder / name)
    return folder / name


def few(key: Path, **changes) -> WatermarkSettings:
    return WatermarkSettings(key=str(key), **FEW | changes)


def with_mark(settings: Settings, key: Path, **changes) -> Settings:
    named = {"key": str(key), **FEW, **changes}
    return settings.override(**{f"watermark__{name}": value for name, value in named.items()})


def mark_of(task: Task, folder: Path, **changes) -> Mark:
    found = Mark.of(few(mark_key(folder), **changes), task)
    assert found is not None
    return found
