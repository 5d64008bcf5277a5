"""Keras models: translated to torch or run by Keras, alike; seeds, training, files, bad input."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from g2d.errors import CheckpointError, DataWarning, TaskError
from keras_models import BUILDERS, TRANSLATED, chain_norm, own_class, shaken, splits
from small_models import source

keras = pytest.importorskip("keras", reason="g2d[keras] is not installed")
worlds = pytest.importorskip("g2d.interop.keras")
if keras.backend.backend() != "torch":
    pytest.skip("Keras runs on another backend here", allow_module_level=True)


@functools.cache
def made(builder, native):
    """A builder's task, translated where it can be (None) or run by Keras (False); built once."""
    return worlds.task(builder, splits(), native=native)


@pytest.mark.parametrize("builder", BUILDERS)
def test_both_ways_answer_as_keras_and_come_back_from_its_files(builder, tmp_path):
    x = splits().test.x
    for native in (None, False):
        task = made(builder, native)
        assert worlds.way(task).startswith("translated") == (native is None and
                                                            builder in TRANSLATED)  # fmt: skip
        model = task.model(0)
        state = shaken(model)
        model.load_state_dict(state)
        found = model.eval()(x).softmax(-1).detach()
        for ending in (".keras", ".weights.h5"):
            file = tmp_path / f"{builder.__name__}{ending}"
            worlds.save(task, state, file)
            read = worlds.weights(task, file)
            assert all(torch.equal(read[name], state[name]) for name in read)
            assert set(state) - set(read) <= {n for n in state if n.endswith("batches_tracked")}
        if builder is not own_class:
            said = keras.saving.load_model(tmp_path / f"{builder.__name__}.keras")(x).detach()
            said = said if task.factory.head else said.softmax(-1)
            assert float((found - said).abs().max()) <= 1e-5


def test_a_step_of_training_moves_statistics_as_keras_does():
    """Momentum is 1 - torch's, and the variance that is kept is the batch's own."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(momentum=0.7)])
    x = torch.randn(5, 4, generator=source(0)) * 3 + 1
    model(x, training=True)
    wanted = [v.value for v in model.non_trainable_variables]

    def builder():
        kinds = keras.layers
        return keras.Sequential([keras.Input((4,)), kinds.BatchNormalization(momentum=0.7),
                                 kinds.Dense(3)])  # fmt: skip

    for native in (True, False):
        model = worlds.task(builder, splits((4,)), native=native).model(0)
        model.train()(x)
        state = model.state_dict()
        kept = [state[name] for name in state if name.endswith(("mean", "var", "variance"))]
        for found, said in zip(kept, wanted, strict=True):
            torch.testing.assert_close(found, said, rtol=1e-5, atol=1e-6)


def test_torchs_seed_governs_and_nothing_global_is_left_changed():
    import random

    for native in (None, False):
        task = made(chain_norm, native)
        python, array = random.getstate(), np.random.get_state()[1].copy()
        one, same, other = (task.model(seed).state_dict() for seed in (3, 3, 4))
        assert random.getstate() == python
        assert (np.random.get_state()[1] == array).all()
        assert list(one) == list(other)
        assert all(torch.equal(one[name], same[name]) for name in one)
        weight = next(iter(one))
        assert not torch.equal(one[weight], other[weight])


def test_an_adapter_trains_only_in_training_mode_and_its_dropout_follows_torch():
    model = made(own_class, None).model(0)
    x = splits().test.x
    state = {name: t.clone() for name, t in model.state_dict().items()}
    assert torch.equal(model.eval()(x), model(x))
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    model.train()
    torch.manual_seed(1)
    first = model(x)
    moved = [n for n, t in model.state_dict().items() if not torch.equal(t, state[n])]
    assert [name.partition("_")[2] for name in moved] == ["moving_mean", "moving_variance"]
    torch.manual_seed(1)
    assert torch.equal(model(x), first)
    assert not torch.equal(model(x), first)
    assert len(list(model.parameters())) == 6


class Silent(keras.Model):
    """Its call() takes no `training`, and hands none on: Keras knows by how the model is called."""

    def __init__(self, **more):
        super().__init__(**more)
        self.drop, self.head = keras.layers.Dropout(0.5), keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.drop(x))


def test_an_adapter_drops_where_a_model_says_nothing_of_training():
    task = worlds.task(Silent, splits((8,)))
    assert "a class of its own" in worlds.way(task)
    model, x = task.model(0), splits((8,)).test.x
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_a_planted_mix_up_of_axes_is_caught(monkeypatch):
    """Flattened as torch has it: the translation does not count, and Keras runs the model."""
    from g2d.interop.keras import layers

    real = layers._flatten

    def wrong(reading, layer, given):
        from dataclasses import replace

        return replace(real(reading, layer, given), order=None)

    monkeypatch.setitem(layers._LAYERS, "Flatten", wrong)
    assert "away from what Keras answers" in worlds.way(worlds.task(chain_norm, splits()))
    with pytest.raises(TaskError, match="cannot be translated"):
        worlds.task(chain_norm, splits(), native=True)


def test_examples_with_channels_first_are_refused_in_a_line():
    with pytest.raises(TaskError, match=r"takes inputs \(9, 9, 3\).*x\.movedim\(1, -1\)"):
        worlds.task(chain_norm, splits((3, 9, 9)))


def _shared():
    dense = keras.layers.Dense(8, activation="relu")
    given = keras.Input((8,))
    return keras.Model(given, keras.layers.Dense(3)(dense(dense(given))))


class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def _custom():
    return keras.Sequential([keras.Input((8,)), Doubled(), keras.layers.Dense(3)])


@pytest.mark.parametrize(("builder", "why"), [
    (_shared, "is shared"), (_custom, "Doubled.*a class of yours"),
])  # fmt: skip
def test_shared_layers_and_classes_of_the_users_run_by_keras(builder, why, tmp_path):
    task = worlds.task(builder, splits((8,)))
    assert re.search(why, worlds.way(task))
    worlds.save(task, task.model(1).state_dict(), tmp_path / "m.keras")


def test_what_is_unbuilt_is_built_by_the_data():
    def builder():
        return keras.Sequential([keras.layers.Dense(3)])

    assert "translated" in worlds.way(worlds.task(builder, splits((8,))))


def _lambda():
    return keras.Sequential([keras.Input((8,)), keras.layers.Lambda(lambda x: x),
                             keras.layers.Dense(3)])  # fmt: skip


class Nothing(keras.Model):
    def call(self, x):
        return x


def _failing():
    raise ValueError("no such thing")


def _probabilities():
    from keras import ops

    given = keras.Input((8,))
    return keras.Model(given, ops.softmax(keras.layers.Dense(3)(given)))


@pytest.mark.parametrize(("builder", "said"), [
    (_lambda, "Lambda layer, 'lambda"),
    (Nothing, "it has no variables after a call"),
    (_failing, "builder raised ValueError: no such thing"),
    (lambda: 3, "gives int, expected a keras.Model"),
    (_probabilities, "answers probabilities"),
    (lambda: keras.Sequential([keras.Input((4, 4)), keras.layers.Dense(3)]), r"inputs \(4, 4\)"),
])  # fmt: skip
def test_bad_models_are_one_line(builder, said):
    with pytest.raises(TaskError, match=said) as refused:
        worlds.task(builder, splits((8,)))
    assert "\n" not in str(refused.value)


def test_a_file_is_a_builder_and_a_checkpoint_unless_it_is_cut_off(tmp_path):
    task = worlds.task(chain_norm, splits())
    whole, cut = tmp_path / "whole.keras", tmp_path / "cut.keras"
    worlds.save(task, task.model(5).state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:4000])
    again = worlds.task(str(whole), splits())
    first = next(iter(again.model(0).state_dict()))
    assert not torch.equal(again.model(0).state_dict()[first], again.model(1).state_dict()[first])
    assert torch.equal(worlds.weights(again, whole)[first], task.model(5).state_dict()[first])
    for read in (lambda: worlds.weights(task, cut), lambda: worlds.task(cut, splits())):
        with pytest.raises((CheckpointError, TaskError), match="cut off") as refused:
            read()
        assert "\n" not in str(refused.value)
    other = worlds.task(lambda: keras.Sequential([keras.layers.Dense(3)]), splits((8,)))
    with pytest.raises(CheckpointError, match="of another model"):
        worlds.weights(other, whole)


def test_regularizers_are_told_of():
    def builder():
        return keras.Sequential([keras.Input((8,)),
                                 keras.layers.Dense(3, kernel_regularizer="l2")])  # fmt: skip

    with pytest.warns(DataWarning, match="regularizers and constraints are not used here"):
        worlds.task(builder, splits((8,)))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_another_backend_is_one_line(backend):
    code = (
        "from g2d.errors import TaskError\nfrom g2d.interop.keras import building\n"
        "try:\n    print(building.require().__name__)\nexcept TaskError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "KERAS_BACKEND": backend},
    )  # fmt: skip
    # Keras' numpy backend needs jax, which is not everywhere.
    refused = ("Keras runs on numpy in this process", "Keras cannot be imported with KERAS_BACKEND")
    assert done.stdout.startswith(("keras",) if backend == "torch" else refused)
