"""Query attacks and extraction: budgets hold, the clock counts, rows say what happened."""

import dataclasses
import json

import pytest
import torch
from test_targets import serve
from torch import nn

import g2d
from g2d.attacks.query import SpentError, art_square, clock_square, hop_skip_jump
from g2d.errors import SettingsError
from g2d.redteam.context import AttackContext, Chain, Network, RunSpec
from g2d.redteam.query_log import QueryLog, by_count
from g2d.redteam.rows import Status
from g2d.redteam.scoring import attack_rate
from g2d.redteam.targets import Fixed, Rotating
from g2d.redteam.threats.extraction import threat as extraction
from g2d.redteam.threats.query import threat as query
from g2d.redteam.threats.query.rotating import Attackers
from g2d.tasks.inference import accuracy, predict
from g2d.tasks.splits import Split
from g2d.weights.checkpoints import digest, pack

pytest.importorskip("art")

__all__ = ["serve"]
EPS = 0.15


def source(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def victims(digits):
    """Three small networks on digits, trained a second each."""
    models = []
    x, y = digits.splits.train.x, digits.splits.train.y
    for seed in range(3):
        model = digits.model(seed)
        optimizer = torch.optim.Adam(model.parameters(), 0.005)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models.append(model.eval().requires_grad_(False))
    assert min(accuracy(model, digits.splits.gate) for model in models) > 0.9
    return models


@pytest.fixture(scope="module")
def split(victims, digits):
    gate = digits.splits.gate
    right = torch.stack([predict(m, gate.x).argmax(1) == gate.y for m in victims]).all(0)
    return gate.take(right.nonzero()[:40, 0])


def log(models, split, budget, every=None, eps=EPS):
    return QueryLog(by_count(models, every), split, eps=eps, budget=budget, bounds=(0.0, 1.0))


def launch(name, lanes, eps=EPS, every=None, seed=0):
    x, y = lanes.split.x, lanes.split.y
    known = {"bounds": (0.0, 1.0)}
    if name == "ours":
        known |= {"eps": eps, "budget": lanes.budget, "generator": source(seed), "every": every}
        return clock_square(lanes, x, y, **known)
    known |= {"seed": seed, "classes": 10}
    if name == "square":
        return art_square(lanes, x, y, eps=eps, budget=lanes.budget, **known)
    return hop_skip_jump(lanes, x, y, **known)


@pytest.mark.parametrize("name", ["ours", "square", "hop"])
@pytest.mark.parametrize("every", [None, 7])
def test_no_lane_spends_more_than_its_budget_and_equal_seeds_agree(victims, split, name, every):
    few = split.take(range(6))
    logs = []
    for _ in range(2):
        lanes = log(victims, few, 60, every)
        found = launch(name, lanes, every=every)
        assert found.shape == few.x.shape
        assert int(lanes.spent.max()) <= 60
        logs.append(lanes)
    assert torch.equal(logs[0].first, logs[1].first)
    assert torch.equal(logs[0].spent, logs[1].spent)
    assert torch.equal(logs[0].found, logs[1].found)


def test_what_the_log_calls_won_fools_the_network_that_answered(victims, split):
    for name in ("ours", "square", "hop"):
        lanes = log(victims, split, 200, every=50)
        launch(name, lanes, every=50)
        won = lanes.first > 0
        assert bool(won.any()), name
        scores, _ = by_count(victims, None, lanes.network)(
            lanes.found[won], won.nonzero()[:, 0], torch.ones(int(won.sum()), dtype=torch.long)
        )
        assert bool((scores.argmax(1) != split.y[won]).all())
        assert float((lanes.found - split.x).abs().max()) <= EPS + 1e-6


def test_our_square_is_no_worse_than_arts_and_the_authors_own(victims, digits):
    """On a frozen model, at the same number of queries.

    It is better: ART asks three times an iteration, and both ask about squares that change nothing.
    """
    pytest.importorskip("pyautoattack")
    from g2d.attacks import square

    gate, model = digits.splits.gate, victims[0]
    right = (predict(model, gate.x).argmax(1) == gate.y).nonzero()[:, 0]
    many = gate.take(right[:150])
    ours, arts = log([model], many, 150), log([model], many, 150)
    launch("ours", ours)
    launch("square", arts)
    assert ours.asr(150).value >= arts.asr(150).value - 0.03
    found = square(model, many.x, many.y, eps=EPS, queries=150, seed=0, bounds=(0.0, 1.0))
    reference = attack_rate(model, found, many, EPS, (0.0, 1.0)).value
    assert 0.2 < reference < 0.9
    assert ours.asr(150).value >= reference - 0.03


class Scripted:
    """An API that answers with margins from a list, query by query, and keeps what it was asked."""

    def __init__(self, margins):
        self.margins, self.asked = list(margins), []

    def __call__(self, x, lanes):
        if not self.margins:
            raise SpentError
        self.asked.append(x.clone())
        return torch.tensor([[self.margins.pop(0), 0.0]]).repeat(len(x), 1)


def test_the_best_point_is_asked_again_when_the_network_changes():
    """One query a proposal and one a re-evaluation, and what is stale is forgotten."""
    x, y = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0])
    #       stripes better worse  | new: worse for it, then better than that | again
    api = Scripted([5.0, 3.0, 4.0, 9.0, 8.0, 8.5, 7.0, 6.0])
    best = clock_square(api, x, y, eps=0.1, budget=8, every=3, generator=source(0))
    asked = api.asked
    assert len(asked) == 8
    assert torch.equal(asked[3], asked[1]), "best of the first network, asked of the second"
    assert torch.equal(asked[6], asked[4]), "8.0 beat the 9.0 that the new network gave"
    assert torch.equal(best, asked[7])
    without = Scripted([5.0, 3.0, 4.0, 9.0, 8.0, 8.5, 7.0, 6.0])
    best = clock_square(without, x, y, eps=0.1, budget=8, generator=source(0))
    assert torch.equal(best, without.asked[1]), "who knows no clock clings to what is stale"


def test_square_stops_asking_about_what_it_has_won_and_stays_in_the_ball():
    x, y = torch.rand((5, 3, 7, 9), generator=source(1)), torch.zeros(5, dtype=torch.long)
    seen = []

    def api(points, lanes):
        seen.append(lanes.tolist())
        assert float((points - x[lanes]).abs().max()) <= 0.2 + 1e-6
        assert float(points.min()) >= 0
        assert float(points.max()) <= 1
        margin = torch.where(lanes < 2, -1.0, 1.0)
        return torch.stack([margin, torch.zeros(len(lanes))], 1)

    clock_square(api, x, y, eps=0.2, budget=4, generator=source(2))
    assert seen == [[0, 1, 2, 3, 4], *[[2, 3, 4]] * 3]


def test_every_proposal_of_square_changes_something():
    x, y = torch.rand((4, 1, 8, 8), generator=source(3)), torch.zeros(4, dtype=torch.long)
    points = []

    def api(asked, lanes):
        points.append(asked.clone())
        return torch.tensor([[float(len(points)), 0.0]]).repeat(len(asked), 1)  # never better

    clock_square(api, x, y, eps=0.1, budget=50, generator=source(0))
    for point in points[1:]:
        assert bool((point != points[0]).flatten(1).any(1).all())


def test_a_budget_outside_the_range_is_refused(split):
    with pytest.raises(SettingsError, match="data range"):
        launch("ours", log([nn.Identity()], split, 5), eps=1.5)


def test_art_square_tells_lanes_apart_when_networks_change(victims, split):
    """Every input lies in the ball of the lane that it is booked on."""

    def api(points, lanes):
        assert float((points - split.x[lanes]).abs().max()) <= EPS + 1e-6
        return lanes_log(points, lanes)

    lanes_log = log(victims, split, 120, every=11)
    art_square(api, split.x, split.y, eps=EPS, budget=120, seed=1, bounds=(0.0, 1.0), classes=10)
    assert 0 < lanes_log.asr(120).value < 1


# --- families ---


@pytest.fixture(scope="module")
def spec(victims, digits, tiny_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    networks = []
    for k, model in enumerate([*victims, digits.model(9)]):
        data = pack(model.state_dict())
        (folder / f"{k}.safetensors").write_bytes(data)
        networks.append(Network(str(folder / f"{k}.safetensors"), digest(data), str(k)))
    trained = tuple(networks[:3])
    chains = {
        "generated": Chain("generated", (networks[3], *trained)),
        "draws": Chain("draws", trained[::-1]),
        "frozen": Chain("frozen", trained[:1], fixed=True),
    }
    return RunSpec(digits, "", tiny_settings, chains, n=60, eps=EPS, quick=True)


@pytest.mark.slow
def test_rows_of_a_quick_run_are_complete(spec):
    context = AttackContext(spec)
    rows = [row for case in query.plan(spec) for row in query.run(case, context)]
    assert {row.target for row in rows} >= {
        "generated, no rotation", "generated, a rotation every 100 queries", "frozen, no rotation",
    }  # fmt: skip
    for row in rows:
        assert row.status is Status.OK, row.note
        curve = [point["value"] for point in row.extra["curve"]]
        assert curve == sorted(curve)
        assert row.value.value == curve[-1]
        finds = round(row.value.value * row.value.n)
        kept = row.extra["durable_of_all"]
        assert (row.extra["durable"] or {"n": 0})["n"] == finds
        assert kept["n"] == row.value.n
        assert kept["value"] <= row.value.value
        if finds:
            assert row.extra["durable"]["value"] * finds == pytest.approx(kept["value"] * kept["n"])
        assert row.clean_accuracy.value > 0.8, "the untrained first network is never met"
        assert row.queries == row.extra["curve"][-1]["queries"]
        json.dumps(row.as_json(query.THREAT.ids))
    again = query.run(query.plan(spec)[0], AttackContext(spec))
    assert [row.value for row in again] == [row.value for row in rows[: len(again)]]


def test_full_plans_name_every_network_that_they_read(spec):
    full = dataclasses.replace(spec, quick=False)
    for family in (query, extraction):
        cases = family.plan(full)
        assert {case.chain for case in cases} == {"generated", "frozen"}
        assert all(set(case.reads) <= set(spec.chains) for case in cases)
        assert all("draws" in case.reads for case in cases if case.chain == "generated")
        assert family.plan(dataclasses.replace(spec, chains={})) == []


def test_one_network_cannot_rotate(spec):
    single = Chain("generated", spec.chains["generated"].networks[1:2])
    lonely = dataclasses.replace(spec, chains={"generated": single})
    for family in (query, extraction):
        context = AttackContext(lonely)
        rows = [row for case in family.plan(lonely) for row in family.run(case, context)]
        silent = [row for row in rows if row.extra["every"]]
        assert silent
        assert all(row.status is Status.NOT_MEASURED and "rotate" in row.note for row in silent)
        assert {row.chain for row in rows} == {"generated"}
        assert any(row.status is Status.OK for row in rows)


def test_a_copy_agrees_with_its_victim_and_attacks_on_it_transfer(spec):
    context = AttackContext(spec)
    case = next(c for c in extraction.plan(spec) if c.chain == "frozen")
    agreed, fooled = extraction.run(case, context)
    assert (agreed.metric, fooled.metric) == ("agreement", "ASR")
    assert agreed.harm == agreed.value.value > 0.5
    assert 0 < fooled.value.value <= 1
    assert agreed.queries == 300
    assert agreed.value == extraction.run(case, AttackContext(spec))[0].value
    soft = dataclasses.replace(case, name="knockoff")
    assert extraction.run(soft, context)[0].value.value > 0.5


def test_a_live_service_is_attacked_like_the_rest(spec, victims, serve):
    url, _ = serve(Rotating(victims, (1, 8, 8), 10, every=300))
    context = AttackContext(spec)
    for family in (query, extraction):
        for case in family.plan_service(spec, url, "m"):
            for row in family.run(case, context):
                assert row.status is Status.OK, row.note
                assert row.target == url
                assert 0 < row.value.value <= 1


def test_a_service_that_dies_leaves_a_row_with_what_was_found(spec, victims, serve):
    context = AttackContext(spec)
    for family in (query, extraction):
        for case in family.plan_service(spec, "", "m"):
            url, _ = serve(Fixed(victims[0], (1, 8, 8), 10), dies_after=31)
            options = tuple((k, url if k == "url" else v) for k, v in case.options)
            short = dataclasses.replace(case, options=options)
            if family is extraction:
                url, _ = serve(Fixed(victims[0], (1, 8, 8), 10), dies_after=1)
                options = tuple((k, url if k == "url" else v) for k, v in case.options)
                short = dataclasses.replace(case, options=options)
            (row,) = family.run(short, context)
            assert row.status is Status.DIED
            assert "died after" in row.note
            assert row.queries > 0
            assert (row.value is None) == (family is extraction)


def test_a_service_of_another_task_or_nobody_is_told(spec, serve):
    context = AttackContext(spec)
    url, _ = serve(Fixed(nn.Identity(), (1, 4, 4), 10))
    for family in (query, extraction):
        (row,) = family.run(family.plan_service(spec, url, "m")[0], context)
        assert row.status is Status.NOT_MEASURED
        assert "(1, 4, 4)" in row.note
        (row,) = family.run(family.plan_service(spec, "http://127.0.0.1:9", "m")[0], context)
        assert row.status is Status.DIED
        assert row.queries == 0


def test_a_stale_start_is_the_first_question_and_stays_in_the_ball():
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 0])
    api = Scripted([5.0, 6.0, 4.0])
    start = x + torch.tensor([0.07, 0.9])[:, None, None, None]
    clock_square(api, x, y, eps=0.1, budget=3, generator=source(0), start=start)
    assert torch.allclose(api.asked[0].flatten(1).amax(1), torch.tensor([0.57, 0.6]))


def test_searches_on_generations_and_controls_are_equally_long_and_broad(spec):
    cases = query.plan(dataclasses.replace(spec, quick=False))
    for name in ("square", "square-clock", "hop-skip-jump"):
        sizes = {(c.number("images"), c.number("budget")) for c in cases if c.name == name}
        assert len(sizes) == 1
    assert [c.number("budget") for c in cases if c.name == "square-long"] == [10_000]


def test_a_long_search_is_read_at_its_end_with_and_without_a_slow_clock(spec):
    context = AttackContext(dataclasses.replace(spec, quick=False))
    case = next(c for c in query.plan(context.spec) if c.name == "square-long")
    options = (("images", 20), ("budget", 40), ("at", 40), ("periods", "0"))
    never, slow = query.run(dataclasses.replace(case, options=options), context)
    assert (never.value, never.queries) == (slow.value, 40)
    assert (never.target, slow.extra["every"]) == ("generated, no rotation", 10_000)


def test_a_stale_start_uses_only_what_was_exposed(spec):
    context = AttackContext(spec)
    case = next(c for c in query.plan(spec) if c.name == "square-stale")
    attackers = Attackers(case, context)
    assert attackers._exposed(0) == spec.chains["generated"].networks[:1]
    assert attackers._exposed(2) == spec.chains["generated"].networks[:3]
    rows = attackers.rows()
    assert {row.threat for row in rows} == {
        "API, scores; knows the clock and holds exposed generations"
    }
    assert all(row.extra["curve"][0]["queries"] == 1 for row in rows)


def test_tabular_data_are_measured_by_our_query_attack_alone(spec, tmp_path):
    splits = g2d.load_task("digits").splits
    flat = [Split(s.x.flatten(1), s.y) for s in (splits.train, splits.guide, splits.gate)]
    test = Split(splits.test.x.flatten(1), splits.test.y)
    task = g2d.Task("flat", lambda: nn.Linear(64, 10), g2d.Splits(*flat, test), classes=10, eps=0.1)
    networks = []
    for seed in range(3):
        data = pack(task.model(seed).state_dict())
        (tmp_path / str(seed)).write_bytes(data)
        networks.append(Network(str(tmp_path / str(seed)), digest(data)))
    chains = {"generated": Chain("generated", tuple(networks))}
    own = dataclasses.replace(spec, source=task, chains=chains)
    cases = {case.name: case for case in query.plan(own)}
    (row,) = query.run(cases["square"], AttackContext(own))
    assert row.status is Status.NOT_MEASURED
    assert "images" in row.note
    for name in ("square-clock", "square-stale"):
        rows = query.run(cases[name], AttackContext(own))
        assert all(row.status is Status.OK and row.value.n for row in rows)
