"""The generator of one task: codec, autoencoder and latent diffusion, fitted and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from g2d.core.types import Progress, State
from g2d.errors import CheckpointError, PopulationError
from g2d.generator.autoencoder import Span, WeightAutoencoder
from g2d.generator.diffusion import LatentDiffusion
from g2d.generator.fitting import Members, fit_autoencoder, fit_diffusion
from g2d.generator.guidance import Exposure, Repulsion, guided_sample
from g2d.settings import AutoencoderSettings, DiffusionSettings, GuidanceSettings, build, stored
from g2d.tasks.task import Task
from g2d.weights.checkpoints import pack, unpack, unpack_metadata
from g2d.weights.codec import Codec
from g2d.weights.symmetry import Coupling, align, couplings

FORMAT = "g2d-generator-2"


@dataclass(frozen=True)
class Generator:
    """Proposes parameters; it never judges them (gates and tables do)."""

    codec: Codec
    autoencoder: WeightAutoencoder
    diffusion: LatentDiffusion
    autoencoder_settings: AutoencoderSettings

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
    ) -> Generator:
        """Fit codec, autoencoder and diffusion model on a population.

        Args:
            states: K state dicts of the task's architecture. basins: the basin of each.
            seed: the same seed gives the same generator, byte for byte, on the same machine.
            resistance: (K, K), error of member j on attacks crafted on member i; lets the
                denoiser be conditioned on exposed sets.
            base: what the distance regulariser moves away from (the first member, if None).

        Raises:
            PopulationError: fewer than two members, or all equal.
            GenerationError: a fit diverged.
        """
        if len(states) < 2:
            raise PopulationError(
                f"a population of {len(states)} cannot be fitted; make at least two members"
            )
        if autoencoder.align:
            chain = hidden_units(task)
            states = [states[0], *(align(states[0], state, chain) for state in states[1:])]
        generator = torch.Generator().manual_seed(seed)
        codec = Codec.fit(states, autoencoder.scope)
        _check_rest(codec, states)
        V = torch.stack([codec.encode(state) for state in states]).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            span = Span.fit(V, basins)
            count = len(set(basins))
            coder = WeightAutoencoder(span, autoencoder.latent, autoencoder.width, count)
            latent = LatentDiffusion(coder.latent, diffusion)
        with torch.no_grad():
            origin = codec.encode(base or states[0]).float()
            members = Members(span.project(V), torch.as_tensor(list(basins)), resistance, origin)
            coder.learn_basins(members.coordinates, members.basins)
        del V
        fit_autoencoder(
            coder, members, codec, task, autoencoder, generator,
            lambda done, total: progress("autoencoder", done, total),
        )  # fmt: skip
        fit_diffusion(
            latent, coder, members, autoencoder, diffusion, generator,
            lambda done, total: progress("diffusion", done, total),
        )  # fmt: skip
        return cls(codec, coder.requires_grad_(False), latent.requires_grad_(False), autoencoder)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, exposed: Tensor | None = None
    ) -> Tensor:
        """Draw vectors (count, P) by one diffusion inference, without guidance.

        Args:
            exposed: vectors (m, P) of the exposed set to condition on, or None.
        """
        condition = None if exposed is None else self.condition(exposed).expand(count, -1)
        return self.autoencoder.settle(self.diffusion.sample(count, generator, condition))

    @torch.no_grad()
    def condition(self, exposed: Tensor) -> Tensor:
        """Embed an exposed set (m, P), of which the last eight count, as (1, width)."""
        latents = self.autoencoder.encode(exposed[-8:].float())
        return self.diffusion.denoiser.embed(latents)

    def propose(
        self,
        task: Task,
        exposures: Sequence[Exposure],
        settings: GuidanceSettings,
        generator: torch.Generator,
        tick: Callable[[int, int], None] = lambda *_: None,
    ) -> Tensor:
        """Draw one candidate (P,) that repels the attacks of the exposures in memory.

        A candidate whose guidance diverged is not finite; the gates say so.
        """
        objective = Repulsion(task, self.codec, exposures, settings, generator)
        condition = None
        if settings.conditioned and exposures:
            condition = self.condition(torch.stack([e.v for e in exposures]))
        return guided_sample(
            self.autoencoder, self.diffusion, objective, generator, condition, tick
        )

    def to_bytes(self) -> bytes:
        """Serialise as safetensors; the settings travel in its metadata."""
        tensors = {f"rest.{n}": t for n, t in self.codec.rest.items()}
        tensors |= {f"autoencoder.{n}": t for n, t in self.autoencoder.state_dict().items()}
        tensors |= {f"diffusion.{n}": t for n, t in self.diffusion.state_dict().items()}
        return pack(
            tensors,
            {
                "format": FORMAT,
                "codec": json.dumps(self.codec.describe()),
                "autoencoder": json.dumps(stored(self.autoencoder_settings)),
                "diffusion": json.dumps(stored(self.diffusion.settings)),
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Generator:
        """Read what `to_bytes` wrote.

        Raises:
            CheckpointError: the file is no generator, or of another version.
        """
        tensors = unpack(data, "generator")
        metadata = unpack_metadata(data)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"the generator file has format {metadata.get('format')!r}, this g2d reads "
                f"{FORMAT!r}; run `g2d fit` again"
            )
        parts = {
            part: {n.split(".", 1)[1]: t for n, t in tensors.items() if n.startswith(part + ".")}
            for part in ("rest", "autoencoder", "diffusion")
        }
        coder_settings = build(
            AutoencoderSettings, json.loads(metadata["autoencoder"]), "generator", stored=True
        )
        diffusion_settings = build(
            DiffusionSettings, json.loads(metadata["diffusion"]), "generator", stored=True
        )
        codec = Codec.restore(json.loads(metadata["codec"]), parts["rest"])
        state = parts["autoencoder"]
        span = Span(state["mean"], state["basis"], state["spread"])
        coder = WeightAutoencoder(
            span, len(state["shift"]), coder_settings.width, len(state["centres"])
        )
        coder.load_state_dict(state)
        diffusion = LatentDiffusion(coder.latent, diffusion_settings)
        diffusion.load_state_dict(parts["diffusion"])
        return cls(
            codec, coder.requires_grad_(False), diffusion.requires_grad_(False), coder_settings
        )


def _check_rest(codec: Codec, states: Sequence[State]) -> None:
    """Outside the scope all members must agree, or a generation would be pieced together."""
    for name, tensor in codec.rest.items():
        if tensor.is_floating_point() and any(not torch.equal(s[name], tensor) for s in states):
            raise PopulationError(
                f"members differ in {name!r}, which is out of scope; widen [autoencoder] scope, or "
                "make a population with that scope"
            )


def hidden_units(task: Task) -> tuple[Coupling, ...]:
    """The task's verified chain of hidden units, or () where alignment is the identity."""
    return couplings(task.model(0), task.splits.guide.x[:8])
