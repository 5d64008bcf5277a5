from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import g2d
from g2d.attacks.inference import halves, likelihood_ratio, logit_confidence, matched
from g2d.errors import SettingsError
from g2d.redteam.context import AttackContext, Chain, Network, RunSpec
from g2d.redteam.rows import Row, Status
from g2d.redteam.scoring import share
from g2d.redteam.threats.privacy import inversion, membership, networks
from g2d.redteam.threats.privacy import threat as privacy
from g2d.weights.checkpoints import digest, pack


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_confidence_is_the_log_odds_and_stays_finite():
    logits = torch.randn(50, 4, generator=generator())
    y = torch.randint(4, (50,), generator=generator(1))
    p = logits.double().softmax(1).gather(1, y[:, None]).squeeze(1)
    assert torch.allclose(logit_confidence(logits, y), (p / (1 - p)).log(), atol=1e-6)
    extreme = logit_confidence(torch.tensor([[500.0, 0.0], [0.0, 500.0]]), torch.tensor([0, 0]))
    assert torch.equal(extreme, torch.tensor([500.0, -500.0], dtype=torch.float64))


def test_halves_are_halves_of_shadows_and_of_points():
    inside = halves(6, 40, generator())
    assert bool((inside.sum(1) == 20).all())
    assert bool((inside.sum(0) == 3).all())
    with pytest.raises(SettingsError, match="two"):
        halves(1, 40, generator())


def planted(shift: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Confidences of 16 shadows and a target where being inside adds `shift`; members first."""
    n, g = 4000, generator()
    hard = 3 * torch.randn(n, generator=g)
    inside = halves(16, n, g)
    phi = hard + shift * inside + torch.randn(16, n, generator=g)
    member = torch.arange(n) < n // 2
    return hard + shift * member + torch.randn(n, generator=g), phi, inside


def test_lira_reaches_the_known_area_of_two_normals_and_confidence_alone_does_not():
    target, phi, inside = planted(2.0)
    scores = likelihood_ratio(target, phi, inside)
    # Two normals two deviations apart: Phi(2 / sqrt 2) = 0.921, less what 8 estimates a mean cost.
    assert 0.88 < membership.area(scores, 2000) < 0.93
    assert membership.area(target, 2000) < 0.75
    assert membership.area(likelihood_ratio(matched(5 * target + 3, phi), phi, inside), 2000) > 0.9
    none = likelihood_ratio(*planted(0.0))
    assert 0.47 < membership.area(none, 2000) < 0.53
    assert membership.true_positives(none, 2000, 0.01).value < 0.025


def test_a_point_that_is_always_inside_scores_nothing():
    inside = torch.tensor([[True, True], [True, False]])
    scores = likelihood_ratio(torch.ones(2), torch.randn(2, 2, generator=generator()), inside)
    assert float(scores[0]) == 0
    assert bool(torch.isfinite(scores).all())


def test_true_positives_never_allow_more_false_ones_than_said():
    scores = torch.cat([torch.arange(100.0), torch.arange(100.0)])
    for rate in (0.0, 0.01, 0.1, 0.5):
        assert membership.true_positives(scores, 100, rate).value == pytest.approx(rate)
    ties = torch.ones(200)
    assert membership.true_positives(ties, 100, 0.5).value == 0
    assert membership.true_positives(ties, 100, 1.0).value == 1
    assert membership.area(ties, 100) == 0.5


@pytest.mark.parametrize(
    ("others", "rate", "shadows", "measured"),
    [
        (10_000, 0.001, 16, True), (9_999, 0.001, 16, False), (10_000, 0.001, 15, False),
        (1_000, 0.01, 8, True), (999, 0.01, 8, False), (1_000, 0.01, 7, False),
    ],
)  # fmt: skip
def test_a_rate_is_measured_only_with_enough_of_both(others, rate, shadows, measured):
    assert (membership.why_not(others, rate, shadows) == "") == measured


def test_correlation_sees_through_brightness():
    means = torch.rand(3, 1, 4, 4, generator=generator())
    found = inversion.correlations(0.5 * means + 0.1, means)
    assert torch.allclose(found.diagonal(), torch.ones(3, dtype=torch.float64))
    assert bool(inversion.correlations(torch.zeros(1, 1, 4, 4), means).isnan().all())


@pytest.fixture(scope="module")
def spec(tmp_path_factory, digits: g2d.Task) -> RunSpec:
    folder = tmp_path_factory.mktemp("privacy")

    def chain(name: str, count: int, first: int) -> Chain:
        networks = []
        for index in range(count):
            path = Path(folder, f"{name}{index}.safetensors")
            path.write_bytes(pack(digits.model(first + index).state_dict()))
            networks.append(Network(str(path), digest(path.read_bytes())))
        return Chain(name, tuple(networks), fixed=name == "frozen")

    chains = [chain("generated", 3, 0), chain("draws", 8, 20), chain("frozen", 1, 0)]
    chains.append(chain("retrained", 2, 40))
    settings = g2d.Settings()
    return RunSpec(digits, "", settings, {c.name: c for c in chains}, n=100, eps=0.1, quick=True)


def test_quick_membership_says_that_it_was_not_measured(spec):
    pytest.importorskip("art")
    (case,) = [c for c in privacy.plan(spec) if c.name == "membership"]
    assert set(case.reads) == {"generated", "draws", "frozen", "retrained"}
    rows = privacy.run(case, AttackContext(spec))
    assert {row.status for row in rows} == {Status.NOT_MEASURED}
    notes = " ".join(row.note for row in rows)
    assert "2 shadow models, fewer than 16" in notes
    assert "2 shadow models, fewer than 8" in notes
    assert "there are 11 networks, not 100" in notes
    assert {row.target for row in rows} == {"generated", "frozen", "retrained", "a shadow"}


def test_enough_points_and_shadows_are_measured(spec, monkeypatch):
    pytest.importorskip("art")
    monkeypatch.setattr(membership, "_LEAST_SHADOWS", {0.01: 2, 0.001: 2})
    (case,) = [c for c in privacy.plan(spec) if c.name == "membership"]
    options = tuple((k, 1000 if k in ("members", "others") else v) for k, v in case.options)
    splits = spec.source.splits
    many = torch.arange(1000)
    wide = dataclasses.replace(splits, test=splits.test.take(many % len(splits.test)))
    task = dataclasses.replace(spec.source, splits=wide)
    context = AttackContext(dataclasses.replace(spec, source=task))
    rows = privacy.run(dataclasses.replace(case, options=options), context)
    measured = [row for row in rows if row.status is Status.OK]
    assert {row.metric for row in measured} == {"TPR at 1 % FPR"}
    for row in measured:
        assert 0 <= row.harm <= 1
        assert 0 <= row.extra["auc"] <= 1
        assert row.extra["roc"][0]["true"] <= row.extra["roc"][-1]["true"] == 1


def test_inversion_counts_its_networks_and_needs_a_judge(spec):
    pytest.importorskip("art")
    context = AttackContext(spec)
    rows = {}
    for case in privacy.plan(spec):
        if case.name == "inversion":
            (rows[case.chain, case.number("networks")],) = privacy.run(case, context)
    assert rows["generated", 100].status is Status.NOT_MEASURED
    assert rows["generated", 10].scored == 10
    assert rows["retrained", 10].scored == 1  # the other one judges
    assert rows["frozen", 1].metric == "class recognised"
    chains = {k: c for k, c in spec.chains.items() if k != "retrained"}
    bare = dataclasses.replace(spec, chains=chains)
    case = next(c for c in privacy.plan(bare) if c.name == "inversion")
    (row,) = privacy.run(case, AttackContext(bare))
    assert row.status is Status.NOT_MEASURED


def test_inversion_of_unbounded_data_is_not_measured(spec):
    task = dataclasses.replace(spec.source, bounds=None)
    case = next(c for c in privacy.plan(spec) if c.name == "inversion")
    (row,) = privacy.run(case, AttackContext(dataclasses.replace(spec, source=task)))
    assert row.status is Status.NOT_MEASURED
    assert "images" in row.note


def test_nothing_is_planned_without_generations(spec):
    assert privacy.plan(dataclasses.replace(spec, chains={})) == []


def lira(target: str, hits: int, metric: str = "TPR at 1 % FPR") -> Row:
    kind = networks.CONTROL if target == "a shadow" else networks.MEMBERS
    attack, known = "LiRA online, 16 shadows", {"metric": metric, "harm": 0.1}
    return Row("privacy", kind, "membership", target, attack, share(hits, 1000), **known)


def test_without_power_in_the_positive_control_membership_harms_nobody_and_says_so():
    weak = privacy.merge([lira("generated", 50), lira("a shadow", 15)])
    assert [row.harm for row in weak] == [None, None]
    assert all(row.note.startswith("no power: the positive control is at chance") for row in weak)
    assert weak[0].value == share(50, 1000)
    strong = [lira("generated", 50), lira("a shadow", 60)]
    assert privacy.merge(strong) == strong
    (alone,) = privacy.merge([lira("generated", 50, "TPR at 0.1 % FPR")])
    assert alone.harm is None
    assert "not measured" in alone.note
    other = dataclasses.replace(lira("generated", 50), kind=networks.SECOND)
    assert privacy.merge([other]) == [other]


def test_an_inversion_has_as_many_trials_as_classes():
    row = Row("privacy", networks.CLASSES, "a class", "frozen", "ART MIFace", share(15, 30),
              metric="class recognised", extra={"starts": 3})  # fmt: skip
    (merged,) = privacy.merge([row])
    assert merged.value == share(5, 10)
    assert merged.extra["images"] == 30
    assert privacy.merge([merged]) == [merged]
