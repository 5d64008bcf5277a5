"""Bodies of encrypted requests: there and back, and everything that is none."""

from __future__ import annotations

import json

import pytest

from g2d.service.encrypted.protocol import Query, read_answer, read_query, write_answer, write_query
from g2d.service.http.protocol import RequestError

QUERY = Query(b"\x00\xffcipher", "0" * 32, "d" * 64, "mine")


def test_a_query_comes_back():
    body, headers = write_query(QUERY)
    assert read_query(body, headers["Inference-Header-Content-Length"].encode()) == QUERY


def test_an_answer_comes_back():
    body, headers = write_answer(QUERY, b"\x01" * 9, "g2d", 7, {"generation": 7})
    size = dict(headers)[b"inference-header-content-length"].decode()
    assert read_answer(body, size) == (b"\x01" * 9, 7)
    told = json.loads(body[: int(size)])
    assert told["id"] == "mine"
    assert told["model_version"] == "7"


def test_a_tag_comes_back_as_it_is():
    tag = "t0123456789abcdef"
    body, headers = write_answer(QUERY, b"c", "g2d", tag, {"generation": tag})
    size = dict(headers)[b"inference-header-content-length"].decode()
    assert read_answer(body, size) == (b"c", tag)


def made(**changes):
    size = 8
    whole = {
        "parameters": {"keys": "0" * 32, "plan": "d"},
        "inputs": [{"name": "ciphertext", "datatype": "UINT8", "shape": [size],
                    "parameters": {"binary_data_size": size}}],
    } | changes  # fmt: skip
    head = json.dumps(whole).encode()
    return head + bytes(size), str(len(head)).encode()


def test_the_plain_form_of_a_query_is_read():
    assert read_query(*made()).ciphertext == bytes(8)


@pytest.mark.parametrize(
    ("body", "size", "says"),
    [
        (b"", None, "Header-Content-Length"),
        (b"{}", b"3", "Header-Content-Length"),
        (b"{}", b"-1", "Header-Content-Length"),
        (b"{}", b"9" * 30, "Header-Content-Length"),
        (b" " * 70_000, b"69000", "Header-Content-Length"),
        (b"{", b"1", "does not begin with JSON"),
        (b"[]x", b"2", "an object"),
        (*made(id=7), "id must be a text"),
        (*made(id="x" * 300), "id must be a text"),
        (*made(parameters=None), "parameters must be"),
        (*made(parameters={"keys": "../../etc/passwd", "plan": "d"}), "parameters.keys"),
        (*made(parameters={"keys": "0" * 32}), "parameters.plan"),
        (*made(parameters={"keys": "0" * 32, "plan": "d" * 300}), "parameters.plan"),
        (*made(inputs=[]), "one tensor"),
        (*made(inputs=[{"name": "input"}]), "one tensor"),
    ],
)
def test_what_is_no_query_is_refused_in_one_line(body, size, says):
    with pytest.raises(RequestError) as refused:
        read_query(body, size)
    assert refused.value.status == 400
    assert says in refused.value.text
    assert "\n" not in refused.value.text


def test_a_truncated_query_is_refused():
    body, size = made()
    with pytest.raises(RequestError, match="7 bytes behind"):
        read_query(body[:-1], size)
    with pytest.raises(RequestError):
        read_query(body[: int(size)], size)
