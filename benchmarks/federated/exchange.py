"""What a round costs the server, in bytes and CPU, beside NVFlare's own federated averaging.

    python -m benchmarks.federated.exchange --task mnist --data FOLDER
    python -m benchmarks.federated.exchange --clients 6 --rounds 2 --rules mean    # a try

Messages alone, which both sides carry over the same connections: the server writes a round's
message once, reads every client's answer, aggregates. Ours is the product's `Server`, with all of
its checks, digests and files; theirs is NVFlare's object format and the helper that its FedAvg
controller aggregates by, in memory, with no check. Updates are drawn, not trained: no cost depends
on their values but that of rules. CPU is the median of rounds, the two in turns. Kept rule by rule
in benchmarks/results/federated-exchange-TASK.json: an interrupted run goes on. Needs
`g2d[federated]`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown
from g2d.settings import Settings
from g2d.settings.federated import FederatedSettings
from g2d.tasks.source import by_name, resolve
from g2d.training.federated.aggregation import RULES
from g2d.training.federated.form import Form
from g2d.training.federated.messages import ANSWER, Message, digest_of, encode
from g2d.training.federated.networks import Networks
from g2d.training.federated.server import Server
from g2d.training.federated.stages import Asked

THEIRS = "NVFlare's FedAvg"
MOST = 1.2  # times theirs


def updates(form: Form, clients: int, seed: int) -> np.ndarray:
    """Changes (n, P) that lie near each other, as those of clients do."""
    source = np.random.default_rng(seed)
    whole = source.normal(size=form.size)
    return (whole + source.normal(size=(clients, form.size))).astype(np.float32)


def names(clients: int) -> list[str]:
    """The clients' names."""
    return [f"client-{k:02d}" for k in range(clients)]


def ours(form: Form, given: Namespace, rule: str, folder: Path) -> Callable[[int], Result]:
    """Our server; the call is one round of it."""
    plain = rule == "mean"
    settings = FederatedSettings(
        clients=given.clients, rule=rule, f=0 if plain else given.f, mix=not plain,
        clip=0.0 if plain else 2.0, rounds=given.rounds,
    )  # fmt: skip
    asked = Asked("base-0", given.rounds, 32)
    start = np.zeros(form.size, np.float32)
    server = Server(form, start, asked, settings, names(given.clients), folder)

    def round_(number: int) -> Result:
        X, base = updates(form, given.clients, number), digest_of(server.vector)
        sent = [
            encode(Message(ANSWER, "base-0", row, server.number, name, base), form)
            for name, row in zip(names(given.clients), X, strict=True)
        ]
        began = time.process_time()
        message = server.ask()
        for name, data in zip(names(given.clients), sent, strict=True):
            assert server.take(data, name), server.refusals.last
        closed = server.close(X.mean(0) if RULES[rule].rooted else None)
        seconds = time.process_time() - began
        assert not closed.skipped, closed.skipped
        return {"seconds": seconds, "asked": len(message), "answered": len(sent[0])}

    return round_


def theirs(form: Form, given: Namespace) -> Callable[[int], Result]:
    """NVFlare's averaging; the call is one round of it."""
    from nvflare.apis.utils.decomposers import flare_decomposers
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
    from nvflare.app_common.decomposers import numpy_decomposers
    from nvflare.app_common.utils.fl_model_utils import FLModelUtils
    from nvflare.fuel.utils import fobs

    flare_decomposers.register()
    numpy_decomposers.register()
    state = {"x": np.zeros(form.size, np.float32)}

    def packed(vector: np.ndarray, kind: Any, number: int) -> bytes:
        model = FLModel(params=form.split(vector), params_type=kind, current_round=number,
                        meta={"NUM_STEPS_CURRENT_ROUND": 1})  # fmt: skip
        return bytes(fobs.dumps(FLModelUtils.to_shareable(model)))

    def round_(number: int) -> Result:
        X = updates(form, given.clients, number)
        sent = [packed(row, ParamsType.DIFF, number) for row in X]
        began = time.process_time()
        message = packed(state["x"], ParamsType.FULL, number)
        helper = WeightedAggregationHelper()
        for name, data in zip(names(given.clients), sent, strict=True):
            model = FLModelUtils.from_shareable(fobs.loads(data))
            helper.add(model.params, 1.0, name, number)
        state["x"] = state["x"] + form.join(helper.get_result())
        seconds = time.process_time() - began
        return {"seconds": seconds, "asked": len(message), "answered": len(sent[0])}

    return round_


def measured(form: Form, given: Namespace, rule: str) -> Result:
    """One rule and NVFlare's averaging, round by round in turns."""
    with tempfile.TemporaryDirectory() as folder:
        both = {"ours": ours(form, given, rule, Path(folder) / "state"),
                "theirs": theirs(form, given)}  # fmt: skip
        rows: dict[str, list[Result]] = {name: [] for name in both}
        for number in range(given.rounds):
            for name in sorted(both, reverse=bool(number % 2)):
                rows[name].append(both[name](number))
    return {
        name: {
            "seconds": statistics.median(row["seconds"] for row in each),
            "bytes": given.clients * (each[0]["asked"] + each[0]["answered"]),
        }
        for name, each in rows.items()
    }


def run(given: Namespace, path: Path) -> Result:
    """Measure what is missing, rule by rule."""
    result = json.loads(path.read_text()) if path.exists() else record(given)
    sizes = {name: getattr(given, name) for name in ("task", "clients", "f", "rounds")}
    hold_to(result, sizes | {"commit": commit()}, path)
    changes = {"task__name": given.task, "task__data": str(given.data or "")}
    form = Networks.of(resolve(by_name(Settings().override(**changes).task))).form
    result["parameters"] = form.size
    found = result.setdefault("rows", {})
    for rule in given.rules:
        if rule not in found:
            found[rule] = measured(form, given, rule)
            save(path, result)
    return result


def rows(result: Result) -> list[list[object]]:
    """Bytes of a round, and CPU of each rule, by those of NVFlare's averaging."""
    found: list[list[object]] = []
    for rule, each in result["rows"].items():
        own, other = each["ours"], each["theirs"]
        if rule == "mean":
            found.append(["bytes of a round, both ways", f"≤ {MOST:g} times {THEIRS}",
                          f"{own['bytes'] / other['bytes']:.3f} times"])  # fmt: skip
        cost = f"{1000 * own['seconds']:.1f} ms, {own['seconds'] / other['seconds']:.2f} times"
        wanted = f"≤ {MOST:g} times {THEIRS}" if rule == "mean" else "–"
        found.append([f"server CPU of a round, {rule}", wanted, cost])
    return found


def facts(result: Result) -> str:
    """The line below the table."""
    s = result["sizes"]
    return (
        f"Task {s['task']}, {result['parameters']} parameters; {s['clients']} clients, robust rules"
        f" with f = {s['f']}; median of {s['rounds']} rounds; commit {s['commit'] or 'unknown'}."
    )


def flags() -> ArgumentParser:
    """What may be asked for."""
    found = parser(__doc__)
    found.add_argument("--task", default="digits")
    found.add_argument("--data", type=Path)
    found.add_argument("--clients", type=int, default=20)
    found.add_argument("--f", type=int, default=4)
    found.add_argument("--rounds", type=int, default=20)
    found.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    torch.set_num_threads(1)
    result = run(given, given.out / f"federated-exchange-{given.task}.json")
    print(markdown(TARGETS, rows(result)))
    print(facts(result))


if __name__ == "__main__":
    main()
