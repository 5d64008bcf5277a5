"""Which population and generator generations come from: renewed (`g2d refresh`), or put back.

A vault's first base, members and generator are its source 0; each renewal keeps its own beside
them (`records.RENEWAL`), and the ledger notes every change. Numbers of generations only rise: one
that goes live again is issued anew. Knows no torch, so that going back takes no second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g2d.core.files import read_plain
from g2d.errors import DAMAGE, RefusedError, UnavailableError, VaultError
from g2d.settings import Settings
from g2d.vault.code import CODE
from g2d.vault.confirmed import confirmed_key
from g2d.vault.keys import SigningKey
from g2d.vault.ledger import explained, sha256
from g2d.vault.placing import write
from g2d.vault.records import LARGEST, RENEWAL, GenerationRecord
from g2d.vault.signing import sign_generation, verify_generation

if TYPE_CHECKING:
    from g2d.vault.vault import Vault

__all__ = [
    "ORDER", "RENEWED_BY", "STAGED", "Back", "former", "obey", "order_back", "ordered", "put_back",
    "source_of", "withdraw",
]  # fmt: skip

STAGED = "refreshing"
"""The folder in a vault where a refresh is made; it is moved in by one commit."""

ORDER = "rollback.json"
"""The file in a vault by which its writer, a service's worker, is asked to go back."""

RENEWED_BY = "renewal"
"""What a manifest says of the renewal that its generation was made from; 0 is left out."""

_MOST = 1 << 12
_OWN = frozenset(
    {"number", "files", "created", "format", "signer", "vault", "source", "sizes", "expires",
     "marked"}
)  # fmt: skip


@dataclass(frozen=True)
class Back:
    """What going back has done.

    Attributes:
        left, source: the renewal that was the source, and that is now. number: the generation that
            is live now; None: none of that source has its weights any more, or the last one was
            not signed. of: the number that it was first issued under. refused: why it is not signed
            once more.
    """

    left: int
    source: int
    number: int | None = None
    of: int | None = None
    refused: str = ""


def source_of(manifest: Mapping[str, Any]) -> int:
    """The renewal that a generation was made from; what is no such number is none."""
    found = manifest.get(RENEWED_BY, 0)
    return found if type(found) is int and 0 <= found < LARGEST // RENEWAL else -1


def former(vault: Vault) -> int:
    """The renewal that was the source before the present one was made.

    Raises:
        VaultError: the present one is the first: there is nothing to go back to.
    """
    if not (now := vault.source):
        waits = vault.path / STAGED
        more = (
            f"; a refresh that is not taken up yet waits in {waits}: remove that folder to drop it"
        )
        raise VaultError(
            f"{vault.path} was never refreshed, or is back already: its generations come from its"
            " first population, and there is no former one to go back to"
            + more
            * (waits / "ledger.sqlite").exists()
        )
    made = next((row for row in vault.sources() if row["source"] == now), {})
    parent = made.get("parent")
    if type(parent) is not int or not 0 <= parent < now:
        raise VaultError(
            f"{vault.path}: the ledger does not say what renewal {now} was made from; see"
            " `g2d verify`, and restore the vault from a backup"
        )
    return parent


def put_back(vault: Vault, settings: Settings) -> Back:
    """Make the former source the source again, and a generation of it live, under a new number.

    The newest generation of that source that was live is issued anew, with its weights, attacks,
    canaries and gates. Where generations are signed it is signed once more, if the same key had
    signed it for what the settings name: the ledger proves nothing (docs/security.md). It has been
    exposed: make a fresh one soon.

    Raises:
        VaultError: there is no former source, or the vault cannot be written.
        KeyFileError: the key that signs cannot be read; nothing was changed.
    """
    half = _half_done(vault)
    left, to = half or (vault.source, former(vault))
    key = settings.signing.key
    signing = SigningKey.read(confirmed_key(vault, key)) if key else None
    old, refused = _newest(vault, to), ""
    files: dict[str, bytes] = {}
    manifest: Mapping[str, Any] = {}
    if old is not None:
        try:
            manifest = _proved(vault, old, signing)
            files = _files(vault, old.number, manifest if signing else old.manifest)
        except RefusedError as error:
            old, refused = None, str(error)
    if not half:
        vault.renew(to, {"why": "rollback", "left": left})
        withdraw(vault)  # a service that has gone had not carried it out
    if old is None:
        return Back(left, to, refused=refused)
    manifest = {name: value for name, value in manifest.items() if name not in _OWN}
    manifest |= {"origin": "reissued", "of": old.number} | _code_of_today(vault, signing)
    if signing is None:
        made = vault.accept(files, manifest, activate=True)
    else:
        made = sign_generation(
            vault, files, manifest, signing, source=settings.source,
            lifetime=settings.signing.lifetime, activate=True,
        )  # fmt: skip
    return Back(left, to, made.number, old.number)


def _proved(vault: Vault, of: GenerationRecord, signing: SigningKey | None) -> Mapping[str, Any]:
    """A generation's manifest as it was signed; where none is, as the ledger has it.

    Raises:
        RefusedError: the key that signs has not signed it, for this vault and its task.
    """
    if signing is None:
        return of.manifest
    return verify_generation(
        vault, of.number, signing.public, after=of.number - 1, now=of.created, files=("weights",)
    ).manifest


def _files(vault: Vault, number: int, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """A generation's files, each of them what its manifest names."""
    found = {name: vault.read_generation(number, name) for name in manifest["files"]}
    if any(sha256(data) != manifest["files"][name] for name, data in found.items()):
        raise RefusedError(f"generation {number} was exchanged as it was read", "digest", number)
    return found


def _code_of_today(vault: Vault, signing: SigningKey | None) -> dict[str, Any]:
    """The digests of code that what is live binds: what is loaded today; {}: that was not signed,
    and those of the former generation stay."""
    if (live := vault.live()) is None:
        return {}
    try:
        manifest = _proved(vault, vault.generation(live), signing)
    except RefusedError:
        return {}
    return {CODE: manifest[CODE]} if CODE in manifest else {}


def _half_done(vault: Vault) -> tuple[int, int] | None:
    """What was left, and the source, where a kill came before a generation of it was issued."""
    last, live = next(iter(vault.sources(1)), {}), vault.live()
    if last.get("why") != "rollback" or type(last.get("left")) is not int or live is None:
        return None
    if source_of(vault.generation(live).manifest) == last["source"]:
        return None
    return last["left"], last["source"]


def _newest(vault: Vault, source: int) -> GenerationRecord | None:
    """The newest generation of a source that was live, if it has its files yet."""
    retired = vault.retired
    for number in reversed(vault.exposures()):
        if number <= retired:
            return None
        found = vault.generation(number)
        if source_of(found.manifest) == source:
            return found
    return None


# --- beside a service, whose worker is the one writer --------------------------------------------


def order_back(vault: Vault) -> Back:
    """Ask the vault's writer to go back; `vault` need not be open for writing.

    Raises:
        VaultError: there is no former source, or the vault's folder cannot be written.
    """
    now, to = vault.source, former(vault)
    text = json.dumps({"left": now, "source": to, "at": time.time()})
    with explained(vault.path, "written"):
        write(vault.path, vault.path / ORDER, text.encode())
    return Back(now, to)


def ordered(vault: Vault) -> bool:
    """Whether the writer is asked to leave the present source; of another it was done."""
    try:
        found = json.loads(read_plain(vault.path / ORDER, _MOST))
        return bool(found["left"] == vault.source)
    except FileNotFoundError:
        return False
    except (OSError, *DAMAGE) as error:
        raise UnavailableError(
            f"{vault.path / ORDER} is not what `g2d rollback` writes ({error}): look who put it"
            " there, and remove it"
        ) from error


def obey(vault: Vault) -> Back | None:
    """Go back, if that is asked for, without issuing a generation: the next one is made anew."""
    if not ordered(vault):
        return None
    left, to = vault.source, former(vault)
    vault.renew(to, {"why": "rollback", "left": left})
    withdraw(vault)
    return Back(left, to)


def withdraw(vault: Vault) -> None:
    """Take an order away that was carried out."""
    with explained(vault.path, "written"):
        (vault.path / ORDER).unlink(missing_ok=True)
