"""A new watermark key of a vault: its file, the vault's commitment, and what its settings say."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from g2d.core.files import fill_file
from g2d.errors import ClaimError, KeyFileError, VaultError
from g2d.protect.watermark.claim import loads, read_json
from g2d.protect.watermark.commitment import Published, commit
from g2d.protect.watermark.form import InputForm
from g2d.protect.watermark.key import WatermarkKey
from g2d.settings import Settings
from g2d.vault.committed import faults
from g2d.vault.confirmed import confirmed_key, key_named
from g2d.vault.keys import SigningKey, default_key, outside_vaults
from g2d.vault.ledger import COMMITMENT
from g2d.vault.reading import VaultReader
from g2d.vault.vault import Vault

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def beside(key: Path) -> Path:
    """Where a copy of the commitment lies: a claim is made with it where the vault is not."""
    return key.with_name(f"{key.name}.json")


def new_key_file(vault: VaultReader, given: Path | None) -> Path:
    """Where a new key is to lie; by default beside the signing key, by the vault's identity.

    Raises:
        KeyFileError: a file is there already, or it would lie in a vault.
    """
    named = given or default_key().with_name(f"watermark-{vault.identity}.key")
    path = outside_vaults(named)
    for file in (path, beside(path)):
        if os.path.lexists(file):
            raise KeyFileError(
                f"{file} exists already, and nothing of a key is overwritten: name another file"
            )
    return path


def refuse_second(vault: VaultReader) -> None:
    """Refuse to commit once more.

    Raises:
        VaultError: there is a commitment.
    """
    if vault.commitment():
        raise VaultError(
            f"{vault.path} has a commitment already ({COMMITMENT}), and a second one would be dated"
            " later: go on with its key, or begin a new vault"
        )


def publish(
    vault: Vault,
    settings: Settings,
    form: InputForm,
    key_file: Path | None = None,
    roots: Sequence[Certificate] | None = None,
    custodian: str = "",
) -> tuple[Path, Published]:
    """Draw a key and commit to it; return the key's file and what was published.

    Where the settings name a signing key, it signs; where they name a timestamp server, that dates.

    Args:
        vault: open for writing. roots: as `Published.verify` has them. custodian: opens the key's
            file; "": it is in plaintext.

    Raises:
        VaultError: there is a commitment, or it cannot be written. KeyFileError: the key cannot be
            written, or nobody has confirmed the signing key. Else what `commit` raises.
    """
    refuse_second(vault)
    path, marks = new_key_file(vault, key_file), settings.watermark
    named = settings.signing.key
    signing = SigningKey.read(confirmed_key(vault, named)) if named else None
    key = WatermarkKey.generate()
    published = commit(
        key, form, settings.task.name, vault, n=marks.triggers, sets=marks.sets, signing=signing,
        timestamp=marks.timestamp, roots=roots,
    )  # fmt: skip
    data = json.dumps(published.record(), indent=1).encode() + b"\n"
    key.write(path, custodian)
    before = vault.settings_text
    try:
        fill_file(beside(path), data, 0o600)
        # A kill before the commitment leaves a vault that makes nothing and says what to do; one
        # after it, without the setting, would leave one that is committed and trains unmarked.
        vault.write_settings(settings.override(watermark__key=str(path)).to_toml())
        vault.write_commitment(data)
    except (OSError, VaultError) as error:
        path.unlink(missing_ok=True)  # nobody was told of it
        beside(path).unlink(missing_ok=True)
        with suppress(VaultError):
            if vault.settings_text != before:
                vault.write_settings(before)
        if isinstance(error, VaultError):
            raise
        raise KeyFileError(f"cannot write {beside(path)}: {error.strerror}") from error
    return path, published


def published_in(vault: VaultReader) -> Published:
    """Read a vault's commitment.

    Raises:
        ClaimError: there is none, it is damaged, of another vault, none that generations were made
            under, or signed by another key than the one that signs for the vault here.
    """
    data = vault.commitment()
    if not data:
        raise ClaimError(f"{vault.path} has no commitment: `g2d watermark new` makes one")
    found = Published.from_record(loads(data, str(vault.path / COMMITMENT)))
    if found.commitment.vault != vault.identity:
        raise ClaimError(
            f"the commitment in {vault.path} is of vault {found.commitment.vault}, not of this one,"
            f" {vault.identity or 'which has no identity'}: somebody put it there"
        )
    manifests = {number: vault.generation(number).manifest for number in vault.numbers()}
    if wrong := next(faults(data, vault.identity, manifests), ""):
        raise ClaimError(f"{vault.path / COMMITMENT}: {wrong}")
    own = _signer_of(vault)
    if own and found.commitment.signer != own:
        raise ClaimError(
            f"the commitment in {vault.path} is not signed by the key that signs for this vault:"
            " somebody replaced it, or that key is newer. Leave --vault out, for the copy beside"
            " the watermark key"
        )
    return found


def _signer_of(vault: VaultReader) -> str:
    """The public key (hex) of what signs for a vault; "": nothing does, or it is not here."""
    try:
        named = key_named(vault.settings_text)
        return SigningKey.read(confirmed_key(vault, named)).public.raw[0].hex() if named else ""
    except KeyFileError:
        return ""


def published_beside(key: Path) -> Published:
    """Read the copy of a commitment that lies beside its key.

    Raises:
        ClaimError: there is none, or it is damaged.
    """
    path = beside(key)
    if not path.exists():
        raise ClaimError(f"there is no commitment beside {key} ({path.name}): name its --vault")
    return Published.from_record(read_json(path, "commitment"))
