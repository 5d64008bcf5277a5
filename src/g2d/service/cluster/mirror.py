"""What a replica keeps of the vault: a vault of its own in a temporary folder, of two generations.

The replica verifies what it is given as if it read the vault itself: same code, same refusals.
Attack pools stay with the vault: a replica has no use for attacks on what it serves. Canaries come
along: it asks itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from g2d.core.files import MOST_TEXT, read_plain
from g2d.core.platforms import user
from g2d.core.types import State
from g2d.errors import RefusedError, SealingError, VaultError
from g2d.protect.canaries.kept import CANARIES, Canaries
from g2d.protect.fingerprint import marked, strength_of
from g2d.service.loader import VaultLoader
from g2d.vault.ledger import take_lock
from g2d.vault.placing import place
from g2d.vault.vault import SIGNATURE, Vault

_PREFIX = "g2d-replica-"
_TRIES = 3  # a folder may be taken for a stale one before its lock is held


@dataclass(frozen=True)
class VaultIdentity:
    """Of which vault a mirror is: settings and identity, and the base's accuracy for display."""

    settings: str
    identity: str
    base_accuracy: float | None


@dataclass(frozen=True)
class GenerationBytes:
    """A generation's bytes on their way to a replica; they prove nothing until verified there."""

    number: int
    manifest: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    weights: bytes = field(repr=False)
    canaries: bytes = field(default=b"", repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which binds the weights' own."""
        return hashlib.sha256(self.manifest).hexdigest()


def identify(vault: Vault) -> VaultIdentity:
    """Describe a vault to those who mirror it."""
    base = vault.entry("base")
    accuracy = float(base.info["accuracy"]) if base else None
    return VaultIdentity(vault.settings_text, vault.identity, accuracy)


def pack(vault: Vault, number: int) -> GenerationBytes:
    """Read a generation to send it; `signature` is empty if there is none.

    Raises:
        SealingError: the vault is sealed, and a mirror is not.
    """
    if vault.sealing.record is not None:
        raise SealingError(f"{vault.path} is sealed, and replicas keep networks in plaintext")
    signature = vault.generation_file(number).parent / SIGNATURE
    try:
        signed = read_plain(signature, MOST_TEXT) if signature.exists() else b""
    except OSError as error:
        raise VaultError(f"{signature} cannot be read: {error.strerror}") from error
    manifest = vault.read_generation(number, "manifest")
    weights = vault.read_generation(number)
    kept = CANARIES in vault.generation(number).files
    canaries = vault.read_generation(number, CANARIES) if kept else b""
    return GenerationBytes(number, manifest, signed, weights, canaries)


class Mirror(Vault):
    """A replica's own vault, which takes generations under the numbers that they have."""

    remembered = False  # what was reached is marked where the vault itself lies

    @classmethod
    def make(cls, of: VaultIdentity) -> Mirror:
        """Make an empty mirror in a temporary folder."""
        _sweep(Path(tempfile.gettempdir()))
        mirror = cls._begin(of.settings)
        with mirror._writing():
            mirror._ledger.execute("UPDATE identity SET id = ?", (of.identity,))
        if of.base_accuracy is not None:
            mirror.put("base", 0, {}, {"accuracy": of.base_accuracy})
        return mirror

    @classmethod
    def _begin(cls, settings: str) -> Mirror:
        """Make the empty vault; again, where another replica took it for one that was left."""
        for _ in range(_TRIES):
            with suppress(OSError, VaultError):
                return cls._empty(settings)
        return cls._empty(settings)

    @classmethod
    def _empty(cls, settings: str) -> Mirror:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            mirror = cls.create(folder / "vault", settings)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        assert isinstance(mirror, Mirror)
        return mirror

    def take(self, packed: GenerationBytes, digest: str) -> None:
        """Keep a generation as it came, to be verified; `digest` is what was announced.

        Raises:
            RefusedError: it is not what was announced. VaultError: it cannot be written.
        """
        number = packed.number
        try:
            manifest = json.loads(packed.manifest) if packed.digest == digest else {}
            if manifest["number"] != number:
                raise ValueError
            row: tuple[Any, ...] = (
                number, json.dumps(manifest["files"]), packed.manifest.decode(),
                float(manifest["created"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RefusedError(
                f"generation {number} is not what the coordinator announced: it was changed on"
                " its way, and is fetched again",
                "digest",
                number,
            ) from None
        contents = {"manifest.json": packed.manifest, "weights.safetensors": packed.weights}
        if packed.signature:
            contents[SIGNATURE] = packed.signature
        if packed.canaries:
            contents[f"{CANARIES}.safetensors"] = packed.canaries
        with self._writing():
            place(self.path, number, contents)
            self._ledger.execute("INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?)", row)

    def retire(self, number: int) -> None:
        """Make a generation live here, and forget older ones."""
        self.activate(number)
        with self._writing():
            self._ledger.execute("DELETE FROM generations WHERE number < ?", (number,))
        self._try_tidy()

    def remove(self) -> None:
        """Close the mirror and delete its folder."""
        self.close()
        shutil.rmtree(self.path.parent, ignore_errors=True)


class MirrorLoader(VaultLoader):
    """Reads a mirror; verifies manifest, signature and weights, all that a replica is given.

    Args:
        marks: the secret of replicas' marks and this one's name, where `[cluster] fingerprint` is
            on: what was verified is marked, and that is what is served and watched in memory.
    """

    _files = ("weights",)
    remembers = False

    def __init__(self, *given: Any, marks: tuple[bytes, str] = (b"", ""), **named: Any) -> None:
        self._marks_of = marks
        super().__init__(*given, **named)

    def _own_form(self, number: int, manifest: Mapping[str, Any], state: State) -> State:
        secret, name = self._marks_of
        if not secret:
            return state
        strength = strength_of(manifest or self._vault.generation(number).manifest)
        return marked(state, secret, name, strength)

    def canaries(self, number: int) -> Canaries | None:
        """Read them; a marked copy is held to what it answers itself, verified and loaded anew.

        So a replica whose arithmetic errs always in the same way is not found by its own canaries.
        Those whose two highest classes nearly tie once it is marked are left out.
        """
        kept = super().canaries(number)
        if kept is None or not self._marks_of[0]:
            return kept
        logits = self.again(number).predict(kept.x)
        own = replace(kept, logits=logits, labels=logits.argmax(1))
        clear = own.margins >= 2 * own.tolerance  # two logits may err
        if not clear.any():
            return None
        return replace(own, x=own.x[clear], logits=logits[clear], labels=own.labels[clear])


def _sweep(folder: Path) -> None:
    """Delete mirrors of ours that killed replicas left: nobody holds their locks."""
    for left in folder.glob(f"{_PREFIX}*"):
        try:
            if user() in (None, left.stat().st_uid):
                with take_lock(left / "vault"):  # held, or its maker could take it meanwhile
                    shutil.rmtree(left, ignore_errors=True)
        except (OSError, VaultError):
            continue
