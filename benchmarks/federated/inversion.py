"""What a client's messages tell of its records: gradient inversion, by likeness of images.

    python -m benchmarks.federated.inversion --task digits --seeds 0 1 2
    python -m benchmarks.federated.inversion --counts 1 --steps 20 --cases 1    # a try

Messages of the same records, from the same network: `plain`, the gradient of one step over all of
them (the positive control: it leaks); `message`, what the product's client answers to a first
round; `unrolled`, the same message, by an attacker who unrolls the client's steps, for so few
records that each step sees all of them (`--unroll`: this is nine tenths of the CPU); `private`, the
message of a client with `[federated] private` (clip 1, every record in half of the steps), by both.
Attackers know labels, network, and how many records there are. Beside them `class mean`: the mean
of the server's own records of that class, which needs no message at all. SSIM and PSNR are of each
record with the found one that fits it best, labels alike.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.common.command import Result, parser
from benchmarks.common.places import RESULTS
from benchmarks.common.results import commit, hold_to, record, save
from benchmarks.common.tables import TARGETS, markdown
from g2d.attacks.gradients import Inversion, Local, gradients, invert
from g2d.core.seeds import seed_of
from g2d.settings import Settings
from g2d.tasks.source import by_name, resolve
from g2d.tasks.splits import Split
from g2d.tasks.task import Task
from g2d.training.federated.client import Client
from g2d.training.federated.ledgers import ClientLedger
from g2d.training.federated.messages import ANSWER, ROUND, Message, decode, encode
from g2d.training.federated.networks import Networks

KINDS = ("plain", "message", "unrolled", "private", "private, unrolled", "class mean")
PRIVATE = tuple(kind for kind in KINDS if kind.startswith("private"))
_WINDOW = 7  # pixels, of SSIM


def ssim(a: np.ndarray, b: np.ndarray, span: float) -> float:
    """Structural similarity of two images (h, w), uniform window of 7 (Wang et al. 2004)."""
    one, two = (0.01 * span) ** 2, (0.03 * span) ** 2
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = min(_WINDOW, *a.shape)

    def mean(x: np.ndarray) -> np.ndarray:
        edge = size // 2
        return uniform_filter(x, size)[edge : x.shape[0] - edge, edge : x.shape[1] - edge]

    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    found = (2 * ma * mb + one) * (2 * both + two)
    return float((found / ((ma**2 + mb**2 + one) * (va + vb + two))).mean())


def psnr(a: np.ndarray, b: np.ndarray, span: float) -> float:
    """Peak signal-to-noise ratio in dB; 100 at most."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 100.0 if error <= 0 else min(100.0, 10 * float(np.log10(span**2 / error)))


def likeness(found: Tensor, records: Split, span: float) -> Result:
    """SSIM and PSNR (means, and the best SSIM), each record with the found one that fits it."""
    a, b = found.numpy()[:, 0], records.x.numpy()[:, 0]
    cost = np.square(a[:, None] - b[None]).mean((2, 3))
    cost = cost + 1e6 * (records.y.numpy()[:, None] != records.y.numpy()[None])
    pairs = list(zip(*linear_sum_assignment(cost), strict=True))
    alike = [ssim(a[i], b[j], span) for i, j in pairs]
    return {
        "ssim": statistics.mean(alike), "best": max(alike),
        "psnr": statistics.mean(psnr(a[i], b[j], span) for i, j in pairs),
    }  # fmt: skip


class Bench:
    """One client's records, the network that it is sent, and what it sends of them."""

    def __init__(self, task: Task, settings: Settings, count: int, case: int) -> None:
        self.task, self.settings = task, settings
        self.seed = seed_of(settings.population.seed, "inversion", count, case)
        source = torch.Generator().manual_seed(self.seed)
        self.records = task.splits.train.sample(count, source)
        self.networks = Networks.of(task)
        self.like = task.model(self.seed).state_dict()

    def changes(self, vector: np.ndarray) -> list[Tensor]:
        """A change (P,) of each parameter that is trained."""
        parts = self.networks.form.split(vector)
        names = [n for n, p in self.task.model(0).named_parameters() if p.requires_grad]
        return [torch.from_numpy(parts[name].copy()) for name in names]

    def sent(self, kind: str) -> list[Tensor]:
        """What the client sends, as changes of parameters."""
        if kind == "plain":
            model = self.task.model(self.seed)
            model.load_state_dict(self.like)
            found = gradients(self.task, model, self.records.x, self.records.y)
            return [-g.detach() for g in found]
        return self.changes(self._answer(kind in PRIVATE))

    def _answer(self, private: bool) -> np.ndarray:
        """What the product's client answers to a first round; every record is in half of the steps
        of a private one.
        """
        s, form, count = self.settings.federated, self.networks.form, len(self.records)
        p = replace(self.settings.privacy, records=2 * count, batch=count, clip=1.0, epsilon=1000.0)
        own = replace(self.settings, privacy=p)
        client = Client(
            "client", self.task, self.records, own, self.networks, self.like,
            ledger=ClientLedger(own) if private else None,
        )  # fmt: skip
        plan = {
            "steps": s.local_steps, "rate": s.local_rate, "momentum": s.momentum, "repelled": [],
            "batch": self.settings.population.batch,
        }  # fmt: skip
        ask = Message(ROUND, "base-0", self.networks.vector(self.like), 0, plan=plan)
        data = client.answer(encode(ask, form))
        assert data is not None, "it has records"
        return decode(data, form, ANSWER).vector

    def found(self, kind: str, how: Inversion) -> Tensor:
        """What the attacker makes of it (n, ...)."""
        y = self.records.y
        if kind == "class mean":
            own = self.task.splits.guide
            return torch.stack([own.x[own.y == label].mean(0) for label in y])
        model = self.task.model(self.seed)
        model.load_state_dict(self.like)
        source = torch.Generator().manual_seed(self.seed + 1)
        s = self.settings.federated
        local = Local(s.local_steps, s.local_rate) if "unrolled" in kind else Local()
        return invert(self.task, model, self.sent(kind), y, source, how, local)


def run(given: Namespace, seed: int, path: Path) -> Result:
    """Measure what is missing of one seed, client by client."""
    result = json.loads(path.read_text()) if path.exists() else record(given)
    names = ("task", "steps", "restarts", "cases", "local_steps", "noise", "unroll")
    hold_to(result, {name: getattr(given, name) for name in names} | {"commit": commit()}, path)
    settings = Settings().override(
        task__name=given.task, task__data=str(given.data or ""), population__seed=seed,
        federated__local_steps=given.local_steps, privacy__noise=given.noise,
    )  # fmt: skip
    task = resolve(by_name(settings.task))
    assert task.bounds is not None, "images have bounds"
    how, span = Inversion(given.steps, restarts=given.restarts), task.bounds[1] - task.bounds[0]
    rows = result.setdefault("rows", {})
    for count in given.counts:
        for kind in KINDS:
            if (key := f"{count} | {kind}") in rows or (
                "unrolled" in kind and count > given.unroll
            ):
                continue
            began = time.process_time()
            each = [Bench(task, settings, count, case) for case in range(given.cases)]
            rows[key] = [likeness(one.found(kind, how), one.records, span) for one in each]
            seconds = result.setdefault("cpu_seconds", {})
            seconds[key] = round(time.process_time() - began, 1)
            save(path, result)
    return result


def mean_of(results: Sequence[Result], key: str, what: str) -> float:
    """The mean over seeds and clients; NaN: it was not measured."""
    each = [row[what] for r in results for row in r["rows"].get(key, ())]
    return statistics.mean(each) if each else math.nan


def table(results: Sequence[Result]) -> str:
    """Likeness by number of records and kind of message."""
    keys = dict.fromkeys(key for result in results for key in result["rows"])
    lines = [
        [*key.split(" | "), f"{mean_of(results, key, 'ssim'):.3f}",
         f"{mean_of(results, key, 'best'):.3f}", f"{mean_of(results, key, 'psnr'):.1f}"]
        for key in keys
    ]  # fmt: skip
    return markdown(["records", "message", "SSIM", "best SSIM", "PSNR in dB"], lines)


def targets(results: Sequence[Result], given: Namespace) -> list[list[object]]:
    """Whether plain gradients leak, and messages do not tell more than a class mean."""
    found: list[list[object]] = []
    for count in given.counts:
        told = {kind: mean_of(results, f"{count} | {kind}", "ssim") for kind in KINDS}
        told = {kind: value for kind, value in told.items() if not math.isnan(value)}
        if not told.keys() >= {"plain", "class mean"}:
            continue
        guess = told["class mean"]
        what = f"SSIM, {count} records"
        found.append([f"{what}: plain gradients (control)", f"> {guess:.3f}, the class mean",
                      f"{told['plain']:.3f}"])  # fmt: skip
        for kind in [kind for kind in KINDS[1:-1] if kind in told]:
            found.append([f"{what}: {kind}", f"≤ {guess:.3f}, the class mean",
                          f"{told[kind]:.3f}"])  # fmt: skip
    return found


def flags() -> ArgumentParser:
    """What may be asked for."""
    found = parser(__doc__)
    found.add_argument("--task", default="digits")
    found.add_argument("--data", type=Path)
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--counts", type=int, nargs="+", default=[1, 4, 40], help="a client's")
    found.add_argument("--cases", type=int, default=5, help="clients of each seed")
    found.add_argument("--unroll", type=int, default=4,
                       help="records up to which steps are unrolled")  # fmt: skip
    found.add_argument("--local-steps", type=int, default=10)
    found.add_argument("--noise", type=float, default=1.0, help="of DP-SGD, in clips")
    found.add_argument("--steps", type=int, default=2400)
    found.add_argument("--restarts", type=int, default=2)
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, print."""
    given = flags().parse_args(arguments)
    torch.set_num_threads(1)
    paths = {s: given.out / f"federated-inversion-{given.task}-seed{s}.json" for s in given.seeds}
    results = [run(given, seed, path) for seed, path in paths.items()]
    print(table(results))
    print(markdown(TARGETS, targets(results, given)))
    minutes = ", ".join(f"{sum(r.get('cpu_seconds', {}).values()) / 60:.1f}" for r in results)
    print(f"CPU minutes a seed: {minutes}")


if __name__ == "__main__":
    main()
