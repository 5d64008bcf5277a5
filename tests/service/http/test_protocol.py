"""Bodies of the Open Inference Protocol v2: what is right is read, what is wrong is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from g2d.service.http.protocol import Model, Query, RequestError, answer, parse
from stand_ins import MODEL, body

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def outcome(data: bytes, length: bytes | None) -> int:
    try:
        query = parse(data, length, MODEL, 8)
    except RequestError as refused:
        return refused.status
    assert query.x.shape[1:] == MODEL.shape
    assert np.isfinite(query.x).all()
    return 200


def read(given_body: dict, most: int = 8) -> Query:
    return parse(json.dumps(given_body).encode(), None, MODEL, most)


@given(arrays(np.float32, (3, 1, 2, 2), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_the_three_ways_to_send_a_tensor_are_one(x):
    flat = read(body(3, data=x.ravel().tolist()))
    nested = read(body(3, data=x.tolist()))
    head = json.dumps(
        {"inputs": [{"name": "input", "shape": [3, 1, 2, 2], "datatype": "FP32",
                     "parameters": {"binary_data_size": x.nbytes}}]}
    ).encode()  # fmt: skip
    binary = parse(head + x.tobytes(), str(len(head)).encode(), MODEL, 8)
    for query in (flat, nested, binary):
        assert query.x.dtype == np.float32
        assert np.array_equal(query.x, x)
        assert query.x.flags.writeable


@pytest.mark.parametrize("binary", [False, True])
def test_answers_carry_generation_version_and_id(binary):
    logits = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    query = Query(np.zeros((2, 1, 2, 2), np.float32), "mine", binary)
    content, headers = answer(query, MODEL, logits, 12)
    found = dict(headers)
    assert int(found[b"content-length"]) == len(content)
    length = int(found.get(b"inference-header-content-length", len(content)))
    told = json.loads(content[:length])
    assert (told["id"], told["model_version"]) == ("mine", "12")
    assert told["parameters"] == {"generation": 12}
    (output,) = told["outputs"]
    data = np.frombuffer(content[length:], "<f4") if binary else output["data"]
    assert np.allclose(
        np.reshape(data, output["shape"]), logits, rtol=0, atol=0 if binary else 1e-7
    )


WRONG = {
    "no object": "[]",
    "no JSON": "{",
    "not UTF-8": b'{"id": "\xff"}',
    "deep": "[" * 5000,
    "empty": "",
    "no inputs": {},
    "two inputs": {"inputs": body()["inputs"] * 2},
    "inputs as object": {"inputs": {"0": 1}},
    "input as text": {"inputs": ["x"]},
    "another name": body(name="x"),
    "another datatype": body(datatype="FP64"),
    "no shape": body(shape=None),
    "negative": body(shape=[-1, 1, 2, 2]),
    "zero rows": body(shape=[0, 1, 2, 2], data=[]),
    "shape of texts": body(shape=["1", 1, 2, 2]),
    "shape of truths": body(shape=[True, 1, 2, 2]),
    "other shape": body(shape=[1, 4]),
    "no data": body(data=None),
    "too few": body(data=[1.0]),
    "too many": body(data=[1.0] * 5),
    "ragged": body(data=[[1.0], [1.0, 2.0]]),
    "texts": body(data=["1.0"] * 4),
    "truths": body(data=[True] * 4),
    "nulls": body(data=[None] * 4),
    "objects": body(data=[{}] * 4),
    "over FP32": body(data=[1e300] * 4),
    "huge integer": body(data=[10**60] * 4),
    "NaN": '{"inputs": [{"name": "input", "shape": [1,1,2,2], "datatype": "FP32", "data": [NaN]}]}',
    "id as number": {**body(), "id": 3},
    "parameters as list": {**body(), "parameters": []},
    "tensor parameters as list": body(parameters=[1]),
    "shared memory": body(parameters={"shared_memory_region": "x"}),
    "data and binary": body(parameters={"binary_data_size": 16}),
    "another output": {**body(), "outputs": [{"name": "x"}]},
    "two outputs": {**body(), "outputs": [{"name": "logits"}] * 2},
    "outputs as object": {**body(), "outputs": {}},
    "classification": {
        **body(), "outputs": [{"name": "logits", "parameters": {"classification": 3}}]
    },
    "binary as text": {**body(), "parameters": {"binary_data_output": "yes"}},
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_with_a_reason(what):
    wrong = WRONG[what]
    data = wrong if isinstance(wrong, str | bytes) else json.dumps(wrong)
    with pytest.raises(RequestError) as refused:
        parse(data.encode() if isinstance(data, str) else data, None, MODEL, 8)
    assert refused.value.status == 400
    assert len(refused.value.text) > 10


@pytest.mark.parametrize("length", [b"", b"-1", b"x", b"99999", b"9" * 500, "²".encode()])
def test_a_wrong_header_length_is_refused(length):
    with pytest.raises(RequestError, match="Content-Length"):
        parse(json.dumps(body()).encode(), length, MODEL, 8)


@pytest.mark.parametrize("size", [15, 17, "16", 16.0, True, -16, 10**30])
def test_binary_sizes_must_be_the_bytes_that_are_there(size):
    tensor = {"name": "input", "shape": [1, 1, 2, 2], "datatype": "FP32",
              "parameters": {"binary_data_size": size}}  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(RequestError):
        parse(head + bytes(16), str(len(head)).encode(), MODEL, 8)


def test_bytes_that_nothing_describes_and_values_that_are_not_finite_are_refused():
    head = json.dumps(body()).encode()
    with pytest.raises(RequestError, match="binary_data_size"):
        parse(head + bytes(4), str(len(head)).encode(), MODEL, 8)
    tensor = {"name": "input", "shape": [1, 1, 2, 2], "datatype": "FP32",
              "parameters": {"binary_data_size": 16}}  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    tail = np.array([0, math.nan, 0, 0], "<f4").tobytes()
    with pytest.raises(RequestError, match="finite"):
        parse(head + tail, str(len(head)).encode(), MODEL, 8)


def test_too_many_inputs_are_413_before_their_data_is_looked_at():
    with pytest.raises(RequestError) as refused:
        read(body(9, data="x"))
    assert refused.value.status == 413


def test_integers_are_taken_for_integer_models_only_whole():
    model = Model("g2d", (2,), "int64", 2)
    tensor = {"name": "input", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]}
    assert parse(json.dumps({"inputs": [tensor]}).encode(), None, model, 1).x.dtype == np.int64
    for wrong in ([1.5, 2], [2**63, 2]):
        with pytest.raises(RequestError, match="whole"):
            parse(json.dumps({"inputs": [tensor | {"data": wrong}]}).encode(), None, model, 1)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_numpy_never_sees_what_is_no_number(monkeypatch, dtype):
    """As an array of texts every place is as long as the longest: 100 kB would be 2.6 GB."""
    model = Model("g2d", (100,), dtype, 3)
    seen = []
    for name in ("array", "asarray"):
        monkeypatch.setattr(f"g2d.service.http.protocol.np.{name}", lambda *_, **__: seen.append(1))
    number = 1 if dtype == "int64" else 1.0
    for wrong in ("a" * 50_000, None, True, {}, [], [number]):
        for row in ([number] * 99 + [wrong], [[number] * 99 + [wrong]], [wrong] * 100):
            tensor = {"name": "input", "shape": [1, 100], "datatype": model.datatype, "data": row}
            with pytest.raises(RequestError) as refused:
                parse(json.dumps({"inputs": [tensor]}).encode(), None, model, 8)
            assert refused.value.status == 400
    for many in ([number] * 101, [number] * 99, [[number] * 101], [[number] * 100] * 2):
        tensor = {"name": "input", "shape": [1, 100], "datatype": model.datatype, "data": many}
        with pytest.raises(RequestError, match="must hold 100 numbers"):
            parse(json.dumps({"inputs": [tensor]}).encode(), None, model, 8)
    assert not seen


@pytest.mark.parametrize("part", ["0", "[]", "{}", '""', "[[[[]]]]"])
def test_a_body_of_more_values_than_could_fit_is_not_even_parsed(monkeypatch, part):
    def never(_: bytes) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("g2d.service.http.protocol.orjson.loads", never)
    large = b'{"inputs": [' + b",".join([part.encode()] * 60_000) + b"]}"
    with pytest.raises(RequestError) as refused:
        parse(large, None, MODEL, 8)
    assert refused.value.status == 413


def test_the_largest_body_that_fits_is_parsed():
    model = Model("g2d", (1, 8, 8), "float64", 3)
    x = np.random.default_rng(0).normal(size=(64, 1, 8, 8))
    for data in (x.tolist(), x.ravel().tolist()):
        tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP64", "data": data}
        large = json.dumps({"inputs": [tensor]}, indent=1).encode()
        assert 65_536 < len(json.dumps({"inputs": [tensor]})) <= model.largest(64)
        assert np.array_equal(parse(large, None, model, 64).x, x)


def test_how_large_a_body_may_be_follows_from_the_task():
    assert Model("g2d", (1, 8, 8), "float32", 10).largest(256) == 32 * 64 * 256 + 65_536
    assert Model("g2d", (3, 32, 32), "float32", 10).largest(256) == 8 << 20
    assert Model("g2d", (3, 512, 512), "float32", 10).largest(256) == 32 * 3 * 512 * 512 + 65_536


@given(st.binary(max_size=200), st.none() | st.binary(max_size=4))
def test_any_bytes_are_read_or_refused(data, length):
    assert outcome(data, length) in (200, 400, 413)


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("id", "inputs", "outputs", "parameters"), json_like)
    ),
    st.dictionaries(
        st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), json_like
    ),
)
def test_any_json_is_read_or_refused(whole, tensor):
    for given_body in (whole, {**whole, **body(1, **tensor)}):
        assert outcome(json.dumps(given_body).encode(), None) in (200, 400, 413)
