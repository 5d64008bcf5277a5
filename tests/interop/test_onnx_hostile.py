"""ONNX files that were made to harm: a line each, no other file read, no memory filled."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch

from g2d.errors import CheckpointError, TaskError
from keras_models import splits

onnx = pytest.importorskip("onnx", reason="g2d[onnx] is not installed")
pytest.importorskip("onnxruntime", reason="g2d[onnx] is not installed")
worlds = pytest.importorskip("g2d.interop.onnx")
node, numbers = onnx.helper.make_node, onnx.numpy_helper
WEIGHT = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
LAST = node("Gemm", ["a", "w"], ["y"], transB=1)
END = (node("Identity", ["x"], ["a"]), LAST)


def stored(**constants):
    return [numbers.from_array(np.asarray(value), name) for name, value in constants.items()]


def graph(nodes, constants, version=18, domains=()):
    given = onnx.helper.make_tensor_value_info("x", 1, ["N", 4])
    out = onnx.helper.make_tensor_value_info("y", 1, ["N", 3])
    made = onnx.helper.make_graph(list(nodes), "g", [given], [out], constants)
    opsets = [onnx.helper.make_opsetid(name, 1) for name in domains]
    opsets.append(onnx.helper.make_opsetid("", version))
    return onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)


def beside(name="w"):
    """A tensor whose numbers are in a file of the folder that the process runs in."""
    tensor = stored(**{name: WEIGHT})[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret.bin"), ("offset", "0"), ("length", str(48))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def within():
    """The same, in an attribute of a node."""
    made = node("Constant", [], ["w"], value=stored(w=WEIGHT)[0])
    made.attribute[0].t.CopyFrom(beside())
    return graph((made, *END), [])


def filled():
    nodes = (node("ConstantOfShape", ["n"], ["b"]), node("ReduceSum", ["b"], ["c"], keepdims=0),
             node("Add", ["x", "c"], ["a"]), LAST)  # fmt: skip
    return graph(nodes, stored(n=np.array([1 << 20, 1 << 20]), w=WEIGHT))


def doubled():
    names = [f"c{i}" for i in range(41)]
    nodes = [node("Concat", [one, one], [other], axis=0)
             for one, other in itertools.pairwise(names)]  # fmt: skip
    return graph((*nodes, *END), stored(c0=np.zeros(1024, np.float32), w=WEIGHT))


def gathered():
    chosen = node("Gather", ["d", "i"], ["b"], axis=0)
    indices = np.zeros(1 << 20, np.int64)
    return graph((chosen, *END), stored(d=np.zeros((1, 1 << 20), "f"), i=indices, w=WEIGHT))


def outer():
    nodes = (node("Mul", ["d", "e"], ["b"]), *END)
    d, e = np.zeros((1 << 20, 1), "f"), np.zeros((1, 1 << 20), "f")
    return graph(nodes, stored(d=d, e=e, w=WEIGHT))


def padded():
    nodes = (node("Pad", ["x", "p"], ["b"]), node("ReduceMean", ["b", "i"], ["c"], keepdims=1),
             node("Add", ["x", "c"], ["a"]), LAST)  # fmt: skip
    constants = stored(p=np.array([0, 0, 0, 1 << 33]), i=np.array([1]), w=WEIGHT)
    return graph(nodes, constants)


def escaping():
    evil = node("Evil\x1b[2J\n" + "A" * 5000, ["x"], ["a"], domain="evil")
    return graph((evil, LAST), stored(w=WEIGHT), domains=("evil",))


def random():
    return graph((node("RandomUniform", [], ["r"], shape=[4]), node("Add", ["x", "r"], ["a"]),
                  LAST), stored(w=WEIGHT))  # fmt: skip


def ungrouped():
    nodes = (node("Unsqueeze", ["x", "i"], ["b"]), node("Conv", ["b", "k"], ["c"], group=0),
             node("Squeeze", ["c", "i"], ["a"]), LAST)  # fmt: skip
    return graph(nodes, stored(i=np.array([1]), k=np.ones((1, 1, 1), "f"), w=WEIGHT))


def of_half_words():
    halved = onnx.helper.make_tensor("h", onnx.TensorProto.BFLOAT16, [3, 4], WEIGHT.ravel())
    return graph((node("Cast", ["h"], ["w"], to=1), *END), [halved])


def bare():
    return graph((node("Softmax", ["x"], ["y"]),), [])


REFUSED = {
    "beside": (lambda: graph(END, [beside()]), "weights in files beside it, which are not read"),
    "within": (within, "weights in files beside it"),
    "filled": (filled, "not covered: ConstantOfShape"),
    "doubled": (doubled, "not covered: Concat"),
    "gathered": (gathered, "not covered: Gather"),
    "outer": (outer, "not covered: Mul"),
    "padded": (padded, r"a value of \d+ numbers for each example"),
    "escaping": (escaping, r"not covered: Evil\?\[2J\?A+\.\.\."),
    "random": (random, "not covered: RandomUniform"),
    "ungrouped": (ungrouped, r"not covered: Conv \(as it is used here\)"),
    "of half words": (of_half_words, "weights that are no numbers of NumPy's"),
    "bare": (bare, "nothing before its last softmax"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_was_made_to_harm_is_a_line(kind, tmp_path, monkeypatch):
    make, said = REFUSED[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(TaskError, match=said) as told:
        worlds.model("m.onnx")
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 1200


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(TaskError, match="cannot read"):
        worlds.model(tmp_path / "m.onnx")


def test_a_base_that_computes_otherwise_is_of_another_model(tmp_path):
    for name, alpha in (("mine", 0.1), ("other", 0.3)):
        nodes = (node("LeakyRelu", ["x"], ["a"], alpha=alpha), LAST)
        file = graph(nodes, stored(w=WEIGHT)).SerializeToString()
        (tmp_path / f"{name}.onnx").write_bytes(file)
    data = splits((4,))
    for part in (data.train, data.guide, data.gate, data.test):
        part.x.sub_(0.5)
    task = worlds.task(tmp_path / "mine.onnx", data, bounds=None)
    assert worlds.weights(task, tmp_path / "mine.onnx")
    with pytest.raises(CheckpointError, match=r"the task's answers are .* away from the file's"):
        worlds.weights(task, tmp_path / "other.onnx")


def test_constants_are_computed_as_the_files_version_means_them(tmp_path):
    """Until version 13 the axes of Unsqueeze were an attribute, and still are in older files."""
    nodes = (node("Unsqueeze", ["b"], ["c"], axes=[0]), node("Add", ["x", "c"], ["a"]), LAST)
    made = graph(nodes, stored(b=np.ones(4, np.float32), w=WEIGHT), version=11)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    x = torch.rand(2, 4)
    found = worlds.model(tmp_path / "m.onnx")(x)
    torch.testing.assert_close(found, (x + 1) @ torch.from_numpy(WEIGHT).T)
