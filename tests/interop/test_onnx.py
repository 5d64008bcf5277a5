"""ONNX out and in: onnxruntime agrees to 1e-5, what is not covered is named, nothing else runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from g2d import Task
from g2d.errors import CheckpointError, TaskError
from keras_models import splits

onnx = pytest.importorskip("onnx", reason="g2d[onnx] is not installed")
pytest.importorskip("onnxruntime", reason="g2d[onnx] is not installed")
worlds = pytest.importorskip("g2d.interop.onnx")
helper, numbers = onnx.helper, onnx.numpy_helper
SHAPE = (2, 8, 8)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.second, self.pool = nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2)
        self.hidden, self.drop, self.head = nn.Linear(16, 8), nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = self.pool(torch.relu(x + self.second(x)))
        return self.head(self.drop(nn.functional.gelu(self.hidden(x.flatten(1)))))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A task, a state with statistics that moved, and its file."""
    task = Task("residual", Residual, splits(SHAPE), classes=3)
    model = task.model(0).train()
    for _ in range(3):
        model(splits(SHAPE).train.x)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    worlds.save(task, model.state_dict(), path, {"g2d.generation": "7"})
    return task, model.state_dict(), path


def test_a_network_goes_out_and_comes_back_with_its_weights(exported):
    task, state, path = exported
    assert {p.key: p.value for p in onnx.load(path).metadata_props} == {"g2d.generation": "7"}
    x = splits(SHAPE).test.x
    model = task.model(0)
    model.load_state_dict(state)
    read = worlds.task(path, splits(SHAPE))
    again = read.model(0)
    again.load_state_dict(worlds.weights(read, path))
    for n in (1, len(x)):
        torch.testing.assert_close(again.eval()(x[:n]), model.eval()(x[:n]), atol=1e-5, rtol=0)
    first = next(iter(again.state_dict()))
    fresh = [read.model(seed).state_dict()[first] for seed in (0, 0, 1)]
    assert torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])


def test_what_onnxruntime_does_not_confirm_is_not_written(exported, tmp_path, monkeypatch):
    from g2d.interop.onnx import export

    task, state, _ = exported
    other = {name: t + 1 if name == "head.bias" else t for name, t in state.items()}
    wrong = task.model(0)
    wrong.load_state_dict(other)
    real = export.exported
    monkeypatch.setattr(export, "exported", lambda network, x: real(wrong.eval(), x))
    with pytest.raises(TaskError, match=r"away from torch's for m\.onnx.*nothing was written"):
        worlds.save(task, state, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def graph_of(nodes, shape, constants, out=("N", 3), fixed=False):
    given = helper.make_tensor_value_info("x", 1, [1 if fixed else "N", *shape])
    last = helper.make_tensor_value_info("y", 1, [1 if fixed else "N", *out[1:]])
    stored = [numbers.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [given], [last], stored)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()  # fmt: skip


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def chain():
    """As TensorFlow's converter writes: NHWC in, "same" upwards, matrices, a bias apart."""
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        node("Conv", ["a", "k", "kb"], ["b"], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("BatchNormalization", ["b", "g", "h", "m", "v"], ["c"], epsilon=1e-3),
        node("Clip", ["c", "zero", "six"], ["d"]),
        node("GlobalAveragePool", ["d"], ["e"]),
        node("Squeeze", ["e", "axes"], ["f"]),
        node("MatMul", ["f", "w"], ["i"]),
        node("Add", ["i", "wb"], ["j"]),
        node("LeakyRelu", ["j"], ["l"], alpha=0.2),
        node("Gemm", ["l", "u", "ub"], ["o"]),
        node("Softmax", ["o"], ["y"], axis=1),
    ]
    constants = {
        "k": random(4, 3, 3, 3), "kb": random(4), "g": random(4), "h": random(4), "m": random(4),
        "v": np.abs(random(4)) + 1, "zero": np.float32(0), "six": np.float32(6),
        "axes": np.array([2, 3]), "w": random(4, 5), "wb": random(5), "u": random(5, 3),
        "ub": random(3),
    }  # fmt: skip
    return graph_of(nodes, (9, 9, 3), constants)


def elementwise():
    """A norm written out, a way around, and the shape that a file asks for itself."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "first"], ["n"], axis=0),
        node("Concat", ["n", "flat"], ["t"], axis=0),
        node("Reshape", ["x", "t"], ["a"]),
        node("ReduceMean", ["a", "last"], ["mean"], keepdims=1),
        node("Sub", ["a", "mean"], ["b"]),
        node("Mul", ["b", "b"], ["c"]),
        node("ReduceMean", ["c", "last"], ["var"], keepdims=1),
        node("Add", ["var", "tiny"], ["d"]),
        node("Sqrt", ["d"], ["e"]),
        node("Div", ["b", "e"], ["f"]),
        node("Mul", ["f", "scale"], ["g"]),
        node("Sub", ["one", "g"], ["h"]),
        node("Concat", ["g", "h"], ["i"], axis=1),
        node("Gemm", ["i", "w"], ["y"], transB=1),
    ]
    constants = {
        "first": np.array([0]), "flat": np.array([48]), "last": np.array([1]),
        "tiny": np.float32(1e-3), "scale": random(48), "one": np.float32(1), "w": random(3, 96),
    }  # fmt: skip
    return graph_of(nodes, (4, 4, 3), constants)


@pytest.mark.parametrize(("make", "shape", "head"), [
    (chain, (9, 9, 3), "softmax"), (elementwise, (4, 4, 3), ""),
])  # fmt: skip
def test_graphs_of_others_are_read(make, shape, head, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(make())
    task = worlds.task(path, splits(shape))  # tried against onnxruntime, or refused
    assert task.classes == 3
    names = [name for name, _ in task.model(0).named_parameters()]
    if head:
        assert [n for n in names if n.startswith("matmul")] == ["matmul_6.weight", "matmul_6.bias"]
    with pytest.raises(TaskError, match=r"cannot run on the examples, which are \(5, 3\)"):
        worlds.task(path, splits((5, 3)))


def test_a_file_for_one_example_takes_many(tmp_path):
    node = helper.make_node
    nodes = [node("Reshape", ["x", "t"], ["a"]), node("Gemm", ["a", "w"], ["y"], transB=1)]
    path = tmp_path / "m.onnx"
    path.write_bytes(
        graph_of(nodes, (4, 2), {"t": np.array([1, 8]), "w": random(3, 8)}, fixed=True)
    )
    assert worlds.model(path)(torch.rand(5, 4, 2)).shape == (5, 3)


def test_what_is_not_covered_is_named_in_one_line(tmp_path):
    node = helper.make_node
    nodes = [
        node("Flatten", ["x"], ["a"], axis=2), node("Det", ["x"], ["b"]),
        node("Einsum", ["a"], ["y"], equation="ij->ij"),
    ]  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(graph_of(nodes, (4, 4), {}))
    with pytest.raises(TaskError, match=r"covered: Flatten \(as it is used here\), Det, Ein") as no:
        worlds.model(path)
    assert "\n" not in str(no.value)


def test_files_that_are_none_or_of_another_model_are_one_line(exported, tmp_path):
    task, _, whole = exported
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[:500])
    for path, said in ((cut, "no whole ONNX model"), (tmp_path / "none.onnx", "cannot read")):
        with pytest.raises(TaskError, match=said) as refused:
            worlds.model(path)
        assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match="of another model"):
        worlds.weights(task, whole)
    with pytest.raises(TaskError, match=r"not named \.onnx"):
        worlds.save(task, task.model(0).state_dict(), tmp_path / "m.txt")
