"""Private steps: each record's own gradient, clipped once; secret samples, attacks and noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.optim import SGD

from g2d.settings import HardenSettings, PrivacySettings
from g2d.tasks.splits import Split
from g2d.training.loop import Batches
from g2d.training.recipes import HardenedTraining, Private, PrivatePlan, Recipe
from g2d.training.recipes import private as module
from g2d.training.recipes import private_entropy as entropy
from g2d.training.recipes import private_gradients as per_record

pytest.importorskip("opacus")

PRIVACY = PrivacySettings(enabled=True, records=800, batch=32, clip=0.1, against=2, against_steps=2)


class Plainly(Recipe):
    """SGD, so that a step is the gradient."""

    per_record = True

    def prepare(self, setup):
        return setup.replace(optimizer=lambda model, rate: SGD(model.parameters(), rate))


@pytest.fixture(scope="module")
def released(digits):
    return [digits.model(seed).eval().requires_grad_(False) for seed in (8, 9)]


def plan_of(noise=0.0, released=(), **more):
    return PrivatePlan(PRIVACY, noise, released=released, **more)


def training_of(task, plan, steps=1, harden=None):
    batches = Batches(task, task.splits.train, 64, torch.Generator().manual_seed(0))
    return HardenedTraining(
        task, harden or HardenSettings(), batches, steps, seed=0, extra=(Plainly(),),
        private=Private(plan),
    )  # fmt: skip


class Fixed:
    """Always the same batch."""

    def __init__(self, split):
        self.split = split

    def draw(self):
        return self.split.x, self.split.y


def one_step(task, plan, split, monkeypatch, how=None):
    """The noised and scaled gradient of a step on a batch, and what the batch was learned from."""
    torch.manual_seed(0)
    monkeypatch.setattr(module, "secret_generator", lambda: torch.Generator().manual_seed(3))
    run = training_of(task, plan)
    run.setup = run.setup.replace(batches=Fixed(split))
    model = task.model(0).train()
    if how is not None:
        run.private._gradients = how(task)
    optimizer = run.optimizer(model, 1.0)
    loss = run(model)
    views, _ = run.private._waiting
    optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():
        run.between(model, optimizer)
    before = weights(model)
    optimizer.step()
    return before - weights(model), views


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(task, views, y, clip):
    """The sum of the records' gradients on a fresh model, each no longer than `clip`."""
    model = task.model(0).train()
    total = torch.zeros_like(weights(model))
    for own, label in zip(views, y, strict=True):
        loss = task.loss(model(own), label.expand(len(own)))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
        total += gradient * min(1.0, clip / float(gradient.norm()))
    return total


@pytest.mark.parametrize("how", [per_record.by_vmap, per_record.by_hooks])
def test_a_step_is_the_sum_of_clipped_gradients_by_a_public_number(
    digits, released, monkeypatch, how
):
    monkeypatch.setattr(per_record, "_ROOM", 5 * 5530)  # pieces of five, the last one of two
    split = digits.splits.train.take(range(12))
    moved, views = one_step(
        digits, plan_of(released=released, light_eps=0.1), split, monkeypatch, how
    )
    assert views.shape == (12, 4, 1, 8, 8), "itself, on itself, on two released networks"
    assert torch.equal(views[:, 0], split.x)
    assert 0 < float((views[:, 1] - split.x).abs().max()) <= 0.1 + 1e-6
    assert 0.1 < float((views[:, 2:] - split.x[:, None]).abs().max()) <= digits.eps + 1e-6
    hand = by_hand(digits, views, split.y, PRIVACY.clip) / PRIVACY.batch
    torch.testing.assert_close(moved, hand, rtol=1e-3, atol=1e-7)


def test_one_record_moves_the_sum_by_its_clip_at_most(digits, released, monkeypatch):
    plan = plan_of(released=released, light_eps=0.1)
    split = digits.splits.train.take(range(9))
    odd = torch.full_like(split.x[:1], 1e6), split.y[:1]
    strange = Split(torch.cat([split.x, odd[0]]), torch.cat([split.y, odd[1]]))
    monkeypatch.setattr(Private, "_targets", lambda self: [])  # starts are drawn batch by batch
    without, _ = one_step(digits, plan, split, monkeypatch)
    for more in (digits.splits.train.take(range(10)), strange):
        with_it, _ = one_step(digits, plan, more, monkeypatch)
        moved = float((with_it - without).norm()) * PRIVACY.batch
        assert 0.0 < moved <= PRIVACY.clip * (1 + 1e-4)


def test_no_other_record_enters_a_records_gradient(digits, released, monkeypatch):
    """Not by its attacks, not by the network: others of any kind beside it change nothing."""
    plan = plan_of(released=released, adversarial=True)
    split = digits.splits.train.take(range(6))
    others = Split(torch.rand_like(split.x), (split.y + 3) % 10)
    others.x[0], others.y[0] = split.x[0], split.y[0]
    model, found = digits.model(0).train(), []
    for batch in (split, others):
        _, views = one_step(digits, plan, batch, monkeypatch)
        found.append((views[0], [g[0] for g in per_record.by_vmap(digits)(model, views, batch.y)]))
    (one, own), (same, again) = found
    torch.testing.assert_close(one, same, rtol=0, atol=1e-6)
    for a, b in zip(own, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_record_that_breaks_the_numbers_counts_for_nothing(digits, monkeypatch):
    split = digits.splits.train.take(range(4))
    task = replace(digits, loss=lambda z, y: digits.loss(z, y) / (y[0] != split.y[2]))
    moved, _ = one_step(task, plan_of(), split, monkeypatch)
    rest = split.take([i for i in range(4) if split.y[i] != split.y[2]])
    hand = by_hand(digits, rest.x[:, None], rest.y, PRIVACY.clip) / PRIVACY.batch
    torch.testing.assert_close(moved, hand, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("size", [0, 7])
def test_noise_is_added_in_clips_and_an_empty_batch_is_a_step_too(digits, monkeypatch, size):
    split = digits.splits.train.take(range(size))
    noised, _ = one_step(digits, plan_of(noise=2.0), split, monkeypatch)
    quiet, _ = one_step(digits, plan_of(), split, monkeypatch)
    assert bool(quiet.any()) is bool(size)
    std = float((noised - quiet).std())
    assert std == pytest.approx(2.0 * PRIVACY.clip / PRIVACY.batch, rel=0.08)


def test_noise_never_comes_again_and_all_else_does(digits, released, monkeypatch):
    plan = plan_of(noise=1.0, released=released, light_eps=0.1)
    made = [training_of(digits, plan, 3).run(digits.model(0), 0.1) for _ in range(2)]
    assert not torch.equal(*(weights(model) for model in made)), "the seed is no secret"
    # With what is secret put in place, the rest follows the seed to the bit.
    draws = [torch.rand(10**4, dtype=torch.float64).numpy() for _ in range(3)]
    monkeypatch.setattr(
        entropy, "uniforms", lambda n, d=draws: d[0][:n] if n <= 10**4 else d[0].repeat(9)[:n]
    )
    monkeypatch.setattr(module, "secret_generator", lambda: torch.Generator().manual_seed(3))
    made = [training_of(digits, plan, 3).run(digits.model(0), 0.1) for _ in range(2)]
    assert torch.equal(*(weights(model) for model in made))


def test_secrets_are_fresh_and_of_the_right_law():
    numbers = entropy.gaussians(4000)
    assert kstest(numbers, "norm").pvalue > 1e-9
    assert kstest(entropy.uniforms(4000), "uniform").pvalue > 1e-9
    one, other = entropy.secret_generator(), entropy.secret_generator()
    same = torch.equal(torch.rand(8, generator=one), torch.rand(8, generator=other))
    assert not same
    first = one.get_state()
    assert kstest(torch.rand(4000, generator=one).numpy(), "uniform").pvalue > 1e-9
    assert not torch.equal(first, one.get_state())


def test_records_are_drawn_one_by_one_by_a_public_rate_and_augmented_alone(digits):
    seen = []

    def watched(x, generator):
        seen.append(len(x))
        return x

    task = replace(digits, augment=watched)
    batches = training_of(task, plan_of()).setup.batches
    seen.clear()
    sizes = [len(batches.draw()[1]) for _ in range(200)]
    n = len(digits.splits.train)
    expected = n * PRIVACY.batch / PRIVACY.records
    assert len(set(sizes)) > 12
    assert sum(sizes) / 200 == pytest.approx(expected, abs=6 * (expected / 200) ** 0.5)
    assert set(seen) == {1}
    assert len(seen) == sum(sizes)


def test_hooks_find_what_vmap_cannot_and_leave_no_trace(digits):
    class Counted(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * (1 if float(x.detach().sum()) < 1e9 else 2)

    task = replace(digits, factory=lambda: Counted(nn.Flatten(), nn.Linear(64, 10)))
    model = task.model(0).train()
    how = per_record.pick(model, task)
    split = task.splits.train.take(range(3))
    found = how(model, split.x[:, None], split.y)
    plain = replace(digits, factory=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    twin = plain.model(0).train()
    twin.load_state_dict(model.state_dict())
    for one, same in zip(
        found, per_record.by_vmap(plain)(twin, split.x[:, None], split.y), strict=True
    ):
        torch.testing.assert_close(one, same)
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in model.parameters())
    assert not model[1]._forward_hooks


def test_an_attack_of_the_users_own_is_given_one_record_at_a_time(digits, released, monkeypatch):
    sizes = []

    def attack(models, x, y, generator):
        sizes.append(len(x))
        return x + 0.01 * x.mean()  # of a batch it would mix records

    task = replace(digits, attack=attack)
    sizes.clear()
    split = task.splits.train.take(range(5))
    _, views = one_step(task, plan_of(released=released), split, monkeypatch)
    assert sizes == [1] * 10
    torch.testing.assert_close(views[:, 1], split.x + 0.01 * split.x.mean((1, 2, 3), True))
    nothing = replace(digits, attack="none")
    _, views = one_step(nothing, plan_of(released=released, light_eps=0.1), split, monkeypatch)
    assert views.shape[1] == 1


def test_recipes_draw_from_what_nobody_can_follow(digits):
    """Else how many numbers they took, which is how many records there were, is in what follows."""
    run = training_of(digits, plan_of())
    assert run.setup.generator is run.private._secret
    assert run.private._public is not run.private._secret


def test_an_empty_batch_changes_no_later_choice_of_attacked_networks(digits, released):
    """What a step does may hang on what was given out before, and not on who was in a sample."""
    chosen = []
    for size in (0, 3):
        run = training_of(digits, plan_of(released=released), 2)
        run.setup = run.setup.replace(batches=Fixed(digits.splits.train.take(range(size))))
        run(digits.model(0).train())
        chosen.append(run.private._public.get_state())
    assert torch.equal(*chosen)
