"""The reading side of a vault: verify a generation, load it, make it ready to answer.

The one file of the service that needs torch. Reads only; `worker` writes. A built-in task's
model is built without its data, which would cost a second of every start.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from g2d.core.files import write_bytes
from g2d.core.sources import Digests, digests, hold
from g2d.core.types import Array
from g2d.errors import CheckpointError, RefusedError, VaultError
from g2d.protect.snapshots import build_snapshot
from g2d.rotation.snapshot import Snapshot
from g2d.service.http.protocol import DATATYPES, Model
from g2d.settings import Settings
from g2d.tasks.building import build_model
from g2d.tasks.source import blueprint_of
from g2d.vault.code import TASK, advice, bound_code, changed, code_of, require, signed_code
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import unpack

if TYPE_CHECKING:
    from g2d.vault.signing import VerifyKey

_SHOWN = ("gates", "created", "attempt", "cpu_seconds", "origin")


@dataclass(frozen=True)
class _Verified:
    """Verified weights; if they were signed, the task's name and code that were signed, too."""

    weights: bytes
    task: str | None = None
    code: Digests = field(default_factory=dict)
    expires: float = math.inf


class VaultLoader:
    """Generations of one vault as snapshots: a `GenerationLoader`, safe to use from many threads.

    Args:
        key: verifies what is served; None: digests of the ledger alone are. served: a file outside
            the vault that remembers the highest number served, so that a vault which was put back
            is refused; None: the ledger alone remembers.

    Attributes:
        task: `Settings.source`; where generations are signed, what was signed.
        code: digests of the user's own code, as `vault.code` has them: what was signed, or what was
            loaded. unbound: why it may be other than what was signed; "": it is not.

    Raises:
        G2DError: the vault or the task cannot be loaded, or what is live is not sound.
    """

    _files: tuple[str, ...] = ()  # which of a generation's files are verified; (): all

    def __init__(
        self,
        vault: Path,
        name: str,
        data: str = "",
        key: VerifyKey | None = None,
        served: Path | None = None,
    ) -> None:
        self._vault, self._key, self._served = Vault.open(vault), key, served
        self._building = threading.Lock()  # a factory draws from torch's one global generator
        try:
            self._check_place(vault)
            settings = Settings.from_vault(self._vault.settings_text, str(vault / "task.toml"))
            s, self.task = settings.task, settings.source
            # Before the task is loaded, for that imports code: what was signed must name it.
            verified, _ = self._verify_live(self._not_put_back(self.live()))
            if verified.task is not None and verified.task != self.task:
                raise VaultError(f"{vault / 'task.toml'} changed while it was read: look why.")
            self._read_code(settings, verified)
            self._blueprint = blueprint_of(s, data)
            self.model = self._described(name)
        except BaseException:
            self._vault.close()
            raise

    def _read_code(self, settings: Settings, verified: _Verified) -> None:
        """Hold the task's own code as it is now, if it is what was signed; nothing of it is run."""
        parts = code_of(settings)
        self._code = {TASK: parts[TASK]} if TASK in parts else {}
        number, self.unbound = self.live(), ""
        # Without a key to verify it, what was signed is still what a worker may sign with.
        signed = verified.code if self._key else signed_code(self._vault)
        require(signed, self._code, self._vault, settings)
        self._check_code(number, signed)
        known = signed or bound_code(self._vault.generation(number).manifest)
        if self._code and TASK not in known:
            self.unbound = "of its code no digest was kept with it, as an older G2D made it"
        elif told := changed(known, self._code):
            self.unbound = told
        if self.unbound:
            self.unbound = (
                f"generation {number} is served with the task's code as it is now: {self.unbound}."
                " The next generation binds what is loaded"
            )
        self.code = {**digests(self._code), **signed}
        hold(self._code)

    def _check_code(self, number: int, signed: Digests) -> None:
        """Refuse what was signed with other code than what is loaded here."""
        if told := changed(signed, self._code):
            raise RefusedError(
                f"generation {number} refused (code): {told}, or it was signed with another"
                f" version: no other code is run. {advice(self._vault)}",
                "code",
                number,
            )

    def _described(self, name: str) -> Model:
        shape, dtype = self._blueprint.shape, str(self._blueprint.dtype).removeprefix("torch.")
        if dtype not in DATATYPES:
            raise VaultError(f"inputs are {dtype}; serving takes {', '.join(DATATYPES)}.")
        b = self._blueprint
        return Model(name, shape, dtype, b.classes, b.labels, b.vocabulary)

    def close(self) -> None:
        """Close the vault."""
        self._vault.close()

    def live(self) -> int:
        """Return the number that was committed last."""
        number = self._vault.live()
        if number is None:
            raise VaultError(f"{self._vault.path} has no generation yet; run `g2d fit` first.")
        return number

    def first(self) -> tuple[Snapshot, RefusedError | None]:
        """Load what was live last; also a warning, why it would be refused as a new one, or None.

        One that has expired, or is from the future of a clock that was put back, is served with a
        warning until the next one: better than nothing.

        Raises:
            VaultError: it is refused for any other reason, or older than one served before.
        """
        number = self._not_put_back(self.live())
        verified, warning = self._verify_live(number)
        return self._build(number, verified), warning

    def again(self, number: int) -> Snapshot:
        """Load anew what is live already, to heal it; even if its time has ended meanwhile.

        Raises:
            VaultError: the vault's copy is not what was signed, or cannot be read.
        """
        return self._build(number, self._verify_live(number)[0])

    def load(self, number: int, after: int) -> Snapshot:
        """Verify and load a generation newer than `after`; its first forward pass is made.

        Raises:
            VaultError: it is refused, unreadable or does not fit the task.
        """
        return self._build(number, self._verify(number, after, time.time()))

    def verify(self, number: int, after: int) -> None:
        """Raise a `VaultError` unless the generation may be live now."""
        self._verify(number, after, time.time())

    def served(self, number: int) -> None:
        """Remember a number as served, outside the vault."""
        if self._served is not None:
            write_bytes(self._served, json.dumps({"served": number}).encode())

    def describe(self, number: int) -> Mapping[str, Any]:
        """Facts about a generation for the history: gates, times, cost."""
        try:
            manifest = self._vault.generation(number).manifest
        except VaultError:
            return {}
        facts = {key: manifest[key] for key in _SHOWN if key in manifest}
        figures = manifest.get("figures", {})
        return facts | {
            "accuracy": figures.get("clean_accuracy"),
            "robust": figures.get("robust_accuracy"),
            "distance": figures.get("distance"),
        }

    def exposures(self) -> list[int]:
        """Return the last numbers that have been live."""
        return self._vault.exposures(20)

    def _verify(self, number: int, after: int, now: float) -> _Verified:
        if self._key is None:
            if number <= after:
                raise RefusedError(f"generation {number} is not above {after}", "replay", number)
            return _Verified(self._vault.read_generation(number))
        from g2d.vault.signing import verify_generation

        found = verify_generation(
            self._vault, number, self._key, after=after, now=now, files=self._files
        )
        code = bound_code(found.manifest)
        return _Verified(found.weights, str(found.manifest["source"]), code, found.expires)

    def _verify_live(self, number: int) -> tuple[_Verified, RefusedError | None]:
        """Verify what is live. Its times are a warning alone: there is nothing better yet.

        It was in time when it became live; since then it expired, or the clock was put back.
        """
        try:
            return self._verify(number, number - 1, time.time()), None
        except RefusedError as error:
            if error.reason not in ("expired", "future"):
                raise
            created = float(self._vault.generation(number).created)
            return self._verify(number, number - 1, created), error

    def _build(self, number: int, verified: _Verified) -> Snapshot:
        self._check_code(number, verified.code)
        try:
            state = unpack(verified.weights)
        except CheckpointError as error:
            raise VaultError(f"generation {number} cannot be read: {error}") from error
        with self._building:
            model = build_model(self._blueprint.factory)
        snapshot = build_snapshot(number, model, state, verified.expires, _ArrayInference)
        logits = snapshot.predict(np.zeros((1, *self.model.shape), self.model.dtype))
        if logits.shape != (1, self.model.classes):
            raise VaultError(f"generation {number} gives {logits.shape}, not (1, classes).")
        return snapshot

    def _check_place(self, vault: Path) -> None:
        if self._served and self._served.absolute().resolve().is_relative_to(vault.resolve()):
            raise VaultError(
                f"{self._served} lies in the vault, and would be put back with it: name a --served"
                " file outside"
            )

    def _not_put_back(self, number: int) -> int:
        if number < (floor := self._floor()):
            raise RefusedError(
                f"the vault's live generation is {number}, and {self._served} says that {floor} has"
                " been served: the vault was put back. Restore the newer one, or make generations"
                " beyond it",
                "replay",
                number,
            )
        return number

    def _floor(self) -> int:
        if self._served is None or not self._served.exists():
            return 0
        try:
            return int(json.loads(self._served.read_text("utf-8"))["served"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise VaultError(
                f"{self._served} is not what `g2d serve` wrote ({error}): look why. Delete it only"
                " if you are sure which generation was served last."
            ) from error


class _ArrayInference:
    """A frozen model as a function of arrays."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, x: Array) -> Array:
        # float(): NumPy has no bfloat16, and answers are float32 whatever the model computes in.
        return np.asarray(self._model(torch.from_numpy(x)).float().numpy())
