"""The term that keeps the base's answers while a candidate is guided and polished."""

import dataclasses

import pytest
import torch

from drawing import generator
from g2d.defence.members import read_base
from g2d.generator.guidance import Objective
from g2d.generator.terms import BaseTerm, Batch
from g2d.settings import GuidanceSettings
from g2d.tasks.inference import load_model
from g2d.weights.checkpoints import unpack


def objective_of(defence, base, **changes):
    settings = dataclasses.replace(GuidanceSettings(batch=32), **changes)
    codec = defence.generator.codec
    return Objective(defence.task, codec, [], settings, generator(), base=base)


def value(defence, objective, v):
    (term,) = [term for term in objective.terms if isinstance(term, BaseTerm)]
    split = defence.task.splits.guide
    batch = term.inputs(v, Batch(split.x[:32], split.y[:32]))
    assert not torch.equal(batch.x, split.x[:32]), "mixtures"
    state = defence.generator.to_state(v)
    with torch.no_grad():
        logits = load_model(defence.task, state)(batch.x)
    return float(term(v, dataclasses.replace(batch, logits=logits)))


def test_whoever_answers_as_the_base_does_has_nothing_to_learn_of_it(defence):
    state = read_base(defence.vault)
    base, codec = load_model(defence.task, state), defence.generator.codec
    asked = objective_of(defence, base, base_weight=2.0)
    assert [term.weight for term in asked.terms if isinstance(term, BaseTerm)] == [2.0]
    own = codec.encode(state).float()
    member = unpack(defence.vault.read(defence.vault.entries("member")[0]))
    other = codec.encode(member).float()
    assert value(defence, asked, own) == pytest.approx(0.0, abs=1e-5)
    assert value(defence, asked, other) > 1e-4


def test_it_is_off_unless_it_is_asked_for_and_asks_for_the_base(defence):
    base = load_model(defence.task, read_base(defence.vault))
    assert not [t for t in objective_of(defence, base).terms if isinstance(t, BaseTerm)]
    with pytest.raises(AssertionError, match="gives the base"):
        objective_of(defence, None, base_weight=1.0)


def test_a_vault_draws_with_it(defence):
    defence.settings = defence.settings.override(
        guidance__base_weight=1.0, guidance__polish_steps=2, guidance__latent_steps=1,
        guidance__reverse_steps=1, guidance__particles=2, gates__accuracy_drop=1.0,
        gates__class_drop=1.0, gates__stale_asr=1.0, gates__distance=0.0,
    )  # fmt: skip
    assert defence.generate()
