"""The one client of the protocol: batches that a rotation divides, answers of several kinds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from g2d.core.exchange import ExchangeError
from g2d.protect.asking import Answer, Client, Described
from marked import serving, told

X = np.arange(20, dtype=np.float32).reshape(5, 4)
ABOUT = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], "versions": ["7"]}


def asked(answers, most=2):
    """What a client makes of a service that gives these answers, one a request."""
    left = iter(answers)

    def answer(path, body):
        if path.endswith("/config"):
            return told({"max_batch_size": most})
        return told(next(left) if path.endswith("/infer") else ABOUT)

    with serving(answer) as url:
        client = Client(url)
        described = client.describe()
        return described, client.ask(described, X)


def output(data, **more):
    return {"outputs": [{"data": np.asarray(data).ravel().tolist()}], **more}


def test_batches_say_which_generations_answered():
    about = [{"model_version": "7"}, {"parameters": {"generation": 8}}, {"model_version": "new"}]
    parts = (X[:2], X[2:4], X[4:])
    described, answer = asked(output(part, **told) for part, told in zip(parts, about, strict=True))
    assert described == Described("x", (4,), "FP32", 7, batch=2)
    assert np.array_equal(answer.values, X)
    assert (answer.number, answer.others, answer.mixed) == (7, (8,), True)
    assert answer.each == (7, 7, 8, 8, None)
    assert answer.labels.tolist() == [3] * 5
    assert not answer.labels_only


def test_where_some_answers_are_labels_all_are():
    _, answer = asked([output(X[:2]), output([1, 0]), output([2])])
    assert answer.labels_only
    assert answer.labels.tolist() == [3, 3, 1, 0, 2]
    assert answer.others == ()
    with pytest.raises(ExchangeError, match="more scores than others"):
        asked([output(X[:2]), output(X[:2, :3]), output([2.0, 1.0])])


@pytest.mark.parametrize("wrong", [{"outputs": [{}]}, {"outputs": {}}, {"outputs": [7]}, {}])
def test_what_is_no_answer_is_one_line(wrong):
    with pytest.raises(ExchangeError, match="neither scores nor a label") as caught:
        asked([wrong], most=8)
    assert "\n" not in str(caught.value)


def test_what_is_asked_is_what_was_described():
    heard = []

    def answer(path, body):
        if path.endswith("/infer"):
            heard.append(json.loads(body))
            return told(output([0]))
        return told(ABOUT)

    with serving(answer) as url:
        found = Client(url).ask(Described("in", (4,), "FP64"), X[:1])
    assert isinstance(found, Answer)
    assert heard == [{
        "inputs": [{"name": "in", "shape": [1, 4], "datatype": "FP64", "data": [0, 1, 2, 3]}]
    }]  # fmt: skip
