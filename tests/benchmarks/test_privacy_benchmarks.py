"""Tables of private members say what the JSON says; faults break what they say; data are apart."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("psutil")
pytest.importorskip("opacus")

from benchmarks.privacy import audit, faults, inside, nslkdd, tables, whole
from benchmarks.privacy.data import enlarged, people_and_public
from benchmarks.privacy.flows import MOST, public_mlp
from g2d.defence.privacy import charging
from g2d.settings import PopulationSettings, PrivacySettings
from g2d.tasks.nslkdd import WIDTH, nslkdd_mlp
from g2d.training.recipes import private_optimizer
from g2d.training.recipes.private_entropy import PoissonSample
from g2d.training.recipes.private_optimizer import SecretNoise
from g2d.vault.records import PLANTED
from g2d.vault.vault import Vault


def cells(text: str) -> dict[str, str]:
    lines = [line.strip("| ").split(" | ") for line in text.split("\n") if line.startswith("|")]
    return {line[0].strip(): line[-1].strip() for line in lines[2:]}


def case(right: int, bound: float, refuted: bool, claim: float | None = 1.0) -> dict:
    told = {"canaries": 1000, "made": 200, "right": right}
    return {"guesses": told, "bound": bound, "gaussian": bound + 1, "claim": claim, "p": 0.5,
            "refuted": refuted, "networks": {"trained": 25, "generation": 121}, "most": 4.2,
            "most_canaries": 5.8}  # fmt: skip


def write(folder: Path, name: str, result: dict) -> None:
    (folder / name).write_text(json.dumps(result))


SIZES = {"public": 6000, "way": "held"}


def test_without_json_every_table_says_so(tmp_path):
    made = tables.made(tmp_path)
    assert set(made) == {
        "privacy-whole", "privacy-audit", "privacy-inside", "privacy-nsl-kdd", "privacy-cost"
    }  # fmt: skip
    assert all("not measured yet" in text for text in made.values())


def test_an_audit_tells_what_was_refuted(tmp_path):
    for seed in range(5):
        cases = {
            "sound": case(105, 0.2, False),
            "no clipping": case(190, 2.5, seed > 0),
            "plain": case(195, 3.0, False, None),
        }
        write(tmp_path, f"privacy-audit-mnist-seed{seed}.json",
              {"seed": seed, "cases": cases, "sizes": SIZES, "run": {"commit": "abc"}})  # fmt: skip
    text = tables.made(tmp_path)["privacy-audit"]
    made = cells(text)
    assert made["lower bound at most the claim"] == "5 of 5"
    assert made["refuted although sound"] == "0 of 5"
    assert made["refuted: no clipping"].startswith("4 of 5; 2.50")
    assert made["networks that were guessed from"] == "146"
    assert made["most that 1000 canaries could certify"] == "4.2 by 200 guesses, 5.8 by all"
    assert made["lower bound on epsilon, population without privacy"].startswith("3.00")
    assert "6000 records of the task declared public; commit abc." in text
    assert audit.rows([{"cases": {}}]) == []


def test_the_whole_system_is_told_by_budget(tmp_path):
    rows = {
        "cost": {"epsilon": 2.98, "naive": 20.0, "members": 24, "generations": 121,
                 "uncovered": []},
        "clean": {"generations": [0.98, 0.97], "members": [0.98]},
        "alone": {"accuracy": 0.985, "epsilon": 3.0}, "public": {"accuracy": 0.965},
        "stale": {"next": [0.2], "stayed": [0.9]},
        "basin": {"exposed": [3], "next": [0.4], "stayed": [0.5], "white-box": [0.7]},
    }  # fmt: skip
    result = {"seed": 0, "epsilons": {"3": rows, "1": {}}, "sizes": SIZES, "run": {"commit": "d"}}
    write(tmp_path, "privacy-whole-mnist-seed0.json", result)
    made = cells(tables.made(tmp_path)["privacy-whole"])
    spent = made["epsilon 3: spent by everything, delta 1e-5"]
    assert spent == "2.98; 24 members, 121 generations"
    assert made["epsilon 3: naive composition"] == "20.0"
    assert made["epsilon 3: clean, worst generation, %"] == "97.00"
    assert made["epsilon 3: generations below it, points"] == "1.00"
    assert made["epsilon 3: the public records alone, %"] == "96.50"
    stale = made["epsilon 3: stale ASR joint-20, generations, %"]
    assert stale == "20.0; had it stayed 90.0"
    own = made["epsilon 3: stale ASR joint on all of its own basin, %"]
    assert own == "40.0; had it stayed 50.0"
    assert made["epsilon 3: white-box ASR, generations, %"] == "70.0"
    assert not [name for name in made if "iterates" in name or name.startswith("epsilon 1")]
    assert whole.rows([]) == []


def test_flows_stand_beside_those_without_privacy(tmp_path):
    def vault(accuracy: float) -> dict:
        return {"generations": {"accuracy": [accuracy]}, "epsilon": 0.99}

    vaults = {"private": vault(0.77), "plain": vault(0.78), "public": vault(0.76)}
    write(tmp_path, "privacy-nsl-kdd-seed0.json",
          {"seed": 0, "vaults": vaults, "sizes": SIZES, "run": {"commit": "e"}})  # fmt: skip
    made = cells(tables.made(tmp_path)["privacy-nsl-kdd"])
    assert made["accuracy below that without privacy, points"] == "1.00"
    assert made["accuracy, the public flows alone, %"] == "76.00"
    assert nslkdd.rows([{"vaults": {"plain": vault(1.0)}}]) == []


def test_inputs_are_standardised_by_public_flows_alone():
    public = torch.zeros(50, WIDTH)
    public[:, 0], public[:25, 3] = torch.arange(5.0, 55.0), 1.0
    model = public_mlp(public)()
    found = model[0](public)
    assert torch.allclose(found.mean(0), torch.zeros(WIDTH), atol=1e-5)
    assert found[:, 3].std() == pytest.approx(1.0)
    rare = torch.zeros(1, WIDTH)
    rare[0, 9] = 1.0  # what no public flow has is seen, and bounded
    assert float(model[0](rare)[0, 9]) == MOST
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {n: t.shape for n, t in nslkdd_mlp().state_dict().items()}, "and no records"


def step(fault) -> torch.Tensor:
    """What a private step of one record with a long gradient moves a weight by, noise apart."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = SecretNoise(
        torch.optim.SGD([weight], 1.0), noise_multiplier=4.0, max_grad_norm=1.0,
        expected_batch_size=1,
    )  # fmt: skip
    with fault(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_optimizer, "gaussians", np.ones)
        weight.grad_sample = torch.tensor([[30.0, 40.0]])
        optimizer.step()
    return -weight.detach()


def test_faults_break_what_they_say_and_nothing_afterwards():
    sound = step(faults.sound)
    assert torch.allclose(sound, torch.tensor([4.6, 4.8]))
    assert torch.allclose(step(faults.no_clipping), torch.tensor([34.0, 44.0]))
    assert torch.allclose(step(faults.quarter_noise), torch.tensor([1.6, 1.8]))
    privacy = PrivacySettings(records=1000, batch=10)
    with faults.one_is_charged():
        costs = [charging.cost_of("member", i, privacy, PopulationSettings()) for i in (0, 1)]
    assert [len(cost) for cost in costs] == [1, 0]
    assert len(charging.cost_of("member", 1, privacy, PopulationSettings())) == 1
    assert torch.allclose(step(faults.sound), sound)


def test_a_known_seed_draws_the_same_whoever_else_is_there(digits):
    train = digits.splits.train
    more = train.take([*range(300), 5, *range(300, len(train))])

    def drawn(split) -> set[bytes]:
        with faults.reused_seed():
            sample = PoissonSample(digits, split, 0.2, torch.Generator())
            batches = [sample.draw()[0] for _ in range(2)]
        return {row.numpy().tobytes() for row in batches[1]}

    one, other = drawn(train), drawn(more)
    assert 0.1 * len(train) < len(one) < 0.3 * len(train)
    assert one == other


def test_a_kill_between_vault_and_canaries_is_made_good(tmp_path):
    assert not audit.has_canaries(tmp_path / "vault")
    with Vault.create(tmp_path / "vault", "") as vault:
        assert not audit.has_canaries(vault.path)
        vault.put(PLANTED, 0, {"weights": b""}, {"canaries": 0})
        assert audit.has_canaries(vault.path)


def test_public_records_are_no_ones_else(tmp_path):
    task, folder = people_and_public("digits", "", tmp_path / "public", 290)
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    assert len(x) == len(y) == 290
    people = {row.numpy().tobytes() for row in task.splits.train.x}
    assert not people & {row.tobytes() for row in x}
    assert task.name == "digits-people"
    with pytest.raises(SystemExit, match="nobody to train on"):
        people_and_public("digits", "", tmp_path / "all", 5000)
    assert enlarged((1, 28, 28)).x.shape == (1797, 1, 28, 28)


def test_who_sees_gradients_guesses_by_noise_and_not_by_what_others_give():
    """The estimator on numbers of which everything is known: canaries that have much in common."""
    source = torch.Generator().manual_seed(3)
    m, size, rate = 60, 3000, 0.9
    shared = torch.randn(size, generator=source)
    G = torch.randn(m, size, generator=source) + shared
    G = G / G.norm(dim=1, keepdim=True)
    coins = torch.rand(m, generator=source) < 0.5
    planting = SimpleNamespace(coins=coins, canaries=None)
    right = {}
    for noise in (0.1, 30.0):
        watcher = inside.Inside(
            None, SimpleNamespace(privacy=None), planting, range(9), 3
        )  # fmt: skip
        drawn = torch.rand(m, generator=source) < rate
        y = (coins & drawn).float() @ G + noise * torch.randn(size, generator=source)
        watcher._add(rate, G, G * (rate * (1 - rate) / 2) ** 0.5, y - rate / 2 * G.sum(0))
        right[noise] = int(((torch.from_numpy(watcher.scores()) > 0) == coins).sum())
    assert right[0.1] > 0.8 * m
    assert right[30.0] < 0.7 * m


def test_gradients_longer_than_the_clip_are_clipped_and_others_are_not():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert torch.allclose(inside._clipped(rows), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
