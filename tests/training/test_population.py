from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import g2d
from g2d.attacks.pools import craft_pool, pack_pool, unpack_pool
from g2d.core.engine import LocalEngine, SerialEngine
from g2d.errors import CheckpointError, PopulationError, VaultError
from g2d.settings import Settings
from g2d.tasks.inference import accuracy
from g2d.training.loop import train
from g2d.training.population import build_population
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack, unpack

SOURCE = ("digits", "", 0, 0.0)


@pytest.fixture
def brief_settings(tiny_settings: Settings) -> Settings:
    """For what is the same however well members are trained."""
    return tiny_settings.override(
        population__base_steps=40, population__early_steps=15, population__fork_steps=15,
        population__batch=32, population__pool=32, population__pool_steps=1,
    )  # fmt: skip


def population(path: Path, settings: Settings, engine=None, **changes) -> dict[int, str]:
    changed = settings.override(**{f"population__{k}": v for k, v in changes.items()})
    vault = Vault.open(path, write=True) if path.exists() else Vault.create(path, changed.to_toml())
    with vault:
        entries = build_population(SOURCE, vault, changed.population, engine or SerialEngine())
        return {entry.index: entry.files["weights"] for entry in entries}


@pytest.mark.slow
def test_members_do_not_depend_on_the_engine(tmp_path, brief_settings):
    serial = population(tmp_path / "a", brief_settings)
    with LocalEngine(2) as engine:
        parallel = population(tmp_path / "b", brief_settings, engine)
    assert serial == parallel
    assert len(set(serial.values())) == 4


class Stopping(SerialEngine):
    """Fails after three jobs, as a crash would."""

    def run(self, work, payloads):
        for position, result in super().run(work, payloads):
            if position == 2:
                raise KeyboardInterrupt
            yield position, result


def test_an_interrupted_population_resumes_with_what_is_complete(tmp_path, brief_settings):
    whole = population(tmp_path / "whole", brief_settings)
    with pytest.raises(KeyboardInterrupt):
        population(tmp_path / "cut", brief_settings, Stopping())
    with Vault.open(tmp_path / "cut") as vault:
        complete = {e.index: e.files["weights"] for e in vault.entries("member")}
        made = {e.index: e.created for e in vault.entries("member")}
    assert 0 < len(complete) < 4
    assert population(tmp_path / "cut", brief_settings) == whole
    with Vault.open(tmp_path / "cut") as vault:
        again = {e.index: e.created for e in vault.entries("member")}
    assert all(again[k] == made[k] for k in made)


def test_a_population_can_grow_but_not_change(tmp_path, brief_settings):
    small = population(tmp_path / "v", brief_settings, members=2)
    grown = population(tmp_path / "v", brief_settings, members=4)
    assert {k: grown[k] for k in small} == small
    with pytest.raises(VaultError, match="other settings"):
        population(tmp_path / "v", brief_settings, rate=1e-4)


@pytest.mark.parametrize("recipe", ["forks", "repelled", "seeds"])
def test_recipes(tmp_path, tiny_settings, digits, recipe):
    made = population(tmp_path / "v", tiny_settings, recipe=recipe, members=3)
    assert len(set(made.values())) == 3
    with Vault.open(tmp_path / "v") as vault:
        assert bool(vault.entries("early")) == (recipe != "seeds")
        model = digits.model(0).eval()
        model.load_state_dict(unpack(vault.read(vault.entries("member")[0])))
    assert accuracy(model, digits.splits.gate) > 0.5


@pytest.mark.slow
def test_repelled_forks_resist_attacks_that_plain_forks_do_not(tmp_path, tiny_settings, digits):
    """The point of the recipe: attacks crafted on the base transfer less."""
    errors = {}
    for recipe in ("forks", "repelled"):
        path = tmp_path / recipe
        population(path, tiny_settings, recipe=recipe, members=2, fork_steps=200, pool=300,
            pool_steps=5)  # fmt: skip
        with Vault.open(path) as vault:
            base, member = vault.entry("base"), vault.entries("member")[0]
            models = []
            for entry in (base, member):
                model = digits.model(0).eval().requires_grad_(False)
                model.load_state_dict(unpack(vault.read(entry)))
                models.append(model)
        split = digits.splits.guide
        attacks, index = craft_pool(digits, models[0], split, 287, 10, seed=1)
        errors[recipe] = float((models[1](attacks).argmax(1) != split.y[index]).float().mean())
    assert errors["repelled"] < errors["forks"] - 0.1


def test_divergence_is_a_clear_error(digits):
    def explode(model: nn.Module) -> torch.Tensor:
        return model(digits.splits.train.x[:2]).sum() * float("inf")

    with pytest.raises(PopulationError, match="lower the rate"):
        train(digits.model(0), explode, steps=3, rate=1e-3)


def test_divergence_between_two_checks_is_noticed_at_the_end(digits):
    calls = iter(range(100))

    def explode_late(model: nn.Module) -> torch.Tensor:
        return model(digits.splits.train.x[:2]).sum() * (float("nan") if next(calls) == 7 else 1.0)

    with pytest.raises(PopulationError, match="not finite"):
        train(digits.model(0), explode_late, steps=20, rate=1e-3)


def test_pool_round_trip(digits):
    attacks, index = craft_pool(digits, digits.model(0).eval(), digits.splits.guide, 40, 2, seed=0)
    pool = unpack_pool(pack_pool(attacks, index, digits), digits.splits.guide)
    assert float((pool.x - attacks).abs().max()) <= 2**-11
    assert torch.equal(pool.y, digits.splits.guide.y[index])


def test_pools_of_unbounded_data_keep_their_precision():
    x = 1000.0 + torch.rand(40, 5)
    splits = g2d.split_dataset(x, torch.arange(40) % 2)
    task = g2d.Task("wide", lambda: nn.Linear(5, 2), splits, classes=2, bounds=None, eps=0.3)
    index = torch.arange(5)
    attacks = splits.guide.x[index] + 0.3
    pool = unpack_pool(pack_pool(attacks, index, task), splits.guide)
    assert torch.equal(pool.x, attacks)


def test_a_scope_freezes_everything_else(tmp_path, brief_settings):
    changed = brief_settings.override(population__members=3)
    with Vault.create(tmp_path / "v", changed.to_toml()) as vault:
        engine = SerialEngine()
        entries = build_population(SOURCE, vault, changed.population, engine, scope=("7.*",))
        base = unpack(vault.read(vault.entry("base")))
        members = [unpack(vault.read(entry)) for entry in entries]
    for member in members:
        assert all(torch.equal(member[n], t) for n, t in base.items() if not n.startswith("7."))
    assert len({tuple(m["7.bias"].tolist()) for m in members}) == 3


# --- a zoo that the user has ---


def zoo(folder: Path, vault_path: Path) -> list[dict[str, torch.Tensor]]:
    folder.mkdir()
    states = []
    with Vault.open(vault_path) as vault:
        for entry in vault.entries("member"):
            states.append(unpack(vault.read(entry)))
            if entry.index % 2:
                torch.save(states[-1], folder / f"m{entry.index}.pt")
            else:
                (folder / f"m{entry.index}.safetensors").write_bytes(pack(states[-1]))
    return states


def test_adopting_a_zoo(tmp_path, tiny_vault, tiny_settings):
    states = zoo(tmp_path / "zoo", tiny_vault)
    with g2d.Defence.create("digits", tmp_path / "v", tiny_settings) as defence:
        defence.adopt(tmp_path / "zoo")
        defence.populate()  # a zoo is complete: nothing is trained
        entries = defence.vault.entries("member")
        assert len(entries) == len(states)
        assert [e.info["basin"] for e in entries] == [0, 1, 0, 1]  # found, not told
        assert defence.vault.entry("base").info["data"]  # the zoo is tied to its data too
        defence.fit()
        assert defence.generation().number == 1


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda s: s.pop("0.bias"), "missing"),
        (lambda s: s["0.bias"].fill_(float("nan")), "NaN"),
        (lambda s: s.update({"0.weight": torch.zeros(3, 3)}), "shape"),
        (lambda s: s.update({"extra": torch.zeros(3)}), "not in the model"),
    ],
)
def test_a_zoo_with_a_foreign_member_is_refused_by_name(
    tmp_path, tiny_vault, tiny_settings, spoil, expected
):
    states = zoo(tmp_path / "zoo", tiny_vault)
    spoil(states[1])
    torch.save(states[1], tmp_path / "zoo" / "m1.pt")
    with g2d.Defence.create("digits", tmp_path / "v", tiny_settings) as defence:
        with pytest.raises(CheckpointError, match=r"m1\.pt.*" + expected):
            defence.adopt(tmp_path / "zoo")
        assert defence.vault.entries("member") == []


def test_a_zoo_of_one_or_of_another_architecture_is_refused(tmp_path, tiny_settings):
    folder = tmp_path / "zoo"
    folder.mkdir()
    torch.save(nn.Linear(3, 3).state_dict(), folder / "a.pt")
    with g2d.Defence.create("digits", tmp_path / "v", tiny_settings) as defence:
        with pytest.raises(PopulationError, match="at least two"):
            defence.adopt(folder)
        shutil.copy(folder / "a.pt", folder / "b.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt does not fit the model"):
            defence.adopt(folder)


def test_a_deployed_model_can_be_the_base(tmp_path, tiny_settings, digits, tiny_vault):
    with Vault.open(tiny_vault) as vault:
        state = unpack(vault.read(vault.entry("member", 1)))
    settings = tiny_settings.override(population__early_steps=0, population__basins=1)
    with g2d.Defence.create("digits", tmp_path / "v", settings) as defence:
        defence.adopt_base(state)
        defence.adopt_base(state)  # as an interrupted run would
        other = {name: tensor + 1 for name, tensor in state.items()}
        with pytest.raises(VaultError, match="another base"):
            defence.adopt_base(other)
        with pytest.raises(CheckpointError, match="the base does not fit"):
            defence.adopt_base({"0.weight": state["0.weight"]})
        defence.populate(SerialEngine())
        kept = defence.vault.entries("early")[0]
        assert all(torch.equal(t, state[n]) for n, t in unpack(defence.vault.read(kept)).items())
        defence.fit()
        assert defence.generation().manifest["origin"] == "base"
