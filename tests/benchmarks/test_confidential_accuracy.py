"""The table of squares beside ReLU says what the JSON says; the twins differ in activations."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
from torch import nn

pytest.importorskip("psutil")

from benchmarks.common.tables import MARK, pages
from benchmarks.confidential.accuracy import Seed, made, mnist_relu_cnn, rows, tasks
from g2d.tasks.networks import mnist_he_cnn
from g2d.tasks.polynomials import Square


def result(seed: int, apart: float) -> dict:
    relu = {"clean": 0.98, "approximated": 0.96, "agreement": 0.97}
    attacked = {"clean": 0.97, "last": 0.1, "joint_8": 0.2, "white_box": 0.9}
    made = {f"trained, relu, {number}": relu for number in range(2)}
    made |= {f"trained, square, {n}": {"clean": 0.98 + apart + 0.001 * n} for n in range(2)}
    return {"seed": seed, "rows": made | {f"rotated, {k}": attacked for k in ("square", "relu")}}


def test_the_table_says_what_was_measured():
    told = {what: reached for what, _, reached in rows([result(s, 0.001 * s) for s in range(3)])}
    assert told["accuracy of its ReLU twin"] == "98.00 ± 0.00 %"
    assert told["difference in points"] == "0.15 ± 0.25"
    assert told["ReLU, approximated afterwards (lossy)"] == "96.00 ± 0.00 %"
    assert told["white-box ASR: squares / ReLU"] == "90.00 ± 0.00 % / 90.00 ± 0.00 %"
    part = result(0, 0.0)
    part["rows"] = {"trained, square, 0": {"clean": 0.98}}
    told = {what: reached for what, _, reached in rows([part])}
    assert told["accuracy of `mnist-he`"] == "98.00 %"
    assert told["difference in points"] == "–"
    assert told["stale ASR, joint attack on 8 read: squares / ReLU"] == "– / –"


def test_twins_differ_in_what_stands_between_their_layers_alone():
    pairs = zip(mnist_he_cnn(), mnist_relu_cnn(), strict=True)
    apart = [(type(a), type(b)) for a, b in pairs if type(a) is not type(b)]
    assert apart == [(Square, nn.ReLU)] * 3
    found = tasks("digits", "")
    assert [task.name for task in found.values()] == ["digits-he", "digits"]


def test_rows_that_are_there_are_not_measured_again_and_other_sizes_not_mixed(tmp_path, capsys):
    small = {"members": 2, "basins": 1, "generations": 1, "networks": 1, "images": 20,
             "base_steps": 20}  # fmt: skip
    given = Namespace(task="digits", data="", out=tmp_path, runs=tmp_path, **small)
    one = Seed(0, given)
    one._rotated = lambda kind: {"clean": 0.5}
    one.measure()
    assert len(capsys.readouterr().out.splitlines()) == 4
    again = Seed(0, given)
    again.measure()
    assert capsys.readouterr().out == ""
    assert again.record == one.record
    with pytest.raises(SystemExit, match="give the same flags"):
        Seed(0, Namespace(**vars(given) | {"images": 21}))


def test_the_block_is_of_all_seeds_and_stands_in_a_page(tmp_path):
    (block,) = made(tmp_path).values()
    assert "not measured yet" in block
    sizes = {"members": 24, "basins": 4, "generations": 11, "networks": 4, "images": 1000}
    for seed in (0, 1, 10):
        told = result(seed, 0.001) | {"sizes": sizes}
        told["rows"] = {name: row | {"commit": "abc"} for name, row in told["rows"].items()}
        (tmp_path / f"confidential-accuracy-mnist-seed{seed}.json").write_text(json.dumps(told))
    (tmp_path / "confidential-accuracy-digits-seed0.json").write_text("{}")
    ((name, block),) = made(tmp_path).items()
    assert "| accuracy of its ReLU twin |  | 98.00 ± 0.00 % |" in block
    assert "Seeds 0, 1, 10; 4 networks of each kind" in block
    assert block.endswith("commit abc.")
    marks = {match["name"] for page in pages() for match in MARK.finditer(page.read_text("utf-8"))}
    assert name in marks


def test_all_tables_are_made_of_it_too():
    from benchmarks import tables
    from benchmarks.confidential import accuracy

    assert tables.accuracy is accuracy
