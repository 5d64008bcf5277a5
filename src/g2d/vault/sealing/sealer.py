"""The sealed side of a vault: what is written is sealed, what is read is opened, once it is sealed.

Of a sealed vault all weights are (base, members, generator, generations), with attacks, canaries
and records; ledger, manifests, signatures, settings and reports stay readable. Digests, and so
manifests and signatures, are those of the content: they are the same before and after. Knows no
torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from g2d.core.platforms import open_plain
from g2d.errors import BrokenSealError, SealingError, VaultError
from g2d.vault.records import Entry
from g2d.vault.sealing.envelope import (
    MAGIC,
    About,
    Head,
    is_sealed,
    key_name,
    open_file,
    seal_file,
    unwrap_key,
)
from g2d.vault.sealing.record import Record, read_record
from g2d.vault.sealing.released import released_key, releases
from g2d.vault.sealing.remembered import (
    Remembered,
    named_here,
    new_custodian,
    note_opened,
    remember,
    remembered,
    settle,
)

if TYPE_CHECKING:
    from g2d.vault.reading import VaultReader
    from g2d.vault.sealing.custodian import Custodian

__all__ = ["GENERATION", "Sealer", "unwrapped"]

GENERATION = "generation"
"""The kind of a generation's files, where an entry has its own."""


class Sealer:
    """What seals and opens a vault's files; the vault's key is asked for when it is needed first.

    The key stays in this process's memory until the vault is closed.
    """

    def __init__(self, vault: VaultReader) -> None:
        self._vault = vault
        self._keys: dict[str, bytes] = {}  # by name
        self._released: dict[tuple[bytes, bytes], bytes] = {}  # keys of releases
        self._under = ""  # name of the key that all is sealed by that is written
        self._demanded = self._noted = False
        self._opened = ""  # identity of the vault whose files were opened

    def __repr__(self) -> str:
        return f"Sealer({self._vault.path})"

    @property
    def record(self) -> Record | None:
        """How the vault is sealed; None: it is plain."""
        has = self._vault._has("sealing")
        return read_record(self._vault._rows("SELECT record FROM sealing")) if has else None

    def entry(self, entry: Entry, name: str) -> About:
        """What a file of an entry is."""
        return About(self._vault.identity, entry.kind, entry.index, name, entry.files[name])

    def generation(self, number: int, name: str, digest: str) -> About:
        """What a file of a generation is."""
        return About(self._vault.identity, GENERATION, number, name, digest)

    def other(self, kind: str, name: str, data: bytes) -> About:
        """What a file is that the ledger does not know."""
        return About(self._vault.identity, kind, 0, name, hashlib.sha256(data).hexdigest())

    # --- writing ---------------------------------------------------------------------------------

    def shut(self, data: bytes, about: Callable[[], About]) -> bytes:
        """Return what is to be written of a file: itself in a plain vault, else sealed.

        Raises:
            SealingError: there is no custodian that gives the key; or as `check_not_lost`.
        """
        record = self.check_not_lost()
        if record is None or not record.writes_sealed:
            return data
        made = seal_file(data, about(), self.key(record))
        if not self._under:
            self._note(record)
        self.bind(record)
        return made

    def _note(self, record: Record) -> None:
        """Remember that the vault is sealed, also where a variable names the custodian."""
        if self._vault.remembered and not (known := remembered(self._vault)).sealed:
            with suppress(SealingError):  # a guard more; without a state folder there is none
                remember(self._vault, known.custodian, record.key)

    def shut_generation(
        self, number: int, files: Mapping[str, bytes], digests: Mapping[str, str]
    ) -> dict[str, bytes]:
        """`shut` all files of a generation, by their names."""
        return {
            name: self.shut(data, partial(self.generation, number, name, digests[name]))
            for name, data in files.items()
        }

    def bind(self, record: Record | None) -> None:
        """Write nothing from now on but what is sealed by this record's key; None: as the ledger
        says."""
        self._under = "" if record is None else record.key

    def check_not_lost(self) -> Record | None:
        """Refuse to write a vault that was sealed here, if it would be written otherwise.

        A ledger is asked anew for each file: whoever writes the folder may change it meanwhile.

        Returns:
            How the vault is sealed; None: it is plain.

        Raises:
            SealingError: the ledger does not say any more that it is sealed, or is under another
                key: somebody wants plaintext, or what he can decrypt.
        """
        known = remembered(self._vault) if self._vault.remembered else Remembered()
        record = self.record
        if not (known.sealed or self._under):
            return record
        key = self._under or known.key
        if record is None or not record.writes_sealed or record.key != (key or record.key):
            raise SealingError(
                f"{self._vault.path} was sealed here, and its ledger says so no more, or names"
                " another key: nothing is written to it. Restore it from a backup; or if you mean"
                f" it so, run `g2d vault unseal {self._vault.path}`, and seal it again"
            )
        return record

    # --- reading ---------------------------------------------------------------------------------

    def demand(self) -> None:
        """From now on read nothing that is plain, whatever the ledger and this user's state say."""
        self._demanded = True

    def settle(self) -> None:
        """Finish what a kill left undone of what is remembered, where the vault is opened."""
        if self._vault.remembered:
            with suppress(VaultError):  # whoever needs the record, or the state, says so
                settle(self._vault, self.record)

    def why_sealed(self, record: Record | None) -> str:
        """Why a file that is plain was put there; "": it may be the vault's own."""
        if record is not None and record.all_sealed:
            return "in a vault that is: it was put there"
        other = self._opened not in ("", self._vault.identity)  # what is known of it is not found
        known = self._vault.remembered and remembered(self._vault).whole
        if self._demanded or other or known:
            return "and the vault was, whatever its ledger says now: plaintext is not read here"
        return ""

    def content(self, path: Path, about: About | None = None) -> bytes | None:
        """Return what a sealed file holds; None: what lies there is not sealed.

        Args:
            about: what it has to be; None: whatever of this vault it was sealed as.

        Raises:
            BrokenSealError: it is not what was written there, or is plain in a vault that is
                sealed, or was when it was read here.
            SealingError: no custodian gives the key. OSError: the file cannot be read.
        """
        record = self.record  # before the file: while it is made, files are of both kinds
        with os.fdopen(open_plain(path), "rb") as file:
            if not is_sealed(file.read(len(MAGIC))):
                if why := self.why_sealed(record):
                    command = "unseal" if record is None else "seal"
                    raise BrokenSealError(
                        f"{path} is not sealed, {why}. Restore it from a backup; or if you mean it"
                        f" so, run `g2d vault {command} {self._vault.path}`"
                    )
                return None
            file.seek(0)
            record = record or self.record  # sealing may have begun this moment
            if record is None:
                raise SealingError(
                    f"{path} is sealed, and the ledger does not say that its vault is: restore the"
                    " vault from a backup"
                )

            try:
                found = open_file(file.read, partial(self.data_key, record), about)
            except BrokenSealError as error:
                raise BrokenSealError(
                    f"{path} cannot be opened: {error}. Restore it from a backup"
                ) from error
        if self._vault.remembered and not self._noted:
            self._note_opened(record)
        return found

    def _note_opened(self, record: Record) -> None:
        """Remember that all of the vault is sealed; without a state folder, for this process."""
        self._opened = self._opened or self._vault.identity
        try:
            note_opened(self._vault, record)
        except SealingError:
            self._demanded = record.all_sealed
        self._noted = record.all_sealed

    def data_key(self, record: Record, head: Head) -> bytes:
        """The key that a file is encrypted under.

        Raises:
            BrokenSealError: it is another vault's file. SealingError: no custodian gives the key.
        """
        key = self._key_of(record, head)
        if key is None or head.about.vault != self._vault.identity:
            raise BrokenSealError("it is another vault's, or was sealed under another key")
        if head.key == record.key and self._is_released(record, head.about):
            return self._released_key(record, head.about)
        try:
            return unwrap_key(head.wrapped, key(), head.about.context)
        except ValueError as error:
            raise BrokenSealError(f"its data key cannot be unwrapped: {error}") from error

    def _key_of(self, record: Record, head: Head) -> Callable[[], bytes] | None:
        """What gives the vault's key that a file names; None: it is no key of the vault."""
        if head.key == record.key:
            return partial(self.key, record)
        if record.former is None or head.key != record.former.key:
            return None
        known = remembered(self._vault) if self._vault.remembered else Remembered()
        if known.sealed and known.former != head.key:
            return None  # who knows the former key put it back into the ledger
        return partial(self.former, record)

    def former(self, record: Record) -> bytes:
        """The key that a vault had before it was rekeyed, while that goes on.

        Raises:
            SealingError: no custodian gives the new one. BrokenSealError: it is not what was kept.
        """
        assert record.former is not None
        name, blob = record.former.key, record.former.blob
        if name not in self._keys:
            try:
                found = unwrap_key(blob, self.key(record), record.former_context(name))
            except ValueError as error:
                raise BrokenSealError(f"the vault's former key is damaged: {error}") from error
            self._keys[name] = found
        return self._keys[name]

    def _is_released(self, record: Record, about: About) -> bool:
        """Whether a file is opened by a release; raises what kept the vault's key from us, if no
        release is there in its place."""
        if about.kind != GENERATION or record.key in self._keys or not releases(record):
            return False
        said: list[SealingError] = []
        if not self.releases_alone(record, said.append):
            return False
        if said and about.number not in releases(record):
            raise said[0]
        return True

    def releases_alone(
        self, record: Record, tell: Callable[[SealingError], None] = lambda _: None
    ) -> bool:
        """Whether this host opens generations by their releases: it holds no key of the vault.

        Args:
            tell: hears why the custodian that is named here does not give the vault's key, where it
                might.

        Raises:
            SealingError: nobody has said which custodian opens the vault here.
        """
        if record.key in self._keys or not releases(record):
            return False
        kind = named_here(self._vault).partition(":")[0]
        if self._released or all(one.kind != kind for one in record.held):
            return True
        try:  # the vault's custodian is of the same kind: a TPM, and it may be this machine's
            self.key(record)
        except SealingError as error:
            tell(error)
            return True
        return False

    def released(self, number: int) -> tuple[bytes, ...]:
        """The releases of a generation as they are held, to whomever."""
        record = self.record
        held = releases(record).get(number, []) if record is not None else []
        return tuple(one.blob for one in held)

    def take_over(self, former: Sealer) -> None:
        """Know the keys of releases that were opened when the same ledger was read before."""
        self._released |= former._released

    def _released_key(self, record: Record, about: About) -> bytes:
        by = new_custodian(named_here(self._vault))

        def unwrap(blob: bytes, context: bytes) -> bytes:
            if (blob, context) not in self._released:
                self._released[blob, context] = by.unwrap(blob, context)
            return self._released[blob, context]

        return released_key(self._vault, record, about, unwrap)

    # --- the vault's key -------------------------------------------------------------------------

    def key(self, record: Record, custodian: Custodian | None = None) -> bytes:
        """The vault's own key, unwrapped by a custodian, or as it was before.

        Args:
            custodian: None: the one that is named on this machine.

        Raises:
            SealingError: no custodian is named, it is not there, or does not hold the key.
        """
        if record.key not in self._keys:
            by = custodian or new_custodian(named_here(self._vault))
            self._keys[record.key] = unwrapped(record, by, self._vault.path)
        return self._keys[record.key]

    def keep(self, key: bytes) -> None:
        """Know a vault's key: it was just drawn, or is that of the vault beside."""
        self._keys[key_name(key)] = key


def unwrapped(record: Record, custodian: Custodian, path: Path) -> bytes:
    """A vault's key, as a custodian holds it.

    Raises:
        SealingError: it is not there, or does not hold it.
    """
    held = [one for one in record.held if one.kind == custodian.kind]
    if not held:
        known = ", ".join(f"{one.number} ({one.kind})" for one in record.held) or "none"
        raise SealingError(
            f"no custodian of kind {custodian.kind!r} holds the key of {path}; there are: {known}"
        )
    said: SealingError | None = None
    for one in held:
        try:
            found = custodian.unwrap(one.blob, record.context)
        except SealingError as error:
            said = error
            continue
        if key_name(found) == record.key:
            return found
        said = SealingError(f"custodian {one.number} holds another key than that of {path}")
    assert said is not None
    raise said
