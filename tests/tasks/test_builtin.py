"""Built-in tasks are what they say, in every process."""

import math
import multiprocessing
import pickle

import pytest
import torch
from torch import nn

from g2d.errors import DataError, TaskError
from g2d.settings import Settings, build
from g2d.tasks import networks
from g2d.tasks.builtin import load_task
from g2d.tasks.networks import digits_he_cnn, mnist_he_cnn
from g2d.tasks.polynomials import Square
from places import SHARED


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("factory", "shape", "count"),
    [
        (networks.digits_cnn, (2, 1, 8, 8), 5_530),
        (networks.mnist_cnn, (2, 1, 28, 28), 28_210),
        (networks.digits_he_cnn, (2, 1, 8, 8), 5_530),
        (networks.mnist_he_cnn, (2, 1, 28, 28), 28_874),
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


def test_tasks_for_encrypted_inference_differ_from_the_ordinary_ones_in_their_networks_alone():
    plain, task = load_task("digits"), load_task("digits-he")
    assert (task.name, task.eps, task.settings) == ("digits-he", plain.eps, plain.settings)
    assert torch.equal(task.splits.test.x, plain.splits.test.x)
    with pytest.raises(TaskError, match="'digits-he' is embedded and reads no folder"):
        load_task("digits-he", data="somewhere")
    kinds = {type(layer) for network in (digits_he_cnn, mnist_he_cnn) for layer in network()}
    assert kinds == {nn.Conv2d, nn.Linear, nn.Flatten, Square}


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


@pytest.mark.parametrize("name", ["mnist", "mnist-he", "cifar10"])
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
