"""The commitment to a watermark: digests of every set's key, signed and dated before it is used.

A claim later shows the key of one set; that the digest was published before leaves no choice of
key, form, number of triggers or threshold, and signer and vault in it let nobody else use a copy.
Claims are in `claim`, who dates them in `timestamp`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from g2d.errors import DAMAGE, CheckpointError, ClaimError, SettingsError
from g2d.protect.watermark.chance import LIKELY, least_triggers, needed_hits
from g2d.protect.watermark.form import InputForm
from g2d.protect.watermark.key import SCHEME, WatermarkKey
from g2d.protect.watermark.timestamp import Stamp, read_stamp, request_stamp, roots_of
from g2d.protect.watermark.triggers import repeated, triggers_of
from g2d.vault.committed import CONTEXT, canonical, signer_of
from g2d.vault.keys import SigningKey, VerifyKey
from g2d.vault.reading import VaultReader

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FORMAT = "g2d-watermark-commitment-1"
MOST_TRIGGERS = 100
"""Queries that a verification may take."""
SKEW = 3600.0
"""Seconds that two clocks may differ."""

_DOMAIN = b"g2d watermark set 1\0"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNER = re.compile(r"[0-9a-f]{64}|0[23][0-9a-f]{64}")  # Ed25519; P-256
_VALUES = 1 << 26  # of all triggers of a set together
_LARGEST = 1 << 24  # classes, and token ids


@dataclass(frozen=True)
class Commitment:
    """What is fixed before a network is marked.

    Attributes:
        task: its name. n: triggers of a set, all of which a verification asks, in their order.
        threshold: largest p-value that counts. digests: of each set's key, with all of that; the
            last set is the reserve. vault: its identity. created: seconds since 1970, by its maker.
        signer: the public key (hex) that signs it; "": nobody signs. generations: the highest
            number that was there already. begun: whether anything had been trained.
    """

    scheme: str
    task: str
    form: InputForm
    n: int
    threshold: float
    digests: tuple[str, ...]
    vault: str
    created: float
    signer: str
    generations: int
    begun: bool

    @property
    def reserve(self) -> int:
        """The set that is never queried: the last one."""
        return len(self.digests) - 1

    @property
    def late(self) -> str:
        """What had been made before, in words; "": nothing, as it should be."""
        if self.generations:
            return (
                f"dated after the first generation: {self.generations} were there already, and what"
                " was made before proves nothing"
            )
        return "dated after the population was begun, which carries no mark" if self.begun else ""

    def digest_of(self, set_key: bytes) -> str:
        """What `digests` holds for a set with this key."""
        return set_digest(
            set_key, self.form, self.n, self.threshold, signer=self.signer, vault=self.vault
        )

    def text(self) -> bytes:
        """Its canonical JSON: what is signed and dated."""
        record = {item.name: getattr(self, item.name) for item in fields(self)}
        record["form"] = self.form.record()
        return canonical(record)

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Read what `text` holds.

        Raises:
            ClaimError: it is anything else, or commits to what proves nothing.
        """
        try:
            values = dict(record)
            form = InputForm.from_record(values.pop("form"))
            made = cls(form=form, digests=tuple(values.pop("digests")), **values)
            sound = made._is_sound()
        except (CheckpointError, *DAMAGE):
            sound = False
        if not sound:
            raise ClaimError("this is no commitment to a watermark: take the file as g2d wrote it")
        if made.scheme != SCHEME:
            raise ClaimError(
                f"the commitment is of scheme {made.scheme!r}, and this g2d knows {SCHEME!r} alone:"
                " use the g2d that made it, or a newer one"
            )
        if made.threshold > LIKELY:
            raise ClaimError(f"the commitment calls p < {made.threshold:g} a proof, which is none:"
                             f" {LIKELY:g} (2^-64) or less is expected")  # fmt: skip
        return made

    def _is_sound(self) -> bool:
        form, numbers = self.form, (self.threshold, self.created)
        ints = (self.n, self.generations, form.classes, form.vocabulary)
        texts = (self.scheme, self.task, self.vault, self.signer)
        return (
            all(type(value) is int for value in ints)
            and all(type(value) is str for value in texts)
            and all(type(value) is float and math.isfinite(value) for value in numbers)
            and type(self.begun) is bool
            and 1 <= self.n <= MOST_TRIGGERS
            and self.generations >= 0
            and 0 < self.threshold < 1
            and 2 <= len(self.digests) <= 64
            and all(type(one) is str and _DIGEST.fullmatch(one) for one in self.digests)
            and (not self.signer or _SIGNER.fullmatch(self.signer) is not None)
            and max(form.classes, form.vocabulary) <= _LARGEST
            and form.size * self.n <= _VALUES
        )


@dataclass(frozen=True)
class Dated:
    """When a commitment was made, in seconds since 1970, and by whose word.

    Attributes:
        signer: fingerprint of the key that signed it; "": nobody did. authority: of the time stamp;
            "": there is none, and the time is the maker's own word.
    """

    time: float
    signer: str
    authority: str

    @property
    def word(self) -> str:
        """By whose word, in words."""
        if self.authority:
            return f"by RFC 3161, {self.authority}"
        return "by its signer's own word" if self.signer else "by nobody: it is unsigned"


@dataclass(frozen=True)
class Published:
    """A commitment as it lies in a vault: with its signature and its time stamp, if it has them."""

    commitment: Commitment
    signature: bytes = b""
    token: bytes = b""

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": FORMAT,
            "commitment": json.loads(self.commitment.text()),
            "signature": self.signature.hex(),
            "timestamp": base64.b64encode(self.token).decode(),
        }

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Read what `record` wrote; nothing is verified.

        Raises:
            ClaimError: it is anything else.
        """
        try:
            known = {"format", "commitment", "signature", "timestamp"}
            if record.keys() != known or record["format"] != FORMAT:
                raise ValueError
            signature = bytes.fromhex(record["signature"])
            token = base64.b64decode(record["timestamp"], validate=True)
        except DAMAGE:
            raise ClaimError(
                f"this holds no commitment of format {FORMAT}: take the file as g2d wrote it"
            ) from None
        return cls(Commitment.from_record(record["commitment"]), signature, token)

    def verify(
        self,
        now: float,
        trusted: VerifyKey | None = None,
        roots: Sequence[Certificate] | None = None,
    ) -> Dated:
        """Check signature and date.

        Args:
            now: seconds since 1970. trusted: keys of which one must have signed; None: any.
            roots: root certificates of timestamp servers; None: those of the system.

        Raises:
            ClaimError: it is not what was signed, not by a trusted key, of the future, or its time
                stamp is not verified.
        """
        commitment = self.commitment
        signer = self._signer(trusted)
        if commitment.created > now + SKEW:
            raise ClaimError(
                f"the commitment says that it was made {commitment.created - now:.0f} s in the"
                " future: check the clocks, and who made it"
            )
        if not self.token:
            return Dated(commitment.created, signer, "")
        stamp: Stamp = read_stamp(
            self.token, commitment.text(), roots_of(None) if roots is None else roots
        )
        if stamp.time > now + SKEW or abs(stamp.time - commitment.created) > SKEW:
            ahead = stamp.time - commitment.created
            raise ClaimError(
                f"the commitment was time-stamped {ahead:.0f} s after it says that it was made, and"
                f" {SKEW:.0f} s are allowed: its own date is not to be believed"
            )
        return Dated(stamp.time, signer, stamp.authority)

    def _signer(self, trusted: VerifyKey | None) -> str:
        """The fingerprint of who signed; "": nobody says that he did."""
        commitment = self.commitment
        if not commitment.signer:
            if self.signature or trusted is not None:
                raise ClaimError("the commitment is unsigned, and a signature was expected")
            return ""
        signed = signer_of(commitment.signer, commitment.text(), self.signature)
        if signed is None:
            raise ClaimError(
                "the commitment is not what its key signed: it was changed, or its signature was"
            )
        if trusted is not None and bytes.fromhex(commitment.signer) not in trusted.raw:
            raise ClaimError(
                f"the commitment was signed by {signed}, which is none of the keys that"
                f" you trust ({trusted.fingerprint})"
            )
        return signed


def set_digest(
    set_key: bytes, form: InputForm, n: int, threshold: float, *, signer: str, vault: str
) -> str:
    """SHA-256 (hex) over domain, key, form, scheme, n, threshold, signer and vault.

    Each stands there with its length. The last two are why a copy in a commitment that somebody
    else signs, or of another vault, is of no key that its owner ever shows.

    Args:
        signer: public key (hex) of whoever signs the commitment; "": nobody. vault: its identity.
    """
    sha = hashlib.sha256(_DOMAIN)
    parts = (set_key, form.digest, SCHEME.encode(), n.to_bytes(8, "big"))
    whose = (bytes.fromhex(signer), vault.encode())
    for part in (*parts, struct.pack(">d", threshold), *whose):
        sha.update(len(part).to_bytes(4, "big") + part)
    return sha.hexdigest()


def commit(
    key: WatermarkKey,
    form: InputForm,
    task: str,
    vault: VaultReader,
    *,
    n: int,
    sets: int,
    signing: SigningKey | None = None,
    timestamp: str = "",
    roots: Sequence[Certificate] | None = None,
) -> Published:
    """Commit to every set of a key; sign it and have it dated, where there is somebody to.

    Args:
        signing: signs it; None: it stays unsigned. timestamp: address of an RFC 3161 server; "":
            its date is the signer's own word.

    Raises:
        SettingsError: with this number of triggers and classes no hits are enough; says which is.
            Or the form has too few values for as many triggers.
        ClaimError: there is no time stamp to be had, or this clock is wrong.
        G2DError: rfc3161-client is not installed.
    """
    check_numbers(n, form.classes, suspects=max(1, sets - 1))
    signer, keys = signing.public.raw[0].hex() if signing else "", map(key.of_set, range(sets))
    digests = tuple(
        set_digest(one, form, n, LIKELY, signer=signer, vault=vault.identity) for one in keys
    )
    made = Commitment(
        scheme=SCHEME, task=task, form=form, n=n, threshold=LIKELY, digests=digests,
        vault=vault.identity, created=float(time.time()),
        signer=signer,
        generations=vault.last_number(), begun=vault.begun(),
    )  # fmt: skip
    # What a claim's reader would refuse is not published.
    made = Commitment.from_record(json.loads(made.text()))
    if any(repeated(triggers_of(key.of_set(i), form, n)[0]) for i in range(sets)):
        raise SettingsError(
            f"two of {n} triggers are the same, for inputs have few values: try again, with a new"
            " key, or set [watermark] triggers to fewer"
        )
    text = made.text()
    signature = signing.sign(text, CONTEXT) if signing else b""
    if not timestamp:
        return Published(made, signature)
    trusted = roots_of(None) if roots is None else roots
    dated = Published(made, signature, request_stamp(timestamp, text, trusted))
    dated.verify(time.time(), roots=trusted)  # a clock that is wrong is better seen now
    return dated


def check_numbers(n: int, classes: int, p: float = LIKELY, suspects: int = 1) -> int:
    """Return how many hits are needed.

    Raises:
        SettingsError: not even all are enough; the message says how many triggers would do.
    """
    needed = needed_hits(n, classes, p, suspects)
    if needed is None:
        least = least_triggers(classes, p, suspects)
        for_many = f" and {suspects} pairs of suspect and set" if suspects > 1 else ""
        advice = (
            f"set [watermark] triggers to {least} or more"
            if least <= MOST_TRIGGERS
            else f"{least} would, and {MOST_TRIGGERS} are the most"
        )
        raise SettingsError(
            f"with {n} triggers, {classes} classes{for_many} not even all hits prove anything at"
            f" p < {p:.3g}: {advice}"
        )
    return needed
