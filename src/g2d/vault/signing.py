"""Signed generations: signing when one is accepted, verification before it is served.

The generating side holds a `SigningKey`, the serving side a `VerifyKey` alone. What is signed is
the exact bytes of manifest.json, behind a fixed context; the 64 bytes of the signature lie beside
it. Nothing in a manifest is parsed before its signature is right, and the ledger is not trusted.
Keys and their files are in `keys`. Knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from g2d.errors import BrokenSealError, G2DError, RefusedError, UnavailableError, VaultError
from g2d.settings import Settings
from g2d.vault.code import CODE
from g2d.vault.keys import SigningKey, VerifyKey, default_key, open_plain
from g2d.vault.ledger import PASSING
from g2d.vault.plain import check_folders
from g2d.vault.vault import SIGNATURE, GenerationRecord, Vault

__all__ = [
    "FORMAT",
    "REASONS",
    "RefusedError",
    "SigningKey",
    "Verified",
    "VerifyKey",
    "default_key",
    "require_source",
    "sign_generation",
    "verify_generation",
]

FORMAT = "g2d-generation-1"
"""What a signed manifest calls itself; another one is refused."""

Reason = Literal[
    "replay", "absent", "unsigned", "signature", "format", "number", "vault", "task", "future",
    "expired", "ledger", "digest", "code",
]  # fmt: skip
REASONS: tuple[str, ...] = get_args(Reason)
"""Every `RefusedError.reason`, in the order in which they are looked for."""

_SIGNATURE_SIZE = 64
_MOST = 1 << 24  # bytes of a manifest: it is read before anything is known about it
_SKEW = 3600.0  # seconds that the clocks of the two sides may differ
_DAY = 86_400.0
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": str, "signer": str, "vault": str, "task": str, "source": str, "number": int,
    "files": dict, "sizes": dict, "population": str, "generator": str, "gates": list,
    "exposed": list, "created": (int, float), "expires": (int, float),
}  # fmt: skip


# --- signing -------------------------------------------------------------------------------------


def sign_generation(
    vault: Vault,
    files: Mapping[str, bytes],
    manifest: Mapping[str, Any],
    key: SigningKey,
    *,
    source: str,
    lifetime: float,
    activate: bool = False,
) -> GenerationRecord:
    """Accept a generation with a signed manifest: `Vault.accept`, and the signature beside it.

    Format, signer, the vault's identity, `source`, the files' sizes and the time of expiry are
    added to what `manifest` says, and that no code is bound where it does not say which; number,
    digests and creation by the vault.

    Args:
        source: `Settings.source` of what was loaded to make it, whatever the vault's settings name
            by now. lifetime: days until the generation expires.

    Raises:
        VaultError: it cannot be written, `manifest` lacks what has to be bound, or the vault's
            settings name something else than `source`.
    """
    require_source(vault, source)
    bound = {
        "format": FORMAT,
        "signer": key.fingerprint,
        "vault": vault.identity,
        "source": source,
        "sizes": {name: len(data) for name, data in files.items()},
        "expires": time.time() + lifetime * _DAY,
        "marked": vault.marked,
    }
    full = {CODE: {}, **manifest, **bound}
    if missing := _FIELDS.keys() - full.keys() - {"number", "files", "created"}:
        raise VaultError(f"a signed manifest must also hold {sorted(missing)}: add them.")
    return vault.accept(files, full, activate, key.sign)


def require_source(vault: Vault, loaded: str) -> None:
    """Check that a vault's settings still name what was loaded; else nothing is to be signed.

    Raises:
        VaultError: they name something else. SettingsError: they cannot be read.
    """
    if (named := _source(vault)) != loaded:
        raise VaultError(
            f"{vault.path} names {named!r} now, and {loaded!r} was loaded: nothing is signed. Look"
            " who changed task.toml, and put it back"
        )


# --- verification --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """A generation that a trusted key signed for this vault, with the very bytes verified.

    Load `weights`, not the file: it may have changed since. `signer` is the key's fingerprint.
    """

    number: int
    manifest: Mapping[str, Any]
    weights: bytes = field(repr=False)
    signer: str
    expires: float


def verify_generation(
    vault: Vault,
    number: int,
    key: VerifyKey,
    *,
    after: int,
    now: float,
    files: Collection[str] = (),
    settings: bool = True,
) -> Verified:
    """Verify signature, identity, number, times and every file of a generation; change nothing.

    Args:
        after: the highest number that has been served; 0 at the very first start.
        now: seconds since 1970.
        files: which to read, "weights" among them; all that were signed by default.
        settings: whether the vault's settings must name what it was signed for, as they must of
            whatever is to be loaded; False: they are not read.

    Raises:
        RefusedError: with `.reason`, one of `REASONS`, and `.number`.
    """
    if number <= after:
        raise _refused(number, "replay", f"generation {after} has been served already")
    folder = vault.generation_file(number).parent
    try:
        check_folders(vault.path, folder / "manifest.json")
    except OSError as error:
        raise _refused(number, "absent", f"{error.filename}: {error.strerror}") from error
    manifest = _read(folder / "manifest.json", number, "absent")
    signature = _read(folder / SIGNATURE, number, "unsigned")
    right_size = len(signature) == _SIGNATURE_SIZE
    signer = key.signer(manifest, signature) if right_size else None
    if signer is None:
        raise _refused(number, "signature", f"no trusted key ({key.fingerprint}) has signed it")
    signed = _parse(manifest, number, signer)
    _check_place(vault, number, key, signed)
    if settings:
        _check_source(vault, number, signed)
    _check_times(number, signed, now)
    _check_ledger(vault, number, signed)
    weights = b""
    for name, digest in signed["files"].items():
        if files and name not in files:
            continue
        data = _opened(vault, folder, name, number, digest)
        if data is None:
            data = _read_signed(folder, name, number, signed["sizes"][name], digest)
        weights = data if name == "weights" else weights
    return Verified(number, signed, weights, signer, float(signed["expires"]))


def _parse(manifest: bytes, number: int, signer: str) -> dict[str, Any]:
    """Read a manifest whose signature is right: another version's would still be a stranger."""
    try:
        signed = json.loads(manifest)
    except (ValueError, RecursionError):
        signed = None
    whole = (
        isinstance(signed, dict)
        and all(isinstance(signed.get(name), kind) for name, kind in _FIELDS.items())
        and signed["format"] == FORMAT
        and signed["signer"] == signer
        and "weights" in signed["files"]
        and signed["files"].keys() == signed["sizes"].keys()
    )
    if not whole:
        raise _refused(number, "format", f"it is not a signed manifest of format {FORMAT}")
    return dict(signed)


def _check_place(vault: Vault, number: int, key: VerifyKey, signed: Mapping[str, Any]) -> None:
    if signed["number"] != number:
        raise _refused(
            number, "number", f"the files there were signed as generation {signed['number']}"
        )
    try:
        identity, claimed = vault.identity, signed["vault"]
    except VaultError as error:
        raise _refused(number, "ledger", str(error)) from error
    if not identity or claimed != identity or (key.vaults and claimed not in key.vaults):
        raise _refused(number, "vault", f"it was signed for another vault, {claimed}")


def _check_source(vault: Vault, number: int, signed: Mapping[str, Any]) -> None:
    """What the settings name would be imported: it must be what was signed."""
    try:
        source = _source(vault)
    except G2DError as error:
        raise _refused(number, "task", str(error)) from error
    if signed["source"] != source:
        text = f"it was signed for task {signed['source']!r}, the vault's settings say {source!r}"
        raise _refused(number, "task", text)


def _check_times(number: int, signed: Mapping[str, Any], now: float) -> None:
    if signed["created"] > now + _SKEW:
        ahead = signed["created"] - now
        raise _refused(
            number, "future", f"it was made {ahead:.0f} s in the future: check the clocks"
        )
    if not now < signed["expires"]:
        raise _refused(number, "expired", f"it expired {now - signed['expires']:.0f} s ago")


def _check_ledger(vault: Vault, number: int, signed: Mapping[str, Any]) -> None:
    """The ledger must agree, as others read through it; what it says proves nothing by itself."""
    try:
        row = vault.generation(number)
    except VaultError as error:
        damaged = "damaged" in str(error)
        raise _refused(number, "ledger" if damaged else "absent", str(error)) from error
    if row.manifest != signed or row.files != signed["files"] or row.created != signed["created"]:
        raise _refused(number, "ledger", "its row in the ledger says something else")


def _opened(vault: Vault, folder: Path, name: str, number: int, digest: str) -> bytes | None:
    """The content of a sealed file of a generation, if it is what was signed; None: it is plain."""
    path = folder / f"{name}.safetensors"
    try:
        data = vault.sealing.content(path, vault.sealing.generation(number, name, digest))
    except BrokenSealError as error:
        raise _refused(number, "digest", str(error)) from error
    except OSError as error:
        raise _unread(path, number, "digest", error) from error
    if data is not None and hashlib.sha256(data).hexdigest() != digest:
        raise _refused(number, "digest", f"{path} does not hold what was signed")
    return data


def _read_signed(folder: Path, name: str, number: int, size: int, digest: str) -> bytes:
    """Read a file of a generation once it is what was signed: all of it for the weights alone."""
    path, sha, kept = folder / f"{name}.safetensors", hashlib.sha256(), bytearray()
    try:
        with open_plain(path, follow=False) as file:
            if os.fstat(file.fileno()).st_size != size:
                raise _refused(
                    number,
                    "digest",
                    f"{path} is not {size} bytes long, as it was when it was signed",
                )
            while part := file.read(1 << 20):
                sha.update(part)
                if name == "weights":
                    kept += part
    except OSError as error:
        raise _unread(path, number, "digest", error) from error
    if sha.hexdigest() != digest:
        raise _refused(number, "digest", f"{path} is not the file that was signed")
    return bytes(kept)


def _read(path: Path, number: int, reason: Reason) -> bytes:
    try:
        with open_plain(path, follow=False) as file:
            return file.read(_MOST) or b""
    except OSError as error:
        raise _unread(path, number, reason, error) from error


def _unread(path: Path, number: int, reason: Reason, error: OSError) -> VaultError:
    """A refusal, unless the failure says nothing about the file."""
    text = f"{path} cannot be read: {error.strerror}"
    return UnavailableError(text) if error.errno in PASSING else _refused(number, reason, text)


def _refused(number: int, reason: Reason, detail: str) -> RefusedError:
    return RefusedError(
        f"generation {number} refused ({reason}): {detail}. The live one stays; make the next one"
        " with `g2d generate`.",
        reason,
        number,
    )


def _source(vault: Vault) -> str:
    """What the settings name to be loaded, perhaps imported: the task and what the user added."""
    return Settings.from_vault(vault.settings_text, "task.toml").source
