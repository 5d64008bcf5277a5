"""Thousands of inputs at once, one a slot: torch's answers for each, and nothing beside them."""

import numpy as np
import pytest
import torch
from torch import nn

from g2d.protect.homomorphic import (
    EvaluationKeys,
    HomomorphicError,
    Plan,
    SecretKeys,
    encode,
    evaluate,
)
from g2d.tasks.polynomials import Quadratic
from he_networks import tiny

pytest.importorskip("tenseal", reason="needs TenSEAL: pip install 'g2d[he]'")
pytest.importorskip("zstandard", reason="needs zstandard: pip install 'g2d[he]'")


def pooling():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), Quadratic(-0.5, 0.3, 0.1), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()  # fmt: skip


class Batch:
    """Both sides for one network."""

    def __init__(self, network, shape):
        self.network, self.plan = network, Plan.of(network, shape, packing="batch")
        self.keys = SecretKeys.new(self.plan)
        self.server = EvaluationKeys.read(self.keys.upload(), self.plan)
        self.encoded = encode(self.plan, network.state_dict())

    def ask(self, images):
        return evaluate(self.plan, self.encoded, self.server, self.keys.encrypt(images))


@pytest.fixture(scope="module")
def batch():
    return Batch(pooling(), (1, 5, 5))


def test_every_input_of_a_full_batch_is_answered_as_torch_does(batch):
    images = torch.rand(batch.plan.batch, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    logits = batch.keys.decrypt(batch.ask(images), exact=True)
    with torch.no_grad():
        torch.testing.assert_close(logits, batch.network(images), atol=1e-3, rtol=0)


def test_slots_beyond_the_inputs_hold_the_answer_to_zero(batch):
    images = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    slots = batch.keys.slots(batch.ask(images))
    with torch.no_grad():
        zero = batch.network(torch.zeros(1, 1, 5, 5)).numpy().T
    np.testing.assert_allclose(slots[:, 3:], np.repeat(zero, slots.shape[1] - 3, 1), atol=1e-3)


def test_sizes_are_what_the_plan_says_and_no_rotation_key_is_uploaded(batch):
    plan = batch.plan
    query = batch.keys.encrypt(torch.zeros(1, 1, 5, 5))
    assert len(query) == plan.limits.query_bytes
    assert len(batch.keys.upload()) == plan.limits.upload_bytes
    assert batch.server.rotations == {}
    answer = evaluate(plan, batch.encoded, batch.server, query)
    assert len(answer) == plan.limits.answer_bytes


@pytest.mark.parametrize("count", [0, 4095])
def test_too_many_inputs_and_none_are_refused(batch, count):
    with pytest.raises(HomomorphicError, match="1 to 4094 of"):
        batch.keys.encrypt(torch.zeros(count, 1, 5, 5))


def test_another_clients_answer_is_noise(batch):
    other = SecretKeys.new(batch.plan)
    query = other.encrypt(torch.zeros(1, 1, 5, 5))
    with pytest.raises(HomomorphicError, match="the answer is noise"):
        other.decrypt(evaluate(batch.plan, batch.encoded, batch.server, query))


def test_rows_of_zeros_are_evaluated_and_steps_of_zeros_are_not():
    network = tiny()
    with torch.no_grad():
        network[0].weight[1] = 0.0
        network[0].bias[1] = 0.5
    one = Batch(network, (6,))
    images = torch.rand(2, 6)
    with torch.no_grad():
        wanted = network(images)
    torch.testing.assert_close(one.keys.decrypt(one.ask(images))[:2], wanted, atol=1e-3, rtol=0)
    state = network.state_dict() | {"0.weight": torch.zeros(6, 6)}
    with pytest.raises(HomomorphicError, match="are zero"):
        encode(one.plan, state)


def test_keys_of_one_packing_are_not_for_the_other(batch):
    plan = Plan.of(pooling(), (1, 5, 5))
    with pytest.raises(HomomorphicError):
        EvaluationKeys.read(batch.keys.upload(), plan)
