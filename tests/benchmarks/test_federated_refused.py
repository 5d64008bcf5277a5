"""A target says on how many seeds the product would refuse the base of its rule."""

import argparse

import pytest

pytest.importorskip("psutil")

from benchmarks.federated.judging import ALONE, name_of, targets


def result(gate, alone=0.9):
    cases = [(0.5, 8, "alie", "median"), (0.5, 8, "backdoor", "median"), (0.5, 0, "none", "mean")]
    rows = {name_of(*case): {"accuracy": gate, "gate": gate} for case in cases}
    control = {ALONE: {"accuracy": alone, "gate": alone}}
    return {"rows": rows, "controls": {"0.5": control}, "chosen": {"alpha 0.5 | f 8": "median"}}


def reached(results):
    given = argparse.Namespace(attacks=["alie", "backdoor"], rules=["mean", "median"])
    told = {what: found for what, _, found in targets(results, given)}
    return told["f = 8, alpha 0.5"]


def test_a_base_below_the_servers_own_network_is_told_as_refused():
    assert "refused, with both figures, on 1 of 2 seeds" in reached([result(0.5), result(0.95)])


def test_a_base_ahead_of_it_is_not():
    assert "refused" not in reached([result(0.95)])
