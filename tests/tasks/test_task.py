"""A task that does not fit itself is refused in words."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from g2d.errors import DataError, SettingsError, TaskError
from g2d.tasks.splits import Split, Splits, split_dataset
from g2d.tasks.task import Task


def toy_splits(n=40, classes=3, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 4, generator=generator) * (high - low) + low
    return split_dataset(x, torch.arange(n) % classes)


def linear():
    return nn.Linear(4, 3)


def toy(**changed):
    given = {"name": "toy", "factory": linear, "splits": toy_splits(), "classes": 3, "eps": 0.1}
    return Task(**(given | changed))


def with_batch_norm():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))


class Broken(nn.Module):
    """A model whose output the test chooses."""

    def __init__(self, out):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.out = out

    def forward(self, x):
        return self.out(x)


ONE = nn.Linear(4, 3)


def raises(*_):
    raise RuntimeError("out of luck")


def unseeded():
    model = nn.Linear(4, 3)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(next(COUNT)))
    return model


COUNT = iter(range(10**6))


@pytest.mark.parametrize("factory", [linear, with_batch_norm])
def test_a_fitting_task_is_taken(factory):
    task = toy(factory=factory)
    assert isinstance(task.model(0), nn.Module)
    assert task.model(0).training


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"factory": lambda: "no module"}, "gives str, expected a torch.nn.Module"),
        ({"factory": raises}, "factory raised RuntimeError: out of luck"),
        ({"factory": lambda: ONE}, "same module each time"),
        ({"factory": unseeded}, "other parameters for the same seed"),
        ({"factory": nn.Flatten}, "no parameters"),
        ({"factory": lambda: nn.LazyLinear(3)}, "lazy"),
        ({"factory": lambda: nn.Linear(5, 3)}, r"fails on inputs \(2, 4\) torch.float32"),
        ({"factory": lambda: nn.Linear(4, 3).double()}, "fails on inputs"),
        ({"factory": lambda: nn.Linear(4, 5)}, r"gives \(2, 5\).*expected float logits \(2, 3\)"),
        ({"factory": lambda: Broken(lambda x: x[:, :3].long())}, "torch.int64.*float logits"),
        ({"factory": lambda: Broken(lambda x: [x])}, "list.*float logits"),
        ({"factory": lambda: Broken(lambda x: x[:, :3] / 0)}, "not finite"),
        ({"classes": 1}, "at least 2"),
        ({"classes": 3.0}, "at least 2"),
        ({"loss": raises}, "loss raised RuntimeError"),
        ({"loss": lambda z, y: F.cross_entropy(z, y, reduction="none")}, "finite scalar"),
        ({"eps": 0.0}, "expected a positive number"),
        ({"eps": float("nan")}, "expected a positive number"),
        ({"eps": 1.5}, "larger than the data's range 1"),
        ({"bounds": (1.0, 0.0)}, "bounds are"),
        ({"bounds": (0.0, float("inf"))}, "bounds are"),
        ({"bounds": (0.0, 0.5)}, "outside its bounds 0 to 0.5"),
        ({"bounds": (0.5, 1.0)}, "outside its bounds 0.5 to 1"),
        ({"splits": toy_splits(low=-2, high=2)}, "normalise inside the model"),
        ({"augment": raises}, "augmentation raised RuntimeError"),
        ({"augment": lambda x, g: x[:1]}, "augmentation gives"),
        ({"augment": lambda x, g: None}, "augmentation gives"),
    ],
)
def test_a_task_refuses(changed, words):
    with pytest.raises(TaskError, match=words) as caught:
        toy(**changed)
    assert "'toy'" in str(caught.value)


@pytest.mark.parametrize("part", ["train", "guide", "gate", "test"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(part, label):
    good = toy_splits()
    parts = dict(vars(good))
    y = parts[part].y.clone()
    y[-1] = label
    parts[part] = Split(parts[part].x, y)
    with pytest.raises(DataError, match=rf"{part} split.*expected \[0, 2\]"):
        toy(splits=Splits(**parts))


def test_unbounded_data():
    task = toy(splits=toy_splits(low=-50, high=70), bounds=None, eps=5.0)
    assert task.bounds is None


def test_settings_of_a_task_are_checked():
    assert toy(settings={"population": {"base_steps": 400}}).settings
    # A task that was written for 0.1.0: its vaults open, and it is trained as it was.
    assert toy(settings={"population": {"harden": 0.3}, "guidance": {"robust": 0.5}}).settings
    with pytest.raises(SettingsError, match="base_steps"):
        toy(settings={"population": {"base_step": 400}})
    with pytest.raises(SettingsError, match="base_steps"):
        toy(settings={"population": {"base_steps": -1}})
    with pytest.raises(SettingsError, match="is a section"):
        toy(settings={"population": 400})


def test_the_checks_and_models_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    task = toy(factory=with_batch_norm, augment=lambda x, g: x + 0 * torch.rand(1, generator=g))
    task.model(5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_is_its_seed():
    task = toy()
    torch.manual_seed(123)
    first = task.model(7).weight
    torch.manual_seed(456)
    assert torch.equal(first, task.model(7).weight)
    assert not torch.equal(first, task.model(8).weight)


def test_the_generator_is_restored_when_a_factory_raises():
    task = toy()
    object.__setattr__(task, "factory", raises)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        task.model(1)
    assert torch.equal(before, torch.get_rng_state())
