"""The gate on people's held records: charged before it looks; passing a sparse vector is free."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from g2d.defence.candidates import Candidate, Draw
from g2d.defence.gates.view import GateResult
from g2d.defence.privacy import gating
from g2d.defence.privacy.charging import blocks_due
from g2d.defence.privacy.gating import PeopleGate
from g2d.errors import PrivacyError
from g2d.protect.privacy.accounting import Spending, epsilon, guaranteed_delta, total
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.settings import Settings
from g2d.vault.spendings import THRESHOLD
from g2d.vault.vault import Vault
from g2d.vault.verify import verify

SETTINGS = Settings().override(
    privacy__enabled=True, privacy__records=10_000, privacy__gate_drop=0.05, privacy__gate_scale=4.0
)  # a hundred of about two thousand may be lost


@dataclass(frozen=True)
class Counted(PeopleGate):
    """The gate, with what it would count given by the state."""

    def lost(self, state):
        return state["lost"]


@pytest.fixture
def gate(tmp_path, request):
    settings = SETTINGS.override(privacy__gating=getattr(request, "param", "sparse"))
    with Vault.create(tmp_path / "vault", settings.to_toml()) as vault:
        yield Counted(None, vault, settings, None)


def spent(gate):
    return PrivacyLedger(gate.vault).spendings()


def test_passing_a_sparse_vector_costs_nothing_more(gate):
    assert all(gate({"lost": 0}).passed for _ in range(100))
    (one,) = spent(gate)
    assert (one.mechanism, one.block, one.noise) == ("sparse_vector", "held", 4.0)
    assert verify(gate.vault.path, patience=0.0) == []


def test_a_rejection_is_paid_for_and_its_limit_is_thrown_away_first(gate):
    assert gate({"lost": 0}).passed
    found = gate({"lost": 1000})
    assert not found.passed
    assert "not told" in found.reason
    assert not (gate.vault.path / THRESHOLD).exists()
    gate({"lost": 0})
    assert len(spent(gate)) == 2
    assert epsilon(spent(gate), 1e-9) == pytest.approx(2 * 2 / 4.0, rel=0.02)


def test_the_limit_outlives_its_process_and_is_never_in_a_manifest(gate):
    gate({"lost": 0})
    again = Counted(None, gate.vault, gate.settings, None)
    result = again({"lost": 0})
    assert len(spent(gate)) == 1
    assert set(result.entry().values()) <= {"people", True, 0.0, "", result.title}


def test_a_limit_that_was_edited_away_is_charged_anew(gate):
    gate({"lost": 0})
    (gate.vault.path / THRESHOLD).write_text("{")
    gate({"lost": 0})
    assert len(spent(gate)) == 2


def test_a_limit_that_was_used_up_is_not_put_back(gate):
    gate({"lost": 0})
    kept = (gate.vault.path / THRESHOLD).read_bytes()
    assert not gate({"lost": 1000}).passed
    gate({"lost": 0})
    (gate.vault.path / THRESHOLD).write_bytes(kept)
    gate({"lost": 0})
    assert len(spent(gate)) == 3


@pytest.mark.parametrize("gate", ["noisy"], indirect=True)
def test_each_noisy_count_is_charged_before_and_its_noise_is_fresh(gate):
    found = [gate({"lost": 0}).value for _ in range(8)]
    assert len(spent(gate)) == 8
    assert len(set(found)) > 1
    assert all(math.isclose(value * gate.size, round(value * gate.size)) for value in found)


@pytest.mark.parametrize("gate", ["noisy"], indirect=True)
def test_nothing_is_counted_that_the_budget_does_not_cover(gate):
    poor = gate.settings.override(privacy__epsilon=0.05, privacy__gate_noise=5.0)
    looked = []

    class Looking(Counted):
        def lost(self, state):
            looked.append(state)

    with pytest.raises(PrivacyError, match="the budget of held does not cover"):
        Looking(None, gate.vault, poor, None)({"lost": 0})
    assert not looked


def test_only_candidates_that_public_gates_passed_are_looked_at(gate):
    def candidate(passed):
        result = GateResult("accuracy", passed, 0.0, 0.0)
        return Candidate(Draw(0, b"s", True), {"lost": 0}, [result], 0.0, 0.0)

    bad, good = gate.judged(iter([candidate(False), candidate(True)]))
    assert [r.gate for r in bad.results] == ["accuracy"]
    assert [r.gate for r in good.results] == ["accuracy", "people"]
    assert good.passed


def test_laplace_noise_has_its_scale():
    drawn = [abs(gating.laplace(3.0)) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(3.0, rel=0.05)  # 7 standard errors


def test_a_number_of_looks_that_records_decide_claims_the_budget(gate):
    gate({"lost": 0})
    (one,) = spent(gate)
    assert dict(one.note) == {"unit": "record", "budget": 3.0, "delta": 1e-5}
    assert epsilon([one], 1e-5) == pytest.approx(0.5, rel=0.02)
    assert total([one], 1e-5) == total([one], 1e-4) == 3.0
    assert total([one], 1e-6) == math.inf, "the longest run may cost more at a smaller delta"
    assert [guaranteed_delta([one], at) for at in (0.0, 2.9, 3.0)] == [1.0, 1.0, 1e-5]


def test_a_refresh_is_charged_to_every_block_that_ever_was(gate):
    """Put back, or dropped before it was taken up: its records may be given again."""
    ledger, new = PrivacyLedger(gate.vault), SimpleNamespace(info={"id": "c" * 32})
    assert blocks_due(gate.vault, new) == ("records", "refresh cccccccc")
    gate({"lost": 0})
    for block in ("records", "refresh aaaaaaaa", "refresh bbbbbbbb", "refresh cccccccc"):
        ledger.spend(Spending("base", block, "sampled_gaussian", 5.0, 0.01, 1))
    found = blocks_due(gate.vault, new)
    assert found == ("records", *(f"refresh {letter * 8}" for letter in "abc"))
