"""A generation of a Keras task as the service holds and asks it: channels last, and no other."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from g2d.defence.generations import Generation
from g2d.service.http.protocol import Model, RequestError, parse
from g2d.tasks.builtin import Blueprint
from keras_models import chain_norm, own_class, splits

os.environ.setdefault("KERAS_BACKEND", "torch")
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
