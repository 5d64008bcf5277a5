"""Layers that torch calls in a model that Keras runs do what Keras does; all else is left to it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from g2d.tasks.splits import Split, Splits
from keras_models import BUILDERS, shaken, splits
from small_models import source

keras = pytest.importorskip("keras", reason="g2d[keras] is not installed")
worlds = pytest.importorskip("g2d.interop.keras")
if keras.backend.backend() != "torch":
    pytest.skip("Keras runs on another backend here", allow_module_level=True)

from g2d.interop.keras import direct  # noqa: E402
from g2d.interop.keras.building import variables  # noqa: E402
from g2d.interop.keras.moves import as_values  # noqa: E402
from g2d.interop.keras.tasks import factory_of  # noqa: E402
from g2d.interop.keras.trial import still  # noqa: E402


def _calm(builder):
    """A builder whose dropout drops nothing, so that training mode can be compared."""

    def build():
        model = builder()
        model.built or model(torch.zeros(2, 9, 9, 3))
        still(model)
        return model

    return build


def _beside_keras(task, x, training):
    """What a task's adapter answers and keeps, and what Keras does with the same weights."""
    factory, model = factory_of(task), task.model(0)
    state = shaken(model)
    model.load_state_dict(state)
    own = factory.keras_model()
    values = as_values(factory.moves(own), state, [tuple(v.shape) for v in variables(own)])
    for variable, value in zip(variables(own), values, strict=True):
        variable.assign(value)
    said = own(x, training=training)
    said = {"softmax": torch.log, "": lambda z: z}[factory.head](said)
    found = model.train(training)(x)
    found = found.log_softmax(1) if factory.head else found
    after = as_values(factory.moves(own), model.state_dict(), [v.shape for v in values])
    return (found, *after), (said, *(v.value for v in variables(own)))


def _alike(task, x):
    for training in (False, True):
        for one, other in zip(*_beside_keras(task, x, training), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("builder", BUILDERS)
def test_every_kind_of_layer_answers_and_trains_as_keras(builder, monkeypatch):
    task = worlds.task(_calm(builder), splits(), native=False)
    assert "its common layers by torch" in worlds.way(task)
    called = []
    for kind in (direct.InTorch, direct.Through):

        def noted(call, *more, real=kind.__call__):
            called.append(call)
            return real(call, *more)

        monkeypatch.setattr(kind, "__call__", noted)
    _alike(task, splits().test.x)
    assert len(called) == 2 * task.model(0).direct > 9


class Odd(keras.Model):
    """Tied weights, a shared layer, a norm that is held still, a layer called by another, masks."""

    def __init__(self, **more):
        super().__init__(**more)
        kinds = keras.layers
        self.words = kinds.Embedding(20, 8, mask_zero=True)
        self.inner, self.held = kinds.Dense(8, "tanh"), kinds.BatchNormalization()
        self.each, self.last = kinds.TimeDistributed(kinds.Dense(8)), kinds.LSTM(8)
        self.bias = kinds.Dense(3)

    def call(self, x, training=None):
        found = self.each(self.inner(self.inner(self.words(x))))
        found = self.held(self.last(found), training=False)
        return self.bias(found) + keras.ops.matmul(found, self.words.embeddings[:3].T)


def test_what_is_unusual_goes_to_keras():
    """Masks go on to the layer that heeds them; weights are the module's wherever they are read."""
    parts = splits((6,))
    ids = Splits(*(Split((part.x * 20).long(), part.y)
                   for part in (parts.train, parts.guide, parts.gate, parts.test)))  # fmt: skip
    task = worlds.task(Odd, ids, attack="none")
    assert "a class of its own" in worlds.way(task)
    assert 0 < task.model(0).direct < 6
    _alike(task, ids.test.x)


class Changing(keras.Model):
    """Its layers are called with other shapes than those that were tried."""

    def __init__(self, **more):
        super().__init__(**more)
        self.wide, self.head = keras.layers.Dense(4), keras.layers.Dense(3)
        self.norm = keras.layers.BatchNormalization()

    def call(self, x):
        x = self.norm(x)
        if bool((x > 0.99).any()):  # nothing of this in zeros
            return self.head(self.wide(x[:, None])[:, 0])
        return self.head(self.wide(x))


def test_another_shape_goes_to_keras():
    task = worlds.task(Changing, splits((8,)))
    assert task.model(0).direct == 3
    for far in (0.1, 3.0):
        _alike(task, torch.rand(5, 8, generator=source(0)) * far)


def test_copies_have_weights_of_their_own_and_a_training_step_is_that_of_keras():
    task = worlds.task(_calm(BUILDERS[-1]), splits())
    x, y = splits().test.x, splits().test.y
    plain = replace(factory_of(task), direct=False)
    grads = []
    for model in (task.model(0), plain()):
        model.load_state_dict(shaken(task.model(0)))
        model.train()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    first = task.model(0).eval()
    other = copy.deepcopy(first)
    said = first(x)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(first(x), said)
    assert not torch.equal(other(x), said)


def test_a_planted_fault_leaves_all_layers_to_keras(monkeypatch):
    """It is wrong in training mode alone, and found there."""
    real = direct._RUNS[direct.KerasBatchNorm2d]
    monkeypatch.setitem(direct._RUNS, direct.KerasBatchNorm2d,
                        lambda module, held, training, x: real(module, held, False, x))  # fmt: skip
    task = worlds.task(BUILDERS[0], splits(), native=False)
    assert worlds.way(task).startswith("run by Keras, more slowly, for you asked for it")
    assert task.model(0).direct == 0
    _alike(worlds.task(_calm(BUILDERS[0]), splits(), native=False), splits().test.x)
