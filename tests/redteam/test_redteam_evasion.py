"""The gradient-based families: they plan what a site allows and find what was planted."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from g2d.redteam.context import AttackContext, Chain
from g2d.redteam.rows import Row, Status, not_measured
from g2d.redteam.scoring import share
from g2d.redteam.threats import threat
from g2d.redteam.threats import universal as universal_family
from g2d.redteam.threats.whitebox import budgets
from g2d.tasks.splits import split_dataset
from g2d.tasks.task import Task
from sites import cases, site_of, trained

pytest.importorskip("pyautoattack")

EVASION = ("white-box", "stale", "universal", "sanity")


@pytest.mark.parametrize("name", EVASION)
def test_plans_name_only_chains_that_exist_and_every_number_that_decides(name, spec):
    planned = threat(name).plan(spec)
    assert {case.chain for case in planned} <= set(spec.chains)
    assert all(case.family == name for case in planned)
    assert all(set(case.reads) <= set(spec.chains) and case.chain in case.reads for case in planned)
    assert all(case.number("n") > 0 for case in planned)
    keys = [(case.name, case.chain, case.options) for case in planned]
    assert len(set(keys)) == len(keys)
    empty = dataclasses.replace(spec, chains={})
    assert threat(name).plan(empty) == []


@pytest.mark.parametrize("name", EVASION)
def test_full_plans_cover_the_issues_numbers(name, spec):
    long = Chain("generated", spec.chains["generated"].networks * 7)
    full = dataclasses.replace(
        spec, quick=False, chains={"generated": long, "frozen": spec.chains["frozen"]}
    )
    planned = threat(name).plan(full)
    if name == "white-box":
        assert len([c for c in planned if c.name == "autoattack" and c.chain == "generated"]) >= 10
    if name == "stale":
        joint = {c.number("k") for c in planned if c.name == "transfer" and c.chain == "generated"}
        assert joint == {1, 5, 20}
        assert {c.option("attack") for c in planned if c.name == "transfer"} == {"apgd", "momentum"}
        assert all(len(long.split(k, 11)[1]) >= 10 for k in joint)


def test_budgets_end_at_the_whole_range():
    assert budgets(0.2, (0.0, 1.0))[-1] == 1.0
    assert 0.2 in budgets(0.2, (0.0, 1.0))
    assert max(budgets(0.9, (0.0, 1.0))) == 1.0
    assert len(budgets(8 / 255, (0.0, 1.0))) == 9
    assert budgets(0.5, None)[-1] == 8


def test_the_sweep_rises_to_one(spec, context):
    (case,) = cases("white-box", spec, name="sweep", chain="generated")
    (row,) = threat("white-box").run(case, context)
    values = [point["value"] for point in row.extra["curve"]]
    assert values[-1] == 1
    assert all(b >= a - 0.1 for a, b in itertools.pairwise(values))
    assert row.value.value == next(p["value"] for p in row.extra["curve"] if p["eps"] == spec.eps)
    assert "accuracy is 0 from eps" in row.note


@pytest.mark.slow
def test_autoattack_is_no_weaker_than_apgd(spec, context):
    (case,) = cases("white-box", spec, name="autoattack", chain="generated")
    case = dataclasses.replace(case, options=(("number", 5), ("n", 6)))
    (row,) = threat("white-box").run(case, context)
    (sweep,) = cases("white-box", spec, name="sweep", chain="generated")
    sweep = dataclasses.replace(sweep, options=(("n", 6), ("steps", 100)))
    (other,) = threat("white-box").run(sweep, context)
    assert row.value.value >= other.value.value
    assert row.extra == {"number": 5, "label": "generation 5"}
    assert row.gradient_steps == 1900


def test_merging_folds_the_networks_of_a_chain_and_leaves_the_rest():
    def one(target, number, flipped):
        return Row(
            "white-box", "white-box-autoattack", "white-box", target, "AutoAttack standard",
            share(flipped, 10), clean_accuracy=share(10, 10), seconds=2.0,
            chain=target, extra={"number": number, "label": "x"},
        )  # fmt: skip

    sweep = Row("white-box", "white-box-sweep", "swept", "generated", "APGD", share(5, 10))
    kind, attack = "white-box-autoattack", "AutoAttack standard"
    failed = not_measured("white-box", kind, "white-box", "generated", attack, "why")
    rows = [one("generated", 0, 2), sweep, one("generated", 1, 6), one("soup", 4, 9), failed]
    merged = threat("white-box").merge(rows)
    assert merged[1] is sweep
    first, soup = merged[0], merged[2]
    assert (first.value.value, first.worst.value, first.scored, first.seconds) == (0.4, 0.6, 2, 4.0)
    assert first.value.n == 10
    assert [n["value"] for n in first.extra["networks"]] == [0.2, 0.6]
    assert "mean and worst over 2 networks" in first.attack
    assert (soup.target, soup.value.value, soup.scored) == ("soup", 0.9, 1)
    assert merged[3] is failed


@pytest.mark.parametrize("name", ["stale", "universal"])
def test_a_fixed_chain_shows_no_defence(name, spec, context):
    """Frozen and permuted are one function: what was crafted on it works on it as it did."""
    for chain in ("frozen", "permuted"):
        for case in cases(name, spec, chain=chain):
            for row in threat(name).run(case, context):
                if name == "stale":
                    assert row.value.value > 0.4
                    assert row.value == row.worst
                elif case.name == "fitted":
                    assert row.value.value == row.extra["white_box"]["value"]


def test_what_is_fitted_beats_patterns_and_is_kept_by_data_of_its_own(spec, context):
    rows = {c.name: threat("universal").run(c, context)[0]
            for c in cases("universal", spec, chain="frozen")}  # fmt: skip
    fitted, pattern = rows["fitted"], rows["pattern"]
    assert pattern.threat.startswith("universal, nothing fitted")
    assert pattern.gradient_steps == 0
    assert pattern.extra["kept"].startswith(("constant", "random signs"))
    assert fitted.value.value > pattern.value.value
    assert fitted.extra["kept"].startswith("fitted from")
    fit = universal_family._Fit(cases("universal", spec, chain="frozen")[0], context)
    guide = spec.source.splits.guide
    assert len(fit.own) + len(fit.held) == len(guide)
    both = {x.numpy().tobytes() for x in fit.own.x} & {x.numpy().tobytes() for x in fit.held.x}
    assert len(both) <= len(guide) - len({x.numpy().tobytes() for x in guide.x})


def test_a_transferred_perturbation_that_beats_the_own_one_is_told(spec, context):
    case = cases("universal", spec, chain="generated", name="fitted")[0]
    note = universal_family._remark(case, context, share(1, 10), share(2, 10), 1, "x")
    assert "this one, transferred, beats it (20.0 %)" in note
    assert "beats" not in universal_family._remark(
        case, context, share(2, 10), share(2, 10), 1, "x"
    )


def test_joint_attacks_know_more_networks_and_say_when_the_chain_is_short(spec, context):
    rows = {
        (case.number("k"), case.option("attack")): threat("stale").run(case, context)[0]
        for case in cases("stale", spec, chain="generated", name="transfer")
    }
    assert set(rows) == {(k, a) for k in (1, 5) for a in ("apgd", "momentum")}
    assert rows[5, "apgd"].gradient_steps == 5 * rows[1, "apgd"].gradient_steps
    assert rows[5, "apgd"].scored == 1
    assert rows[1, "apgd"].scored == 5
    assert rows[5, "apgd"].value.value > rows[1, "apgd"].value.value
    short = Chain("generated", spec.chains["generated"].networks[:3])
    few = dataclasses.replace(spec, chains={"generated": short})
    last = cases("stale", few, name="transfer")[-1]
    assert last.number("k") == 2
    assert "5 exposed were asked for" in threat("stale").run(last, AttackContext(few))[0].note


def test_age_zero_is_the_crafted_network_itself(spec, context):
    (case,) = cases("stale", spec, chain="generated", name="age")
    (row,) = threat("stale").run(case, context)
    curve = row.extra["curve"]
    assert [point["age"] for point in curve] == list(range(len(curve)))
    assert len(curve) >= 3
    assert all(point["value"] < curve[0]["value"] for point in curve[1:])
    (fixed,) = cases("stale", spec, chain="frozen", name="age")
    (row,) = threat("stale").run(fixed, context)
    assert len(row.extra["curve"]) == len(curve)
    assert len({point["value"] for point in row.extra["curve"]}) == 1


def test_hindsight_picks_the_worst_exposed_network(spec, context):
    (case,) = cases("stale", spec, chain="generated", name="worst")
    row = threat("stale").run(case, context)[0]
    assert row.value.value == max(point["value"] for point in row.extra["each"])
    assert len(row.extra["each"]) == 5


def test_tries_count_an_image_that_any_stored_attack_flips(spec, context):
    (case,) = cases("stale", spec, chain="generated", name="worst")
    single, tries = threat("stale").run(case, context)
    assert tries.threat == "stale, best of 5 tries"
    assert (tries.queries, tries.gradient_steps, tries.scored) == (5, 100, 1)
    # Six networks: both rows read the first five and are scored on the last.
    assert single.value.value < tries.value.value <= 1
    assert tries.value.value <= sum(point["value"] for point in single.extra["each"])
    long = Chain("generated", spec.chains["generated"].networks * 4)
    many = dataclasses.replace(spec, chains={"generated": long})
    _, tries = threat("stale").run(case, AttackContext(many))
    assert (tries.queries, tries.scored) == (5, 11)
    assert tries.worst.value >= tries.value.value


def test_what_would_follow_next_meets_attacks_on_the_vaults_last_generations(spec):
    vault = spec.chains["generated"].networks
    chains = {
        "generated": Chain("generated", vault[:4]),
        "unrotated": Chain("unrotated", vault[3:4], fixed=True),
        "rival": Chain("rival", vault[4:5]),
        "draws": Chain("draws", vault[5:] * 20),
    }
    fresh = dataclasses.replace(spec, chains=chains)
    context = AttackContext(fresh)
    for name, scored in (("rival", 1), ("draws", 11)):
        planned = cases("stale", fresh, chain=name)
        assert {case.reads for case in planned} == {(name, "generated")}
        assert [(c.number("k"), c.option("attack")) for c in planned] == [(1, "apgd"), (4, "apgd")]
        single, joint = (threat("stale").run(case, context)[0] for case in planned)
        assert (single.threat, joint.threat) == ("stale, single", "stale, joint over the last 4")
        assert {single.scored, joint.scored} == {scored}
        assert "what would follow next" in joint.note
        assert "the chain is 4 networks long" in joint.note
    (case,) = cases("stale", fresh, chain="unrotated", name="transfer")[:1]
    assert threat("stale").run(case, context)[0].value.value > 0.4
    alone = dataclasses.replace(spec, chains={"rival": chains["rival"]})
    assert cases("stale", alone) == []


def test_one_network_has_nothing_stale(spec):
    alone = Chain("generated", spec.chains["generated"].networks[:1])
    lonely = dataclasses.replace(spec, chains={"generated": alone})
    for name in ("stale", "universal"):
        for case in cases(name, lonely):
            (row,) = threat(name).run(case, AttackContext(lonely))
            assert row.status == Status.NOT_MEASURED
            assert "generate more" in row.note


@pytest.mark.parametrize("name", ["stale", "universal", "sanity"])
def test_the_same_case_gives_the_same_rows_in_another_room(name, spec, context):
    case = cases(name, spec, chain="generated")[0]
    assert threat(name).run(case, context) == threat(name).run(case, AttackContext(spec))


@pytest.mark.slow
def test_tables_of_numbers_without_a_range_are_attacked_too(tmp_path):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 3
    x = 3 * torch.eye(3).repeat(1, 2)[y] + torch.randn(600, 6, generator=g)
    task = Task(
        "table", lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)),
        split_dataset(x, y), classes=3, eps=0.8, bounds=None,
    )  # fmt: skip
    spec = site_of(task, tmp_path, [trained(task, seed, 60) for seed in range(3)])
    context = AttackContext(spec)
    for name in EVASION:
        for case in threat(name).plan(spec):
            if case.name == "autoattack" or case.chain != "generated":
                continue  # seconds a network; tests/test_attacks.py has it on such tables
            for row in threat(name).run(case, context):
                assert row.status == Status.OK
                assert row.value is not None
                assert row.extra.get("passed", True), row
