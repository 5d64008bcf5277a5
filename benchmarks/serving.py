"""What serving costs, and what rotation under load costs: throughput, p99, wrong answers.

    python benchmarks/serving.py --seconds 120 --throughput 30

Load comes from a second process over loopback, with keep-alive. Three questions, in one run:
  throughput  the service without rotation against the same model behind plain FastAPI + uvicorn,
              closed loop, in turns
  latency     p99 while rotating every second against p99 while paused, at a fixed rate, in turns
  right       failed, dropped, mixed or out-of-order answers: every distinct answer of a generation
              is compared with that generation's own logits
Writes results/serving.json and prints a table. `--vault` takes a digits vault; without one a tiny
one is made (a minute).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TOKEN = "a token of the benchmark"
TOKEN = TOKEN.replace(" ", "-")
GENERATION = re.compile(rb'"generation":(\d+)')
DATA = re.compile(rb'"data":\[([^\]]*)\]')
TINY = {
    "task": {"name": "digits"},
    "population": {"members": 4, "basins": 2, "base_steps": 200, "early_steps": 60,
                   "fork_steps": 60, "batch": 64, "pool": 128, "pool_steps": 3},
    "autoencoder": {"steps": 40, "width": 32},
    "diffusion": {"steps": 200, "width": 32, "depth": 1, "sampler_steps": 10},
    "guidance": {"pool": 128, "pool_steps": 3, "latent_steps": 5, "polish_steps": 40},
    "gates": {"accuracy_drop": 0.2, "class_drop": 0.5, "stale_asr": 1.0, "pool": 64},
}  # fmt: skip


# --- the load, in a process of its own -----------------------------------------------------------


class Client(asyncio.Protocol):
    """One keep-alive connection: sends the request again as soon as, or when, it may."""

    def __init__(self, request: bytes, gap: float, until: float, found: dict) -> None:
        self.request, self.gap, self.until, self.found = request, gap, until, found
        self.buffer, self.need, self.last = b"", -1, 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.due = time.perf_counter() + self.gap * np.random.default_rng().random()
        self.schedule()

    def schedule(self) -> None:
        loop, wait = asyncio.get_running_loop(), self.due - time.perf_counter()
        if self.due > self.until or (not self.gap and time.perf_counter() > self.until):
            self.finish()
        elif wait > 0:
            loop.call_later(wait, self.send)
        else:
            self.send()

    def send(self) -> None:
        # Open loop: latency counts from when the request was due, not from when it could be sent.
        self.began = self.due if self.gap else time.perf_counter()
        self.found["sent"] += 1
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.need < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = re.search(rb"content-length: (\d+)", self.buffer[:end].lower())
            self.need = end + 4 + int(length[1])
        if len(self.buffer) < self.need:
            return
        now = time.perf_counter()
        self.take(self.buffer[: self.need], now)
        self.buffer, self.need = self.buffer[self.need :], -1
        self.due = max(self.due + self.gap, self.began) if self.gap else now
        self.schedule()

    def take(self, answer: bytes, now: float) -> None:
        found = self.found
        found["latencies"].append((now, now - self.began))
        if not answer.startswith(b"HTTP/1.1 200"):
            found["failed"] += 1
            return
        number = int(GENERATION.search(answer)[1])
        found["out_of_order"] += number < self.last
        self.last = number
        found["answers"].setdefault(number, set()).add(DATA.search(answer)[1])

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.found["dropped"] += 1
            self.done.set_result(None)

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self.transport.close()


async def drive(port: int, body: bytes, seconds: float, connections: int, rate: float) -> dict:
    head = (
        f"POST /v2/models/g2d/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        "content-type: application/json\r\n\r\n"
    )
    found = {"sent": 0, "failed": 0, "dropped": 0, "out_of_order": 0, "latencies": [],
             "answers": {}}  # fmt: skip
    until, gap = time.perf_counter() + seconds, connections / rate if rate else 0.0
    loop, clients = asyncio.get_running_loop(), []
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: Client(head.encode() + body, gap, until, found), "127.0.0.1", port
        )
        clients.append(client)
    await asyncio.wait([client.done for client in clients], timeout=seconds + 30)
    found["dropped"] += sum(not client.done.done() for client in clients)
    return found


def load(arguments: list[str]) -> None:
    """Entry point of the load process: drive, and write what was found as JSON."""
    import uvloop

    port, seconds, connections, rate = arguments
    body = sys.stdin.buffer.read()
    found = uvloop.run(drive(int(port), body, float(seconds), int(connections), float(rate)))
    found["answers"] = {n: [d.decode() for d in s] for n, s in found["answers"].items()}
    json.dump(found, sys.stdout)


def start_load(port: int, body: bytes, seconds: float, connections: int, rate: float):
    command = [sys.executable, __file__, "--load", str(port), str(seconds), str(connections),
               str(rate)]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(body)
    process.stdin.close()
    return process


def finish_load(process) -> dict:
    found = json.loads(process.stdout.read())
    assert process.wait() == 0
    return found


# --- what is compared ----------------------------------------------------------------------------


def plain(vault: str, port: str) -> None:
    """The same model as most would serve it: FastAPI, uvicorn, one handler."""
    import torch
    import uvicorn
    from fastapi import FastAPI

    import g2d

    torch.set_num_threads(1)
    with g2d.Defence.open(vault, write=False) as defence:
        live = defence.generation()
        model = live.model()
    app = FastAPI()

    @app.post("/v2/models/g2d/infer")
    async def infer(request: dict) -> dict:
        (tensor,) = request["inputs"]
        x = torch.tensor(tensor["data"], dtype=torch.float32).reshape(tensor["shape"])
        with torch.inference_mode():
            logits = model(x)
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape),
                  "data": logits.flatten().tolist()}  # fmt: skip
        return {"model_name": "g2d", "model_version": str(live.number),
                "parameters": {"generation": live.number}, "outputs": [output]}  # fmt: skip

    uvicorn.run(app, port=int(port), log_level="warning", access_log=False, loop="uvloop",
                http="httptools")  # fmt: skip


def started(command: list[str], port: int, **env: str) -> subprocess.Popen:
    process = subprocess.Popen(command, env=os.environ | env, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        try:
            body = request_body(np.zeros((1, 1, 8, 8), np.float32))
            ask(port, "/v2/models/g2d/infer", body)
            return process
        except OSError:
            time.sleep(0.1)
        if process.poll() is not None:
            break
    process.kill()
    raise SystemExit(f"{command} did not start")


def ask(port: int, path: str, body: bytes | None = None, method: str | None = None) -> dict:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    url = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def request_body(x: np.ndarray) -> bytes:
    data = [round(float(v), 4) for v in x.ravel()]
    tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


# --- the three questions -------------------------------------------------------------------------


def throughput(ports: dict[str, int], body: bytes, a: argparse.Namespace) -> dict:
    """Answers per second, in turns; the median of the turns."""
    turns: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(a.turns):
        for name, port in ports.items():
            seconds = a.throughput / a.turns
            found = finish_load(start_load(port, body, seconds, a.connections, 0))
            assert not found["failed"] + found["dropped"], found
            turns[name].append(len(found["latencies"]) / seconds)
    medians = {name: float(np.median(values)) for name, values in turns.items()}
    return {"turns": turns, **medians, "ratio": medians["g2d"] / medians["plain"]}


def latency(port: int, body: bytes, a: argparse.Namespace, rate: float) -> dict:
    """Latencies while rotation is paused and while it runs, in turns, at a fixed rate."""
    edges: list[tuple[str, float, float]] = []
    process = start_load(port, body, a.seconds + 2, a.connections, rate)
    time.sleep(1.5)
    before = ask(port, "/status")["rotation"]["generation"]
    for turn in range(2 * a.turns):
        name = "rotating" if turn % 2 else "steady"
        ask(port, f"/admin/{'resume' if turn % 2 else 'pause'}", method="POST")
        began = time.perf_counter()
        time.sleep(a.seconds / (2 * a.turns))
        edges.append((name, began, time.perf_counter()))
    after = ask(port, "/status")["rotation"]
    found = finish_load(process)
    at, took = np.array(found["latencies"]).T
    kinds = {"steady": np.zeros(len(at), bool), "rotating": np.zeros(len(at), bool)}
    for name, begin, end in edges:
        kinds[name] |= (at >= begin) & (at < end)
    rows = {
        name: {"answers": int(mask.sum()),
               **{f"p{q}_ms": float(np.percentile(took[mask], q)) * 1e3 for q in (50, 90, 99)}}
        for name, mask in kinds.items()
    }  # fmt: skip
    return {
        **rows,
        "rate": rate,
        "p99_ratio": rows["rotating"]["p99_ms"] / rows["steady"]["p99_ms"],
        "rotations": after["generation"] - before,
        "rotating_seconds": a.seconds / 2,
        "sent": found["sent"],
        "answered": len(at),
        **{key: found[key] for key in ("failed", "dropped", "out_of_order")},
        "answers": found["answers"],
    }


def mixed(vault: Path, x: np.ndarray, answers: dict) -> tuple[int, int]:
    """Distinct answers that are not their generation's own logits; and how many were compared."""
    import torch

    import g2d

    wrong = compared = 0
    with g2d.Defence.open(vault, write=False) as defence, torch.no_grad():
        for number, variants in answers.items():
            right = defence.generation(int(number)).model()(torch.from_numpy(x)).numpy().ravel()
            for text in variants:
                data = np.array([float(v) for v in text.split(",")])
                wrong += not np.allclose(data, right, rtol=1e-4, atol=1e-4)
                compared += 1
    return wrong, compared


def prepare(a: argparse.Namespace, folder: Path) -> Path:
    vault = folder / "vault"
    if a.vault:
        shutil.copytree(a.vault, vault)
        return vault
    import g2d
    from g2d.engine import SerialEngine
    from g2d.settings import build

    settings = build(g2d.Settings, TINY, "the benchmark")
    with g2d.Defence.build("digits", vault, settings, engine=SerialEngine()):
        return vault


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--vault", type=Path, help="a digits vault; it is copied")
    p.add_argument("--seconds", type=float, default=120, help="of the latency question")
    p.add_argument("--throughput", type=float, default=30, help="seconds for each server")
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--connections", type=int, default=16)
    p.add_argument("--every", default="1s", help="rotate every; the worker has to keep up")
    p.add_argument("--load", type=float, default=0.4, help="share of the throughput that is sent")
    p.add_argument("--out", type=Path, default=HERE / "results" / "serving.json")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(a, prepare(a, Path(folder)))
    a.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def measure(a: argparse.Namespace, vault: Path) -> dict:
    x = np.round(np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32), 4)
    body = request_body(x)
    python = [sys.executable]
    rival = started([*python, __file__, "--plain", str(vault), "8471"], 8471)
    ours = None
    try:
        ours = started(
            [*python, "-m", "g2d", "serve", str(vault), "--port", "8472", "--every", a.every],
            8472, G2D_ADMIN_TOKEN=TOKEN,
        )  # fmt: skip
        ask(8472, "/admin/pause", method="POST")
        speed = throughput({"plain": 8471, "g2d": 8472}, body, a)
        rival.terminate()
        slow = latency(8472, body, a, a.load * speed["g2d"])
        ours.terminate()
        assert ours.wait(30) == 0, "SIGTERM must drain and exit 0"
    finally:
        for process in (rival, ours):
            if process is not None and process.poll() is None:
                process.kill()
    wrong, compared = mixed(vault, x, slow.pop("answers"))
    return {
        "cpu": os.cpu_count(), "load_average": os.getloadavg(), "every": a.every,
        "connections": a.connections, "throughput": speed,
        "latency": slow | {"mixed": wrong, "compared": compared},
    }  # fmt: skip


def show(result: dict) -> None:
    speed, slow = result["throughput"], result["latency"]
    bad = sum(slow[key] for key in ("failed", "dropped", "mixed", "out_of_order"))
    print("| what | measured | target |\n|---|---|---|")
    print(f"| answers/s, g2d / plain FastAPI | {speed['g2d']:.0f} / {speed['plain']:.0f} = "
          f"{speed['ratio']:.2f} | ≥ 0.95 |")  # fmt: skip
    print(f"| p99 ms, rotating / steady, at {slow['rate']:.0f}/s | "
          f"{slow['rotating']['p99_ms']:.2f} / {slow['steady']['p99_ms']:.2f} = "
          f"{slow['p99_ratio']:.2f} | ≤ 1.2 |")  # fmt: skip
    print(f"| failed, dropped, mixed, out of order in {slow['rotations']} rotations of "
          f"{slow['rotating_seconds']:.0f} s, {slow['answered']} answers | {bad} | 0 |"
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"] and len(sys.argv) == 6:
        load(sys.argv[2:])
    elif sys.argv[1:2] == ["--plain"]:
        plain(*sys.argv[2:])
    else:
        main()
