"""A defended task from end to end: population, generator, generations; over one vault.

This is the library's front door; the command line is a thin layer over it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from g2d.core.engine import Engine
from g2d.core.seeds import seed_of
from g2d.core.sources import Digests
from g2d.core.types import Progress, Say, State, Tick, silent, unsaid
from g2d.defence import opening
from g2d.defence.candidates import Candidate, CandidateJob, Draw, Judge, draws_of, make, make_many
from g2d.defence.gates import GateResult, Reference, find_gates
from g2d.defence.generations import Generation, GenerationStore
from g2d.defence.members import begin_in, fit_if_needed, read_base, read_generator
from g2d.defence.populating import populate, take_base, take_zoo
from g2d.defence.privacy.gating import PeopleGate
from g2d.defence.refusal import adapting, check_gate_split, give_up, longest
from g2d.errors import GenerationError
from g2d.generator import Exposure, Generator
from g2d.generator.terms import find_terms
from g2d.rotation.snapshot import Snapshot
from g2d.settings import Settings
from g2d.tasks.source import TaskSource
from g2d.tasks.task import Task
from g2d.vault.serving import refuse_planted
from g2d.vault.vault import Vault


class Defence:
    """One defended task over its vault. Use `build`, `create` or `open`; then `generate`.

    A context manager: leaving it closes the vault. It is a `rotation.Source`, so `Rotor(defence)`
    serves the live generation and rotates it.
    """

    def __init__(
        self,
        task: Task,
        source: TaskSource,
        vault: Vault,
        settings: Settings,
        code: Digests | None = None,
    ) -> None:
        self.task, self.vault, self.settings = task, vault, settings
        self.source = source
        self._generator: Generator | None = None
        self._judging: Judge | None = None
        self._generations = GenerationStore(task, vault, settings, code)
        self._sourcing = threading.RLock()  # building a model seeds torch's one generator
        self.on_damage: Callable[[int, str], None] | None = None
        """Called once for each exposed generation that cannot be read, which then counts no more;
        None: that is an error."""

    # --- opening ---------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        task: Task | str,
        path: Path | str,
        settings: Settings | None = None,
        code: Digests | None = None,
    ) -> Defence:
        """Make an empty vault for a task, or open the one that is there to go on with it.

        Args:
            task: a `Task`, a built-in name or `module:factory`.
            settings: overrides; None takes the defaults that the task brings.
            code: see `open`.

        Raises:
            TaskError, DataError, SettingsError: the task cannot be loaded.
            VaultError: the folder holds something else, or a vault with other settings.
        """
        return cls(*opening.create(task, path, settings, code))

    @classmethod
    def open(
        cls,
        path: Path | str,
        task: Task | None = None,
        write: bool = True,
        data: str = "",
        named: str = "",
        code: Digests | None = None,
    ) -> Defence:
        """Open a vault; the task is loaded by the name that its settings give.

        Args:
            task: needed only if the vault was made from a `Task` object that has no name.
            data: where the data lies now, if its folder has moved.
            named: what `Settings.source` has to be; loading another task's, or a gate's, module
                would run its code.
            code: digests of that code, by `vault.code`: it is loaded as it was read and compared,
                and nothing of it is run if it was changed. None: whatever is there is loaded.
        """
        return cls(*opening.reopen(path, task, write, data, named, code))

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

    @property
    def code(self) -> Digests:
        """Digests of the user's own code as it was loaded; see `vault.code`."""
        return self._generations.code

    def close(self) -> None:
        """Close the vault."""
        self.vault.close()

    def __enter__(self) -> Defence:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- once: population and generator ----------------------------------------------------------

    def populate(
        self,
        engine: Engine | None = None,
        progress: Progress = silent,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Make the population, or what is missing of it. A local engine is used by default.

        Args:
            tell: hears at once that a member stands far below the base, and how many would pass the
                gates; None: a `UserWarning`, where the base was given.
        """
        populate(self.task, self.source, self.vault, self.settings, engine, progress, tell)

    def adopt_base(self, state: State, say: Say = unsaid) -> None:
        """Take a deployed model as the base, before there is a population; `say` how names changed.

        Raises:
            CheckpointError: it does not fit the task's model. VaultError: there is another base.
        """
        take_base(self.task, self.vault, self.settings, state, say)

    def adopt(self, folder: Path | str, progress: Progress = silent, say: Say = unsaid) -> None:
        """Take a folder of checkpoints that the user has as the population.

        Members that an interrupted run has adopted already are adopted again, to the same bytes.
        """
        take_zoo(self.task, self.vault, self.settings, Path(folder), progress, say)

    def fit(self, progress: Progress = silent, again: bool = False) -> Generator:
        """Fit the generator on the population, unless the vault holds it; expose the base.

        Raises:
            PopulationError: the vault has no population, or one of a single member.
        """
        fitted = fit_if_needed(self.task, self.vault, self.settings, progress, again)
        self._generator = fitted or self._generator
        self._expose_base()
        return self.generator

    @property
    def generator(self) -> Generator:
        """The fitted generator, read from the vault once."""
        if self._generator is None:
            self._generator = read_generator(self.vault, self.settings)
        return self._generator

    # --- generations -----------------------------------------------------------------------------

    def _expose_base(self) -> None:
        """Make the base generation 1: it is what has been deployed, so it is exposed first."""
        if self.vault.live() is not None:
            return
        state = read_base(self.vault)
        manifest = {"origin": "base", "gates": [], "exposed": [], "generator": ""}
        self._generations.accept(
            state, manifest, seed_of(self.settings.population.seed, "base"), True
        )

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
        recent = self.recent(exposed)
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
        tick: Tick,
        engine: Engine | None,
    ) -> Generation:
        """Propose and judge candidates until one passes; keep that one."""
        self._check_own()
        number, exposed = self.vault.next_number(), self.exposed()
        recent = self.recent(exposed)
        known = () if seed is None else self.vault.rejections()
        draws = draws_of(number, seed, self.settings.gates.attempts, known)
        rejected: list[Candidate] = []

        people = PeopleGate.of(self.task, self.vault, self.settings)

        def ahead(draws: list[Draw], settings: Settings) -> Iterator[Candidate]:
            made = self._candidates(draws, settings, recent, exposed, tick, engine)
            return made if people is None else people.judged(made)

        for candidate in adapting(draws, self.settings, ahead, longest(self.task, self.settings)):
            if candidate.passed:
                return self._keep(candidate, rejected, recent, activate)
            rejected.append(replace(candidate, state={}))  # its weights are wanted no more
            on_reject(candidate.results)
            self.vault.reject(candidate.rejection(number))
        raise give_up(rejected, self.settings)

    def _check_own(self) -> None:
        """A key, a gate or a term that cannot be read or pass fails before the work, not after."""
        check_gate_split(len(self.task.splits.gate), self.settings)
        self._generations.check_keys()
        find_gates(self.settings.gates.extra)
        find_terms(self.settings.guidance.extra)

    def _candidates(
        self,
        draws: list[Draw],
        settings: Settings,
        recent: list[Exposure],
        exposed: list[int],
        tick: Tick,
        engine: Engine | None,
    ) -> Iterator[Candidate]:
        """Yield candidates in order: one after the other here, or all at once on an engine."""
        states, begin = self._counted(exposed), begin_in(self.vault, settings)
        if engine is None:
            own = self.task, settings, self.generator, self._judge
            yield from (make(*own, recent, states, draw, tick, begin) for draw in draws)
            return
        kept = {kind: self.vault.entry(kind) for kind in ("generator", "base")}
        stored = {kind: self.vault.read(entry) for kind, entry in kept.items() if entry}
        job = CandidateJob(
            self.source, settings, **stored, recent=tuple(recent), states=states, draw=draws[0],
            mark=self._judge.mark, begin=begin,
        )  # fmt: skip
        yield from make_many(engine, job, draws)

    def _keep(
        self,
        candidate: Candidate,
        rejected: list[Candidate],
        recent: list[Exposure],
        activate: bool,
    ) -> Generation:
        """Accept a candidate with all that its manifest has to say of its making."""
        manifest = candidate.manifest([e.number for e in recent], self._digest_of("generator"))
        # Rejected candidates are part of an accepted one's cost.
        cpu = time.process_time() - sum(one.cpu for one in (*rejected, candidate))
        return self._generations.accept(
            candidate.state, manifest, candidate.draw.seed, activate, cpu
        )

    def exposed(self) -> list[int]:
        """Return the last exposed generations, as many as gates and guidance count."""
        s = self.settings
        numbers = self.vault.exposures(max(s.gates.history, s.guidance.memory) + 1)
        if self.on_damage is None:
            return numbers
        return self._generations.sound(numbers, lambda: self.generator.codec, self.on_damage)

    def recent(self, exposed: Sequence[int]) -> list[Exposure]:
        """Those of the exposed generations that guidance remembers, with their attacks."""
        memory = self.settings.guidance.memory
        return [self.exposure(number) for number in exposed[max(0, len(exposed) - memory) :]]

    def judge(
        self, state: Mapping[str, Tensor], recent: list[Exposure], exposed: list[int]
    ) -> list[GateResult]:
        """Run every gate on a candidate's state dict."""
        return self._judge(state, recent, self._counted(exposed), self.settings.gates)

    def _counted(self, exposed: list[int]) -> dict[int, dict[str, Tensor]]:
        """The states of the exposed generations that the distance gate counts."""
        counted = exposed[-self.settings.gates.history :]
        return {number: self._generations.state(number) for number in counted}

    @property
    def _judge(self) -> Judge:
        if self._judging is None:
            base, scope = read_base(self.vault), self.settings.autoencoder.scope
            self._judging = Judge(self.task, base, scope)
        self._judging.mark = self._generations.mark()
        return self._judging

    @property
    def reference(self) -> Reference:
        """The base's correctness on the gate split."""
        return self._judge.reference

    def _digest_of(self, kind: str) -> str:
        entry = self.vault.entry(kind)
        return entry.files["weights"] if entry else ""

    # --- reading ---------------------------------------------------------------------------------

    def generation(self, number: int | None = None) -> Generation:
        """Read a generation, the live one by default; its digest is verified."""
        return self._generations.generation(number)

    def exposure(self, number: int) -> Exposure:
        """Read an exposed generation with the attacks crafted on it."""
        return self._generations.exposure(number, self.generator.codec)

    # --- rotation.Source -------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The live generation as an immutable snapshot, read from the vault anew: it may heal."""
        refuse_planted(self.vault)
        with self._sourcing:
            return self._generations.read_anew().snapshot()

    def advance(self) -> Snapshot:
        """Make the next generation live and return its snapshot."""
        with self._sourcing:
            (made,) = self.generate(1)
            return made.snapshot()


__all__ = ["Defence", "Generation"]
