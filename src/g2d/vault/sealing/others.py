"""What lies in a vault's folder beside its entries and generations, and is sealed too, or refused.

Knows no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from g2d.core.platforms import LOCK_FALLBACK
from g2d.errors import SealingError
from g2d.vault.basins import GROWING
from g2d.vault.ledger import COMMITMENT, LEDGERS, LOCK, SETTINGS, SUBFOLDERS, TEMP, explained
from g2d.vault.plain import is_folder
from g2d.vault.records import SIGNATURE, entry_file, generation_folder
from g2d.vault.sources import ORDER, STAGED
from g2d.vault.spendings import SPENDINGS, THRESHOLD

if TYPE_CHECKING:
    from g2d.vault.vault import Vault

__all__ = ["BESIDE", "COMPANIONS", "SIDES", "TEXTS", "check_alone", "other_files", "remove_halves"]

SIDES = {LOCK, LOCK + LOCK_FALLBACK, SETTINGS, COMMITMENT, ORDER, SPENDINGS, THRESHOLD, *LEDGERS}
"""Files at the top of a vault that no row names."""

COMPANIONS = {"redteam", STAGED, GROWING}
"""What commands keep beside, with digests of their own."""

BESIDE = ("marking", "federated")
"""Endings of the folders in which work waits beside a vault (`defence.watermarking`,
`defence.federating`)."""

TEXTS = {THRESHOLD: "threshold"}
"""Files of `SIDES` that are secret, and the kind that they are sealed as."""

_REPORTS = (".json", ".html", ".md", ".png")
_HALF = re.compile(r"\..+\.[0-9a-f]{12}")  # as `core.files.write_bytes` names it


def other_files(root: Path) -> Iterator[Path]:
    """The secret files of a vault that its ledger does not know."""
    yield from (root / name for name in TEXTS if os.path.lexists(root / name))
    for folder, _, names in os.walk(root / "redteam"):
        for name in sorted(names):
            if name.endswith(".safetensors"):
                yield Path(folder, name)


def remove_halves(vault: Vault) -> None:
    """Remove what kills left of files half written, in folders that nobody else tidies.

    Raises:
        VaultError: the system refuses.
    """
    with explained(vault.path, "written"):
        for number in vault.numbers():
            folder = generation_folder(vault.path, number)
            for name in os.listdir(folder) if is_folder(folder) else ():
                if name.startswith(TEMP):
                    (folder / name).unlink()
        for place, _, names in os.walk(vault.path / "redteam"):
            for name in names:
                if _HALF.fullmatch(name):
                    Path(place, name).unlink()


def check_alone(vault: Vault) -> None:
    """Refuse to seal or unseal a vault with work that waits, or with files that are not its own.

    Raises:
        SealingError: with the first of them, and what to do.
    """
    root = vault.path
    beside = (root.with_name(f"{root.name}.{word}") for word in BESIDE)
    for path in (root / STAGED, root / GROWING, *beside):
        if os.path.lexists(path):
            raise SealingError(
                f"{path} holds networks of work that is not finished: finish it (`g2d refresh`,"
                " `g2d grow`, `g2d watermark add`, or the clients' `g2d population`), or remove"
                " that folder; then go on"
            )
    with explained(root, "read"):
        for path in _strangers(vault):
            raise SealingError(
                f"{path} is no file of the vault, and would stay as it is: move it out, and wipe it"
                " if it holds weights; then go on"
            )


def _strangers(vault: Vault) -> Iterator[Path]:
    root = vault.path
    known = {entry_file(root, one, name) for one in vault._entries("") for name in one.files}
    known |= {root / name for name in (*SIDES, *SUBFOLDERS, *COMPANIONS)}
    for made in vault.generations():
        folder = generation_folder(root, made.number)
        known |= {folder, folder / "manifest.json", folder / SIGNATURE}
        known |= {folder / f"{name}.safetensors" for name in made.files}
    folders = [root, *(root / name for name in SUBFOLDERS)]
    folders += [path for path in known if path.parent.name == "generations" and is_folder(path)]
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            if folder / name not in known:
                yield folder / name
    for place, _, names in os.walk(root / "redteam"):
        for name in sorted(names):
            if not name.endswith((*_REPORTS, ".safetensors")):
                yield Path(place, name)
