"""A generation of a Keras task as the service holds and asks it: channels last, and no other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from g2d import Defence
from g2d.defence.generations import Generation
from g2d.defence.members import read_base as read_base_of
from g2d.errors import TaskError
from g2d.service.http.protocol import Model, RequestError, parse
from g2d.tasks.builtin import Blueprint, load_task
from keras_models import chain_norm, own_class, splits
from states import settings

pytest.importorskip("keras", reason="g2d[keras] is not installed")


@pytest.mark.parametrize("builder", [chain_norm, own_class])
def test_it_takes_channels_last_and_refuses_a_mix_up(builder):
    from g2d.interop import keras as worlds

    task = worlds.task(builder, splits())
    model = task.model(0).eval()
    served = Model("g2d", Blueprint.of(task).shape, "float32", task.classes)
    snapshot = Generation(1, {}, model.state_dict(), task).snapshot()

    def ask(x):
        told = {"name": "input", "datatype": "FP32", "shape": list(x.shape)}
        body = json.dumps({"inputs": [{**told, "data": x.ravel().tolist()}]})
        return snapshot.predict(torch.from_numpy(parse(body.encode(), None, served, 64).x))

    x = task.splits.test.x[:4].numpy()
    found = torch.as_tensor(np.asarray(ask(x)))
    torch.testing.assert_close(found, model(torch.from_numpy(x)).detach(), atol=1e-5, rtol=0)
    with pytest.raises(RequestError, match=r"\[n, 9, 9, 3\]"):
        ask(np.moveaxis(x, -1, 1))


def test_a_deployed_keras_file_becomes_the_base(tmp_path):
    from g2d.interop import keras as worlds
    from g2d.interop.bases import read_base

    task = worlds.task(chain_norm, splits())
    file = tmp_path / "deployed.keras"
    worlds.save(task, task.model(7).state_dict(), file)
    with Defence.create(task, tmp_path / "vault", settings()) as defence:
        defence.adopt_base(read_base(task, file))
        kept = read_base_of(defence.vault)
    assert all(torch.equal(kept[name], t) for name, t in task.model(7).state_dict().items())


def test_keras_without_tensorflow_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "needs_tensorflow.py").write_text("raise ModuleNotFoundError(name='tensorflow')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TaskError, match="set KERAS_BACKEND=torch"):
        load_task("needs_tensorflow:task")
