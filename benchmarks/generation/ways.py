"""Ways of making the next parameters: one function each. Each returns state dicts and CPU seconds.

A way is either drawn independently (controls) or in a chain, each network exposed to the attacker
before the next is made. Nothing here scores anything.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from g2d.attacks.pools import craft_pool
from g2d.core.seeds import seed_of
from g2d.core.types import State
from g2d.defence.defence import Defence
from g2d.defence.members import fitted_members
from g2d.generator import Exposure, Generator
from g2d.generator.diffusion_space import DiffusionSpace
from g2d.settings import GuidanceSettings, HardenSettings, PopulationSettings
from g2d.tasks.inference import load_model
from g2d.tasks.splits import Split
from g2d.training.loop import Batches, train
from g2d.training.population import TrainingJob, run_job
from g2d.training.recipes import HardenedTraining, fgsm_light, stale
from g2d.weights.checkpoints import unpack
from g2d.weights.symmetry import permute

Made = tuple[list[State], float]


class Maker:
    """What every way needs: the defence, its members as vectors, and a seed."""

    def __init__(self, defence: Defence, seed: int) -> None:
        self.defence, self.seed = defence, seed
        self.task, self.generator = defence.task, defence.generator
        # The members that the generator was fitted on: every way starts from the same ones.
        newest = defence.settings.autoencoder.newest_share
        entries = fitted_members(defence.vault.entries("member"), newest)
        self.members: list[State] = [unpack(defence.vault.read(entry)) for entry in entries]
        self.basins = torch.tensor([int(entry.info["basin"]) for entry in entries])
        self.V = torch.stack([self.generator.codec.encode(state) for state in self.members])
        base = defence.vault.entry("base")
        assert base is not None
        self.base: State = unpack(defence.vault.read(base))

    def source(self, name: str) -> torch.Generator:
        """A random source of its own for each way."""
        return torch.Generator().manual_seed(seed_of(self.seed, "benchmark", name))

    def decoded(self, vectors: Tensor) -> list[State]:
        """State dicts of vectors (n, P)."""
        return [self.generator.to_state(v) for v in vectors]

    def model(self, state: State) -> torch.nn.Module:
        """A frozen model."""
        return load_model(self.task, state)

    # --- drawn independently ---

    def permutation(self, count: int) -> Made:
        """The base with its hidden units in random order: the same function."""
        g, chain = self.source("permutation"), self.defence._judge.chain
        return _timed(
            count,
            lambda: permute(
                self.base, chain, [torch.randperm(c.units, generator=g) for c in chain]
            ),
        )

    def noise(self, count: int) -> Made:
        """A random member plus Gaussian noise of a tenth of each tensor's magnitude."""
        g = self.source("noise")

        def one() -> State:
            state = self.members[int(torch.randint(len(self.members), (1,), generator=g))]
            return {
                n: t + 0.1 * t.square().mean().sqrt() * torch.randn(t.shape, generator=g)
                for n, t in state.items()
            }

        return _timed(count, one)

    def interpolation(self, count: int) -> Made:
        """A random point between two random members of one basin."""
        g = self.source("interpolation")

        def one() -> State:
            first, second = self._mates(2, g)
            share = float(torch.rand((), generator=g))
            return self.generator.to_state(torch.lerp(self.V[first], self.V[second], share))

        return _timed(count, one)

    def soup(self, count: int) -> Made:
        """The mean of four random members of one basin (model soup, arXiv 2203.05482)."""
        g = self.source("soup")
        return _timed(count, lambda: self.generator.to_state(self.V[self._mates(4, g)].mean(0)))

    def _mates(self, count: int, g: torch.Generator) -> Tensor:
        known = self.basins.unique()
        basin = known[int(torch.randint(len(known), (1,), generator=g))]
        inside = (self.basins == basin).nonzero().flatten()
        return inside[torch.randperm(len(inside), generator=g)[:count]]

    def gaussian(self, count: int) -> Made:
        """One Gaussian fitted to the members' latents, decoded by the same decoder."""
        g = self.source("gaussian")
        with torch.no_grad():
            z = self.generator.encode(self.members)
            mean, centred = z.mean(0), z - z.mean(0)

            def one() -> State:
                weights = torch.randn(len(z), generator=g) / (len(z) - 1) ** 0.5
                v = self.generator.space.decode(mean + weights @ centred)
                return self.generator.to_state(v)

            return _timed(count, one)

    def unguided(self, count: int) -> Made:
        """Plain diffusion samples: one inference each."""
        g = self.source("unguided")
        began = time.process_time()
        states = self.decoded(self.generator.sample(count, g))
        return states, (time.process_time() - began) / count

    def wide(self, count: int) -> Made:
        """The same, fitted on mixtures twice as wide: farther from the members, less accurate."""
        g, space = self.source("wide"), self.generator.space
        assert isinstance(space, DiffusionSpace), "only diffusion is fitted on mixtures"
        wide = Generator(space.refit(self.V, self.basins.tolist(), 2.0, self.seed, g))
        began = time.process_time()
        states = self.decoded(wide.sample(count, g))
        return states, (time.process_time() - began) / count

    def seeds(self, count: int) -> Made:
        """Independent trainings of the base's recipe."""
        settings = dataclasses.replace(self.defence.settings.population, recipe="seeds")
        return self._jobs(count, settings, None, "seeds")

    def forks(self, count: int) -> Made:
        """Short clean fine-tunes of the base, what weight diffusion papers train on."""
        settings = dataclasses.replace(self.defence.settings.population, recipe="forks")
        entry = self.defence.vault.entry("base")
        assert entry is not None
        return self._jobs(count, settings, self.defence.vault.read(entry), "forks")

    def _jobs(
        self, count: int, settings: PopulationSettings, start: bytes | None, recipe: str
    ) -> Made:
        """Train members that are nobody else's (indices of their own); attacks are not needed."""
        settings = dataclasses.replace(settings, pool=1, pool_steps=1)
        first = 10**6 * (1 + self.seed)
        jobs = iter(
            TrainingJob(self.task, "member", first + i, 0, recipe, settings, start, ())
            for i in range(count)
        )
        return _timed(count, lambda: unpack(run_job(next(jobs)).weights))

    # --- in a chain: each is exposed before the next is made ---

    def expose(self, state: State, number: int, settings: GuidanceSettings) -> Exposure:
        """Craft a network's attacks on the guide split, as a rotation would."""
        model, split = self.model(state), self.task.splits.guide
        seed = seed_of(self.seed, "expose", number)
        x, index = craft_pool(self.task, model, split, settings.pool, settings.pool_steps, seed)
        guide = Split(x, split.y[index])
        unused = guide.take(range(1))
        return Exposure(number, self.generator.codec.encode(state), guide, unused, unused)

    def chain(
        self, name: str, count: int, propose: Callable[[list[Exposure]], Tensor],
        settings: GuidanceSettings,
    ) -> Made:  # fmt: skip
        """A chain from the base: propose, expose, and so on. CPU seconds include the attacks."""
        states, exposures, spent = [self.base], [], 0.0
        for number in range(count):
            began = time.process_time()
            exposures.append(self.expose(states[-1], number, settings))
            states.append(self.generator.to_state(propose(exposures[-settings.memory :])))
            spent += time.process_time() - began
        return states, spent / count

    def guided(self, count: int) -> Made:
        """Guidance in the reverse process and on the latent, without polish."""
        settings = dataclasses.replace(self.defence.settings.guidance, polish_steps=0)
        g = self.source("guided")
        return self.chain(
            "guided", count, lambda e: self.generator.propose(self.task, e, settings, g), settings
        )

    def conditioned(self, count: int) -> Made:
        """Amortised repulsion: one inference, conditioned on the exposed set; no attack needed."""
        g = self.source("conditioned")
        states: list[State] = [self.base]
        began = time.process_time()
        for _ in range(count):
            exposed = torch.stack([self.generator.codec.encode(s) for s in states[-8:]])
            states += self.decoded(self.generator.sample(1, g, exposed))
        return states, (time.process_time() - began) / count

    def retrained(
        self, exposures: list[Exposure], fork: bool, index: int, steps: int, harden: bool = False
    ) -> Made:
        """Train on clean data and on the same exposures' attacks: the honest rival.

        A fresh seed, or a fork of the base; the optimiser, batch, augmentation and learning rate
        are those of the population, on train plus guide data.
        """
        s = self.defence.settings.population
        began = time.process_time()
        model = self.task.placed(self.task.model(seed_of(self.seed, "retrained", index)))
        if fork:
            model.load_state_dict(self.base)
        splits = self.task.splits
        clean = Split(
            torch.cat([splits.train.x, splits.guide.x]), torch.cat([splits.train.y, splits.guide.y])
        )
        batches = Batches(self.task, clean, s.batch, self.source(f"retrained {fork} {index}"))
        budget = s.light_eps * self.task.eps if harden else 0.0
        extra = (stale, *([partial(fgsm_light, budget)] if budget else []))
        course = HardenedTraining(self.task, HardenSettings(), batches, steps, seed=0, extra=extra,
                        pools=[e.guide for e in exposures])  # fmt: skip
        train(model, course, steps=steps, rate=s.rate)
        state = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}
        self.expose(state, 10**6 + index, self.defence.settings.guidance)  # its share of attacks
        return [state], time.process_time() - began


def _timed(count: int, one: Callable[[], State]) -> Made:
    began = time.process_time()
    states = [one() for _ in range(count)]
    return states, (time.process_time() - began) / count


__all__ = ["Generator", "Made", "Maker"]
