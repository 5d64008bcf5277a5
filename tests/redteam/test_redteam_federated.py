"""Where clients trained a vault, the red team follows a backdoor that clients send."""

from __future__ import annotations

import pytest

from federated_processes import settings
from g2d.redteam.context import AttackContext, Case, Chain, RunSpec
from g2d.redteam.threats.poisoning import federated
from g2d.redteam.threats.poisoning import threat as poisoning
from g2d.vault.federated import FEDERATED
from g2d.vault.vault import Vault

pytest.importorskip("art")


def spec_of(digits, vault="", **changes):
    chains = {"generated": Chain("generated", ())}
    s = settings(clients=4, rule="multi-krum", f=0, **changes)
    return RunSpec(digits, str(vault), s, chains, n=100, eps=0.1, quick=True)


def named(cases):
    return [case.name for case in cases]


def test_the_case_is_planned_where_clients_trained_the_population(digits, tmp_path):
    assert named(poisoning.plan(spec_of(digits))) == ["data", "member"]
    assert named(poisoning.plan(spec_of(digits, tmp_path / "none"))) == ["data", "member"]
    with Vault.create(tmp_path / "vault", settings().to_toml()) as vault:
        vault.put("base", 0, {"weights": b"b"}, {"settings": "x"})
        assert named(poisoning.plan(spec_of(digits, vault.path))) == ["data", "member"]
        vault.put("base", 0, {"weights": b"b"}, {"settings": "x", FEDERATED: {}})
    (case,) = [c for c in poisoning.plan(spec_of(digits, tmp_path / "vault")) if c.name not in (
        "data", "member")]  # fmt: skip
    assert (case.name, case.number("clients"), case.number("malicious")) == ("federated", 4, 1)
    assert case.number("rounds") == 2


def test_every_stage_has_a_row_and_honest_clients_are_the_control(digits):
    spec = spec_of(digits, mix=False, local_steps=1)
    sizes = (("clients", 4), ("malicious", 1), ("rounds", 1), ("forks", 1), ("members", 2),
             ("pool", 32), ("autoencoder", 5), ("diffusion", 5), ("guided", 1),
             ("unguided", 1))  # fmt: skip
    case = Case("poisoning", federated.CASE, "generated", sizes, (), True, 1)
    rows = poisoning.run(case, AttackContext(spec))
    kinds = [row.kind.removeprefix("poisoning-federated-") for row in rows]
    assert kinds == ["base", "members", "unguided", "guided", "gates", "honest"]
    assert all("1 of 4 clients with a backdoor" in row.threat for row in rows)
    assert rows[-1].note.startswith("control")
    assert rows[0].value is not None
