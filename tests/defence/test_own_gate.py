"""A gate and a term of the user's own, as docs/extending.md shows them: a file and a setting."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

import g2d
from g2d.core.engine import LocalEngine
from g2d.defence.gates import CandidateView, GateResult, run_gates
from g2d.errors import GenerationError, RefusedError, SettingsError, VaultError
from g2d.settings import Settings
from g2d.tasks.inference import load_model, predict
from g2d.vault.vault import Vault
from places import example


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The folder where a user keeps their own code, and starts g2d."""
    (tmp_path / "confidence.py").write_text(example("A gate") + example("A guidance term"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "confidence", raising=False)
    return tmp_path / "confidence.py"


def confidence(state, task):
    return float(predict(load_model(task, state), task.splits.gate.x).softmax(1).amax(1).mean())


def test_the_example_rejects_a_candidate_and_says_why(defence, module, monkeypatch):
    defence.settings = defence.settings.override(
        gates__extra=("confidence:confidence_gate",), gates__attempts=2
    )
    (made,) = defence.generate(seed=1)
    found = {gate["gate"]: gate for gate in made.manifest["gates"]}
    assert list(found)[-1] == "confidence"
    measured = found["confidence"]["value"]
    assert measured == pytest.approx(confidence(made.state, defence.task), abs=1e-6)
    assert found["confidence"]["share"]
    assert "share" not in found["accuracy"]  # G2D's own gates are kept as they always were
    monkeypatch.setattr("confidence.LIMIT", 0.1)
    seen = []
    with pytest.raises(GenerationError, match=r"mean confidence .* at most 10.00% is allowed"):
        defence.generate(seed=1, on_reject=seen.append)
    assert [[r.gate for r in results if not r.passed] for results in seen] == [["confidence"]] * 2
    assert all(len(results) == 6 for results in seen)  # every gate ran all the same
    assert defence.vault.live() == made.number


def test_the_example_term_moves_the_candidate(defence, module):
    recent, found = [defence.exposure(1)], {}
    for extra in ((), ("confidence:ConfidenceTerm",)):
        settings = defence.settings.override(guidance__extra=extra).guidance
        source = torch.Generator().manual_seed(5)
        v = defence.generator.propose(defence.task, recent, settings, source)
        found[extra] = confidence(defence.generator.to_state(v), defence.task)
    assert found["confidence:ConfidenceTerm",] < found[()] - 0.05


@pytest.mark.slow
def test_an_own_gate_and_term_reach_worker_processes(defence, module):
    names = {"gates": "confidence_gate", "guidance": "ConfidenceTerm"}
    own = {f"{section}__extra": (f"confidence:{name}",) for section, name in names.items()}
    defence.settings = defence.settings.override(**own)
    with LocalEngine(1) as engine:
        (made,) = defence.generate(seed=2, activate=False, engine=engine)
    assert made.manifest["gates"][-1]["gate"] == "confidence"
    again = defence.settings.to_toml()
    assert Settings.from_toml(again) == defence.settings
    defence.vault.write_settings(again)
    path = defence.vault.path
    defence.close()
    with g2d.Defence.open(path) as opened:
        recent = [opened.exposure(1)]
        results = opened.judge(made.state, recent, [1])
    assert [result.gate for result in results][-1] == "confidence"


def test_a_worker_loads_no_other_code_than_was_signed(defence, module):
    path = defence.vault.path
    named = defence.settings.source
    assert named == "digits"
    defence.vault.write_settings(
        defence.settings.override(gates__extra=("confidence:confidence_gate",)).to_toml()
    )
    defence.close()
    with pytest.raises(VaultError, match=r"names 'digits gates=confidence:confidence_gate' now"):
        g2d.Defence.open(path, named=named)
    g2d.Defence.open(path, named="digits gates=confidence:confidence_gate").close()


def test_an_own_gate_cannot_be_moved_to_another_list_under_the_same_signature():
    named = {
        Settings().override(**{key: ("m:g",) if "extra" in key else "m:g"}).source
        for key in ("gates__extra", "guidance__extra", "generator__space")
    }
    assert named == {"digits gates=m:g", "digits guidance=m:g", "digits generator=m:g"}
    assert Settings().source == "digits"


def view(defence, **changes):
    generation = defence.generation()
    settings = defence.settings.override(**changes).gates
    return CandidateView(
        generation.state, generation.model(), defence.reference, [], {}, (), settings
    )


@pytest.mark.parametrize(
    ("name", "body", "error", "said"),
    [
        ("breaks", "1 / 0", GenerationError, "failed to measure: ZeroDivisionError"),
        ("foreign", "True", GenerationError, "returned bool, not a GateResult"),
        ("nothing", "GateResult('x', True, float('nan'), 0.0)", GenerationError, "measured nan"),
        ("many", "GateResult('x', torch.tensor([True, True]), 0.0, 0.0)", GenerationError,
         "gave passed=tensor.*expected a bool and two numbers"),
        ("none", "GateResult('x', True, None, 0.0)", GenerationError, "gave .*value=None"),
        ("text", "GateResult('x', True, 'high', 0.0)", GenerationError, "value='high'"),
        ("double", "GateResult('class', True, 0.0, 0.0)", SettingsError, "as another one does"),
    ],
)  # fmt: skip
def test_a_gate_that_is_wrong_lets_nothing_through(defence, module, name, body, error, said):
    module.with_name(f"{name}_gate.py").write_text(
        "import torch\nfrom g2d.defence.gates import GateResult\n\n"
        f"def gate(view):\n    return {body}\n"
    )
    with pytest.raises(error, match=said):
        run_gates(view(defence, gates__extra=(f"{name}_gate:gate",)))


def test_a_candidate_that_fails_already_gets_an_own_gates_trouble_as_one_more_reason(
    defence, module
):
    module.with_name("brittle.py").write_text(
        "def gate(view):\n    raise ValueError('not finite')\n"
    )
    seen = view(defence, gates__extra=("brittle:gate",))
    broken = {name: value * float("nan") for name, value in seen.state.items()}
    results = run_gates(replace(seen, state=broken, model=load_model(defence.task, broken)))
    failed = {result.gate: result.reason for result in results if not result.passed}
    assert {"finite", "accuracy", "brittle:gate"} <= set(failed)
    assert "gate 'brittle:gate' failed to measure: ValueError: not finite" in failed["brittle:gate"]
    assert json.loads(json.dumps([result.entry() for result in results], allow_nan=False))
    with pytest.raises(GenerationError, match="failed to measure"):
        run_gates(seen)


def test_what_an_own_gate_measures_is_plain_in_the_manifest(defence, module):
    module.with_name("tensors.py").write_text(
        "import torch\nfrom g2d.defence.gates import GateResult\n\n"
        "def gate(view):\n    least = view.logits.amin()\n"
        "    return GateResult('least', least > -1e9, least, torch.tensor(-1e9))\n"
    )
    *_, result = run_gates(view(defence, gates__extra=("tensors:gate",)))
    assert isinstance(result, GateResult)
    assert json.loads(json.dumps(result.entry()))["passed"] is True


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "write 'package.module:name'"),
        ("nowhere:gate", "no module 'nowhere'"),
        ("g2d.defence.gates:GATES", "not a function"),
    ],
)
def test_a_gate_that_cannot_be_found_fails_before_the_work(defence, name, said):
    defence.settings = defence.settings.override(gates__extra=(name,))
    with pytest.raises(SettingsError, match=said):
        defence.generate()
    assert defence.vault.rejections() == []


def test_a_signature_binds_what_runs_beside_the_key(tmp_path):
    """A gate that was slipped into task.toml would run where the private key lies."""
    signing = pytest.importorskip("g2d.vault.signing")
    key, plain = signing.SigningKey.generate(), '[task]\nname = "digits"\n'
    manifest = {"task": "digits", "population": "", "generator": "", "exposed": [], "gates": []}
    files = {"weights": b"weights", "attacks": b"attacks"}
    with Vault.create(tmp_path / "vault", plain) as vault:

        def sign(source="digits"):
            more = {"source": source, "lifetime": 1.0}
            return signing.sign_generation(vault, files, manifest, key, **more).manifest

        def verify(number):
            now = time.time()
            return signing.verify_generation(vault, number, key.public, after=0, now=now)

        assert sign()["source"] == "digits"  # as before there were such settings
        verify(1)
        vault.write_settings(plain + '[gates]\nextra = ["evil:gate"]\n')
        with pytest.raises(RefusedError, match="settings say 'digits gates=evil:gate'"):
            verify(1)
        with pytest.raises(VaultError, match="evil:gate' now, and 'digits' was loaded: nothing"):
            sign()
        assert vault.last_number() == 1
        named = "digits gates=evil:gate"
        assert sign(named)["source"] == named
        verify(2)
