"""Which source files a generation was made with: what is signed of them, and what is checked.

A name like `module:function` says where code is found, not what it is: a manifest binds both. What
counts as a module's source is in `core.sources`.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def signed_code(vault: Vault) -> Digests:
    """The digests that the last generation was signed with; {}: it was not signed, or binds none.

    What the ledger says of them is not verified: this is for those who make generations.
    """
    number = vault.last_number()
    if not number or not (vault.generation_file(number).parent / SIGNATURE).exists():
        return {}
    return bound_code(vault.generation(number).manifest)


def changed(bound: Digests, now: Parts) -> str:
    """Say which files of the parts that are here are not those that are bound; "": all are.

    A part that is not bound is not judged: its name is new, which whoever names it answers for.
    """
    told = [changes(bound[part], sources) for part, sources in now.items() if part in bound]
    return ", ".join(dict.fromkeys(text for text in told if text))


def advice(vault: Vault) -> str:
    """What to do where code was changed."""
    return (
        "Look who changed it, and put it back; if it was you, stop the service and accept it:"
        f" g2d generate {vault.path} --accept-code"
    )


def require(bound: Digests, now: Parts, vault: Vault, settings: Settings) -> None:
    """Check that the parts that are bound are there at all.

    Raises:
        VaultError: one is not; the message says where it would be.
    """
    for part, sources in now.items():
        if part in bound and not sources:
            missing = not_found(settings.own_code[part])
            raise VaultError(f"{vault.path} was signed with code of yours, and {missing}")


def load_only(bound: Digests, vault: Vault, settings: Settings) -> Parts:
    """From now on load the code that settings name as it is now, if that is what is bound.

    Raises:
        VaultError: it is not; nothing of it has been run.
    """
    now = code_of(settings)
    require(bound, now, vault, settings)
    if told := changed(bound, now):
        raise VaultError(
            f"{told} since a generation of {vault.path} was signed: no code of it is run."
            f" {advice(vault)}"
        )
    hold(now)
    return now
