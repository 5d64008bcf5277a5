"""Whether a vault's commitment is to the key at hand: asked before anything is trained or made.

How a commitment is made, signed and dated is not here.
"""

from __future__ import annotations

import json
from pathlib import Path

from g2d.core.files import read_text
from g2d.errors import DAMAGE, ClaimError, KeyFileError, SettingsError, TaskError, VaultError
from g2d.protect.watermark.commitment import Commitment
from g2d.protect.watermark.form import InputForm
from g2d.protect.watermark.key import WatermarkKey
from g2d.settings import WatermarkSettings
from g2d.vault.ledger import COMMITMENT


def check_committed(
    vault: Path, key: WatermarkKey, settings: WatermarkSettings, form: InputForm
) -> None:
    """Hold key and settings against the vault's commitment.

    Raises:
        KeyFileError: it is to another key, or there is none, so that nothing could be claimed.
        TaskError: it is to inputs of another form.
        SettingsError: to other numbers of sets or triggers. VaultError: it cannot be read.
    """
    path = vault / COMMITMENT
    try:
        record = json.loads(read_text(path))["commitment"]
        same_form = record["form"] == form.record()
        made = Commitment.from_record(record)
    except FileNotFoundError:
        raise KeyFileError(
            f"[watermark] key is {settings.key}, and the vault {vault} has committed to none, so"
            " that no mark could be claimed: `g2d watermark new` makes a key and commits to it"
        ) from None
    except (OSError, ClaimError, *DAMAGE) as error:
        raise VaultError(
            f"cannot read the commitment {path} ({error}): restore it from a backup, for nothing "
            "is marked that could not be claimed"
        ) from error
    if not same_form:
        raise TaskError(
            f"{path} commits to triggers of another form than the task's inputs have now: put the "
            "task back as it was (shape, range, classes), or use a new vault"
        )
    sets = len(made.digests)
    if tuple(made.digest_of(key.of_set(i)) for i in range(sets)) != made.digests:
        raise KeyFileError(
            f"the watermark key {settings.key} is not the one that {path} commits to: name the "
            "file that `g2d watermark new` wrote then, or its backup, in [watermark] key"
        )
    if (settings.sets, settings.triggers) != (sets, made.n):
        raise SettingsError(
            f"[watermark] sets is {settings.sets} and triggers is {settings.triggers}, but {path} "
            f"commits to {sets} sets of {made.n}: put both back"
        )
