"""A task that does not fit itself is refused in words; built-in tasks are what they say."""

import math
import multiprocessing
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from g2d.errors import DataError, G2DError, SettingsError, TaskError
from g2d.settings import Settings, build
from g2d.tasks import networks
from g2d.tasks.builtin import load_task
from g2d.tasks.splits import Split, Splits, split_dataset
from g2d.tasks.task import Task
from places import SHARED


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


class NeverTrains(nn.Linear):
    """A model that a check in training mode would trip over, as batch norm does on one example."""

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return super().forward(x)


def raises(*_):
    raise RuntimeError("out of luck")


def unseeded():
    model = nn.Linear(4, 3)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(next(COUNT)))
    return model


COUNT = iter(range(10**6))


# --- what a task checks -------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [linear, with_batch_norm, lambda: NeverTrains(4, 3)])
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


# --- built-in tasks -----------------------------------------------------------------------------


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("factory", "shape", "count"),
    [
        (networks.digits_cnn, (2, 1, 8, 8), 5_530),
        (networks.mnist_cnn, (2, 1, 28, 28), 28_210),
        (networks.resnet18, (2, 3, 32, 32), 11_173_962),
    ],
)
def test_architectures(factory, shape, count):
    model = factory()
    assert parameters(model) == count
    with torch.no_grad():
        assert model(torch.zeros(shape)).shape == (2, 10)


def test_digits():
    task = load_task("digits")
    assert (task.name, task.classes, task.eps, task.bounds) == ("digits", 10, 0.15, (0.0, 1.0))
    assert build(Settings, dict(task.settings), "test").population.base_steps == 600


def test_the_split_seed_is_used():
    first, again, other = (load_task("digits", seed=seed).splits.test.x for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_eps_overrides():
    assert load_task("digits", eps=0.05).eps == 0.05
    assert load_task("digits", eps=1.0).eps == 1.0
    for eps, words in ((1.01, "larger than the data's range"), (-0.1, "-0.1"), (math.nan, "nan")):
        with pytest.raises(TaskError, match=words):
            load_task("digits", eps=eps)


def test_unknown_names_are_answered():
    with pytest.raises(TaskError, match=r"Did you mean 'mnist'\? Built in are digits, mnist, mni"):
        load_task("minst")
    with pytest.raises(TaskError, match="module:callable"):
        load_task("")
    with pytest.raises(TaskError, match="drop --data"):
        load_task("digits", data="somewhere")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_missing_folder_is_named(name, tmp_path):
    with pytest.raises(DataError, match="no data folder was given"):
        load_task(name)
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_task(name, str(tmp_path / "nowhere"))


@pytest.mark.shared
def test_real_mnist_task():
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the real mnist files are needed")
    task = load_task("mnist", str(folder))
    assert (task.eps, len(task.splits.train), len(task.splits.test)) == (0.2, 42_000, 10_000)


def digits_sum():
    return load_task("digits").model(3)[0].weight.double().sum().item()


def send_digits_sum(send):
    send.send(digits_sum())


def test_a_spawned_worker_builds_the_same_model():
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=send_digits_sum, args=(send,))
    worker.start()
    assert receive.poll(60)
    assert receive.recv() == digits_sum()
    worker.join()


def test_a_task_can_be_pickled():
    task = load_task("digits")
    copy = pickle.loads(pickle.dumps(task))
    assert copy.factory is task.factory
    assert copy.loss is task.loss
    assert torch.equal(copy.splits.gate.x, task.splits.gate.x)


# --- augmentations ------------------------------------------------------------------------------

AUGMENTATIONS = [(networks.shift, (9, 1, 28, 28)), (networks.crop_and_flip, (9, 3, 32, 32))]


@pytest.mark.parametrize(("augment", "shape"), AUGMENTATIONS)
def test_augmentations_draw_from_their_generator_alone(augment, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    kept, before = x.clone(), torch.get_rng_state()
    first, again, other = (augment(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == x.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, kept)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 128])
def test_shift_moves_each_image_by_at_most_a_pixel(n):
    x = torch.zeros(n, 1, 28, 28)
    x[:, :, 14, 14] = 1
    seen = set()
    for seed in range(20):
        out = networks.shift(x, torch.Generator().manual_seed(seed))
        spots = out.nonzero()
        assert spots[:, 0].tolist() == list(range(n))
        seen |= {tuple(spot) for spot in spots[:, 2:].tolist()}
    assert seen <= {(14 + dy, 14 + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert len(seen) > 4


def test_crop_and_flip_equals_the_plain_way():
    """Every result is one of the 9 x 9 x 2 crops that a loop makes; all offsets and flips occur."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = F.pad(x, (4, 4, 4, 4))[0]
    crops = [padded[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    oracle = torch.stack([side for crop in crops for side in (crop, crop.flip(2))])
    out = networks.crop_and_flip(x.expand(2000, 3, 8, 8), torch.Generator().manual_seed(1))
    distance = torch.cdist(
        out.flatten(1), oracle.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest = distance.min(1)
    assert float(nearest.values.max()) == 0
    assert len(nearest.indices.unique()) == 162


# --- the user's own tasks -----------------------------------------------------------------------

OWN = """
import torch
from torch import nn
from g2d.data import Split, split_dataset
from g2d.tasks import Task

def factory():
    return nn.Linear(4, 2)

def make():
    x = torch.linspace(0, 1, 160).view(40, 4)
    return Task("own", factory, split_dataset(x, torch.arange(40) % 2), 2, eps=0.1)

def make_other():
    return 7

def make_badly():
    raise ValueError("no luck")

def make_misfit():
    x = torch.linspace(0, 1, 160).view(40, 4)
    return Task("own", factory, split_dataset(x, torch.arange(40) % 2), 3, eps=0.1)

def needs(folder):
    return folder

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A current directory with modules of the user's own, under names that no other test uses."""
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    name = f"own_{tmp_path.name}_{id(tmp_path)}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_syntax.py").write_text("def make(:")
    (tmp_path / f"{name}_exit.py").write_text("raise SystemExit(2)")
    (tmp_path / f"{name}_needs.py").write_text("import no_such_library_at_all")
    return name


def test_own_task(own):
    task = load_task(f"{own}:make")
    assert (task.name, task.eps) == ("own", 0.1)
    assert load_task(f"{own}:make", eps=0.3).eps == 0.3


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("_absent:make", "there is no module 'own_.*_absent' in "),
        (".py:make", "there is no module .* without '.py'"),
        (":mak", r"has no 'mak'. Did you mean 'make'\?"),
        (":number", "'number' is int, expected a function"),
        (":make_other", r"make_other\(\) returned int, expected a g2d.tasks.Task"),
        (":make_badly", r"make_badly\(\) without arguments raised ValueError: no luck"),
        (":make_misfit", r"raised TaskError: task 'own': the model gives \(2, 2\)"),
        (":needs", r"needs\(\) without arguments raised TypeError"),
        (":", "has no ''"),
        ("_syntax:make", "importing .* raised SyntaxError"),
        ("_exit:make", "importing .* raised SystemExit: 2"),
        ("_needs:make", "raised ModuleNotFoundError: No module named 'no_such_library_at_all'"),
    ],
)
def test_own_task_refuses(own, suffix, words):
    with pytest.raises(TaskError, match=words):
        load_task(own + suffix)


def test_own_task_without_a_module():
    with pytest.raises(TaskError, match="raised ValueError: Empty module name"):
        load_task(":make")


def test_own_task_takes_no_folder(own):
    with pytest.raises(G2DError, match="reads its own data"):
        load_task(f"{own}:make", data="somewhere")


def test_a_strided_stem_is_its_convolution_and_so_are_all_its_gradients() -> None:
    # Stated to be the same function: an attack's gradient takes another way than a forward pass.
    stem = networks.StridedStem(2, 5, 5, stride=2, padding=2).double()
    plain = nn.Conv2d(2, 5, 5, stride=2, padding=2).double()
    plain.load_state_dict(stem.state_dict())
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 28, 28, generator=draws, dtype=torch.float64)
    weight = torch.randn(3, 5, 14, 14, generator=draws, dtype=torch.float64)
    found = []
    for one in (stem, plain):
        inputs = x.clone().requires_grad_(True)
        out = one(inputs)
        found.append((out, *torch.autograd.grad((out * weight).sum(), [inputs, *one.parameters()])))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)
    assert torch.equal(stem(x), plain(x))  # without a gradient of x it is the very same call


def test_a_strided_stem_of_another_shape_takes_the_convolutions_own_way() -> None:
    draws = torch.Generator().manual_seed(0)
    for kind in ({"stride": 1}, {"padding_mode": "reflect"}, {"dilation": 2}, {"padding": (2, 1)}):
        stem = networks.StridedStem(1, 3, 5, **({"stride": 2, "padding": 2} | kind))
        plain = nn.Conv2d(1, 3, 5, **({"stride": 2, "padding": 2} | kind))
        plain.load_state_dict(stem.state_dict())
        for side in (28, 29):
            x = torch.rand(2, 1, side, side, generator=draws, requires_grad=True)
            assert torch.equal(stem(x), plain(x))
