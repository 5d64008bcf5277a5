"""The generator of one task: codec and latent space, fitted and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from g2d.core.devices import CPU
from g2d.core.types import Logits, Progress, State
from g2d.errors import CheckpointError, PopulationError
from g2d.generator.exposure import Exposure
from g2d.generator.guidance import Objective, guided_sample
from g2d.generator.latent_space import DEFAULT, FitPlan, LatentSpace, Population, find_space
from g2d.generator.out_of_core import room
from g2d.protect.watermark.mark import Mark
from g2d.settings import AutoencoderSettings, DiffusionSettings, GuidanceSettings
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.layouts import layout_of
from g2d.weights.checkpoints import pack, unpack, unpack_metadata
from g2d.weights.codec import Codec
from g2d.weights.layout import same_bits
from g2d.weights.symmetry import Coupling, align, couplings

FORMAT = "g2d-generator-2"


@dataclass(frozen=True)
class Generator:
    """Proposes parameters; it never judges them (gates and tables do).

    `kind` is the name by which settings find the class of `space`; `bank`, if there is one, holds
    attacks on members, which polish trains on.
    """

    space: LatentSpace
    kind: str = DEFAULT
    bank: Split | None = None
    _moved: dict[str, LatentSpace] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def fit(
        cls,
        task: Task,
        states: Sequence[State],
        basins: Sequence[int],
        autoencoder: AutoencoderSettings,
        diffusion: DiffusionSettings,
        *,
        seed: int,
        resistance: Tensor | None = None,
        base: State | None = None,
        progress: Progress = lambda *_: None,
        kind: str = DEFAULT,
        retired: Collection[int] = (),
    ) -> Generator:
        """Fit codec and latent space on a population.

        Args:
            states: K state dicts of the task's architecture. basins: the basin of each.
            seed: the same seed gives the same generator, byte for byte, on the same machine.
            resistance: (K, K), error of member j on attacks crafted on member i; lets the
                denoiser be conditioned on exposed sets.
            base: what the distance regulariser moves away from (the first member, if None).
            kind: the latent space, by the name that `[generator] space` takes.
            retired: basins that no candidate begins in; their members only tell what is of them.

        Raises:
            PopulationError: fewer than two members, or all equal.
            GenerationError: a fit diverged.
            SettingsError: there is no such kind of space.
        """
        if len(states) < 2:
            raise PopulationError(
                f"a population of {len(states)} cannot be fitted; make at least two members"
            )
        layout = layout_of(task)
        if autoencoder.align:
            chain = hidden_units(task, layout.in_scope(autoencoder.scope))
            states = [states[0], *(align(states[0], state, chain) for state in states[1:])]
        codec = Codec.fit(states, autoencoder.scope, layout)
        _check_rest(layout.stays(autoencoder.scope), states)
        vectors = room(len(states), codec.size)
        for row, state in zip(vectors, states, strict=True):
            row.copy_(codec.encode(state))
        population = Population(
            task,
            codec,
            vectors,
            torch.as_tensor(list(basins)),
            codec.encode(base or states[0]).float(),
            resistance,
        )
        plan = FitPlan(autoencoder, diffusion, seed, progress, tuple(sorted(retired)))
        return cls(find_space(kind).fit(population, plan), kind)

    @property
    def codec(self) -> Codec:
        """The map between state dicts and vectors (P,)."""
        return self.space.codec

    def sample(
        self, count: int, generator: torch.Generator, exposed: Tensor | None = None
    ) -> Tensor:
        """Draw vectors (count, P) without guidance.

        Args:
            exposed: vectors (m, P) of the exposed set to condition on, or None.
        """
        return self.space.settle(self.space.draw(count, generator, exposed))

    def propose(
        self,
        task: Task,
        exposures: Sequence[Exposure],
        settings: GuidanceSettings,
        generator: torch.Generator,
        tick: Callable[[int, int], None] = lambda *_: None,
        mark: Mark | None = None,
        begin: Sequence[int] = (),
        base: Logits | None = None,
    ) -> Tensor:
        """Draw one candidate (P,) that repels the attacks of the exposures in memory.

        A candidate whose guidance diverged is not finite; the gates say so. It keeps the `mark`,
        and begins in one of the basins `begin` where the space can be told. `base`: the base's
        logits, which `[guidance] base_weight` asks for.
        """
        objective = Objective(
            task, self.codec, exposures, settings, generator, self.bank, mark, begin, base
        )
        exposed = None
        if settings.conditioned and exposures:
            exposed = torch.stack([e.v for e in exposures])
        space = self.space if task.device == CPU else self._on(task.device)
        return guided_sample(space, objective, generator, exposed, tick).cpu()

    def _on(self, device: str) -> LatentSpace:
        """The space on a device, moved there once."""
        if device not in self._moved:
            self._moved.clear()
            self._moved[device] = self.space.placed(device)
        return self._moved[device]

    def encode(self, states: Sequence[State]) -> Tensor:
        """Latents (n, d) of state dicts."""
        vectors = torch.stack([self.codec.encode(state) for state in states])
        with torch.no_grad():
            return self.space.encode(vectors.float())

    def to_state(self, v: Tensor) -> dict[str, Tensor]:
        """The state dict of a vector (P,)."""
        return self.space.to_state(v)

    def to_bytes(self) -> bytes:
        """Serialise as safetensors; the settings travel in its metadata."""
        rest = {f"rest.{name}": tensor for name, tensor in self.codec.rest.items()}
        described = {"format": FORMAT, "codec": json.dumps(self.codec.describe())}
        if self.kind != DEFAULT:
            described["space"] = self.kind
        if self.codec.ties:
            described["ties"] = json.dumps(self.codec.ties)
        kept = {} if self.bank is None else {"bank.x": self.bank.x, "bank.y": self.bank.y}
        return pack(rest | kept | self.space.tensors(), described | self.space.describe())

    @classmethod
    def from_bytes(cls, data: bytes, kind: str = DEFAULT) -> Generator:
        """Read what `to_bytes` wrote; `kind`: the latent space that the settings name.

        A class is never imported because the file names it: the file may come from elsewhere.

        Raises:
            CheckpointError: it is not a generator, or of another version or space.
            SettingsError: there is no such kind of space.
        """
        tensors = unpack(data, "generator")
        described = unpack_metadata(data)
        if described.get("format") != FORMAT:
            raise CheckpointError(
                f"the generator file has format {described.get('format')!r}, this g2d reads "
                f"{FORMAT!r}; run `g2d fit` again"
            )
        if (fitted := described.get("space", DEFAULT)) != kind:
            raise CheckpointError(
                f"the generator was fitted with the latent space {fitted!r}, the settings name"
                f" {kind!r}; run `g2d fit` again, or put [generator] space back"
            )
        rest = {n[len("rest.") :]: t for n, t in tensors.items() if n.startswith("rest.")}
        own = {n: t for n, t in tensors.items() if not n.startswith(("rest.", "bank."))}
        bank = (
            Split(tensors["bank.x"], tensors["bank.y"])
            if {"bank.x", "bank.y"} <= tensors.keys()
            else None
        )
        ties = json.loads(described.get("ties", "{}"))
        codec = Codec.restore(json.loads(described["codec"]), rest, ties)
        return cls(find_space(kind).restore(codec, own, described), kind, bank)


def _check_rest(stays: frozenset[str], states: Sequence[State]) -> None:
    """Outside the scope all members must agree, or a generation would be pieced together."""
    first, *others = states
    for name in sorted(stays):
        if any(not same_bits(state[name], first[name]) for state in others):
            raise PopulationError(
                f"members differ in {name!r}, which is out of scope or stays (frozen, constant): "
                "widen [autoencoder] scope, naming it exactly, or make a population with that scope"
            )


def hidden_units(task: Task, names: frozenset[str] | None = None) -> tuple[Coupling, ...]:
    """The task's verified chain of hidden units, or () where alignment is the identity.

    Args:
        names: what may move; units whose tensors lie outside cannot be permuted. None: all.
    """
    chain = couplings(task.model(0), task.splits.guide.x[:8])
    return chain if names is None else tuple(c for c in chain if names.issuperset(c.tensors))
