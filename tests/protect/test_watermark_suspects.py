"""Suspects: files under foreign names; services that answer scores, numbers, names or nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from g2d.core.exchange import Credentials
from g2d.errors import CheckpointError, SettingsError, SuspectError
from g2d.protect.watermark.suspects import ModelSuspect, ServiceSuspect
from g2d.service.http import protocol
from g2d.tasks.builtin import blueprint
from g2d.weights import checkpoints
from marked import serving, told

SHAPE, CLASSES = (1, 2, 2), 4
SERVED = protocol.Model("g2d", SHAPE, "float32", CLASSES, ("cat", "dog", "cow", "hen"))
X = torch.rand((23, *SHAPE), generator=torch.Generator().manual_seed(0))
SCORES = X.reshape(len(X), -1)  # each input's pixels are its scores
LABELS = SCORES.argmax(1)


class Service:
    """A stand-in for a service: the metadata that it tells, and how it answers inputs."""

    def __init__(self, answer, datatype="FP32", shape=(-1, CLASSES), most=8, **more):
        self.answer, self.most, self.asked, self.headers = answer, most, [], []
        self.about = {
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *SHAPE]}],
            "outputs": [{"name": "out", "datatype": datatype, "shape": list(shape)}],
            **more,
        }

    def __call__(self, path, body):
        if path.endswith("/config"):
            return told({"max_batch_size": self.most}) if self.most else (404, b"no", {})
        if not path.endswith("/infer"):
            return told(self.about)
        (tensor,) = json.loads(body)["inputs"]
        x = np.reshape(tensor["data"], tensor["shape"])
        self.asked.append(len(x))
        return told({"outputs": [{"name": "out", **self.answer(x.reshape(len(x), -1))}]})


def scores(x):
    return {"datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}


def rounded(x):
    return {"datatype": "INT64", "shape": list(x.shape), "data": (x * 1000).astype(int).tolist()}


def numbers(x):
    return {"datatype": "INT64", "shape": [len(x), 1], "data": x.argmax(1).tolist()}


def names(x):
    words = [SERVED.labels[k] for k in x.argmax(1)]
    return {"datatype": "BYTES", "shape": [len(x)], "data": words}


def ranked(x):
    """As Triton's classification extension answers: the best two of each."""
    data = [f"{row[k]}:{k}:{SERVED.labels[k]}" for row in x for k in np.argsort(-row)[:2]]
    return {"datatype": "BYTES", "shape": [len(x), 2], "data": data}


LABEL_ONLY = {"datatype": "INT64", "shape": (-1, 1)}
NAMED = {"parameters": {"labels": json.dumps(SERVED.labels)}}


@pytest.mark.parametrize(
    "service",
    [
        Service(scores), Service(rounded), Service(numbers, **LABEL_ONLY),
        Service(names, "BYTES", (-1,), **NAMED), Service(ranked, "BYTES", (-1, 2)),
    ],
    ids=["scores", "rounded", "numbers", "names", "ranked"],
)  # fmt: skip
def test_every_kind_of_answer_becomes_a_label(service):
    with serving(service) as url:
        asked = ServiceSuspect(url)
        assert torch.equal(asked.labels(X), LABELS)
    assert asked.shape == SHAPE
    assert asked.classes in (0, CLASSES)
    assert service.asked == [8, 8, 7]


def test_g2d_s_own_service_is_asked_as_it_wants_to_be():
    def answer(path, body):
        if path.endswith("/config"):
            return told(SERVED.config(16))
        if not path.endswith("/infer"):
            return told(SERVED.metadata(7))
        query = protocol.parse(body, None, SERVED, 16)
        logits = query.x.reshape(len(query.x), -1)
        return 200, protocol.answer(query, SERVED, logits, 7)[0], {}

    with serving(answer) as url:
        for address in (url, f"{url}/", f"{url}/v2", f"{url}/v2/models/g2d"):
            asked = ServiceSuspect(address)
            assert (asked.shape, asked.classes) == (SHAPE, CLASSES)
        assert torch.equal(asked.labels(X), LABELS)


def test_names_without_numbers_ask_for_them():
    with serving(Service(names, "BYTES", (-1,))) as url:
        with pytest.raises(SuspectError, match="neither scores nor a label"):
            ServiceSuspect(url).labels(X)
        given = ServiceSuspect(url, names=SERVED.labels)
        assert torch.equal(given.labels(X), LABELS)
        assert given.classes == CLASSES


def test_a_busy_service_is_asked_again_and_a_small_one_gets_less():
    waits, service = [], Service(scores, most=0)

    def answer(path, body):
        if path.endswith("/infer") and len(waits) < 2:
            return 429, b"busy", {"Retry-After": "7"}
        if path.endswith("/infer") and len(json.loads(body)["inputs"][0]["data"]) > 5 * 4:
            return 413, b"too large", {}
        return service(path, body)

    with serving(answer) as url:
        assert torch.equal(ServiceSuspect(url, wait=waits.append).labels(X), LABELS)
    assert waits == [7.0, 7.0]
    assert max(service.asked) <= 5


def test_a_service_that_is_none_or_says_no_is_one_line():
    with pytest.raises(SuspectError, match="no address"):
        ServiceSuspect("ftp://example.org")
    with pytest.raises(SuspectError, match="does not answer"):
        ServiceSuspect("http://127.0.0.1:1")
    with pytest.raises(SettingsError, match="/nowhere cannot be used for TLS"):
        ServiceSuspect("https://127.0.0.1:1", known=Credentials(ca=Path("/nowhere")))
    with pytest.raises(SettingsError, match="no header may") as caught:
        Credentials("se cret")
    assert "cret" not in str(caught.value).replace("expected", "")
    for answer, said in (
        (lambda *_: (401, b"", {}), "with --token-file"),
        (lambda *_: (500, b"oops", {}), "answered 500: oops"),
        (lambda *_: (200, b"hello", {}), "in JSON"),
        (lambda *_: told({}), "describes no model"),
        (lambda *_: (302, b"", {"Location": "http://127.0.0.1:1"}), "answered 302"),
        (lambda *_: (503, b"", {"Retry-After": "0"}), "answered 503"),
    ):
        with serving(answer) as url, pytest.raises(SuspectError, match=said):
            ServiceSuspect(url, wait=lambda _: None)


@pytest.mark.parametrize(
    "data",
    [
        [1.0, 2.0], [], ["a"] * 8, [None] * 8, [0.5] * 8, [float("nan")] * 8, [1e300] * 8, "text",
        [[1], [1, 2]],
    ],
    ids=repr,
)  # fmt: skip
def test_answers_that_are_no_labels_are_refused(data):
    output = {"datatype": "FP32", "shape": [8], "data": data}
    with (
        serving(Service(lambda x: output)) as url,
        pytest.raises(SuspectError, match="neither scores nor a label"),
    ):
        ServiceSuspect(url).labels(X[:8])


def test_scores_that_are_not_finite_name_no_class():
    def broken(x):
        return scores(x) | {"data": [float("nan")] * x.size}

    with serving(Service(broken)) as url, pytest.raises(SuspectError, match="not finite"):
        ServiceSuspect(url).labels(X[:8])


# --- files ---------------------------------------------------------------------------------------


def test_a_file_answers_under_foreign_names_and_is_known_by_its_digest(tmp_path, monkeypatch):
    task = blueprint("digits")
    model = task.factory().eval()
    save_file(
        {f"module.{name}": t for name, t in model.state_dict().items()}, tmp_path / "a.safetensors"
    )
    torch.save({"state_dict": model.state_dict()}, tmp_path / "b.ckpt")
    x = torch.rand((5, *task.shape), generator=torch.Generator().manual_seed(0))
    for name in ("a.safetensors", "b.ckpt"):
        found = ModelSuspect.read(tmp_path / name, task)
        assert torch.equal(found.labels(x), model(x).argmax(1))
        assert len(found.digest) == len("sha256:") + 64
        assert found.name == name
    assert found.shape == task.shape
    data = (tmp_path / "b.ckpt").read_bytes()
    assert found.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    reads = []
    monkeypatch.setattr(checkpoints, "_read", lambda path: reads.append(path) or data)
    found = ModelSuspect.read(tmp_path / "swapped.ckpt", task)
    assert found.digest == f"sha256:{hashlib.sha256(data).hexdigest()}", "what was loaded is hashed"
    assert len(reads) == 1
    monkeypatch.undo()
    save_file({"other": torch.zeros(3)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        ModelSuspect.read(tmp_path / "c.safetensors", task)
    with pytest.raises(CheckpointError, match="cannot read"):
        ModelSuspect.read(tmp_path / "absent.safetensors", task)
