"""The red team's runner: chains, resume, reuse, failures and bad input; its cases are our own."""

import contextlib
import dataclasses
import json
import pickle
import shutil

import pytest
import torch

import g2d
from g2d.core.engine import SerialEngine
from g2d.errors import G2DError, GenerationError, SettingsError
from g2d.redteam import attack, chains, context, runner
from g2d.redteam.cache import RowCache, _closure, code_version, key_of
from g2d.redteam.context import Case, Chain, Network
from g2d.redteam.rows import Identifiers, Row, Status, not_measured
from g2d.redteam.scoring import accuracy_rate, share
from g2d.redteam.threat import CONTROLS, Threat
from g2d.redteam.threats import _MODULES, threats

pytest.importorskip("art")
pytest.importorskip("pyautoattack")

IDS = Identifiers("AML.T0043", "NISTAML.022", "ML01:2023")


def generate(defence, count):
    """Make generations; a tiny population's candidates do not always pass."""
    for seed in range(100):
        with contextlib.suppress(GenerationError):
            defence.generate(1, seed=seed)
            count -= 1
        if not count:
            return


@pytest.fixture(scope="module")
def exposed(tiny_vault, once):
    """A tiny vault with three generations beside the base, and the networks of a quick run."""

    def build(path):
        shutil.copytree(tiny_vault, path)
        with g2d.Defence.open(path) as defence:
            generate(defence, 3)
        attack(path, threats=["universal"], quick=True, engine=SerialEngine())
        shutil.rmtree(path / "redteam" / "rows")
        (path / "redteam" / "results.json").unlink()

    return once.copy("attacked", build)


@pytest.fixture
def vault(exposed, tmp_path):
    path = tmp_path / "vault"
    shutil.copytree(exposed, path)
    return path


class Tricks:
    """A family of two cases: one scores the chain's networks, one breaks when told to."""

    def __init__(self):
        self.ran, self.broken = [], False

    def plan(self, spec):
        return [
            Case("tricks", "score", "generated", (("n", 20),), ("generated",), cost=2.0),
            Case("tricks", "breaks", "soup", (), ("soup",)),
        ]

    def run(self, case, bench):
        self.ran.append(case.name)
        if case.name == "breaks" and self.broken:
            raise ValueError("a library stumbled")
        models = bench.models(bench.chain(case.chain).networks)
        clean = accuracy_rate(models[-1], bench.examples(20))
        return [bench.row(case, "trick", "nothing", "none", share(1, 20), clean_accuracy=clean)]

    @property
    def threat(self):
        chains = CONTROLS | {"draws", "rival"}
        return Threat("tricks", "Tricks", "Does it hold?", IDS, self.plan, self.run, chains=chains)


@pytest.fixture
def tricks():
    return Tricks()


def run(vault, tricks, engine=None, **more):
    engine = engine or SerialEngine()
    return attack(vault, threats=[tricks.threat], quick=True, engine=engine, **more)


def test_rows_carry_what_the_schema_says(vault, tricks):
    results = run(vault, tricks)
    assert results["format"] == "g2d-redteam-1"
    assert json.loads((vault / "redteam" / "results.json").read_text()) == results
    assert {row["target"] for row in results["rows"]} == {"generated", "soup"}
    for row in results["rows"]:
        assert row["kind"] == "trick"
        assert row["identifiers"]["atlas"] == "AML.T0043"
        assert row["status"] == "ok"
        assert row["harm"] == row["value"]["value"] == 0.05
        assert row["seconds"] >= 0
    sizes = {name: chain["networks"] for name, chain in results["chains"].items()}
    assert sizes["generated"] == 4
    assert sizes["frozen"] == 1
    assert sizes["retrained"] == 2
    assert sizes["draws"] > 0
    assert sizes["rival"] == sizes["unrotated"] == 1
    assert "attacker" not in sizes  # only what the chosen families read is made
    assert results["summary"] is None  # the overview belongs to the whole matrix


def test_a_second_run_reuses_every_row(vault, tricks):
    first = run(vault, tricks)
    tricks.ran.clear()
    stages = []
    again = run(vault, tricks, progress=lambda *step: stages.append(step))
    assert tricks.ran == []
    assert again["rows"] == first["rows"]
    assert again["reused"] == again["cases"] == 2
    assert ("networks", 11, 11) in stages


def test_other_settings_or_networks_are_other_rows(vault, tricks):
    run(vault, tricks)
    tricks.ran.clear()
    run(vault, tricks, eps=0.1)
    assert sorted(tricks.ran) == ["breaks", "score"]
    tricks.ran.clear()
    with g2d.Defence.open(vault) as defence:
        generate(defence, 1)
    run(vault, tricks)
    # The soup is made of members: a new generation does not touch it.
    assert tricks.ran == ["score"]


def test_a_broken_case_is_a_row_and_the_rest_goes_on(vault, tricks):
    tricks.broken = True
    rows = {row["target"]: row for row in run(vault, tricks)["rows"]}
    assert rows["soup"]["status"] == "failed"
    assert "a library stumbled" in rows["soup"]["note"]
    assert rows["soup"]["value"] is None
    assert rows["soup"]["kind"] == "failed"
    assert rows["generated"]["status"] == "ok"
    tricks.broken = False
    tricks.ran.clear()
    assert {row["status"] for row in run(vault, tricks)["rows"]} == {"ok"}
    assert tricks.ran == ["breaks"]  # failures are not kept, the rest is


def test_an_interrupted_run_goes_on(vault, tricks):
    class Interrupted(SerialEngine):
        def run(self, work, payloads):
            for position, payload in enumerate(payloads):
                if isinstance(payload, tuple) and position == 1:
                    raise KeyboardInterrupt
                yield position, work(payload)

    with pytest.raises(KeyboardInterrupt):
        run(vault, tricks, Interrupted())
    assert not (vault / "redteam" / "results.json").exists()
    before = list(tricks.ran)
    results = run(vault, tricks)
    assert results["reused"] == 1
    assert before == ["score"]
    assert tricks.ran == ["score", "breaks"]


def test_changed_networks_are_refused(vault, tricks):
    run(vault, tricks)
    for file in (vault / "redteam" / "rows").iterdir():
        file.unlink()

    class Meddling(SerialEngine):
        def run(self, work, payloads):
            for position, payload in enumerate(payloads):
                if isinstance(payload, tuple):
                    for network in payload[0].chains["soup"].networks:
                        with open(network.path, "ab") as file:
                            file.write(b"x")
                yield position, work(payload)

    context._context.cache_clear()  # a fresh worker has no network in memory yet
    results = run(vault, tricks, Meddling())
    (row,) = [row for row in results["rows"] if row["target"] == "soup"]
    assert row["status"] == "failed"
    assert "has changed" in row["note"]


def test_a_changed_model_or_range_is_another_task(vault, tricks, monkeypatch):
    run(vault, tricks)
    tricks.ran.clear()
    real = chains.task_identity
    monkeypatch.setattr(
        runner, "task_identity", lambda defence: real(defence) | {"function": "another"}
    )
    run(vault, tricks)
    assert sorted(tricks.ran) == ["breaks", "score"]


def test_a_task_is_told_apart_by_what_its_model_computes(vault, monkeypatch):
    with g2d.Defence.open(vault) as defence:
        before = chains.task_identity(defence)
        assert before == chains.task_identity(defence)
        monkeypatch.setattr(
            chains, "predict", lambda model, x: 2 * torch.ones(len(x), defence.task.classes)
        )
        after = chains.task_identity(defence)
    assert {name for name in before if before[name] != after[name]} == {"function"}


def test_the_same_process_sees_new_generations(vault):
    with SerialEngine() as engine:
        attack(vault, threats=["universal"], quick=True, engine=engine)
        with g2d.Defence.open(vault) as defence:
            generate(defence, 1)
        results = attack(vault, threats=["universal"], quick=True, engine=engine)
    assert {row["status"] for row in results["rows"]} == {"ok"}
    assert results["chains"]["generated"]["networks"] == 5


def test_probabilities_are_detected_and_said(vault, tricks, monkeypatch):
    load = context.load_model
    monkeypatch.setattr(
        context,
        "load_model",
        lambda task, state: torch.nn.Sequential(load(task, state), torch.nn.Softmax(1)),
    )
    context._context.cache_clear()
    results = run(vault, tricks, seed=3)
    context._context.cache_clear()
    assert all("probabilities, not logits" in row["note"] for row in results["rows"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threats": ["stael"]}, "Did you mean 'stale'"),
        ({"eps": 1.5}, "at most 1"),
        ({"eps": -0.1}, "above 0"),
        ({"n": 3}, "at least 10"),
    ],
)
def test_bad_input_says_what_to_do(exposed, options, message):
    with pytest.raises(SettingsError, match=message):
        attack(exposed, engine=SerialEngine(), **options)


def test_a_vault_without_generations(tmp_path, tiny_settings):
    with g2d.Defence.create("digits", tmp_path / "vault", tiny_settings):
        pass
    with pytest.raises(SettingsError, match="no generation to attack"):
        attack(tmp_path / "vault", engine=SerialEngine())


def test_missing_libraries_are_named(exposed, monkeypatch):
    from g2d.attacks import art

    monkeypatch.setattr(art.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(G2DError, match=r"g2d\[attacks\]"):
        attack(exposed, engine=SerialEngine())


def test_every_family_is_complete():
    assert len(threats()) == len(_MODULES)
    for name, threat in threats().items():
        assert threat.name == name
        assert threat.title
        assert threat.question.endswith("?")
        assert all(dataclasses.astuple(threat.ids))
        assert threat.module.startswith("g2d.redteam.threats.")
        assert pickle.loads(pickle.dumps(threat)) == threat
        told = json.loads(json.dumps(threat.as_json()))
        assert told["curve"] is None or {"x", "by", "across", "title"} <= set(told["curve"])


# --- parts ---------------------------------------------------------------------------------------


def chain_of(count, fixed=False):
    networks = tuple(Network(f"/{i}", str(i), str(i)) for i in range(count))
    return Chain("c", networks, fixed=fixed)


@pytest.mark.parametrize(
    ("count", "exposed", "later", "read", "scored"),
    [
        (41, 20, 11, range(10, 30), range(30, 41)),
        (6, 5, 11, range(5), [5]),
        (6, 1, 11, [0], range(1, 6)),
        (3, 20, 11, range(2), [2]),
        (1, 1, 11, [0], [0]),
    ],
)
def test_a_chain_is_split_in_time(count, exposed, later, read, scored):
    before, after = chain_of(count).split(exposed, later)
    assert [n.digest for n in before] == [str(i) for i in read]
    assert [n.digest for n in after] == [str(i) for i in scored]


def test_a_fixed_chain_is_read_once_and_scored_on_its_copies():
    before, after = chain_of(4, fixed=True).split(20, 2)
    assert [n.digest for n in before] == ["0"]
    assert [n.digest for n in after] == ["1", "2"]


def test_damaged_pieces_count_as_absent(tmp_path):
    cache = RowCache(tmp_path / "rows")
    key = key_of(a=1)
    assert cache.get(key) is None
    cache.put(key, {"rows": []})
    assert cache.get(key) == {"rows": []}
    (file,) = (tmp_path / "rows").iterdir()
    file.write_text("{")
    assert cache.get(key) is None


def test_keys_depend_on_everything_named():
    assert key_of(a=1, b=2) == key_of(b=2, a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1)}) == 3


def test_code_version_follows_imports_not_pages():
    closure = _closure("g2d.redteam.threats.adaptive")
    assert {"g2d.attacks.eot", "g2d.attacks.pgd", "g2d.generator.guidance"} <= closure
    assert not {"g2d.report.page", "g2d.cli.main", "g2d.report.figures"} & closure
    assert code_version("g2d.attacks.eot") != code_version("g2d.attacks.pgd")


def test_rows_without_a_number_say_why():
    row = not_measured(
        "privacy", "privacy-membership", "members", "generated", "LiRA", "2 shadows, 16 are needed"
    )
    plain = row.as_json(IDS)
    assert plain["value"] is None
    assert plain["harm"] is None
    assert plain["status"] == Status.NOT_MEASURED == "not measured"


def test_harm_is_the_asr_unless_said_otherwise():
    row = Row("stale", "stale-single", "t", "generated", "a", share(1, 4))
    assert row.as_json(IDS)["harm"] == 0.25
    other = dataclasses.replace(row, metric="agreement")
    assert other.as_json(IDS)["harm"] is None


def test_adaptive_draws_fold_into_the_best(tmp_path):
    from g2d.redteam.threats.adaptive import merge

    def row(draws, wins, attacker="samples"):
        extra = {"attacker": attacker, "draws": draws}
        return Row("adaptive", "k", "t", "generated", "EOT", share(wins, 100), extra=extra)

    folded = merge([row(1, 10), row(10, 30), row(50, 31), row(20, 9, "proposals")])
    assert len(folded) == 2
    assert folded[0].value.value == 0.31
    assert [point["draws"] for point in folded[0].extra["curve"]] == [1, 10, 50]
    assert "no longer help, within the interval" in folded[0].note
    assert "still rising" in merge([row(1, 10), row(10, 90)])[0].note


def test_adaptive_rows_say_where_knowing_more_wins_less():
    from g2d.redteam.threats.adaptive import merge

    def row(attacker, draws, wins):
        extra = {"attacker": attacker, "draws": draws}
        value = share(wins, 100)
        return Row("adaptive", "k", "t", "generated", "EOT", value, note="n", extra=extra)

    samples, proposals, everything, recipe = merge(
        [row("samples", 50, 40), row("proposals", 16, 38), row("everything", 60, 10),
         row("recipe", 3, 1)]
    )  # fmt: skip
    assert "knows more" not in samples.note
    assert proposals.note.startswith("n; knows more than whoever owns the generator (40.0 %)")
    assert proposals.note.endswith("wins less (within the interval): averages over fewer networks")
    assert everything.note.endswith("yet wins less: averaging over more networks weakens each")
    assert recipe.note == "n"


def test_adaptive_runs_on_a_tiny_vault(vault):
    results = attack(vault, threats=["adaptive"], quick=True, engine=SerialEngine())
    by = {(row["extra"].get("attacker"), row["target"]): row for row in results["rows"]}
    assert by["samples", "generated"]["scored"] == results["chains"]["draws"]["networks"]
    assert by["own generator", "generated"]["status"] == "ok"
    losses = {row["attack"].partition("steps of ")[2] for row in results["rows"]
              if row["extra"].get("attacker") == "everything"}  # fmt: skip
    assert losses == {"4, cross-entropy loss", "4, probability loss"}
    assert "known networks, 1 of them" in by["recipe", "frozen"]["attack"]
    assert by["recipe", "frozen"]["gradient_steps"] == 10
    # A permutation is the same function: what works on the frozen model works on it.
    frozen, permuted = by["recipe", "frozen"], by["recipe", "permuted"]
    assert abs(frozen["value"]["value"] - permuted["value"]["value"]) < 0.02


def test_eot_averages_over_draws():
    from g2d.attacks.eot import eot_pgd

    x, y = torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.long)
    # Two linear networks that disagree on the first coordinate and agree on the second.
    nets = [
        lambda z, s=s: torch.stack([s * 3 * z[:, 0] + z[:, 1], 0 * z[:, 0]], 1) for s in (1, -1)
    ]
    made = eot_pgd(
        lambda: nets, x, y, eps=0.1, steps=20, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(made[:, 1], torch.tensor(0.4), atol=1e-3)
    with pytest.raises(SettingsError, match="eps"):
        eot_pgd(lambda: nets, x, y, eps=2, steps=1, generator=torch.Generator())
    with pytest.raises(SettingsError, match="one step"):
        eot_pgd(lambda: nets, x, y, eps=0.1, steps=0, generator=torch.Generator())
    with pytest.raises(SettingsError, match="loss"):
        eot_pgd(lambda: nets, x, y, eps=0.1, steps=1, generator=torch.Generator(), loss="hinge")


def test_eot_maximises_the_probability_of_an_error():
    from g2d.attacks.eot import eot_pgd

    # One network errs already, and its cross-entropy is the steeper one; the other can be made to.
    nets = [
        lambda z, a=a, b=b: torch.stack([a * z[:, 0] + b, 0 * z[:, 0]], 1)
        for a, b in ((30, -40), (-10, 5.5))
    ]
    x, y, wins = torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.long), {}
    for loss in ("cross-entropy", "probability"):
        made = eot_pgd(
            lambda: nets, x, y, eps=0.1, steps=20, generator=torch.Generator().manual_seed(0),
            loss=loss,
        )  # fmt: skip
        wins[loss] = sum(float((net(made)[:, 0] < 0).float().mean()) for net in nets)
    assert wins == {"cross-entropy": 1, "probability": 2}


def test_services_are_attacked_by_families_that_can(exposed):
    with pytest.raises(SettingsError, match="only on a vault"):
        attack(
            exposed, threats=["stale"], service=runner.ServiceAddress("http://127.0.0.1:1", "m"),
            engine=SerialEngine(), quick=True,
        )  # fmt: skip
