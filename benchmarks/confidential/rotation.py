"""Rotation under encrypted load: mixed or failed answers, latency, CPU, what a client uploads.

    python -m benchmarks.confidential.rotation --task mnist-he --data ../shared/data/mnist
    python -m benchmarks.confidential.rotation --answers 5 --out /tmp/smoke.json   # digits, minutes

`g2d serve --encrypted --every` as a process, its vault's generations made by `QUICK` (gates open,
nothing guided, since only serving is judged). Clients send one encrypted input after the other;
beside them one client asks in plain, ten times a second, before and during. An answer is mixed if
it is not, within 0.01, torch's of the generation that it names; its error is told apart.
CPU seconds are the evaluators' own (user and system), shared among all answers; the encoding of
spares is among them, and told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch

from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import record
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.serving.process import QUICK, Server
from g2d.core.exchange import ExchangeError, ask

NAME = "confidential-rotation"
NEAR = 1e-2
"""How far a logit of the right generation may be off: ten times what is wanted of its error, so
that noise is not taken for a mixed answer; the table says how far apart generations are."""
_PLAIN = 0.1  # seconds between plain requests


def make_vault(given: argparse.Namespace, path: Path) -> Path:
    """A small vault of a task whose network is of squares."""
    import g2d
    from g2d.core.engine import SerialEngine
    from g2d.settings import build

    # Of so short a training draws stand far apart: this gate would refuse them all.
    gates: dict[str, Any] = {**QUICK["gates"], "pre_activation": 0.0}
    task = {"name": given.task, "data": str(given.data or "")}
    tables: dict[str, Any] = {**QUICK, "task": task, "gates": gates}
    settings = build(g2d.Settings, tables, "the benchmark")
    with g2d.Defence.build(given.task, path, settings, engine=SerialEngine()):
        return path


class Plain(threading.Thread):
    """Asks in plain, ten times a second, until it is told to stop; keeps the seconds of each."""

    def __init__(self, url: str, x: np.ndarray) -> None:
        super().__init__(daemon=True)
        from g2d.service.client import connect

        self._client, self._x, self._ending = connect(url), x[:1], threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        """Ask."""
        self._client.infer(self._x)  # what is served is asked for before anything is timed
        while not self._ending.wait(_PLAIN):
            began = time.perf_counter()
            self._client.infer(self._x)
            self.seconds.append(time.perf_counter() - began)

    def end(self) -> list[float]:
        """Stop; return the seconds."""
        self._ending.set()
        self.join()
        return self.seconds


class Load:
    """Encrypted requests by several clients, each with keys of its own.

    Attributes:
        answers: which input, what was answered, by which generation, after how many seconds.
        failures: what was said where nothing was answered.
    """

    def __init__(self, url: str, folder: Path, clients: int, inputs: np.ndarray) -> None:
        from g2d.service.client.encrypted import EncryptedClient

        self.inputs, self._turn, self._mutex = inputs, iter(range(10**9)), threading.Lock()
        self.clients = [EncryptedClient(url, keys=folder / f"{i}.keys") for i in range(clients)]
        self.uploaded = 0
        for client in self.clients:
            client.make_keys()
            self.uploaded = client.upload()
        self.answers: list[tuple[int, list[float], int | None, float]] = []
        self.failures: list[str] = []

    def run(self, most: int) -> None:
        """Send `most` inputs together."""
        threads = [threading.Thread(target=self._ask, args=(c, most)) for c in self.clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, client: Any, most: int) -> None:
        while True:
            with self._mutex:
                turn = next(self._turn)
            if turn >= most:
                return
            place, began = turn % len(self.inputs), time.perf_counter()
            try:
                answer = client.infer(self.inputs[place : place + 1])
            except Exception as error:  # counted, whatever it was
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            took = time.perf_counter() - began
            self.answers.append((place, answer.values[0].tolist(), answer.number, took))


def ready(server: Server, patience: float = 600.0) -> str:
    """Wait until it answers; return its address."""
    url = f"http://127.0.0.1:{server.port}"
    while time.perf_counter() - server.began < patience and server.process.poll() is None:
        try:
            if ask("GET", f"{url}/v2/health/ready").status == 200:
                return url
        except ExchangeError:
            time.sleep(0.1)
    raise SystemExit(f"the service did not start: {server.log.read_text()[-2000:]}")


def evaluators(server: Server) -> list[psutil.Process]:
    """The service's processes that evaluate."""
    children = psutil.Process(server.process.pid).children()
    return [c for c in children if "g2d.service.encrypted.evaluator" in c.cmdline()]


def cpu(processes: list[psutil.Process]) -> float:
    """CPU seconds so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def compare(vault: Path, load: Load) -> dict[str, Any]:
    """How far answers are from torch's of the generation that each names."""
    import g2d

    numbers = sorted({number for *_, number, _ in load.answers if number is not None})
    x = torch.from_numpy(load.inputs)
    with g2d.Defence.open(vault, write=False) as defence, torch.no_grad():
        known = {number: defence.generation(number).model()(x).numpy() for number in numbers}
    errors, apart, same, nameless = [], [], 0, 0
    for place, told, number, _ in load.answers:
        if number is None:
            nameless += 1
            continue
        right = known[number][place]
        errors.append(float(np.abs(right - told).max()))
        apart += [float(np.abs(right - known[n][place]).max()) for n in numbers if n != number]
        same += int(right.argmax() == np.argmax(told))
    mixed = nameless + sum(error >= NEAR for error in errors)
    return {"error": max(errors, default=0.0), "same": same, "generations": len(numbers),
            "mixed": mixed, "apart": min(apart, default=None),
            "over": sum(error >= 1e-3 for error in errors)}  # fmt: skip


def encoding(vault: Path) -> float:
    """CPU seconds to encode a generation, once."""
    import g2d
    from g2d.protect.homomorphic import Plan, encode

    with g2d.Defence.open(vault, write=False) as defence:
        model = defence.generation(1).model()
        plan = Plan.of(model, tuple(defence.task.splits.test.x.shape[1:]))
        began = time.process_time()
        encode(plan, model.state_dict())
        return time.process_time() - began


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Serve, ask, compare."""
    from g2d import load_task

    vault = given.vault or make_vault(given, folder / "vault")
    task = load_task(given.task, data=str(given.data or ""))
    x = task.splits.test.x[: given.answers].numpy().astype(np.float32)
    options = ["--encrypted", "--encrypted-processes", str(given.processes), "--every", given.every,
               "--encrypted-timeout", "10m", "--timeout", "60s"]  # fmt: skip
    server = Server(vault, folder / "log", *options)
    try:
        url = ready(server)
        load = Load(url, folder, given.clients, x)
        before = Plain(url, x)
        before.start()
        time.sleep(given.idle)
        idle = before.end()
        found = evaluators(server)
        used, beside = cpu(found), Plain(url, x)
        beside.start()
        load.run(given.answers)
        busy, used = beside.end(), cpu(found) - used
    finally:
        server.kill()
    plan = load.clients[0].plan
    return record(given) | compare(vault, load) | {
        "asked": given.answers, "answered": len(load.answers), "failures": load.failures[:20],
        "seconds": sorted(took for *_, took in load.answers),
        "cpu": used / max(1, len(load.answers)), "encode": encoding(vault),
        "upload": load.uploaded, "query": plan.limits.query_bytes,
        "answer": plan.limits.answer_bytes, "plain_idle": idle, "plain_busy": busy,
    }  # fmt: skip


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """The table."""
    asked, wrong = result["asked"], result["mixed"] + result["asked"] - result["answered"]
    apart = f", at least {result['apart']:.2g} apart" if result["apart"] else ""
    seconds = result["seconds"] or [float("nan")]
    median = statistics.median(seconds)
    late = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]
    plain = [
        f"{1e3 * statistics.median(times):.1f}" if times else NOTHING
        for times in (result["plain_busy"], result["plain_idle"])
    ]
    return [
        ("mixed or failed encrypted answers, while it rotates", f"0 of {asked}",
         f"{wrong} of {asked}, by {result['generations']} generations{apart}"),
        ("largest error of a logit, as the client rounds it (answers over 0.001)", "< 0.001",
         f"{result['error']:.2g} ({result['over']})"),
        ("argmax as torch's", "999 of 1,000", f"{result['same']} of {result['answered']}"),
        ("an encrypted answer, median (99 %), s", "", f"{median:.2f} ({late:.2f})"),
        ("an encrypted answer, CPU s of the service, encoding included", "≤ 1.5",
         f"{result['cpu']:.2f}"),
        ("a generation encoded, CPU s", "≤ 2", f"{result['encode']:.2f}"),
        ("a client's keys, MB, once", "≤ 150", f"{result['upload'] / 1e6:.1f}"),
        ("a query (its answer), MB", "",
         f"{result['query'] / 1e6:.2f} ({result['answer'] / 1e6:.2f})"),
        ("a plain answer beside them, median (before), ms", "", f"{plain[0]} ({plain[1]})"),
    ]  # fmt: skip


def made(folder: Path = RESULTS) -> dict[str, str]:
    """The block of docs/confidential.md, by the name of its mark."""
    path = folder / f"{NAME}.json"
    if not path.exists():
        return {NAME: markdown(TARGETS, [(f"`{path.name}`", NOTHING, "not measured yet")])}
    result = json.loads(path.read_text("utf-8"))
    return {NAME: f"{markdown(TARGETS, rows(result))}\n\nCommit {result['commit'] or 'unknown'}."}


def main() -> None:
    """Measure and keep."""
    flags = parser(__doc__)
    flags.add_argument("--task", default="digits-he", help="whose network is of polynomials")
    flags.add_argument("--data", type=Path, metavar="FOLDER", help="where the task's data lies")
    flags.add_argument(
        "--vault", type=Path, metavar="FOLDER", help="one that there is, of the task"
    )
    flags.add_argument("--every", default="5s", metavar="TIME", help="between rotations")
    flags.add_argument("--idle", type=float, default=5.0, help="seconds of plain requests alone")
    for name, number in (("answers", 200), ("clients", 2), ("processes", 1)):
        flags.add_argument(f"--{name}", type=int, default=number)
    carry_out(NAME, flags, measure, rows)


if __name__ == "__main__":
    main()
