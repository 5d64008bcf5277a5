"""Which source files a generation was made with: what is signed of them, and what is checked.

A name like `module:function` says where code is found, not what it is: a manifest binds both. What
counts as a module's source is in `core.sources`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2d.core.imports import not_found
from g2d.core.sources import Digests, Source, changes, hold, read_parts
from g2d.errors import VaultError
from g2d.settings import Settings
from g2d.vault.vault import SIGNATURE, Vault

CODE = "code"
"""What a manifest calls the digests of the user's own code."""

TASK = "task"
"""The part of it that answering needs, too."""

Parts = Mapping[str, Mapping[str, Source]]


def code_of(settings: Settings) -> Parts:
    """Read the sources of all code of the user's own that settings name; nothing of it is run.

    Raises:
        VaultError: a file of it cannot be read.
    """
    try:
        return read_parts(settings.own_code)
    except OSError as error:
        raise VaultError(f"{error.filename} cannot be read: {error.strerror}") from error


def bound_code(manifest: Mapping[str, Any]) -> Digests:
    """The digests that a manifest binds; {}: it has none, as of built-in code alone."""
    found = manifest.get(CODE, {})
    parts = found.items() if isinstance(found, dict) else ()
    return {str(part): known for part, known in parts if isinstance(known, dict)}


def binds(manifest: Mapping[str, Any]) -> bool:
    """Whether a signed manifest says which code it binds, be it none; older G2D did not."""
    return CODE in manifest or "marked" in manifest


def last_bound(vault: Vault, settings: Settings) -> Mapping[str, Any]:
    """The newest manifest by which code that settings name is judged; {}: there is none.

    In a vault where a generation was signed it is the newest that was, or that keeps digests.
    What the ledger says of it is not verified: this is for those who make generations.

    Raises:
        VaultError: its signature was removed.
    """
    if not settings.own_code:
        return {}
    rows = vault.generations(damaged=lambda _: None)
    if not any("signer" in row.manifest for row in rows):
        return {}
    row = next(r for r in reversed(rows) if "signer" in r.manifest or CODE in r.manifest)
    signature = vault.generation_file(row.number).parent / SIGNATURE
    if "signer" in row.manifest and not signature.exists():
        raise VaultError(
            f"{vault.path} lacks the signature of generation {row.number}, which was signed: no"
            f" code of yours is run. Put {signature.name} back from a copy; or look at your code,"
            f" and accept it: g2d generate {vault.path} --accept-code"
        )
    return row.manifest


def signed_code(vault: Vault, settings: Settings) -> Digests:
    """The digests that `last_bound` binds.

    Raises:
        VaultError: its signature was removed.
    """
    return bound_code(last_bound(vault, settings))


def changed(bound: Digests, now: Parts) -> str:
    """Say which files of the parts that are here are not those that are bound; "": all are.

    A part that is not bound is not judged: its name is new, which whoever names it answers for.
    """
    told = [changes(bound[part], sources) for part, sources in now.items() if part in bound]
    return ", ".join(dict.fromkeys(text for text in told if text))


def advice(path: Path) -> str:
    """What to do where code was changed."""
    return (
        "Look who changed it, and put it back; if it was you, stop the service and accept it:"
        f" g2d generate {path} --accept-code"
    )


def require(bound: Digests, now: Parts, path: Path, settings: Settings) -> None:
    """Check that the parts that are bound are there at all.

    Raises:
        VaultError: one is not; the message says where it would be.
    """
    for part, sources in now.items():
        if part in bound and not sources:
            missing = not_found(settings.own_code[part])
            raise VaultError(f"{path} was signed with code of yours, and {missing}")


def load_only(bound: Digests, path: Path, settings: Settings) -> Parts:
    """From now on load the code that settings name as it is now, if that is what is bound.

    Args:
        path: the vault's folder, for messages.

    Raises:
        VaultError: it is not; nothing of it has been run.
    """
    now = code_of(settings)
    require(bound, now, path, settings)
    if told := changed(bound, now):
        raise VaultError(
            f"{told} since a generation of {path} was signed: no code of it is run. {advice(path)}"
        )
    hold(now)
    return now
