"""The loop is given its optimiser, its batches and what happens between backward and step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

import g2d
from g2d.errors import SettingsError
from g2d.settings import HardenSettings
from g2d.training.loop import Batches, NextStep, adam, clean_step, train
from g2d.training.recipes import HardenedTraining, Part, Recipe, Setup, Step, find, try_out
from hardening import trained
from places import example


def batches(task: g2d.Task, size: int = 16) -> Batches:
    return Batches(task, task.splits.train, size, torch.Generator().manual_seed(0))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_adam_and_random_batches_are_what_it_has_by_itself(digits):
    def run(**more) -> torch.Tensor:
        model = digits.model(0)
        train(model, clean_step(digits, batches(digits)), steps=12, rate=1e-3, **more)
        return weights(model)

    plain = run()
    assert torch.equal(run(optimizer=adam, between=()), plain)
    assert not torch.equal(run(optimizer=lambda m, r: SGD(m.parameters(), r)), plain)


def test_the_schedule_scales_the_rate_of_each_group(digits):
    seen = []

    def grouped(model: nn.Module, rate: float) -> torch.optim.Optimizer:
        first, *rest = model.parameters()
        return SGD([{"params": [first], "lr": 10 * rate}, {"params": rest}], rate)

    def look(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])

    train(digits.model(0), clean_step(digits, batches(digits)), steps=10, rate=0.01,
          optimizer=grouped, between=(look,))  # fmt: skip
    assert [round(a / b) for a, b in seen] == [10] * 10
    assert max(b for _, b in seen) == pytest.approx(0.009)  # a warm-up of two steps, then decay
    assert seen[-1][1] == pytest.approx(0.001)


def test_hooks_stand_between_backward_and_step_in_their_order(digits):
    model, told = digits.model(0), []
    before = weights(model)

    def first(_: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        told.append("between")
        assert not torch.is_grad_enabled()
        assert torch.equal(weights(model), before)
        assert any(bool(p.grad.abs().sum() > 0) for p in model.parameters())

    def second(of: nn.Module, _: torch.optim.Optimizer) -> None:
        told.append("zeroed")
        for p in of.parameters():
            p.grad.zero_()

    def after(_: nn.Module, rate: float) -> NextStep:
        told.append("after")
        return NextStep.END

    train(model, clean_step(digits, batches(digits)), steps=5, rate=1e-2, between=(first, second),
          after=after)  # fmt: skip
    assert told == ["between", "zeroed", "after"]
    assert torch.equal(weights(model), before), "the second hook had the last word"


# --- what recipes exchange -----------------------------------------------------------------------


class Counting(Recipe):
    """Counts what each seam is asked for."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def prepare(self, setup: Setup) -> Setup:
        inner = setup.batches

        class Source:
            def draw(_) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N805
                self.told.append("draw")
                return inner.draw()

        return setup.replace(
            batches=Source(),
            optimizer=lambda m, r: self.told.append("optimizer") or SGD(m.parameters(), r),
            between=(*setup.between, lambda *_: self.told.append("between")),
        )

    def __call__(self, step: Step) -> Step:
        self.told.append("step")
        return step


def test_a_recipe_sets_optimiser_sampler_and_hook_for_its_training(digits):
    recipe = Counting()
    training = HardenedTraining(digits, HardenSettings(), batches(digits), 2, seed=0,
                                extra=(recipe,))  # fmt: skip
    training.run(digits.model(0), 1e-3)
    assert recipe.told == ["optimizer", *["draw", "step", "between"] * 2]


def test_a_recipe_that_changes_nothing_gives_the_same_bytes(digits):
    assert Recipe().check(digits, HardenSettings()) is None
    plain, same = (
        HardenedTraining(digits, HardenSettings(), batches(digits), 5, seed=0, extra=extra)
        for extra in ((), (Recipe(),))
    )
    assert torch.equal(*(weights(t.run(digits.model(0), 1e-2)) for t in (plain, same)))


class Attacking(Recipe):
    adversarial = True

    def __call__(self, step: Step) -> Step:
        return step.add(Part(step.attack(), step.criterion))


def test_a_training_on_its_own_attacks_is_looked_at_whichever_recipe_makes_them(digits):
    settings = HardenSettings(recipe=(f"{__name__}:Attacking",), steps=1, checks=2)
    training = HardenedTraining(digits, settings, batches(digits), 4, seed=0)
    training.run(digits.model(0), 1e-3)
    assert [found.done for found in training.monitor.checks] == [0.5, 1.0]
    plain = HardenSettings(recipe=("l2",))
    assert HardenedTraining(digits, plain, batches(digits), 4, seed=0).monitor is None


class Demanding(Recipe):
    def __init__(self, more: int) -> None:
        self.more = more


def test_a_recipe_that_cannot_be_made_is_refused():
    with pytest.raises(SettingsError, match="calling it raised TypeError"):
        find(f"{__name__}:Demanding")


class Nothing(Recipe):
    def prepare(self, setup: Setup) -> Setup:
        return None  # type: ignore[return-value]


class BadHook(Recipe):
    def prepare(self, setup: Setup) -> Setup:
        def hook(*_: object) -> None:
            raise KeyError("of the hook")

        return setup.replace(between=(hook,))


class BadOptimizer(Recipe):
    def prepare(self, setup: Setup) -> Setup:
        return setup.replace(optimizer=lambda m, _: SGD(m.parameters(), -1.0))


class BadSampler(Recipe):
    def prepare(self, setup: Setup) -> Setup:
        return setup.replace(batches=object())


class Unready(Recipe):
    def prepare(self, setup: Setup) -> Setup:
        raise ValueError("of the preparation")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Nothing, "prepared NoneType; it has to return the setup"),
        (BadHook, r"a gradient hook of recipe .* step 1 of 1: KeyError: 'of the hook' \(.*loop.py"),
        (BadOptimizer, r"the optimiser of recipe .* ValueError: Invalid learning rate"),
        (BadSampler, r"the sampler of recipe .* AttributeError"),
        (Unready, r"the preparation of recipe .*Unready' fails .* ValueError: of the preparation"),
    ],
)
def test_what_a_recipe_prepares_badly_fails_before_the_training(digits, recipe, message):
    settings = HardenSettings(recipe=(f"{__name__}:{recipe.__name__}",))
    with pytest.raises(SettingsError, match=message):
        try_out(digits, settings)


# --- the examples of docs/extending.md -----------------------------------------------------------


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Write an example as the module of its name; return what its settings call it."""

    def write(heading: str, module: str) -> None:
        (tmp_path / f"{module}.py").write_text(example(heading))
        monkeypatch.syspath_prepend(tmp_path)

    import sys

    yield write
    for name in ("mixup", "careful"):
        sys.modules.pop(name, None)


def test_the_recipe_of_the_docs_blends_inputs_and_labels(digits, shown):
    shown("A training recipe", "mixup")
    settings = HardenSettings(recipe=("mixup:mixup", "l2"))
    try_out(digits, settings)
    from g2d.tasks.inference import accuracy
    from hardening import step_of

    step = find("mixup:mixup")(step_of(digits, settings))
    (part,) = step.parts
    assert step.clean == 0.5
    assert part.x.shape == step.x.shape
    assert not torch.equal(part.x, step.x)
    assert accuracy(trained(digits, settings), digits.splits.gate) > 0.9


def test_the_gradient_hook_and_sampler_of_the_docs_act(digits, shown):
    shown("An optimiser, a sampler, a gradient hook", "careful")
    settings = HardenSettings(recipe=("careful:Careful",))
    training = HardenedTraining(digits, settings, batches(digits), 60, seed=0)
    setup = training.setup
    y = torch.cat([setup.batches.draw()[1] for _ in range(200)])
    share = torch.bincount(y, minlength=10) / len(y)
    assert (share - 0.1).abs().max() < 0.025, "every class is drawn equally often"

    model = digits.model(0)
    assert isinstance(training.optimizer(model, 1e-3), SGD)
    model.get_parameter("0.weight").grad = torch.full_like(model.get_parameter("0.weight"), 50.0)
    training.between(model, training.optimizer(model, 1e-3))
    gradient = model.get_parameter("0.weight").grad
    assert gradient.norm() == pytest.approx(1.0, abs=0.1), "clipped"
    assert gradient.std() == pytest.approx(0.01, rel=0.3), "and noised"

    from g2d.tasks.inference import accuracy

    again = [trained(digits, settings) for _ in range(2)]
    assert accuracy(again[0], digits.splits.gate) > 0.85
    assert torch.equal(*(weights(m) for m in again)), "the same seed gives the same bytes"


def test_rare_classes_are_drawn_as_often_as_frequent_ones(digits, shown):
    shown("An optimiser, a sampler, a gradient hook", "careful")
    from careful import EveryClassEqually  # type: ignore[import-not-found]

    y = digits.splits.train.y
    rare = torch.cat([(y == 0).nonzero()[:5, 0], (y == 1).nonzero()[:50, 0]])
    split = digits.splits.train.take(rare.tolist())
    source = EveryClassEqually(digits, split, 400, torch.Generator().manual_seed(1))
    assert float((source.draw()[1] == 0).double().mean()) == pytest.approx(0.5, abs=0.08)
