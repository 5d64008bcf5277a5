"""A tiny private vault from end to end: what is charged, what is covered, what reads nobody."""

import pickle
import shutil

import numpy as np
import pytest
import torch

import g2d
from g2d.core.engine import SerialEngine
from g2d.defence.privacy import check_mode
from g2d.defence.refresh import Refresh, follow, refresh, take_up
from g2d.errors import PrivacyError
from g2d.protect.privacy.accounting import by_block, epsilon, total
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.protect.privacy.releases import STAMP, releases
from g2d.settings import build
from g2d.tasks.source import named_by, resolve
from g2d.tasks.splits import Split
from g2d.vault.spendings import read
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from g2d.weights.checkpoints import unpack
from tiny_tables import TINY

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

PRIVACY = {
    "enabled": True, "records": 1400, "batch": 64, "epsilon": 50.0, "steps": 12, "fork_steps": 3,
    "gating": "sparse", "gate_scale": 2.0, "gate_drop": 0.9, "against": 1,
}  # fmt: skip
POPULATION = {"members": 2, "basins": 1, "early_steps": 0, "pool": 32, "pool_steps": 1}
SHORT = {
    "autoencoder": {"steps": 5, "width": 16},
    "diffusion": {"steps": 20, "width": 16, "depth": 1, "sampler_steps": 3},
    "guidance": {"pool": 32, "pool_steps": 1, "latent_steps": 1, "polish_steps": 2, "particles": 1},
    "gates": {"accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "distance": 0.0},
    "canaries": {"count": 0},
}  # fmt: skip


@pytest.fixture(scope="session")
def private_settings(once, digits):
    def keep(path):
        path.mkdir()
        np.save(path / "x.npy", digits.splits.test.x.numpy())
        np.save(path / "y.npy", digits.splits.test.y.numpy())

    tables = {**TINY, **SHORT, "population": {**TINY["population"], **POPULATION}}
    tables["privacy"] = {**PRIVACY, "public": str(once.path("public", keep))}
    return build(g2d.Settings, {"task": {"name": "digits"}, **tables}, "tests")


@pytest.fixture(scope="session")
def private_vault(once, private_settings):
    """A base, two members, a generator and a generation; copy it to change it."""

    def make(path):
        with g2d.Defence.build("digits", path, private_settings, engine=SerialEngine()) as made:
            made.generate()

    return once.copy("private", make)


@pytest.fixture
def private(private_vault, tmp_path):
    shutil.copytree(private_vault, tmp_path / "vault")
    with g2d.Defence.open(tmp_path / "vault") as opened:
        yield opened


def whats(defence):
    return [one.what for one in PrivacyLedger(defence.vault).spendings()]


def near_public(attacks, digits):
    """Whether each attack is a public input, moved by at most eps."""
    known = digits.splits.test.x.flatten(1)
    far = torch.cdist(attacks.float().flatten(1), known, p=float("inf")).min(1).values
    return bool((far <= digits.eps + 2e-3).all())  # half precision


def test_every_training_is_charged_and_every_release_is_covered(private):
    assert whats(private) == [
        "base", "member 0", "member 1", "gate: a sparse vector up to a rejection",
    ]  # fmt: skip
    found = releases(private.vault)
    assert [one for one in found if not one.covered] == []
    assert {one.kind for one in found} == {"base", "early", "member", "generator", "generation"}
    spent = {one.name: one.spent for one in found}
    named = ("base", "member 0", "member 1", "generation 2")
    assert [spent[name] for name in named] == [1, 2, 3, 4]
    assert 0 < total(PrivacyLedger(private.vault).spendings(), 1e-5) <= 50
    assert verify(private.vault.path, patience=0.0) == []


def test_what_is_kept_of_attacks_is_made_of_public_data(private, digits):
    vault = private.vault
    pools = [
        unpack(vault.read(e, "attacks"))["x"]
        for e in (vault.entry("base"), *vault.entries("member"))
    ]
    kept = unpack(vault.read_generation(2, "attacks"))
    assert all(near_public(pool, digits) for pool in (*pools, kept["guide"], kept["gate"]))
    assert not near_public(digits.splits.train.x[:50], digits)


def test_the_people_gate_is_in_the_manifest_and_tells_no_count(private):
    manifest = private.generation(2).manifest
    (gate,) = [one for one in manifest["gates"] if one["gate"] == "people"]
    assert (gate["passed"], gate["value"], gate["limit"]) == (True, 0.0, 0.0)
    assert manifest[STAMP] == read(private.vault).stamp()


def test_rotating_on_costs_nothing_more(private):
    before = len(whats(private))
    private.generate()
    assert len(whats(private)) == before
    assert all(one.covered for one in releases(private.vault))


def test_a_member_that_is_trained_again_is_charged_again(private):
    private.vault.delete("member")
    private.populate(SerialEngine())
    assert whats(private)[4:] == ["member 0", "member 1"]


def test_what_the_budget_does_not_cover_is_not_begun(private):
    private.vault.delete("member")
    spent = epsilon(by_block(PrivacyLedger(private.vault).spendings())["records"], 1e-5)
    private.settings = private.settings.override(privacy__epsilon=spent)
    with pytest.raises(PrivacyError, match="does not cover member 0 and 1 more"):
        private.populate(SerialEngine())
    assert private.vault.entries("member") == []
    assert private.vault.entry("base") is not None


def test_networks_of_unknown_making_are_refused(private, tmp_path):
    with pytest.raises(PrivacyError, match="epsilon is infinite"):
        private.adopt(tmp_path)
    with pytest.raises(PrivacyError, match="epsilon is infinite"):
        private.adopt_base({})


def test_a_task_is_found_by_its_name_in_workers_and_kept_apart_once(private):
    found = resolve(pickle.loads(pickle.dumps(private.source)))
    assert torch.equal(found.splits.train.x, private.task.splits.train.x)
    assert torch.equal(found.splits.gate.x, private.task.splits.gate.x)
    assert private.task.splits.shield.over(found) is found
    assert named_by(private.source)[0] == "digits"


def test_private_mode_is_not_turned_on_or_off_later(private, private_settings, tmp_path):
    off = private_settings.override(privacy__enabled=False)
    with pytest.raises(PrivacyError, match="set it to true again"):
        check_mode(off, private.vault)
    with Vault.create(tmp_path / "plain", off.to_toml()) as vault:
        vault.put("base", 0, {"weights": b"w"}, {})
        check_mode(off, vault)
        with pytest.raises(PrivacyError, match="was begun without privacy"):
            check_mode(private_settings, vault)


def test_a_refresh_is_charged_to_old_and_new_records(private, digits):
    draws = torch.Generator().manual_seed(0)
    x = digits.splits.test.x[:200]
    new = Split(
        (x + 0.1 * torch.rand(x.shape, generator=draws)).clamp(0, 1), digits.splits.test.y[:200]
    )
    said = []
    told = refresh(private, new, Refresh(SerialEngine(), say=said.append))
    assert told.steps == 3
    assert any("not looked at for poison" in line for line in said)
    lines = PrivacyLedger(private.vault).spendings()[4:]
    assert len(lines) == 2 * told.forks
    blocks = {one.block for one in lines}
    assert "records" in blocks
    assert len(blocks) == 2
    assert take_up(private.vault) is not None
    grown = follow(private)
    manifest = grown.generate()[0].manifest
    assert manifest["records"] == [grown.vault.entry("records").info["id"]]
    assert all(one.covered for one in releases(grown.vault))
    assert verify(grown.vault.path, patience=0.0) == []
