"""What tests of the watermark share: one key, settings with few triggers, a commitment to them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from g2d.protect.watermark import InputForm, WatermarkKey
from g2d.protect.watermark.chance import LIKELY
from g2d.protect.watermark.commitment import Commitment, Published, set_digest
from g2d.protect.watermark.key import SCHEME
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


def few_committed(
    key: WatermarkKey, task: Task, vault: str = "", n: int = 8, sets: int = 2
) -> bytes:
    """A vault's commitment to so few triggers that g2d itself would make none of them."""
    form = InputForm.of(task)
    digests = tuple(
        set_digest(key.of_set(i), form, n, LIKELY, signer="", vault=vault) for i in range(sets)
    )
    made = Commitment(
        scheme=SCHEME, task=task.name, form=form, n=n, threshold=LIKELY, digests=digests,
        vault=vault, created=time.time(), signer="", generations=0, begun=False,
    )  # fmt: skip
    return json.dumps(Published(made).record()).encode()


def mark_of(task: Task, folder: Path, **changes) -> Mark:
    found = Mark.of(few(mark_key(folder), **changes), task)
    assert found is not None
    return found
