"""A defended task from end to end: population, generator, generations; over one vault.

This is the library's front door; the command line is a thin layer over it.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from g2d.archive import Archive, Generation
from g2d.candidates import Candidate, Draw, Job, Judge, make, make_many
from g2d.engine import Engine, LocalEngine, SerialEngine
from g2d.errors import (
    CheckpointError,
    DataError,
    GenerationError,
    PopulationError,
    UnavailableError,
    VaultError,
)
from g2d.generator import (
    FORMAT,
    Exposure,
    GateResult,
    Generator,
    Reference,
)
from g2d.population import (
    TaskSource,
    adopt_checkpoints,
    build_population,
    resolve,
    seed_of,
    unpack_pool,
)
from g2d.rotation import Snapshot
from g2d.settings import Settings, TaskSettings, build
from g2d.tasks import Task
from g2d.train import load_model, predict
from g2d.vault import Entry, Vault
from g2d.weights import check_state, digest, unpack

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


class Defence:
    """One defended task over its vault. Use `build`, `create` or `open`; then `generate`.

    A context manager: leaving it closes the vault. It is a `rotation.Source`, so `Rotor(defence)`
    serves the live generation and rotates it.
    """

    def __init__(self, task: Task, source: TaskSource, vault: Vault, settings: Settings) -> None:
        self.task, self.vault, self.settings = task, vault, settings
        self.source = source
        self._generator: Generator | None = None
        self._judging: Judge | None = None
        self._archive = Archive(task, vault, settings)
        self.on_damage: Callable[[int, str], None] | None = None
        """Called once for each exposed generation that cannot be read, which then counts no more;
        None: that is an error."""
        self._damaged: set[int] = set()
        self._check_data()

    # --- opening ---------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, task: Task | str, path: Path | str, settings: Settings | None = None
    ) -> Defence:
        """Make an empty vault for a task, or open the one that is there to go on with it.

        Args:
            task: a `Task`, a built-in name or `module:factory`.
            settings: overrides; None takes the defaults that the task brings.

        Raises:
            TaskError, DataError, SettingsError: the task cannot be loaded.
            VaultError: the folder holds something else, or a vault with other settings.
        """
        there = Settings() if settings is None else settings
        known = Path(path, "task.toml")
        if settings is None and known.is_file():
            there = Settings.from_file(known)  # the folder of the data, above all
        named, source = _named(task, there.task)
        loaded = resolve(source)
        if settings is None and not known.is_file():
            tables = {key: dict(table) for key, table in loaded.settings.items()}
            there = build(Settings, tables, f"settings of task {loaded.name!r}")
        full = replace(there, task=named)
        vault = _open_or_create(Path(path), full.to_toml())
        try:
            kept = Settings.from_toml(vault.settings_text, str(known))
            if not _compatible(kept, full):
                raise VaultError(
                    f"{path} was made with other task or population settings; use a new folder, or "
                    "leave the settings out to go on with the vault's own"
                )
            vault.write_settings(full.to_toml())
            return cls(loaded, source, vault, full)
        except BaseException:
            vault.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        task: Task | None = None,
        write: bool = True,
        data: str = "",
        named: str = "",
    ) -> Defence:
        """Open a vault; the task is loaded by the name that its settings give.

        Args:
            task: needed only if the vault was made from a `Task` object that has no name.
            data: where the data lies now, if its folder has moved.
            named: the task that it has to be; loading another's module would run its code.
        """
        vault = Vault.open(path, write=write)
        try:
            settings = Settings.from_toml(vault.settings_text, str(Path(path) / "task.toml"))
            s = settings.task
            if named and s.name != named:
                raise VaultError(
                    f"{path} was of task {named!r} and names {s.name!r} now: nothing of it is"
                    " loaded. Look who changed task.toml, and put it back."
                )
            source: TaskSource = task or (s.name, data or s.data, s.split_seed, s.eps)
            return cls(resolve(source), source, vault, settings)
        except BaseException:
            vault.close()
            raise

    @classmethod
    def build(
        cls,
        task: Task | str,
        path: Path | str,
        settings: Settings | None = None,
        engine: Engine | None = None,
        progress: Progress = silent,
    ) -> Defence:
        """Make population and generator, or finish what an earlier run began; then open for use."""
        defence = cls.create(task, path, settings)
        try:
            defence.populate(engine, progress)
            defence.fit(progress)
        except BaseException:
            defence.close()
            raise
        return defence

    def _check_data(self) -> None:
        """Refuse other data than the vault's: its attacks point into splits by index."""
        base = self.vault.entry("base")
        known = base.info.get("data") if base else None
        if known is not None and known != data_digest(self.task):
            raise DataError(
                f"the data of task {self.task.name!r} is not what {self.vault.path} was made with "
                "(other files, order or split seed): examples would leak between splits. Point "
                "--data at the original, or use a new vault"
            )

    def close(self) -> None:
        """Close the vault."""
        self.vault.close()

    def __enter__(self) -> Defence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- once: population and generator ----------------------------------------------------------

    def populate(self, engine: Engine | None = None, progress: Progress = silent) -> None:
        """Make the population, or what is missing of it. A local engine is used by default."""
        settings = self.settings.population
        adopted = [e for e in self.vault.entries("member") if e.info.get("recipe") == "adopted"]
        if adopted:
            if len(adopted) < adopted[0].info["of"]:
                raise PopulationError(
                    f"only {len(adopted)} of {adopted[0].info['of']} checkpoints were adopted; run "
                    "`g2d population` with --from-checkpoints again"
                )
            return
        own = engine is None
        engine = engine or default_engine(self.source, settings.workers)
        try:
            build_population(
                self.source,
                self.vault,
                settings,
                engine,
                progress,
                self.settings.autoencoder.scope,
                {"data": data_digest(self.task)},
                self.settings.harden,
            )
        finally:
            if own:
                engine.close()

    def adopt(self, folder: Path | str, progress: Progress = silent) -> None:
        """Take a folder of checkpoints that the user has as the population.

        Members that an interrupted run has adopted already are adopted again, to the same bytes.
        """
        if any(e.info.get("recipe") != "adopted" for e in self.vault.entries("member")):
            raise VaultError(f"{self.vault.path} has a population already; use a new folder")
        adopt_checkpoints(
            self.task,
            self.vault,
            self.settings.population,
            Path(folder),
            progress,
            {"data": data_digest(self.task)},
        )

    def fit(self, progress: Progress = silent, again: bool = False) -> Generator:
        """Fit the generator on the population, unless the vault holds it; expose the base.

        Raises:
            PopulationError: the vault has no population, or one of a single member.
        """
        entries = fitted_members(self.vault.entries("member"), self.settings.autoencoder.newest)
        if not entries:
            raise PopulationError(
                f"{self.vault.path} holds no population yet; run `g2d population` first"
            )
        identity = self._identity([e.files["weights"] for e in entries])
        kept = self.vault.entry("generator")
        if kept is None or again or kept.info.get("identity") != identity:
            states = [unpack(self.vault.read(entry)) for entry in entries]
            for entry, state in zip(entries, states, strict=True):
                check_state(self.task.model(0).state_dict(), state, f"member {entry.index}")
            generator = Generator.fit(
                self.task,
                states,
                [int(entry.info["basin"]) for entry in entries],
                self.settings.autoencoder,
                self.settings.diffusion,
                seed=seed_of(self.settings.population.seed, "fit"),
                resistance=self._resistance(entries, states) if len(entries) > 2 else None,
                base=self._base(),
                progress=progress,
            )
            self.vault.put(
                "generator", 0, {"weights": generator.to_bytes()}, {"identity": identity}
            )
            self._generator = generator
        self._expose_base()
        return self.generator

    @property
    def generator(self) -> Generator:
        """The fitted generator, read from the vault once."""
        if self._generator is None:
            entry = self.vault.entry("generator")
            if entry is None:
                raise VaultError(f"{self.vault.path} has no generator yet; run `g2d fit` first")
            self._generator = Generator.from_bytes(self.vault.read(entry))
        return self._generator

    def _identity(self, digests: list[str]) -> str:
        """What a generator depends on: members, settings of both fits, seed."""
        what = {
            "format": FORMAT,
            "members": digests,
            "autoencoder": asdict(self.settings.autoencoder),
            "diffusion": asdict(self.settings.diffusion),
            "seed": self.settings.population.seed,
        }
        return digest(json.dumps(what, sort_keys=True).encode())

    def _resistance(self, entries: list[Entry], states: list[dict[str, Tensor]]) -> Tensor:
        """Error of member j on attacks crafted on member i, (K, K), on the train split."""
        pools = [
            unpack_pool(self.vault.read(entry, "attacks"), self.task.splits.train)
            for entry in entries
        ]
        each = min(128, *(len(pool) for pool in pools))
        x = torch.cat([pool.x[:each] for pool in pools])
        y = torch.cat([pool.y[:each] for pool in pools])
        wrong = [predict(load_model(self.task, s), x).argmax(1) != y for s in states]
        return torch.stack([w.float().view(len(pools), each).mean(1) for w in wrong], 1)

    # --- generations -----------------------------------------------------------------------------

    def _expose_base(self) -> None:
        """Make the base generation 1: it is what has been deployed, so it is exposed first."""
        if self.vault.live() is not None:
            return
        state = self._base()
        manifest = {"origin": "base", "gates": [], "exposed": [], "generator": ""}
        self._archive.accept(state, manifest, seed_of(self.settings.population.seed, "base"), True)

    def generate(
        self,
        count: int = 1,
        *,
        seed: int | None = None,
        activate: bool = True,
        progress: Progress = silent,
        on_reject: Callable[[list[GateResult]], None] = lambda _: None,
        engine: Engine | None = None,
    ) -> list[Generation]:
        """Make the next `count` generations; each joins the exposed set and is live in turn.

        Args:
            seed: for reproduction only. None draws 256 secret bits; the manifest holds their
                commitment.
            activate: False keeps a generation without making it live.
            on_reject: called with the gate results of every rejected candidate.
            engine: makes a generation's candidates all at once, where it runs; the first in order
                that passes is taken, as if each had been made after the last. None: one by one.

        Raises:
            GenerationError: no candidate passed within `gates.attempts`; the live one stays.
        """
        return [
            self._generate_one(
                seed,
                activate,
                on_reject,
                lambda done, total, i=index: progress(  # type: ignore[misc]
                    "generating", i * total + done, count * total
                ),
                engine,
            )
            for index in range(count)
        ]

    def activate(self, number: int) -> Generation:
        """Make a kept generation live, once it passes the gates against what is exposed *now*.

        Raises:
            GenerationError: a gate fails: it was judged before others were exposed.
            VaultError: it is unknown, or older than the live one (a replay).
        """
        kept = self.generation(number)
        exposed = [n for n in self.exposed() if n != number]
        recent = [self.exposure(n) for n in self._remembered(exposed)]
        failed = [r.reason for r in self.judge(kept.state, recent, exposed) if not r.passed]
        if failed:
            raise GenerationError(
                f"generation {number} no longer passes its gates: {'; '.join(failed)}. Make a new "
                "one with `g2d generate`"
            )
        self.vault.activate(number)
        return kept

    def _generate_one(
        self,
        seed: int | None,
        activate: bool,
        on_reject: Callable[[list[GateResult]], None],
        tick: Callable[[int, int], None],
        engine: Engine | None,
    ) -> Generation:
        self._archive.signing_key()  # a key that cannot be read fails before the work, not after
        number, exposed = self.vault.last_number() + 1, self.exposed()
        recent = [self.exposure(n) for n in self._remembered(exposed)]
        reasons: list[str] = []
        robust: list[float] = []
        spent = 0.0  # rejected candidates are part of an accepted one's cost
        draws = self._draws(seed, number)
        for candidate in self._candidates(draws, recent, exposed, tick, engine):
            spent += candidate.cpu
            if candidate.passed:
                manifest = self._manifest(candidate, recent)
                cpu = time.process_time() - spent
                return self._archive.accept(
                    candidate.state, manifest, candidate.draw.seed, activate, cpu
                )
            on_reject(candidate.results)
            reasons = [result.reason for result in candidate.results if not result.passed]
            robust += [result.value for result in candidate.results if result.gate == "robust"]
            attempt, at = candidate.draw.attempt, candidate.began
            self.vault.reject({"number": number, "attempt": attempt, "reasons": reasons, "at": at})
        best = f" The most robust candidate reached {max(robust):.1%}." if robust else ""
        raise GenerationError(
            f"no candidate passed its gates in {self.settings.gates.attempts} attempts; the live "
            f"generation stays. The last one failed because: {'; '.join(reasons)}.{best} Loosen "
            "[gates], or raise polish_steps in [guidance]"
        )

    def _candidates(
        self,
        draws: list[Draw],
        recent: list[Exposure],
        exposed: list[int],
        tick: Callable[[int, int], None],
        engine: Engine | None,
    ) -> Iterator[Candidate]:
        """Yield candidates in order: one after the other here, or all at once on an engine."""
        generator, states = self.generator, self._counted(exposed)
        if engine is None:
            own = self.task, self.settings, generator, self._judge
            yield from (make(*own, recent, states, draw, tick) for draw in draws)
            return
        kept = {kind: self.vault.entry(kind) for kind in ("generator", "base")}
        stored = {kind: self.vault.read(entry) for kind, entry in kept.items() if entry}
        job = Job(self.source, self.settings, **stored, recent=tuple(recent), states=states,
                  draw=draws[0])  # fmt: skip
        yield from make_many(engine, job, draws)

    def _manifest(self, candidate: Candidate, recent: list[Exposure]) -> dict[str, Any]:
        return {
            "origin": "generated",
            "gates": [asdict(result) for result in candidate.results],
            "exposed": [e.number for e in recent],
            "seed_commitment": hashlib.sha256(candidate.draw.secret).hexdigest(),
            "attempt": candidate.draw.attempt,
            "generator": self._digest_of("generator"),
            "began": candidate.began,
        }

    def _draws(self, seed: int | None, number: int) -> list[Draw]:
        """What the candidates are drawn from: 256 fresh bits each, or for reproduction a seed.

        A number that was given up before is drawn anew, not the same candidates again.
        """
        attempts = range(self.settings.gates.attempts)
        if seed is None:
            return [Draw(attempt, secrets.token_bytes(32), True) for attempt in attempts]
        before = sum(r.get("number") == number for r in self.vault.rejections())
        given_up = before // len(attempts)
        parts = (seed, "generation", number - 1, *([given_up] if given_up else []))
        secret = seed_of(*parts).to_bytes(8, "big")
        return [Draw(attempt, secret, False) for attempt in attempts]

    def exposed(self) -> list[int]:
        """Return the last exposed generations, as many as gates and guidance count."""
        s = self.settings
        numbers = self.vault.exposures(max(s.gates.history, s.guidance.memory) + 1)
        if self.on_damage is None:
            return numbers
        sound: list[int] = []
        for number in reversed(numbers):
            if self._is_sound(number, attacks=len(sound) < s.guidance.memory):
                sound.insert(0, number)
        return sound

    def _is_sound(self, number: int, attacks: bool) -> bool:
        """Whether an exposed generation can be read, with its attacks; one that cannot is told."""
        try:
            if attacks:
                self.exposure(number)
            else:
                self._archive.state(number)
        except UnavailableError:
            raise
        except (VaultError, CheckpointError, KeyError) as error:
            if number not in self._damaged and self.on_damage is not None:
                self.on_damage(number, str(error))
            self._damaged.add(number)
            return False
        return True

    def _remembered(self, exposed: list[int]) -> list[int]:
        memory = self.settings.guidance.memory
        return exposed[len(exposed) - memory :] if len(exposed) > memory else exposed

    def judge(
        self, state: Mapping[str, Tensor], recent: list[Exposure], exposed: list[int]
    ) -> list[GateResult]:
        """Run every gate on a candidate's state dict."""
        return self._judge(state, recent, self._counted(exposed), self.settings.gates)

    def _counted(self, exposed: list[int]) -> dict[int, dict[str, Tensor]]:
        """The states of the exposed generations that the distance gate counts."""
        counted = exposed[-self.settings.gates.history :]
        return {number: self._archive.state(number) for number in counted}

    @property
    def _judge(self) -> Judge:
        if self._judging is None:
            self._judging = Judge(self.task, self._base())
        return self._judging

    @property
    def reference(self) -> Reference:
        """The base's correctness on the gate split."""
        return self._judge.reference

    def _base(self) -> dict[str, Tensor]:
        base = self.vault.entry("base")
        if base is None:
            raise VaultError(f"{self.vault.path} has no base yet; run `g2d population` first")
        return unpack(self.vault.read(base))

    def _digest_of(self, kind: str) -> str:
        entry = self.vault.entry(kind)
        return entry.files["weights"] if entry else ""

    # --- reading ---------------------------------------------------------------------------------

    def generation(self, number: int | None = None) -> Generation:
        """Read a generation, the live one by default; its digest is verified."""
        return self._archive.generation(number)

    def exposure(self, number: int) -> Exposure:
        """Read an exposed generation with the attacks crafted on it."""
        return self._archive.exposure(number, self.generator.codec)

    # --- rotation.Source -------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The live generation as an immutable snapshot."""
        live = self.generation()
        return Snapshot(live.number, _Inference(live.model()))

    def advance(self) -> Snapshot:
        """Make the next generation live and return its snapshot."""
        (made,) = self.generate(1)
        return Snapshot(made.number, _Inference(made.model()))


def data_digest(task: Task) -> str:
    """SHA-256 of a task's splits: what ties a vault to its data."""
    sha = hashlib.sha256()
    for name in ("train", "guide", "gate", "test"):
        split = getattr(task.splits, name)
        for tensor in (split.x, split.y):
            sha.update(np.ascontiguousarray(tensor.numpy()).data)
    return sha.hexdigest()


class _Inference:
    """A frozen model as a function without gradients."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self._model(x)


def fitted_members(entries: list[Entry], newest: float) -> list[Entry]:
    """The members that a generator is fitted on: of a repelled trunk, each basin's newest.

    Early members of a trunk are less accurate and resist less; at least two of a basin are kept.
    """
    basins: dict[int, list[Entry]] = {}
    for entry in entries:
        basins.setdefault(int(entry.info["basin"]), []).append(entry)
    kept: list[Entry] = []
    for inside in basins.values():
        repelled = all(entry.info["recipe"] == "repelled" for entry in inside)
        count = max(2, math.ceil(newest * len(inside))) if repelled else len(inside)
        kept += inside[-count:]
    return sorted(kept, key=lambda entry: entry.index)


def _named(task: Task | str, given: TaskSettings) -> tuple[TaskSettings, TaskSource]:
    """The task's settings, and how a worker process gets at it."""
    if isinstance(task, Task):
        return TaskSettings(name=task.name, eps=task.eps), task
    named = replace(given, name=task)
    return named, (named.name, named.data, named.split_seed, named.eps)


def _open_or_create(path: Path, settings_toml: str) -> Vault:
    """Open the vault that is there, or make one; a folder that a kill left half made counts so."""
    if not (path / "ledger.sqlite").exists():
        return Vault.create(path, settings_toml)
    try:
        return Vault.open(path, write=True)
    except VaultError as refused:
        try:
            return Vault.create(path, settings_toml)
        except VaultError:
            raise refused from None


def _compatible(kept: Settings, given: Settings) -> bool:
    """Whether a vault can go on: more members or other workers, a moved data folder are fine."""

    def fixed(s: Settings) -> tuple[object, object]:
        population = replace(s.population, members=2, workers=0)
        return replace(s.task, data=""), population

    return fixed(kept) == fixed(given)


def default_engine(source: TaskSource, workers: int) -> Engine:
    """Worker processes where the task can travel to them, this process where it cannot."""
    if isinstance(source, Task):
        import pickle

        try:
            pickle.dumps(source.factory)
            pickle.dumps((source.loss, source.augment))
        except (pickle.PicklingError, AttributeError, TypeError):
            return SerialEngine()
        if getattr(source.factory, "__module__", "") == "__main__":
            return SerialEngine()
    return LocalEngine(workers)


__all__ = ["Defence", "Generation"]
