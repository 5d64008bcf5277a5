"""The reading side of a vault: verify a generation, load it, make it ready to answer.

The one file of the service that needs torch. Reads only; `worker` writes. A built-in task's
model is built without its data, which would cost a second of every start.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from g2d.core.devices import CPU, resolve
from g2d.core.files import read_plain, write_bytes
from g2d.core.sources import digests, hold
from g2d.core.types import State
from g2d.errors import DAMAGE, CheckpointError, RefusedError, VaultError
from g2d.protect.canaries.kept import Canaries, read_canaries
from g2d.protect.layout import SECRET, is_secret, random_inputs
from g2d.protect.snapshots import ArrayInference, build_snapshot
from g2d.rotation.events import Accepted, Alarm, Event, OlderCopy, Tell
from g2d.rotation.snapshot import Snapshot
from g2d.service.facts import facts_of
from g2d.service.growing import growth_of
from g2d.service.http.protocol import DATATYPES, Model
from g2d.settings import Settings, TaskSettings
from g2d.tasks.building import build_model
from g2d.tasks.source import blueprint_of
from g2d.vault.code import (
    TASK,
    advice,
    binds,
    bound_code,
    changed,
    code_of,
    last_bound,
    require,
)
from g2d.vault.ledger import LEDGER
from g2d.vault.mark import FileMark, HighWaterMark, Mark, SteadyClock
from g2d.vault.placing import check_private
from g2d.vault.rollback import judge, reached, unmarked
from g2d.vault.serving import open_to_serve
from g2d.weights.checkpoints import unpack

if TYPE_CHECKING:
    from g2d.vault.signing import VerifyKey

_SKEW = 300.0  # seconds that the clock may be behind the newest moment seen: it is being set right
_MOST_SERVED = 1 << 16  # bytes of a --served file


@dataclass(frozen=True)
class _Verified:
    """Verified weights; if they were signed, the manifest that was, and when they expire."""

    weights: bytes
    manifest: Mapping[str, Any] = field(default_factory=dict)
    expires: float = math.inf


class VaultLoader:
    """Generations of one vault as snapshots: a `GenerationLoader`, safe to use from many threads.

    Args:
        key: verifies what is served; None: digests of the ledger alone are. served: one more file
            outside the vault that remembers the highest number served, beside `marks`. marks: where
            what was reached is remembered, so that a vault which was put back is refused; None: in
            this user's state folder (`FileMark`). layout: "secret", or "plain": see
            `protect.layout`.

    Attributes:
        task: `Settings.source`; where generations are signed, what was signed. events: what is to
            be told at the start: that an older vault was accepted, or is a copy.
        canary_every: seconds between checks by canaries, as the vault has them; 0: never. monitors:
            what is watched, likewise.
        code: digests of the user's own code, as `vault.code` has them: what was signed, or what was
            loaded. unbound: why it may be other than what was signed; "": it is not.

    Raises:
        G2DError: the vault or the task cannot be loaded, or what is live is not sound.
    """

    _device: str = CPU  # as settings name it
    _files: tuple[str, ...] = ()  # which of a generation's files are verified; (): all
    remembers: ClassVar[bool] = True
    """Whether the vault is one that lasts: it has a mark, and is closed to others."""
    follows: ClassVar[bool] = False  # generations come from elsewhere alone: no worker makes any

    def __init__(
        self,
        vault: Path,
        name: str,
        data: str = "",
        key: VerifyKey | None = None,
        served: Path | None = None,
        marks: HighWaterMark | None = None,
        layout: str = SECRET,
    ) -> None:
        if self.remembers:
            check_private(vault.absolute())
        self._vault, self._key, self._served = open_to_serve(vault), key, served
        self._building = threading.Lock()  # a factory draws from torch's one global generator
        self._layout, self._warned = layout, False
        self._marks, self.events, self._clock = marks, list[Event](), SteadyClock()
        try:
            self._check_place(vault)
            if marks is None and self.remembers:
                self._marks = FileMark(self._vault.path, self._vault.identity)
            mark = self._judged()
            self._clock = SteadyClock(mark.time if mark else 0.0)
            settings = Settings.from_vault(self._vault.settings_text, str(vault / "task.toml"))
            s, self.task = settings.task, settings.source
            self.canary_every, self.monitors = settings.canaries.every, settings.monitors
            self.serving, self.private = settings.serve, settings.privacy.enabled
            self.growth = growth_of(settings)
            # Before the task is loaded, for that imports code: what was signed must name it.
            verified, _ = self._verify_live(self._not_put_back(self.live()))
            self._read_code(settings, verified)
            if (
                verified.manifest.get("marked")
                and mark is None
                and self._marks
                and not self._marks.seen()
            ):
                raise unmarked(self._vault, self.live())  # the ledger's own note was removed
            self.events = list(self._told(mark))
            self._tell: Tell = self.events.append
            self._load_task(s, name, data)
        except BaseException:
            self._vault.close()
            raise

    def _read_code(self, settings: Settings, verified: _Verified) -> None:
        """Hold the task's own code as it is now, if it is what was signed; nothing of it is run."""
        parts = code_of(settings)
        self._code = {TASK: parts[TASK]} if TASK in parts else {}
        number, self.unbound = self.live(), ""
        # Without a key to verify it, what was signed is still what a worker may sign with.
        manifest = verified.manifest if self._key else last_bound(self._vault, settings)
        signed = bound_code(manifest)
        require(signed, self._code, self._vault.path, settings)
        self._check_code(number, manifest)
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

    def _load_task(self, task: TaskSettings, name: str, data: str) -> None:
        self._blueprint, self._device = blueprint_of(task, data), task.device
        self.model = self._described(name)

    def _check_code(self, number: int, manifest: Mapping[str, Any]) -> None:
        """Refuse what was signed with other code than what is loaded here, or without it."""
        signed, told = bound_code(manifest), ""
        if found := changed(signed, self._code):
            told = f"{found}, or it was signed with another version: no other code is run"
        elif binds(manifest) and self._code.get(TASK) and TASK not in signed:
            told = f"it was signed without its code, and task {self.task!r} has some: none is run"
        if told:
            raise RefusedError(
                f"generation {number} refused (code): {told}. {advice(self._vault.path)}",
                "code",
                number,
            )

    def _judged(self) -> Mark | None:
        return judge(self._vault, self._marks) if self._marks else None

    def _told(self, mark: Mark | None) -> Iterator[Event]:
        if mark is not None and mark.accepted:
            yield Accepted(mark.accepted)
        copies = self._marks if isinstance(self._marks, FileMark) else None
        if copies and (other := copies.elsewhere()) > self.live():
            text = f"this is an older copy of a vault whose generation {other} was live here before"
            yield OlderCopy(text)

    def hear(self, tell: Tell) -> None:
        """Tell `events`, and from now on what happens; what was accepted is not told again."""
        for event in self.events:
            tell(event)
        self.told()
        self._tell = tell

    def told(self) -> None:
        """Note that `events` have been told."""
        if isinstance(self._marks, FileMark):
            self._marks.told()

    def now(self) -> float:
        """Seconds since 1970, never behind the newest moment that the mark has seen."""
        return self._clock.now()

    def behind(self) -> float:
        """Seconds that the clock was set back; 0: no more than clocks are set right by."""
        behind = self._clock.behind()
        return behind if behind > _SKEW else 0.0

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
        """Return the number that was committed last.

        Raises:
            VaultError: there is none, or another ledger lies in the open one's place.
        """
        if self._vault.replaced():
            raise VaultError(
                f"another ledger was put in the place of {self._vault.path / LEDGER} while it was"
                " served: look why, and start the service again"
            )
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
        self._judged()
        number = self._not_put_back(self.live())
        verified, warning = self._verify_live(number)
        if behind := self.behind():
            text = f"the clock is {behind:.0f} s behind the newest moment seen: set it right; if it"
            text += f" was ahead once, run `g2d accept {self._vault.path}`"
            warning = RefusedError(text, "future", number)
        return self._build(number, verified), warning

    def again(self, number: int) -> Snapshot:
        """Load anew what is live already, to heal it; even if its time has ended meanwhile.

        Raises:
            VaultError: the vault's copy is not what was signed, or cannot be read.
        """
        return self._build(number, self._verify_live(number)[0])

    def canaries(self, number: int) -> Canaries | None:
        """Read what shows changes of what is live, as it was signed; None: it keeps none."""
        signed = self._verify_live(number)[0].manifest.get("files")
        return read_canaries(self._vault, number, signed)

    def load(self, number: int, after: int) -> Snapshot:
        """Verify and load a generation newer than `after`; its first forward pass is made.

        Raises:
            VaultError: it is refused, unreadable or does not fit the task.
        """
        return self._build(number, self._verify(number, after, self.now()))

    def verify(self, number: int, after: int) -> None:
        """Raise a `VaultError` unless the generation may be live now."""
        self._verify(number, after, self.now())

    def served(self, number: int) -> None:
        """Remember a number as served, outside the vault, with all that the ledger has reached."""
        if self._marks is not None:
            self._marks.advance(reached(self._vault))
        if self._served is not None:
            write_bytes(self._served, json.dumps({"served": number}).encode(), 0o600)

    def describe(self, number: int) -> Mapping[str, Any]:
        """Facts about a generation for the history: gates, times, cost."""
        try:
            manifest = self._vault.generation(number).manifest
        except VaultError:
            return {}
        return facts_of(manifest)

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
        # The settings may have been changed since this process loaded what they named.
        if (source := str(found.manifest["source"])) != self.task:
            raise RefusedError(
                f"generation {number} refused (task): it was signed for task {source!r}, and"
                f" {self.task!r} is loaded. The live one stays; look who changed task.toml",
                "task",
                number,
            )
        return _Verified(found.weights, found.manifest, found.expires)

    def _verify_live(self, number: int) -> tuple[_Verified, RefusedError | None]:
        """Verify what is live. Its times are a warning alone: there is nothing better yet.

        It was in time when it became live; since then it expired, or the clock was put back.
        """
        try:
            return self._verify(number, number - 1, self.now()), None
        except RefusedError as error:
            if error.reason not in ("expired", "future"):
                raise
            created = float(self._vault.generation(number).created)
            return self._verify(number, number - 1, created), error

    def _build(self, number: int, verified: _Verified) -> Snapshot:
        self._check_code(number, verified.manifest)
        try:
            state = self._own_form(number, verified.manifest, unpack(verified.weights))
            b, expires, device = self._blueprint, verified.expires, resolve(self._device)
            with self._building:
                model = build_model(b.factory)
            x = random_inputs(b.shape, b.dtype, b.vocabulary) if is_secret(self._layout) else None
            snapshot = build_snapshot(
                number, model, state, expires, ArrayInference, x, self._unhidden, device
            )
        except (CheckpointError, RuntimeError, *DAMAGE) as error:
            raise VaultError(f"generation {number} cannot be read: {error}") from error
        logits = snapshot.predict(np.zeros((1, *self.model.shape), self.model.dtype))
        if logits.shape != (1, self.model.classes):
            raise VaultError(f"generation {number} gives {logits.shape}, not (1, classes).")
        return snapshot

    def _unhidden(self, text: str) -> None:
        """Say once that units are not hidden: what is so of one generation is of the next."""
        if not self._warned:
            self._warned = True
            self._tell(Alarm("layout", text))

    def _own_form(self, number: int, manifest: Mapping[str, Any], state: State) -> State:
        """What of a verified generation is served: itself, or this replica's copy of it."""
        return state

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
            return int(json.loads(read_plain(self._served, _MOST_SERVED, follow=True))["served"])
        except (OSError, *DAMAGE) as error:
            raise VaultError(
                f"{self._served} is not what `g2d serve` wrote ({error}): look why. Delete it only"
                " if you are sure which generation was served last."
            ) from error


class CodeHolder(VaultLoader):
    """All that a `VaultLoader` checks before it loads the task, whose code is held as it was read.

    For a process that is about to import what may import the task's module, and serves nothing.
    """

    def _load_task(self, *_: object) -> None:
        pass
