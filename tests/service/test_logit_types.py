"""Models that answer in half precision, through the service: JSON and the binary protocol."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
import torch

import g2d
import states
from g2d.core.engine import SerialEngine
from g2d.service.http.batcher import _predict
from g2d.service.http.protocol import HEADER_LENGTH, answer, parse
from g2d.service.loader import VaultLoader


@pytest.mark.parametrize("name", ["bfloat16_task", "float16_task", "double_task"])
def test_half_and_double_answers_are_served_as_floats(tmp_path, name):
    task = getattr(states, name)()
    with g2d.Defence.build(
        f"states:{name}", tmp_path / "v", states.settings(), engine=SerialEngine()
    ) as defence:
        x = task.splits.test.x[:3]
        expected = defence.generation().model()(x).detach().float().numpy()
        loader = VaultLoader(tmp_path / "v", "g2d")
        try:
            snapshot, _ = loader.first()
            for binary in (False, True):
                body = _request(x.numpy(), loader.model.datatype, binary)
                query = parse(body, None, loader.model, 8)
                logits = _predict(snapshot, query.x)
                assert logits.dtype == np.float32
                told, headers = answer(query, loader.model, logits, snapshot.number)
                np.testing.assert_array_equal(_read(told, dict(headers)), expected)
        finally:
            loader.close()
    assert expected.dtype == np.float32
    assert torch.isfinite(torch.from_numpy(expected)).all()


def _request(x, datatype, binary):
    tensor = {
        "name": "input", "shape": list(x.shape), "datatype": datatype, "data": x.ravel().tolist()
    }  # fmt: skip
    outputs = [{"name": "logits", "parameters": {"binary_data": binary}}]
    return orjson.dumps({"inputs": [tensor], "outputs": outputs})


def _read(body, headers):
    length = headers.get(HEADER_LENGTH)
    if length is None:
        output = orjson.loads(body)["outputs"][0]
        return np.asarray(output["data"], np.float32).reshape(output["shape"])
    output = orjson.loads(body[: int(length)])["outputs"][0]
    return np.frombuffer(body[int(length) :], "<f4").reshape(output["shape"])
