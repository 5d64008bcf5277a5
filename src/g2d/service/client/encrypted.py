"""The encrypted way: the service computes on ciphertexts; the secret key stays in this process.

The server is trusted to answer, and with nothing else: it may still answer wrongly, and whoever
shows it decrypted answers helps it to find the key (docs/confidential.md). So does whoever goes on
asking after an answer that it made up: all answers of a call are there before any is decrypted, so
that a call tells it one bit of the key at most, whether or not another one comes.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

import numpy as np

from g2d.core.exchange import Credentials, ExchangeError, Reply, ask
from g2d.core.types import Array, Progress, silent
from g2d.errors import DAMAGE, KeyFileError
from g2d.protect.asking import Answer, Client, Described
from g2d.service.client.inputs import bounded, fitted
from g2d.service.client.keyfile import Note, default_file, make_default_folder

if TYPE_CHECKING:
    from g2d.protect.homomorphic import Plan, SecretKeys

_UPLOAD, _ANSWER = 1800.0, 300.0  # seconds
_PART = 1 << 20  # bytes of an upload at once
_BUSY = 429, 503
_TRIES, _LONGEST = 5, 30.0  # of a service that is busy; seconds between them
_HELD = 1 << 26  # bytes of answers in memory; more wait in an unnamed file to be decrypted
_PICTURES = 3  # sides of a picture, whose values lie in 0 to 1


class UnknownKeysError(ExchangeError):
    """The service does not know the uploaded keys any more; `EncryptedClient.upload` helps."""


class EncryptedClient:
    """Asks a service about encrypted inputs.

    Args:
        url: root of the service. model: its name there. known: who asks. keys: file of secret keys;
            None: in the state folder, by URL and plan. bounds: least and largest value of an input,
            checked before anything is encrypted; None: those of pictures (0 to 1) where inputs are
            some. wait: sleeps, while a service is busy.
    """

    def __init__(
        self,
        url: str,
        model: str = "g2d",
        known: Credentials | None = None,
        keys: Path | None = None,
        *,
        bounds: tuple[float, float] | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self._model, self._known = url.rstrip("/"), model, known or Credentials()
        self._file, self._bounds, self._wait = keys, bounds, wait
        self._plan: Plan | None = None
        self._secret: SecretKeys | None = None
        self._described: Described | None = None

    @property
    def file(self) -> Path:
        """Where the secret keys lie."""
        return self._file or default_file(self.url, self._model, self.plan.digest)

    @property
    def plan(self) -> Plan:
        """What the service computes: parameters and packing; asked for once, and checked.

        Raises:
            ExchangeError: the service cannot be reached, or answers no ciphertexts.
            HomomorphicError: the plan is damaged, or its parameters are not secure.
        """
        if self._plan is None:
            reply = self._ask("GET", "plan")
            if reply.status == 404:
                self._refuse("answers no ciphertexts: it was not started with --encrypted")
            if reply.status != 200:
                self._refuse(f"answered {reply.said}")
            try:
                text = reply.body.decode()
            except UnicodeDecodeError:
                self._refuse("answers no plan")
            from g2d.protect.homomorphic import Plan

            self._plan = Plan.from_json(text)
        return self._plan

    def describe(self) -> Described:
        """Ask what is served, once."""
        if self._described is None:
            self._described = Client(self.url, self._model, self._known).describe()
        return self._described

    # --- keys ------------------------------------------------------------------------------------

    def make_keys(self) -> bool:
        """Make secret keys, unless there are some; return whether they were made.

        Raises:
            KeyFileError: those that are there are for another plan.
        """
        note = Note.read(self.file)
        if note is not None:
            self._check(note)
            return False
        from g2d.protect.homomorphic import SecretKeys

        if self._file is None:
            make_default_folder()
        self._secret = SecretKeys.new(self.plan)
        self._secret.save(self.file)
        Note(self.plan.digest, self.url).write(self.file)
        return True

    def upload(self, progress: Progress = silent) -> int:
        """Upload what the service needs for these keys, as often as it has forgotten it.

        Where it says when to come again, having too many uploads, this comes again.

        Returns:
            How many bytes were sent.

        Raises:
            ExchangeError: it cannot be reached, or refuses.
            KeyFileError: there are no keys, or they are for another plan.
        """
        self._loaded()
        assert self._secret is not None
        blob = self._secret.upload()
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(blob))}
        for left in reversed(range(_TRIES)):
            reply = ask(
                "POST", f"{self.url}/encrypted/keys", _parts(blob, progress), headers,
                known=self._known, timeout=_UPLOAD,
            )  # fmt: skip
            busy = reply.status in _BUSY and "retry-after" in reply.headers  # not a full disk
            if not busy or not left:
                break
            self._wait(_pause(reply))
        if reply.status != 201:
            self._refuse(f"took no keys: it answered {reply.said}")
        try:
            from g2d.service.encrypted.protocol import KEY_ID

            own = json.loads(reply.body)["keys"]
            if not KEY_ID.fullmatch(own):
                raise ValueError(own)
        except DAMAGE:
            self._refuse("took the keys, and answered no id of theirs")
        Note(self.plan.digest, self.url, own).write(self.file)
        return len(blob)

    def _loaded(self) -> Note:
        """Load the secret keys, if they are for the plan that is served now."""
        note = Note.read(self.file)
        if note is None:
            raise KeyFileError(
                f"there are no keys for {self.url} in {self.file}: run `g2d client encrypted keys"
                f" {self.url}` first"
            )
        self._check(note)
        if self._secret is None:
            from g2d.protect.homomorphic import SecretKeys

            self._secret = SecretKeys.load(self.file, self.plan)
        return note

    def _check(self, note: Note) -> None:
        if note.plan != self.plan.digest:
            raise KeyFileError(
                f"the keys in {self.file} are for another network than {self.url} serves now (plan"
                f" {note.plan[:12]}, there {self.plan.digest[:12]}): make new ones with `g2d client"
                f" encrypted keys {self.url} --out ANOTHER_FILE`"
            )

    # --- answers ---------------------------------------------------------------------------------

    def infer(self, x: Array, progress: Progress = silent) -> Answer:
        """Ask about inputs (n, *shape), one ciphertext after the other; scores are rounded.

        Nothing is decrypted before all answers are there: see this module. `Answer.each` says which
        generation answered each input, as far as the service is to be believed.

        Raises:
            DataError: inputs are of another shape, not finite, or out of bounds: none is encrypted.
            KeyFileError: there are no keys, or they are for another plan.
            UnknownKeysError: the service does not know them any more.
            ExchangeError: it cannot be reached, refuses, or answers no ciphertext.
            HomomorphicError: an answer is noise; nothing should be asked with these keys again.
        """
        import torch

        from g2d.service.encrypted.protocol import KEY_ID

        shape = tuple(self.plan.shape)
        pictures = (0.0, 1.0) if len(shape) == _PICTURES else None
        inputs = bounded(fitted(x, shape), self._bounds or pictures).astype(np.float32)
        note = self._loaded()
        if not KEY_ID.fullmatch(note.keys):
            self._unknown()
        assert self._secret is not None
        named: list[int | str | None] = []
        with tempfile.SpooledTemporaryFile(_HELD) as answers:
            for done in range(0, len(inputs), self.plan.batch):
                progress("ask", done, len(inputs))
                part = torch.from_numpy(inputs[done : done + self.plan.batch])
                ciphertext, generation = self._answered(self._secret.encrypt(part), note.keys)
                answers.write(ciphertext)
                named += [generation] * len(part)
            progress("ask", len(inputs), len(inputs))
            answers.seek(0)
            count = range(0, len(inputs), self.plan.batch)
            scores = np.concatenate([self._decrypted(answers) for _ in count])
        numbers = [n if isinstance(n, int) else None for n in named]
        first = numbers[0]
        others = tuple(dict.fromkeys(n for n in numbers if n is not None and n != first))
        return Answer(scores[: len(inputs)], first, others, tuple(named))

    def _decrypted(self, answers: IO[bytes]) -> Array:
        """Decrypt the next answer of a call, all of whose questions have been asked."""
        from g2d.protect.homomorphic import HomomorphicError

        assert self._secret is not None
        try:
            return self._secret.decrypt(answers.read(self.plan.limits.answer_bytes)).numpy()
        except HomomorphicError as error:
            raise HomomorphicError(
                f"{error}; before you ask again, make new keys with `g2d client encrypted keys"
                f" {self.url} --out ANOTHER_FILE`: from what you do next, whoever made the answer"
                " up learns something of the old ones"
            ) from error

    def _answered(self, query: bytes, keys: str) -> tuple[bytes, int | str | None]:
        """Send a ciphertext; return the one that is the answer, and what names its generation."""
        from g2d.service.encrypted.protocol import Query, read_answer, write_query

        body, headers = write_query(Query(query, keys, self.plan.digest))
        for left in reversed(range(_TRIES)):
            reply = self._ask("POST", "infer", body, headers)
            if reply.status not in _BUSY or not left:
                break
            self._wait(_pause(reply))
        if reply.status == 404:
            self._unknown()
        if reply.status == 409:
            raise KeyFileError(
                f"the network behind {self.url} has changed: make new keys with `g2d client"
                f" encrypted keys {self.url}`"
            )
        if reply.status != 200:
            self._refuse(f"answered {reply.said}")
        try:
            told = reply.headers.get("inference-header-content-length", "")
            ciphertext, number = read_answer(reply.body, told)
            if len(ciphertext) != self.plan.limits.answer_bytes:
                raise ValueError(len(ciphertext))
            return ciphertext, number
        except DAMAGE:
            self._refuse("answered no ciphertext, or does not say by which generation")

    def _ask(
        self, method: str, what: str, body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:  # fmt: skip
        address = f"{self.url}/encrypted/{what}"
        reply = ask(method, address, body, headers, known=self._known, timeout=_ANSWER)
        if reply.status in (401, 403):
            self._refuse(
                f"answered {reply.said}; give a token that it takes, with --token-file, or a"
                " certificate, with --client-cert"
            )
        return reply

    def _unknown(self) -> NoReturn:
        raise UnknownKeysError(
            f"{self.url} does not know the keys in {self.file}, or not any more: upload them again"
            f" with `g2d client encrypted keys {self.url}`"
        )

    def _refuse(self, what: str) -> NoReturn:
        raise ExchangeError(f"{self.url} {what}")


def _parts(blob: bytes, progress: Progress) -> Iterator[bytes]:
    for done in range(0, len(blob), _PART):
        progress("upload", done, len(blob))
        yield blob[done : done + _PART]
    progress("upload", len(blob), len(blob))


def _pause(reply: Reply) -> float:
    try:
        pause = float(reply.headers.get("retry-after", "1"))
    except ValueError:
        return 1.0
    return 1.0 if math.isnan(pause) else min(max(pause, 0.1), _LONGEST)
