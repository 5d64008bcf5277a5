"""Polish: the joint attack on the candidate's basin, and the attacks that members keep."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.func import functional_call

from drawing import exposure, generator
from g2d.defence.members import fit_generator, fitted_members, identity_of, read_base
from g2d.errors import SettingsError
from g2d.generator import Generator
from g2d.generator.guidance import Objective, polish
from g2d.generator.terms import BankTerm, Batch, JointTerm
from g2d.settings import GuidanceSettings
from g2d.tasks.inference import predict
from g2d.weights.checkpoints import unpack


def objective_of(defence, exposures, bank=None, **changes):
    settings = dataclasses.replace(GuidanceSettings(batch=64, memory=8), **changes)
    codec = defence.generator.codec
    return Objective(defence.task, codec, exposures, settings, generator(), bank)


def kinds(objective):
    return {type(term): term.weight for term in objective.terms}


def wrong(defence, v, batch):
    model = defence.task.model(0).eval()
    run = lambda x: functional_call(model, defence.generator.codec.tensors(v), (x,))  # noqa: E731
    return float((predict(run, batch.x).argmax(1) != batch.y).float().mean())


def test_terms_of_polish_are_there_for_polish_alone(defence):
    v = defence.generator.codec.encode(defence.generation().state)
    bank = defence.task.splits.train.take(range(20))
    asked = objective_of(defence, [exposure(defence.task, v)], bank, joint_weight=2, bank_weight=3)
    assert not {JointTerm, BankTerm} & set(kinds(asked))
    polishing = asked.for_polish([0])
    assert kinds(polishing) == kinds(asked) | {BankTerm: 3, JointTerm: 2}
    assert not {JointTerm, BankTerm} & set(kinds(asked))  # the objective itself stays
    assert JointTerm not in kinds(asked.for_polish([]))  # a basin that nobody has seen
    nothing = objective_of(defence, [exposure(defence.task, v)])
    assert kinds(nothing.for_polish([0])) == kinds(nothing)


def test_a_weight_for_attacks_that_nobody_kept_is_an_error(defence):
    defence.settings = defence.settings.override(guidance__bank_weight=1.0)
    with pytest.raises(SettingsError, match=r"set \[generator\] bank and run `g2d fit`"):
        defence.generate()
    assert defence.vault.live() == max(defence.vault.exposures())


def test_the_joint_attack_wins_on_what_it_is_crafted_on_and_polish_unlearns_it(defence):
    v = defence.generator.codec.encode(defence.generation().state)
    exposures = [exposure(defence.task, v, 1), exposure(defence.task, v * 1.01, 2)]
    changes = {"joint_weight": 4.0, "joint_pool": 200, "polish_steps": 120, "polish_rate": 0.03}
    asked = objective_of(defence, exposures, mu=0.0, **changes)
    polishing = asked.for_polish([0, 1])
    (joint,) = (term for term in polishing.terms if isinstance(term, JointTerm))
    clean = Batch(*asked.clean.draw())
    attacked = joint.inputs(v, clean)
    assert len(attacked.y) == len(clean.y)
    guide, eps = defence.task.splits.guide.x.flatten(1), defence.task.eps
    moved = torch.cdist(joint._attacks.x.flatten(1), guide, p=torch.inf).amin(1)
    assert float(moved.max()) <= eps + 1e-6
    before = wrong(defence, v, joint._attacks)
    assert before > 0.3
    after = wrong(defence, polish(polishing, v), joint._attacks)
    assert after < before / 2


def test_mates_are_the_exposures_of_the_same_basin(defence):
    space = defence.generator.space
    entries = fitted_members(
        defence.vault.entries("member"), defence.settings.autoencoder.newest_share
    )
    vectors = [space.codec.encode(unpack(defence.vault.read(e))) for e in entries]
    basins = [int(entry.info["basin"]) for entry in entries]
    for place, v in enumerate(vectors):
        same = [i for i, basin in enumerate(basins) if basin == basins[place]]
        assert space.mates(v, vectors) == same


def test_the_bank_is_drawn_from_members_and_kept_in_the_generator(defence):
    settings = defence.settings.override(generator__bank=40, diffusion__steps=1)
    entries = fitted_members(defence.vault.entries("member"), settings.autoencoder.newest_share)
    made = fit_generator(
        defence.task, defence.vault, settings, entries, read_base(defence.vault), lambda *_: None
    )
    assert len(made.bank) >= 40
    again = Generator.from_bytes(made.to_bytes())
    assert torch.equal(again.bank.x, made.bank.x)
    assert torch.equal(again.bank.y, made.bank.y)
    assert again.to_bytes() == made.to_bytes()
    plain = settings.override(generator__bank=0)
    assert identity_of(entries, settings) != identity_of(entries, plain)
    guidance = dataclasses.replace(defence.settings.guidance, polish_steps=2, bank_weight=1.0)
    with_it = again.propose(defence.task, [], guidance, generator(1))
    unweighted = dataclasses.replace(guidance, bank_weight=0.0)
    without = again.propose(defence.task, [], unweighted, generator(1))
    assert not torch.equal(with_it, without)
