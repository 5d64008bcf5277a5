"""Where a suspect came from: which generation of a vault, or which other of its networks.

Here a vault's networks are gathered and brought into groups that lie near one another; how they
are compared, and what a likeness is worth, is in `protect.trace`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from g2d.core.types import Say, State, unsaid
from g2d.defence.defence import Defence
from g2d.defence.drift import trained_on
from g2d.defence.marking import sources
from g2d.defence.members import fitted_members
from g2d.errors import CheckpointError, UnavailableError, VaultError
from g2d.generator import hidden_units
from g2d.protect.fingerprint import Accused, secret_for
from g2d.protect.trace import Frame, Named, Verdict, compare, judge
from g2d.protect.trace.judgement import (
    BASE,
    EARLY,
    GENERATION,
    MEMBER,
    NAMELESS,
    UNRELEASED,
    UNTRAINED,
    Group,
)
from g2d.training.layouts import layout_of
from g2d.vault.vault import Entry
from g2d.weights.checkpoints import unpack
from g2d.weights.foreign import fit_state
from g2d.weights.layout import mean_of, whole_state
from g2d.weights.symmetry import align, balance

_UNTRAINED = 12  # networks beside one that has no basin
_CHUNK = 64  # generations whose states are in memory at once
_LIKELY = 2  # generations that are trained on to tell a suspect's drift
_NEAR = 0.5  # cosine with a basin's centre from which on a network lies in it

UNALIGNED = (
    "the model has no chain of hidden units that can be permuted, so networks are compared as they "
    "stand: a copy whose units were permuted or rescaled would not be recognised"
)


@dataclass(frozen=True, eq=False)
class Known:
    """A network of the vault, and what it is."""

    name: Named
    state: State


@dataclass(eq=False)
class _Nest:
    """Networks near one another: their frame, their names and vectors.

    `least`: the cosine with its first network from which on a suspect may be of them. `newest`: the
    last two networks, of a basin.
    """

    frame: Frame
    least: float = -1.0
    newest: list[Known] = field(default_factory=list)
    drifts: dict[Named, Tensor] = field(default_factory=dict)
    names: list[Named] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)

    def add(self, name: Named, vector: Tensor) -> None:
        self.names.append(name)
        self.vectors.append(vector)

    @cached_property
    def stacked(self) -> Tensor:
        return torch.stack(self.vectors)


class Tracer:
    """Judges suspects against one vault; its networks are read once.

    Args:
        tell: hears what is left out: a generation that cannot be read, symmetries not undone.

    Raises:
        VaultError: the vault has no base, population or generator.
    """

    def __init__(self, defence: Defence, tell: Say = unsaid) -> None:
        self._defence, self._tell = defence, tell
        task, scope = defence.task, defence.settings.autoencoder.scope
        self._layout = layout_of(task)
        inside = self._layout.in_scope(scope)
        self._chain = hidden_units(task, inside)
        if not self._chain:
            tell(UNALIGNED)
        counted = inside & self._layout.parameters or inside
        self._names = tuple(
            n for n in self._layout.names if n in counted and n not in self._layout.ties
        )
        self._nests = list(self._gather())
        known = {n.number for n in self.known if n.kind == GENERATION}
        unknown = defence.vault.last_number() - len(known)
        self.closed = not unknown
        """Whether every generation that the vault ever had is known here."""
        if unknown:
            tell(
                f"{unknown} of the vault's generations keep no weights and cannot be named; as the "
                "suspect may be one of them, more is needed for an accusation"
            )

    @property
    def known(self) -> list[Named]:
        """All that may be named."""
        return [n for nest in self._nests for n in nest.names if n.kind not in NAMELESS]

    def trace(
        self, suspect: State, name: str = "the suspect", unknown: Collection[int] = ()
    ) -> Verdict:
        """Say which of the vault's networks a suspect was made from.

        Args:
            suspect: a state dict of the task's architecture, whatever prefix its names have.
            name: of the suspect, in messages. unknown: generations to judge without, as if their
                weights had been given up.

        Raises:
            CheckpointError: it is of another architecture, not finite, or zero throughout.
        """
        state = self._fitted(suspect, name, self._tell)
        looks = [_Look(nest, nest.frame.onto(state), unknown) for nest in self._nests]
        looks = [look for look in looks if look.someone]
        first = [look.group() for look in looks]
        nearest = min(first, key=lambda group: group.likeness.unexplained, default=None)
        finer = [
            look.group(self._drift(look.nest, group), True) if group is nearest else group
            for look, group in zip(looks, first, strict=True)
        ]
        return judge(first, finer, closed=self.closed and not unknown)

    def replicas(self, suspect: State, verdict: Verdict) -> dict[int, list[Accused]]:
        """Whose copies of the generations that a verdict names a suspect is of: see `sources`.

        Raises:
            SettingsError, KeyFileError: the vault marks replicas, and its key cannot be read.
        """
        vault, secret = self._defence.vault, secret_for(self._defence.settings)
        if not secret or not verdict.generations:
            return {}
        state = self._fitted(suspect, "the suspect", unsaid)
        return sources(vault, state, secret, verdict.generations, self._chain)

    def _fitted(self, suspect: State, name: str, tell: Say) -> dict[str, Tensor]:
        reference = whole_state(self._defence.task.model(0))
        fitted = fit_state(reference, suspect, name, self._layout.ties)
        for note in fitted.notes:
            tell(note)
        if not any(bool(fitted.state[counted].any()) for counted in self._names):
            raise CheckpointError(
                f"{name}: all weights that are compared are zero: look at the file"
            )
        return fitted.state

    def _drift(self, nest: _Nest, group: Group) -> Tensor:
        """Where fine-tuning carries a nest's newest networks, and those likest a suspect, (k, P).

        What drift does not share with others', a suspect's own source shows.
        """
        if not nest.newest:
            return nest.stacked[:0]
        starts: dict[Named, State | None] = {known.name: known.state for known in nest.newest}
        order = sorted(zip(group.likeness.score, group.names, strict=True), reverse=True)
        likely = [name for _, name in order if name.kind == GENERATION][:_LIKELY]
        starts = dict.fromkeys(likely) | starts
        for name, state in starts.items():
            if name not in nest.drifts:
                start = state or unpack(self._defence.vault.read_generation(name.number))
                trained = trained_on(self._defence.task, start)
                moved = nest.frame.own(trained) if trained else nest.stacked[:0]
                nest.drifts[name] = moved - nest.frame.own([start])
        return torch.cat([nest.drifts[name] for name in starts])

    # --- gathering -------------------------------------------------------------------------------

    def _gather(self) -> Iterator[_Nest]:
        """Basins with all that lies in them, then whatever lies alone."""
        vault = self._defence.vault
        basins: dict[int, list[Known]] = {}
        for basin, known in self._trained(self._members(), vault.entries("early")):
            basins.setdefault(basin, []).append(known)
        inside = [known for _, known in sorted(basins.items())]
        nests = [self._nest(known) for known in inside]
        centres = torch.stack([nest.stacked.mean(0) for nest in nests]) if nests else None
        alone: list[Known] = []
        for chunk in _chunks(self._released()):
            places = self._places(chunk, nests, centres)
            for known, (nest, vector) in zip(chunk, places, strict=True):
                if nest is None:
                    alone.append(known)
                else:
                    nest.add(known.name, vector)
                    nest.newest = [*nest.newest[-1:], known]
        for nest in nests:
            nest.__dict__.pop("stacked", None)  # more came since
        yield from nests
        yield from (
            self._hermitage(known, [others[0].state for others in inside]) for known in alone
        )

    def _members(self) -> list[Entry]:
        """The population, and those that it had before refreshes, or until it was put back."""
        vault = self._defence.vault
        others = {0, *(row["source"] for row in vault.sources())} - {vault.source}
        former = (vault.entries("member", source=number) for number in sorted(others))
        return [*vault.entries("member"), *(entry for entries in former for entry in entries)]

    def _trained(
        self, members: Sequence[Entry], early: Sequence[Entry]
    ) -> Iterator[tuple[int, Known]]:
        """Members and early checkpoints, each with its basin, in the frame of the generator."""
        settings, first = self._defence.settings.autoencoder, None
        if settings.align and members:
            newest = self._defence.vault.entries("member")
            first = self._read(fitted_members(newest, settings.newest_share)[0])
        seen: set[str] = set()
        for kind, entries in ((MEMBER, members), (EARLY, early)):
            for entry in entries:
                if entry.files["weights"] in self._generation_digests | seen:
                    continue  # one network under two names: it is called by the first
                seen.add(entry.files["weights"])
                state = self._read(entry)
                if first is not None:
                    state = align(first, state, self._chain)
                yield int(entry.info["basin"]), Known(Named(kind, entry.index), state)

    def _read(self, entry: Entry) -> dict[str, Tensor]:
        return unpack(self._defence.vault.read(entry))

    def _nest(self, inside: Sequence[Known]) -> _Nest:
        centre = mean_of([balance(known.state, self._chain) for known in inside])
        nest = _Nest(Frame(centre, self._chain, self._names))
        for known, vector in zip(inside, nest.frame.own([k.state for k in inside]), strict=True):
            nest.add(known.name, vector)
        nest.newest = list(inside[-2:])
        return nest

    @cached_property
    def _generation_digests(self) -> set[str]:
        """Digests of the weights of every generation that keeps them."""
        vault = self._defence.vault
        kept = set(vault.numbers(vault.retired))
        return {r.files["weights"] for r in vault.generations(unsaid) if r.number in kept}

    def _released(self) -> Iterator[Known]:
        """Generations that keep their weights; the base, where it is none of them."""
        vault = self._defence.vault
        for number in vault.numbers(vault.retired):
            try:
                state = unpack(vault.read_generation(number))
            except UnavailableError:
                raise
            except (VaultError, CheckpointError) as error:
                self._tell(f"generation {number} is left out: {error}")
                continue
            yield Known(Named(GENERATION, number), state)
        base = vault.entry("base")
        if base is not None and base.files.get("weights", "") not in {
            "",
            *self._generation_digests,
        }:
            yield Known(Named(BASE, 0), self._read(base))

    def _places(
        self, chunk: Sequence[Known], nests: Sequence[_Nest], centres: Tensor | None
    ) -> list[tuple[_Nest | None, Tensor]]:
        """The basin of each network, whose centre it is nearest to, None where it lies in none."""
        if centres is None:
            return [(None, torch.empty(0)) for _ in chunk]
        vectors = nests[0].frame.own([known.state for known in chunk])  # which knows no reference
        cosines = torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(centres).T
        nearest = [(float(row.max()), int(row.argmax())) for row in cosines]
        return [
            (nests[place] if cosine >= _NEAR else None, vector)
            for (cosine, place), vector in zip(nearest, vectors, strict=True)
        ]

    def _hermitage(self, known: Known, others: Sequence[Mapping[str, Tensor]]) -> _Nest:
        """The group of a network that lies in no basin, beside others that were aligned to it.

        Nothing is as near to it as networks of one basin are to each other, so the suspect has to
        be: half way from the nearest of independent trainings to the network itself.
        """
        frame = Frame(balance(known.state, self._chain), self._chain, self._names)
        nest = _Nest(frame)
        nest.add(known.name, frame.own([known.state])[0])
        for index, state in enumerate(others):
            nest.add(Named(UNRELEASED, index), frame.onto(state))
        for seed in range(_UNTRAINED):
            fresh = whole_state(self._defence.task.model(seed))
            nest.add(Named(UNTRAINED, seed), frame.onto(fresh))
        cosines = torch.cosine_similarity(nest.stacked[1:], nest.stacked[:1])
        nest.least = (1 + float(cosines.max())) / 2
        return nest


def _chunks(networks: Iterable[Known]) -> Iterator[list[Known]]:
    networks = iter(networks)
    while chunk := list(islice(networks, _CHUNK)):
        yield chunk


class _Look:
    """A suspect's vector beside the networks of a nest, those aside that nobody is to know."""

    def __init__(self, nest: _Nest, vector: Tensor, unknown: Collection[int]) -> None:
        self.nest, self._vector = nest, vector
        out = {Named(GENERATION, number) for number in unknown}
        self._kept = [place for place, name in enumerate(nest.names) if name not in out]

    @property
    def someone(self) -> bool:
        """Whether anybody is left who may be named."""
        return any(self.nest.names[place].kind not in NAMELESS for place in self._kept)

    def group(self, drift: Tensor | None = None, whole: bool = False) -> Group:
        """How like they are; `whole`: noise is measured by direction, in basins."""
        nest, kept = self.nest, self._kept
        networks = nest.stacked if len(kept) == len(nest.names) else nest.stacked[kept]
        matrices = nest.frame.matrices if whole and nest.newest else None
        frame = nest.frame
        found = compare(networks, self._vector, frame.tensor_of, drift, matrices, frame.scales)
        near = float(torch.cosine_similarity(self._vector, nest.vectors[0], 0))
        return Group(tuple(nest.names[place] for place in kept), found, near < nest.least)
