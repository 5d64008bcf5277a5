"""The basin-aware attacker: networks are sorted, a basin is recognised, soups are means."""

import dataclasses

import pytest
import torch

from g2d.attacks.eot import Tricks, eot_pgd
from g2d.attacks.losses import LOSSES, find_loss
from g2d.errors import SettingsError
from g2d.redteam.context import AttackContext
from g2d.redteam.threats import threat
from g2d.redteam.threats.basins.knowledge import recognised, sort_into_basins
from g2d.redteam.threats.basins.threat import counts
from sites import site_of, trained


@pytest.fixture(scope="module")
def two_basins(digits_task, tmp_path_factory):
    """Six networks of two basins in turn: each is its basin's first one, a little moved."""
    founders = [trained(digits_task, seed) for seed in (0, 1)]
    g = torch.Generator().manual_seed(0)
    states = []
    for i in range(6):
        noise = {n: t.std() * torch.randn(t.shape, generator=g) for n, t in founders[0].items()}
        states.append({n: t + 0.02 * noise[n] for n, t in founders[i % 2].items()})
    return site_of(digits_task, tmp_path_factory.mktemp("basins"), states)


def test_exposed_networks_are_sorted_and_a_target_is_recognised(two_basins):
    context = AttackContext(two_basins)
    networks = context.chain("generated").networks
    basins = sort_into_basins(context, networks[:5])
    assert [len(basin) for basin in basins] == [3, 2]
    x = context.task.splits.guide.x[:64]
    assert recognised(context.model(networks[4]), basins, x) == 0
    assert recognised(context.model(networks[5]), basins, x) == 1


def test_a_soup_is_a_mean_of_the_basins_networks_and_one_alone_is_itself(two_basins):
    context = AttackContext(two_basins)
    first, second = sort_into_basins(context, context.chain("generated").networks[:3])
    x, g = context.task.splits.guide.x[:8], torch.Generator().manual_seed(1)
    assert torch.allclose(second.soup(g)(x), second.models[0](x), atol=1e-5)
    assert second.drawing(4, g)() == list(second.models)
    drawn = first.drawing(4, g)()
    assert len(drawn) == 4
    assert set(drawn[:2]) <= set(first.models)
    assert not any(torch.equal(drawn[3](x), model(x)) for model in first.models)


def test_rows_stand_beside_what_they_would_be_had_it_stayed(two_basins):
    spec = dataclasses.replace(two_basins, quick=True)
    context, one = AttackContext(spec), threat("basins")
    rows = {}
    for case in one.plan(spec):
        for row in one.run(case, context):
            rows[row.kind, row.chain] = row
    union, single = rows["basin-union", "generated"], rows["basin-fingerprint", "generated"]
    assert (union.extra["basins"], union.extra["exposed"], union.scored) == (2, 5, 1)
    assert union.value.value >= single.value.value
    assert union.extra["stayed"]["value"] > 0.3
    frozen = rows["basin-union", "frozen"]
    assert frozen.value.value == frozen.extra["stayed"]["value"]
    assert single.queries == 64


def test_the_curve_goes_to_the_last_rotation(two_basins):
    spec = dataclasses.replace(two_basins, quick=False)
    context, one = AttackContext(spec), threat("basins")
    (case,) = [c for c in one.plan(spec) if (c.name, c.chain) == ("rotations", "generated")]
    case = dataclasses.replace(case, options=(("n", 40), ("steps", 5)))
    (row,) = one.run(case, context)
    assert [point["rotations"] for point in row.extra["curve"]] == [1, 2, 3, 5]
    assert counts(40) == [1, 2, 3, 5, 8, 13, 21, 34, 40]
    assert counts(0) == []


def test_many_tries_win_at_least_as_much_as_one_a_basin(two_basins):
    context, one = AttackContext(two_basins), threat("basins")
    cases = {(c.name, c.chain): c for c in one.plan(two_basins)}
    few = (("n", 40), ("steps", 5))
    known = dataclasses.replace(cases["known", "generated"], name="tries", options=few)
    single = dataclasses.replace(cases["known", "generated"], options=few)
    (tries,) = one.run(known, context)
    assert tries.queries == 4 * tries.extra["basins"]
    assert tries.value.value >= one.run(single, context)[0].value.value


def test_tables_of_numbers_are_tried_without_the_tricks_for_images(tmp_path):
    from g2d.tasks.splits import split_dataset
    from g2d.tasks.task import Task

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 4, generator=g), torch.arange(200) % 2
    task = Task("table", lambda: torch.nn.Linear(4, 2), split_dataset(x, y), classes=2,
                bounds=None, eps=0.3)  # fmt: skip
    spec = site_of(task, tmp_path, [task.model(seed).state_dict() for seed in range(3)])
    context, one = AttackContext(spec), threat("basins")
    (case,) = [c for c in one.plan(spec) if (c.name, c.chain) == ("known", "generated")]
    case = dataclasses.replace(case, name="tries", options=(("n", 20), ("steps", 3)))
    (row,) = one.run(case, context)
    assert row.queries == 2 * row.extra["basins"]
    assert row.value is not None


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_higher_where_the_example_is_closer_to_falling(name):
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.2, 1.0, 0.0], [0.0, 0.5, 0.0]])
    y = torch.tensor([0, 0, 0])
    values = find_loss(name)(logits, torch.tensor([1, 1, 1]) if name == "towards" else y)
    assert bool((values[1:] > values[:-1]).all())


def test_a_margin_counts_no_more_once_a_network_errs():
    far = torch.tensor([[0.0, 9.0, 0.0]])
    assert float(find_loss("margin")(far, torch.tensor([0]))) == 1.0
    with pytest.raises(SettingsError, match="the loss is one of"):
        find_loss("marign")


def test_tricks_keep_the_ball_and_are_refused_where_there_are_no_images(context):
    split, model = context.examples(20), context.models(context.chain("generated").networks)[0]
    tricks = Tricks("margin", 1.0, hardest=0.5, diversity=1.0, smooth=3)

    def attacked(x, tricks):
        known = {"eps": 0.1, "steps": 4, "generator": torch.Generator().manual_seed(0)}
        return eot_pgd(lambda: [model, model], x, split.y, **known, tricks=tricks)

    made = attacked(split.x, tricks)
    assert float((made - split.x).abs().max()) <= 0.1 + 1e-6
    assert not torch.equal(made, attacked(split.x, Tricks("margin", 1.0)))
    with pytest.raises(SettingsError, match="for images"):
        attacked(split.x.flatten(1), tricks)
    with pytest.raises(SettingsError, match="odd width"):
        attacked(split.x, Tricks(smooth=4))
