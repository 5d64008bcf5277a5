"""A claim of ownership: what a neutral party needs to find out anew whose weights these are.

It shows the key of one set, and with it all triggers and labels of that set; they are never in the
file. What it says is checked by itself (`Claim.check`), and by asking the suspect again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from g2d.core.files import fill_file, read_plain
from g2d.errors import DAMAGE, ClaimError, G2DError
from g2d.protect.watermark.commitment import SKEW, Commitment, Dated, Published
from g2d.protect.watermark.key import KEY_BYTES
from g2d.protect.watermark.verification import Outcome, draw, judge
from g2d.vault.keys import VerifyKey

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FORMAT = "g2d-ownership-claim-1"
_MOST = 1 << 24  # bytes of a file
_FIELDS = {
    "format", "commitment", "set", "key", "answers", "hits", "p", "suspects", "suspect", "digest",
    "date",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """That a suspect carries the mark of a commitment.

    Attributes:
        set_key: of the one set that is shown. suspect, digest: as `Suspect` says. date: seconds
            since 1970, in the claimant's own word.
    """

    published: Published
    set_key: bytes = field(repr=False)
    outcome: Outcome
    suspect: str
    digest: str
    date: float

    def write(self, path: Path) -> None:
        """Write it as JSON into a new file, for its owner alone: he decides whom he shows it.

        Raises:
            ClaimError: there is such a file already. G2DError: it cannot be written.
        """
        text = json.dumps(self.record(), indent=1) + "\n"
        try:
            fill_file(path, text.encode(), 0o600)
        except FileExistsError:
            raise ClaimError(f"{path} exists already: name another file for the claim") from None
        except OSError as error:
            raise G2DError(f"cannot write the claim {path}: {error.strerror}") from error

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": FORMAT,
            "date": datetime.fromtimestamp(self.date, UTC).isoformat(),
            "suspect": self.suspect,
            "digest": self.digest,
            "set": self.outcome.place,
            "key": self.set_key.hex(),
            "hits": self.outcome.hits,
            "p": self.outcome.p,
            "suspects": self.outcome.suspects,
            "answers": list(self.outcome.answers),
            "commitment": self.published.record(),
        }

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a claim; only its form is checked, and that its numbers follow from one another.

        Raises:
            ClaimError: it is none, shows a key that was not committed to, or miscounts.
        """
        return cls.from_record(read_json(path, "claim"))

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Read what `record` wrote; raises what `read` does."""
        try:
            if more := record.keys() - _FIELDS:
                raise ClaimError(
                    f"a claim has no {min(more)!r}: triggers and labels follow from the key alone,"
                    " and nothing that the claimant chose is looked at"
                )
            key, place = bytes.fromhex(record["key"]), record["set"]
            hits, p, suspects = record["hits"], record["p"], record["suspects"]
            told, digest = record["suspect"], record["digest"]
            when = datetime.fromisoformat(record["date"])
            date = when.timestamp()
            whole = [place, hits, suspects, *record["answers"]]
            answers = torch.tensor(record["answers"], dtype=torch.int64)
            sound = (
                record["format"] == FORMAT
                and all(type(number) is int for number in whole)
                and 1 <= suspects <= 1 << 40
                and when.tzinfo is not None  # else it depends on where it is read
                and len(key) == KEY_BYTES
                and type(p) is float
                and type(told) is str is type(digest)
            )
            if not sound:
                raise ValueError
        except (*DAMAGE, RuntimeError, OSError):
            raise ClaimError(
                f"this is no claim of format {FORMAT}: take the file as g2d wrote it"
            ) from None
        published = Published.from_record(record.get("commitment"))
        _, y = draw(published.commitment, place, key)
        if answers.shape != y.shape:
            raise ClaimError(f"the claim tells {len(answers)} answers, and {len(y)} were committed"
                             " to: it is not whole, or was changed")  # fmt: skip
        outcome = judge(published.commitment, place, y, answers, suspects)
        if (outcome.hits, outcome.p) != (hits, p):
            raise ClaimError(
                f"the claim says {hits} hits and p = {p:g}, and its answers have {outcome.hits} and"
                f" p = {outcome.p:g}: it was changed"
            )
        return cls(published, key, outcome, told, digest, date)

    def check(
        self, trusted: VerifyKey | None = None, roots: Sequence[Certificate] | None = None
    ) -> Dated:
        """Check what it rests on: signature, time stamp and the order of dates; see `Published`.

        Raises:
            ClaimError: the commitment is not to be believed, is later than the claim, or the claim
                is of the future.
        """
        now = time.time()
        dated = self.published.verify(now, trusted, roots)
        if self.date > now + SKEW or dated.time > self.date + SKEW:
            raise ClaimError(
                f"the dates are out of order: committed {utc(dated.time)}, claimed"
                f" {utc(self.date)}, now {utc(now)}; one of them was changed, or a clock is wrong"
            )
        return dated


def refuse_doubtful(
    commitment: Commitment, dated: Dated, late: str, accept_late: bool, accept_own_date: bool
) -> None:
    """Refuse a commitment that convinces nobody but whoever made it, unless that is accepted.

    Args:
        late: see `Commitment.late`.

    Raises:
        ClaimError: it is late; or it has neither a time stamp nor a signature.
    """
    if late and not accept_late:
        raise ClaimError(
            f"the commitment of vault {commitment.vault} is {late}: give --accept-late if you know"
            " that what is claimed was marked after it (`g2d watermark add`)"
        )
    if not (dated.authority or dated.signer) and not accept_own_date:
        raise ClaimError(
            f"the commitment of vault {commitment.vault} is neither time-stamped nor signed, so"
            f" that anybody could have made it, at any time, with the date {utc(dated.time)}: give"
            " --accept-own-date if you saw it then"
        )


def utc(seconds: float) -> str:
    """A time as people of all countries read it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def read_json(path: Path, what: str) -> Any:
    """Read a file that somebody else may have written.

    Raises:
        ClaimError: it cannot be read, or is no JSON.
    """
    try:
        return loads(read_plain(path, _MOST, follow=True), str(path))
    except OSError as error:
        raise ClaimError(
            f"cannot read the {what} {path} ({error.strerror}): check the path"
        ) from error


def loads(data: bytes, where: str) -> Any:
    """Read JSON of numbers that are some.

    Raises:
        ClaimError: it is none.
    """

    def no_number(text: str) -> float:
        raise ValueError(text)

    def finite(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else no_number(text)

    try:
        return json.loads(data, parse_constant=no_number, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise ClaimError(f"{where} is not the JSON that g2d writes: take it as it was") from error
