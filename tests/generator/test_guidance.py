from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from drawing import exposure, generator
from g2d.errors import SettingsError
from g2d.generator.guidance import Objective, guided_latent
from g2d.generator.terms import Batch, CleanTerm, RobustTerm, StaleTerm, Term, TermContext
from g2d.settings import GuidanceSettings
from g2d.tasks.splits import Split


def test_guidance_descends_its_own_objective(defence):
    generation = defence.generation()
    codec = defence.generator.codec
    v = codec.encode(generation.state)
    e = exposure(defence.task, v)
    settings = GuidanceSettings(batch=64, latent_steps=30, latent_rate=0.1, prior=0.0)
    objective = Objective(defence.task, codec, [e], settings, generator())
    space = defence.generator.space
    z = space.encode(v)
    before = sum(float(objective(space.decode(z)).detach()) for _ in range(10))
    after_z = guided_latent(space, objective, z)
    after = sum(float(objective(space.decode(after_z))) for _ in range(10))
    assert after < before


def test_guidance_reads_the_guide_split_alone(defence):
    """With every other split destroyed, the candidate is the same: no judge's data is seen."""
    splits = defence.task.splits
    ruined = {
        name: Split(torch.zeros_like(getattr(splits, name).x), getattr(splits, name).y)
        for name in ("train", "gate", "test")
    }
    other = dataclasses.replace(defence.task, splits=dataclasses.replace(splits, **ruined))
    recent = [defence.exposure(1)]
    settings = defence.settings.guidance
    first = defence.generator.propose(defence.task, recent, settings, generator(4))
    second = defence.generator.propose(other, recent, settings, generator(4))
    assert torch.equal(first, second)


def test_attacks_are_drawn_most_from_what_hurts(defence):
    v = defence.generator.codec.encode(defence.generation().state)
    exposures = [exposure(defence.task, v, 1), exposure(defence.task, v, 2)]
    objective = Objective(
        defence.task, defence.generator.codec, exposures, GuidanceSettings(), generator()
    )
    (stale,) = (term for term in objective.terms if isinstance(term, StaleTerm))
    stale.running = torch.tensor([0.1, 3.0])
    clean = Batch(*objective.clean.draw())
    of = torch.cat([stale.inputs(v, clean).of for _ in range(20)])
    assert float((of == 1).float().mean()) > 0.95


class Fixed(Term):
    """A term that notes what it is given, and costs what it is told."""

    def __init__(self, weight, cost, own=None, adaptive=False):
        self.weight, self.cost, self.own, self.adaptive = weight, cost, own, adaptive
        self.seen, self.observed = [], []

    def inputs(self, v, clean):
        return clean if self.own is None else self.own

    def __call__(self, v, batch):
        self.seen.append(batch)
        return self.cost(v, batch)

    def observe(self, batch):
        self.observed.append(batch)


def five(defence):
    split = defence.task.splits.guide.take(range(5))
    return Batch(split.x, split.y)


def objective_of(defence, terms):
    made = Objective(
        defence.task, defence.generator.codec, [], GuidanceSettings(batch=16), generator()
    )
    made.terms = terms
    return made


def test_the_objective_is_the_weighted_sum_of_its_terms(defence):
    v = defence.generator.codec.encode(defence.generation().state).requires_grad_(True)
    loss = defence.task.loss
    own = five(defence)
    clean = Fixed(1.0, lambda v, batch: loss(batch.logits, batch.y))
    other = Fixed(0.5, lambda v, batch: loss(batch.logits, batch.y), own)
    prior = Fixed(0.25, lambda v, batch: v.square().mean())
    silent = Fixed(0.0, lambda v, batch: v.sum() / 0)
    value = objective_of(defence, [clean, other, prior, silent])(v)
    model = defence.generation().model()
    seen = clean.seen[0]
    by_hand = loss(model(seen.x), seen.y) + 0.5 * loss(model(own.x), own.y)
    torch.testing.assert_close(value, by_hand + 0.25 * v.square().mean())
    assert [len(seen.x), len(other.seen[0].x)] == [16, 5]
    assert prior.seen[0].logits is seen.logits  # the clean batch is run once, for all
    assert not silent.seen
    (gradient,) = torch.autograd.grad(value, v)
    assert bool(torch.isfinite(gradient).all())
    assert not prior.observed[0].logits.requires_grad


def test_one_forward_pass_runs_what_all_terms_ask_for(defence, monkeypatch):
    v = defence.generator.codec.encode(defence.generation().state)
    own = five(defence)
    terms = [Fixed(1.0, lambda v, batch: batch.logits.sum(), own) for _ in range(3)]
    objective, ran = objective_of(defence, terms), []
    real = TermContext.logits
    monkeypatch.setattr(
        TermContext, "logits", lambda self, v, x: ran.append(len(x)) or real(self, v, x)
    )
    objective(v)
    assert ran == [16 + 3 * 5]


def test_particles_are_compared_on_one_batch_without_what_is_crafted_on_them(defence):
    cheap = Fixed(1.0, lambda v, batch: v.abs().sum())
    crafted = Fixed(1.0, lambda v, batch: v.abs().sum(), adaptive=True)
    objective = objective_of(defence, [cheap, crafted])
    v = defence.generator.codec.encode(defence.generation().state)
    assert objective.best(lambda z: z * v, torch.tensor([[3.0], [0.5], [torch.nan]])) == 1
    assert len(cheap.seen) == 3
    assert len({id(batch.x) for batch in cheap.seen}) == 1
    assert not crafted.seen
    assert not cheap.observed  # nothing was taken as a step


def test_the_terms_are_what_settings_ask_for(defence):
    def kinds(exposures, **changes):
        settings = dataclasses.replace(GuidanceSettings(memory=1), **changes)
        objective = Objective(
            defence.task, defence.generator.codec, exposures, settings, generator()
        )
        return {type(term): term.weight for term in objective.terms if term.weight}

    recent = [defence.exposure(1)]
    assert kinds(recent, mu=3.0) == {CleanTerm: 1.0, StaleTerm: 3.0}
    assert kinds([], robust_weight=0.5) == {CleanTerm: 1.0, RobustTerm: 0.5}
    assert kinds(recent, memory=0) == {CleanTerm: 1.0}


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere:term", "no module 'nowhere'"), ("g2d.generator.terms:TERMS", "not a function")],
)
def test_a_term_that_cannot_be_found_fails_before_the_work(defence, name, said):
    defence.settings = defence.settings.override(guidance__extra=(name,))
    with pytest.raises(SettingsError, match=said):
        defence.generate()
    assert defence.vault.rejections() == []


def test_a_loss_that_changes_its_arguments_spoils_no_other_term(defence):
    """The clean batch is everybody's: labels that one term zeroed, all would learn."""

    def spoils(logits, y):
        return F.cross_entropy(logits, y.zero_())

    task = dataclasses.replace(defence.task, loss=spoils)
    settings = defence.settings.guidance
    model = task.model(0).eval()
    term = CleanTerm(TermContext(task, None, [], settings, torch.Generator(), model))
    y = torch.tensor([3, 1])
    term(torch.zeros(1), Batch(torch.zeros(2, 1), y, logits=torch.randn(2, 10)))
    assert y.tolist() == [3, 1]
